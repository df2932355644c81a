"""Which tokens may follow which prefix in a catalogue: softmaxes over the tokens that exist.

A softmax over these alone makes the product over places a distribution over the *items*: nothing is spent on SIDs
that nobody has, and a place where only one token may follow costs nothing and need not be computed.

Shape letters: N items of the catalogue, U items asked about, P places of a SID, V tokens of a place.
"""

import torch
from torch import Tensor

from sids.table import SidTable


class Legal:
    """A table's SIDs as one mask a prefix; made anew when the SIDs change."""

    def __init__(self, sids: SidTable) -> None:
        token_NP = sids.token_NP
        self.node: list[Tensor] = []  # number of each item's prefix, [N]
        self.mask: list[Tensor] = []  # [prefixes, V]
        for place, size in enumerate(sids.vocabulary):
            node_N = torch.zeros_like(token_NP[:, 0])
            if place:
                node_N = token_NP[:, :place].unique(dim=0, return_inverse=True)[1]
            mask = torch.zeros(int(node_N.max()) + 1, size, dtype=torch.bool, device=token_NP.device)
            mask[node_N, token_NP[:, place]] = True
            self.node.append(node_N)
            self.mask.append(mask)
        choices = [mask.sum(1) for mask in self.mask]
        self.open_NP = torch.stack([c[node] > 1 for c, node in zip(choices, self.node, strict=True)], 1)
        self.open_NP[:, 0] = True  # every SID has a first token to be told, be it the only one

    def tokens(self, place: int, item_U: Tensor) -> Tensor:
        """Tokens that may follow the items' prefixes, [U, V] bool; items count from 1."""
        return self.mask[place][self.node[place][item_U - 1]]

    def open(self, item_U: Tensor) -> Tensor:
        """Whether an item's token is a choice at all, [U, P]; the first place always counts as one."""
        return self.open_NP[item_U - 1]
