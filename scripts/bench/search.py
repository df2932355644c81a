"""Evaluation: our beam search beside `generate` with a prefix trie, same weights, same beams."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from data import evaluation_plan, make_batch
from metrics import EvalOptions
from readers.dataset import Dataset
from readers.splits import DataOptions
from scripts.bench import plain
from scripts.bench.common import Figures, Job, device, figure, interleave, peak_memory_of, seconds

ROWS = {"cpu": 1280, "cuda": 25_600}  # beams of one batch; `generate` at 5,120 of Beauty's takes over 24 GB


def measure(job: Job) -> Figures:
    """users/s and peak memory per number of beams; both sides take batches of as many users."""
    memory = [
        peak_memory_of(_widest, job, side) for side in (OurSearch, PlainSearch)
    ]  # while this process holds little
    data, found = job.data(), {}
    ours, theirs = OurSearch(job, data), PlainSearch(job, data)
    for width in job.beams:
        sides = {"ours": partial(ours.users_per_s, width), "plain": partial(theirs.users_per_s, width)}
        speed = interleave(job.rounds, sides)
        name = "" if width == job.beams[0] else f"_{width}_beams"
        found[f"users_per_s{name}"] = figure(speed["ours"], speed["plain"])
    return {**found, "peak_memory_gb": figure(*memory)}


def users_at_once(job: Job, width: int) -> int:
    """Users of a batch: as configured, fewer where their beams would not fit in memory on the plain side."""
    return max(1, min(job.cfg[EvalOptions].eval_batch_size, ROWS[device().type] // width))


def _widest(job: Job, side: Callable[[Job, Dataset], Any]) -> None:
    search = side(job, job.data())
    search.run(search.longest_rows(job.beams[0]), job.beams[0])


class OurSearch:
    """`recommend` on batches spread evenly over the evaluation's plan, which is sorted by length."""

    def __init__(self, job: Job, data: Dataset) -> None:
        self.job, self.longest, self.split = job, job.cfg[DataOptions].max_his_len, data.test
        self.model = job.model("two_stage", data).eval()
        self.model.search = replace(self.model.search, num_beams=1)  # as many beams as a list asks for, no more

    def plan(self, width: int) -> list[np.ndarray]:
        return evaluation_plan(self.split, users_at_once(self.job, width), self.longest)

    def rows(self, width: int, turn: int) -> list[np.ndarray]:
        plan = self.plan(width)
        n, each = len(plan), min(len(plan), 4 if self.job.quick else 16)
        return [plan[int((i + 0.5 + 0.1 * turn) * n / each) % n] for i in range(each)]

    def longest_rows(self, width: int) -> np.ndarray:
        return self.plan(width)[0]

    def run(self, rows: np.ndarray, width: int) -> None:
        batch = make_batch(self.split, rows, self.longest).to(device())
        self.model.recommend(batch.history_BS, width)

    def users_per_s(self, width: int, turn: int) -> float:
        rows = self.rows(width, turn)
        return sum(map(len, rows)) / seconds(lambda: [self.run(r, width) for r in rows])  # type: ignore[func-returns-value]


class PlainSearch:
    """Random batches of the same number of users through `generate`."""

    def __init__(self, job: Job, data: Dataset) -> None:
        cfg, ours = job.cfg, job.model("two_stage", data)
        self.job, self.longest, self.split = job, cfg[DataOptions].max_his_len, data.test
        self.tokens, self.levels = plain.Tokens(ours), ours.tokens_per_item
        self.model = plain.build(cfg, ours.sids.vocabulary).eval()
        plain.copy_weights(ours.recommender.cpu(), self.model)
        self.model.to(device())
        self.model.level_mask = self.model.level_mask.to(device())  # type: ignore[union-attr]
        self.trie = plain.NestedTrie(self.tokens.sid_NL[1:])
        self.order = np.random.default_rng(cfg[DataOptions].seed).permutation(len(data.test))

    def longest_rows(self, width: int) -> np.ndarray:
        lengths = self.split.lengths(self.longest, self.order)
        return np.concatenate([self.order[[int(np.argmax(lengths))]], self.order[: users_at_once(self.job, width) - 1]])

    def run(self, rows: np.ndarray, width: int) -> None:
        batch = self.tokens.batch(self.split, rows, self.longest)
        plain.beams(self.model, self.trie, {k: v.to(device()) for k, v in batch.items()}, width, self.levels)

    def users_per_s(self, width: int, turn: int) -> float:
        size = users_at_once(self.job, width)
        rows = self.order.take(range(turn * size, (turn + 1) * size), mode="wrap")
        return len(rows) / seconds(lambda: self.run(rows, width))
