"""Training speed of SASRec beside a plain PyTorch loop: users/s over the same sequences, alternating.

  python scripts/bench_sasrec.py scientific --data_path=DIR [--key=value ...]

The plain loop is what most public programs do: random batches padded to full length, torch's own
encoder layers, and cross-entropy over every position, padding included and ignored afterwards.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import main
import settings
from data import Shape, Steps, epoch_plan, sequences
from methods.sasrec import SASRec
from readers import read_dataset
from settings import Config
from splits import Split
from trainer import optimizer_for
from utils import Problem, keep_freed_memory, problems_exit_2


class Plain(nn.Module):
    """SASRec out of torch's parts, [B, S] padded item numbers to scores [B, S, N + 1]."""

    def __init__(self, cfg: Config, n_items: int) -> None:
        super().__init__()
        s, d = cfg.sequence, cfg.sequence.hidden_units
        self.items = nn.Embedding(n_items + 1, d, padding_idx=0)
        self.positions = nn.Embedding(cfg.data.max_his_len, d)
        layer = nn.TransformerEncoderLayer(
            d, cfg.recommender.num_heads, d, s.hidden_dropout, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, s.num_blocks, nn.LayerNorm(d), enable_nested_tensor=False)
        self.dropout = nn.Dropout(s.hidden_dropout)

    def forward(self, item_BS: Tensor) -> Tensor:
        place_S = torch.arange(item_BS.shape[1])
        x = self.dropout(self.items(item_BS) * self.items.embedding_dim**0.5 + self.positions(place_S))
        later_SS = torch.ones(len(place_S), len(place_S), dtype=torch.bool).triu(1)
        h: Tensor = self.blocks(x, mask=later_SS, is_causal=True)
        return h @ self.items.weight.T


def padded(split: Split, longest: int) -> Tensor:
    """All sequences padded on the right to longest + 1, [users, longest + 1]."""
    rows = np.zeros((len(split), longest + 1), np.int64)
    begin = np.maximum(split.position - longest, split.offsets[split.users()])
    for row, first, last in zip(rows, begin, split.position + 1, strict=True):
        row[: last - first] = split.items[first:last]
    return torch.from_numpy(rows)


def plain_steps(cfg: Config, split: Split, n_items: int, batch: int) -> Callable[[int], int]:
    """step(i) -> users trained on."""
    model, whole = Plain(cfg, n_items).train(), padded(split, cfg.data.max_his_len)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.train.lr_rec)

    def step(_: int) -> int:
        rows = whole[torch.randint(len(whole), (batch,))]
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), ignore_index=0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), cfg.train.max_grad_norm)
        optimizer.step()
        return batch

    return step


def our_steps(cfg: Config, split: Split, n_items: int, batch: int) -> Callable[[int], int]:
    """The same over the trainer's own batches."""
    model = SASRec(cfg, n_items).train()
    optimizer = optimizer_for(model.param_groups(), cfg.train)
    shape = Shape(batch, longest=cfg.data.max_his_len, tokens_per_item=1, targets="next")
    steps = Steps(split, epoch_plan(split, shape, cfg.data.seed, 0), shape)

    def step(i: int) -> int:
        (part,) = steps[i % len(steps)]
        optimizer.zero_grad()
        model(part)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), cfg.train.max_grad_norm)
        optimizer.step()
        return len(part.target_B)

    return step


def compare(cfg: Config, steps: int = 30, rounds: int = 5) -> dict[str, Any]:
    """Median users/s of both loops over alternating rounds of `steps` steps, and their ratio."""
    data = read_dataset(cfg.data)
    split = sequences(data.train, cfg.data.max_his_len)
    batch = max(1, round(cfg.train.batch_size * len(split) / len(data.train)))
    torch.manual_seed(cfg.data.seed)
    loops = {"ours": our_steps(cfg, split, data.n_items, batch), "plain": plain_steps(cfg, split, data.n_items, batch)}
    speed: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, step in loops.items():
            begin = time.perf_counter()
            users = sum(step(turn * steps + i) for i in range(steps))
            if turn:  # the first round warms up
                speed[name].append(users / (time.perf_counter() - begin))
    found = {name: float(np.median(v)) for name, v in speed.items()}
    return {
        "dataset": data.name, "batch": batch, "threads": torch.get_num_threads(), "ours_users_per_s": found["ours"],
        "plain_users_per_s": found["plain"], "ratio": found["ours"] / found["plain"],
    }  # fmt: skip


def command(argv: list[str]) -> None:
    given, words = main.take(argv, ["data_path"])
    names = [w for w in words if not w.startswith("-")]
    if len(names) != 1:
        raise Problem("bench_sasrec: needs one data set, a preset in config/")
    overrides = settings.parse_overrides([w for w in words if w not in names])
    overrides |= {"data_path": given["data_path"]} if given else {}
    preset = settings.read_yaml(ROOT / "config" / f"{names[0]}.yaml")
    cfg = settings.build({**preset, **overrides, "method": "sasrec"})
    for key, value in compare(cfg).items():
        print(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")


if __name__ == "__main__":
    keep_freed_memory()
    with problems_exit_2():
        command(sys.argv[1:])
