"""SASRec (arXiv:1808.09781): a causal transformer over the items of a history predicts the next one.

Shape letters: B users, S positions, N items, d width, R real positions of a batch.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Batch
from recommenders import items
from recommenders.items import ItemEncoder, ItemOptions, SequenceModel, best_items, one_by_one, softmax_loss
from recommenders.protocol import TopK
from settings import option
from utils import Contradiction


@dataclass(frozen=True, kw_only=True)
class SASRecOptions(ItemOptions):
    sasrec_loss: Literal["ce_all", "bce", "ce_last"] = option(
        "ce_all",
        "training loss: ce_all = softmax over all items at every position, bce = one random negative per position, "
        "ce_last = softmax at the last position",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoding == "multi":
            raise Contradiction(
                "decoding: multi fills masked positions, which sasrec is not trained for; use single or autoregressive",
                {"decoding": "single"}, {"decoding": "autoregressive"}, {"method": "diffsasrec"},
            )  # fmt: skip


class SASRec(SequenceModel):
    """Trained on whole sequences: every position predicts the item after it.

    Losses: `ce_all`, softmax over the catalogue (the strong variant, arXiv:2309.07602), of a large one over a sample;
    `bce`, one random negative a position (the paper); `ce_last`, softmax at the last position only.
    """

    Options: ClassVar[type[SASRecOptions]] = SASRecOptions

    def __init__(self, cfg: SASRecOptions, n_items: int, longest: int, seed: int) -> None:
        super().__init__(cfg, n_items, longest)
        self.cfg = cfg
        self.encoder = ItemEncoder(cfg, n_items + self.extra_rows, longest, causal=True)
        self.targets = "one" if cfg.sasrec_loss == "ce_last" else "next"

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the batch's targets."""
        h_BSd = self.encoder(batch.history_BS)
        next_BS = torch.cat([batch.history_BS[:, 1:], batch.target_B[:, None]], 1)
        chosen_BS = batch.history_BS > 0
        if self.targets == "one":
            chosen_BS = torch.zeros_like(chosen_BS).index_fill(1, chosen_BS.new_tensor([-1], dtype=torch.long), True)
        h_Rd, next_R = h_BSd[chosen_BS], next_BS[chosen_BS]
        if self.cfg.sasrec_loss == "bce":
            sequence = torch.cat([batch.history_BS, batch.target_B[:, None]], 1)
            negative_R = absent_items(sequence, batch.history_BS.shape[1], self.n_items)[chosen_BS]
            loss = self._binary(h_Rd, next_R, negative_R)
        elif self.n_items > items.EXACT:
            loss = items.sampled_loss(h_Rd, lambda row_X: self.encoder.items(row_X + 1), next_R - 1, self.n_items)
        else:
            one_R = torch.full_like(next_R, 1 / len(next_R), dtype=h_Rd.dtype)
            loss = softmax_loss(h_Rd, self.encoder.items.weight[1:], next_R - 1, one_R)
        return loss, {"loss": loss.detach(), "loss/rec": loss.detach()}

    def announce(self, reachable: dict[str, float]) -> None:
        if self.cfg.sasrec_loss != "bce":
            items.say_sampled(self.n_items)

    def _binary(self, h_Rd: Tensor, next_R: Tensor, negative_R: Tensor) -> Tensor:
        table = self.encoder.items
        right_R, wrong_R = ((h_Rd * table(i)).sum(-1) for i in (next_R, negative_R))
        return -(F.logsigmoid(right_R) + F.logsigmoid(-wrong_R)).mean()

    def choose(self, history_BS: Tensor, k: int, excluded_BS: Tensor | None) -> TopK:
        """The k best next items, best first, or (`decoding: autoregressive`) a continuation by k items."""
        if self.cfg.decoding == "autoregressive":
            return one_by_one(self.next_scores, history_BS, k, excluded_BS)
        return best_items(self.next_scores(history_BS), k, excluded_BS)

    def next_scores(self, history_BS: Tensor) -> Tensor:
        """Log-probabilities of the next item, [B, N]."""
        h_Bd = self.encoder(history_BS[:, -self.max_his_len :])[:, -1]
        return (h_Bd @ self.encoder.items.weight[1:].T).float().log_softmax(1)


def absent_items(item_BS: Tensor, draws: int, n_items: int) -> Tensor:
    """Uniform items that do not occur in a row, [B, draws]; 0 in the row is padding.

    The r-th absent item (from 0) is r + 1 + the number of present ones before it.
    """
    present_BS = item_BS.sort(1).values
    again_BS = F.pad(present_BS[:, 1:] == present_BS[:, :-1], (1, 0)) | (present_BS == 0)
    place_BS = (~again_BS).cumsum(1) - 1
    # absent items before the j-th present one; repeats and padding never count
    before_BS = (present_BS - 1 - place_BS).masked_fill(again_BS, n_items)
    count_B1 = n_items - (~again_BS).sum(1, keepdim=True)
    r_BD = (torch.rand(len(item_BS), draws, device=item_BS.device) * count_B1).long()
    item_BD = r_BD + 1 + torch.searchsorted(before_BS.sort(1).values, r_BD, right=True)
    return item_BD.clamp(max=n_items)  # a row may hold every item
