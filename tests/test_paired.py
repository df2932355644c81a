"""Differences over users and seeds: against analysis of variance by hand and drawn data, and Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from runs.paired import holm, two_way


def test_one_seed_is_the_paired_test_over_users():
    d = np.random.default_rng(0).normal(0.1, 1, (50, 1))
    found, want = two_way(d), stats.ttest_1samp(d[:, 0], 0)
    low, high = want.confidence_interval(0.95)
    assert (found.difference, found.p, found.df) == pytest.approx((d.mean(), want.pvalue, 49))
    assert found.interval == pytest.approx((high - low) / 2)


def test_two_users_and_three_seeds_by_hand():
    """Means of users 2 and 4, of seeds 1, 3 and 5: MS_S = 2 * 4 = 8, MS_U = 3 * 2 = 6; the rest are
    1 0 -1 / -1 0 1, so MS_E = 4 / 2 = 2. Variance (6 + 6) / 6 = 2, df = 144 / (64 / 2 + 36 / 1).
    """
    found = two_way(np.array([[1.0, 2, 3], [1, 4, 7]]))
    assert found.difference == 3 and found.df == pytest.approx(144 / 68)
    assert found.interval == pytest.approx(stats.t.ppf(0.975, 144 / 68) * 2**0.5)
    assert found.p == pytest.approx(2 * stats.t.sf(3 / 2**0.5, 144 / 68))


def test_seeds_that_agree_by_chance_are_no_more_certain_than_users_alone():
    """Users whose mean over seeds is 0 or 1, noise that cancels over two seeds: MS_S = 0."""
    d = np.stack([np.tile([1.0, 0, -1, 2], 25), np.tile([-1.0, 2, 1, 0], 25)], 1)
    low, high = stats.ttest_1samp(d.mean(1), 0).confidence_interval(0.95)
    assert d.mean(0)[0] == d.mean(0)[1] and two_way(d).interval >= (high - low) / 2


def test_seeds_that_differ_alone_leave_the_test_over_seeds():
    d = np.tile([0.1, 0.3, 0.2], (400, 1))
    low, high = stats.ttest_1samp(d[0], 0).confidence_interval(0.95)
    assert two_way(d).interval == pytest.approx((high - low) / 2) and two_way(d).df == pytest.approx(2)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Drawn anew 600 times; where seeds matter more than users do, an interval over users alone would hold 75 %."""
    draw = np.random.default_rng(1)
    for spread in (0.3, 0.0):
        held = 0
        for _ in range(600):
            noise = draw.normal(0, 1, (100, 1)) + draw.normal(0, spread, (1, 3)) + draw.normal(0, 1, (100, 3))
            found = two_way(0.5 + noise)
            held += abs(found.difference - 0.5) <= found.interval
        assert 0.9 <= held / 600 <= 0.97


def test_what_never_differs():
    assert two_way(np.zeros((9, 3)))[:3] == (0.0, 0.0, 1.0)
    assert two_way(np.ones((9, 3)))[:3] == (1.0, 0.0, 0.0)
    assert two_way(np.ones((1, 3))).p == 1.0


def test_holm_by_hand():
    """.01 x 4, .02 x 3, .03 x 2, but never below the one before; ties and a cap at 1."""
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.4, 0.4, 0.9]) == pytest.approx([1.0, 1.0, 1.0]) and holm([]) == []
