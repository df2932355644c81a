"""What training, evaluation and search ask of whatever ranks items.

Shape letters: B users, S history length, k list length, N items, R rows that a step predicts, P places of
a SID, V tokens of a place, U distinct items of a batch, h width.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from data import Batch

Logs = dict[str, Tensor]
AllReduce = Callable[[Tensor], Tensor]  # sums a tensor over all processes
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
Targets = Literal["one", "next", "all"]


class Found(NamedTuple):
    """Lists of items for B users, best first."""

    item_BW: Tensor  # item numbers from 1; 0 = no item
    score_BW: Tensor  # log-probability or score; -inf where there is no item


def unsound(score_BW: Tensor, *, banned: bool) -> Tensor:
    """Users [B] whose list means nothing: a score is NaN or +inf, which sorting puts first, or all are -inf.

    -inf alone marks a place that found no item; a whole list of them is sound only where items were banned.
    """
    lost_B = (score_BW.isnan() | (score_BW == torch.inf)).any(1)
    return lost_B if banned else lost_B | (score_BW == -torch.inf).all(1)


class Hit(NamedTuple):
    """One recommendation as a person reads it."""

    item: str
    title: str  # empty where none is known
    score: float  # log-probability of the item's SID, or of the item


class Ranker(Protocol):
    """Recommends items; all that evaluation asks for."""

    @property
    def n_items(self) -> int: ...
    @property
    def item_tokens(self) -> np.ndarray | None:
        """Tokens of each item, [N], for budgets of tokens; None for models over items."""

    @property
    def free_length(self) -> int:
        """Length of the lists that cost no more than shorter ones."""

    def recommend(
        self, history_BS: Tensor, k: int, banned_BS: Tensor | None = None, among_M: Tensor | None = None
    ) -> Found:
        """k items for each history (item numbers, 0 pads on the left), best first.

        banned_BS: items never returned, 0 bans nothing; among_M: the only items that may be returned,
        None for the whole catalogue.
        """

    def groups(self) -> dict[str, Tensor]:
        """Further ways to count a hit: name -> group of each item, [N + 1], -1 for none (and for padding)."""

    def eval(self) -> Any: ...
    def to(self, device: torch.device | str) -> Any: ...


class Scorer(Protocol):
    """Scores the tokens of the next place for rows of a search, [R, V], as log-probabilities.

    token_R is what was just appended and parent_R the row it was appended to (both None at place 0, where
    there is a row a user). among_RC: the only tokens that are wanted; then [R, C], up to a constant a row.
    """

    def __call__(
        self, place: int, token_R: Tensor | None, parent_R: Tensor | None, among_RC: Tensor | None = None
    ) -> Tensor: ...


class Codes(Protocol):
    """The learned codes of U items as a network reads them: perhaps soft, so that gradient reaches the tokenizer."""

    @property
    def index(self) -> list[Tensor]:
        """Hard codes [U], place by place."""

    def lookup(self, level: int, table_Kh: Tensor) -> Tensor:
        """Embedded codes of a place, [U, h]."""


class Said(NamedTuple):
    """What a network makes of histories, a row R a target: the state [R, h] that has not seen its target and foretells
    it, and place by place the logits [R, V] of the tokens that spell it.
    """

    state_Rh: Tensor
    logits: Iterator[Tensor]


class TokenNetwork(Protocol):
    """Reads the tokens of a history and spells those of an item; knows nothing of where tokens come from.

    Made of (its Options, tokens of each place, longest history, items, uneven). uneven: SIDs have unlike lengths, and
    the last token of every place stands behind an item's end; it is nothing to read, and never a target.
    """

    @property
    def targets(self) -> Literal["one", "next"]: ...
    @property
    def taught(self) -> Literal["one", "next"]:
        """The targets that are spelled with teacher_UPh; a history's own tokens spell the others."""

    @property
    def tokens_per_item(self) -> int: ...
    @property
    def width(self) -> int:
        """h, of embedded tokens and states."""

    @property
    def item_loss(self) -> float:
        """Weight of a second loss, of the whole item; above 0 it has `item_logits`, and the items are a further place
        behind the last one in a scorer.
        """

    @property
    def item_rank(self) -> float:
        """Weight of that place where beams are ranked."""

    def catalogue(self, token_NP: Tensor, item_U: Tensor, teacher_UPh: Tensor) -> Tensor:
        """Embedded tokens of all items, [N, P, h]; those of U of them are teacher_UPh."""

    def item_logits(self, state_Rh: Tensor, token_NPh: Tensor) -> Tensor:
        """Scores [R, N] of whole items."""

    def embed(self, codes: Codes, token_UP: Tensor) -> Tensor:
        """Embedded tokens of U items, [U, P, h]: learned places from `codes`, the others from token_UP.

        Zero behind an item's end.
        """

    def __call__(
        self, history_UPh: Tensor, batch: Batch, teacher_UPh: Tensor, open_UP: Tensor | None = None,
        real_UP: Tensor | None = None, /,
    ) -> Said:  # fmt: skip
        """Logits [R, V] place by place, R = Batch.goals(targets): teacher-forced with teacher_UPh.

        open_UP: at which places an item's token is a choice; then only the rows whose target's is are wanted.
        real_UP: which places an item has, where lengths differ; then open_UP is given, and says no more than that.
        """

    def scorer(self, tokens: Callable[[Tensor], Tensor], history_BS: Tensor) -> Scorer:
        """The scorer of a search; what does not depend on beams runs once per user. tokens: item numbers
        [...] -> their tokens [..., P].
        """

    def parameters(self) -> Iterator[Any]: ...
