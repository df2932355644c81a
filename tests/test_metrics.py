"""Metrics by hand, against scikit-learn and SciPy, and against the plain definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from sklearn.metrics import ndcg_score

import metrics
from utils import Problem


def random_lists(users, items, k, seed):
    """(ranked lists [B, K] of distinct items, targets [B]) on items 1..N."""
    random = np.random.default_rng(seed)
    lists = np.stack([random.permutation(items)[:k] + 1 for _ in range(users)])
    return torch.from_numpy(lists), torch.from_numpy(random.integers(1, items + 1, users))


def test_ranks_and_metrics_by_hand():
    lists = torch.tensor([[7, 3, 5], [7, 3, 5], [7, 3, 5], [7, 3, 5]])
    rank = metrics.target_rank(lists, torch.tensor([7, 3, 5, 9]))
    assert rank.tolist() == [0, 1, 2, 3]
    assert metrics.recall(rank, 2).tolist() == [1, 1, 0, 0]
    assert metrics.mrr(rank, 3).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 0])
    assert metrics.ndcg(rank, 3).tolist() == pytest.approx([1, 1 / math.log2(3), 1 / 2, 0])
    assert metrics.ndcg(rank, 1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_against_scikit_learn_and_the_definition(k):
    users, items = 200, 25
    lists, target = random_lists(users, items, 10, seed=k)
    rank = metrics.target_rank(lists, target)

    relevant, score = np.zeros((users, items + 1)), np.zeros((users, items + 1))
    relevant[np.arange(users), target] = 1
    np.put_along_axis(score, lists.numpy(), np.arange(10, 0, -1.0)[None].repeat(users, 0), 1)
    score[:, 1:] -= np.random.default_rng(0).uniform(1, 2, (users, items)) * (
        score[:, 1:] == 0
    )  # the rest below, no ties
    assert float(metrics.ndcg(rank, k).mean()) == pytest.approx(ndcg_score(relevant, score, k=k))

    for row, wanted, hit, reciprocal in zip(
        lists.tolist(), target.tolist(), metrics.recall(rank, k), metrics.mrr(rank, k), strict=True
    ):
        assert float(hit) == (wanted in row[:k])
        assert float(reciprocal) == pytest.approx(1 / (row.index(wanted) + 1) if wanted in row[:k] else 0)


def test_items_of_one_group_count_once():
    group = torch.tensor([-1, 0, 0, 1, 1, 2, 3])  # items 1, 2 | 3, 4 | 5 | 6
    lists = torch.tensor([[1, 2, 3, 5]]).repeat(5, 1)
    target = torch.tensor([2, 1, 4, 5, 6])
    # groups in order of appearance: {1, 2}, {3, 4}, {5}; item 6 is absent: the list's length
    assert metrics.group_rank(lists, target, group).tolist() == [0, 0, 1, 2, 4]


def test_empty_places_are_no_group():
    """A search with too few legal items leaves zeros; they take no place among the groups."""
    group = torch.tensor([-1, 0, 1, 2])
    lists = torch.tensor([[0, 1, 0, 2], [0, 0, 0, 0]])
    assert metrics.group_rank(lists, torch.tensor([2, 2]), group).tolist() == [1, 4]
    assert metrics.target_rank(lists, torch.tensor([2, 2])).tolist() == [3, 4]


@given(st.integers(0, 10**6))
def test_groups_of_one_item_change_nothing(seed):
    lists, target = random_lists(20, 12, 8, seed)
    group = torch.cat([torch.tensor([-1]), torch.from_numpy(np.random.default_rng(seed).permutation(12))])
    assert torch.equal(metrics.group_rank(lists, target, group), metrics.target_rank(lists, target))


@given(st.integers(0, 10**6))
def test_group_rank_equals_ranking_the_groups(seed):
    lists, target = random_lists(20, 12, 8, seed)
    group = torch.cat([torch.tensor([-1]), torch.from_numpy(np.random.default_rng(seed).integers(0, 5, 12))])
    for row, wanted, rank in zip(lists, target, metrics.group_rank(lists, target, group), strict=True):
        ordered = list(dict.fromkeys(group[row].tolist()))
        assert int(rank) == (ordered.index(int(group[wanted])) if int(group[wanted]) in ordered else 8)


def test_summary_names_every_metric():
    rank = torch.tensor([0, 2, 10, 1])
    found = metrics.summarise(rank, ["recall@1", "ndcg@10", "mrr@2", "coverage@5"], {5: 0.25})
    assert found == {
        "recall@1": 0.25,
        "ndcg@10": pytest.approx((1 + 0.5 + 1 / math.log2(3)) / 4),
        "mrr@2": pytest.approx((1 + 0.5) / 4),
        "coverage@5": 0.25,
    }
    with pytest.raises(Problem, match=r"'hits@5' is not one of"):
        metrics.summarise(rank, ["hits@5"])


def test_paired_difference_is_the_statistic_of_the_paired_t_test():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0.1, 1, 500), random.normal(0, 1, 500)
    mean, z = metrics.paired_difference(torch.from_numpy(ours), torch.from_numpy(theirs))
    assert mean == pytest.approx((ours - theirs).mean())
    assert z == pytest.approx(ttest_rel(ours, theirs).statistic)


def test_equal_systems_differ_by_nothing():
    same = torch.rand(50)
    assert metrics.paired_difference(same, same) == (0, 0)
