"""Embedding hit rate: how often what users take next is among the nearest neighbours of what they took before.

FORGE's (arXiv:2509.20904), exact, of a large catalogue for some queries; docs/forge.md says what it predicts.

Shape letters: N items, D width, M items that are asked about, W their neighbours, R of them at a time, U different
rows, C rows proposed to each, I items of those rows, Q queries, H items of all histories, G targets of all queries, E
pairs: of an item that is asked about and a row proposed to it, or of a target and an item of its history.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from readers.splits import Split
from sids import distributed
from utils import log

KS = (5, 10, 20, 30, 100)
LONGEST = 50  # items of a history that ask
CELLS = 1 << 22  # similarities held at a time
FINE = 10**12  # similarities are equal where they agree to so many parts
DENSE = 1 << 15  # items up to which all similarities are looked at
SPARE = 64  # rows proposed beyond those that are wanted
NOWHERE = 1 << 30  # rank of what is not in the list
WORK = 1 << 43  # multiplications of a search for neighbours, minutes on a core; beyond them queries are drawn


class Queries(NamedTuple):
    """Histories and targets of some queries, as flat arrays in the order of the queries; items count from 0."""

    query_H: np.ndarray
    item_H: np.ndarray  # different ones within a query
    query_G: np.ndarray
    target_G: np.ndarray  # -1: an item without embedding, a miss

    @classmethod
    def of(cls, histories: Iterable[Iterable[int]], targets: Iterable[Iterable[int]]) -> "Queries":
        """Queries with a history and a target; others do not count."""
        kept = [(sorted(set(h)), sorted(set(t))) for h, t in zip(histories, targets, strict=True) if h and t]
        query_H = np.repeat(np.arange(len(kept)), [len(h) for h, _ in kept])
        query_G = np.repeat(np.arange(len(kept)), [len(t) for _, t in kept])
        item_H, target_G = (np.array([i for q in kept for i in q[side]], np.int64) for side in (0, 1))
        return cls(query_H, item_H, query_G, target_G)

    @classmethod
    def of_split(cls, split: Split, longest: int = LONGEST, shape: tuple[int, ...] = (0, 0)) -> "Queries":
        """A query a sample: the last `longest` items of its history, and its target; shape: of the rows that are
        searched. Where all are too many, as many random ones as there is WORK for, which the log says.
        """
        length, cost = split.lengths(longest), shape[0] * shape[1]
        if cost * min(int(length.sum()), shape[0]) > WORK:
            order = np.random.default_rng(0).permutation(len(split))
            some = np.sort(order[: max(1, int(np.searchsorted(length[order].cumsum(), WORK // cost)))])
            log.info(f"embedding hit rate: {len(some)} of {len(split)} queries are drawn, that is work enough")
            split, length = replace(split, position=split.position[some]), length[some]
        query = np.repeat(np.arange(len(split)), length)
        first = np.repeat(split.position - length, length)
        place = first + np.arange(len(query)) - np.repeat(length.cumsum() - length, length)
        item = split.items[place].astype(np.int64) - 1
        rows = np.unique(np.stack([query, item], 1), axis=0)
        asked = np.flatnonzero(length > 0)
        number = np.searchsorted(asked, rows[:, 0])
        return cls(number, rows[:, 1], np.arange(len(asked)), split.targets[asked].astype(np.int64) - 1)


class Neighbours(NamedTuple):
    """The nearest items of some items by cosine, itself left out, best first, equal ones by smaller index."""

    item_M: np.ndarray  # sorted
    near_MW: np.ndarray
    score_MW: np.ndarray  # cosine in units of 1 / FINE, int64


@torch.no_grad()
def neighbours(x_ND: Tensor, width: int, item_M: np.ndarray | None = None) -> Neighbours:
    """Exact, in float64: cosines that agree to 12 digits are equal. item_M: whose, default all.

    Equal rows are multiplied once, so that their cosines are equal whatever the order of sums. In a large catalogue
    faiss proposes rows in float32, and what its error may have hidden is searched again. Processes share the items out.
    """
    n = len(x_ND)
    if n * FINE * 2 >= 2**63:
        raise ValueError(f"{n} items: similarity and index do not fit into 63 bits")
    item_M = np.arange(n) if item_M is None else np.unique(item_M)
    row_UD, row_N = distinct(F.normalize(x_ND.double(), dim=1))
    width, mine = min(width, n - 1), distributed.share(item_M)
    if n <= DENSE or not len(mine):
        near, score = _among_all(row_UD, row_N, mine, width)
    else:
        near, score, sure = _among_proposed(row_UD, row_N, mine, width)
        if not sure.all():
            near[~sure], score[~sure] = _among_all(row_UD, row_N, mine[~sure], width)
    return Neighbours(item_M, distributed.joined(near), distributed.joined(score))


def _among_all(row_UD: Tensor, row_N: Tensor, item_M: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(neighbours, scores), [M, width] each, by all similarities."""
    n, near, score = len(row_N), [], []
    behind_N = torch.arange(n - 1, -1, -1)
    for rows in torch.from_numpy(item_M).split(max(1, CELLS // n)):
        similar_RN = (row_UD[row_N[rows]] @ row_UD.T).mul_(FINE).round_().long()[:, row_N]
        key_RN = similar_RN * n + behind_N  # of equal ones, the smaller index is larger
        key_RN.scatter_(1, rows[:, None], -(2**63))
        best_RW = key_RN.topk(width, dim=1).values
        score.append(best_RW.div(n, rounding_mode="floor"))
        near.append(n - 1 - (best_RW - score[-1] * n))
    return torch.cat(near).numpy(), torch.cat(score).numpy()


def _among_proposed(
    row_UD: Tensor, row_N: Tensor, item_M: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same among the items of the best rows in float32, and whether no other item can belong there, [M].

    A product in float32 of rows of length 1 is off by less than (D + 3) 2^-24.
    """
    import faiss  # slow to import, and only large catalogues need it

    rows, wide = row_UD.shape
    index = faiss.IndexFlatIP(wide)
    index.add(row_UD.float().numpy())
    order_N = row_N.argsort(stable=True).numpy()  # items by row, then by index
    begin_U = np.searchsorted(row_N.numpy()[order_N], np.arange(rows + 1))
    near, score, sure = [], [], []
    for items in np.array_split(item_M, max(1, len(item_M) * (width + SPARE) * wide // CELLS)):
        query_RD = row_UD[row_N[items]]
        rough_RC, row_RC = index.search(query_RD.float().numpy(), min(rows, width + 1 + SPARE))
        exact_RC = torch.einsum("rd,rcd->rc", query_RD, row_UD[row_RC]).mul_(FINE).round_().long().numpy()
        size_E = np.diff(begin_U)[row_RC].reshape(-1)
        ask_I = np.repeat(np.repeat(np.arange(len(items)), row_RC.shape[1]), size_E)  # an entry an item proposed
        start_E = size_E.cumsum() - size_E
        item_I = order_N[np.repeat(begin_U[row_RC].reshape(-1) - start_E, size_E) + np.arange(len(ask_I))]
        score_I = np.repeat(exact_RC.reshape(-1), size_E)
        other = item_I != items[ask_I]
        ask_I, item_I, score_I = ask_I[other], item_I[other], score_I[other]
        best = np.lexsort((item_I, -score_I, ask_I))
        first_R = np.searchsorted(ask_I[best], np.arange(len(items)))
        chosen_RW = best[first_R[:, None] + np.arange(width)]
        near.append(item_I[chosen_RW])
        score.append(score_I[chosen_RW])
        reach_R = (rough_RC[:, -1] + (wide + 3) * 2.0**-24) * FINE + 1  # of rows that were not proposed
        sure.append((score[-1][:, -1] > reach_R) | (row_RC.shape[1] == rows))
    return np.concatenate(near), np.concatenate(score), np.concatenate(sure)


def distinct(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(the different rows [U, D], which of them each row is [N]); torch's own makes an object of each row."""
    rows = np.ascontiguousarray((x_ND + 0.0).numpy())  # -0 becomes 0
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    return x_ND[torch.from_numpy(first)], torch.from_numpy(inverse)


class Ranks(NamedTuple):
    """Places from 0 of all targets, NOWHERE where there is none."""

    per_item_G: np.ndarray  # among the neighbours of one item of the history, the best of them
    budget_G: np.ndarray  # in the one list of all items by their nearest item of the history, that left out


def ranks(near: Neighbours, queries: Queries) -> Ranks:
    """Where the targets stand; exact as far as `near` has W entries (the budget's list: W - longest history)."""
    n_queries = int(queries.query_G.max()) + 1
    begin_Q = np.searchsorted(queries.query_H, np.arange(n_queries + 1))
    found = [], []  # type: tuple[list[np.ndarray], list[np.ndarray]]
    step = max(1, CELLS // (near.near_MW.shape[1] * LONGEST))
    for first in range(0, len(queries.query_G), step):
        query, target = queries.query_G[first : first + step], queries.target_G[first : first + step]
        per_item, budget = _ranks(near, queries, begin_Q, query, target)
        found[0].append(per_item)
        found[1].append(budget)
    return Ranks(*map(np.concatenate, found))


def _ranks(
    near: Neighbours, queries: Queries, begin_Q: np.ndarray, query_G: np.ndarray, target_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The two ranks of some targets."""
    # a target becomes its pairs with the items of its query's history, each with that item's neighbours
    n_G = begin_Q[query_G + 1] - begin_Q[query_G]
    goal_E = np.repeat(np.arange(len(query_G)), n_G)
    start_G = n_G.cumsum() - n_G
    asks_E = queries.item_H[np.arange(len(goal_E)) - start_G[goal_E] + begin_Q[query_G][goal_E]]
    row_E = np.searchsorted(near.item_M, asks_E)
    near_EW, score_EW = near.near_MW[row_E], near.score_MW[row_E]

    # where the target stands among each item's neighbours; the best of these places is the rank per item
    match_EW = near_EW == target_G[goal_E][:, None]
    place_E = np.where(match_EW.any(1), match_EW.argmax(1), NOWHERE)
    per_item_G = np.minimum.reduceat(place_E, start_G)

    # how near it is to the nearest of them, which is its score in the one list of all
    score_E = np.where(place_E < NOWHERE, np.take_along_axis(score_EW, place_E[:, None] % near_EW.shape[1], 1)[:, 0],
                       np.iinfo(np.int64).min)  # fmt: skip
    score_G = np.maximum.reduceat(score_E, start_G)
    listed_G = per_item_G < NOWHERE

    # its rank there: how many different items stand before it
    base = 1 + int(max(near.near_MW.max(), queries.item_H.max(), target_G.max()))
    known = np.unique(goal_E * base + asks_E)
    listed_G &= ~np.isin(np.arange(len(query_G)) * base + target_G, known)  # what is in the history is left out
    before_EW = (score_EW > score_G[goal_E][:, None]) | (
        (score_EW == score_G[goal_E][:, None]) & (near_EW < target_G[goal_E][:, None])
    )
    entry, place = np.nonzero(before_EW & listed_G[goal_E][:, None])
    better = np.unique(goal_E[entry] * base + near_EW[entry, place])
    better = better[~np.isin(better, known, assume_unique=True)]
    count_G = np.bincount(better // base, minlength=len(query_G))
    return per_item_G, np.where(listed_G, count_G, NOWHERE)


def share_found(rank_G: np.ndarray, queries: Queries, k: int) -> np.ndarray:
    """Share of its targets that each query finds among the first k, [Q]."""
    found: np.ndarray = np.bincount(queries.query_G, rank_G < k) / np.bincount(queries.query_G)
    return found


def candidates(near: Neighbours, queries: Queries, ks: Sequence[int]) -> list[float]:
    """Mean number of different items among the k neighbours of all items of a history, for each k."""
    row_H, base = np.searchsorted(near.item_M, queries.item_H), int(near.near_MW.max()) + 1
    total, deep = np.zeros(len(ks)), min(max(ks), near.near_MW.shape[1])
    n_queries = int(queries.query_G.max()) + 1
    step = max(1, CELLS // (deep * LONGEST))
    for first in range(0, n_queries, step):
        rows = slice(*np.searchsorted(queries.query_H, [first, first + step]))
        key = queries.query_H[rows, None] * base + near.near_MW[row_H[rows], :deep]
        best = np.sort((key * deep + np.arange(deep)).reshape(-1))
        place = (best % deep)[np.diff(best // deep, prepend=-1) > 0]
        total += [(place < k).sum() for k in ks]
    return [float(t) for t in total / n_queries]


def hits_of_queries(x_ND: Tensor, queries: Queries, k: int) -> np.ndarray:
    """Per-item embedding hit rate at k of each query, [Q], to compare two kinds of SIDs query by query."""
    return share_found(ranks(neighbours(x_ND, k, queries.item_H), queries).per_item_G, queries, k)


def hit_figures(x_ND: Tensor, queries: Queries, ks: Sequence[int] = KS) -> dict[str, float]:
    """Embedding hit rate at each k in both forms, and the size of the candidate sets.

    hit@k: among the k nearest of any item of the history (FORGE); budget@k: among the k nearest of all together.
    """
    longest = int(np.bincount(queries.query_H).max())
    near = neighbours(x_ND, max(ks) + longest, queries.item_H)
    rank = ranks(near, queries)
    found: dict[str, float] = {}
    for k, size in zip(ks, candidates(near, queries, ks), strict=True):
        found[f"hit@{k}"] = float(share_found(rank.per_item_G, queries, k).mean())
        found[f"budget@{k}"] = float(share_found(rank.budget_G, queries, k).mean())
        found[f"candidates@{k}"] = size
    return found
