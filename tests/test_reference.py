"""The fast path against the padded reference: one loss, one gradient, in float64, on real samples."""

import numpy as np
import pytest
import reference
import torch
from helpers import SHARED
from transformers.models.t5.modeling_t5 import T5LayerNorm

import layers
from compose import build, configure
from data import make_batch
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from recommenders.t5 import T5Options
from scripts.bench.plain import copy_stacks
from scripts.make_demo import build_demo
from sids.tokenizer import Source

SMALL = {
    "num_emb_list": [64, 64, 64],    "layers": [24], "e_dim": 12, "encoder_layers": 2, "decoder_layers": 2,
    "d_model": 24, "d_ff": 40, "num_heads": 3, "d_kv": 8, "dropout_rate": 0.0, "num_beams": 10,
}  # fmt: skip


@pytest.fixture(params=["demo", "scientific"])
def pair(request, tmp_path, monkeypatch):
    """(our joint model in float64, Hugging Face's T5 with its weights, the data set)."""
    if request.param == "demo":
        build_demo(tmp_path / "demo")
    elif not SHARED.is_dir():
        pytest.skip("needs ../shared/datasets")
    monkeypatch.setattr(T5LayerNorm, "forward", reference.exact_norm)
    folder = tmp_path if request.param == "demo" else SHARED
    cfg = configure.build({**SMALL, "dataset": request.param, "data_path": str(folder)})
    data = read_dataset(cfg[DataOptions])
    content = np.array(read_embeddings(data), np.float32)
    torch.manual_seed(0)
    ours = build.empty_model(configure.change(cfg, uncertainty="gumbel"), data.n_items, content.shape[1])
    ours.tokenizer.init_codebooks(torch.from_numpy(content[:2000]), 10, 0)
    ours.attach(Source(content, data.popularity[1:], data.train), 50)
    ours = ours.double().train()
    for p in ours.recommender.parameters():  # large enough that every term matters
        p.data.normal_(0, 0.3)
    r = cfg[T5Options]
    theirs = reference.t5(width=r.d_model, inner=r.d_ff, heads=r.num_heads, d_kv=r.d_kv, layers=(2, 2))
    copy_stacks(ours.recommender.t5, theirs)
    return ours, theirs, data


def test_loss_and_gradients_equal_the_padded_reference(pair):
    ours, theirs, data = pair
    rows = np.random.default_rng(0).permutation(len(data.train))[:7]
    batch = make_batch(data.train, rows, 50)
    loss, _ = ours(batch)
    loss.backward()

    rec, books = ours.recommender, ours.tokenizer.rq.codebooks()
    copies = [[t.detach().clone().requires_grad_() for t in some] for some in (rec.tables, books, [rec.start])]
    tables, codebooks, (start,) = copies
    sizes = [len(c) for c in codebooks]

    def noise(item):
        number = torch.tensor([item])
        return [layers.gumbel(layers.counter_uniform(ours.tokenizer.seed, ours.step, number, i,
        k))[0].double() for i, k in enumerate(sizes)]  # fmt: skip

    samples = [
        ([i for i in history if i], target)
        for history, target in zip(batch.history_BS.tolist(), batch.target_B.tolist(), strict=True)
    ]
    assert len({len(h) for h, _ in samples}) > 1  # something is padded
    want = reference.joint_loss(
        theirs, start, tables, codebooks, ours.tokenizer.x_ND, ours.end_N.tolist(),
        ours.tokenizer.scale_L.tolist(), noise,
        ours.decay.cfg.gumbel_tau, ours.tokenizer.cfg.beta, samples,
    )  # fmt: skip
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-9)
    for mine, other in zip([*rec.tables, *books, rec.start], [*tables, *codebooks, start], strict=True):
        assert other.grad.norm() > 0
        assert torch.allclose(mine.grad, other.grad, rtol=1e-6, atol=1e-9)
    theirs_q = theirs.encoder.block[0].layer[0].SelfAttention
    assert torch.allclose(rec.t5.encoder[0].attention.q.weight.grad, theirs_q.q.weight.grad, rtol=1e-6, atol=1e-9)
    bias = theirs.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.grad
    assert torch.allclose(rec.t5.decoder_bias.table.weight.grad, bias, rtol=1e-6, atol=1e-9)
