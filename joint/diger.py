"""DIGER (arXiv:2601.19711): tokenizer, uncertainty decay and recommender trained by one loss.

The paper, in the order of reading: the noise and its decay (joint/uncertainty.py), the quantizer with its soft gradient
(joint/quantizer.py), L_rec (model.py, `sid_loss`), and here the joint loss. With the list of `extras` empty this is the
published objective; the extras are ours (joint/terms.py, joint/offsets.py, joint/prior.py). docs/method.md, section
5.3, has the formula.

Shape letters: B users, U distinct items of a batch, R rows that a step predicts, L levels, K codes of a level.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from data import Batch
from joint import gradient
from joint.moving import JointMethod, LearningOptions
from joint.offsets import OffsetRQVAE
from joint.prior import PRIORS, PriorOptions
from joint.quantizer import JointRQVAE, QuantizerOptions
from joint.terms import ItemTerm, LatentTerm, OffsetTerm, Term
from joint.uncertainty import DECAYS, UncertaintyOptions
from model import PATHS, RecLoss, SidParts
from recommenders.base import trainable
from recommenders.protocol import AllReduce, Autocast, Logs
from settings import option
from sids.search import SearchOptions
from sids.tokenizer import Quantized, Source
from utils import Contradiction, log
from vq import RQVAEOptions

KEEP_LOW, MOVE_LOW, MOVE_HIGH = 0.2, 0.01, 1.0  # outside of these the log warns before training


@dataclass(frozen=True, kw_only=True)
class JointOptions(LearningOptions):
    gradient: Literal["end_to_end", "detached"] = option(
        "end_to_end",
        "whether the recommendation loss reaches the codebooks (end_to_end) or not (detached, as in the published "
        "program)",
    )
    code_loss_weight: float = option(1.0, "weight of the recommendation loss in the joint loss, at least 0", ge=0)
    recon_loss_weight: float = option(
        1.0, "weight of the reconstruction loss, the mean squared distance of latent and quantized latent", ge=0
    )
    vq_loss_weight: float = option(1.0, "weight of the vector-quantization loss (codebook and commitment terms)", ge=0)
    target_gradient: float = option(
        1.0,
        "factor on the gradient that reaches the codebooks through the soft target label, above 0",
        gt=0, needs=("gradient: end_to_end",),
    )
    latent_loss: float = option(
        0.0,
        "weight of an extra loss that predicts the next item's latent among those of all items (not in the paper; 0 = "
        "off)",
        ge=0,
    )
    lr_offset: float = option(
        0.0, "learning rate of a learned offset of each item's latent; 0 = no offsets (not in the paper)", ge=0
    )
    offset_prior: float = option(
        0.0,
        "weight of a Gaussian prior that keeps the item offsets of lr_offset small (not in the paper; 0 = off)",
        ge=0, needs=("lr_offset=1e-3",),
    )


class Diger(JointMethod):
    """L = w_rec L_rec' + w_recon |q - z|^2 + w_vq L_vq + sum of extras, means over the batch's targets;
    L_rec' is what the decay makes of L_rec.
    """

    option_groups: ClassVar[dict[str, type]] = {
        "uncertainty decay": UncertaintyOptions,
        "joint quantizer": QuantizerOptions,
        "label prior": PriorOptions,
        "joint training": JointOptions,
    }

    def __init__(
        self, parts: SidParts, tokenizer: JointRQVAE, decay: UncertaintyOptions, quantizer: QuantizerOptions,
        prior: PriorOptions, options: JointOptions,
    ) -> None:  # fmt: skip
        super().__init__(parts, tokenizer)
        self.options, self.target_gradient = options, options.target_gradient
        self.paths = PATHS if options.gradient == "end_to_end" else ()
        self.prior = PRIORS[prior.label_prior](prior, list(self.sizes), self.n_items)
        self.decay = DECAYS[decay.uncertainty](decay, list(self.sizes))
        self.weights = {
            "rec": options.code_loss_weight, "item": options.code_loss_weight * self.recommender.item_loss,
            "recon": options.recon_loss_weight, "vq": options.vq_loss_weight, "latent": options.latent_loss,
            "offset": options.offset_prior if options.lr_offset else 0.0,
        }  # fmt: skip
        self.latent_head = LatentTerm(self.recommender.width, tokenizer.cfg.e_dim) if options.latent_loss else None
        extras: list[Term | None] = [ItemTerm(), self.latent_head, OffsetTerm()]
        self.extras = [term for term in extras if term is not None and self.weights[term.name]]

    @classmethod
    def tokenizer_of(cls, codes: RQVAEOptions, n_input: int, seed: int, *groups: Any) -> JointRQVAE:
        _, quantizer, _, options = groups
        return (OffsetRQVAE if options.lr_offset else JointRQVAE)(codes, quantizer, n_input, seed)

    @classmethod
    def check(cls, search: SearchOptions, *groups: Any) -> None:
        """Problem when options of different groups contradict each other."""
        q: QuantizerOptions
        p: PriorOptions
        _, q, p, options = groups
        if p.label_prior != "none" and (q.assignment_forward == "soft" or options.gradient == "detached"):
            hard = {"assignment_forward": "history"} if q.assignment_forward == "soft" else {}
            reaching = {"gradient": "end_to_end"} if options.gradient == "detached" else {}
            raise Contradiction(
                "label_prior: needs hard codes and a gradient that reaches the codebooks; it cannot be combined with "
                "gradient: detached or assignment_forward: soft",
                {"label_prior": "none"}, {**reaching, **hard},
            )  # fmt: skip
        if options.gradient == "end_to_end" and options.code_loss_weight == 0:
            raise Contradiction(
                "code_loss_weight: 0 removes the recommendation loss; raise it, or, if only the tokenizer is not to "
                "learn "
                "from that loss, set gradient: detached",
                {"gradient": "detached"}, {"code_loss_weight": 1.0},
            )  # fmt: skip
        if search.legal_softmax and q.assignment_forward not in ("history", "cached"):
            raise Contradiction(
                f"legal_softmax: scores only SIDs that exist, but assignment_forward: {q.assignment_forward} may "
                "make a "
                "target that no item has; use assignment_forward: history or cached",
                {"assignment_forward": "history"}, {"legal_softmax": False},
            )  # fmt: skip

    # ---- training

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        """(L of a batch, its parts for the log)."""
        codes, usage = self.quantize(batch), self.log_usage(batch.item_U)
        rec = self.sid_loss(batch, codes, self.paths, usage)
        losses = {"rec": self.decay.task_loss(rec.loss), "recon": over(codes.recon, rec), "vq": over(codes.vq, rec)}
        losses |= {term.name: term(self, batch, rec) for term in self.extras}
        first, *others = (weight * losses[name] for name, weight in self.weights.items() if name in losses)
        loss = sum(others, first)
        if self.training:
            self.decay.observe(codes.nearest, batch.new_U, rec.loss.detach() * batch.weight)
            self.prior.observe(batch.item_U[rec.row_R], [i[rec.row_R] for i in codes.goal().index], batch.weight)
        logs = {"loss": loss, **{f"loss/{name}": value for name, value in losses.items()}, "loss/rec": rec.loss}
        return loss, {k: v.detach() for k, v in {**logs, **self._agreement(batch, codes, rec.row_R, usage)}.items()}

    def quantize(self, batch: Batch) -> Quantized:
        """Each distinct item once."""
        cached_UL = self.code_NT[batch.item_U - 1].long()
        return self.tokenizer.quantize(batch.item_U, self.step, self.decay, cached_UL)

    def log_usage(self, item_U: Tensor) -> list[Tensor | None]:
        """log qbar of each level's codes, for the distinct items of a batch; None without a label prior."""
        return [self.prior.log_share(level, item_U, self.code_NT) for level in range(len(self.sizes))]

    def after_step(self, all_reduce: AllReduce) -> None:
        self.decay.after_step(all_reduce)
        self.prior.after_step(all_reduce)
        super().after_step(all_reduce)

    def check_gradient(self, *parts: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
        return gradient.check(self, *parts, autocast=autocast)

    def param_groups(self) -> list[dict[str, Any]]:
        """Recommender, codebooks (and encoder), offsets, the decay's sigma, the latent loss's head."""
        own, moves = self.tokenizer.own_parameters(), self.options.moves
        shared = [p for p in trainable(self.tokenizer) if all(p is not o for o in own)]
        groups: list[dict[str, Any]] = [
            {"name": "id", "params": shared, "lr": self.options.lr_id, "moves": moves},
            {"name": "offset", "params": own, "lr": self.options.lr_offset, "moves": moves, "weight_decay": 0.0},
            {"name": "sigma", "params": trainable(self.decay), "lr": self.decay.cfg.lr_sigma, "weight_decay": 0.0,
             "clip": False},
            {"name": "latent_head", "params": trainable(self.latent_head) if self.latent_head else []},
        ]  # fmt: skip
        return [*super().param_groups(), *(g for g in groups if g["params"] or g["name"] == "id")]

    # ---- the catalogue, and what the log says of it

    def attach(self, source: Source, longest: int) -> None:
        self.tokenizer.attach(source, self.decay)
        super().attach(source, longest)

    def refresh(self) -> dict[str, Any]:
        figures = super().refresh()
        self.prior.renew()
        scales = self.decay.scales()
        figures["noise_scale"] = sum(scales) / len(scales)
        figures |= {f"noise_scale/level_{i}": s for i, s in enumerate(scales, 1)}
        figures["tau"] = float(self.decay.tau(self.step))
        return figures | self.tokenizer.figures(self.decay)

    @torch.no_grad()
    def _agreement(self, batch: Batch, codes: Quantized, row_R: Tensor, usage: Sequence[Tensor | None]) -> Logs:
        """How the batch's codes relate to the deterministic ones and to the catalogue's; the value of the label prior,
        mean over targets and levels of sum_k p_k log qbar_k, which acts by its gradient alone.
        """
        index_UL, sampled_UL, nearest_UL = (torch.stack(x, 1) for x in (codes.index, codes.sampled, codes.nearest))
        cached_UL = self.code_NT[batch.item_U - 1]
        logs = {
            "stochastic_share": torch.stack(codes.stochastic).float().mean(),
            "sampled_differs": (sampled_UL != nearest_UL).float().mean(),
            "sid_agreement": (index_UL == cached_UL).all(1).float().mean(),
        }
        sizes = [(p * u).sum(1)[row_R].mean() for p, u in zip(codes.soft or (), usage, strict=True) if u is not None]
        return logs | ({"loss/label_prior": torch.stack(sizes).mean()} if sizes else {})

    def announce(self, reachable: dict[str, float]) -> None:
        """Figures per level that tell harmful, inert and overshooting runs apart before they train."""
        super().announce(reachable)
        q = self.tokenizer.options
        log.info(
            f"DIGER: uncertainty {self.decay.cfg.uncertainty}, gradient {self.options.gradient}, forward "
            f"{q.assignment_forward}, tau {float(self.decay.tau(self.step)):g}, logit_scale {q.logit_scale}"
        )
        if not self.paths:
            log.info("gradient: detached - the recommendation loss does NOT reach the codebooks; grad/ will be zero")
        for level, s in enumerate(self.tokenizer.levels, 1):
            moved = reachable["id"] / s.rms
            log.info(
                f"level {level}: median gap {s.gap:.3g}, logits -{s.scale:.3g} d, P(sampled = nearest) "
                f"{s.keep:.2f} where noise falls, rms(C) {s.rms:.3g}, reachable movement {reachable['id']:.3g} = "
                f"{moved:.3g} rms"
            )
            if s.keep < KEEP_LOW:
                log.warning(
                    f"level {level}: with noise an item gets its nearest code with probability {s.keep:.3f} only, so "
                    "that "
                    "codes are nearly random; --logit_scale=auto fits the scale to the distances"
                )
            if not MOVE_LOW <= moved <= MOVE_HIGH:
                what = "can hardly move, raise it" if moved < MOVE_LOW else "may overshoot, lower it"
                log.warning(
                    f"level {level}: with lr_id {self.options.lr_id:g} the codes {what} (by {moved:.2g} of their "
                    "root mean square over the run)"
                )


def over(loss_U: Tensor | None, rec: RecLoss) -> Tensor:
    """Mean of a loss per item over the rows that predict it."""
    assert loss_U is not None
    return loss_U.index_select(0, rec.row_R).mean()
