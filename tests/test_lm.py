"""Language models over SIDs beside transformers' own loss, gradient and `generate`; its folders; what is refused."""

import shutil

import pytest
import torch
import transformers
from helpers import LM, SMALL, TINY, N, some_batch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

import main
from compose import build, configure
from recommenders import pretrained
from scripts import export
from scripts.bench.lm import Generated
from serve.loaded import load

KINDS = {
    "qwen2": {"recommender": "causal_lm", "lm": {"model_type": "qwen2", **SMALL, "num_key_value_heads": 1}},
    "llama": {"recommender": "causal_lm", "lm": {"model_type": "llama", **SMALL, "tie_word_embeddings": True}},
    "gpt2": {"recommender": "causal_lm", "lm": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0, "resid_pdrop": 0,
        "embd_pdrop": 0, "eos_token_id": 1, "bos_token_id": 0}},
    "t5": {"recommender": "seq2seq_lm", "lm": LM["seq2seq_lm"]["lm"] | {"num_layers": 2}},
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


# ---------------------------------------------------------------- folders


@pytest.fixture(scope="module", params=LM)
def run(request, ground):
    """A joint run of one epoch with each kind."""
    chosen = {"recommender": request.param, **LM[request.param], "epochs": 1, "run_name": request.param}
    return main.train(configure.build(ground[0] | chosen))


def test_an_exported_folder_is_read_by_us_and_by_transformers(run, tmp_path):
    out = export.run([str(run.best), "--out", str(tmp_path / "out")])
    ours = load(out)
    assert ours.recommend([["i3", "i17"], ["i5"]], 10) == load(run.best).recommend([["i3", "i17"], ["i5"]], 10)
    network = ours.model.recommender
    theirs = getattr(transformers, network.auto).from_pretrained(out / "lm")
    said = Generated(ours.model, theirs)
    history_BS = torch.tensor([[ours.number["i3"], ours.number["i17"]]])
    token_BWP, score_BW = said.beams(history_BS, 10)
    found = ours.model.recommend(history_BS, 10)
    assert torch.equal(ours.model.sids.token_NP[found.item_BW - 1], token_BWP)
    torch.testing.assert_close(found.score_BW, score_BW, atol=1e-5, rtol=0)


def saved(folder, kind):
    """A language model as others publish it: a vocabulary of 40 words, tied tables, a tokenizer of 30 words."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "bought", "next", *"abcdefghijklmnopqrstuvwxyz"])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    options = {**KINDS[kind]["lm"], "vocab_size": 40, "tie_word_embeddings": True, "pad_token_id": 0}
    torch.manual_seed(1)
    auto = "AutoModelForSeq2SeqLM" if kind == "t5" else "AutoModelForCausalLM"
    pretrained.untrained(options, auto).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_pre_trained_model_and_a_prompt(ground, tmp_path, kind):
    """Its weights, and the words around a history, are those of the folder; the run needs the folder no more."""
    folder = saved(tmp_path / "lm", kind)
    prompt = {"user": "bought {history} next", "assistant": " b"}
    chosen = {"recommender": KINDS[kind]["recommender"], "lm_path": str(folder), "prompt": prompt}
    place = {"method": "two_stage", "epochs": 1, "run_name": "r", "output_dir": str(tmp_path), "lr_rec": 1e-9}
    run = main.train(configure.build(ground[0] | chosen | place))
    shutil.rmtree(folder)
    ours = load(run.best)
    network, auto = ours.model.recommender, ours.model.recommender.auto
    again = saved(tmp_path / "again", kind)
    theirs = network.as_transformers()
    kept = getattr(transformers, auto).from_pretrained(again)
    for name, p in kept.named_parameters():
        torch.testing.assert_close(theirs.get_parameter(name)[: len(p)], p, atol=1e-6, rtol=0)
    assert network.before.tolist() == [2] and network.behind.tolist() == [3, 5]
    history_BS = torch.tensor([[1, 2], [0, 3]])
    score_BW = Generated(ours.model).beams(history_BS, 10)[1]
    found = ours.model.recommend(history_BS, 10)
    torch.testing.assert_close(found.score_BW, score_BW, atol=1e-5, rtol=0)
