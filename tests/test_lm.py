"""Language models of transformers over SIDs: its own loss, gradient and `generate`, its own folders, what is refused."""

import pytest
import torch
from helpers import LM, SMALL, TINY, N, some_batch
from torch import nn

from compose import build, configure
from scripts.bench.lm import Generated

KINDS = {
    "qwen2": {"recommender": "causal_lm", **LM["causal_lm"]},
    "llama": {"recommender": "causal_lm", "lm": {"model_type": "llama", **SMALL, "tie_word_embeddings": True}},
    "gpt2": {"recommender": "causal_lm", "lm": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0, "resid_pdrop": 0,
        "embd_pdrop": 0}},
    "t5": {"recommender": "seq2seq_lm", **LM["seq2seq_lm"]},
}  # fmt: skip


def model_of(kind, dtype=torch.float32, **changes):
    """A two-stage model with codes and weights that differ enough to rank by."""
    cfg = configure.build({**TINY, "method": "two_stage", **KINDS[kind], **changes})
    torch.manual_seed(0)
    model = build.empty_model(cfg, N)
    model.set_codes(torch.randint(0, 8, (N, 3)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype).eval()


class Masked(nn.Module):
    """The logits' table of transformers with a mask of what may stand where."""

    def __init__(self, head, mask):
        super().__init__()
        self.head, self.mask = head, mask

    def forward(self, state):
        return self.head(state) + self.mask


def theirs(model, batch):
    """(transformers' loss on the same tokens, its model)."""
    said = Generated(model)
    lm, ids, P = said.model.double(), said.id_NP, len(said.sizes)
    one = batch.target_B[:, None]
    width = batch.history_BS.shape[1] * P
    if lm.config.is_encoder_decoder:
        asked, labels = said.inputs(batch.history_BS), ids[batch.target_B - 1]
        mask = said.head.mask_PV
    else:  # every item behind another is a target
        asked = said.inputs(torch.cat([batch.history_BS, one], 1))
        there = asked["attention_mask"].bool()
        asked["position_ids"] = (there.long().cumsum(1) - 1).clamp(min=0)
        first = there.long().argmax(1)[:, None] + P
        labels = asked["input_ids"].masked_fill(torch.arange(width + P) < first, -100)
        mask = said.head.mask_PV.roll(-1, 0).repeat(width // P + 1, 1)  # a place foretells the next one's token
    lm.set_output_embeddings(Masked(said.head.head, mask))
    return lm(**asked, labels=labels).loss, lm


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_transformers_own(kind):
    """In float64, as far as transformers keeps to it: norms and a causal loss are float32 there."""
    model, batch = model_of(kind, torch.float64), some_batch()
    network = model.recommender
    loss, _ = model(batch)
    loss.backward()
    want, lm = theirs(model, batch)
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    for name, stack in network._stacks(lm).items():
        grads = {k: p.grad for k, p in stack.named_parameters()}
        for key, p in network.stacks[name].named_parameters():
            torch.testing.assert_close(p.grad, grads[key], rtol=1e-4, atol=1e-7)
    tables = {id(w): w for w in (lm.get_input_embeddings().weight, lm.lm_head.head.weight)}.values()
    got = torch.cat([table.grad for table in network.tables])
    torch.testing.assert_close(got, sum(w.grad for w in tables)[len(network.words) :], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("beams", [10, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_items_scores_and_order_are_those_of_generate(kind, beams):
    model = model_of(kind, num_beams=beams)
    history_BS = some_batch().history_BS
    token_BWP, score_BW = Generated(model).beams(history_BS, beams)
    found = model.recommend(history_BS, beams)
    assert (found.item_BW > 0).all()
    torch.testing.assert_close(found.score_BW, score_BW, atol=1e-5, rtol=0)
    assert torch.equal(model.sids.token_NP[found.item_BW - 1], token_BWP)
