"""Beam search over semantic IDs that can only produce items of the catalogue.

Shape letters: N items, B users, W beams, C most children of a node, V tokens of a position, G items of a leaf.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recommenders.protocol import Scorer, TopK
from settings import option
from utils import Contradiction


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    num_beams: int = option(20, "number of beams in the search", ge=1, judges=True)
    legal_softmax: bool = option(
        False,
        "whether softmaxes run only over tokens that continue an existing semantic ID, in training and search (not in "
        "the paper)",
        sizeless=True,
    )
    constrained: bool = option(
        True,
        "whether the search is restricted to existing semantic IDs; false also reports the share of invalid ones",
        judges=True,
    )

    def __post_init__(self) -> None:
        if self.legal_softmax and not self.constrained:
            raise Contradiction(
                "legal_softmax: scores only SIDs that exist; it cannot be combined with constrained: false",
                {"legal_softmax": False}, {"constrained": True},
            )  # fmt: skip


FEW = 8  # a position with so many tokens for each that may follow is not scored whole


class Children(NamedTuple):
    """What may follow each of some nodes, [..., C] each: token, node of the next position, is it there."""

    token: Tensor
    node: Tensor
    there: Tensor


class Tree(Protocol):
    """What the search needs to know of the legal tokens."""

    vocabulary: list[int]  # tokens of each position

    def children(self, position: int, node: Tensor) -> Children: ...
    def items_of(self, leaf: Tensor) -> Tensor: ...


class Trie:
    """Prefix tree of the catalogue as compressed rows, per position.

    Nodes of a position are numbered in the order of their prefixes. The children of node n at position p are
    the entries begin[p][n] ... begin[p][n + 1] of token[p], and an entry's position is its node number at
    position p + 1; behind the last position nodes are leaves, and a leaf holds the items of its SID.
    """

    def __init__(
        self, token_NP: Tensor, vocabulary: list[int], number_N: Tensor | None = None, *, shared: bool = False,
        codes: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        """token_NP: SIDs; number_N: whose they are (None: row i is item i + 1); shared: items may have one SID;
        codes: where lengths differ, how many tokens of each position are codes, the others end a SID.

        Raises ValueError when two items share a SID and may not, or the vocabulary exceeds 63 bits together.
        """
        key_N = sid_key(token_NP, vocabulary)
        key_N, row_N = key_N.sort(stable=True)
        self.vocabulary, self.codes = vocabulary, codes
        self.item_N = (row_N + 1 if number_N is None else number_N[row_N]).to(torch.int32)
        self.key_M, size_M = key_N.unique_consecutive(return_counts=True)
        if len(self.key_M) != len(token_NP) and not shared:
            raise ValueError(f"{len(token_NP)} items share {len(self.key_M)} SIDs; add a suffix")
        self.group = int(size_M.max())  # most items of a leaf, known on the host
        self.leaf_begin = F.pad(size_M.cumsum(0), (1, 0)).to(torch.int32) if self.group > 1 else None
        self.begin: list[Tensor] = []
        self.token: list[Tensor] = []
        self.degree: list[int] = []  # most children of a node
        stride, parent_M = math.prod(vocabulary), key_N.new_zeros(1)
        for size in vocabulary:
            child_M = torch.div(self.key_M, stride // size, rounding_mode="floor").unique_consecutive()
            stride //= size
            begin = torch.searchsorted(child_M.div(size, rounding_mode="floor"), parent_M)
            begin = torch.cat([begin, begin.new_tensor([len(child_M)])])
            self.begin.append(begin.to(torch.int32))
            self.token.append((child_M % size).to(torch.int16 if size < 2**15 else torch.int32))
            self.degree.append(int((begin[1:] - begin[:-1]).max()))
            parent_M = child_M

    def children(self, position: int, node: Tensor) -> Children:
        begin, token, size = self.begin[position], self.token[position], self.vocabulary[position]
        if len(token) == (len(begin) - 1) * size:
            return every_token(node, size)
        first = begin[node]
        slot = torch.arange(self.degree[position], dtype=first.dtype, device=node.device)
        there = slot < (begin[node + 1] - first)[..., None]
        entry = (first[..., None] + slot).clamp_(max=len(token) - 1)
        # one index of one dimension: four times as fast on a CPU as token[entry]
        return Children(token.index_select(0, entry.flatten()).view_as(entry).long(), entry, there)

    def leaf_of(self, position: int, node: Tensor) -> Tensor:
        """Leaf of a node of some position whose SID has ended: all behind it have one child."""
        for begin in self.begin[position:]:
            node = begin[node]
        return node

    def items_of(self, leaf: Tensor) -> Tensor:
        """Item numbers of leaves, [..., G], in catalogue order; 0 pads, and fills leaf -1."""
        if self.leaf_begin is None:
            return self.item_N[leaf].long().masked_fill(leaf < 0, 0)[..., None]
        slot = torch.arange(self.group, device=leaf.device)
        entry = self.leaf_begin[leaf][..., None] + slot
        held = (entry < self.leaf_begin[leaf + 1][..., None]) & (leaf >= 0)[..., None]
        return self.item_N[entry.clamp(max=len(self.item_N) - 1)].long() * held

    def find(self, key: Tensor) -> Tensor:
        """Leaves of whole SIDs given as keys; -1 where no item has that SID."""
        leaf = torch.searchsorted(self.key_M, key).clamp(max=len(self.key_M) - 1)
        return torch.where(self.key_M[leaf] == key, leaf, -1)


class AllTokens:
    """Every token may follow every other: the published, unconstrained search."""

    def __init__(self, trie: Trie) -> None:
        self.trie, self.vocabulary = trie, trie.vocabulary

    def children(self, position: int, node: Tensor) -> Children:
        return every_token(node, self.vocabulary[position])

    def items_of(self, leaf: Tensor) -> Tensor:
        return self.trie.items_of(self.trie.find(leaf))


def every_token(node: Tensor, size: int) -> Children:
    """Children where every node of a position has all its tokens."""
    token = torch.arange(size, device=node.device).expand(*node.shape, size)
    return Children(token, node[..., None] * size + token, token.new_ones((), dtype=torch.bool).expand_as(token))


def sid_key(token_NP: Tensor, vocabulary: list[int]) -> Tensor:
    """One int64 a SID, ordered like the SIDs, [N]."""
    if math.prod(vocabulary) >= 2**63:
        raise ValueError(f"tokens per position {vocabulary}: more than 63 bits together")
    key_N = torch.zeros(len(token_NP), dtype=torch.long, device=token_NP.device)
    for position, size in enumerate(vocabulary):
        key_N = key_N * size + token_NP[:, position].long()
    return key_N


@torch.inference_mode()
def beam_search(
    score: Scorer, tree: Tree, users: int, beams: int, device: torch.device, excluded_BS: Tensor | None = None,
    *, legal_softmax: bool = False,
) -> TopK:  # fmt: skip
    """The items of the best `beams` SIDs for each of `users` users, [B, beams * G].

    score(position, token_R, parent_R) gives the log-probabilities [R, V] of the tokens of a position after each of
    R = users * W rows, over the position's whole softmax; legal_softmax: they are normalised anew over the tokens
    that may follow, and where these are few of many, no other is scored. Items in excluded_BS are never returned.
    """
    if isinstance(tree, Trie) and tree.codes is not None:
        return _search_uneven(score, tree, users, beams, device, excluded_BS, legal_softmax=legal_softmax)
    node_BW = torch.zeros(users, 1, dtype=torch.long, device=device)
    score_BW = torch.zeros(users, 1, device=device)
    token_R = parent_R = None
    last = len(tree.vocabulary) - 1
    for position in range(last + 1):
        child = tree.children(position, node_BW)
        next_BWC = _next(score, tree, position, child, token_R, parent_R, legal_softmax)
        total_BWC = score_BW[..., None] + next_BWC
        if excluded_BS is not None and position == last:
            item_BMG = tree.items_of(child.node.flatten(1))
            none_BMG = item_BMG == 0  # of a SID that no item has, or beside a leaf's items
            open_BM = ~(is_banned(item_BMG, excluded_BS) | none_BMG).all(2) | none_BMG.all(2)
            total_BWC = total_BWC.masked_fill(~open_BM.view_as(total_BWC), -torch.inf)
        total_BM = total_BWC.flatten(1)
        score_BW, entry_BW = total_BM.topk(min(beams, total_BM.shape[1]), dim=1)
        node_BW = child.node.flatten(1).gather(1, entry_BW)
        token_R = child.token.flatten(1).gather(1, entry_BW).flatten()
        first_row_B1 = torch.arange(users, device=device)[:, None] * next_BWC.shape[1]
        parent_R = (first_row_B1 + entry_BW // total_BWC.shape[2]).flatten()
    return unfold(tree.items_of(node_BW), score_BW, excluded_BS)


def _next(
    score: Scorer, tree: Tree, position: int, child: Children, token_R: Tensor | None, parent_R: Tensor | None,
    legal: bool,
) -> Tensor:  # fmt: skip
    """Log-probabilities of the children of some nodes, [B, W, C]; -inf where there is none."""
    if legal and FEW * child.token.shape[2] < tree.vocabulary[position]:
        next_BWC = score(position, token_R, parent_R, child.token.flatten(0, 1)).view_as(child.token)
    else:
        next_BWC = score(position, token_R, parent_R).view(*child.token.shape[:2], -1).gather(2, child.token)
    next_BWC = next_BWC.masked_fill(~child.there, -torch.inf)
    return next_BWC.log_softmax(2) if legal else next_BWC


@torch.inference_mode()
def spell(
    score: Scorer, tree: Tree, token_BWP: Tensor, real_BWP: Tensor | None = None, *, legal_softmax: bool = False
) -> Tensor:
    """Log-probabilities [B, W] of SIDs of the tree as `beam_search` would score them, without a search.

    real_BWP: which tokens do not stand behind an item's end.
    """
    users, width, positions = token_BWP.shape
    node_BW = torch.zeros(users, 1, dtype=torch.long, device=token_BWP.device)
    total_BW = torch.zeros(users, width, device=token_BWP.device)
    row = torch.arange(users * width, device=token_BWP.device)
    token_R = parent_R = None
    for position in range(positions):
        child = tree.children(position, node_BW)
        next_BWC = _next(score, tree, position, child, token_R, parent_R, legal_softmax).expand(-1, width, -1)
        wanted_BW1 = token_BWP[:, :, position, None]
        entry_BW1 = ((child.token == wanted_BW1) & child.there).int().argmax(2, keepdim=True)
        next_BW = next_BWC.gather(2, entry_BW1)[..., 0]
        total_BW = total_BW + (next_BW if real_BWP is None else next_BW.where(real_BWP[..., position], 0.0))
        node_BW = child.node.expand(-1, width, -1).gather(2, entry_BW1)[..., 0]
        token_R, parent_R = wanted_BW1.flatten(), row if position else row // width
    return total_BW


def _search_uneven(
    score: Scorer, trie: Trie, users: int, beams: int, device: torch.device, excluded_BS: Tensor | None,
    *, legal_softmax: bool,
) -> TopK:  # fmt: skip
    """The same over SIDs of unlike length, where a hypothesis that has ended takes no beam from those that go on.

    The best `beams` that have ended are kept beside the best `beams` that have not. Scores are plain sums of
    log-probabilities and can only fall: it is over when no user's best live one is above their last ended one.
    """
    assert trie.codes is not None
    node_BW = torch.zeros(users, 1, dtype=torch.long, device=device)
    live_BW = torch.zeros(users, 1, device=device)
    done_BF = torch.full((users, beams), -torch.inf, device=device)
    leaf_BF = torch.full((users, beams), -1, dtype=torch.long, device=device)
    most = beams + (0 if excluded_BS is None else excluded_BS.shape[1])  # leaves to leave out
    token_R = parent_R = None
    for position, codes in enumerate(trie.codes):
        logp_BWV = score(position, token_R, parent_R).view(*node_BW.shape, -1)
        child = trie.children(position, node_BW)
        next_BWC = logp_BWV.gather(2, child.token).masked_fill(~child.there, -torch.inf)
        if legal_softmax:  # a row of nothing but -inf belongs to a beam that is dead already
            dead_BW1 = (live_BW == -torch.inf)[..., None]
            next_BWC = next_BWC.log_softmax(2).masked_fill(dead_BW1, -torch.inf)
        total_BM = (live_BW[..., None] + next_BWC).flatten(1)
        ends_BM, node_BM = (child.token >= codes).flatten(1), child.node.flatten(1)
        new_BF, entry_BF = total_BM.masked_fill(~ends_BM, -torch.inf).topk(min(most, total_BM.shape[1]), dim=1)
        new_leaf_BF = trie.leaf_of(position + 1, node_BM.gather(1, entry_BF)).long()
        new_leaf_BF = new_leaf_BF.masked_fill(new_BF == -torch.inf, -1)
        if excluded_BS is not None:
            new_BF = new_BF.masked_fill(is_banned(trie.items_of(new_leaf_BF), excluded_BS).all(2), -torch.inf)
        done_BF, best_BF = torch.cat([done_BF, new_BF], 1).topk(beams, dim=1)
        leaf_BF = torch.cat([leaf_BF, new_leaf_BF], 1).gather(1, best_BF)
        if position + 1 == len(trie.codes):
            break
        live_BM = total_BM.masked_fill(ends_BM, -torch.inf)
        live_BW, entry_BW = live_BM.topk(min(beams, live_BM.shape[1]), dim=1)
        if bool((live_BW[:, 0] <= done_BF[:, -1]).all()):
            break
        node_BW, token_R = node_BM.gather(1, entry_BW), child.token.flatten(1).gather(1, entry_BW).flatten()
        first_row_B1 = torch.arange(users, device=device)[:, None] * logp_BWV.shape[1]
        parent_R = (first_row_B1 + entry_BW // next_BWC.shape[2]).flatten()
    return unfold(trie.items_of(leaf_BF.masked_fill(done_BF == -torch.inf, -1)), done_BF, excluded_BS)


def is_banned(item_BMG: Tensor, excluded_BS: Tensor) -> Tensor:
    """Which items [B, M, G] are not to be returned; padding of either side bans nothing."""
    held_BS = excluded_BS.masked_fill(excluded_BS == 0, -1)
    return (item_BMG[..., None] == held_BS[:, None, None]).any(3)


def unfold(item_BWG: Tensor, score_BW: Tensor, excluded_BS: Tensor | None) -> TopK:
    """The items of each leaf under its score, best first; in a leaf the catalogue's order."""
    dead_BWG = (score_BW == -torch.inf)[..., None].expand_as(item_BWG)
    if item_BWG.shape[2] == 1:  # excluded leaves are dead already
        return TopK(item_BWG[..., 0].masked_fill(dead_BWG[..., 0], 0), score_BW)
    if excluded_BS is not None:
        dead_BWG = dead_BWG | is_banned(item_BWG, excluded_BS)
    empty_BM = (dead_BWG | (item_BWG == 0)).flatten(1)
    score_BM = score_BW[..., None].expand_as(item_BWG).flatten(1).masked_fill(empty_BM, -torch.inf)
    score_BM, order_BM = score_BM.sort(dim=1, descending=True, stable=True)
    return TopK(item_BWG.flatten(1).masked_fill(empty_BM, 0).gather(1, order_BM), score_BM)
