"""Trains any model that offers what `Model` lists: the loop, and a step of it."""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from data import Batch, Shape, Steps, epoch_plan, padding_factor, sample, sequences, within
from evaluation import NotFinite, bar, evaluate, save_ranks
from metrics import EvalOptions
from readers.dataset import Dataset
from readers.splits import DataOptions
from recommenders.base import Model
from runs import guard
from runs.folder import RunFolder, RunOptions
from runs.shards import Shards
from runs.state import Progress, RunState, Sums
from settings import Config, option
from utils import Problem, Stopped, log, peak_memory_gb, room_for


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    epochs: int = option(120, "maximum number of epochs", ge=1)
    early_stop: int = option(15, "number of epochs without a better valid_metric after which training stops", ge=1)
    batch_size: int = option(
        256, "number of samples per step and process (targets, where whole sequences are learned from)", ge=1
    )
    gradient_accumulation_steps: int = option(1, "number of batches of batch_size in one optimizer step", ge=1)
    token_budget: int | None = option(
        None, "maximum number of history tokens per forward pass; default 8192 on a CPU, 262144 on a GPU", ge=1
    )
    lr_rec: float = option(1e-3, "learning rate of the recommender", gt=0)
    weight_decay: float = option(0.05, "weight decay of AdamW", ge=0)
    warmup_steps: int = option(500, "number of steps of linear warm-up, after which the rate falls as a cosine", ge=0)
    max_grad_norm: float = option(1.0, "maximum gradient norm of each parameter group", gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "precision of the recommender's forward pass")


FEW = 32  # samples that prove something


def token_budget(t: TrainOptions, device: str) -> int:
    """Most history tokens in one pass: what a CPU's cache and a laptop's memory like, or a GPU needs to be busy."""
    return t.token_budget or (262144 if device == "cuda" else 8192)


def optimizer_for(groups: list[dict[str, Any]], t: TrainOptions) -> torch.optim.Optimizer:
    """AdamW over a model's parameter groups, by the trainer's rates where they name none of their own."""
    own = {"lr": t.lr_rec, "weight_decay": t.weight_decay, "clip": True, "pauses": False}
    return torch.optim.AdamW([own | g for g in groups], lr=t.lr_rec, fused=True)


def learning_rate(
    t: TrainOptions, steps: int, per_epoch: int, moves: Callable[[int], bool]
) -> Callable[[int], float]:
    """Factor on a group's rate: nothing in epochs that it rests, linear warm-up, then a cosine to 0 at `steps`."""

    def factor(step: int) -> float:
        if not moves(step // per_epoch):
            return 0.0
        warm = min(1.0, (step + 1) / (t.warmup_steps + 1))
        done = max(0.0, (step - t.warmup_steps) / max(1, steps - t.warmup_steps))
        return warm * (0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    return factor


def rate_sum(factor: Callable[[int], float], steps: int) -> float:
    """Sum of `learning_rate` over a run's steps, from 10,000 of them where there are more."""
    stride = max(1, steps // 10_000)
    return stride * sum(map(factor, range(0, steps, stride)))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout of a step is a function of (seed, step, process): nothing random needs saving."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + rank) % (1 << 63))


def clip_by_group(
    optimizer: torch.optim.Optimizer, most: float, norm: Callable[[list[nn.Parameter]], Tensor]
) -> list[Tensor]:
    """Scale each group's gradient down to the norm `most`, where the group is clipped; the norms that they had."""
    norms = []
    for group in optimizer.param_groups:
        norms.append(norm(group["params"]))
        if group["clip"]:
            clip_grads_with_norm_(group["params"], most, norms[-1])
    return norms


def pause(optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients of groups that rest and pause: the optimizer then leaves their moments as they are."""
    for group in optimizer.param_groups:
        if group["pauses"] and not group["lr"]:
            for p in group["params"]:
                p.grad = None


class Trainer:
    """One training run of one model."""

    def __init__(
        self, cfg: Config, model: Model, data: Dataset, acc: Accelerator, run: RunFolder, extras: dict[str, Any],
        on_epoch: Callable[[dict[str, Any], bool], None],
    ) -> None:  # fmt: skip
        """extras: what else a portable checkpoint carries; on_epoch(row, is best): puts an epoch into words."""
        t = cfg[TrainOptions]
        self.cfg, self.data, self.acc, self.run, self.extras, self.on_epoch = cfg, data, acc, run, extras, on_epoch
        self.train_split = within(data.train, cfg[DataOptions].history_tokens, model.item_tokens)
        if model.sequences:
            self.train_split = sequences(self.train_split, cfg[DataOptions].max_his_len)
        self.shape = Shape(
            t.batch_size, acc.num_processes, t.gradient_accumulation_steps, acc.process_index,
            cfg[DataOptions].max_his_len, token_budget(t, acc.device.type), model.tokens_per_item, model.targets,
            share=len(self.train_split) / len(data.train),
        )  # fmt: skip
        self.steps_per_epoch = -(-len(self.train_split) // self.shape.global_batch)
        steps = self.steps_per_epoch * t.epochs
        self.raw, self.model = model, acc.prepare(model)
        self.shards = Shards(model, acc)
        groups, rates = model.param_groups(), []
        self.sizes = {g["name"]: sum(p.numel() for p in g["params"]) for g in groups}
        self.reachable: dict[str, float] = {}  # how far a parameter of a group can move
        for g in groups:
            rates.append(learning_rate(t, steps, self.steps_per_epoch, g.pop("moves", lambda epoch: True)))
            self.reachable[g["name"]] = g.get("lr", t.lr_rec) * rate_sum(rates[-1], steps)
            g["params"] = [self.shards.piece.get(p, p) for p in g["params"]]
        optimizer = optimizer_for(groups, t)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        self.optimizer = acc.prepare(optimizer)
        world = {"data": data.hash, "processes": self.shape.processes, "global_batch": self.shape.global_batch}
        world |= {key: extras.get(key) for key in ("origin", "begun_from")}  # read before training, beside the data
        self.state = RunState(cfg, run, acc, self.shards, self.optimizer, self.schedule, world)

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def plan(self, epoch: int) -> list[np.ndarray]:
        return epoch_plan(self.train_split, self.shape, self.cfg[DataOptions].seed, epoch)

    # ---- the loop

    def train(self) -> None:
        """Train to the last epoch or to the end of patience; the best model is on disk afterwards."""
        t, state = self.cfg[TrainOptions], self.state
        state.resume(t.epochs)
        p = state.progress
        self._announce()
        if not p.step:
            self._try_widest()
            if self.raw.pretrained:  # the model as it came competes as epoch -1
                p.epoch = -1
                name = self.cfg[EvalOptions].valid_metric
                log.info(f"before the first epoch: valid {name} {self._validate()[f'valid/{name}']:.4f}")
                p.epoch = 0
        while p.epoch < t.epochs and not p.out_of_patience(t.early_stop):
            state.begin = time.perf_counter() - p.seconds
            row = self._epoch()
            row |= self.raw.refresh()
            row["seconds"] = time.perf_counter() - state.begin
            if (p.epoch + 1) % self.cfg[EvalOptions].eval_step == 0 or p.epoch + 1 == t.epochs:
                row |= self._validate()
            self._record(row)
            p.epoch, p.next_step, state.totals = p.epoch + 1, 0, Sums()
            state.begin = time.perf_counter()
            state.save()

    def _epoch(self) -> dict[str, Any]:
        p, state, save_steps = self.progress, self.state, self.cfg[RunOptions].save_steps
        steps = Steps(self.train_split, self.plan(p.epoch), self.shape)
        begin, first = time.perf_counter(), p.next_step
        self.model.train()
        for number in bar(range(first, len(steps)), f"epoch {p.epoch}", self.acc):
            parts = [part.to(self.acc.device) for part in steps[number]]
            if number == 0:
                state.totals = Sums({f"lr/{g['name']}": g["lr"] for g in self.optimizer.param_groups})
                state.totals |= self._probe()
            logs, stop = self.step(parts)
            state.totals.add(logs)
            p.next_step, p.step = p.next_step + 1, p.step + 1
            due = save_steps and p.step % save_steps == 0
            if due or stop or p.next_step == self.steps_per_epoch:  # a stop in the evaluation loses no step
                state.save()
            if stop:
                raise Stopped(stop)
        seconds = time.perf_counter() - begin
        done = (p.next_step - first) / self.steps_per_epoch * len(self.data.train)  # targets, however they are packed
        speed = {"samples_per_s": done / seconds} if done else {}  # none: a stop behind the last step
        return state.means(self.steps_per_epoch) | speed

    def step(self, parts: list[Batch]) -> tuple[Sums, int]:
        """One optimizer step over its parts, each weighted by its share of the samples.

        Returns its logs and the signal that asks to stop after it, or 0.
        """
        acc, logs, parts = self.acc, Sums(), self.shards.even(parts)
        seed_step(self.cfg[DataOptions].seed, self.progress.step, acc.process_index)
        for part in parts:
            with contextlib.nullcontext() if part is parts[-1] else acc.no_sync(self.model):
                with acc.autocast():
                    loss, terms = self.model(part)
                acc.backward(loss * part.weight * acc.num_processes)  # processes are averaged
            logs.add(terms, part.weight)
        self.shards.take_gradients()
        acc.unscale_gradients()
        norms = clip_by_group(self.optimizer, self.cfg[TrainOptions].max_grad_norm, self.shards.norm)
        stop = self._agree(parts, logs, norms)  # the only wait for the device; raises before the update
        pause(self.optimizer)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.raw.after_step(lambda t: acc.reduce(t, "sum"))
        return logs, stop

    def _agree(self, parts: list[Batch], logs: Sums, norms: list[Tensor]) -> int:
        """What all processes must see alike before the update: is somebody asked to stop (the signal), is all finite?
        Problem when a loss or gradient is not; the state of before is on disk then.
        """
        acc = self.acc
        asked = torch.full((), float(guard.asked()), dtype=torch.double, device=acc.device)
        lost = torch.stack([~torch.isfinite(v) for v in logs.values()]).sum().double()
        votes = acc.reduce(torch.stack([asked, lost]), "sum")
        askers, bad, *size = torch.cat([votes, torch.stack(norms).double()]).tolist()
        if acc.scaler is not None:  # fp16: the scaler skips a step whose gradient overflows, and lowers the scale
            size = []
        if bad or not all(map(math.isfinite, size)):
            self.state.halt(parts, logs, size)
        return (guard.asked() or signal.SIGTERM) if askers else 0

    # ---- before the first step of a run, of an epoch

    def _try_widest(self) -> None:
        """Forward and backward over the largest part of the first epoch: a Problem where it has no room, else the log
        has what was measured. It weighs nothing and leaves every random state as it was: no result depends on it.
        """
        acc, part = self.acc, Steps(self.train_split, self.plan(0), self.shape).widest().to(self.acc.device)
        self.model.train()
        gpu, remedy = [acc.device] if acc.device.type == "cuda" else [], "lower batch_size or token_budget"
        # of shards the others wait for the weights of who fails: it ends alone, and the launcher ends them
        together = contextlib.nullcontext() if self.shards.dealt else guard.fail_together(acc)
        with together, torch.random.fork_rng(gpu), room_for("a training step", remedy):
            moments = [torch.zeros_like(x) for g in self.optimizer.param_groups for x in g["params"] * 2]
            with acc.no_sync(self.model):
                with acc.autocast():
                    loss, _ = self.model(part)
                acc.backward(loss * part.weight)
            del loss, moments
        self.model.zero_grad()
        users, items = part.history_BS.shape
        log.info(f"memory: at most {peak_memory_gb(acc.device):.3g} GB, in {users} histories of {items} items")

    def _probe(self) -> dict[str, float]:
        """What the model tells of some samples before an epoch, the same on every process."""
        seed, p, figures = self.cfg[DataOptions].seed, self.progress, dict[str, float]()
        parts = [part.to(self.acc.device) for part in sample(self.train_split, self.shape, seed, p.epoch)]
        seed_step(seed, p.step, 0)
        with guard.fail_together(self.acc):
            try:
                figures = self.raw.check_gradient(*parts, autocast=self.acc.autocast)
            except Problem as e:
                if (looked := sum(len(part.target_B) for part in parts)) >= FEW:
                    raise
                log.warning(f"{e} (only {looked} training samples to look at, which may be why)")
        return figures

    # ---- after an epoch

    def _validate(self) -> dict[str, float]:
        """Figures of the validation users; the best model so far is written. Problem when a number is not finite."""
        p = self.progress
        self.state.check_weights()
        try:
            ranking, history, title = self.cfg[EvalOptions], self.cfg[DataOptions], f"validation {p.epoch}"
            found = evaluate(self.raw, self.data.valid, ranking, history, self.acc, title)
        except NotFinite as e:
            self.state.diverged(f"{e.what} are")
        score, p.looked = found.figures[self.cfg[EvalOptions].valid_metric], p.epoch
        if score > p.best:
            p.best, p.best_epoch = score, p.epoch
            weights = self.shards.state()
            with guard.fail_together(self.acc):
                if self.acc.is_main_process:
                    save_ranks(self.run, "valid", found, self.data.valid.users())
                    own = {"model": weights, "epoch": p.epoch, "valid": found.figures, "run": self.run.id}
                    self.run.save_best(own | self.extras)  # it can be used alone
        return {f"valid/{k}": v for k, v in found.figures.items()}

    def _record(self, row: dict[str, Any]) -> None:
        p = self.progress
        row = {
            "epoch": p.epoch, **row, "world_size": self.acc.num_processes,
            "global_batch": self.shape.global_batch, "peak_memory_gb": peak_memory_gb(self.acc.device),
        }  # fmt: skip
        with guard.fail_together(self.acc):
            if self.acc.is_main_process:
                self.run.record(row)
        self.on_epoch(row, p.best_epoch == p.epoch)

    def _announce(self) -> None:
        s, t = self.shape, self.cfg[TrainOptions]
        whole = f" in {len(self.train_split):,} sequences" if self.raw.sequences else ""
        several = f" ({s.processes} processes, {s.accumulation} parts)" if s.processes * s.accumulation > 1 else ""
        factor = padding_factor(self.train_split, self.plan(0), s.longest)
        log.info(
            f"{len(self.data.train):,} training samples{whole}; {self.steps_per_epoch} steps an epoch, each of "
            f"{s.batch_size * s.processes * s.accumulation} samples{several}; padding x{factor:.2f}; parameters "
            f"{', '.join(f'{name} {n:,}' for name, n in self.sizes.items())}"
            + (f"; precision {t.mixed_precision}" if t.mixed_precision != "no" else "")
        )
