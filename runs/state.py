"""What a stopped run goes on from, to the bit: written after each epoch, read back by `--resume=auto`."""

import math
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from data import Batch
from runs import guard
from runs.folder import RunFolder, RunOptions
from runs.shards import Shards, local
from settings import Config, flat, judging
from utils import Problem, log, not_finite, one_line

SHOWN = 20  # users named when a batch has no finite loss
AT_START = ("grad/", "lr/")  # figures of an epoch's start, not means


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    next_step: int = 0  # in the epoch
    step: int = 0  # in the run
    best: float = -math.inf
    best_epoch: int = -1
    looked: int = -1  # epoch of the last validation
    seconds: float = field(default=0.0, compare=False)  # that the epoch took so far, before the last stop too

    def out_of_patience(self, early_stop: int) -> bool:
        """Was the epoch that ended last validated, not the best, and `early_stop` epochs or more after the best?

        Only a look can end a run: epochs that were never validated say nothing, however many they are.
        """
        return self.best > -math.inf and self.looked == self.epoch - 1 and self.looked - self.best_epoch >= early_stop


class Sums(dict[str, Any]):
    """Figures by name, added up; on the device until somebody reads them."""

    def add(self, figures: dict[str, Any], weight: Any = 1.0) -> None:
        for name, value in figures.items():
            self[name] = value * weight + self.get(name, 0.0)


class RunState:
    """All that training changes of a run, and the files it is kept in.

    world: what a resumed run must find as it was, the samples and how they are dealt out.
    """

    def __init__(
        self, cfg: Config, run: RunFolder, acc: Accelerator, shards: Shards, optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR, world: dict[str, Any],
    ) -> None:  # fmt: skip
        self.run, self.acc, self.shards, self.optimizer, self.schedule = run, acc, shards, optimizer, schedule
        self.options, self.judged, self.cfg, self.world = cfg[RunOptions], judging(cfg), cfg, world
        self.resting = set(shards.model.resting())  # not written: whoever resumes has read it already
        self.progress = Progress()
        self.totals = Sums()  # this process's log sums of the epoch so far
        self.begin = time.perf_counter()  # of the epoch, were it never stopped

    def means(self, steps: int) -> dict[str, Any]:
        """Means of the epoch's log sums over its steps and all processes; figures of its start stay as they are."""
        local = {k: v for k, v in self.totals.items() if not k.startswith(AT_START)}
        flat = torch.stack([torch.as_tensor(v, dtype=torch.double, device=self.acc.device) for v in local.values()])
        sums = self.acc.reduce(flat, "sum").div(steps).tolist()  # the host waits on the device here
        return self.totals | dict(zip(local, sums, strict=True))

    # ---- written

    def save(self) -> None:
        """Write the state of now; Problem when it could not be gone on from."""
        self.check_weights()
        self.progress.seconds = time.perf_counter() - self.begin
        totals = gather_object([{k: float(v) for k, v in self.totals.items()}])
        weights, moments = self.shards.state(self.resting), self.shards.moments(self.optimizer)
        with guard.fail_together(self.acc):
            if self.acc.is_main_process:
                scaler = self.acc.scaler
                state = {
                    "model": weights, "optimizer": moments,
                    "scaler": scaler.state_dict() if scaler else None, "progress": vars(self.progress),
                    "totals": totals, "world": self.world, "judged": self.judged, "run": self.run.id,
                }  # fmt: skip
                self.run.save_state(state, self.progress.step)

    def check_weights(self) -> None:
        """Problem when the last update left a weight that is not finite; nothing of it is to be saved."""
        bad = not_finite({k: local(x) for k, x in self.shards.model.state_dict().items()})
        if self.shards.dealt:
            bad = list(dict.fromkeys(gather_object(bad)))
        if bad:
            self.diverged(f"{bad[0]} is" if len(bad) == 1 else f"{bad[0]} and {len(bad) - 1} more are")

    def diverged(self, what: str) -> NoReturn:
        """Take back what would be gone on from; Problem with `what` (and its verb) is not finite and what to do."""
        p, groups = self.progress, self.optimizer.param_groups
        rates = [f"lr_{g['name']} {rate:g}" for g, rate in zip(groups, self.schedule.base_lrs, strict=True)]
        remedy = (
            f"lower the learning rates ({', '.join(rates)}), then --run_name={self.options.run_name} --resume=auto "
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

    def halt(self, parts: list[Batch], logs: dict[str, Tensor], norms: list[float]) -> NoReturn:
        """Save the state from before a step, then say what in it is not finite and for whom.

        norms: of the groups' gradients, as far as they are known.
        """
        names, p = [g["name"] for g in self.optimizer.param_groups], self.progress
        wrong = [f"the gradient of {n}" for n, size in zip(names, norms, strict=False) if not math.isfinite(size)]
        lost = [n for n, v in logs.items() if not math.isfinite(v)]
        users = torch.cat([part.user_B for part in parts if float(part.weight)] or [parts[0].user_B[:0]])
        found = gather_object([(lost, users.tolist())])
        self.save()
        terms = list(dict.fromkeys(term for lost, _ in found for term in lost)) or wrong
        batch = sorted({user for lost, who in found if lost or terms is wrong for user in who})
        more = f" and {len(batch) - SHOWN} more" if len(batch) > SHOWN else ""
        with guard.fail_together(self.acc):
            raise Problem(
                f"step {p.step} of epoch {p.epoch}: {', '.join(terms)} is not finite; users of the batch (counted from "
                f"0): {', '.join(map(str, batch[:SHOWN]))}{more}; nothing of the step was applied, the state before it "
                f"is in {self.run.states}; lower the learning rates, then --run_name={self.options.run_name} "
                "--resume=auto --resume_with_changes=true, or, where it stops there again, another run_name"
            )
        raise AssertionError("fail_together lets nobody pass")

    # ---- read back

    def resume(self, epochs: int) -> None:
        """Go on from the newest whole state, where that is asked for; what was written of later steps is forgotten.

        epochs: of the run.
        """
        state = self.run.load_state() if self.options.resume == "auto" else None
        if state is not None:
            self._check_world(state.get("world"))
            try:
                self._restore(state, epochs)
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

    def _check_world(self, begun: Any) -> None:
        """Problem when the run was begun with other data, files or another global batch."""
        before, now = begun if isinstance(begun, dict) else {}, self.world
        differs = [k for k in {**before, **now} if before.get(k) != now.get(k)]
        if self.options.resume_with_changes and "processes" in differs:
            differs.remove("processes")
        if not differs:
            return
        reason, way = "other data or files", "resume it with the same data and files, or choose another run_name"
        if set(differs) <= {"processes", "global_batch"}:
            names = {"processes": "processes", "global_batch": "samples a step"}
            reason = " and ".join(f"{before[k]} {names[k]} (now {now[k]})" for k in differs)
            part = before["global_batch"] * flat(self.cfg)["batch_size"] / now["global_batch"]
            size = f" --batch_size={part:.0f}" if "global_batch" in differs else ""
            way = f"resume it with as many, or add{size} --resume_with_changes=true"
        raise Problem(f"{self.run.path}: was begun with {reason}; {way}")

    def _restore(self, state: dict[str, Any], epochs: int) -> None:
        """Take everything that training has changed; rates and decays come from the configuration."""
        self.progress = p = Progress(**state["progress"])
        if state["judged"] != self.judged and p.epoch < epochs:
            log.warning("the best model so far was chosen by another validation; the choice starts again here")
            p.best, p.best_epoch = -math.inf, -1
        self.shards.load(state["model"], self.resting)
        groups = self.optimizer.state_dict()["param_groups"]
        self.shards.load_moments(self.optimizer, state["optimizer"] | {"param_groups": groups})
        self.schedule.last_epoch = p.step
        rates = zip(self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, base, factor in rates:
            group["lr"] = base * factor(p.step)
        if self.acc.scaler is not None and state["scaler"]:
            self.acc.scaler.load_state_dict(state["scaler"])
        self.totals = Sums(self._own_share(state["totals"]))

    def _own_share(self, totals: list[dict[str, float]]) -> dict[str, float]:
        """This process's log sums; where there are more or fewer now, the main process goes on from the sums of all."""
        processes, rank = self.acc.num_processes, self.acc.process_index
        if len(totals) == processes:
            return totals[rank]
        summed = {k: v if k.startswith(AT_START) else sum(t[k] for t in totals) for k, v in totals[0].items()}
        return summed if rank == 0 else dict.fromkeys(summed, 0.0)

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
