"""Masked diffusion over items: hide each with probability t, predict the hidden ones, weigh by 1 / t.

SASRec's blocks with attention in both directions and one more item, MASK; forward process and loss of
LLaDA (arXiv:2502.09992). The next item is a MASK at the end of the history, the next K are K of them.

Shape letters: B users, S positions, N items, d width, K masks to fill, R hidden positions of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from data import Batch
from layers import counter_uniform
from recommenders.items import (
    LOGITS,
    ItemEncoder,
    ItemOptions,
    SequenceModel,
    best_items,
    one_by_one,
    softmax_loss,
)
from recommenders.protocol import AllReduce, TopK
from settings import option
from utils import Problem


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(ItemOptions):
    decode_threshold: float = option(
        0.9,
        "probability at which a masked position is filled in multi-step decoding, 0 to 1",
        ge=0, le=1, judges=True, needs=("decoding: multi",),
    )
    decode_order: Literal["position", "confidence", "single_then_multi"] = option(
        "position",
        "order of a multi-step list: by position, by confidence, or the best next item first and then masked positions",
        judges=True, needs=("decoding: multi",),
    )
    decode_rounds: int | None = option(
        None,
        "number of rounds in which equal shares of the masked positions are filled; null = by decode_threshold",
        ge=1, judges=True, needs=("decoding: multi",),
    )


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(DiffusionOptions):
    sft_from: str | None = option(None, "best_model.pth of the diffsasrec run to fine-tune", path=True)


EPSILON = 1e-3  # smallest probability of a mask
DECAY = 0.9  # factor on the threshold of multi-step decoding until a place reaches it


class DiffSASRec(SequenceModel):
    Options: ClassVar[type[DiffusionOptions]] = DiffusionOptions
    extra_rows = 2  # and MASK
    step: Tensor

    def __init__(self, cfg: DiffusionOptions, n_items: int, longest: int, seed: int) -> None:
        super().__init__(cfg, n_items, longest)
        self.cfg, self.seed = cfg, seed
        self.mask = n_items + 1
        self.longest = longest + 1  # a history and one more
        self.encoder = ItemEncoder(cfg, n_items + self.extra_rows, self.longest, causal=False)
        self.targets = "next" if cfg.as_published else "all"
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    # ---- training

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the hidden items' cross-entropy / t over the number of items; 0 where none is hidden."""
        item_BS = batch.history_BS
        if self.targets == "all":  # as published, the last item of a history is left to fine-tuning
            item_BS = torch.cat([item_BS, batch.target_B[:, None]], 1)
        hidden_BS, t_B1 = self.noise(batch, item_BS)
        weight_BS = (1 / t_B1).expand_as(item_BS) / (item_BS > 0).sum()
        loss = self.masked_loss(item_BS, hidden_BS, weight_BS)
        return loss, {"loss": loss.detach(), "loss/rec": loss.detach()}

    def noise(self, batch: Batch, item_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(which items are hidden [B, S], t [B, 1]): a function of seed, step and sample alone.

        Positions count from the newest, so that padding changes nothing.
        """
        sample_B = batch.user_B * 7919 + batch.target_B
        seed = self.seed
        u_B1 = counter_uniform(seed, self.step, sample_B, 1, 1)
        t_B1 = EPSILON + (1 - EPSILON) * u_B1
        u_BS = counter_uniform(seed, self.step, sample_B, 0, item_BS.shape[1]).flip(1)
        return (u_BS < t_B1) & (item_BS > 0), t_B1

    def masked_loss(self, item_BS: Tensor, hidden_BS: Tensor, weight_BS: Tensor) -> Tensor:
        """Weighted sum of the cross-entropy of the hidden items, over all items that can be recommended."""
        h_BSd = self.encoder(item_BS.masked_fill(hidden_BS, self.mask))
        return softmax_loss(h_BSd[hidden_BS], self.table(), item_BS[hidden_BS] - 1, weight_BS[hidden_BS])

    def table(self) -> Tensor:
        """Embeddings of the real items, [N, d]: neither padding nor MASK is ever scored."""
        return self.encoder.items.weight[1 : self.mask]

    def after_step(self, all_reduce: AllReduce) -> None:
        self.step += 1

    # ---- recommending

    def choose(self, history_BS: Tensor, k: int, excluded_BS: Tensor | None) -> TopK:
        """k items, as `decoding` says: by score of the next item, as the next k in order, or one by one."""
        how = self.cfg.decoding
        if how == "single":
            return best_items(self.next_scores(history_BS), k, excluded_BS)
        if how == "autoregressive":
            return one_by_one(self.next_scores, history_BS, k, excluded_BS)
        size = max(1, LOGITS // (k * self.n_items))
        pieces = []
        for begin in range(0, len(history_BS), size):
            part = slice(begin, begin + size)
            pieces.append(self._multi(history_BS[part], k, None if excluded_BS is None else excluded_BS[part]))
        return TopK(*(torch.cat(x) for x in zip(*pieces, strict=True)))

    def masked_scores(self, history_BS: Tensor, filled_BK: Tensor) -> Tensor:
        """Scores [B, K, N] of what may follow, where 0 in `filled_BK` is yet to be filled."""
        count = filled_BK.shape[1]
        if count >= self.longest:
            raise Problem(
                f"k: a list of {count} items is as long as max_his_len, {self.longest - 1}, allows; ask for fewer"
            )
        x_BS = torch.cat(
            [history_BS[:, -(self.longest - count) :], filled_BK.masked_fill(filled_BK == 0, self.mask)], 1
        )
        return (self.encoder(x_BS)[:, -count:] @ self.table().T).float()

    def next_scores(self, history_BS: Tensor) -> Tensor:
        """Log-probabilities [B, N] of the item behind one MASK at the end."""
        return self.masked_scores(history_BS, history_BS.new_zeros(len(history_BS), 1))[:, 0].log_softmax(-1)

    def _multi(self, history_BS: Tensor, k: int, excluded_BS: Tensor | None) -> TopK:
        """Fill k masks; with `single_then_multi` the first of them alone."""
        s, first_B1 = self.cfg, history_BS.new_zeros(len(history_BS), 0)
        first_score_B1 = first_B1.float()
        taken = torch.zeros(len(history_BS), self.n_items + 1, dtype=torch.bool, device=history_BS.device)
        if excluded_BS is not None:
            taken.scatter_(1, excluded_BS, True)
        if s.decode_order == "single_then_multi":
            first_B1, first_score_B1 = best_items(self.next_scores(history_BS), 1, excluded_BS)
            history_BS = torch.cat([history_BS, first_B1], 1)
            taken.scatter_(1, first_B1, True)
        done = fill(
            lambda filled: self.masked_scores(history_BS, filled), taken[:, 1:], k - first_B1.shape[1], s,
            renormalise=not self.cfg.as_published,
        )  # fmt: skip
        item_BK, score_BK = done.item_BK, done.confidence_BK
        if s.decode_order == "confidence":
            score_BK, order = score_BK.sort(dim=1, descending=True, stable=True)
            item_BK = item_BK.gather(1, order)
        return TopK(torch.cat([first_B1, item_BK], 1), torch.cat([first_score_B1, score_BK.log()], 1))


# ---------------------------------------------------------------- multi-step decoding


class Filled(NamedTuple):
    item_BK: Tensor  # 0 only where nothing allowed was left
    confidence_BK: Tensor  # probability with which the place was filled
    rounds: int


def fill(
    score: Callable[[Tensor], Tensor], taken_BN: Tensor, k: int, s: DiffusionOptions, *, renormalise: bool = True
) -> Filled:
    """Fill k places in at most k rounds, each user on their own: nobody's list depends on the batch.

    score: items so far [B, K] (0: open) -> scores [B, K, N]; taken_BN: items that may not be used,
    changed in place. Each round fills the open places whose best item is at least as probable as the
    user's threshold, the most probable first; two places never get the same item. A threshold that
    nothing reaches falls by `DECAY` until something does. With `decode_rounds`, every round fills its
    share of the places instead.
    """
    users, device = len(taken_BN), taken_BN.device
    item_BK = torch.zeros(users, k, dtype=torch.long, device=device)
    confidence_BK = torch.zeros(users, k, device=device)
    threshold_B = torch.full((users,), s.decode_threshold, device=device)
    rounds = 0
    while rounds < k and ((item_BK == 0).any(1) & ~taken_BN.all(1)).any():
        p_BK, best_BK = _best(score(item_BK), taken_BN, renormalise)
        p_BK = p_BK.masked_fill(item_BK > 0, -1.0)
        if not p_BK.isfinite().all():
            raise Problem(
                "the model's scores are not finite, its training has diverged; train it again with a lower lr_rec"
            )
        if s.decode_rounds is None:
            threshold_B = lowered(threshold_B, p_BK.amax(1))
            least_B1, share = threshold_B[:, None], k
        else:
            least_B1, share = torch.zeros_like(p_BK[:, :1]), _share(k, s.decode_rounds, rounds)
        left_B = torch.full((users,), share, device=device)
        for place_B1 in p_BK.argsort(dim=1, descending=True, stable=True).split(1, 1):
            best_B1, p_B1 = best_BK.gather(1, place_B1), p_BK.gather(1, place_B1)
            ok_B1 = (p_B1 >= least_B1.clamp(min=0)) & ~taken_BN.gather(1, best_B1) & (left_B > 0)[:, None]
            item_BK.scatter_add_(1, place_B1, (best_B1 + 1) * ok_B1)
            confidence_BK.scatter_add_(1, place_B1, p_B1 * ok_B1)
            taken_BN.scatter_(1, best_B1, taken_BN.gather(1, best_B1) | ok_B1)
            left_B -= ok_B1[:, 0].int()
        rounds += 1
    return Filled(item_BK, confidence_BK, rounds)


def _best(score_BKN: Tensor, taken_BN: Tensor, renormalise: bool) -> tuple[Tensor, Tensor]:
    """(probability, index) of the best allowed item at each place; without renormalising, the others
    keep their share of the probability. Users with nothing left get probability 0.
    """
    allowed_BKN = score_BKN.masked_fill(taken_BN[:, None], -torch.inf)
    top_BK, best_BK = allowed_BKN.max(-1)
    whole_BK = (allowed_BKN if renormalise else score_BKN).logsumexp(-1)
    none_B1 = taken_BN.all(1, keepdim=True)
    return (top_BK - whole_BK).exp().masked_fill(none_B1, 0.0), best_BK


def lowered(threshold_B: Tensor, top_B: Tensor) -> Tensor:
    """threshold * DECAY^n with the least n that lets `top` pass; `top` itself where no n does."""
    n_B = ((top_B.clamp(min=0) / threshold_B).log() / torch.tensor(DECAY).log()).ceil().clamp(min=0)
    threshold_B = torch.where(n_B > 0, threshold_B * DECAY**n_B, threshold_B)
    return torch.minimum(threshold_B, top_B)


def _share(k: int, rounds: int, number: int) -> int:
    """Places of a round of the fixed schedule: k / rounds, the first rounds take the remainder."""
    if number >= rounds:
        return k
    return k // rounds + (number < k % rounds)


# ---------------------------------------------------------------- fine-tuning


class FineTuned(DiffSASRec):
    """Second stage: history and one MASK at the end -> the item there, as single-step decoding asks, from a trained
    `sft_from`.
    """

    Options: ClassVar[type[FineTuningOptions]] = FineTuningOptions
    pretrained = True

    def __init__(self, cfg: FineTuningOptions, n_items: int, longest: int, seed: int) -> None:
        super().__init__(cfg, n_items, longest, seed)
        self.targets = "one"

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over sequences of the loss of their last item, each sequence cut at random every other time."""
        item_BS = self.cut(torch.cat([batch.history_BS, batch.target_B[:, None]], 1), batch)
        last_BS = torch.zeros_like(item_BS, dtype=torch.bool)
        last_BS[:, -1] = True
        weight_BS = torch.ones_like(item_BS, dtype=torch.float32) / len(item_BS)
        loss = self.masked_loss(item_BS, last_BS, weight_BS)
        return loss, {"loss": loss.detach(), "loss/rec": loss.detach()}

    def cut(self, item_BS: Tensor, batch: Batch) -> Tensor:
        """Beginnings of random length, at least two items, of about half of the sequences; the rest whole."""
        u_B2 = counter_uniform(self.seed, self.step, batch.user_B * 7919 + batch.target_B, 2, 2)
        length_B = (item_BS > 0).sum(1)
        short_B = 2 + (u_B2[:, 0] * (length_B - 1)).long()
        drop_B1 = torch.where(u_B2[:, 1] < 0.5, length_B - short_B, 0)[:, None]
        place_BS = torch.arange(item_BS.shape[1], device=item_BS.device) - drop_B1
        return item_BS.gather(1, place_BS.clamp(min=0)).masked_fill(place_BS < 0, 0)
