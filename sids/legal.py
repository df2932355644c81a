"""Which tokens may follow which prefix in a catalogue: softmaxes over the tokens that exist.

A softmax over these alone makes the product over positions a distribution over the *items*: nothing is spent on SIDs
that nobody has, and a position where only one token may follow costs nothing and need not be computed.

Shape letters: N items of the catalogue, U items asked about, P positions of a SID, V tokens of a position.
"""

import torch
from torch import Tensor

from sids.search import Trie
from sids.table import SidTable, groups_of

KEPT = 1 << 25  # entries of a position's mask; a larger one is made anew for the prefixes that are asked for


class Legal:
    """What follows each item's prefixes, of a table and its trie; made anew when the SIDs change."""

    def __init__(self, sids: SidTable, trie: Trie, kept: int = KEPT) -> None:
        token_NP, self.trie = sids.token_NP, trie
        self.node: list[Tensor] = []  # the trie's node of each item's prefix, [N]
        self.mask: list[Tensor | None] = []  # [nodes, V], where that is not too large
        choices = []
        for position, size in enumerate(sids.vocabulary):
            node_N = torch.zeros_like(token_NP[:, 0])
            if position:  # distinct prefixes in order, as the trie numbers them
                node_N = groups_of(token_NP[:, :position])
            begin = trie.begin[position]
            choices.append((begin[1:] - begin[:-1])[node_N])
            self.node.append(node_N)
            nodes = torch.arange(len(begin) - 1, device=token_NP.device)
            self.mask.append(self._mask(position, nodes) if len(nodes) * size <= kept else None)
        self.open_NP = torch.stack(choices, 1) > 1
        self.open_NP[:, 0] = True  # every SID has a first token to be told, be it the only one

    def _mask(self, position: int, node_U: Tensor) -> Tensor:
        child, size = self.trie.children(position, node_U), self.trie.vocabulary[position]
        mask = torch.zeros(len(node_U), size + 1, dtype=torch.bool, device=node_U.device)
        return mask.scatter_(1, child.token.masked_fill(~child.there, size), True)[:, :size]

    def tokens(self, position: int, item_U: Tensor) -> Tensor:
        """Tokens that may follow the items' prefixes, [U, V] bool; items count from 1."""
        node_U, mask = self.node[position][item_U - 1], self.mask[position]
        return self._mask(position, node_U) if mask is None else mask[node_U]

    def open(self, item_U: Tensor) -> Tensor:
        """Whether an item's token is a choice at all, [U, P]; the first position always counts as one."""
        return self.open_NP[item_U - 1]
