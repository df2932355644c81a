"""A trained model of any kind in Python: `load` a checkpoint, `recommend` items by their ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from compose import restore
from data import recent
from metrics import EvalOptions
from model import GenerativeModel
from readers.splits import DataOptions
from recommenders.base import Model
from recommenders.protocol import Recommendation, TopK, unsound
from settings import Config
from utils import Problem, nearest, quoted

EXCLUDED = 100  # denied items that a wider search makes up for; more of them make a tree of the others


class Candidates(NamedTuple):
    """Which items may be recommended: how many; the only ones (None: the whole catalogue); those of the catalogue that
    are left out by a search that is wider by their number, so that the others keep their scores.
    """

    size: int
    candidates_M: Tensor | None
    excluded: list[int]


@dataclass(frozen=True)
class Loaded:
    """A trained model of any kind, ready to recommend; holds no state of its callers, so threads may share it."""

    cfg: Config
    model: Model
    number: dict[str, int]  # item number of an id, from 1
    items: list[str]  # ids in catalogue order
    titles: list[str]
    split_hash: str | None  # of the data it was trained on
    source: str  # the file it came from

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, *, allow: Iterable[str] | None = None,
        deny: Iterable[str] = (),
    ) -> list[list[Recommendation]]:  # fmt: skip
        """The best k items for each history of item ids, best first. Histories are oldest first, of any length.

        allow: the only items that may be recommended, None for all; deny: items that may not. With `mask_seen` items of
        the history may not either. A list is shorter than k where fewer are left. Problem names an unknown id.
        """
        if k < 1:
            raise Problem(f"k: expected a whole number from 1, got {k!r}")
        wanted = [numbers(history, self.number, f"history {i}") for i, history in enumerate(histories)]
        if empty := [i for i, history in enumerate(wanted) if not history]:
            raise Problem(f"history {empty[0]}: needs at least one item")
        offer = self.offer(
            None if allow is None else numbers(allow, self.number, "allow"), numbers(deny, self.number, "deny")
        )
        found: list[list[Recommendation]] = []
        size = self.cfg[EvalOptions].eval_batch_size
        for begin in range(0, len(wanted), size):
            found += self.hits(self.rank(wanted[begin : begin + size], k, offer))
        return found

    def offer(self, allow: Iterable[int] | None, deny: Iterable[int]) -> Candidates:
        """The items allowed (None: all) less those denied, by their numbers."""
        refused, device = set(deny), next(self.model.parameters()).device
        if allow is None and len(refused) <= EXCLUDED:
            return Candidates(len(self.items) - len(refused), None, sorted(refused))
        left = sorted(set(range(1, 1 + len(self.items)) if allow is None else allow) - refused)
        return Candidates(len(left), torch.tensor(left, dtype=torch.long, device=device), [])

    def rank(self, histories: Sequence[Sequence[int]], k: int, offer: Candidates | None = None) -> TopK:
        """Lists of at most k item numbers for some histories of item numbers, one batch.

        offer: which items may be recommended, None for the whole catalogue. Problem when a score is not finite.
        """
        size, candidates_M, excluded = offer or self.offer(None, ())
        if (k := min(k, size)) == 0:
            return TopK(torch.zeros(len(histories), 0, dtype=torch.long), torch.zeros(len(histories), 0))
        longest, seen = self.cfg[DataOptions].max_his_len, self.cfg[EvalOptions].mask_seen
        budget = self.cfg[DataOptions].history_tokens
        history_BS = left_padded([recent(history, longest, budget, self.model.item_tokens) for history in histories])
        excluded_BS = left_padded([[*excluded, *(history if seen else ())] for history in histories])
        device = next(self.model.parameters()).device
        # a search looks as much further as is excluded out; the others leave out before they choose
        wider = {"wider": len(excluded)} if isinstance(self.model, GenerativeModel) else {}
        found = self.model.recommend(history_BS.to(device), k, excluded_BS.to(device), candidates_M, **wider)
        if bool(unsound(found.score_BW, excluded=bool(excluded_BS.any()) or candidates_M is not None).any()):
            raise Problem(
                f"{self.source}: its scores are not finite, its training diverged; use another checkpoint, or train it "
                "again with lower learning rates"
            )
        return TopK(found.item_BW[:, :k], found.score_BW[:, :k])

    def hits(self, found: TopK) -> list[list[Recommendation]]:
        """Lists as people read them."""
        rows = zip(found.item_BW.tolist(), found.score_BW.tolist(), strict=True)
        return [
            [Recommendation(self.items[i - 1], self.titles[i - 1], s) for i, s in zip(*row, strict=True) if i > 0]
            for row in rows
        ]


def load(path: str | Path, overrides: Sequence[str] = (), device: str = "cpu") -> Loaded:
    """A trained model from its `best_model.pth`, or the folder that scripts/export.py made of it; overrides: options
    that may differ from its training, as `--key=value` (`--num_beams=50`). Nothing in a file is executed; Problem when
    it is damaged.
    """
    return loaded_of(restore.restore(path, overrides), path, device)


def loaded_of(restored: restore.Restored, path: str | Path, device: str = "cpu") -> Loaded:
    """What a restored checkpoint recommends with, on a device; path: where it came from, for messages."""
    cfg, model, state = restored
    number = {token: i for i, token in enumerate(state["items"], 1)}
    return Loaded(cfg, model.to(device), number, state["items"], state["titles"], state.get("split"), str(path))


def numbers(ids: Iterable[str], number: dict[str, int], source: str) -> list[int]:
    """Item numbers of some ids; Problem names the first that is not in the catalogue, and how many more are not."""
    found = list(ids)
    if lost := [token for token in found if token not in number]:
        more = f", nor are {len(lost) - 1} more; leave them out" if len(lost) > 1 else ""
        raise Problem(f"{source}: item {quoted(lost[0])} is not in the catalogue{more}; {hint(lost[0], number)}")
    return [number[token] for token in found]


def hint(token: str, number: dict[str, int]) -> str:
    """What to do about an id that the catalogue does not have."""
    if len(words := token.split()) > 1 and all(word in number for word in words):
        return "separate ids by commas"
    near = nearest(token, number)
    return f"did you mean {quoted(near)}?" if near else "ids are those of the interaction log"


def left_padded(rows: list[list[int]]) -> Tensor:
    """Item numbers [B, S] of lists of unlike length, 0 in front."""
    width = max(1, *map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])
