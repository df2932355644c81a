"""What networks over the tokens of semantic IDs share: a table of tokens a place, tied with the logits.

Shape letters: U items, P places of a SID, V tokens of a place, R rows, C chosen tokens, h width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import are_real, some_logits
from recommenders.protocol import Codes


class TokenTables(nn.Module):
    """tables: [V, h] of each place, drawn from N(0, 0.02^2) by whoever extends this; uneven: the last token of each
    place stands behind an item's end and reads as zero.
    """

    item_loss, item_rank = 0.0, 0.0  # whoever scores whole items as well has more
    tables: nn.ParameterList
    vocabulary: tuple[int, ...]
    uneven: bool

    def embed(self, codes: Codes, token_UP: Tensor) -> Tensor:
        """Tokens of U items, [U, P, h]: m_l E_l at learned places, a plain look-up of token_UP at the others."""
        learned = [codes.lookup(place, self.tables[place]) for place in range(len(codes.index))]
        plain = [F.embedding(token_UP[:, p], self.tables[p]) for p in range(len(learned), len(self.tables))]
        return self._without_ends(torch.stack([*learned, *plain], 1), token_UP)

    def look_up(self, token_XP: Tensor) -> Tensor:
        """Hard tokens [..., P] as vectors, [..., P, h]."""
        token_XPh = torch.stack([t[i] for t, i in zip(self.tables, token_XP.unbind(-1), strict=True)], -2)
        return self._without_ends(token_XPh, token_XP)

    def real(self, token_XP: Tensor) -> Tensor | None:
        """Which tokens do not stand behind an item's end, [..., P]; None where all items have one length."""
        return are_real(token_XP, self.vocabulary) if self.uneven else None

    def _without_ends(self, token_XPh: Tensor, token_XP: Tensor) -> Tensor:
        real_XP = self.real(token_XP)
        return token_XPh if real_XP is None else token_XPh * real_XP[..., None]

    def logits(self, place: int, hidden_Rh: Tensor) -> Tensor:
        """Scores of a place's tokens, [R, V]."""
        return F.linear(hidden_Rh, self.tables[place]).to(self.tables[place].dtype)

    def scores(self, place: int, hidden_Rh: Tensor, among_RC: Tensor | None) -> Tensor:
        """What a search asks: log-probabilities over a place's tokens [R, V], or the logits of a few, [R, C]."""
        if among_RC is not None:
            return some_logits(hidden_Rh, self.tables[place], among_RC)
        return self.logits(place, hidden_Rh).log_softmax(-1)
