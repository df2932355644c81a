"""Our T5 against Hugging Face's, in float64 with copied weights."""

import pytest
import reference
import torch
from transformers.models.t5 import modeling_t5

from recommenders.t5 import T5, relative_bucket
from scripts.bench.plain import copy_stacks

W, FF, H, KV, ENC, DEC = 24, 40, 3, 10, 2, 3


@pytest.fixture(autouse=True)
def norm_in_float64(monkeypatch):
    """Hugging Face's norm squares in float32 whatever its input; only that precision is changed."""
    monkeypatch.setattr(modeling_t5.T5LayerNorm, "forward", reference.exact_norm)


def pair():
    """(ours, Hugging Face's) with equal weights."""
    torch.manual_seed(0)
    ours = T5(width=W, inner=FF, heads=H, d_kv=KV, encoder_layers=ENC, decoder_layers=DEC, dropout=0.0).double()
    for p in ours.parameters():  # large enough that every term matters
        p.data.normal_(0, 0.3)
    theirs = reference.t5(width=W, inner=FF, heads=H, d_kv=KV, layers=(ENC, DEC))
    copy_stacks(ours, theirs)
    return ours.eval(), theirs.eval()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    keep = torch.ones(3, 140, dtype=torch.bool)  # long enough for every bucket
    keep[0, :50] = False
    keep[2, :139] = False
    return torch.randn(3, 140, W).double(), torch.randn(3, 4, W).double(), keep


def test_hidden_states_equal_hugging_faces(inputs):
    source, target, keep = inputs
    ours, theirs = pair()
    want = theirs(inputs_embeds=source, attention_mask=keep.long(), decoder_inputs_embeds=target)
    memory = ours.encode(source, keep)
    got = ours.decode(target, ours.start(memory, keep))
    assert torch.allclose(memory[keep], want.encoder_last_hidden_state[keep], atol=1e-10)
    assert torch.allclose(got, want.last_hidden_state, atol=1e-10)


def test_gradients_equal_hugging_faces(inputs):
    source, target, keep = inputs
    ours, theirs = pair()
    theirs(
        inputs_embeds=source, attention_mask=keep.long(), decoder_inputs_embeds=target
    ).last_hidden_state.square().sum().backward()
    ours.decode(target, ours.start(ours.encode(source, keep), keep)).square().sum().backward()
    want = theirs.encoder.block[0].layer[0].SelfAttention
    assert torch.allclose(ours.encoder[0].attention.q.weight.grad, want.q.weight.grad)
    assert torch.allclose(ours.encoder_bias.table.weight.grad, want.relative_attention_bias.weight.grad)


def test_cached_steps_equal_one_pass(inputs):
    """Token by token with a cache, beams sharing one source, rows reordered on the way."""
    source, _target, keep = inputs
    ours, _ = pair()
    memory = ours.encode(source, keep)
    beams = 2
    rows = torch.randn(3 * beams, 4, W).double()
    cache = ours.start(memory, keep)
    parent = torch.tensor([1, 0, 2, 2, 5, 4])
    steps = [ours.decode(rows[:, :1], cache), ours.decode(rows[:, 1:2], cache)]
    cache.reorder(parent)
    steps += [ours.decode(rows[:, 2:3], cache), ours.decode(rows[:, 3:], cache)]
    line = torch.cat([rows[parent, :2], rows[:, 2:]], 1)
    user = torch.arange(3).repeat_interleave(beams)
    whole = ours.decode(line, ours.start(memory[user], keep[user]))
    assert torch.allclose(steps[3][:, 0], whole[:, 3], atol=1e-10)
    assert torch.allclose(torch.cat(steps[:2], 1)[parent], whole[:, :2], atol=1e-10)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_hugging_faces(bidirectional):
    offset = torch.arange(-400, 401)
    want = modeling_t5.T5Attention._relative_position_bucket(offset, bidirectional=bidirectional)
    assert torch.equal(relative_bucket(offset, bidirectional=bidirectional), want)
