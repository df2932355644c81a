"""Which interactions train, which validate and which test: leave-one-out, by time, or as given.

Everything works on flat arrays: users one after another, each user's rows in time order, rows of equal
time in the order of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from readers.columns import Column, groups_of
from settings import option
from utils import Problem, log, quoted


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    dataset: str = option("demo", "name of the data set, also the name of its folder")
    data_path: str = option(
        "./dataset", "folder that holds <dataset>/ or the data files themselves, or a .csv file", free=True, path=True
    )
    data_format: Literal["auto", "inter", "inter_splits", "jsonl", "json", "csv"] = option(
        "auto",
        "layout of the interactions: one .inter file, three .inter files, .jsonl, .inter.json or .csv; auto detects it",
    )
    users_col: str = option("UserId", "column of user ids in a .csv file")
    items_col: str = option("ProductId", "column of item ids in a .csv file")
    time_col: str = option("Timestamp", "column of timestamps (numbers) in a .csv file")
    k_core: int = option(
        0, "minimum number of interactions per user and per item, applied until nothing changes; 0 = no filter", ge=0
    )
    split: Literal["leave_one_out", "time", "time_groups"] = option(
        "leave_one_out",
        "how the data are split: leave_one_out = each user's last item for testing, time = the first item after a "
        "point in time, time_groups = one such point for each of two groups of users, as in DiffSASRec's program",
    )
    time_quantile: float = option(
        0.95, "share of interactions before the test period, above 0", gt=0, le=1, needs=("split: time time_groups",)
    )
    semantic_emb_path: str | None = option(
        None, "content embeddings, a .npy file [items, D]; default: the only *.emb*.npy beside the data", path=True
    )
    max_his_len: int = option(50, "maximum length of a history, in items", ge=1, le=10**6, judges=True)
    history_tokens: int | None = option(
        None,
        "maximum length of a history, in tokens of semantic IDs (whole items, newest first); null = no limit",
        ge=1, judges=True, needs=("semantic IDs",),
    )
    short_users: Literal["refuse", "drop"] = option(
        "refuse", "whether users with fewer than 3 interactions are an error (refuse) or left out (drop)"
    )
    seed: int = option(2020, "seed of all random numbers", ge=0, le=2**31 - 1)


Facts = dict[str, float]
TEST_SHARE = 0.2  # of the users, with split: time_groups
SHORTEST = 3  # one item each to know, validate and test; a training sample needs a user with one more


@dataclass(frozen=True)
class Split:
    """Samples of one part: target = items[position], history = what stands before it.

    items: int32 [n], 1..N; offsets: int64 [users + 1], where each user's sequence begins;
    position: int64 [samples]; spent: int64 [n + 1], tokens of all rows before each, where an item's tokens count;
    budget: the most tokens of a history.
    """

    items: np.ndarray
    offsets: np.ndarray
    position: np.ndarray
    spent: np.ndarray | None = None
    budget: int | None = None

    def __len__(self) -> int:
        return len(self.position)

    @property
    def targets(self) -> np.ndarray:
        found: np.ndarray = self.items[self.position]
        return found

    def users(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """User number of each sample."""
        found: np.ndarray = np.searchsorted(self.offsets, self.position[rows], side="right") - 1
        return found

    def lengths(self, longest: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """History length of each sample, at most `longest`."""
        found: np.ndarray = self.position[rows] - self.begins(longest, rows)
        return found

    def begins(self, longest: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Where each history begins: it has at most `longest` items and `budget` tokens, but at least one item."""
        end = self.position[rows]
        begin: np.ndarray = np.maximum(self.offsets[self.users(rows)], end - longest)
        if self.spent is not None and self.budget is not None:
            affordable = np.searchsorted(self.spent, self.spent[end] - self.budget)
            begin = np.maximum(begin, np.minimum(affordable, end - 1))
        return begin

    def tokens(self, longest: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Tokens of each sample's history; only where they count."""
        assert self.spent is not None
        found: np.ndarray = self.spent[self.position[rows]] - self.spent[self.begins(longest, rows)]
        return found

    def priced(self, token_N: np.ndarray, budget: int | None) -> "Split":
        """The same samples where item n + 1 has token_N[n] tokens, and a history at most `budget`."""
        spent = np.concatenate([[0], np.cumsum(token_N[self.items - 1], dtype=np.int64)])
        return replace(self, spent=spent, budget=budget)

    def alone(self) -> "Split":
        """The same samples without the rows behind a user's last target: parts may share one array of items."""
        end = self.offsets[:-1].copy()
        np.maximum.at(end, self.users(), self.position + 1)
        length = end - self.offsets[:-1]
        offsets = np.concatenate([[0], length.cumsum()])
        moved = self.offsets[:-1] - offsets[:-1]
        rows = np.arange(offsets[-1]) + np.repeat(moved, length)
        return Split(self.items[rows], offsets, self.position - moved[self.users()])


@dataclass(frozen=True)
class Parts:
    """The three parts, how often the training part holds each item up to the largest there, and figures to report."""

    train: Split
    valid: Split
    test: Split
    count: np.ndarray
    facts: Facts = field(default_factory=dict)


def cold_targets(split: Split, count: np.ndarray) -> int:
    """Samples whose target the training part never shows."""
    return int((~np.isin(split.targets, count.nonzero()[0])).sum())


# ---------------------------------------------------------------- leave-one-out


def leave_one_out(
    items: np.ndarray, offsets: np.ndarray, names: Sequence[str], short_users: str, source: Path,
    folder: Path | None = None,
) -> Parts:  # fmt: skip
    """Last item to test, the one before to valid, every earlier one with a history to train.

    folder: where arrays as long as the log are kept, None for memory.
    """
    lengths = np.diff(offsets)
    short = lengths < SHORTEST
    if short.any():
        first = int(short.argmax())
        told = f"{short.sum()} users have fewer than {SHORTEST} interactions, first {quoted(names[first])} with "
        told += str(lengths[first])
        if short_users == "refuse":
            raise Problem(f"{source}: {told}; set short_users: drop to leave them out")
        log.info(f"{source}: {told}; they are left out")
        kept = Column(np.int32, folder)
        for a, b in groups_of(offsets):
            kept.add(items[offsets[a] : offsets[b]][np.repeat(~short[a:b], lengths[a:b])])
        items, offsets = kept.array(), np.concatenate([[0], lengths[~short].cumsum()])
    train = Column(np.int64, folder)
    for a, b in groups_of(offsets):
        size = np.diff(offsets[a : b + 1])
        left = np.repeat(offsets[a + 1 : b + 1], size) - np.arange(offsets[a], offsets[b])  # 1 on the last item
        train.add(offsets[a] + np.flatnonzero((left >= 3) & (left < np.repeat(size, size))))
    splits = [Split(items, offsets, p) for p in (train.array(), offsets[1:] - 2, offsets[1:] - 1)]
    return parts_of(splits, training_counts(splits[0], splits[1]))


def as_given(items: np.ndarray, offsets: np.ndarray, part: np.ndarray) -> list[Split]:
    """part: 0 train, 1 valid, 2 test for each row."""
    has_history = np.ones(len(items), bool)
    has_history[offsets[:-1]] = False
    return [Split(items, offsets, np.flatnonzero(has_history & (part == p))) for p in range(3)]


def training_counts(train: Split, valid: Split) -> np.ndarray:
    """How often the training part holds each item: whatever stands before a user's validation item.

    Where a sample is a row of its own, its target, and its history unless that is another sample whole, or all but its
    first item (a history that was cut): a user's samples tell each item once, a lone window all of its items.
    """
    if train.items is valid.items:
        end, count = train.offsets[1:].copy(), np.zeros(0, np.int64)
        end[valid.users()] = valid.position
        for a, b in groups_of(train.offsets):
            place = np.arange(train.offsets[a], train.offsets[b])
            held = place < np.repeat(end[a:b], np.diff(train.offsets[a : b + 1]))
            more = np.bincount(train.items[place[held]], minlength=len(count))
            more[: len(count)] += count
            count = more
        return count
    rows = [train.items[a : b + 1] for a, b in zip(train.offsets[train.users()], train.position, strict=True)]
    whole = {row.tobytes() for row in rows} | {row[1:].tobytes() for row in rows if len(row) > 2}
    begun = [row[:-1] for row in rows if row[:-1].tobytes() not in whole]
    return np.bincount(np.concatenate([train.targets, *begun]))


def parts_of(splits: Sequence[Split], count: np.ndarray) -> Parts:
    """Three splits with what is to be reported of them."""
    train, valid, test = splits
    cold: Facts = {f"cold_{name}_targets": cold_targets(s, count) for name, s in (("valid", valid), ("test", test))}
    return Parts(train, valid, test, count, cold)


# ---------------------------------------------------------------- by time


@dataclass(frozen=True)
class Log:
    """Rows user by user: item and time of each, [n]; offsets: where each user's begin, [users + 1]."""

    item: np.ndarray
    time: np.ndarray
    offsets: np.ndarray

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def user(self) -> np.ndarray:
        """User number of each row, [n]."""
        return np.repeat(np.arange(self.users), np.diff(self.offsets))

    def of(self, chosen: np.ndarray) -> "Log":
        kept = np.bincount(self.user[chosen], minlength=self.users)
        return Log(self.item[chosen], self.time[chosen], np.concatenate([[0], kept.cumsum()]))

    def split(self, kept: np.ndarray, target: np.ndarray) -> Split:
        """The rows `kept`, with a sample for each row `target`, [n] bool both."""
        offsets = np.searchsorted(self.user[kept], np.arange(self.users + 1))
        return Split(self.item[kept], offsets, np.flatnonzero(target[kept]))

    def quantile(self, q: float) -> float:
        """A time that occurs: the nearest to the q-quantile over rows."""
        return float(np.quantile(self.time, q, method="nearest"))


def by_time(rows: Log, q: float, source: Path) -> Parts:
    """One cut T for everybody at the q-quantile of time, and T_val likewise among the rows before T.

    Trained on: rows before T_val. Validated on: users with rows before T_val, the target being their
    first row from T_val to T whose item occurred before T_val; tested likewise from T on, with every
    row before T as history. Rows at a cut lie after it.
    """
    _refuse_places(rows, source)
    if rows.time.min() == rows.time.max():
        raise Problem(f"{source}: all timestamps are equal, there is nothing to cut; use split: leave_one_out")
    cut = rows.quantile(q)
    past = rows.time < cut
    valid_cut = rows.of(past).quantile(q) if past.any() else cut
    trained = rows.time < valid_cut
    valid, valid_facts = _first_after(rows, valid_cut, cut)
    test, test_facts = _first_after(rows, cut, np.inf)
    begins = np.ones(len(rows.user), bool)
    begins[1:] = np.diff(rows.user) > 0
    count = np.bincount(rows.item[trained])
    facts: Facts = {
        "time_cut": cut, "valid_time_cut": valid_cut, "rows_before_cut": int(past.sum()),
        "users_before_cut": len(np.unique(rows.user[past])), "training_rows": int(trained.sum()),
        **{f"valid_{k}": v for k, v in valid_facts.items()}, **{f"test_{k}": v for k, v in test_facts.items()},
        "cold_valid_targets": cold_targets(valid, count), "cold_test_targets": cold_targets(test, count),
    }  # fmt: skip
    return Parts(rows.split(trained, ~begins), valid, test, count, facts)


def _refuse_places(rows: Log, source: Path) -> None:
    begin = np.searchsorted(rows.user, rows.user)
    if np.array_equal(rows.time, np.arange(len(rows.time)) - begin):
        raise Problem(
            f"{source}: timestamps are 0, 1, 2, ... for every user and cannot be compared between users; "
            "use split: leave_one_out"
        )


def _first_after(rows: Log, begin: float, end: float) -> tuple[Split, Facts]:
    """A sample for each user with rows before `begin`: the first row from then on (before `end`) whose
    item occurred before `begin`; the history is every row before `begin`.
    """
    before, after = rows.time < begin, (rows.time >= begin) & (rows.time < end)
    known = np.isin(rows.item, rows.item[before])
    has_past = np.bincount(rows.user[before], minlength=rows.users) > 0
    possible = np.flatnonzero(after & known & has_past[rows.user])
    _, first = np.unique(rows.user[possible], return_index=True)
    target = np.zeros(len(rows.user), bool)
    target[possible[first]] = True
    there = np.bincount(rows.user[after], minlength=rows.users) > 0
    facts: Facts = {
        "users": len(first), "users_without_past": int((there & ~has_past).sum()),
        "users_with_cold_items_only": int((there & has_past).sum()) - len(first),
        "cold_rows": int((after & ~known & has_past[rows.user]).sum()),
    }  # fmt: skip
    return rows.split(before | target, target), facts


def by_time_as_published(rows: Log, q: float, test_share: float, seed: int) -> Parts:
    """The split of DiffSASRec's program: users in two groups, a cut for each, one target a user.

    Users without a target are not trained on, and a test item need only occur in the test group's own
    past. It has no validation part; here the training targets serve.
    """
    users = np.unique(rows.user)
    chosen = np.random.default_rng(seed).choice(users, int(test_share * len(users)), replace=False)
    tested = np.isin(rows.user, chosen)
    parts: list[Split] = []
    facts: Facts = {}
    for name, group in (("train", rows.of(~tested)), ("test", rows.of(tested))):
        cut = group.quantile(q) if len(group.user) else 0.0
        split, found = _first_after(group, cut, np.inf)
        kept = np.isin(np.arange(rows.users), split.users())
        parts.append(_only(split, kept))
        facts |= {f"{name}_time_cut": cut} | {f"{name}_{k}": v for k, v in found.items()}
    train, test = parts
    count = np.bincount(train.items)
    facts["cold_test_targets"] = cold_targets(test, count)
    log.warning("split as published: no validation part, the training targets choose the checkpoint")
    return Parts(train, train, test, count, facts)


def _only(split: Split, kept: np.ndarray) -> Split:
    """The split without the rows of users that have no sample; [users] bool."""
    lengths = np.diff(split.offsets)
    rows = np.repeat(kept, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths * kept)])
    return Split(split.items[rows], offsets, (np.cumsum(rows) - 1)[split.position])


def divide(
    rows: Log, names: Sequence[str], cfg: DataOptions, source: Path, folder: Path | None = None
) -> Parts:
    """The parts that `split` and its options ask for; folder: of long arrays, as in `leave_one_out`."""
    if cfg.split == "time_groups":
        return by_time_as_published(rows, cfg.time_quantile, TEST_SHARE, cfg.seed)
    if cfg.split == "time":
        return by_time(rows, cfg.time_quantile, source)
    return leave_one_out(rows.item, rows.offsets, names, cfg.short_users, source, folder)
