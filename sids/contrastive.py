"""FORGE's tokenizer (arXiv:2509.20904): an RQ-VAE that also learns which items users take together.

Two tasks, in turn or summed: reconstruction of every item, and contrast of co-occurring pairs against the other pairs
of the batch, on the decoder's outputs. Formulas and what differs from the published program: docs/forge.md.

Shape letters: N items, P pairs, B pairs of a batch, R of them this process's own (all, where it is alone), D width.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settings import option
from sids import distributed
from sids.pairs import Pairs, pairs_of
from sids.tokenizer import Source
from utils import Contradiction, Problem
from vq import RQVAE, RQVAEOptions

TERMS = ("self", "ori", "cl")  # output to output, output to the partner's input, output to its own input
TEMPERATURE, MAX_SCALE = 0.07, 100.0  # of each term at the start; the bound of 1 / temperature, which is learned


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(RQVAEOptions):
    task: Literal["both", "reconstruction", "contrastive"] = option(
        "both", "pre-training task: reconstruction, contrast of co-occurring items, or both"
    )
    mixing: Literal["alternate", "sum"] = option(
        "alternate",
        "how two tasks are combined: alternate = one task per step in random order, sum = both losses in every step",
        needs=("task: both",),
    )
    quant_loss_weight: float = option(
        0.5, "weight of the VQ loss relative to the reconstruction loss, at least 0", ge=0
    )
    beta: float = option(1.0, "weight of the commitment term in the VQ loss, at least 0", ge=0)
    dead_code_ratio: float = option(
        0.1,
        "share of the mean usage below which a code is reset to a random latent of the batch; 0 = never",
        ge=0, le=0.9,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixing == "sum" and self.task != "both":
            raise Contradiction(f"mixing: sum needs task: both, not {self.task}",
                                {"mixing": "alternate"}, {"task": "both"})  # fmt: skip


class Step(NamedTuple):
    """What a step of pre-training learns from: rows to reconstruct, pairs [B, 2] to contrast; one may be missing."""

    rows: Tensor | None
    pair_B2: Tensor | None


class Adjacency:
    """Who is a known partner of whom, for the items of a batch."""

    def __init__(self, pairs: Pairs, n_items: int) -> None:
        both = np.concatenate([pairs.item_P2, pairs.item_P2[:, ::-1]])
        both = both[np.argsort(both[:, 0], kind="stable")]
        self.begin_N = np.searchsorted(both[:, 0], np.arange(n_items + 1))
        self.partner = both[:, 1]

    def among(self, item_U: np.ndarray) -> np.ndarray:
        """[U, U] bool for different sorted items."""
        length_U = self.begin_N[item_U + 1] - self.begin_N[item_U]
        row = np.repeat(np.arange(len(item_U)), length_U)
        start = np.repeat(self.begin_N[item_U] - (length_U.cumsum() - length_U), length_U)
        partner = self.partner[start + np.arange(len(row))]
        place = np.searchsorted(item_U, partner).clip(max=len(item_U) - 1)
        known = np.zeros((len(item_U), len(item_U)), bool)
        there = item_U[place] == partner
        known[row[there], place[there]] = True
        return known


class Excluded(NamedTuple):
    """What is no negative of each row, [R, B] bool each, false for its own candidate: candidates right or left."""

    left_right: Tensor | None = None
    right_left: Tensor | None = None
    left_left: Tensor | None = None
    right_right: Tensor | None = None


def excluded(pair_B2: Tensor, adjacency: Adjacency | None, device: torch.device | str = "cpu") -> Excluded:
    """Candidates that are the row's own item, its partner, or (with an adjacency) any known partner of it."""
    item_U, place = np.unique(pair_B2.numpy(), return_inverse=True)
    left, right = torch.from_numpy(place.reshape(-1, 2)).unbind(1)
    mine = torch.arange(len(left))[distributed.own(len(left))]
    same_UU = torch.eye(len(item_U), dtype=torch.bool)
    known_UU = same_UU if adjacency is None else same_UU | torch.from_numpy(adjacency.among(item_U))

    def mask(query: Tensor, partner: Tensor, candidate: Tensor) -> Tensor:
        found_RB = known_UU[query[mine]][:, candidate] | same_UU[partner[mine]][:, candidate]
        found_RB[torch.arange(len(mine)), mine] = False
        return found_RB.to(device)

    return Excluded(
        mask(left, right, right), mask(right, left, left), mask(left, left, left), mask(right, right, right)
    )


def contrast(
    query_BD: Tensor, candidate_BD: Tensor, scale: Tensor, excluded_RB: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(cross-entropy of finding candidate i for query i among all, share found) of rows of length 1.

    Of several processes each asks for its own rows; the mean over the processes is that of all rows.
    """
    mine = distributed.own(len(query_BD))
    logits_RB = scale * query_BD[mine] @ candidate_BD.T
    if excluded_RB is not None:
        logits_RB = logits_RB.masked_fill(excluded_RB, -torch.inf)
    goal_R = torch.arange(len(query_BD), device=logits_RB.device)[mine]
    each = distributed.processes() / len(query_BD)
    loss = F.cross_entropy(logits_RB, goal_R, reduction="sum") * each
    return loss, (logits_RB.argmax(1) == goal_R).sum() * each


class Contrast(NamedTuple):
    loss: Tensor  # mean of the terms
    terms: dict[str, Tensor]
    accuracy: Tensor  # of `self` and `ori`, both directions


def contrastive_loss(
    output: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor], scale_3: Tensor, no: Excluded | None
) -> Contrast:
    """The mean of the three terms, each over both directions.

    With a, b the outputs of the pairs' items, X, Y their inputs, all at length 1 (the program left X and Y as they
    came): self = [CE(s a B') + CE(s b A')] / 2, ori = [CE(s a Y') + CE(s b X')] / 2, cl = [CE(s a X') + CE(s b Y')] /
    2.
    """
    a, b, x, y = (F.normalize(t, dim=1) for t in (*output, *inputs))
    no = no or Excluded()
    sides = {
        "self": ((a, b, no.left_right), (b, a, no.right_left)),
        "ori": ((a, y, no.left_right), (b, x, no.right_left)),
        "cl": ((a, x, no.left_left), (b, y, no.right_right)),
    }
    terms, found = {}, []
    for name, s in zip(TERMS, scale_3, strict=True):
        both = [contrast(query, candidate, s, mask) for query, candidate, mask in sides[name]]
        terms[name] = (both[0][0] + both[1][0]) / 2
        found += [share for _, share in both if name != "cl"]
    return Contrast(torch.stack(list(terms.values())).mean(), terms, torch.stack(found).mean())


class ContrastiveRQVAE(RQVAE):
    """An RQ-VAE with FORGE's two tasks; its network and its state are the RQ-VAE's, and the temperatures."""

    Options: ClassVar[type[ContrastiveOptions]] = ContrastiveOptions
    cfg: ContrastiveOptions
    cumulative = True

    def __init__(self, cfg: ContrastiveOptions, n_input: int) -> None:
        super().__init__(cfg, n_input)
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            linear.reset_parameters()  # smaller than the RQ-VAE's start, which leaves twice the collisions here
        self.theta = nn.Parameter(torch.full((len(TERMS),), -math.log(TEMPERATURE)))
        self.keeps_last = cfg.task != "reconstruction"  # an output's length means nothing, so that its error may rise
        self._pairs: Pairs | None = None
        self._adjacency: Adjacency | None = None

    def pairs(self, source: Source) -> Pairs:
        """The training part's pairs, counted once."""
        if self._pairs is None:
            self._pairs = pairs_of(source.train, len(source.content_ND), self.cfg)
            if not len(self._pairs):
                raise Problem(
                    "task: the training part holds no pair of items; lower pair_min_count, or set task: reconstruction"
                )
            self._adjacency = Adjacency(self._pairs, len(source.content_ND))
        return self._pairs

    def batches(self, source: Source, size: int, seed: int, epoch: int) -> list[Step]:  # type: ignore[override]
        """Every item and every pair once, each pair in a random order of its two; `size` of them at a time."""
        task = self.cfg.task
        whole: list[Tensor] = [] if task == "contrastive" else super().batches(source, size, seed, epoch)
        if task == "reconstruction":
            return [Step(rows, None) for rows in whole]
        random = np.random.default_rng([seed, epoch, 12])
        pairs = self.pairs(source)
        drawn = random.permutation(len(pairs))
        turned = random.random(len(drawn)) < 0.5
        pair_P2 = np.where(turned[:, None], pairs.item_P2[drawn][:, ::-1], pairs.item_P2[drawn])
        halves = torch.from_numpy(pair_P2).split(size)
        if self.cfg.mixing == "sum":
            return [Step(whole[i % len(whole)], half) for i, half in enumerate(halves)]
        steps = [*(Step(rows, None) for rows in whole), *(Step(None, half) for half in halves)]
        return [steps[i] for i in random.permutation(len(steps))]

    def loss(self, batch: Step, step: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Reconstruction of the rows, contrast of the pairs, and the VQ loss of both."""
        total = torch.zeros((), device=self.theta.device)
        parts: dict[str, Tensor] = {}
        if batch.rows is not None:
            total, parts = super().loss(batch.rows, step)
        if batch.pair_B2 is not None:
            found, vq = self.contrast(batch.pair_B2)
            total = total + found.loss + self.cfg.quant_loss_weight * vq
            parts |= {"contrast": found.loss, "contrast_vq": vq, "accuracy": found.accuracy}
        return total, parts

    def contrast(self, pair_B2: Tensor) -> tuple[Contrast, Tensor]:
        """(contrastive loss, VQ loss) of some pairs; both sides pass the network together."""
        x_ND = self.rows_of(pair_B2.T.reshape(-1))
        out_Nd, vq, _ = self.straight_through(distributed.spread(self.encoder, x_ND), self.cfg.rqvae_assignment)
        output = distributed.spread(self.decoder, out_Nd)
        no = excluded(pair_B2.cpu(), self._adjacency, x_ND.device)
        left_right, inputs = output.chunk(2), x_ND.chunk(2)
        return contrastive_loss((left_right[0], left_right[1]), (inputs[0], inputs[1]), self.theta.exp(), no), vq

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The codebooks' upkeep, and temperatures within their bound."""
        figures = super().after_step(optimizer)
        with torch.no_grad():
            self.theta.clamp_(0, math.log(MAX_SCALE))
        return figures if self.cfg.task == "reconstruction" else figures | {"scale": self.theta.exp().max()}
