"""Cheap metrics of SIDs: worked examples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sids.pairs import Pairs
from sids.quality import (
    churn_figures,
    cold_figures,
    gini,
    group_sizes,
    load_figures,
    purity_figures,
)
from sids.table import SidTable


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
