"""Ranking metrics with one relevant item per user, as pure functions of its rank.

rank_B is 0 for a hit at the top and any value >= k for a miss, so every metric at every cut-off
follows from this one tensor. Järvelin & Kekäläinen 2002 for NDCG (ideal DCG is 1 here).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from settings import option
from utils import Contradiction, Problem, quoted, whole_number


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    metrics: list[str] = option(
        ["recall@1", "recall@5", "recall@10", "ndcg@1", "ndcg@5", "ndcg@10"],
        "metrics to report: recall@k (or hr@k), ndcg@k, mrr@k and coverage@k",
    )
    valid_metric: str = option("ndcg@10", "validation metric that selects the best checkpoint", judges=True)
    eval_step: int = option(1, "number of epochs between two validations", ge=1)
    eval_batch_size: int = option(256, "number of users per evaluation batch and process", ge=1)
    mask_seen: bool = option(False, "whether items of the user's history are excluded from recommendation", judges=True)

    def __post_init__(self) -> None:
        for name in self.metrics:
            cutoff(name)
        if cutoff(self.valid_metric) and self.valid_metric not in self.metrics:
            raise Contradiction(
                f"valid_metric: {quoted(self.valid_metric)} is not among metrics {self.metrics}",
                *({"valid_metric": name} for name in self.metrics[:1]), {"metrics": [*self.metrics, self.valid_metric]},
            )  # fmt: skip


def cutoff(metric: str) -> int:
    """The k of `recall@k`; Problem for anything that is not a metric."""
    name, _, k = metric.partition("@")
    if name not in METRICS or not whole_number(k):
        raise Problem(f"metrics: {quoted(metric)} is not one of {', '.join(m + '@k' for m in METRICS)}")
    return int(k)


def target_rank(item_BK: Tensor, target_B: Tensor) -> Tensor:
    """Position of each target in its ranked list, [B]; K when it is absent."""
    hit_BK = item_BK == target_B[:, None]
    return torch.where(hit_BK.any(1), hit_BK.int().argmax(1), item_BK.shape[1])


def group_rank(item_BK: Tensor, target_B: Tensor, group_N: Tensor) -> Tensor:
    """The same where items of one group (equal SID prefix) count as one entry, [B].

    group_N[i] is the group of item i, entry 0 belongs to padding (-1).
    """
    group_BK, wanted_B1 = group_N[item_BK], group_N[target_B][:, None]
    repeats_BKK = (group_BK[:, :, None] == group_BK[:, None, :]).tril(-1)
    first_BK = ~repeats_BKK.any(2) & (group_BK >= 0)
    place_BK = first_BK.cumsum(1) - 1
    hit_BK = first_BK & (group_BK == wanted_B1)
    place_B = place_BK.gather(1, hit_BK.int().argmax(1, keepdim=True))[:, 0]
    return torch.where(hit_BK.any(1), place_B, item_BK.shape[1])


def recall(rank_B: Tensor, k: int) -> Tensor:
    """1 where the target is among the first k, else 0, [B]; rank_B counts from 0."""
    return (rank_B < k).double()


def ndcg(rank_B: Tensor, k: int) -> Tensor:
    """1 / log2(rank + 2) where the target is among the first k, else 0, [B]; the ideal is 1."""
    return torch.where(rank_B < k, 1 / torch.log2(rank_B.double() + 2), 0.0)


def mrr(rank_B: Tensor, k: int) -> Tensor:
    """1 / (rank + 1) where the target is among the first k, else 0, [B]."""
    return torch.where(rank_B < k, 1 / (rank_B.double() + 1), 0.0)


PER_USER = {"recall": recall, "hr": recall, "ndcg": ndcg, "mrr": mrr}
METRICS = (*PER_USER, "coverage")


def per_user(name: str, rank_B: Tensor) -> Tensor:
    """A metric named like `recall@10` of each user, [B] float64."""
    kind, _, _ = name.partition("@")
    return PER_USER[kind](rank_B, cutoff(name))


def is_per_user(name: str) -> bool:
    """Coverage is not: it belongs to all lists together."""
    return name.partition("@")[0] in PER_USER


def summarise(rank_B: Tensor, names: list[str], coverage: dict[int, float] | None = None) -> dict[str, float]:
    """Mean over users of each metric named like `recall@10`; coverage@k is looked up."""
    found = {}
    for name in names:
        k = cutoff(name)  # refuses what is no metric
        if is_per_user(name):
            found[name] = float(per_user(name, rank_B).mean())
        elif coverage is not None:
            found[name] = coverage[k]
    return found


def half_interval(x_B: Tensor) -> float:
    """Half of the 95 % interval of a mean over users; 0 where one alone tells nothing."""
    return 1.96 * float(x_B.std()) / len(x_B) ** 0.5 if len(x_B) > 1 else 0.0


def paired_difference(ours_B: Tensor, theirs_B: Tensor) -> tuple[float, float]:
    """(mean difference, its z) of a per-user metric of two systems on the same users."""
    d = ours_B.double() - theirs_B.double()
    if len(d) < 2:
        return float(d.mean()), 0.0
    error = d.std() / len(d) ** 0.5
    return float(d.mean()), float(d.mean() / error) if error > 0 else 0.0
