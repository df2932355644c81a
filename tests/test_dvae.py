"""The discrete VAE: its formulas against numbers worked out by hand, its networks, and what guards its lengths."""

import math

import numpy as np
import pytest
import torch
from conftest import tiny_at
from scipy.optimize import minimize

from compose import build, configure
from readers.layouts import read_dataset
from readers.splits import DataOptions
from sids import dvae
from sids.dvae import DVAE
from sids.fit import measure
from sids.reinforce import Reinforce, content, kept
from sids.rq_kmeans import RQKMeans, RQKMeansOptions
from sids.tokenizer import Source
from utils import Problem, read_checkpoint

STOP = torch.tensor([[-0.5, 1.0, -1.0]])
D = torch.tensor([[1.0, 0.5, 0.3, 0.2]])
KL = torch.tensor([[0.2967937, 0.0588915, 0.0, 0.9867102]])


def close(tensor, want):
    assert torch.allclose(tensor, torch.tensor(want), atol=1e-5), tensor


def test_the_length_posterior_by_hand():
    """Golden example: stop logits (-0.5, 1, -1)."""
    logq = dvae.length_posterior(STOP)
    close(logq.exp()[0], [0.3775407, 0.4550542, 0.0450222, 0.1223829])
    close(dvae.alive(logq)[0], [1.0, 0.6224593, 0.1674051, 0.1223829])
    assert int(dvae.lengths_of(logq)) == 2
    even = dvae.length_posterior(torch.zeros(1, 3))
    close(even.exp()[0], [0.5, 0.25, 0.125, 0.125])
    assert int(dvae.lengths_of(torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log())) == 1  # ties: the shorter


def test_alive_is_what_is_left_of_the_posterior():
    stop = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    on = torch.sigmoid(-stop).cumprod(1)
    assert torch.allclose(dvae.alive(dvae.length_posterior(stop)), torch.cat([torch.ones(50, 1), on], 1), atol=1e-6)


def test_kl_to_uniform_by_hand():
    p = torch.tensor([(0.7, 0.2, 0.1), (0.5, 0.25, 0.25), (1 / 3, 1 / 3, 1 / 3), (0.98, 0.01, 0.01)])
    close(dvae.kl_to_uniform(p.log()[None])[0], KL[0].tolist())


def test_the_whole_loss_by_hand():
    """Golden example: one item, V = 3, beta = 0.1, lambda = 0.5, free bits 0.1, eps 0.1."""
    logq = dvae.length_posterior(STOP)
    t = dvae.terms(D, KL, logq, baseline=0.1, free_bits=0.1, price=0.5)
    for got, want in zip(t, (0.6287459, 0.6430510, 0.3053119, -0.1665852), strict=True):
        assert float(got) == pytest.approx(want, abs=1e-5)
    assert float(t.rec + 0.1 * (t.voc + t.length)) == pytest.approx(0.6426186, abs=1e-5)
    log_z = math.log(sum(math.exp(-0.5 * t) for t in range(1, 5)))  # what the length term lacks to be a KL
    free = dvae.terms(D, KL, logq, baseline=0.0, free_bits=0.0, price=0.5)
    assert float(free.voc) == pytest.approx(0.4542078, abs=1e-5)
    assert float(free.rec + free.voc + free.length) + log_z == pytest.approx(1.2180123, abs=1e-5)


@pytest.mark.parametrize(
    ("price", "baseline", "want"),
    [
        (0.5, 0.0, (0.0013013, 0.1171350, 0.5249629, 0.3566009)),
        (0.5, 0.1, (0.0026380, 0.1440315, 0.5284942, 0.3248364)),
    ],
)
def test_descent_finds_the_optimal_lengths(price, baseline, want):
    """Golden example: q*(l) ~ exp(-(1 - eps) d_l / beta - sum of relu(KL - fb) - lambda l), beta = 0.1."""

    def loss(x):
        logits = torch.tensor(x[None], requires_grad=True)
        t = dvae.terms(D.double(), KL.double(), logits.log_softmax(1), baseline=baseline, free_bits=0.1, price=price)
        total = t.rec + 0.1 * (t.voc + t.length)
        total.backward()
        return total.item(), logits.grad[0].numpy()

    found = minimize(loss, np.zeros(4), jac=True, options={"gtol": 1e-9}).x
    assert np.allclose(np.exp(found) / np.exp(found).sum(), want, atol=1e-4)


def test_schedules_by_hand():
    """Golden example: cosines over 100 steps, constant afterwards."""
    steps = (0, 25, 50, 75, 100, 200)
    tau = [dvae.cosine(1.0, 0.6, s, 100) for s in steps]
    assert tau == pytest.approx([1, 0.9414214, 0.8, 0.6585786, 0.6, 0.6], abs=1e-7)
    beta = [dvae.cosine(0.0, 0.002, s, 100) for s in steps]
    assert beta == pytest.approx([0, 0.000292893, 0.001, 0.001707107, 0.002, 0.002], abs=1e-9)


# ---------------------------------------------------------------- the networks


def made(places=3, **options):
    given = {"tokenizer": "dvae", "method": "two_stage", "num_emb_list": [8] * places, "dvae_width": 16,
             "dvae_decoder_width": 16, "max_shared": 1.0, **options}  # fmt: skip
    torch.manual_seed(0)
    return DVAE(configure.build(given)[DVAE.Options], 12)


def source(items=30, seed=0):
    random = np.random.default_rng(seed)
    return Source(random.normal(size=(items, 12)).astype(np.float32), random.integers(0, 9, items), None)


@pytest.mark.parametrize("shared", [True, False])
def test_a_prefix_is_reconstructed_without_what_follows(shared):
    """Changing a later symbol leaves the earlier reconstructions as they were; soft one-hot tokens are codes."""
    model = made(shared_codebook=shared).eval()
    code = torch.tensor([[1, 2, 3]])
    other = torch.tensor([[1, 2, 7]])
    y, z = model.decode(code), model.decode(other)
    assert torch.equal(y[:, :2], z[:, :2]) and not torch.equal(y[:, 2], z[:, 2])
    with torch.no_grad():
        assert torch.allclose(model.receiver(torch.nn.functional.one_hot(code, 8).float()), y, atol=1e-6)


@pytest.mark.parametrize("length", ["fixed", "cut", "learned"])
def test_the_gradient_reaches_every_part(length):
    model, data = made(length=length, length_warmup=0.0, shared_codebook=False), source()
    model.begin(data, 16, 0, fresh=True)
    loss, parts = model.train().loss(model.batches(data, 16, 0, 0)[0], 2000)
    loss.backward()
    assert all(torch.isfinite(v) for v in parts.values())
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_codes_of_k_means_are_learned_first(monkeypatch):
    """The sender is told the codes of residual k-means token by token, the receiver reads them; then all is as ever."""
    monkeypatch.setattr(dvae, "DROPOUT", 0.0)
    model, data = made(taught_share=0.3, dvae_steps=100), source()
    model.begin(data, 16, 0, fresh=True)
    kmeans = RQKMeans(
        RQKMeansOptions(num_emb_list=[8] * 3, weights="counts", kmeans_iters=20, kmeans_start="greedy"), 12
    )
    kmeans.fit(data, 0)
    batch = model.batches(data, 16, 0, 0)[0]
    code, x = kmeans.encode(data.content_ND)[batch], model.x_ND[batch]
    sums = torch.nn.functional.normalize(kmeans.decode(code), dim=-1)
    assert torch.allclose(model.decode(code), sums, atol=1e-6)  # it begins with their centres
    loss, parts = model.train().loss(batch, 29)
    h, told = model.sender.f(x), 0.0
    for t in range(3):
        told -= model.sender.logits(h, t).log_softmax(1)[range(16), code[:, t]].mean() / 3
        h = model.sender.rest(h, model.sender.table(t)[code[:, t]], t)
    y = model.decode(code)
    assert float(parts["taught"].detach()) == pytest.approx(float(told.detach()), rel=1e-5)
    assert float(parts["recon"].detach()) == pytest.approx(float((2 - 2 * (y * x[:, None]).sum(-1)).mean()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float((parts["taught"] + parts["recon"]).detach()))
    assert "tokens" in model.loss(batch, 30)[1]


def test_encoding_is_deterministic_and_each_item_alone():
    model, data = made(length="learned"), source()
    whole = model.encode(data.content_ND)
    assert torch.equal(whole, model.train().encode(data.content_ND)) and model.training
    assert torch.equal(whole[5:6], model.encode(data.content_ND[5:6]))


def test_how_good_it_is_asks_for_directions_alone():
    """What it gives back are unit vectors; how long the content is says nothing about it."""
    model, content_ND = made(), source().content_ND
    one, two = (measure(model, scale * content_ND, 1) for scale in (1, 7))
    assert two.reconstruction_error == pytest.approx(one.reconstruction_error, rel=1e-4)
    assert two.codes_used == one.codes_used
    unit_ND = content_ND / np.linalg.norm(content_ND, axis=1, keepdims=True)
    given_ND = model.decode(model.encode(content_ND))[:, -1].numpy()
    spread = ((unit_ND - unit_ND.mean(0)) ** 2).sum()
    assert one.reconstruction_error == pytest.approx(((given_ND - unit_ND) ** 2).sum() / spread, rel=1e-4)


def test_the_stop_head_is_built_only_where_it_is_asked_for():
    assert not any("stop" in k for k in made(length="cut").state_dict())
    assert any("stop" in k for k in made(length="learned").state_dict())


def test_an_interaction_is_an_example():
    """By counts every item comes as often as it was seen; uniformly, all alike, in as many rows."""
    data = source()
    for weights in ("counts", "uniform"):
        batches = made(weights=weights).batches(data, 7, 0, 3)
        assert {len(b) for b in batches} == {7} and len(batches) == data.count_N.sum() // 7
        seen = np.bincount(torch.cat(batches).numpy(), minlength=30)
        if weights == "counts":
            assert (seen <= data.count_N).all() and data.count_N.sum() - seen.sum() < 7
        else:
            assert seen.max() - seen.min() <= 2
    first, again, other = (made().batches(data, 7, 0, epoch)[0] for epoch in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---------------------------------------------------------------- REINFORCE


@pytest.mark.parametrize(
    ("sampled", "ids", "mask", "told"),
    [
        ((5, 0, 7, 3), (5, 0, 0, 0), (1, 1, 0, 0), (5,)),
        ((2, 4, 1, 9), (2, 4, 1, 9), (1, 1, 1, 1), (2, 4, 1, 9)),
        ((0, 3, 3, 3), (0, 0, 0, 0), (1, 0, 0, 0), (0,)),
        ((5, 6, 7, 0), (5, 6, 7, 0), (1, 1, 1, 1), (5, 6, 7)),
    ],
)
def test_the_end_of_a_sampled_code_by_hand(sampled, ids, mask, told):
    """Golden example: only what stands behind the end is erased. A code that ends at once is the symbol 0 alone."""
    code, live = kept(torch.tensor([sampled]), ends=True)
    assert code[0].tolist() == list(ids) and live[0].long().tolist() == list(mask)
    assert [c for c in content(code, ends=True)[0].tolist() if c >= 0] == list(told)
    assert kept(torch.tensor([sampled]), ends=False)[0].tolist() == [list(sampled)]


REINFORCE = {"tokenizer": "reinforce", "method": "two_stage", "num_emb_list": [3, 3], "dvae_width": 8,
             "dvae_decoder_width": 8}  # fmt: skip


@pytest.fixture
def plain(monkeypatch):
    """No dropout, and logits small enough that every code is drawn."""
    monkeypatch.setattr(dvae, "DROPOUT", 0.0)
    monkeypatch.setattr(dvae, "LOGIT_SCALE", 1.0)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("length", ["fixed", "learned"])
def test_the_codes_that_can_be_drawn_have_all_the_probability(length):
    torch.manual_seed(0)
    model = Reinforce(configure.build(REINFORCE | {"length": length})[Reinforce.Options], 6)
    x = torch.nn.functional.normalize(torch.randn(1, 6), dim=1)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    code, live = kept(every, ends=length == "learned")
    can = [i for i in range(9) if code[i].tolist() == every[i].tolist()]
    assert sum(float(forced(model, x, code[i : i + 1], live[i : i + 1])) for i in can) == pytest.approx(1, abs=1e-5)
    assert len(can) == (9 if length == "fixed" else 7)


@torch.no_grad()
def forced(model, x, code, live):
    """The probability of a code, places behind its end left out."""
    h, p = model.sender.f(x), 1.0
    for t in range(2):
        if live[0, t]:
            p = p * model.sender.logits(h, t).softmax(1)[0, code[0, t]]
            h = model.sender.rest(h, model.sender.table(t)[code[:, t]], t)
    return p


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("length", ["fixed", "learned"])
def test_a_draw_tells_the_probability_of_what_was_drawn(length):
    torch.manual_seed(0)
    model = Reinforce(configure.build(REINFORCE | {"length": length})[Reinforce.Options], 6)
    x = torch.nn.functional.normalize(torch.randn(20, 6), dim=1)
    drawn = model.draw(x, sample=True)
    for i in range(20):
        want = forced(model, x[i : i + 1], drawn.code_BT[i : i + 1], drawn.live_BT[i : i + 1])
        assert float(drawn.logp_BT[i].sum().exp().detach()) == pytest.approx(float(want), rel=1e-4)


def test_the_running_means_start_at_the_first_batch_and_follow_slowly():
    model = Reinforce(configure.build({"tokenizer": "reinforce", "method": "two_stage"})[Reinforce.Options], 6).train()
    found = [float(model._baseline(0, torch.tensor([v]))) for v in (2.0, 3.0, 3.0)]
    assert found == pytest.approx([2.0, 2.0, 2.01])
    assert float(model.eval()._baseline(0, torch.tensor([9.0]))) == pytest.approx(2.0199)
    assert float(model._baseline(0, torch.tensor([9.0]))) == pytest.approx(2.0199)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("dvae")
    return tiny_at(root) | {
        "method": "two_stage", "tokenizer": "dvae", "rqvae_batch_size": 32, "rqvae_epochs": 4, "dvae_steps": 20,
        "dvae_width": 16, "dvae_decoder_width": 16, "max_shared": 1.0, "num_emb_list": [64, 64, 64],
    }  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"target_length": 1.5},
        {"taught_share": 0.3, "shared_codebook": False},
        {"length": "learned", "target_length": 2.0},
        {"tokenizer": "reinforce"},
        {"tokenizer": "reinforce", "length": "learned"},
    ],
)
def test_pre_training_makes_codes_that_a_recommender_takes(tiny, more):
    cfg = configure.build(tiny | more)
    data = read_dataset(cfg[DataOptions])
    path = build.train_tokenizer(cfg, data)
    assert build.train_tokenizer(cfg, data) == path  # again: the same file, not trained anew
    figures = build.sid_figures(cfg, data, path)
    if more == {"target_length": 1.5}:
        assert figures["expected_tokens_weighted"] <= 1.5
    model = build.build_model(cfg, data).model.eval()
    found = model.recommend(torch.tensor([[1, 2, 3]]), 10)
    assert len(set(found.item_BW[0].tolist())) == 10


def test_the_same_seed_makes_the_same_tokenizer(tiny, tmp_path):
    states = []
    for seed, folder in ((1, "a"), (1, "b"), (2, "c")):
        more = {"taught_share": 0.3, "length": "learned", "seed": seed, "output_dir": str(tmp_path / folder)}
        cfg = configure.build(tiny | more)
        states.append(read_checkpoint(build.train_tokenizer(cfg, read_dataset(cfg[DataOptions])))["state_dict"])
    same, other = ([torch.equal(states[0][k], s[k]) for k in states[0]] for s in states[1:])
    assert all(same) and not all(other)


def test_a_collapse_is_named_and_nothing_is_saved(tiny, caplog):
    """A price that no token is worth, without a warm-up."""
    more = {"length": "learned", "length_cost": 1e5, "length_warmup": 0.0, "rqvae_epochs": 120,
            "rqvae_lr": 0.02, "rqvae_eval_step": 100}  # fmt: skip
    cfg = configure.build(tiny | more)
    with pytest.raises(Problem, match="every code has one token at step 100: the lengths have collapsed; raise"):
        build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))


def test_options_that_contradict_each_other_are_refused(tiny):
    for more, match in (
        ({"num_emb_list": [8, 9, 8]}, "has one vocabulary for all levels"),
        ({"length": "fixed", "target_length": 2.0}, "fixed trains whole codes only"),
    ):
        with pytest.raises(Problem, match=match):
            configure.build(tiny | more)
