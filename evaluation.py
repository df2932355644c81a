"""Ranks every user of a split, over all processes; the figures that follow."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tqdm import tqdm

import metrics
from data import evaluation_plan, make_batch, seen_items, within
from metrics import EvalOptions, cutoff
from readers.splits import DataOptions, Split
from recommenders.protocol import Ranker, unsound
from runs import guard
from runs.folder import RunFolder
from runs.shards import whole
from utils import Problem, log, out_of_memory


@dataclass(frozen=True)
class Evaluation:
    """Ranks of all users of a split, in the split's order, and what follows from them."""

    rank: np.ndarray  # int32 [users], as saved; the list's length where the target is missing
    figures: dict[str, float]


class NotFinite(Problem):
    """Scores that rank nothing; met by all processes alike. what: which ones they are."""

    def __init__(self, title: str, what: str) -> None:
        super().__init__(
            f"{title}: {what} are not finite: weights or embeddings are too large; lower the learning rates"
        )
        self.what = what


@torch.inference_mode()
def evaluate(
    model: Ranker, split: Split, e: EvalOptions, history: DataOptions, acc: Accelerator, title: str
) -> Evaluation:
    """Rank every user of a split once, over all processes; NotFinite, on all of them, when scores are not finite."""
    model.eval()
    longest = history.max_his_len
    split = within(split, history.history_tokens, model.item_tokens)
    top = max(cutoff(m) for m in e.metrics)
    k = max(top, model.free_length)
    plan = evaluation_plan(split, e.eval_batch_size, longest)
    groups = model.groups()
    rank_M = torch.zeros(2 + len(groups), len(split), dtype=torch.long, device=acc.device)  # of items, unsound?, groups
    first_N = torch.full((model.n_items + 1,), k, dtype=torch.long, device=acc.device)  # best place of each item
    invalid = torch.zeros(2, dtype=torch.double, device=acc.device)

    def rank_users(rows: np.ndarray) -> None:
        batch = make_batch(split, rows, longest).to(acc.device)
        excluded = seen_items(split, rows).to(acc.device) if e.mask_seen else None
        with acc.autocast():
            found = model.recommend(batch.history_BS, k, excluded)
        item_BK = F.pad(found.item_BW, (0, k - found.item_BW.shape[1]))  # fewer than k candidates
        place = torch.from_numpy(rows).to(acc.device)
        rank_M[1, place] = unsound(found.score_BW, excluded=excluded is not None).long()
        rank_M[0, place] = metrics.target_rank(item_BK, batch.target_B)
        for row, group_N in enumerate(groups.values(), 2):
            rank_M[row, place] = metrics.group_rank(item_BK, batch.target_B, group_N)
        place_BK = torch.arange(item_BK.shape[1], device=acc.device).expand_as(item_BK)
        first_N.scatter_reduce_(0, item_BK.flatten(), place_BK.flatten(), "amin")
        asked_BK = item_BK[:, :top]
        invalid.add_(torch.stack([(asked_BK == 0).sum(), torch.ones_like(asked_BK).sum()]))

    begin = time.perf_counter()
    with whole(model):
        for rows in bar(plan[acc.process_index :: acc.num_processes], title, acc):
            guard.stop_if_asked()
            halved_until_it_fits(rows, rank_users)
    rank_M, invalid = (acc.reduce(t.to(torch.double), "sum") for t in (rank_M, invalid))
    first_N = acc.gather(first_N[None]).amin(0)
    seconds = time.perf_counter() - begin
    covered = first_N[1:].bincount(minlength=k)[:k].cumsum(0).double() / model.n_items
    coverage = {i: float(c) for i, c in enumerate(covered, 1)}
    rank = rank_M.long().cpu()
    if lost := int(rank[1].sum()):
        raise NotFinite(title, f"the scores of {lost} of {len(split)} users")
    figures = metrics.summarise(rank[0], e.metrics, coverage)
    figures[f"coverage@{top}"] = coverage[top]
    for name, of_group in zip(groups, rank[2:], strict=True):
        figures |= {f"{name}/{m}": v for m, v in metrics.summarise(of_group, e.metrics).items()}
    figures["invalid_share"] = float(invalid[0] / invalid[1].clamp(min=1))
    figures |= {"num_users": len(split), "list_length": k, "users_per_s": len(split) / seconds}
    return Evaluation(rank[0].numpy().astype(np.int32), figures)


def halved_until_it_fits(rows: np.ndarray, work: Callable[[np.ndarray], None]) -> None:
    """work(rows), or its halves where the whole runs out of memory; Problem when a single row does."""
    try:
        work(rows)
        return
    except RuntimeError as e:
        if not out_of_memory(e):
            raise
    if len(rows) == 1:
        raise Problem("out of memory on a single user; lower max_his_len, or the width of the model's search")
    log.warning(f"evaluation of {len(rows)} users runs out of memory, halving them; a lower eval_batch_size avoids it")
    torch.cuda.empty_cache()
    for half in np.array_split(rows, 2):
        halved_until_it_fits(half, work)


def bar(steps: Any, title: str, acc: Accelerator) -> Any:
    """A progress bar on a terminal, nothing elsewhere."""
    return tqdm(steps, title, leave=False, disable=None if acc.is_main_process else True, dynamic_ncols=True)


def save_ranks(run: RunFolder, name: str, found: Evaluation, users: np.ndarray) -> None:
    """Per-user ranks [2, users]: user number, rank; new cut-offs and tests need no second run."""
    run.save_array(f"ranks-{name}.npy", np.stack([users, found.rank]).astype(np.int32))
