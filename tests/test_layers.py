"""Noise, straight-through, Sinkhorn, k-means: against hand-worked values and other programs."""

import numpy as np
import pytest
import torch
from scipy import stats

import layers


def uniform(seed=1, step=0, items=range(1, 2001), level=0, k=64):
    return layers.counter_uniform(seed, torch.tensor(step), torch.tensor(list(items)), level, k)


def test_noise_is_uniform_and_its_parts_are_unrelated():
    u = uniform().numpy()
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    correlations = np.corrcoef(u.T)[np.triu_indices(64, 1)]
    assert np.abs(correlations).max() < 0.12  # 5 standard errors of 2,000 items
    for other in (uniform(seed=2), uniform(step=1), uniform(level=1)):
        assert abs(np.corrcoef(u.ravel(), other.numpy().ravel())[0, 1]) < 0.012
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.012


def test_noise_depends_on_the_item_and_not_on_the_company_it_keeps():
    together = uniform(items=[7, 1, 300])
    assert torch.equal(together[1], uniform(items=[1])[0])
    assert torch.equal(together, uniform(items=[7, 1, 300]))
    assert not torch.equal(together, uniform(items=[7, 1, 300], step=1))


def test_noise_is_finite_at_both_ends():
    ends = torch.tensor([0.5 * 2.0**-23, 1 - 2.0**-24])
    assert torch.isfinite(layers.gumbel(ends)).all() and torch.isfinite(layers.gaussian(ends)).all()
    u = uniform(items=range(1, 20000))
    assert u.min() >= ends[0] and u.max() <= ends[1]


def test_gumbel_and_gaussian_have_their_moments():
    u = uniform(k=256)
    assert layers.gumbel(u).mean() == pytest.approx(0.5772, abs=0.01)
    assert layers.gumbel(u).var() == pytest.approx(np.pi**2 / 6, rel=0.02)
    assert stats.kstest(layers.gaussian(u).numpy().ravel()[:5000], "norm").pvalue > 1e-3


def test_dropout_keeps_the_share_and_the_mean():
    torch.manual_seed(0)
    drop = layers.Dropout(0.1).train()
    x = torch.ones(1000, 401)
    y = drop(x)
    assert (y == 0).float().mean() == pytest.approx(0.1, abs=0.003)
    assert y.mean() == pytest.approx(1.0, abs=0.003)
    lanes = (y.view(-1)[: 4 * 100_000].view(-1, 4) == 0).float().mean(0)
    assert torch.allclose(lanes, torch.full((4,), 0.1), atol=0.005)  # no lane of a word is special
    assert torch.equal(drop.eval()(x), x)


# ---------------------------------------------------------------- straight-through


def test_lookup_is_exactly_one_hot_forward_and_dense_backward():
    torch.manual_seed(0)
    logits, table = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    index, weight = torch.tensor([0, 6, 3, 3, 1]), torch.randn(5, 3)

    out = layers.straight_through_lookup(logits.softmax(1), index, table)
    assert torch.equal(out, table[index])
    got = torch.autograd.grad((out * weight).sum(), [logits, table])

    p = logits.softmax(1)
    dense = (torch.nn.functional.one_hot(index, 7) + (p - p.detach())) @ table
    want = torch.autograd.grad((dense * weight).sum(), [logits, table])
    for g, w in zip(got, want, strict=True):
        assert torch.allclose(g, w, atol=1e-6)


def test_distances_equal_numpys():
    torch.manual_seed(0)
    x, c = torch.randn(6, 4), torch.randn(5, 4)
    want = ((x.numpy()[:, None] - c.numpy()[None]) ** 2).sum(2)
    assert np.allclose(layers.distance(x, c).numpy(), want, atol=1e-5)


# ---------------------------------------------------------------- whole sets


def test_sinkhorn_balances_and_prefers_the_near():
    torch.manual_seed(0)
    d = torch.rand(512, 16)
    d[:, 0] *= 0.01  # everybody's nearest
    assert (d.argmin(1) == 0).float().mean() > 0.8
    counts = layers.sinkhorn(d, 0.01, 100).bincount(minlength=16)
    assert counts.min() >= 20 and counts.max() <= 50  # 32 each when perfectly balanced


@pytest.mark.parametrize("epsilon", [0.003, 0.01, 0.05])
def test_sinkhorn_equals_the_published_rescaling_of_the_whole_plan(epsilon):
    torch.manual_seed(0)
    d = torch.cdist(torch.randn(150, 24), torch.randn(64, 24)).square()
    cost = d.double()
    low, high = cost.min(), cost.max()
    plan = torch.exp(-(cost - (low + high) / 2) / ((high - low) / 2 + 1e-5) / epsilon)
    plan /= plan.sum()
    for _ in range(50):
        plan /= plan.sum(0, keepdim=True) * 64
        plan /= plan.sum(1, keepdim=True) * 150
    assert torch.equal(layers.sinkhorn(d, epsilon, 50), plan.argmax(1))


def test_sinkhorn_solves_a_small_assignment():
    """Two codes, four items: the balanced optimum gives each code the two it suits best."""
    d = torch.tensor([[0.0, 1.0], [0.1, 0.3], [0.2, 0.25], [0.3, 0.9]])
    best = min(  # brute force over balanced assignments
        ([int(i in pair) for i in range(4)] for pair in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        key=lambda codes: sum(float(d[i, c]) for i, c in enumerate(codes)),
    )
    assert layers.sinkhorn(d, 0.003, 200).tolist() == best


def test_kmeans_reaches_scikit_learns_inertia():
    from sklearn.cluster import KMeans

    x = np.random.default_rng(0).normal(size=(1000, 5))
    centres = layers.kmeans(x, 16, 50, seed=0)
    inertia = ((x[:, None] - centres[None]) ** 2).sum(2).min(1).sum()
    assert inertia <= 1.02 * KMeans(16, init="random", n_init=1, random_state=0).fit(x).inertia_


def test_kmeans_with_fewer_points_than_codes_keeps_every_point():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    centres = layers.kmeans(x, 9, 10, seed=0)
    assert centres.shape == (9, 3)
    assert np.allclose(centres[:5], x)


# ---------------------------------------------------------------- attention


def attention_inputs(seed=0):
    torch.manual_seed(seed)
    shapes = [(5, 2, 7, 4), (5, 2, 9, 4), (5, 2, 9, 4), (1, 2, 7, 9)]
    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in shapes]
    mask = torch.zeros(5, 1, 1, 9, dtype=torch.double)
    mask[1, ..., :4] = mask[4, ..., :8] = -torch.inf
    return inputs, mask


@pytest.mark.parametrize("chunk", [1, 300, 10**6])
def test_attention_equals_torchs(monkeypatch, chunk):
    monkeypatch.setattr(layers._Attention, "CHUNK", chunk)
    (q, k, v, bias), mask = attention_inputs()
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias + mask, scale=1.0)
    weight = torch.randn_like(want)
    want_grads = torch.autograd.grad((want * weight).sum(), (q, k, v, bias))
    got = layers.attention(q, k, v, bias, mask, 0.0)
    got_grads = torch.autograd.grad((got * weight).sum(), (q, k, v, bias))
    assert torch.allclose(got, want, atol=1e-12)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_attentions_gradient_with_dropout_is_that_of_the_mask_it_drew(monkeypatch):
    monkeypatch.setattr(layers._Attention, "CHUNK", 300)
    inputs, mask = attention_inputs()

    def steady(*tensors):  # the same draw each time
        torch.manual_seed(3)
        return layers.attention(*tensors, mask, 0.3)

    assert torch.autograd.gradcheck(steady, inputs, fast_mode=True)


def test_attentions_dropout_keeps_the_expected_share():
    torch.manual_seed(0)
    q, k = torch.zeros(40, 2, 30, 4), torch.zeros(40, 2, 50, 4)  # every weight is 1 / 50
    v = torch.ones(40, 2, 50, 4, requires_grad=True)
    out = layers.attention(q, k, v, None, None, 0.25).detach()
    assert out.mean() == pytest.approx(1.0, abs=0.005)  # rescaled
    assert out[..., 0].std() == pytest.approx((0.25 / 0.75 / 50) ** 0.5, rel=0.1)
