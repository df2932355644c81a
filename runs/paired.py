"""How sure a difference of two systems is: over users and seeds at once, and with many comparisons in one table."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of the intervals; differences are called with 1 - LEVEL


class TwoWay(NamedTuple):
    """A mean difference, half of its 95 % interval, its two-sided p and the degrees of freedom behind both."""

    difference: float
    interval: float
    p: float
    df: float


def two_way(d_US: np.ndarray) -> TwoWay:
    """The mean of the differences [users, seeds] with users and seeds both drawn at random, so that it speaks of other
    users and of other seeds.

    Model: d_us = mu + a_u + b_s + e_us, all three random. With the mean squares MS_U (users), MS_S (seeds) and MS_E
    (what is left) the mean of U users and S seeds has the estimated variance

        V / (U S),     V = MS_U + max(MS_S - MS_E, 0),

    the estimate by analysis of variance for two crossed random factors (Searle, Casella & McCulloch, Variance
    Components, 1992), a negative component counting as none: never less than over users alone. The mean is compared
    with Student's t of Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946),

        df = V^2 / (M^2 / (S - 1) + MS_U^2 / (U - 1)),     M = max(MS_S, MS_E).

    Readers and cases are analysed alike in radiology (Dorfman, Berbaum & Metz, Investigative Radiology 27, 1992).
    Drawn from the model, a 95 % interval holds the truth in 92 % of cases or more with three seeds and in 87 % or more
    with two. One seed leaves the usual paired test over users, which says nothing about other seeds.
    """
    users, seeds = d_US.shape
    mean = float(d_US.mean())
    if users < 2:
        return TwoWay(mean, 0.0, 1.0, 0.0)
    by_user, by_seed = d_US.mean(1), d_US.mean(0)
    ms_users = whole = seeds * float(by_user.var(ddof=1))
    df = users - 1.0
    if seeds > 1:
        ms_seeds = users * float(by_seed.var(ddof=1))
        rest = d_US - by_user[:, None] - by_seed[None] + mean
        ms_rest = float((rest**2).sum()) / ((users - 1) * (seeds - 1))
        whole += max(ms_seeds - ms_rest, 0.0)
        of_parts = max(ms_seeds, ms_rest) ** 2 / (seeds - 1) + ms_users**2 / (users - 1)
        df = whole**2 / of_parts if of_parts > 0 else df
    if whole <= 0:
        return TwoWay(mean, 0.0, 1.0 if mean == 0 else 0.0, df)
    error = (whole / (users * seeds)) ** 0.5
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    return TwoWay(mean, half, float(2 * stats.t.sf(abs(mean) / error, df)), df)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for being many, in their order: the k-th smallest of m times m - k + 1, never below a smaller
    one's (Holm, Scandinavian Journal of Statistics 6, 1979). Below .05, all of them are with .95 no false alarm.
    """
    found, largest = [0.0] * len(p), 0.0
    for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - k) * p[i]))
        found[i] = largest
    return found
