"""SIDs of unlike length beside those of one length, under the same network and histories.

The codes are random; every second item keeps all of them, the others lose one or two: what is measured is what lengths
cost, not what they tell.
"""

from functools import partial
from typing import Any

import numpy as np
import torch

from compose import build, configure
from data import Shape, Steps, epoch_plan, evaluation_plan, make_batch, within
from readers.dataset import Dataset
from readers.splits import DataOptions
from scripts.bench.common import Figures, Job, device, figure, interleave, seconds
from sids.tokenizer import CodeOptions
from trainer import TrainOptions

USERS = 64


class Side:
    """A recommender over a catalogue of random codes, whole or cut."""

    def __init__(self, job: Job, data: Dataset, *, cut: bool) -> None:
        torch.manual_seed(0)
        sizes = torch.tensor(job.cfg[CodeOptions].num_emb_list)
        code_NT = (torch.rand(data.n_items, len(sizes)) * sizes).long()
        if cut:
            length_N = torch.arange(data.n_items) % 4
            length_N = torch.where(length_N < 2, len(sizes), (len(sizes) + 1 - length_N).clamp(min=1))
            code_NT = code_NT.masked_fill(torch.arange(len(sizes)) >= length_N[:, None], -1)
        cfg = configure.change(job.cfg, method="two_stage", target_length=float(len(sizes)))
        self.cfg, self.data = cfg, data
        self.model: Any = build.empty_model(cfg, data.n_items, code_NT=code_NT).to(device())
        self.model.set_codes(code_NT.to(device()), data.popularity[1:])  # type: ignore[operator]
        self.longest = cfg[DataOptions].max_his_len
        t = cfg[TrainOptions]
        split = within(data.train, None, self.model.item_tokens)
        shape = Shape(t.batch_size, longest=self.longest, tokens=t.token_budget or 8192,
                      tokens_per_item=self.model.tokens_per_item)  # fmt: skip
        self.steps = Steps(split, epoch_plan(split, shape, 0, 0), shape)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)

    def users_per_s(self, width: int, turn: int) -> float:
        rows = evaluation_plan(self.data.test, USERS, self.longest)[turn]
        history_BS = make_batch(self.data.test, rows, self.longest).history_BS.to(device())
        self.model.eval()
        return len(rows) / seconds(partial(self.model.recommend, history_BS, width))

    def samples_per_s(self, turn: int) -> float:
        self.model.train()
        parts = self.steps[turn]
        return sum(len(part.target_B) for part in parts) / seconds(partial(self._step, parts))

    def _step(self, parts: Any) -> None:
        self.optimizer.zero_grad()
        for part in parts:
            (self.model(part.to(device()))[0] * part.weight.float()).backward()
        self.optimizer.step()

    @property
    def places(self) -> int:
        return len(self.model.sids.vocabulary)


def measure(job: Job) -> Figures:
    """Search, a step of it (as many for both sides), training, tokens an item; the baseline has one length."""
    data = job.data()
    sides = {"cut": Side(job, data, cut=True), "whole": Side(job, data, cut=False)}
    found: Figures = {}
    for width in job.beams:
        for side in sides.values():
            side.users_per_s(width, 0)
        users = interleave(job.rounds, {name: partial(side.users_per_s, width) for name, side in sides.items()})
        found[f"users_per_s@{width}"] = figure(users["cut"], users["whole"])
        each = {name: [1e3 / u / sides[name].places for u in speed] for name, speed in users.items()}
        found[f"ms_per_user_and_token@{width}"] = figure(each["cut"], each["whole"])
    samples = interleave(job.rounds + 1, {name: side.samples_per_s for name, side in sides.items()})
    found["samples_per_s"] = figure(samples["cut"][1:], samples["whole"][1:])
    tokens = [float(np.mean(side.model.item_tokens)) for side in sides.values()]
    return found | {"tokens_per_item": figure(*tokens)}
