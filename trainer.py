"""Trains any model that offers what `Model` lists."""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from data import (
    Batch,
    Shape,
    Steps,
    epoch_plan,
    padding_factor,
    sequences,
    steps_loader,
    widest,
    within,
)
from evaluation import NotFinite, bar, evaluate, save_ranks
from metrics import EvalOptions
from readers.dataset import Dataset
from readers.splits import DataOptions
from recommenders.base import Model
from runs import guard
from runs.folder import RunFolder, RunOptions
from settings import Config, judging, option
from utils import (
    Problem,
    Stopped,
    check_moments,
    load_weights,
    log,
    not_finite,
    one_line,
    peak_memory_gb,
    room_for,
    shown,
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    epochs: int = option(120, "most epochs", ge=1)
    early_stop: int = option(15, "stop after so many epochs without a better valid_metric", ge=1)
    batch_size: int = option(
        256, "samples per part and process (of a model that learns from whole sequences: targets, on average)", ge=1
    )
    gradient_accumulation_steps: int = option(1, "parts of batch_size samples in one optimizer step", ge=1)
    token_budget: int | None = option(
        None,
        "most history tokens in one forward pass, larger batches are split; default 8192 on CPU, 262144 on a GPU",
        ge=1,
    )
    lr_rec: float = option(1e-3, "learning rate of the recommender", gt=0)
    weight_decay: float = option(0.05, "weight decay", ge=0)
    learner: Literal["adamw", "adam", "sgd"] = option("adamw", "optimizer")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("cosine", "learning rate after the warm-up")
    warmup_steps: int = option(500, "steps of linear warm-up", ge=0)
    max_grad_norm: float = option(1.0, "clipping of each part's gradient", gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        "no", "precision of the recommender; the assignment stays in float32"
    )
    num_workers: int = option(0, "processes that prepare batches ahead", ge=0, le=256, free=True)


def token_budget(t: TrainOptions, device: str) -> int:
    """Most history tokens in one pass: what a CPU's cache and a laptop's memory like, or a GPU needs to be busy."""
    return t.token_budget or (262144 if device == "cuda" else 8192)


FAR = 2**53  # beyond any epoch or step


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0
    next_step: int = 0  # in the epoch
    step: int = 0  # in the run
    best: float = -math.inf
    best_epoch: int = -1
    looked: int = -1  # epoch of the last validation
    seconds: float = field(default=0.0, compare=False)  # that the epoch took so far, before the last stop too

    @classmethod
    def of(cls, saved: dict[str, Any], steps_per_epoch: int, epochs: int) -> "Progress":
        """As it was saved; ValueError where no run of so many epochs can stand there."""
        p = cls(**saved)
        ranges = {
            "epoch": (0, epochs), "next_step": (0, steps_per_epoch), "step": (0, FAR), "best_epoch": (-1, p.epoch),
            "looked": (-1, p.epoch),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(p, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"progress: {name} is {shown(value)}")
        none = p.best == -math.inf and p.best_epoch == -1
        if type(p.best) not in (int, float) or not (none or 0 <= p.best <= 1):
            raise ValueError(f"progress: best is {shown(p.best)}")
        if type(p.seconds) not in (int, float) or not 0 <= p.seconds < math.inf:
            raise ValueError(f"progress: seconds is {shown(p.seconds)}")
        return p

    def out_of_patience(self, early_stop: int) -> bool:
        """Was the epoch that ended last validated, not the best, and `early_stop` epochs or more after the best?

        Only a look can end a run: epochs that were never validated say nothing, however many they are.
        """
        return self.best > -math.inf and self.looked == self.epoch - 1 and self.looked - self.best_epoch >= early_stop


SOURCES = ("origin", "begun_from")  # what was read before training, beside the data
AT_START = ("grad/", "lr/")  # figures of an epoch's start, not means
PROBED, FEW = 256, 32  # samples that a probe looks at; fewer prove nothing
PROBE_TOKENS = 8192  # in one pass of it: no more memory than a step takes with the smallest default budget
SHOWN = 20  # users named when a batch has no finite loss


def with_defaults(groups: list[dict[str, Any]], t: TrainOptions) -> list[dict[str, Any]]:
    """A model's parameter groups with the trainer's rates where they name none of their own."""
    return [{"lr": t.lr_rec, "weight_decay": t.weight_decay, "clip": True} | g for g in groups]


def optimizer_for(groups: list[dict[str, Any]], t: TrainOptions) -> torch.optim.Optimizer:
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[t.learner](groups, lr=t.lr_rec, fused=True)


def learning_rate(t: TrainOptions, steps: int, first: int, end: int) -> Callable[[int], float]:
    """Factor on a group's rate: nothing outside [first, end), linear warm-up, the schedule's fall."""

    def factor(step: int) -> float:
        if not first <= step < end:
            return 0.0
        warm = min(1.0, (step + 1) / (t.warmup_steps + 1))
        done = max(0.0, (step - t.warmup_steps) / max(1, steps - t.warmup_steps))
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, done))), "linear": 1 - min(1.0, done)}
        return warm * fall.get(t.lr_scheduler_type, 1.0)

    return factor


def rate_sum(t: TrainOptions, steps: int, first: int, end: int) -> float:
    """Sum of `learning_rate` over a run's steps, in closed form: a long run has billions of them."""
    end = max(first, min(end, steps))
    warm = min(max(t.warmup_steps, first), end)  # up to there the rate rises, from there on it falls
    rising = (warm - first) * (warm + first + 1) / 2 / (t.warmup_steps + 1) if first < t.warmup_steps else 0.0
    begin = max(first, t.warmup_steps)
    n, whole = max(0, end - begin), max(1, steps - t.warmup_steps)
    if t.lr_scheduler_type == "constant" or not n:
        return rising + n
    a, b = (x - t.warmup_steps for x in (begin, end - 1))
    if t.lr_scheduler_type == "linear":
        return rising + n - n * (a + b) / 2 / whole
    half = math.pi / whole / 2  # sum of cosines of an arithmetic progression
    return rising + n / 2 + math.sin(n * half) / math.sin(half) * math.cos((a + b) * half) / 2


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout of a step is a function of (seed, step, process): nothing random needs saving."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + rank) % (1 << 63))


def check_totals(totals: Any, progress: Progress, processes: int) -> None:
    """ValueError when these are not the log sums of an epoch's first steps, of every process."""
    if not isinstance(totals, list) or len(totals) != processes or not all(isinstance(t, dict) for t in totals):
        raise ValueError(f"totals: expected the sums of {processes} processes, got {shown(totals)}")
    if any(t.keys() != totals[0].keys() for t in totals) or (progress.next_step and not totals[0]):
        raise ValueError("totals: the processes have other sums")
    for name, value in (pair for t in totals for pair in t.items()):
        if not isinstance(name, str) or type(value) not in (int, float):
            raise ValueError(f"totals: {shown(name)} is {shown(value)}")


class Fit:
    """One training run of one model."""

    def __init__(
        self,
        cfg: Config,
        model: Model,
        data: Dataset,
        acc: Accelerator,
        run: RunFolder,
        extras: dict[str, Any],
        on_epoch: Callable[[dict[str, Any], bool], None],
    ) -> None:
        """extras: what else a portable checkpoint carries; on_epoch(row, is best): puts an epoch into words."""
        t = cfg[TrainOptions]
        self.cfg, self.data, self.acc, self.run, self.extras, self.on_epoch = cfg, data, acc, run, extras, on_epoch
        self.train_split = within(data.train, cfg[DataOptions].history_tokens, model.item_tokens)
        if model.sequences:
            self.train_split = sequences(self.train_split, cfg[DataOptions].max_his_len)
        self.shape = Shape(
            batch_size=t.batch_size,
            processes=acc.num_processes,
            accumulation=t.gradient_accumulation_steps,
            rank=acc.process_index,
            longest=cfg[DataOptions].max_his_len,
            tokens=token_budget(t, acc.device.type),
            tokens_per_item=model.tokens_per_item,
            targets=model.targets,
            share=len(self.train_split) / len(data.train),
        )
        self.steps_per_epoch = -(-len(self.train_split) // self.shape.global_batch)
        steps = self.steps_per_epoch * t.epochs
        groups = with_defaults(model.param_groups(), t)
        rates, self.reachable = [], {}  # how far a parameter of a group can move
        for g in groups:
            first, last = g.pop("epochs", (0, None))
            moves = first * self.steps_per_epoch, steps if last is None else (last + 1) * self.steps_per_epoch
            rates.append(learning_rate(t, steps, *moves))
            self.reachable[g["name"]] = g["lr"] * rate_sum(t, steps, *moves)
        optimizer = optimizer_for(groups, t)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        self.raw = model
        self.model, self.optimizer = acc.prepare(model, optimizer)
        self.progress = Progress()
        self.begin = time.perf_counter()  # of the epoch, were it never stopped
        self.totals: dict[str, Any] = {}  # this process's log sums of the epoch so far

    def plan(self, epoch: int) -> list[np.ndarray]:
        return epoch_plan(self.train_split, self.shape, self.cfg[DataOptions].seed, epoch)

    # ---- the loop

    def train(self) -> None:
        """Train to the last epoch or to the end of patience; the best model is on disk afterwards."""
        self._resume()
        t, p = self.cfg[TrainOptions], self.progress
        self._announce()
        if not p.step:
            self._try_widest()
        if self.raw.pretrained and not p.step:
            self._validate_start()
        while p.epoch < t.epochs and not p.out_of_patience(t.early_stop):
            self.begin = time.perf_counter() - p.seconds
            row = self._epoch()
            row |= self.raw.refresh()
            row["seconds"] = time.perf_counter() - self.begin
            if (p.epoch + 1) % self.cfg[EvalOptions].eval_step == 0 or p.epoch + 1 == t.epochs:
                row |= self._validate()
            self._record(row)
            p.epoch, p.next_step, self.totals = p.epoch + 1, 0, {}
            self.begin = time.perf_counter()
            self._save()

    def _epoch(self) -> dict[str, Any]:
        p, acc = self.progress, self.acc
        steps = Steps(self.train_split, self.plan(p.epoch), self.shape)
        loader = steps_loader(steps, p.next_step, self.cfg[TrainOptions].num_workers)
        begin, first = time.perf_counter(), p.next_step
        self.model.train()
        for on_host in bar(loader, f"epoch {p.epoch}", acc):
            parts = [part.to(acc.device) for part in on_host]
            if p.next_step == 0:
                self.totals = {f"lr/{g['name']}": g["lr"] for g in self.optimizer.param_groups}
                self.totals |= self._probe()
            logs, stop = self._step(parts)
            for name, value in logs.items():
                self.totals[name] = self.totals.get(name, 0.0) + value
            p.next_step, p.step = p.next_step + 1, p.step + 1
            due = self.cfg[RunOptions].save_steps and p.step % self.cfg[RunOptions].save_steps == 0
            if due or stop or p.next_step == self.steps_per_epoch:  # a stop in the evaluation loses no step
                self._save()
            if stop:
                raise Stopped(stop)
        seconds = time.perf_counter() - begin
        done = (p.next_step - first) / self.steps_per_epoch * len(self.data.train)  # targets, however they are packed
        return self._means() | ({"samples_per_s": done / seconds} if done else {})  # none: a stop behind the last step

    def _try_widest(self) -> None:
        """Forward and backward over the largest part of the first epoch, before anything is trained: a Problem where it
        has no room, else the log has what was measured.

        It weighs nothing, as a part without samples, and draws from no random state of the run: nothing is changed.
        """
        acc, s = self.acc, self.shape
        rows = widest(self.train_split, self.plan(0), s)
        part = max(Steps(self.train_split, [rows], s)[0], key=lambda part: part.history_BS.numel()).to(acc.device)
        part = part._replace(new_U=torch.zeros_like(part.new_U), weight=torch.zeros_like(part.weight))
        self.model.train()
        gpu = [acc.device] if acc.device.type == "cuda" else []
        remedy = "lower batch_size or token_budget"
        with guard.fail_together(acc), torch.random.fork_rng(gpu), room_for("a training step", remedy):
            moments = [torch.zeros_like(x) for g in self.optimizer.param_groups for x in g["params"] * 2]
            with acc.no_sync(self.model):
                with acc.autocast():
                    loss, _ = self.model(part)
                acc.backward(loss * part.weight)
            del loss, moments
        self.optimizer.zero_grad()
        users, items = part.history_BS.shape
        log.info(f"memory: at most {peak_memory_gb(acc.device):.3g} GB, in {users} histories of {items} items")

    def _probe(self) -> dict[str, float]:
        """What the model tells of some samples before an epoch: the same samples, in the same parts, on every process
        and however the epoch's batches are cut.
        """
        seed, split = self.cfg[DataOptions].seed, self.train_split
        random = np.random.default_rng([seed, self.progress.epoch, 11])
        rows = random.permutation(len(split))[:PROBED]
        rows = rows[np.argsort(split.lengths(self.shape.longest, rows), kind="stable")]
        shape = replace(self.shape, processes=1, rank=0, accumulation=1, tokens=PROBE_TOKENS)
        parts = [part.to(self.acc.device) for part in Steps(split, [rows], shape)[0]]
        seed_step(seed, self.progress.step, 0)
        figures: dict[str, float] = {}
        with guard.fail_together(self.acc):
            try:
                figures = self.raw.check_gradient(*parts, autocast=self.acc.autocast)
            except Problem as e:
                if len(rows) >= FEW:
                    raise
                log.warning(f"{e} (only {len(rows)} training samples to look at, which may be why)")
        return figures

    def _step(self, parts: list[Batch]) -> tuple[dict[str, Tensor], int]:
        """One optimizer step; returns its logs and the signal that asks to stop after it, or 0."""
        logs = self._gradients(parts)
        norms = self._norms()
        stop = self._agree(parts, logs, norms)
        for group, norm in zip(self.optimizer.param_groups, norms, strict=True):
            if group["clip"]:
                clip_grads_with_norm_(group["params"], self.cfg[TrainOptions].max_grad_norm, norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.raw.after_step(lambda t: self.acc.reduce(t, "sum"))
        return logs, stop

    def _gradients(self, parts: list[Batch]) -> dict[str, Tensor]:
        """Backward through a step's parts, their losses weighted by their share of its samples."""
        acc = self.acc
        totals: dict[str, Tensor] = {}
        seed_step(self.cfg[DataOptions].seed, self.progress.step, acc.process_index)
        for part, last in zip(parts, [False] * (len(parts) - 1) + [True], strict=True):
            with contextlib.nullcontext() if last else acc.no_sync(self.model):
                with acc.autocast():
                    loss, logs = self.model(part)
                acc.backward(loss * part.weight * acc.num_processes)  # processes are averaged
            for name, value in logs.items():
                totals[name] = value.float() * part.weight + totals.get(name, 0.0)
        acc.unscale_gradients()
        return totals

    def _norms(self) -> list[Tensor]:
        """Norm of each parameter group's gradient, the same on every process."""
        held = [[p.grad for p in g["params"] if p.grad is not None] for g in self.optimizer.param_groups]
        return [get_total_norm(grads) if grads else torch.zeros((), device=self.acc.device) for grads in held]

    def _agree(self, parts: list[Batch], logs: dict[str, Tensor], norms: list[Tensor]) -> int:
        """What all processes must see alike before the update: is somebody asked to stop, is all finite?

        The step's only wait for the device: two numbers are summed over the processes and read with
        the norms. Problem when a loss or gradient is not finite; the state of before is on disk then.
        """
        acc = self.acc
        asked = torch.full((), float(guard.asked()), dtype=torch.double, device=acc.device)
        lost = torch.stack([~torch.isfinite(v) for v in logs.values()]).sum().double()
        votes = acc.reduce(torch.stack([asked, lost]), "sum")
        askers, bad, *size = torch.cat([votes, torch.stack(norms).double()]).tolist()
        if acc.scaler is not None:  # fp16: the scaler skips a step whose gradient overflows, and lowers the scale
            size = []
        if bad or not all(map(math.isfinite, size)):
            self._halt(parts, logs, size)
        return (guard.asked() or signal.SIGTERM) if askers else 0

    def _halt(self, parts: list[Batch], logs: dict[str, Tensor], norms: list[float]) -> None:
        """Save the state from before the step, then say what in it is not finite and for whom."""
        names = [g["name"] for g in self.optimizer.param_groups]
        wrong = [f"the gradient of {n}" for n, size in zip(names, norms, strict=False) if not math.isfinite(size)]
        lost = [n for n, v in logs.items() if not math.isfinite(v)]
        users = torch.cat([part.user_B for part in parts if float(part.weight)] or [parts[0].user_B[:0]])
        found = gather_object([(lost, users.tolist())])
        self._save()
        terms = list(dict.fromkeys(term for lost, _ in found for term in lost)) or wrong
        batch = sorted({user for lost, who in found if lost or terms is wrong for user in who})
        more = f" and {len(batch) - SHOWN} more" if len(batch) > SHOWN else ""
        with guard.fail_together(self.acc):
            raise Problem(
                f"step {self.progress.step} of epoch {self.progress.epoch}: {', '.join(terms)} is not finite; users of "
                f"the batch (counted from 0): {', '.join(map(str, batch[:SHOWN]))}{more}; nothing of the step was "
                f"applied, the state before it is in {self.run.states}; lower the learning rates, then "
                f"--run_name={self.cfg[RunOptions].run_name} --resume=auto --resume_with_changes=true, or, "
                "where it stops there again, another run_name"
            )

    def _check_weights(self) -> None:
        """Problem when the last update left a weight that is not finite; nothing of it is to be saved."""
        if bad := not_finite(self.raw.state_dict()):
            self._diverged(f"{bad[0]} is" if len(bad) == 1 else f"{bad[0]} and {len(bad) - 1} more are")

    def _diverged(self, what: str) -> NoReturn:
        """Take back what would be gone on from; Problem with `what` (and its verb) is not finite and what to do."""
        p, groups = self.progress, self.optimizer.param_groups
        rates = [f"lr_{g['name']} {rate:g}" for g, rate in zip(groups, self.schedule.base_lrs, strict=True)]
        remedy = (
            f"lower the learning rates ({', '.join(rates)}), then --run_name={self.cfg[RunOptions].run_name} "
            "--resume=auto "
            "--resume_with_changes=true goes on from the newest whole state, or another run_name begins again"
        )
        if not p.step:
            remedy = "the model that it starts from is not whole; name another checkpoint"
        with guard.fail_together(self.acc):
            if self.acc.is_main_process:
                self.run.drop_state(p.step)
            when = f"epoch {max(p.epoch, 0)}, after step {p.step}"
            raise Problem(f"{when}: {what} not finite; nothing of it was saved; {remedy}")
        raise AssertionError("fail_together lets nobody pass")

    def _means(self) -> dict[str, float]:
        """Epoch means over samples and processes; figures of the first batch stay as they are."""
        local = {k: v for k, v in self.totals.items() if not k.startswith(AT_START)}
        flat = torch.stack([torch.as_tensor(v, dtype=torch.double, device=self.acc.device) for v in local.values()])
        sums = self.acc.reduce(flat, "sum").div(self.steps_per_epoch).tolist()  # the host waits on the device here
        return self.totals | dict(zip(local, sums, strict=True))

    def _validate(self) -> dict[str, float]:
        """Figures of the validation users; the best model so far is written. Problem when a number is not finite."""
        p = self.progress
        self._check_weights()
        try:
            e, history, title = self.cfg[EvalOptions], self.cfg[DataOptions], f"validation {p.epoch}"
            found = evaluate(self.raw, self.data.valid, e, history, self.acc, title)
        except NotFinite as e:
            self._diverged(f"{e.what} are")
        score, p.looked = found.figures[self.cfg[EvalOptions].valid_metric], p.epoch
        if score > p.best:
            p.best, p.best_epoch = score, p.epoch
            with guard.fail_together(self.acc):
                if self.acc.is_main_process:
                    save_ranks(self.run, "valid", found, self.data.valid.users())
                    self.run.save_best(self._portable(found.figures))
        return {f"valid/{k}": v for k, v in found.figures.items()}

    def _validate_start(self) -> None:
        """Let the model as it came compete as epoch -1."""
        p, name = self.progress, self.cfg[EvalOptions].valid_metric
        p.epoch = -1
        log.info(f"before the first epoch: valid {name} {self._validate()[f'valid/{name}']:.4f}")
        p.epoch = 0

    # ---- what is written

    def _portable(self, scores: dict[str, float]) -> dict[str, Any]:
        return {
            "model": self.raw.state_dict(),
            "epoch": self.progress.epoch,
            "valid": scores,
            "run": self.run.id,
            **self.extras,
        }

    def _save(self) -> None:
        self._check_weights()  # what is saved can be gone on from
        self.progress.seconds = time.perf_counter() - self.begin
        totals = gather_object([{k: float(v) for k, v in self.totals.items()}])
        with guard.fail_together(self.acc):
            if self.acc.is_main_process:
                scaler = self.acc.scaler
                state = {
                    "model": self.raw.state_dict(), "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else None, "progress": vars(self.progress),
                    "totals": totals, "world": self._world(), "judged": judging(self.cfg), "run": self.run.id,
                }  # fmt: skip
                self.run.save_state(state, self.progress.step)

    def _world(self) -> dict[str, Any]:
        """What a resumed run must find as it was: the samples and how they are dealt out."""
        shape = {"processes": self.shape.processes, "global_batch": self.shape.global_batch}
        return {"data": self.data.hash, **shape, **{key: self.extras.get(key) for key in SOURCES}}

    def _resume(self) -> None:
        state = self.run.load_state() if self.cfg[RunOptions].resume == "auto" else None
        if state is not None:
            self._check_world(state)
            try:
                self._restore(state)
            except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as e:
                raise Problem(
                    f"{self.run.states}: the state does not fit this configuration ({one_line(e)}); remove it to go on "
                    "from the one before, or choose another run_name"
                ) from None
            self._check_best()
            log.info(f"resumed at epoch {self.progress.epoch}, step {self.progress.step}")
        with guard.fail_together(self.acc):
            if self.acc.is_main_process:
                self.run.forget_from(self.progress.epoch)
                self.run.keep(self.cfg)

    def _check_best(self) -> None:
        """Is the best model on disk the one that the state speaks of?

        A run killed between a look and the state after it has left a newer one: that epoch is trained and looked at
        again, perhaps with other options. What it was better than is gone, so it competes with nobody.
        """
        p, found = self.progress, [0]
        if p.best == -math.inf:
            return
        with guard.fail_together(self.acc):
            if self.acc.is_main_process:
                found = [self.run.read_best()["epoch"]]
                if found[0] < p.best_epoch:
                    raise self.run.wrong_best(found[0], p.best_epoch)
        if broadcast_object_list(found)[0] > p.best_epoch:
            p.best, p.best_epoch = -math.inf, -1

    def _check_world(self, state: dict[str, Any]) -> None:
        begun, now = state.get("world"), self._world()
        if self.cfg[RunOptions].resume_with_changes and isinstance(begun, dict):
            begun = begun | {"processes": now["processes"]}
        if begun != now:
            raise Problem(
                f"{self.run.path}: was begun with {state.get('world')}, now there are {now}; resume it with "
                "the same data, files and global batch (another number of processes needs resume_with_changes: true)"
            )

    def _restore(self, state: dict[str, Any]) -> None:
        """Take everything that training has changed; rates and decays come from the configuration."""
        changes = self.cfg[RunOptions].resume_with_changes  # perhaps fewer epochs, or sequences cut at other places
        most = FAR if changes else self.cfg[TrainOptions].epochs
        self.progress = p = Progress.of(state["progress"], self.steps_per_epoch, most)
        if p.step != p.epoch * self.steps_per_epoch + p.next_step and not (changes and self.raw.sequences):
            raise ValueError(f"progress: step {p.step} is not in epoch {p.epoch}")
        if state["judged"] != judging(self.cfg) and p.epoch < self.cfg[TrainOptions].epochs:
            log.warning("the best model so far was chosen by another validation: from here on it is chosen anew")
            p.best, p.best_epoch = -math.inf, -1
        load_weights(self.raw, state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        check_moments(self.optimizer, p.step)
        self.schedule.last_epoch = p.step
        for group, base, rate in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * rate(p.step)
        if self.acc.scaler is not None and state["scaler"]:
            self.acc.scaler.load_state_dict(state["scaler"])
        totals, rank = state["totals"], self.acc.process_index
        check_totals(totals, p, state["world"]["processes"])
        if len(totals) != self.acc.num_processes:  # the main process goes on from the sums of all
            names = [k for k in totals[0] if not k.startswith(AT_START)]
            sums = totals[0] | {k: sum(t[k] for t in totals) for k in names}
            totals = [sums, *[dict.fromkeys(sums, 0.0)] * (self.acc.num_processes - 1)]
        self.totals = dict(totals[rank])

    def _announce(self) -> None:
        s, t = self.shape, self.cfg[TrainOptions]
        whole = f" in {len(self.train_split)} whole sequences" if self.raw.sequences else ""
        each = f" x {s.share:.3f} sequences a sample" if self.raw.sequences else ""
        factor = padding_factor(self.train_split, self.plan(0), s.longest)
        sizes = {g["name"]: sum(x.numel() for x in g["params"]) for g in self.optimizer.param_groups}
        log.info(
            f"{len(self.data.train)} training samples{whole}, {self.steps_per_epoch} steps an epoch; global "
            f"batch {s.global_batch} = "
            f"{s.batch_size} x {s.processes} processes x {s.accumulation} accumulated{each}; padding x{factor:.2f}; "
            f"precision {t.mixed_precision}; trained parameters {sizes}"
        )

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
