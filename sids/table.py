"""The table of semantic IDs: which tokens spell an item, and which item a row of tokens is.

A SID is a row of learned codes, perhaps with a dedup token behind them that tells items of equal codes
apart. Places count from 0; T is the most codes a SID has, P the most tokens.

Shape letters: N items, T code positions, P token positions, G items of a leaf.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from settings import option
from sids.search import Trie
from utils import Contradiction, Problem


@dataclass(frozen=True, kw_only=True)
class SidOptions:
    collision: Literal["suffix", "item", "knn", "random", "none"] = option(
        "suffix",
        "how items with equal codes are told apart: suffix = their number in the group, item = a token of their own "
        "(not in the paper), knn and random = at most collision_cap items per SID, the others get the nearest or a "
        "random free last code, none = they share one SID",
    )
    collision_cap: int | None = option(
        None, "maximum number of items per SID with collision: knn or random; default 5", ge=1
    )

    def __post_init__(self) -> None:
        if self.collision_cap is not None and self.collision not in ("knn", "random"):
            raise Contradiction(
                f"collision_cap: is read by collision: knn and random, not by {self.collision}",
                {"collision_cap": None}, {"collision": "knn"}, {"collision": "random"}, idle=True,
            )  # fmt: skip

    @property
    def shared(self) -> bool:
        """May items share a SID?"""
        return self.collision in ("knn", "random", "none")

    @property
    def cap(self) -> int:
        return 5 if self.collision_cap is None else self.collision_cap


class SidVocabulary(NamedTuple):
    """Which tokens SIDs are spelled with."""

    sizes: tuple[int, ...]  # codes of each position
    ends: int  # dedup tokens there may be
    even: bool = True  # have all items the same number of codes?

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Tokens of each position, P numbers; without dedup tokens no position for them."""
        if self.even and not self.ends:
            return self.sizes
        return (*self.sizes, self.ends) if self.even else tuple(k + self.ends + 1 for k in (*self.sizes, 0))


class Tokens(NamedTuple):
    """Tokens of some items: number within its position [..., P], and whether the item has that position [..., P]."""

    token: Tensor
    real: Tensor


def end_tokens(rule: str, sizes: tuple[int, ...], n_items: int) -> int:
    """How many dedup tokens there may be: as many as codes of the last position, or none (0) and one an item; 0: no
    position for them.
    """
    return {"suffix": sizes[-1], "item": n_items + 1}.get(rule, 0)


def by_count(count_N: np.ndarray) -> np.ndarray:
    """Rows of the catalogue, the most frequent item first, equal ones in catalogue order."""
    return np.argsort(-np.asarray(count_N), kind="stable")


def numbered(code_NT: Tensor, count_N: np.ndarray) -> Tensor:
    """Number the items that share all codes 0, 1, 2 ... by falling count, then in catalogue order, [N] int64."""
    order_N = torch.from_numpy(by_count(count_N)).to(code_NT.device)
    number_N = torch.empty_like(order_N)
    number_N[order_N] = suffixes(code_NT[order_N])
    return number_N


def ended(code_NT: Tensor, rule: str, ends: int, count_N: np.ndarray | None = None) -> Tensor:
    """The dedup token of each item, [N] int64: `suffix` counts 0, 1 ... within a group of equal codes, in catalogue
    order or by falling count; `item` is 0 for an item that stands alone and else its number. Problem when a group is
    larger than the tokens there are.
    """
    if rule == "item":
        group_N = groups_of(code_NT)
        size_G = group_N.bincount()
        number_N = torch.arange(1, len(code_NT) + 1, device=code_NT.device)
        return torch.where(size_G[group_N] > 1, number_N, 0)
    end_N = suffixes(code_NT) if count_N is None else numbered(code_NT, count_N)
    if (largest := int(end_N.max()) + 1) > ends:
        raise Problem(
            f"{largest} items share one code, dedup tokens tell {ends} apart at most; "
            + (
                "raise max_group, or num_emb_list where all have one length"
                if count_N is not None
                else "raise num_emb_list, pre-train the tokenizer longer, or set collision: item"
            )
        )
    return end_N


def free_end(used: set[int], most: int) -> int | None:
    """The first of `most` dedup tokens that a group of equal codes does not use yet, None where it uses all."""
    return next((end for end in range(most) if end not in used), None)


@dataclass(frozen=True)
class SidTable:
    """All that trie, search, batches, exchange and reports know of SIDs.

    Items of one length have their dedup token at a position of its own, behind the codes. Where lengths differ,
    a dedup token stands wherever an item ends: then a position has tokens 0 ... size - 1 for its codes, `ends`
    more for dedup tokens, and one for "behind the end", which every finished item goes on with.
    """

    code_NT: Tensor  # learned codes, -1 after an item's end
    end_N: Tensor | None  # dedup token; None: items may share a SID
    sizes: tuple[int, ...]  # codes of each position
    ends: int = 0  # dedup tokens there may be
    order_N: Tensor | None = None  # item numbers in the order in which those of one SID are listed; None: catalogue's

    @property
    def n_items(self) -> int:
        return len(self.code_NT)

    # what is kept may be met first by a search and then by a training, which saves no tensor of inference mode

    @cached_property
    @torch.inference_mode(False)
    def length_N(self) -> Tensor:
        """Codes of each item, [N]."""
        return (self.code_NT >= 0).sum(1)

    @cached_property
    def even(self) -> bool:
        """Have all items the same number of codes?"""
        return bool((self.code_NT >= 0).all())

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Tokens of each position, P numbers."""
        if self.end_N is None and self.even:
            return self.sizes
        return SidVocabulary(self.sizes, self.ends, self.even).vocabulary

    @cached_property
    @torch.inference_mode(False)
    def token_NP(self) -> Tensor:
        """Tokens of every item, behind-the-dedup tokens included, int64."""
        code_NT = self.code_NT.long()
        if self.even:
            return code_NT if self.end_N is None else torch.cat([code_NT, self.end_N.long()[:, None]], 1)
        if self.end_N is None:
            raise ValueError("codes of unlike length need dedup tokens: a code may begin another one")
        size_P = code_NT.new_tensor((*self.sizes, 0))
        place_P = torch.arange(len(size_P), device=code_NT.device)
        end_NP = torch.where(place_P == self.length_N[:, None], self.end_N.long()[:, None], self.ends)
        return torch.where(place_P < self.length_N[:, None], F.pad(code_NT, (0, 1)), size_P + end_NP)

    @cached_property
    @torch.inference_mode(False)
    def real_NP(self) -> Tensor:
        """Which positions each item has, [N, P] bool."""
        place_P = torch.arange(len(self.vocabulary), device=self.code_NT.device)
        return place_P < (self.length_N + (self.end_N is not None))[:, None]

    @cached_property
    def count_N(self) -> np.ndarray:
        """Tokens of each item, dedup tokens included, [N]."""
        found: np.ndarray = self.real_NP.sum(1).cpu().numpy()
        return found

    def fault(self, *, variable_length: bool = False) -> str | None:
        """Why these are no SIDs of a catalogue (out of range, or two items with one), None where they are.

        variable_length: lengths may differ; else every item must have all its codes.
        """
        sizes_T, none_NT = torch.tensor(self.sizes, device=self.code_NT.device), self.code_NT < 0
        behind_NT = (self.code_NT == -1).flip(1).long().cummin(1).values.flip(1).bool()  # nothing but -1 from here on
        bad_N = (none_NT & ~behind_NT).any(1) | (self.code_NT >= sizes_T).any(1) | none_NT[:, 0]
        if not variable_length:
            bad_N |= none_NT.any(1)
        if self.end_N is not None:
            bad_N |= (self.end_N < 0) | (self.end_N >= self.ends)
        if bad_N.any():
            return f"the SID of item {int(bad_N.int().argmax()) + 1} is out of range"
        if self.end_N is not None and int(groups_of(self.token_NP).max()) + 1 != self.n_items:
            return "two items have one SID"
        if self.order_N is not None and len(self.order_N.clamp(1, self.n_items).unique()) != self.n_items:
            return "the order of its items is none"
        return None

    def tokens(self, item: Tensor) -> Tokens:
        """Tokens of item numbers [...]; those of 0, padding, mean nothing."""
        row = item.clamp(min=1) - 1
        return Tokens(self.token_NP[row], self.real_NP[row])

    @torch.inference_mode(False)
    def trie(self, candidates_M: Tensor | None = None) -> Trie:
        """The prefix tree of the catalogue, or of some item numbers."""
        if self.order_N is not None:
            every_N = self.order_N
            candidates_M = every_N if candidates_M is None else every_N[torch.isin(every_N, candidates_M)]
        token_NP = self.token_NP if candidates_M is None else self.token_NP[candidates_M - 1]
        codes = None if self.even else (*self.sizes, 0)
        return Trie(token_NP, list(self.vocabulary), candidates_M, shared=self.end_N is None, codes=codes)

    def groups(self) -> Tensor:
        """Group of items with equal codes, [N + 1]; -1 for padding."""
        return F.pad(groups_of(self.code_NT), (1, 0), value=-1)

    def figures(self) -> dict[str, float]:
        """Codes used and perplexity per level among the items that have it, and the collision rate."""
        figures = {"collision_rate": collision_rate(self.code_NT)}
        for level, code_N in enumerate(self.code_NT.long().unbind(1)):
            used, spread = perplexity(code_N[code_N >= 0], self.sizes[level])
            figures |= {f"codes_used/level_{level + 1}": used, f"perplexity/level_{level + 1}": spread}
        return figures

    def counts(self) -> list[list[int]]:
        """Items of each code, level by level."""
        levels = zip(self.code_NT.long().unbind(1), self.sizes, strict=True)
        return [code_N[code_N >= 0].bincount(minlength=size).tolist() for code_N, size in levels]


# ---------------------------------------------------------------- figures of codes


def groups_of(code_NL: Tensor) -> Tensor:
    """Which items have equal codes: the number of each item's group, [N], from 0 in the order of the codes."""
    group_N = torch.zeros_like(code_NL[:, 0], dtype=torch.long)
    for code_N in code_NL.unbind(1):  # numbers sort twenty times as fast as rows
        group_N = (group_N * (int(code_N.max()) + 2) + code_N + 1).unique(return_inverse=True)[1]
    return group_N


def suffixes(code_NL: Tensor) -> Tensor:
    """Number the items that share all codes 0, 1, 2 ... in catalogue order, [N] int64."""
    group_N = groups_of(code_NL)
    order_N = group_N.argsort(stable=True)
    size_G = group_N.bincount()
    start_G = size_G.cumsum(0) - size_G
    rank_N = torch.empty_like(group_N)
    positions = torch.arange(len(group_N), device=group_N.device)
    rank_N[order_N] = positions - start_G[group_N[order_N]]
    return rank_N


def perplexity(code_N: Tensor, n_codes: int) -> tuple[int, float]:
    """(used codes, exp of the entropy of their usage)."""
    share_K = code_N.bincount(minlength=n_codes).double() / max(len(code_N), 1)
    entropy = -torch.xlogy(share_K, share_K).sum()
    return int((share_K > 0).sum()), float(entropy.exp())


def collision_rate(code_NL: Tensor) -> float:
    """Share of items in excess of the distinct codes: (N - distinct) / N, as published."""
    return 1 - (int(groups_of(code_NL).max()) + 1) / len(code_NL)
