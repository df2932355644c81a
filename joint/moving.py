"""What every joint method shares: the tokenizer is part of the model, and the catalogue's SIDs move with it.

Shape letters: N items of the catalogue, U distinct items of a batch, R rows that a step predicts, T code positions,
P token positions, K codes of a level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from joint.quantizer import JointRQVAE
from model import GenerativeModel, SidParts
from recommenders.protocol import AllReduce
from settings import option
from sids.search import SearchOptions
from sids.tokenizer import Source
from utils import Contradiction, Problem, log
from vq import RQVAEOptions

COLLAPSED = 8  # a level whose perplexity is below K / 8 is called collapsing


@dataclass(frozen=True, kw_only=True)
class MovingOptions:
    """How long semantic IDs move."""

    id_first_epoch: int = option(0, "first epoch, counted from 0, in which the tokenizer is trained", ge=0)
    id_last_epoch: int | None = option(
        None, "last epoch, counted from 0, in which the tokenizer is trained; null = the last of all", ge=0
    )

    def __post_init__(self) -> None:
        if self.id_last_epoch is not None and self.id_last_epoch < self.id_first_epoch:
            raise Contradiction(
                f"id_last_epoch: {self.id_last_epoch} comes before id_first_epoch {self.id_first_epoch}: the tokenizer "
                "would never move; for that, method: two_stage",
                {"id_last_epoch": None}, {"id_first_epoch": 0},
            )  # fmt: skip

    def moves(self, epoch: int) -> bool:
        """Do semantic IDs move in an epoch, counted from 0?"""
        return self.id_first_epoch <= epoch and (self.id_last_epoch is None or epoch <= self.id_last_epoch)


@dataclass(frozen=True, kw_only=True)
class LearningOptions(MovingOptions):
    """How fast the tokenizer learns, where it does so by gradient."""

    lr_id: float = option(1e-5, "peak learning rate of the tokenizer in joint training", ge=0)


class JointMethod(GenerativeModel):
    """A generative model whose SIDs move with it; a joint method extends it by its loss, `forward`, or its `codes`.

    It is made of (parts, tokenizer, one object of options for each of `option_groups`, in their order).
    """

    option_groups: ClassVar[Mapping[str, type]]  # title in --help -> options
    tokenizers: ClassVar[tuple[str, ...]] = ("rqvae", "contrastive")  # names of those that can learn further
    tokenizer: JointRQVAE
    first_NP: Tensor
    step: Tensor

    def __init__(self, parts: SidParts, tokenizer: JointRQVAE) -> None:
        super().__init__(parts)
        self.tokenizer = tokenizer
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("first_NP", self.sids.token_NP.int())

    @classmethod
    def tokenizer_of(cls, codes: RQVAEOptions, n_input: int, seed: int, *groups: Any) -> JointRQVAE:
        """The untrained tokenizer in the form that this method needs; groups: as for the model."""
        raise AssertionError("a joint method makes its tokenizer")

    @classmethod
    def check(cls, search: SearchOptions, *groups: Any) -> None:
        """Problem when options of the method contradict each other, or how SIDs are searched."""

    def attach(self, source: Source, longest: int) -> None:
        """Take what the method trains on, and the first SIDs; longest: items of a history. Needed for training only."""
        self.set_codes(self.codes())
        self.first_NP.copy_(self.sids.token_NP)

    def codes(self) -> Tensor:
        """The catalogue's learned codes as they should be now, [N, L]."""
        return self.tokenizer.codes()

    def after_step(self, all_reduce: AllReduce) -> None:
        self.step += 1

    def refresh(self) -> dict[str, Any]:
        """Take the SIDs that the epoch has led to; how far they moved, how they spread."""
        code_NT, token_NP = self.code_NT.clone(), self.sids.token_NP
        try:
            self.set_codes(self.codes())
        except Problem as e:  # a collapse; what has been trained so far is not lost with it
            log.warning(f"{e}. The catalogue keeps the semantic IDs it had; no SID changes until its codes fit again")
        figures: dict[str, Any] = self.figures()
        changed_N = (self.code_NT != code_NT).any(1)
        figures["codes_changed"] = float(changed_N.float().mean())  # without dedup tokens
        figures["sid_changed"] = float((self.sids.token_NP != token_NP).any(1).float().mean())
        figures["codes_changed_since_start"] = self._changed(len(self.sizes))
        figures["sid_changed_since_start"] = self._changed(self.first_NP.shape[1])
        self._warn_of_collapse(figures)
        return figures | {f"code_count/level_{i}": counts for i, counts in enumerate(self.sids.counts(), 1)}

    def _changed(self, positions: int) -> float:
        """Share of items that differ from the start in one of the first positions of their SID."""
        changed_NP = self.sids.token_NP != self.first_NP
        return float(changed_NP[:, :positions].any(1).float().mean())

    def _warn_of_collapse(self, figures: dict[str, float]) -> None:
        for level, k in enumerate(self.sizes, 1):
            if (spread := figures[f"perplexity/level_{level}"]) < k / COLLAPSED:
                log.warning(
                    f"level {level} is collapsing: perplexity {spread:.1f} of {k} codes; a lower lr_id may help"
                )
