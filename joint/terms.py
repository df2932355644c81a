"""Losses of ours, each a small class with its formula (docs/beyond-the-paper.md, 2.4, 4.3); off by default.

A term has a `name` for the log and is called with (model, batch, what `sid_loss` found); its weight is the model's.

Shape letters: N items of the catalogue, R rows that a step predicts, h recommender width, d latent width.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data import Batch
from model import RecLoss
from recommenders import items


class Term(Protocol):
    name: str

    def __call__(self, model: Any, batch: Batch, rec: RecLoss) -> Tensor: ...


class ItemTerm:
    """L_item: cross-entropy of the next item itself among all items (LIGER, arXiv:2411.18814)."""

    name = "item"

    def __call__(self, model: Any, batch: Batch, rec: RecLoss) -> Tensor:
        loss: Tensor = model.item_loss(batch, rec)
        return loss


class LatentTerm(nn.Linear):
    """L_latent = -mean_r log softmax_v((W h_r + b) . z_v)_target: the next item is predicted among the latents that the
    codes are made of, so that latents learn what is bought together.
    """

    name = "latent"

    def forward(self, model: Any, batch: Batch, rec: RecLoss) -> Tensor:  # type: ignore[override]
        query_Rd, item_R = super().forward(rec.state_Rh), batch.item_U[rec.row_R]
        if model.n_items > items.EXACT:
            return items.sampled_loss(query_Rd, model.tokenizer.item_vectors, item_R - 1, model.n_items)
        one_R = torch.ones_like(item_R, dtype=torch.float32)
        return items.softmax_loss(query_Rd, model.tokenizer.item_vectors(), item_R - 1, one_R) / len(item_R)


class OffsetTerm:
    """L_offset = mean_v |delta_v|^2 / (2 rms^2): a Gaussian prior that holds rare items where their content is."""

    name = "offset"

    def __call__(self, model: Any, batch: Batch, rec: RecLoss) -> Tensor:
        energy: Tensor = model.tokenizer.offset_energy()
        return energy
