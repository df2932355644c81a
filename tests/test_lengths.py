"""Codes of unlike length: where to cut, what SIDs cost and tell, all against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from layers import kmeans
from sids import cut, lengths

ERRORS = np.array([(0.5, 0.2, 0.1), (0.9, 0.6, 0.3), (0.3, 0.28, 0.27)])
COUNTS = np.array([4, 1, 5])


@pytest.mark.parametrize(
    ("price", "want", "tokens", "error"),
    [(0.05, [3, 3, 1], 2.0, 0.22), (0.15, [2, 3, 1], 1.6, 0.26), (0.31, [1, 1, 1], 1.0, 0.44)],
)
def test_the_cut_by_hand(price, want, tokens, error):
    """Golden example: errors after 1, 2, 3 tokens of three items with counts 4, 1, 5."""
    length_N, share_N = cut.cut(ERRORS, price), cut.count_weights(COUNTS)
    assert length_N.tolist() == want and share_N @ length_N == pytest.approx(tokens)
    assert share_N @ ERRORS[np.arange(3), length_N - 1] == pytest.approx(error)


def test_the_cut_hits_its_target_and_no_other_lengths_of_that_sum_do_better():
    """With convex errors the cut is the optimum: against every assignment of lengths to six items."""
    random = np.random.default_rng(0)
    error_NT = -np.sort(-random.random((6, 4)), 1)
    error_NT = error_NT[:, :1] - np.cumsum(-np.sort(-np.diff(-error_NT, axis=1, prepend=-error_NT[:, :1]), 1), 1)
    count_N = np.ones(6)
    every = np.stack(np.meshgrid(*[np.arange(1, 5)] * 6), -1).reshape(-1, 6)
    cost = error_NT[np.arange(6), every - 1].mean(1)
    for target in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0):
        length_N = cut.cut_to(error_NT, count_N, target)
        assert length_N.mean() <= target
        same = every.sum(1) == length_N.sum()
        assert error_NT[np.arange(6), length_N - 1].mean() == pytest.approx(cost[same].min())


def test_equal_gains_go_to_the_shorter_code():
    assert cut.cut(np.array([[0.5, 0.4, 0.3]]), 0.1).tolist() == [1]


def test_of_a_large_group_the_rarest_items_get_a_code_more():
    code_NT = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 2], [0, 2, 2], [0, 2, 2], [1, 0, 0]])
    length_N = cut.relieve(code_NT, np.ones(6, int), np.array([5, 1, 9, 1, 2, 0]), 2)
    # of the five at (0,) rows 2 and 0 stay; at (0, 2) rows 4 and 3 stay, at (0, 1) row 1
    assert length_N.tolist() == [1, 2, 1, 2, 2, 1]
    same = torch.zeros(3, 2, dtype=torch.long)
    assert cut.relieve(same, np.ones(3, int), np.ones(3), 1).tolist() == [1, 2, 2]  # equal to the end: stay together


def figures(codes, counts, errors=None, sizes=(4, 4, 4, 4)):
    width = max(map(len, codes))
    code_NT = torch.tensor([[*c, *[-1] * (width - len(c))] for c in codes])
    return lengths.figures(code_NT, sizes[:width], np.array(counts), errors)


def test_popularity_weighs():
    """Golden example: counts (8, 4, 2, 1, 1, 0), lengths (1, 2, 2, 3, 4, 4), errors .1 ... .6."""
    codes = [(0,), (1, 0), (1, 1), (2, 0, 0), (2, 1, 0, 0), (2, 1, 0, 1)]
    error_NT = np.repeat(np.arange(1, 7)[:, None] / 10, 4, 1)
    found = figures(codes, (8, 4, 2, 1, 1, 0), error_NT)
    assert found["expected_tokens_weighted"] == 1.6875 and found["tokens_per_event"] == 2.6875
    assert found["expected_tokens_uniform"] == pytest.approx(2.6666667)
    assert found["reconstruction_weighted"] == pytest.approx(0.19375)
    assert found["reconstruction_uniform"] == pytest.approx(0.35)
    assert found["spearman_length_count"] == pytest.approx(-0.9404033)
    assert found["length_histogram"] == [1, 2, 1, 2]


def test_codebook_statistics_by_hand():
    """Golden example: V = 4, codes (3, 1), (3), (2, 1), (3, 2)."""
    found = figures([(3, 1), (3,), (2, 1), (3, 2)], (1, 1, 1, 1))
    assert found["perplexity/level_1"] == pytest.approx(1.7547654) and found["codes_used/level_1"] == 2
    assert found["perplexity/level_2"] == pytest.approx(1.8898816) and found["codes_used/level_2"] == 2
    assert found["perplexity_micro"] == pytest.approx(2.9417134) and found["usage_micro"] == 0.75
    assert found["perplexity_macro"] == pytest.approx(1.8223235)
    assert found["unique_share"] == 1 and found["total_tokens"] == 7 and found["prefix_share"] == 0.25
    assert found["spearman_length_count"] == 0  # all counts are alike


def test_collisions_are_counted_in_groups():
    found = figures([(0, 1), (0, 1), (0, 1), (0,), (2, 2), (2, 2)], (1,) * 6)
    assert found["unique_share"] == 0.5 and found["max_group"] == 3
    assert found["colliding_item_share"] == pytest.approx(5 / 6) and found["prefix_share"] == pytest.approx(1 / 6)


def test_a_careful_start_of_k_means_is_no_worse_and_ignores_what_weighs_nothing():
    """Three far clouds of unlike size: k-means++ finds one centre in each; points without weight move none."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(centre, 0.1, (n, 2)) for centre, n in ((0, 300), (50, 5), (-50, 5), (999, 5))])
    weight = np.repeat([1.0, 1.0, 1.0, 0.0], [300, 5, 5, 5]).astype(np.float32)
    for start in ("kmeans++", "greedy"):
        centres = kmeans(x, 3, 20, 0, weight, start)
        assert np.allclose(np.sort(centres[:, 0]), [-50, 0, 50], atol=0.3)
