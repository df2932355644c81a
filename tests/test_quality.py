"""Cheap metrics of SIDs: worked examples, and brute force on random data."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sids import quality
from sids.pairs import Pairs
from sids.quality import (
    Queries,
    churn_figures,
    cold_figures,
    emb_hit_rate,
    gini,
    group_sizes,
    load_figures,
    neighbours,
    purity_figures,
)
from sids.table import SidTable

ANGLES = [0, 10, 25, 45, 180, -30]
QUERIES = Queries.of([[0], [3, 4], [5], [4]], [[2], [1, 5], [0], [3]])


def plane(angles):
    angle = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def sids_of(codes, sizes):
    return SidTable(torch.tensor(codes, dtype=torch.int32), None, sizes)


@pytest.mark.parametrize(
    ("counts", "want"),
    [
        ([1, 1, 2, 4], 0.3125), ([4, 1, 2, 1], 0.3125), ([1, 1, 1, 1], 0), ([0, 0, 0, 4], 0.75),
        ([0, 0, 1, 1, 2, 4], 0.5416667), ([1, 1, 1, 1, 1, 1, 1, 3], 0.175),
    ],
)  # fmt: skip
def test_gini_by_hand(counts, want):
    assert gini(counts) == pytest.approx(want, abs=1e-7)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(any))
def test_gini_is_half_the_relative_mean_difference(counts):
    c = np.array(counts, float)
    assert gini(counts) == pytest.approx(np.abs(c[:, None] - c).mean() / (2 * c.mean()), abs=1e-12)


def test_load_by_hand():
    found = load_figures(sids_of([(0, 0), (0, 0), (0, 1), (2, 1)], (3, 3)))
    want = {
        "gini_sid": 1 / 6, "gini/level_1": 0.5, "gini/level_2": 1 / 3, "collision_rate": 0.25, "max_group": 2,
        "colliding_item_share": 0.5, "entropy/level_1": 0.5623351, "perplexity/level_1": 1.7547653,
        "joint_entropy": 1.0397208, "codes_used/level_1": 2, "mean_length": 2,
    }  # fmt: skip
    assert {k: found[k] for k in want} == pytest.approx(want, abs=1e-7)
    assert group_sizes(sids_of([(0, 0), (0, 0), (0, 1), (2, 1)], (3, 3))) == {1: 2, 2: 1}


def test_codes_of_unlike_length_count_where_they_are():
    found = load_figures(sids_of([(0, -1), (0, 1), (0, 1), (2, -1)], (3, 2)))
    assert found["codes_used/level_2"] == 1 and found["gini/level_2"] == 0.5 and found["sids"] == 3
    assert found["mean_length"] == 1.5 and found["gini/level_1"] == pytest.approx(0.5)


def test_neighbours_by_hand():
    near = neighbours(plane(ANGLES), 5)
    want = [[1, 2, 5, 3, 4], [0, 2, 3, 5, 4], [1, 3, 0, 5, 4], [2, 1, 0, 5, 4], [3, 5, 2, 1, 0], [0, 1, 2, 3, 4]]
    assert near.near_MW.tolist() == want
    tied = neighbours(plane([0, 17.5, 17.5, 45, 180, -30]), 5).near_MW.tolist()
    assert [row[:n] for row, n in zip(tied[:5], (3, 2, 2, 4, 5), strict=True)] == [
        [1, 2, 5], [2, 0], [1, 0], [1, 2, 0, 5], [3, 5, 1, 2, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("angles", "want"),
    [
        (ANGLES, {"hit@1": 0.5, "hit@2": 1, "budget@1": 0.5, "budget@2": 0.875, "budget@3": 0.875}),
        ([0, 17.5, 17.5, 45, 180, -30], {"hit@1": 0.625, "hit@2": 1, "budget@2": 0.875}),
    ],
)
def test_embedding_hit_rate_by_hand(angles, want):
    found = emb_hit_rate(plane(angles), QUERIES, (1, 2, 3))
    assert {k: found[k] for k in want} == pytest.approx(want)


def by_brute_force(x, histories, targets, k):
    """(per item, budget, candidates), query by query, with Python's own sort."""
    unit = x / x.norm(dim=1, keepdim=True)
    cosine = np.round((unit @ unit.T).numpy(), 12)
    n = len(x)
    order = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: (-cosine[i, j], j)) for i in range(n)]
    values = []
    for h, t in zip(histories, targets, strict=True):
        if not h or not t:
            continue
        near = {j for i in h for j in order[i][:k]}
        best = sorted((j for j in range(n) if j not in h), key=lambda j, h=h: (-max(cosine[i, j] for i in h), j))[:k]
        values.append((len(near & set(t)) / len(set(t)), len(set(best) & set(t)) / len(set(t)), len(near)))
    return np.mean(values, 0)


@pytest.mark.parametrize("seed", range(4))
def test_embedding_hit_rate_against_brute_force(seed):
    """Few different rows, so that ties are everywhere; queries of several targets, some without embedding."""
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(size=(9, 3))[random.integers(0, 9, 40)])
    histories = [random.integers(0, 40, random.integers(0, 7)).tolist() for _ in range(50)]
    targets = [random.integers(-1, 40, random.integers(0, 4)).tolist() for _ in range(50)]
    queries = Queries.of(histories, targets)
    found = emb_hit_rate(x, queries, (1, 3, 10))
    for k in (1, 3, 10):
        got = [found[f"{form}@{k}"] for form in ("hit", "budget", "candidates")]
        assert got == pytest.approx(by_brute_force(x, histories, targets, k))


@pytest.mark.parametrize(("wide", "spare"), [(3, 2), (8, 64), (2, 0)])
def test_what_float32_proposes_is_the_exact_list(monkeypatch, wide, spare):
    """Groups of equal rows, and rows nearer to each other than float32 can tell; asked by some or by all."""
    random = np.random.default_rng(wide)
    x = torch.from_numpy(random.normal(size=(60, wide))[random.integers(0, 60, 300)])
    x[:40] = x[0] + 1e-9 * torch.from_numpy(random.normal(size=(40, wide)))
    want = [neighbours(x, 30), neighbours(x, 7, np.array([3, 5, 299, 3]))]
    monkeypatch.setattr(quality, "DENSE", 0)
    monkeypatch.setattr(quality, "SPARE", spare)
    found = [neighbours(x, 30), neighbours(x, 7, np.array([3, 5, 299, 3]))]
    for ours, theirs in zip(found, want, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_purity_cold_items_and_churn_by_hand():
    sids = sids_of([(0, 0), (0, 0), (0, 1), (2, 1)], (3, 3))
    pairs = Pairs(np.array([[0, 1], [0, 2], [2, 3]]), np.ones(3, np.int64))
    found = purity_figures(sids, pairs)
    want = {"pair_agreement/level_1": 2 / 3, "random_agreement/level_1": 1 / 2, "pair_agreement/level_2": 1 / 3}
    assert {k: found[k] for k in want} == pytest.approx(want)
    cold = cold_figures(sids, np.array([3, 1, 1, 0]))
    assert cold == {
        "cold_item_share": 0.25, "cold_seen_code/level_1": 0, "cold_unseen_prefix/level_1": 1,
        "cold_seen_code/level_2": 1, "cold_unseen_prefix/level_2": 1,
    }  # fmt: skip
    other = sids_of([(0, 0), (0, 1), (0, 1), (1, 1)], (3, 3))
    assert churn_figures(sids, other) == {"changed/level_1": 0.25, "changed/level_2": 0.25, "changed/codes": 0.5}
