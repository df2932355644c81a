"""The gradient check (docs/method.md, section 5.2): L_rec must reach every codebook on every path that it should."""

import contextlib
from typing import Any

import numpy as np
import torch

from data import Batch
from model import PATHS
from recommenders.protocol import Autocast
from utils import Problem


def check(model: Any, *parts: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
    """Norm of L_rec's gradient at each codebook, path by path, over parts that weigh together 1.

    Problem when one is zero or not finite although the model lists that path in `paths`.
    """
    figures: dict[str, float] = {}
    codebooks = model.tokenizer.codebooks()
    for path in PATHS:
        paths = (path,) if path in model.paths else ()
        sums = [torch.zeros_like(p) for p in codebooks.values()]
        for batch in parts:
            with autocast():
                usage = model.log_usage(batch.item_U)
                loss = model.sid_loss(batch, model.quantize(batch), paths, usage).loss * batch.weight
            found = torch.autograd.grad(loss, list(codebooks.values()), allow_unused=True)
            sums = [s if g is None else s + g for s, g in zip(sums, found, strict=True)]
        figures |= {f"grad/{name}/{path}": float(s.norm()) for name, s in zip(codebooks, sums, strict=True)}
    if model.paths:
        idle = set.intersection(*(idle_paths(model, batch) for batch in parts))
        refuse_cut({k: v for k, v in figures.items() if k not in idle})
    return figures


def idle_paths(model: Any, batch: Batch) -> set[str]:
    """Paths that legal_softmax leaves without a gradient: no target of the batch has a choice behind them."""
    if not model.search.legal_softmax:
        return set()
    open_UP = model.legal.open(batch.item_U)
    open_RP, teacher_RP = (open_UP[batch.goals(t)] for t in (model.targets, model.recommender.taught))
    names = list(model.tokenizer.codebooks())
    teachers = {f"grad/{name}/teacher" for i, name in enumerate(names) if not teacher_RP[:, i + 1 :].any()}
    return teachers | {f"grad/{name}/target" for i, name in enumerate(names) if not open_RP[:, i].any()}


def refuse_cut(figures: dict[str, float]) -> None:
    """Problem when a path to a codebook is cut."""
    for key, norm in figures.items():
        if norm == 0 or not np.isfinite(norm):
            raise Problem(
                f"{key} is {norm}: the recommendation loss does not reach this codebook; "
                "check logit_scale and gumbel_tau (a saturated softmax has no gradient), or set gradient: detached"
            )
