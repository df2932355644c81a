"""Training speed of SASRec beside a plain PyTorch loop, in users/s over the same sequences.

The plain loop is what most public programs do: random batches padded to their longest row,
torch's own encoder layers, and cross-entropy over every position, padding included and ignored afterwards.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compose import configure
from data import Shape, Steps, epoch_plan, sequences
from readers.splits import DataOptions, Split
from recommenders.items import ItemOptions
from scripts.bench.common import Figures, Job, device, figure, interleave, seconds
from settings import Config
from trainer import TrainOptions, optimizer_for


class Plain(nn.Module):
    """SASRec out of torch's parts, [B, S] padded item numbers to scores [B, S, N + 1]."""

    def __init__(self, cfg: Config, n_items: int) -> None:
        super().__init__()
        s, d = cfg[ItemOptions], cfg[ItemOptions].hidden_units
        self.items = nn.Embedding(n_items + 1, d, padding_idx=0)
        self.positions = nn.Embedding(cfg[DataOptions].max_his_len, d)
        layer = nn.TransformerEncoderLayer(d, s.num_heads, d, s.hidden_dropout, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, s.num_blocks, nn.LayerNorm(d), enable_nested_tensor=False)
        self.dropout = nn.Dropout(s.hidden_dropout)

    def forward(self, item_BS: Tensor) -> Tensor:
        place_S = torch.arange(item_BS.shape[1], device=item_BS.device)
        x = self.dropout(self.items(item_BS) * self.items.embedding_dim**0.5 + self.positions(place_S))
        later_SS = place_S > place_S[:, None]
        h: Tensor = self.blocks(x, mask=later_SS, is_causal=True)
        return h @ self.items.weight.T


def padded(split: Split, longest: int) -> Tensor:
    """All sequences padded on the right to longest + 1, [users, longest + 1]."""
    rows = np.zeros((len(split), longest + 1), np.int64)
    begin = np.maximum(split.position - longest, split.offsets[split.users()])
    for row, first, last in zip(rows, begin, split.position + 1, strict=True):
        row[: last - first] = split.items[first:last]
    return torch.from_numpy(rows)


def plain_step(cfg: Config, split: Split, n_items: int, batch: int) -> Callable[[int], None]:
    """step(i): one optimizer step of the plain loop."""
    model, whole = Plain(cfg, n_items).to(device()).train(), padded(split, cfg[DataOptions].max_his_len).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), cfg[TrainOptions].lr_rec)

    def step(_: int) -> None:
        rows = whole[torch.randint(len(whole), (batch,), device=device())]
        rows = rows[:, : int((rows > 0).sum(1).max())]
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), ignore_index=0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), cfg[TrainOptions].max_grad_norm)
        optimizer.step()

    return step


def our_step(cfg: Config, job: Job, split: Split, batch: int) -> Callable[[int], None]:
    """The same over the trainer's own batches; they come in random order of length."""
    model = job.model("sasrec", job.data()).train()
    optimizer = optimizer_for(model.param_groups(), cfg[TrainOptions])
    shape = Shape(batch, longest=cfg[DataOptions].max_his_len, tokens_per_item=1, targets="next")
    steps = Steps(split, epoch_plan(split, shape, cfg[DataOptions].seed, 0), shape)

    def step(i: int) -> None:
        (part,) = steps[i % len(steps)]
        optimizer.zero_grad()
        model(part.to(device()))[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), cfg[TrainOptions].max_grad_norm)
        optimizer.step()

    return step


def measure(job: Job) -> Figures:
    """users/s of both, in turns of the same number of steps."""
    cfg, data = configure.change(job.cfg, method="sasrec"), job.data()
    split = sequences(data.train, cfg[DataOptions].max_his_len)
    batch = max(1, round(cfg[TrainOptions].batch_size * len(split) / len(data.train)))
    ours, plain = our_step(cfg, job, split, batch), plain_step(cfg, split, data.n_items, batch)
    each = 10 if job.quick else 30

    def speed(step: Callable[[int], None]) -> Callable[[int], float]:
        def steps(turn: int) -> None:
            for i in range(turn * each, (turn + 1) * each):
                step(i)

        step(0)  # warm up
        return lambda turn: batch * each / seconds(lambda: steps(turn))

    found = interleave(job.rounds, {"ours": speed(ours), "plain": speed(plain)})
    return {"users_per_s": figure(found["ours"], found["plain"])}
