"""Embedding hit rate: how often what users take next is among the nearest neighbours of what they took before.

FORGE's (arXiv:2509.20904), exact, of a large catalogue for some queries; docs/forge.md says what it predicts.

Shape letters: N items, P of them at a time, D width, M items that are asked about, W their neighbours, R of them at a
time, Q queries, H items of all histories, G targets of all queries, E pairs of a target and an item of its history.
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
from sids.tokenizer import Rows
from utils import log

KS = (5, 10, 20, 30, 100)
LONGEST = 50  # items of a history that ask
CELLS = 1 << 22  # similarities held at a time
FINE = 10**10  # similarities are equal where they agree to so many parts
PIECE = 1 << 15  # items that are read at a time
NOWHERE = 1 << 30  # rank of what is not in the list
WORK = 1 << 42  # multiplications of a search for neighbours, minutes on a core; beyond them queries are sampled


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
            log.info(f"embedding hit rate: {len(some)} of {len(split)} queries are sampled, so that it takes minutes")
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
def neighbours(x_ND: Rows | Tensor, width: int, item_M: np.ndarray | None = None) -> Neighbours:
    """Exact, in float64: cosines that agree to 10 digits are equal. item_M: whose, default all.

    Rows are read in pieces, so that a large catalogue can stay in its file. Processes share the items out.
    """
    n = len(x_ND)
    item_M = np.arange(n) if item_M is None else np.unique(item_M)
    width, mine = min(width, n - 1), torch.from_numpy(distributed.share(item_M))
    query_MD = torch.cat([_unit(x_ND[rows.numpy()]) for rows in mine.split(PIECE)])
    key_MW = torch.full((len(mine), width), -(2**63))  # cosine * n + place from the end: of equal ones, the first
    for begin in range(0, n, PIECE):
        part_PD = _unit(x_ND[begin : begin + PIECE])
        item_P = torch.arange(begin, begin + len(part_PD))
        for rows in torch.arange(len(mine)).split(max(1, CELLS // len(part_PD))):
            key_RP = (query_MD[rows] @ part_PD.T).mul_(FINE).round_().long().mul_(n).add_(n - 1 - item_P)
            key_RP[mine[rows, None] == item_P] = -(2**63)
            key_MW[rows] = torch.cat([key_MW[rows], key_RP], 1).topk(width, dim=1).values
    score_MW = key_MW.div(n, rounding_mode="floor")
    near_MW = n - 1 - (key_MW - score_MW * n)
    return Neighbours(item_M, distributed.joined(near_MW.numpy()), distributed.joined(score_MW.numpy()))


def _unit(rows: np.ndarray | Tensor) -> Tensor:
    return F.normalize(torch.as_tensor(np.asarray(rows, np.float64)), dim=1)


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


def hits_of_queries(x_ND: Rows | Tensor, queries: Queries, k: int) -> np.ndarray:
    """Per-item embedding hit rate at k of each query, [Q], to compare two kinds of SIDs query by query."""
    return share_found(ranks(neighbours(x_ND, k, queries.item_H), queries).per_item_G, queries, k)


def hit_figures(x_ND: Rows | Tensor, queries: Queries, ks: Sequence[int] = KS) -> dict[str, float]:
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
