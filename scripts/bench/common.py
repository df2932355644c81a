"""What the benchmark's sections share: the job, interleaved rounds, figures, a process of one's own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compose import build, configure
from readers.dataset import Dataset
from readers.layouts import read_dataset
from readers.splits import DataOptions
from settings import Config
from sids.tokenizer import CodeOptions
from utils import peak_memory_gb

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What is measured: a configuration with its tokenizer, how often, and how wide the beams are."""

    cfg: Config
    quick: bool
    beams: tuple[int, ...]

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 3

    def data(self) -> Dataset:
        return read_dataset(self.cfg[DataOptions])

    def model(self, method: str, data: Dataset) -> Any:
        """A fresh model of some method over this job's data, seeded."""
        torch.manual_seed(self.cfg[DataOptions].seed)
        cfg = configure.change(self.cfg, method=method)
        return build.build_model(cfg, data).model.to(device())


def job(cfg: Config, folder: Path, quick: bool, beams: tuple[int, ...]) -> Job:
    """The job, with a tokenizer of few epochs unless one is named or none can be: its codes are real, not good."""
    if cfg[CodeOptions].rqvae_path is None and read_dataset(cfg[DataOptions]).embedding_path is not None:
        epochs = 5 if quick else 20
        short = configure.change(
            cfg, output_dir=str(folder), rqvae_epochs=epochs, rqvae_eval_step=epochs, rqvae_warmup_epochs=0
        )
        cfg = configure.change(cfg, rqvae_path=str(build.train_tokenizer(short, read_dataset(cfg[DataOptions]))))
    return Job(cfg, quick, beams)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of some work, the device's included."""
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(rounds: int, sides: Mapping[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Measure all sides in turn, round by round, so that a busy machine disturbs them alike."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, measure in sides.items():
            found[name].append(measure(turn))
    return found


def figure(ours: list[float] | float, baseline: list[float] | float | None = None) -> dict[str, Any]:
    """Medians of both sides, their spread (lowest, highest), and ours / baseline."""
    found: dict[str, Any] = {"ours": _median(ours), "ours_spread": _spread(ours)}
    if baseline is not None:
        found |= {"baseline": _median(baseline), "baseline_spread": _spread(baseline)}
        found["ratio"] = found["ours"] / found["baseline"]
    return found


def _median(values: list[float] | float) -> float:
    return statistics.median(values) if isinstance(values, list) else values


def _spread(values: list[float] | float) -> list[float] | None:
    return [min(values), max(values)] if isinstance(values, list) else None


def peak_memory_of(work: Callable[..., object], *args: Any) -> float:
    """Peak memory in GB, of the device, of a process that does nothing but this work, imports included."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, torch.get_num_threads(), work, args))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError:
        raise RuntimeError(f"{work.__name__}: its process died; too little memory?") from None
    finally:
        process.join()


def _measured(sender: Any, threads: int, work: Callable[..., object], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    work(*args)
    sender.send(peak_memory_gb(device()))


def growth(sizes: list[int], costs: list[float]) -> float:
    """Exponent b of cost = a * size^b, fitted on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
