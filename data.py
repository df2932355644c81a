"""From samples to batches: padded histories, distinct items, the plan of an epoch.

Shape letters: B samples, S history length, U distinct items of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from readers.splits import Split


class Batch(NamedTuple):
    """Item numbers run from 1; 0 pads. Histories are padded on the left."""

    history_BS: Tensor  # int64 item numbers
    target_B: Tensor  # int64 item numbers
    user_B: Tensor  # int64 user numbers
    item_U: Tensor  # int64 distinct item numbers of this part, no padding
    history_row_BS: Tensor  # rows of item_U, 0 on padding
    target_row_B: Tensor  # rows of item_U
    new_U: Tensor  # bool: no earlier part of the same optimizer step holds this item
    weight: Tensor  # float: this part's share of the step's samples

    def goals(self, targets: Literal["one", "next"]) -> Tensor:
        """Rows of item_U that a step predicts, [R]: each sample's target, or what follows each history item."""
        if targets == "one":
            return self.target_row_B
        next_BS = torch.cat([self.history_row_BS[:, 1:], self.target_row_B[:, None]], 1)
        return next_BS[self.history_BS > 0]

    def weightless(self) -> "Batch":
        """The same, counting nothing, like the part of a process without samples."""
        return self._replace(new_U=torch.zeros_like(self.new_U), weight=torch.zeros_like(self.weight))

    def to(self, device: torch.device) -> "Batch":
        return Batch._make(t.to(device, non_blocking=True) for t in self)


def histories(split: Split, rows: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """(history [B, S] padded on the left with 0, target [B]) of some samples."""
    end = split.position[rows]
    begin = split.begins(longest, rows)
    width = int((end - begin).max(initial=1))
    place = end[:, None] + np.arange(-width, 0)
    held = place >= begin[:, None]
    return np.where(held, split.items[np.where(held, place, 0)], 0), split.items[end]


def make_batch(
    split: Split, rows: np.ndarray, longest: int, *, seen: np.ndarray | None = None, weight: float = 1.0
) -> Batch:
    """Collate samples; `seen` holds the items that earlier parts of the same step count."""
    history, target = histories(split, rows, longest)
    item, row = np.unique(np.concatenate([history.ravel(), target]), return_inverse=True)
    if item[0] == 0:  # padding never reaches the tokenizer
        item, row = item[1:], np.maximum(row - 1, 0)
    new = np.ones(len(item), bool) if seen is None else ~np.isin(item, seen)
    arrays = (history, target, split.users(rows), item, row[: history.size].reshape(history.shape), row[history.size :])
    tensors = [torch.from_numpy(np.ascontiguousarray(a).astype(np.int64)) for a in arrays]
    return Batch._make([*tensors, torch.from_numpy(new), torch.tensor(weight, dtype=torch.double)])


PIECE = 1 << 16  # samples compared at a time


def sequences(split: Split, longest: int) -> Split:
    """The fewest samples whose every position is a target: a user's last one stands for those before it.

    A sample whose history and target are the history of the next one is contained in it, whether both
    lie in one user's sequence or come as rows of their own. Of a run that one history cannot hold, from its end
    backwards the next sample is kept whose target the last one has not met, so that each target of the split is met
    exactly once.
    """
    contained = np.zeros(len(split), bool)
    contained[:-1] = (np.diff(split.position) == 1) & (np.diff(split.users()) == 0)
    loose, unpriced = np.flatnonzero(~contained[:-1]), replace(split, budget=None)
    for begin in range(0, len(loose), PIECE):
        some = loose[begin : begin + PIECE]
        history, target = histories(unpriced, some, longest)  # a budget of tokens cuts both, and hides that they fit
        following, _ = histories(unpriced, some + 1, longest)
        grown = np.concatenate([history, target[:, None]], 1)[:, -longest:]
        width = max(grown.shape[1], following.shape[1])
        padded = [np.pad(x, ((0, 0), (width - x.shape[1], 0))) for x in (grown, following)]
        contained[some] = (padded[0] == padded[1]).all(1)
    end = np.flatnonzero(~contained)
    first, length = np.concatenate([[0], end[:-1] + 1]), split.lengths(longest)
    kept = [end[:0]]
    while len(end):
        kept.append(end)
        end = end - length[end]  # each item of a history but its first is a target, and so is the sample's own
        first, end = first[end >= first], end[end >= first]
    return replace(split, position=split.position[np.sort(np.concatenate(kept))])


@dataclass(frozen=True)
class Shape:
    """How a global batch is laid out over processes and parts."""

    batch_size: int  # samples per process and part
    processes: int = 1
    accumulation: int = 1
    rank: int = 0
    longest: int = 50
    tokens: int = 1 << 62  # most padded history tokens in one pass
    tokens_per_item: int = 4
    targets: Literal["one", "next", "all"] = "one"  # predicted of a sample: its target, every next item, every item
    share: float = 1.0  # samples that hold one of batch_size, where a sample is a whole sequence

    @property
    def global_batch(self) -> int:
        return max(1, round(self.batch_size * self.processes * self.accumulation * self.share))


def sizes(split: Split, shape: Shape, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """How much of a pass each history takes: tokens, where items have unlike many and the model reads each."""
    if split.spent is None or shape.tokens_per_item == 1:
        return split.lengths(shape.longest, rows) * shape.tokens_per_item
    return split.tokens(shape.longest, rows)


def within(split: Split, budget: int | None, token_N: np.ndarray | None) -> Split:
    """A split whose histories keep to a budget of tokens; token_N: those of each item (`Ranker.item_tokens`)."""
    if token_N is None or (budget is None and (token_N == token_N[0]).all()):
        return split
    return split.priced(token_N, budget)


def recent(history: Sequence[int], longest: int, budget: int | None, token_N: np.ndarray | None) -> list[int]:
    """The newest items of a history as `within` has them."""
    if budget is None:
        return list(history[-longest:])
    split = Split(np.array([*history, history[-1]]), np.array([0, len(history) + 1]), np.array([len(history)]))
    return list(history[-int(within(split, budget, token_N).lengths(longest)[0]) :])


MEGA = 50  # global batches that are sorted by length together


def epoch_plan(split: Split, shape: Shape, seed: int, epoch: int) -> list[np.ndarray]:
    """Global batches of one epoch: a fresh random order, neighbours of like length.

    Samples are shuffled, sorted by length within mega-batches of 50 batches, cut, and the batches
    shuffled again. A function of (seed, epoch, global batch size) alone, hence the same on any number
    of processes.
    """
    random = np.random.default_rng([seed, epoch, 7])
    order = random.permutation(len(split))
    lengths = sizes(split, shape)
    size, batches = shape.global_batch, []
    for begin in range(0, len(order), size * MEGA):
        mega = order[begin : begin + size * MEGA]
        mega = mega[np.argsort(lengths[mega], kind="stable")]
        batches += [mega[i : i + size] for i in range(0, len(mega), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def padding_factor(split: Split, plan: Sequence[np.ndarray], longest: int) -> float:
    """Padded over real history items of an epoch."""
    lengths = split.lengths(longest)
    padded = sum(int(lengths[b].max()) * len(b) for b in plan)
    return padded / max(int(lengths.sum()), 1)


PROBED = 256  # samples that are looked at before an epoch
PROBE_TOKENS = 8192  # in one pass of them: no more memory than a step takes with the smallest default budget


def sample(split: Split, shape: Shape, seed: int, epoch: int) -> list[Batch]:
    """Some samples, in parts that weigh together 1: the same on every process and however batches are cut."""
    rows = np.random.default_rng([seed, epoch, 11]).permutation(len(split))[:PROBED]
    rows = rows[np.argsort(split.lengths(shape.longest, rows), kind="stable")]
    return Steps(split, [rows], replace(shape, processes=1, rank=0, accumulation=1, tokens=PROBE_TOKENS))[0]


class Steps:
    """The optimizer steps of one epoch as this process sees them: element i is the parts of step i.

    Each global batch is dealt out to (accumulation part, process) in turn, and a part that exceeds
    the token budget is cut further. A part weighs what it has of the step's targets; the weights of all
    parts, over all processes, sum to 1.
    """

    def __init__(self, split: Split, plan: Sequence[np.ndarray], shape: Shape) -> None:
        self.split, self.plan, self.shape = split, plan, shape

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[Batch]:
        rows, s = self.plan[step], self.shape
        parts, seen = [], np.zeros(0, np.int32)
        deals = -(-len(rows) // s.processes)  # later ones are empty on every process
        for deal in range(min(s.accumulation, deals)):
            for rank in range(s.processes):
                own = rows[deal * s.processes + rank :: s.processes * s.accumulation]
                if rank == s.rank:
                    parts += self._cut(own, rows, seen)
                if s.processes * s.accumulation > 1:  # a lone part counts all its items
                    seen = np.union1d(seen, self._items(own))
        return parts

    def widest(self) -> Batch:
        """The part of the epoch that takes most room, of the longest histories among equals; it counts nothing."""
        s, lengths = self.shape, self.split.lengths(self.shape.longest)

        def size(rows: np.ndarray) -> tuple[int, int]:
            length, own = int(lengths[rows].max()), -(-len(rows) // (s.processes * s.accumulation))
            most = max(1, s.tokens // (length * s.tokens_per_item))
            return -(-own // -(-own // most)) * length, length

        parts = Steps(self.split, [max(self.plan, key=size)], s)[0]
        return max(parts, key=lambda part: part.history_BS.numel()).weightless()

    def _items(self, rows: np.ndarray) -> np.ndarray:
        history, target = histories(self.split, rows, self.shape.longest)
        return np.union1d(history, target)

    def _targets(self, rows: np.ndarray) -> int:
        """How much a model predicts of these samples."""
        extra = {"one": 1, "next": 0, "all": 1}[self.shape.targets]
        lengths = self.split.lengths(self.shape.longest, rows) if self.shape.targets != "one" else 0 * rows
        return int((lengths + extra).sum())

    def _cut(self, own: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> list[Batch]:
        if not len(own):  # a process without samples still takes part in the step
            return [make_batch(self.split, rows[:1], self.shape.longest, seen=self._items(rows), weight=0.0)]
        most = max(1, self.shape.tokens // max(1, int(sizes(self.split, self.shape, own).max())))
        parts = []
        for chunk in np.array_split(own, -(-len(own) // most)):
            weight = self._targets(chunk) / self._targets(rows)
            parts.append(make_batch(self.split, chunk, self.shape.longest, seen=seen, weight=weight))
            seen = np.union1d(seen, parts[-1].item_U.numpy())
        return parts


def evaluation_plan(split: Split, batch_size: int, longest: int) -> list[np.ndarray]:
    """All samples once, sorted by history length so that little is padded, longest first."""
    order = np.argsort(-split.lengths(longest), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def seen_items(split: Split, rows: np.ndarray) -> Tensor:
    """Everything before each sample's target, [B, longest], padded with 0."""
    return torch.from_numpy(histories(replace(split, budget=None), rows, 1 << 30)[0].astype(np.int64))
