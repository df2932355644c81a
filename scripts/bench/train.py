"""Training: our steps, recommender-only and joint, beside a plain Hugging Face T5."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from compose import configure
from data import Steps, padding_factor
from readers.dataset import Dataset
from readers.splits import DataOptions
from recommenders.base import Model
from runs.folder import RunFolder
from scripts.bench import plain
from scripts.bench.common import Figures, Job, device, figure, interleave, peak_memory_of, seconds
from settings import Config
from trainer import Trainer, TrainOptions


def measure(job: Job) -> Figures:
    """samples/s of recommender-only and joint steps, padding, peak memory of each side."""
    memory = [peak_memory_of(widest_step, job, side) for side in (OurSteps, PlainSteps)]  # while this holds little
    data = job.data()
    ours: dict[str, Any] = {name: OurSteps(job, data, name) for name in ("two_stage", "diger")}
    theirs = PlainSteps(job, data)
    for side in (*ours.values(), theirs):
        side.warm_up()
    speed = interleave(job.rounds, {**{k: v.samples_per_s for k, v in ours.items()}, "plain": theirs.samples_per_s})
    joint = [a / b for a, b in zip(speed["two_stage"], speed["diger"], strict=True)]
    return {
        "samples_per_s": figure(speed["two_stage"], speed["plain"]),
        "joint_samples_per_s": figure(speed["diger"], speed["plain"]),
        "joint_step_cost": figure(joint),
        "padding_factor": figure(ours["two_stage"].padding, theirs.padding),
        "peak_memory_gb": figure(*memory),
    }


def compiled(job: Job) -> Figures:
    """samples/s of recommender-only steps through torch.compile, beside the same without; the wait for it is not
    counted. On a CPU the network is traced alone.
    """
    data, backend = job.data(), "inductor" if torch.cuda.is_available() else "eager"
    sides = {name: OurSteps(job, data) for name in ("compiled", "eager")}
    fit = sides["compiled"].fit
    fit.model = torch.compile(fit.model, backend=backend, dynamic=True)
    took = seconds(lambda: [side.run(0) for side in sides.values()])
    speed = interleave(job.rounds, {name: side.samples_per_s for name, side in sides.items()})
    return {"samples_per_s": figure(speed["compiled"], speed["eager"]), "first_steps_s": figure(took)}


def widest_step(job: Job, side: Callable[[Job, Dataset], Any] | None = None) -> None:
    """The step that needs the most memory, twice (optimizer state comes with the first)."""
    steps = (side or OurSteps)(job, job.data())
    steps.widest()
    steps.widest()


class Side(ABC):
    """One side of a comparison of steps."""

    @abstractmethod
    def run(self, turn: int) -> int:
        """Some steps; the number of samples."""

    def samples_per_s(self, turn: int) -> float:
        n = [0]
        took = seconds(lambda: n.append(self.run(turn)))
        return sum(n) / took


class OurSteps(Side):
    """The trainer's own optimizer step, on batches spread evenly over the lengths of an epoch."""

    def __init__(self, job: Job, data: Dataset, method: str = "two_stage") -> None:
        cfg = configure.change(job.cfg, method=method, run_name="benchmark")
        self.fit = trainer_of(cfg, job.model(method, data), data)
        plan = self.fit.plan(0)
        self.padding = padding_factor(data.train, plan, cfg[DataOptions].max_his_len)
        split, longest = self.fit.train_split, cfg[DataOptions].max_his_len
        by_length = sorted(plan, key=lambda rows: int(split.lengths(longest, rows).max()))
        self.steps = Steps(split, by_length, self.fit.shape)
        self.each = (4 if job.quick else 8) * (4 if self.fit.raw.sequences else 1)  # those are over sooner

    def run(self, turn: int) -> int:
        n, samples = len(self.steps), 0
        for i in range(self.each):
            place = int((i + 0.5 + 0.1 * turn) * n / self.each) % n
            self.step(place)
            samples += len(self.steps.plan[place])
        return round(samples / self.fit.shape.share)  # targets, however they are packed

    def step(self, place: int) -> None:
        self.fit.model.train()
        self.fit.step([part.to(device()) for part in self.steps[place]])

    def warm_up(self) -> None:
        self.step(0)

    def widest(self) -> None:
        self.step(len(self.steps) - 1)


def trainer_of(cfg: Config, model: Model, data: Dataset) -> Trainer:
    """The product's trainer over a model; nothing is written."""
    AcceleratorState._reset_state()  # one process measures unlike precisions
    acc = Accelerator(mixed_precision=cfg[TrainOptions].mixed_precision, cpu=not torch.cuda.is_available())
    with TemporaryDirectory() as folder:
        return Trainer(cfg, model, data, acc, RunFolder(Path(folder) / "run"), {}, lambda row, best: None)


class PlainSteps(Side):
    """Random batches, each padded to its longest sample; SDPA, fused optimizer, the same clipping."""

    def __init__(self, job: Job, data: Dataset) -> None:
        cfg = self.cfg = job.cfg
        ours = job.model("two_stage", data)
        self.tokens, self.split = plain.Tokens(ours), data.train
        torch.manual_seed(cfg[DataOptions].seed)
        self.model = plain.build(cfg, ours.sids.vocabulary).to(device()).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=cfg[TrainOptions].lr_rec, fused=True)
        self.order = np.random.default_rng(cfg[DataOptions].seed).permutation(len(data.train))
        size, longest = cfg[TrainOptions].batch_size, cfg[DataOptions].max_his_len
        self.padding = padding_factor(
            data.train, [self.order[i : i + size] for i in range(0, len(self.order), size)], longest
        )
        self.each = 1 if job.quick else 2

    def step(self, rows: np.ndarray) -> None:
        batch = self.tokens.batch(self.split, rows, self.cfg[DataOptions].max_his_len)
        kind = self.cfg[TrainOptions].mixed_precision
        with torch.autocast(device().type, torch.bfloat16, enabled=kind == "bf16"):
            loss = self.model(**{k: v.to(device()) for k, v in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg[TrainOptions].max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, turn: int) -> int:
        size, samples = self.cfg[TrainOptions].batch_size, 0
        for i in range(self.each):
            first = (turn * self.each + i) * size
            rows = self.order.take(range(first, first + size), mode="wrap")
            self.step(rows)
            samples += len(rows)
        return samples

    def warm_up(self) -> None:
        self.step(self.order[:8])

    def widest(self) -> None:
        lengths = self.split.lengths(self.cfg[DataOptions].max_his_len, self.order)
        first = int(np.argmax(lengths))
        size = self.cfg[TrainOptions].batch_size
        self.step(np.concatenate([self.order[first : first + 1], self.order[: size - 1]]))
