"""How much memory a run will need, told before it trains."""

from pathlib import Path

import torch

from data import Shape
from metrics import EvalOptions
from readers.dataset import Dataset
from readers.splits import DataOptions
from recommenders.protocol import Recommender
from settings import Config
from utils import Problem, log

FLOAT = 4  # bytes; bf16 needs less, which leaves the estimate on the safe side


HOPELESS = 4  # times what is there; no estimate is that far off


def refuse_hopeless(bytes_needed: int, what: str, remedy: str) -> None:
    """Problem, before anything is made, when it cannot fit in this machine's memory whatever is tried."""
    have = available(torch.device("cpu"))
    if bytes_needed > have:
        needs = f"{gigabytes(bytes_needed)} GB, {gigabytes(have)} GB are there"
        raise Problem(f"{what} alone would take {needs}; {remedy}")


def log_estimate(
    cfg: Config, model: Recommender, data: Dataset, shape: Shape, moments: int, device: torch.device
) -> None:
    """Log the estimate beside what the device has, and warn when it does not fit; Problem when it never will.

    moments: how many numbers the optimizer keeps of a parameter.
    """
    need, have = estimate(cfg, model, data, shape, moments), available(device)
    turns = need.get("training step", 0), need.get("evaluation batch", 0)  # never both at once
    total = sum(need.values()) - min(turns)
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in need.items())
    log.info(f"memory: about {gigabytes(total)} of {gigabytes(have)} GB ({parts})")
    if total > HOPELESS * have:
        raise Problem(
            f"memory: about {gigabytes(total)} GB are needed ({parts}), {gigabytes(have)} GB are there; lower "
            "batch_size and token_budget (training), eval_batch_size and num_beams (evaluation), or the model's widths"
        )
    if total > have:
        log.warning(
            f"memory: about {gigabytes(total)} GB are needed, {gigabytes(have)} GB are there; "
            "lower token_budget (training) or eval_batch_size and num_beams (evaluation)"
        )


def estimate(cfg: Config, model: Recommender, data: Dataset, shape: Shape, moments: int) -> dict[str, int]:
    """Bytes by owner, with the working memory of a step and of an evaluation batch where a model can tell it."""
    trained = FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    need = {
        "model": sum(p.nbytes for p in model.parameters()),
        "gradients": trained,
        "optimizer": moments * trained,
        "embeddings and SIDs": sum(b.nbytes for b in model.buffers()),
    }
    longest = max(int(part.lengths(cfg[DataOptions].max_his_len).max()) for part in (data.train, data.valid, data.test))
    samples = min(shape.batch_size, max(1, shape.tokens // (longest * model.tokens_per_item)))
    users = min(cfg[EvalOptions].eval_batch_size, len(data.test))
    return need | {name: FLOAT * n for name, n in model.working_numbers(samples, longest, users).items()}


def available(device: torch.device) -> int:
    """Bytes that are free for this process: on the GPU, else in the machine or its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [int(words[1]) * 1024 for words in _lines("/proc/meminfo") if words[0] == "MemAvailable:"]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0][0].isdecimal():
        cache = [int(w[1]) for w in _lines("/sys/fs/cgroup/memory.stat") if w[0] == "inactive_file"]  # given up on need
        found.append(int(limit[0][0]) - int(used[0][0]) + sum(cache))
    return min(found, default=1 << 62)


def _lines(path: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:  # another system, or no container
        return []


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g}"
