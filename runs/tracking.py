"""An epoch's figures to TensorBoard, W&B or MLflow, by Accelerate's trackers; imported and started only where wanted.

Logged are the scalars of metrics.jsonl (losses, gradient norms, noise scale, perplexity, SID churn, validation), and
the dead codes of each level.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

import settings
from readers.splits import DataOptions
from runs.folder import TRACKERS, RunOptions
from settings import Config
from utils import Problem, log, one_line

PACKAGES = tuple(name for name in TRACKERS if name not in ("auto", "none"))  # each by the name of its package
PROJECT = "diger"
OnEpoch = Callable[[dict[str, Any], bool], None]


def wanted(cfg: Config) -> list[str]:
    """The trackers of a run; Problem when one that is named is not installed. `auto`: TensorBoard where it is."""
    asked = [name for name in cfg[RunOptions].trackers if name != "none"]
    there = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
    if lacking := [name for name in asked if not there.get(name, True)]:
        raise Problem(f"trackers: {lacking[0]} is not installed; pip install {lacking[0]}, or leave it out")
    names = ["tensorboard" if name == "auto" else name for name in asked if name != "auto" or there["tensorboard"]]
    return list(dict.fromkeys(names))


def place(cfg: Config) -> Path:
    """Where event files go: beside the logs, a folder a run; `tensorboard --logdir <log_dir>` shows them all."""
    return Path(cfg[RunOptions].log_dir) / cfg[DataOptions].dataset / str(cfg[RunOptions].run_name)


def tracked(cfg: Config, acc: Accelerator, sizes: Sequence[int], on_epoch: OnEpoch) -> OnEpoch:
    """What is done after an epoch, with the trackers that `acc` was made with. sizes: codes of each level."""
    if not acc.log_with:
        return on_epoch
    start(cfg, acc)

    def both(row: dict[str, Any], best: bool) -> None:
        on_epoch(row, best)
        for tracker in list(acc.trackers):
            try:
                figures = scalars(row, sizes)
                if tracker.name == "mlflow":  # which takes no @
                    figures = {k.replace("@", "_at_"): v for k, v in figures.items()}
                tracker.log(figures, step=row["epoch"])
            except Exception as e:
                lost(tracker.name, e)
                acc.trackers.remove(tracker)

    return both


def start(cfg: Config, acc: Accelerator) -> None:
    """Start each tracker by itself: what is wrong with one of them (somebody else's program, network or disk) costs
    neither the training nor the others.
    """
    acc.project_configuration.logging_dir = str(place(cfg))
    run, asked, started = str(cfg[RunOptions].run_name), acc.log_with, []
    own = {"wandb": {"name": run, "group": cfg[DataOptions].dataset}, "mlflow": {"run_name": run}}
    options = {k: str(v) if isinstance(v, list) else v for k, v in settings.flat(cfg).items()}
    for name in asked:
        acc.log_with, acc.trackers = [name], []
        try:
            acc.init_trackers(PROJECT, init_kwargs=own)
            if str(name) != "tensorboard":  # it makes a run of its own of every set of options
                acc.trackers[0].store_init_configuration(options)
            started += acc.trackers
        except Exception as e:
            lost(str(name), e)
    acc.log_with, acc.trackers = asked, started


def lost(name: str, error: Exception) -> None:
    log.warning(f"trackers: {name}: {one_line(error) or type(error).__name__}; the run continues without it")


def scalars(row: dict[str, Any], sizes: Sequence[int]) -> dict[str, float]:
    """The finite numbers of an epoch's row, and the codes that nothing uses."""
    found = {k: float(v) for k, v in row.items() if type(v) in (int, float) and math.isfinite(v) and k != "epoch"}
    used = {i: row[key] for i in range(1, len(sizes) + 1) if (key := f"codes_used/level_{i}") in row}
    return found | {f"dead_codes/level_{i}": float(sizes[i - 1] - n) for i, n in used.items()}
