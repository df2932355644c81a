"""The tokenizer: released checkpoint layout, quantization by hand, pre-training that learns."""

import argparse
import dataclasses

import numpy as np
import pytest
import torch
from conftest import load_rqvae, tiny_overrides, write_tiny

from compose import build, configure
from joint.quantizer import measure_scales
from joint.uncertainty import DECAYS, UncertaintyOptions
from readers.layouts import read_dataset
from readers.splits import DataOptions
from sids import tokenizer
from sids.tokenizer import Source, each
from utils import Problem
from vq import RQVAE, RQVAEOptions

CFG = configure.build(
    {"num_emb_list": [6, 5, 4], "layers": [12, 9], "e_dim": 3, "sk_epsilons": [0.01] * 3}
)[RQVAEOptions]


def released(path, width=7, **changes):
    """A checkpoint in the released layout, made without our classes."""
    g = torch.Generator().manual_seed(0)
    sizes = [width, 12, 9, 3]
    state = {}
    for part, widths in (("encoder", sizes), ("decoder", sizes[::-1])):
        for i in range(3):
            state[f"{part}.mlp_layers.{3 * i + 1}.weight"] = torch.randn(widths[i + 1], widths[i], generator=g)
            state[f"{part}.mlp_layers.{3 * i + 1}.bias"] = torch.randn(widths[i + 1], generator=g)
    for level, k in enumerate((6, 5, 4)):
        state[f"rq.vq_layers.{level}.embedding.weight"] = torch.randn(k, 3, generator=g)
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    whole = {
        "args": argparse.Namespace(lr=1e-3, num_emb_list=[6, 5, 4], device="cuda:0", bn=False), "epoch": 9999,
        "best_loss": 0.1, "best_collision_rate": 0.05, "state_dict": state | changes,
        "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    torch.save(whole, path)
    return state


def codes_by_hand(state, x):
    """An independent numpy forward of the released network, in float64."""
    w, x = {k: v.double().numpy() for k, v in state.items()}, x.astype(np.float64)
    for i in (1, 4, 7):
        x = x @ w[f"encoder.mlp_layers.{i}.weight"].T + w[f"encoder.mlp_layers.{i}.bias"]
        x = np.maximum(x, 0) if i != 7 else x
    codes = []
    for level in range(3):
        book = w[f"rq.vq_layers.{level}.embedding.weight"]
        nearest = ((x[:, None] - book[None]) ** 2).sum(2).argmin(1)
        codes.append(nearest)
        x = x - book[nearest]
    return np.stack(codes, 1)


def test_a_released_checkpoint_gives_the_codes_it_was_trained_for(tmp_path):
    state = released(tmp_path / "best_collision_model.pth")
    model = load_rqvae(tmp_path / "best_collision_model.pth", CFG, 7).eval()
    x = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    got = model.rq.assign(model.encoder(torch.from_numpy(x)))
    assert np.array_equal(got.numpy(), codes_by_hand(state, x))


@pytest.mark.parametrize(
    ("width", "changes", "message"),
    [
        (8, {}, "embeddings of width 8, yours have 7"),
        (
            7,
            {"rq.vq_layers.1.embedding.weight": torch.zeros(9, 3)},
            r"rq.vq_layers.1.embedding.weight has shape \(9, 3\)",
        ),
        (7, {"encoder.mlp_layers.99.weight": torch.zeros(1)}, "configuration needs none"),
        (7, {"encoder.mlp_layers.1.bias": torch.full((12,), float("nan"))}, r"encoder\.mlp_layers\.1\.bias holds NaN"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, width, changes, message):
    released(tmp_path / "c.pth", width, **changes)
    with pytest.raises(Problem, match=r"c\.pth: .*" + message):
        load_rqvae(tmp_path / "c.pth", CFG, 7)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"e_dim": 4}, r"shape .*e_dim"),
        ({"num_emb_list": [6, 6, 4]}, r"rq\.vq_layers\.1\.embedding\.weight has shape \(5, 3\), .* \(6, 3\)"),
        ({"num_emb_list": [6, 5], "sk_epsilons": [0, 0]}, r"rq\.vq_layers\.2"),
        ({"layers": [12]}, r"mlp_layers\.\d"),
        ({"standardize_embeddings": True}, r"(shift|spread) has shape none"),
    ],
)
def test_a_checkpoint_of_another_shape_than_the_options_is_refused(tmp_path, shape, message):
    released(tmp_path / "c.pth")
    with pytest.raises(Problem, match=r"c\.pth: .*" + message):
        load_rqvae(tmp_path / "c.pth", dataclasses.replace(CFG, **shape), 7)


def test_pre_training_pass_by_hand():
    """Loss terms of one batch recomputed with explicit residuals."""
    torch.manual_seed(0)
    model, x = RQVAE(CFG, 7), torch.randn(20, 7)
    recon, vq, codes = model(x, "argmin")
    r = z = model.encoder(x)
    want, total = 0.0, torch.zeros_like(z)
    for level, book in enumerate(model.rq.codebooks()):
        nearest = ((r[:, None] - book[None]) ** 2).sum(2).argmin(1)
        assert torch.equal(codes[:, level], nearest)
        want += 1.25 * ((r - book[nearest]) ** 2).mean() / 3
        total, r = total + book[nearest], r - book[nearest]
    assert float(vq) == pytest.approx(float(want), rel=1e-5)
    assert float(recon) == pytest.approx(float(((model.decoder(total) - x) ** 2).mean()), rel=1e-5)


def test_reconstruction_reaches_the_encoder_straight_through():
    torch.manual_seed(0)
    model, x = RQVAE(CFG, 7), torch.randn(20, 7)
    recon, _, _ = model(x, "argmin")
    recon.backward()
    assert model.encoder.mlp_layers[1].weight.grad.norm() > 0
    assert model.rq.codebooks()[0].grad is None  # codebooks learn from the VQ loss alone


def test_kmeans_start_uses_the_codes_better_than_a_random_one():
    torch.manual_seed(0)
    model, x = RQVAE(CFG, 7), torch.randn(300, 7)
    before = len(model.rq.assign(model.encoder(x)).unique(dim=0))
    model.init_codebooks(x, 25, seed=0)
    assert len(model.rq.assign(model.encoder(x)).unique(dim=0)) > before


def test_sinkhorn_catalogue_is_balanced_on_each_level():
    torch.manual_seed(0)
    model, x = RQVAE(CFG, 7), torch.randn(600, 7)
    z = model.encoder(x)
    model.init_codebooks(x, 10, seed=0)
    even, plain = (
        model.rq.assign(z, rule)[:, 0].bincount(minlength=6).float().std() for rule in ("sinkhorn", "argmin")
    )
    assert even < plain


def test_gap_is_the_median_distance_between_the_two_nearest_codes():
    torch.manual_seed(0)
    model = RQVAE(CFG, 7)
    z = torch.randn(101, 3)
    first = model.rq.codebooks()[0]
    d = np.sort(((z[:, None] - first[None]) ** 2).sum(2).detach().numpy(), 1)
    scales = measure_scales(model.rq, lambda: [z], len(z), "auto", DECAYS["gumbel"](UncertaintyOptions(), [4] * 3))
    assert scales[0].gap == pytest.approx(float(np.median(d[:, 1] - d[:, 0])), rel=1e-4)
    assert scales[0].scale == pytest.approx(3 / scales[0].gap)


def test_equal_codes_give_no_unit():
    cfg = configure.build({"num_emb_list": [4], "layers": [5], "sk_epsilons": [0.01], "e_dim": 3})
    model = RQVAE(cfg[RQVAEOptions], 7)
    with torch.no_grad():
        model.rq.codebooks()[0][:] = 1.0
    with pytest.raises(Problem, match="level 1: most items have two nearest codes at one distance"):
        measure_scales(model.rq, lambda: [torch.rand(50, 3)], 50, "auto", DECAYS["none"](UncertaintyOptions(), [4]))


def test_looking_through_a_network_leaves_its_modes(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    network[1].eval()
    list(each(network, [torch.ones(3, 2)], torch.device("cpu")))
    assert [m.training for m in network.modules()] == [True, True, False]


def test_standardized_embeddings_are_centred(tmp_path):
    cfg = configure.build({"num_emb_list": [4], "sk_epsilons": [0.01], "layers": [5], "standardize_embeddings": True})[
        RQVAEOptions
    ]
    model = RQVAE(cfg, 3)
    x = torch.randn(50, 3) * 4 + 2
    model.begin(Source(x.numpy(), np.ones(50), None), 50, 0, fresh=True)
    y = model.prepare(x)
    assert torch.allclose(y.mean(0), torch.zeros(3), atol=1e-5) and y.std() == pytest.approx(1, rel=1e-2)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "t.pth")
    again = load_rqvae(tmp_path / "t.pth", cfg, 3)
    assert torch.equal(again.prepare(x), y)


def test_the_distances_that_settle_collisions_are_those_that_assign():
    cfg = configure.build({"num_emb_list": [8, 8], "sk_epsilons": [0, 0], "layers": [5], "e_dim": 4})
    model = RQVAE(cfg[RQVAEOptions], 6).eval()
    for codebook in model.rq.codebooks():
        torch.nn.init.normal_(codebook)
    content_ND = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    code_NL, distances = model.encode(content_ND), model.distances_of(content_ND)
    assert torch.equal(distances(torch.arange(60), code_NL[:, :1]).argmin(1), code_NL[:, 1])


@pytest.mark.parametrize("changes", [
    {}, {"behaviour": "pairs", "behaviour_width": 4}, {"standardize_embeddings": True, "rqvae_assignment": "sinkhorn"},
    {"tokenizer": "contrastive"},
    {"tokenizer": "dvae", "num_emb_list": [8, 8], "dvae_steps": 20, "rqvae_batch_size": 16},
])  # fmt: skip
def test_rows_that_are_read_when_needed_teach_the_same(tmp_path, monkeypatch, changes):
    """A catalogue on disk, in half precision, against the same in memory: the tokenizers are equal to the bit."""
    folder = write_tiny(tmp_path / "dataset" / "tiny")
    path = folder / "tiny.emb-test.npy"
    np.save(path, np.load(path).astype(np.float16))
    found = []
    for name, most in (("held", 1 << 30), ("read", 0)):
        monkeypatch.setattr(tokenizer, "HELD", most)
        own = {"method": "two_stage", "output_dir": str(tmp_path / name), "rqvae_epochs": 2}
        cfg = configure.build(tiny_overrides(tmp_path) | own | changes)
        data = read_dataset(cfg[DataOptions])
        found.append(torch.load(build.train_tokenizer(cfg, data), weights_only=True)["state_dict"])
    assert found[0].keys() == found[1].keys() and not any("x_ND" in key for key in found[0])
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
