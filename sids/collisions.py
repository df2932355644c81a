"""What becomes of items whose learned codes are equal: a dedup token tells them apart, they share, or some move.

FORGE (arXiv:2509.20904) lets at most `cap` items share a SID and moves the others to another last code under the same
prefix, the nearest free one (knn) or any (random). Here that is deterministic and loses no item; docs/forge.md says
what the published statement did.

Shape letters: N items, L levels, K codes of a level, U items without a position.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sids.search import sid_key
from sids.table import SidOptions
from sids.tokenizer import Distances, Tokenizer
from utils import Problem, log


class Resolved(NamedTuple):
    code_NL: Tensor
    rank_N: Tensor  # which of its candidates an item got, from 1; 0: it stayed; -1: another prefix
    rounds: int
    cost: float  # mean over all items of the squared distance to their last code, less that of before

    def line(self) -> str:
        moved, other = float((self.rank_N != 0).double().mean()), int((self.rank_N < 0).sum())
        return (
            f"collisions: {moved:.4f} of the items moved in {self.rounds} rounds, {other} to another prefix; mean "
            f"squared distance to the last code +{self.cost:.4g}"
        )


def resolve(
    code_NL: Tensor, sizes: Sequence[int], cap: int, strategy: str, distances: Distances, seed: int = 0,
    *, fallback: bool = True,
) -> Resolved:  # fmt: skip
    """At most `cap` items a SID: the nearest to their code stay, each other one moves, in rounds.

    In a round everybody without a position asks for the best of its candidates that is not full, and a SID takes those
    who rank it best, then the smaller index. Where a prefix is full, the next nearest code before the last is tried
    (fallback); Problem names the prefix where nothing is left.
    """
    key_N, weight = sid_key(code_NL, list(sizes)), sizes[-1]
    lost = _without_place(code_NL, key_N, cap, distances)
    rank_N = torch.zeros(len(code_NL), dtype=torch.long)
    if not len(lost):
        return Resolved(code_NL, rank_N, 0, 0.0)
    before_NL, code_NL = code_NL, code_NL.clone()
    near_UK = distances(lost, code_NL[lost, :-1])
    before_U = near_UK.gather(1, code_NL[lost, -1:])[:, 0]
    order_UK = _candidates(near_UK, code_NL[lost, -1], strategy, seed)
    prefix_M, local_U = np.unique((key_N[lost] // weight).numpy(), return_inverse=True)
    full_MK = _occupied(key_N, lost, prefix_M, sizes[-1])
    got_U, rounds = _rounds(torch.from_numpy(local_U), order_UK, full_MK, cap)
    placed_U = got_U >= 0
    chosen_U = order_UK.gather(1, got_U.clamp(min=0)[:, None])[:, 0]
    code_NL[lost[placed_U], -1] = chosen_U[placed_U]
    rank_N[lost] = got_U + 1
    after_U = near_UK.gather(1, chosen_U[:, None])[:, 0]
    if not bool(placed_U.all()):
        homeless = ~placed_U
        if not fallback or code_NL.shape[1] < 2:
            raise _no_room(before_NL, lost[homeless], cap, sizes)
        after_U[homeless] = _elsewhere(code_NL, before_NL, lost[homeless], cap, distances)
        rank_N[lost[homeless]] = -1
    return Resolved(code_NL, rank_N, rounds, float((after_U - before_U).double().sum()) / len(code_NL))


def _without_place(code_NL: Tensor, key_N: Tensor, cap: int, distances: Distances) -> Tensor:
    """Items [U], sorted, that are not among the `cap` nearest to their code (then the smaller index) of their SID."""
    _, group_N, size_G = key_N.unique(return_inverse=True, return_counts=True)
    rows = torch.nonzero(size_G[group_N] > cap)[:, 0]
    own = distances(rows, code_NL[rows, :-1]).gather(1, code_NL[rows, -1:])[:, 0]
    order = torch.from_numpy(np.lexsort((rows.numpy(), own.numpy(), group_N[rows].numpy())))
    group = group_N[rows][order].contiguous()
    position = torch.arange(len(group)) - torch.searchsorted(group, group)
    lost: Tensor = rows[order][position >= cap].sort().values
    return lost


def _candidates(near_UK: Tensor, own_U: Tensor, strategy: str, seed: int) -> Tensor:
    """Last codes in the order in which each item asks for them, [U, K - 1], its own left out."""
    value_UK = near_UK
    if strategy == "random":
        value_UK = torch.from_numpy(np.random.default_rng([seed, 13]).random(near_UK.shape))
    order_UK = value_UK.scatter(1, own_U[:, None], torch.inf).sort(dim=1, stable=True).indices
    return order_UK[:, :-1]


def _occupied(key_N: Tensor, lost: Tensor, prefix_M: np.ndarray, k: int) -> Tensor:
    """How many items with a position each SID under the prefixes has, [M, K]."""
    kept = np.delete(key_N.numpy(), lost.numpy())
    local = np.searchsorted(prefix_M, kept // k).clip(max=len(prefix_M) - 1)
    here = prefix_M[local] == kept // k
    counts = np.bincount(local[here] * k + kept[here] % k, minlength=len(prefix_M) * k)
    return torch.from_numpy(counts).view(len(prefix_M), k)


def _rounds(local_U: Tensor, order_UK: Tensor, full_MK: Tensor, cap: int) -> tuple[Tensor, int]:
    """(which of its candidates each item got, -1 for none [U]; rounds)."""
    got_U, rounds = torch.full((len(local_U),), -1), 0
    asking = torch.arange(len(local_U))
    while len(asking):
        free = full_MK[local_U[asking, None], order_UK[asking]] < cap
        asking, free = asking[free.any(1)], free[free.any(1)]
        if not len(asking):
            break
        rounds += 1
        rank = free.int().argmax(1)
        position = local_U[asking] * full_MK.shape[1] + order_UK[asking, rank]
        order = torch.from_numpy(np.lexsort((asking.numpy(), rank.numpy(), position.numpy())))
        asked = position[order]
        number = torch.arange(len(asked)) - torch.searchsorted(asked, asked)
        taken = order[number < cap - full_MK.view(-1)[asked]]
        got_U[asking[taken]] = rank[taken]
        full_MK.view(-1).index_add_(0, position[taken], torch.ones_like(taken))
        asking = asking[got_U[asking] < 0]
    return got_U, rounds


def _elsewhere(code_NL: Tensor, before_NL: Tensor, homeless: Tensor, cap: int, distances: Distances) -> Tensor:
    """Places for items whose prefix is full, one after another; codes are changed, the new distances returned."""
    waiting = set(homeless.tolist())
    held = Counter(tuple(row) for i, row in enumerate(code_NL.tolist()) if i not in waiting)
    found = []
    for item in homeless.tolist():
        row = torch.tensor([item])
        start = tuple(code_NL[item, :-2].tolist())
        for middle in distances(row, code_NL[row, :-2])[0].argsort(stable=True).tolist():
            prefix = (*start, middle)
            near_K = distances(row, torch.tensor([prefix]))[0]
            positions = len(near_K)
            last = next((k for k in near_K.argsort(stable=True).tolist() if held[(*prefix, k)] < cap), None)
            if last is not None:
                code_NL[item] = torch.tensor((*prefix, last))
                held[(*prefix, last)] += 1
                found.append(near_K[last])
                break
        else:
            raise _no_room(before_NL, row, cap, [positions])
    return torch.stack(found)


def _no_room(code_NL: Tensor, homeless: Tensor, cap: int, sizes: Sequence[int]) -> Problem:
    prefix = code_NL[homeless[0], :-1]
    items = int((code_NL[:, :-1] == prefix).all(1).sum())
    return Problem(
        f"collision_cap: {items} items have codes that begin with ({', '.join(map(str, prefix.tolist()))}), "
        f"which have room for {cap * sizes[-1]}; raise collision_cap or num_emb_list, or set collision: suffix"
    )


def _all_alike(sizes: Sequence[int], rows: Tensor, prefix: Tensor) -> Tensor:
    return torch.zeros(len(rows), sizes[prefix.shape[1]])


def apply(cfg: SidOptions, tokenizer: Tokenizer, content_ND: np.ndarray, code_NL: Tensor, seed: int) -> Tensor:
    """The codes of a catalogue after its collisions were resolved as the options say."""
    if cfg.collision not in ("knn", "random"):
        return code_NL
    distances = tokenizer.distances_of(content_ND)
    if distances is None:  # no code is nearer than another
        if cfg.collision == "knn":
            raise Problem(
                "collision: knn needs a tokenizer that measures distances between codes; use random, suffix, item or "
                "none"
            )
        distances = functools.partial(_all_alike, tokenizer.cfg.num_emb_list)
    with torch.no_grad():
        found = resolve(code_NL.cpu(), tokenizer.cfg.num_emb_list, cfg.cap, cfg.collision, distances, seed)
    log.info(found.line())
    return found.code_NL.to(code_NL.device)
