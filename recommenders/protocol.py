"""What training, evaluation and search ask of whatever ranks items.

Shape letters: B users, S history length, k list length, N items, R rows that a step predicts, P positions of
a SID, V tokens of a position, U distinct items of a batch, h width.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

Logs = dict[str, Tensor]
AllReduce = Callable[[Tensor], Tensor]  # sums a tensor over all processes
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
Targets = Literal["one", "next", "all"]


class TopK(NamedTuple):
    """Lists of items for B users, best first."""

    item_BW: Tensor  # item numbers from 1; 0 = no item
    score_BW: Tensor  # log-probability or score; -inf where there is no item


def unsound(score_BW: Tensor, *, excluded: bool) -> Tensor:
    """Users [B] whose list means nothing: a score is NaN or +inf, which sorting puts first, or all are -inf.

    -inf alone marks a position that found no item; a whole list of them is sound only where items were excluded.
    """
    lost_B = (score_BW.isnan() | (score_BW == torch.inf)).any(1)
    return lost_B if excluded else lost_B | (score_BW == -torch.inf).all(1)


class Recommendation(NamedTuple):
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
        self, history_BS: Tensor, k: int, excluded_BS: Tensor | None = None, candidates_M: Tensor | None = None
    ) -> TopK:
        """k items for each history (item numbers, 0 pads on the left), best first.

        excluded_BS: items never returned, 0 bans nothing; candidates_M: the only items that may be returned,
        None for the whole catalogue.
        """

    def groups(self) -> dict[str, Tensor]:
        """Further ways to count a hit: name -> group of each item, [N + 1], -1 for none (and for padding)."""

    def eval(self) -> Any:
        """Without dropout from here on, as `nn.Module.eval`."""

    def to(self, device: torch.device | str) -> Any:
        """On another device, as `nn.Module.to`."""


class Scorer(Protocol):
    """Scores the tokens of the next position for rows of a search, [R, V], as log-probabilities.

    token_R is what was just appended and parent_R the row it was appended to (both None at position 0, where
    there is a row a user). candidates_RC: the only tokens that are wanted; then [R, C], up to a constant a row.
    """

    def __call__(
        self, position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
    ) -> Tensor: ...


class Codes(Protocol):
    """The learned codes of U items as a network reads them: perhaps soft, so that gradient reaches the tokenizer."""

    @property
    def index(self) -> list[Tensor]:
        """Hard codes [U], position by position."""

    def lookup(self, level: int, table_Kh: Tensor) -> Tensor:
        """Embedded codes of a position, [U, h]."""


class NetworkOutput(NamedTuple):
    """What a network makes of histories, a row R a target: the state [R, h] that has not seen its target and predicts
    it, and position by position the logits [R, V] of the tokens that spell it.
    """

    state_Rh: Tensor
    logits: Iterator[Tensor]
