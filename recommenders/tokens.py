"""What networks over the tokens of semantic IDs share: a table of tokens a position, tied with the logits; whole items.

Shape letters: U items, N items of the catalogue, P positions of a SID, V tokens of a position, R rows, C chosen tokens,
h width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch
from layers import are_real, some_logits
from recommenders.blocks import check_heads
from recommenders.protocol import Codes, NetworkOutput, Scorer
from settings import option


@dataclass(frozen=True, kw_only=True)
class WidthOptions:
    """The sizes that every network over tokens has."""

    d_model: int = option(128, "width h of the hidden states", ge=1)
    d_ff: int = option(512, "width of the feed-forward layers", ge=1)
    num_heads: int = option(4, "number of attention heads", ge=1, sizeless=True)


@dataclass(frozen=True, kw_only=True)
class StackOptions(WidthOptions):
    """The sizes of the blocks in recommenders/blocks.py, whose heads share the width."""

    def __post_init__(self) -> None:
        check_heads("d_model", self.d_model, self.num_heads)


@dataclass(frozen=True, kw_only=True)
class WholeItemOptions:
    """Items beside their SIDs (LIGER, arXiv:2411.18814)."""

    item_embedding: bool = option(
        False,
        "whether each item of a history gets a learned vector of its own beside its semantic ID (not in the paper)",
    )
    item_loss: float = option(
        0.0,
        "weight of an extra softmax loss over whole items, which also ranks the beams (hybrid ranking, as in LIGER; 0 "
        "= off)",
        ge=0,
    )
    item_rank: float = option(
        1.0,
        "weight of the item's log-probability in hybrid ranking, at least 0",
        ge=0, judges=True, needs=("item_loss=1.0",),
    )


class TokenNetwork(nn.Module, ABC):
    """Reads the tokens of a history and spells those of an item; knows nothing of where tokens come from.

    With variable_length SIDs differ in length. The last token of every position then stands behind an item's end: it
    reads as zero and is never a target.
    """

    targets: Literal["one", "next"]
    taught: Literal["one", "next"]  # the targets that are spelled with teacher_UPh; a history's own tokens spell others
    item_loss, item_rank = 0.0, 0.0  # weights of the loss of whole items and of their rank
    own: nn.Embedding | None  # an item's own vector, of whoever has WholeItemOptions
    whole: nn.Linear | None  # from a hidden state to the item itself
    tables: nn.ParameterList  # [V, h] of each position, drawn from N(0, 0.02^2)

    def __init__(
        self, cfg: Any, vocabulary: tuple[int, ...], longest: int, n_items: int, variable_length: bool = False
    ) -> None:
        """cfg: its Options; vocabulary: tokens of each position; longest: items of a history at most."""
        super().__init__()
        self.cfg, self.vocabulary, self.longest = cfg, vocabulary, longest
        self.n_items, self.variable_length = n_items, variable_length
        self.tokens_per_item = len(vocabulary)
        if isinstance(cfg, WholeItemOptions):
            self.item_loss, self.item_rank = cfg.item_loss, cfg.item_rank

    @abstractmethod
    def forward(
        self, history_UPh: Tensor, batch: Batch, teacher_UPh: Tensor, open_UP: Tensor | None = None,
        real_UP: Tensor | None = None,
    ) -> NetworkOutput:  # fmt: skip
        """Logits [R, V] position by position, R = Batch.goals(targets): teacher-forced with teacher_UPh.

        open_UP: at which positions an item's token is a choice; then only the rows whose target's is are wanted.
        real_UP: which positions an item has, where lengths differ; then open_UP is given, and says no more than that.
        """

    @abstractmethod
    def scorer(self, tokens: Callable[[Tensor], Tensor], history_BS: Tensor) -> Scorer:
        """The scorer of a search; what does not depend on beams runs once per user. With `item_loss` it says, as a
        further position behind the last one, what whole items are scored with, [B, h]. tokens: item numbers [...] ->
        their tokens [..., P].
        """

    def begin(self) -> None:
        """Take the weights that it starts training from, where these are not random."""

    def resting(self) -> list[str]:
        """Names in the state that `begin` reads from a file and training never changes."""
        return []

    def export(self, folder: Path) -> None:
        """Write what other programs can read of it beside an exported checkpoint; here nothing."""

    @property
    def width(self) -> int:
        """h, of embedded tokens and states."""
        return self.tables[0].shape[1]

    def embed(self, codes: Codes, token_UP: Tensor) -> Tensor:
        """Tokens of U items, [U, P, h]: m_l E_l at learned positions, a plain look-up of token_UP at the others; zero
        behind an item's end.
        """
        learned = [codes.lookup(position, self.tables[position]) for position in range(len(codes.index))]
        plain = [F.embedding(token_UP[:, p], self.tables[p]) for p in range(len(learned), len(self.tables))]
        return self._without_ends(torch.stack([*learned, *plain], 1), token_UP)

    def look_up(self, token_XP: Tensor) -> Tensor:
        """Hard tokens [..., P] as vectors, [..., P, h]."""
        token_XPh = torch.stack([t[i] for t, i in zip(self.tables, token_XP.unbind(-1), strict=True)], -2)
        return self._without_ends(token_XPh, token_XP)

    def real(self, token_XP: Tensor) -> Tensor | None:
        """Which tokens do not stand behind an item's end, [..., P]; None where all items have one length."""
        return are_real(token_XP, self.vocabulary) if self.variable_length else None

    def _without_ends(self, token_XPh: Tensor, token_XP: Tensor) -> Tensor:
        real_XP = self.real(token_XP)
        return token_XPh if real_XP is None else token_XPh * real_XP[..., None]

    def logits(self, position: int, hidden_Rh: Tensor) -> Tensor:
        """Scores of a position's tokens, [R, V]."""
        return F.linear(hidden_Rh, self.tables[position]).to(self.tables[position].dtype)

    def spelled(
        self, state_Rh: Tensor, hidden: Iterable[Tensor], row_R: Tensor, open_UP: Tensor | None
    ) -> NetworkOutput:
        """What `forward` returns; hidden: position by position the states [R, h] that foretell its token; row_R: the
        targets' rows of open_UP.
        """
        return NetworkOutput(state_Rh, (
            self.logits(position, hidden_Rh if open_UP is None else hidden_Rh[open_UP[row_R, position]])
            for position, hidden_Rh in enumerate(hidden)
        ))  # fmt: skip

    def scores(self, position: int, hidden_Rh: Tensor, candidates_RC: Tensor | None) -> Tensor:
        """What a search asks: log-probabilities over a position's tokens [R, V], or the logits of a few, [R, C]."""
        if candidates_RC is not None:
            return some_logits(hidden_Rh, self.tables[position], candidates_RC)
        return self.logits(position, hidden_Rh).log_softmax(-1)

    def item_logits(self, state_Rh: Tensor, token_NPh: Tensor) -> Tensor:
        """Scores of whole items [R, N]: what is looked for against the sum of an item's tokens and its own vector."""
        assert self.whole is not None
        y_Nh = self.item_table(token_NPh, slice(1, None))
        return F.linear(self.whole(state_Rh), y_Nh).to(y_Nh.dtype)

    def item_table(self, token_XPh: Tensor, item_X: Tensor | slice) -> Tensor:
        """What whole items are scored by, [X, h]: the sum of an item's tokens and its own vector."""
        y_Xh = token_XPh.sum(1)
        return y_Xh if self.own is None else y_Xh + self.own.weight[item_X]

    def catalogue(self, token_NP: Tensor, item_U: Tensor, teacher_UPh: Tensor) -> Tensor:
        """Tokens of all items as vectors, [N, P, h]; those of a batch as the teacher reads them: with gradient, without
        noise.
        """
        return self.look_up(token_NP).index_copy(0, item_U - 1, teacher_UPh)


def packed(x_BTh: Tensor, there_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What is there, in its order, at the left end of as few columns as the fullest row needs; which of them are."""
    most = max(1, int(there_BT.sum(1).max()))
    order_BT = (~there_BT).long().argsort(dim=1, stable=True)[:, :most]
    return x_BTh.gather(1, order_BT[..., None].expand(-1, -1, x_BTh.shape[2])), there_BT.gather(1, order_BT)
