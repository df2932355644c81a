"""A refreshed tokenizer's codes in the names of the old one's, so that what was trained on these can go on.

Shape letters: N items that both know, T code positions, K codes of a position.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sids.table import SidTable, ended, free_end
from utils import Problem


class Aligned(NamedTuple):
    """New SIDs in old names, and how they came by them."""

    sids: SidTable
    codes: list[Tensor]  # level by level: the old name of each new code [K]
    agree: list[float]  # share of the items known before whose codes agree up to each level, renamed
    agree_before: list[float]  # the same without renaming
    kept: float  # share of these items that have their whole SID again


def align(old: SidTable, new: SidTable) -> Aligned:
    """Rename the new codes level by level; item i of `old` is item i of `new`, further items are new ones.

    On each level the names that let most items keep what they have so far, and among equal ones most items their code
    of that level: a maximum-weight matching (Kuhn 1955; scipy's linear_sum_assignment). Groups of equal codes stay what
    they are. An item whose codes are its old ones keeps its dedup token where both tables have some.
    """
    n, positions = old.n_items, len(old.sizes)
    if new.n_items < n:
        raise Problem(f"the new SIDs have {new.n_items} items, the old ones {n}; items may be added, not taken away")
    if len(new.sizes) != positions:
        levels = len(new.sizes)
        raise Problem(
            f"the new SIDs have {levels} levels, the old ones {positions}; only SIDs of equally many levels can be "
            "matched"
        )
    code_NT, same_N = new.code_NT.long().clone(), torch.ones(n, dtype=torch.bool)
    codes, agree, sizes = [], [], []
    for level in range(positions):
        size = max(old.sizes[level], new.sizes[level])
        was_N, is_N = old.code_NT[:n, level].long(), code_NT[:n, level]
        name_K = best_names(was_N, is_N, same_N, size)
        real_M = code_NT[:, level] >= 0
        code_NT[real_M, level] = name_K[code_NT[real_M, level]]
        same_N &= code_NT[:n, level] == was_N
        codes.append(name_K[: new.sizes[level]])
        agree.append(share(same_N))
        sizes.append(size)
    before_NT = (new.code_NT[:n] == old.code_NT).long().cumprod(1).bool()
    end_M = None if new.end_N is None or old.end_N is None else kept_ends(old, code_NT, same_N)
    ends = 0 if end_M is None else max(old.ends, new.ends, int(end_M.max()) + 1)
    table = replace(new, code_NT=code_NT, end_N=end_M, sizes=tuple(sizes), ends=ends)
    whole_N = same_N if end_M is None else same_N & (end_M[:n] == old.end_N)
    return Aligned(table, codes, agree, [share(b) for b in before_NT.unbind(1)], share(whole_N))


def share(held_N: Tensor) -> float:
    return float(held_N.double().mean())


def best_names(was_N: Tensor, is_N: Tensor, same_N: Tensor, size: int) -> Tensor:
    """For each new code of a level the old code that becomes its name, each name once, [size].

    same_N: items that have kept all codes so far; they decide, the others only between equals.
    """
    both_N = (was_N >= 0) & (is_N >= 0)
    pair_N = is_N * size + was_N
    kept, every = (pair_N[m].bincount(minlength=size * size) for m in (both_N & same_N, both_N))
    weight = kept * (len(was_N) + 1) + every  # whole numbers: the second never outweighs the first
    row, column = linear_sum_assignment(weight.view(size, size).numpy(), maximize=True)
    name_K = torch.empty(size, dtype=torch.long)
    name_K[torch.from_numpy(row)] = torch.from_numpy(column)
    return name_K


def kept_ends(old: SidTable, code_MT: Tensor, same_N: Tensor) -> Tensor:
    """Dedup tokens [M]: the old one where an item's codes are its old ones, else the first that is free."""
    found = ended(code_MT, "suffix", len(code_MT))
    taken: dict[tuple[int, ...], set[int]] = {}
    rows, stays = list(map(tuple, code_MT.tolist())), same_N.tolist()
    for i in (i for i, stay in enumerate(stays) if stay):
        found[i] = old.end_N[i]  # type: ignore[index]
        taken.setdefault(rows[i], set()).add(int(found[i]))
    for i, row in enumerate(rows):
        if i < len(stays) and stays[i]:
            continue
        used = taken.setdefault(row, set())
        end = free_end(used, len(used) + 1)
        assert end is not None  # there is one more than are used
        found[i] = end
        used.add(end)
    return found
