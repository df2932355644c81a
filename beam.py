"""Beam search over semantic IDs that can only produce items of the catalogue.

Shape letters: N items, B users, W beams, C most children of a node on a level, K codes.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Children(NamedTuple):
    """What may follow each of some nodes, [..., C] each: code, node of the next level, is it there."""

    code: Tensor
    node: Tensor
    there: Tensor


class Tree(Protocol):
    """What the search needs to know of the legal codes."""

    levels: int

    def children(self, level: int, node: Tensor) -> Children: ...
    def items(self, node: Tensor) -> Tensor: ...


class Trie:
    """Prefix tree of the catalogue as compressed rows, per level.

    Nodes of a level are numbered in the order of their prefixes. The children of node n of level l are
    the entries begin[l][n] ... begin[l][n + 1] of code[l], and an entry's place is its node number on
    level l + 1; on the last level it is the place of its item.
    """

    def __init__(self, sid_NL: Tensor, sizes: list[int], number_N: Tensor | None = None) -> None:
        """sid_NL: distinct SIDs; number_N: whose they are (None: row i is item i + 1); sizes: codes per level.

        Raises ValueError when two items share a SID or the sizes exceed 63 bits together.
        """
        key_N = sid_key(sid_NL, sizes)
        key_N, item_N = key_N.sort()
        self.levels, self.sizes = len(sizes), sizes
        self.item_N = (item_N + 1 if number_N is None else number_N[item_N]).to(torch.int32)
        self.key_N = key_N
        self.begin: list[Tensor] = []
        self.code: list[Tensor] = []
        self.degree: list[int] = []  # most children of a node, known on the host
        stride, parent_M = _product(sizes), key_N.new_zeros(1)
        for size in sizes:
            child_M = torch.div(key_N, stride // size, rounding_mode="floor").unique_consecutive()
            stride //= size
            begin = torch.searchsorted(child_M.div(size, rounding_mode="floor"), parent_M)
            begin = torch.cat([begin, begin.new_tensor([len(child_M)])])
            self.begin.append(begin.to(torch.int32))
            self.code.append((child_M % size).to(torch.int16 if size < 2**15 else torch.int32))
            self.degree.append(int((begin[1:] - begin[:-1]).max()))
            parent_M = child_M
        if len(parent_M) != len(sid_NL):
            raise ValueError(f"{len(sid_NL)} items share {len(parent_M)} SIDs; add a suffix")

    def children(self, level: int, node: Tensor) -> Children:
        begin, code, size = self.begin[level], self.code[level], self.sizes[level]
        if len(code) == (len(begin) - 1) * size:
            return every_code(node, size)
        first = begin[node]
        slot = torch.arange(self.degree[level], dtype=first.dtype, device=node.device)
        there = slot < (begin[node + 1] - first)[..., None]
        place = (first[..., None] + slot).clamp_(max=len(code) - 1)
        # one index of one dimension: four times as fast on a CPU as code[place]
        return Children(code.index_select(0, place.flatten()).view_as(place).long(), place, there)

    def items(self, node: Tensor) -> Tensor:
        """Item numbers of nodes below the last level."""
        return self.item_N[node].long()

    def find(self, key: Tensor) -> Tensor:
        """Item numbers of whole SIDs given as keys; 0 where no item has that SID."""
        place = torch.searchsorted(self.key_N, key).clamp(max=len(self.key_N) - 1)
        return torch.where(self.key_N[place] == key, self.item_N[place].long(), 0)


class AllCodes:
    """Every code may follow every other: the published, unconstrained search."""

    def __init__(self, trie: Trie) -> None:
        self.trie, self.levels = trie, trie.levels

    def children(self, level: int, node: Tensor) -> Children:
        return every_code(node, self.trie.sizes[level])

    def items(self, node: Tensor) -> Tensor:
        return self.trie.find(node)


def every_code(node: Tensor, size: int) -> Children:
    """Children where every node of a level has all its codes."""
    code = torch.arange(size, device=node.device).expand(*node.shape, size)
    return Children(code, node[..., None] * size + code, code.new_ones((), dtype=torch.bool).expand_as(code))


def sid_key(sid_NL: Tensor, sizes: list[int]) -> Tensor:
    """One int64 a SID, ordered like the SIDs, [N]."""
    if _product(sizes) >= 2**63:
        raise ValueError(f"codes per level {sizes}: more than 63 bits together")
    key_N = torch.zeros(len(sid_NL), dtype=torch.long, device=sid_NL.device)
    for level, size in enumerate(sizes):
        key_N = key_N * size + sid_NL[:, level].long()
    return key_N


def _product(sizes: list[int]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


class Found(NamedTuple):
    item_BW: Tensor  # item numbers, best first; 0 = no item
    score_BW: Tensor  # log-probability of the SID; -inf where the beam died


NextLogProbs = Callable[[int, Tensor | None, Tensor | None], Tensor]


@torch.inference_mode()
def beam_search(
    next_log_probs: NextLogProbs, tree: Tree, users: int, beams: int, device: torch.device,
    banned_BS: Tensor | None = None,
) -> Found:  # fmt: skip
    """Best `beams` items for each of `users` users.

    next_log_probs(level, code_R, parent_R) scores the codes of `level` after each of R = users * W
    rows, [R, K] over the level's whole softmax; code_R is what was just appended and parent_R the row
    it was appended to (both None on level 0, where R = users). Items in banned_BS are never returned.
    """
    node_BW = torch.zeros(users, 1, dtype=torch.long, device=device)
    score_BW = torch.zeros(users, 1, device=device)
    code_R = parent_R = None
    for level in range(tree.levels):
        logp_RK = next_log_probs(level, code_R, parent_R)
        logp_BWK = logp_RK.view(*node_BW.shape, -1)
        child = tree.children(level, node_BW)
        total_BWC = score_BW[..., None] + logp_BWK.gather(2, child.code)
        total_BWC = total_BWC.masked_fill(~child.there, -torch.inf)
        if banned_BS is not None and level == tree.levels - 1:
            item_BM = tree.items(child.node).flatten(1)
            held_BS = banned_BS.masked_fill(banned_BS == 0, -1)  # padding bans nothing
            ban_BM = (item_BM[:, :, None] == held_BS[:, None]).any(2)
            total_BWC = total_BWC.masked_fill(ban_BM.view_as(total_BWC), -torch.inf)
        total_BM = total_BWC.flatten(1)
        score_BW, place_BW = total_BM.topk(min(beams, total_BM.shape[1]), dim=1)
        node_BW = child.node.flatten(1).gather(1, place_BW)
        code_R = child.code.flatten(1).gather(1, place_BW).flatten()
        first_row_B1 = torch.arange(users, device=device)[:, None] * logp_BWK.shape[1]
        parent_R = (first_row_B1 + place_BW // total_BWC.shape[2]).flatten()
    return Found(tree.items(node_BW).masked_fill(score_BW == -torch.inf, 0), score_BW)
