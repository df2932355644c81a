"""The joint model: tokenizer, uncertainty decay and recommender trained by one loss, and the proof of its gradient.

Shape letters: B users, S history length, U distinct items of a batch, N items of the catalogue, R rows that a step
predicts, T code places, P token places, K codes of a level, L levels, h recommender width, d latent width.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data import Batch
from model import ROADS, GenerativeModel
from prior import PRIORS, PriorOptions
from recommenders.items import softmax_loss
from recommenders.protocol import AllReduce, Autocast, Logs, TokenNetwork
from settings import Config, option
from sids.table import Spelling
from sids.tokenizer import Joint, Quantized
from uncertainty import STRATEGIES, UncertaintyOptions
from utils import Problem, log
from vq import QuantizerOptions

KEEP_LOW, MOVE_LOW, MOVE_HIGH = 0.2, 0.01, 1.0  # outside of these the log warns before training


@dataclass(frozen=True, kw_only=True)
class JointOptions:
    gradient: Literal["end_to_end", "detached"] = option(
        "end_to_end", "detached: the recommendation loss never reaches the codebooks (what the published program does)"
    )
    code_loss_weight: float = option(1.0, "weight of the recommendation loss", ge=0)
    recon_loss_weight: float = option(1.0, "weight of |q - z|^2", ge=0)
    vq_loss_weight: float = option(1.0, "weight of the VQ loss", ge=0)
    latent_loss: float = option(
        0.0,
        "weight of a loss of the next item's latent among those of all items; with lr_offset it moves the latents",
        ge=0,
    )
    offset_prior: float = option(
        0.0,
        "weight of a Gaussian prior on the items' offsets, which holds rare items where their content is",
        ge=0,
        needs=("lr_offset",),
    )
    lr_id: float = option(1e-5, "learning rate of the tokenizer", ge=0)
    id_first_epoch: int = option(0, "epoch in which the tokenizer begins to move; it rests before", ge=0)
    id_last_epoch: int | None = option(None, "epoch after which the tokenizer rests again", ge=0)
    target_gradient: float = option(
        1.0,
        "weight of the gradient that reaches the codebooks through the target's soft label",
        gt=0,
        needs=("gradient: end_to_end",),
    )
    collapse_perplexity: float | None = option(
        None, "a level below this perplexity is called collapsing; default K / 8", gt=0
    )

    def __post_init__(self) -> None:
        if self.id_last_epoch is not None and self.id_last_epoch < self.id_first_epoch:
            raise Problem(
                f"id_last_epoch: {self.id_last_epoch} comes before id_first_epoch {self.id_first_epoch}: the tokenizer "
                "would never move; for that, method: two_stage"
            )


class JointModel(GenerativeModel):
    """DIGER (arXiv:2601.19711): tokenizer, uncertainty decay and recommender trained by one loss,

        L = w_code (L_rec' + L_item) + w_recon |q - z|^2 + w_vq L_vq + w_latent L_latent + w_offset L_offset,

    L_rec' being what the decay makes of L_rec, L_item the loss of whole items (0 without `item_loss`), the next three
    means over the batch's targets, L_offset over the catalogue.
    """

    Options: ClassVar[type[JointOptions]] = JointOptions
    first_NP: Tensor
    step: Tensor

    def __init__(self, cfg: Config, tokenizer: Joint, network: TokenNetwork, n_items: int, spelling: Spelling) -> None:
        super().__init__(cfg, network, n_items, spelling)
        self.joint = cfg[JointOptions]
        self.target_gradient = self.joint.target_gradient
        self.tokenizer = tokenizer
        self.prior = PRIORS[cfg[PriorOptions].label_prior](cfg[PriorOptions], list(self.sizes), n_items)
        self.decay = STRATEGIES[cfg[UncertaintyOptions].uncertainty](cfg[UncertaintyOptions], list(self.sizes))
        self.latent_head = nn.Linear(network.width, tokenizer.e_dim) if self.joint.latent_loss else None
        self.roads = ROADS if self.joint.gradient == "end_to_end" else ()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("first_NP", self.sids.token_NP.int())

    def attach(self, content_ND: np.ndarray) -> None:
        """Hand the catalogue's embeddings to the tokenizer and take its first SIDs; needed for training only."""
        self.tokenizer.attach(content_ND, self.decay)
        self.set_codes(self.tokenizer.codes())
        self.first_NP.copy_(self.sids.token_NP)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for old, new in (("first_NL", "first_NP"), ("scale_L", "tokenizer.scale_L")):  # names of earlier versions
            if f"{prefix}{old}" in state_dict:
                state_dict[f"{prefix}{new}"] = state_dict.pop(f"{prefix}{old}")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ---- training

    def quantize(self, batch: Batch) -> Quantized:
        """Each distinct item once."""
        cached_UL = self.code_NT[batch.item_U - 1].long()
        return self.tokenizer.quantize(batch.item_U, self.step, self.decay, cached_UL)

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        """(the whole loss L of a batch, its parts for the log)."""
        j, row_R = self.joint, batch.goals(self.targets)
        q, log_shares = self.quantize(batch), self.log_shares(batch.item_U)
        rec, item_loss, state_Rh = self.recommendation_loss(batch, q, self.roads, log_shares)
        recon, vq = q.recon.index_select(0, row_R).mean(), q.vq.index_select(0, row_R).mean()  # type: ignore[union-attr]
        loss = j.code_loss_weight * (self.decay.task_loss(rec) + item_loss)
        loss = loss + j.recon_loss_weight * recon + j.vq_loss_weight * vq
        if self.training:
            self.decay.observe(q.nearest, batch.new_U, rec.detach() * batch.weight)
            self.prior.observe(batch.item_U[row_R], [index[row_R] for index in q.goal().index], batch.weight)
        logs = {"loss/rec": rec, "loss/recon": recon, "loss/vq": vq, **self._agreement(batch, q)}
        logs |= self._prior_size(q, row_R, log_shares)
        if self.recommender.item_loss:
            logs["loss/item"] = item_loss
        if self.latent_head is not None:
            logs["loss/latent"] = self.latent_loss(self.latent_head(state_Rh), batch.item_U[row_R])
            loss = loss + j.latent_loss * logs["loss/latent"]
        if j.offset_prior:
            logs["loss/offset"] = self.tokenizer.offset_energy()
            loss = loss + j.offset_prior * logs["loss/offset"]
        return loss, {k: v.detach() for k, v in {"loss": loss, **logs}.items()}

    def latent_loss(self, asked_Rd: Tensor, item_R: Tensor) -> Tensor:
        """L_latent = -mean_r log softmax_v((W h_r + b) . z_v)_target: what comes next, said by the latents that the
        codes are made of (docs/method.md, 5.5).
        """
        alike_R = torch.ones_like(item_R, dtype=torch.float32)
        return softmax_loss(asked_Rd, self.tokenizer.item_vectors(), item_R - 1, alike_R) / len(item_R)

    def log_shares(self, item_U: Tensor) -> list[Tensor | None]:
        """log qbar of each level's codes, for the distinct items of a batch."""
        return [self.prior.log_share(level, item_U, self.code_NT) for level in range(len(self.sizes))]

    @torch.no_grad()
    def _prior_size(self, q: Quantized, row_R: Tensor, log_shares: Sequence[Tensor | None]) -> Logs:
        """Mean over targets and levels of sum_k p_k log qbar_k, the value of the term that only its gradient adds."""
        sizes = [(p * s).sum(1)[row_R].mean() for p, s in zip(q.soft or (), log_shares, strict=True) if s is not None]
        return {"loss/label_prior": torch.stack(sizes).mean()} if sizes else {}

    @torch.no_grad()
    def _agreement(self, batch: Batch, q: Quantized) -> Logs:
        """How the batch's codes relate to the deterministic ones and to the catalogue's."""
        index_UL, drawn_UL, nearest_UL = (torch.stack(x, 1) for x in (q.index, q.drawn, q.nearest))
        cached_UL = self.code_NT[batch.item_U - 1]
        return {
            "stochastic_share": torch.stack(q.stochastic).float().mean(),
            "sampled_differs": (drawn_UL != nearest_UL).float().mean(),
            "sid_agreement": (index_UL == cached_UL).all(1).float().mean(),
        }

    def probe(self, *parts: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
        """The proof: norm of L_rec's gradient at each codebook, road by road, over parts that weigh together 1.

        Problem when one is zero or not finite although `gradient: end_to_end` is set.
        """
        figures: dict[str, float] = {}
        probed = self.tokenizer.probed()
        for road in ROADS:
            roads = (road,) if road in self.roads else ()
            sums = [torch.zeros_like(p) for p in probed.values()]
            for batch in parts:
                with autocast():
                    shares = self.log_shares(batch.item_U)
                    loss = self.recommendation_loss(batch, self.quantize(batch), roads, shares).loss * batch.weight
                found = torch.autograd.grad(loss, list(probed.values()), allow_unused=True)
                sums = [s if g is None else s + g for s, g in zip(sums, found, strict=True)]
            figures |= {f"grad/{name}/{road}": float(s.norm()) for name, s in zip(probed, sums, strict=True)}
        if self.roads:
            idle = set.intersection(*map(self._idle_roads, parts))
            check_proof({k: v for k, v in figures.items() if k not in idle})
        return figures

    def _idle_roads(self, batch: Batch) -> set[str]:
        """Roads that legal_softmax leaves without anything to say: no target of the batch has a choice behind them."""
        if not self.search.legal_softmax:
            return set()
        open_UP = self.legal.open(batch.item_U)
        open_RP, taught_RP = (open_UP[batch.goals(t)] for t in (self.targets, self.recommender.taught))
        names = list(self.tokenizer.probed())
        teachers = {f"grad/{name}/teacher" for i, name in enumerate(names) if not taught_RP[:, i + 1 :].any()}
        return teachers | {f"grad/{name}/target" for i, name in enumerate(names) if not open_RP[:, i].any()}

    def after_step(self, all_reduce: AllReduce) -> None:
        self.decay.after_step(all_reduce)
        self.prior.after_step(all_reduce)
        self.step += 1

    def param_groups(self) -> list[dict[str, Any]]:
        j, lr_sigma = self.joint, self.cfg[UncertaintyOptions].lr_sigma
        epochs = (j.id_first_epoch, j.id_last_epoch)
        own = self.tokenizer.offsets()
        shared = [p for p in trainable(self.tokenizer) if all(p is not o for o in own)]
        tokenizer = {"name": "id", "params": shared, "lr": j.lr_id, "epochs": epochs}
        lr_offset = self.cfg[QuantizerOptions].lr_offset
        offset = {"name": "offset", "params": own, "lr": lr_offset, "epochs": epochs, "weight_decay": 0.0}
        sigma = {"name": "sigma", "params": trainable(self.decay), "lr": lr_sigma, "weight_decay": 0.0, "clip": False}
        head = {"name": "latent_head", "params": list(self.latent_head.parameters()) if self.latent_head else []}
        return [*super().param_groups(), tokenizer, *(group for group in (offset, sigma, head) if group["params"])]

    def refresh(self) -> dict[str, Any]:
        """Take the tokenizer's SIDs as it is now; how far they moved, how they spread, how much noise falls."""
        code_NT, token_NP = self.code_NT.clone(), self.sids.token_NP
        try:
            self.set_codes(self.tokenizer.codes())
            self.prior.renew()
        except Problem as e:  # a collapse; what has been trained so far is not lost with it
            log.warning(f"{e}. The catalogue keeps the semantic IDs it had; no SID changes until its codes fit again")
        figures: dict[str, Any] = self.figures()
        changed_N = (self.code_NT != code_NT).any(1)
        figures["codes_changed"] = float(changed_N.float().mean())  # without end tokens
        figures["sid_changed"] = float((self.sids.token_NP != token_NP).any(1).float().mean())
        figures["codes_changed_since_start"] = self._moved(len(self.sizes))
        figures["sid_changed_since_start"] = self._moved(self.first_NP.shape[1])
        self._warn_of_collapse(figures)
        scales = self.decay.scales()
        figures["noise_scale"] = sum(scales) / len(scales)
        figures |= {f"noise_scale/level_{i}": s for i, s in enumerate(scales, 1)}
        figures["tau"] = float(self.decay.tau(self.step))
        figures |= {f"code_count/level_{i}": counts for i, counts in enumerate(self.sids.counts(), 1)}
        return figures | self.tokenizer.figures(self.decay)

    def announce(self, reachable: dict[str, float]) -> None:
        """Figures per level that tell harmful, inert and overshooting runs apart before they train."""
        u, q = self.cfg[UncertaintyOptions], self.cfg[QuantizerOptions]
        log.info(
            f"DIGER: uncertainty {u.uncertainty}, gradient {self.joint.gradient}, forward {q.assignment_forward}, "
            f"tau {float(self.decay.tau(self.step)):g}, logit_scale {q.logit_scale}"
        )
        if not self.roads:
            log.info("gradient: detached - the recommendation loss does NOT reach the codebooks; grad/ will be zero")
        for level, s in enumerate(self.tokenizer.levels, 1):
            moved = reachable["id"] / s.rms
            log.info(
                f"level {level}: median gap {s.gap:.3g}, logits -{s.scale:.3g} d, P(drawn = nearest) "
                f"{s.keep:.2f} where "
                f"noise falls, rms(C) {s.rms:.3g}, reachable movement {reachable['id']:.3g} = {moved:.3g} rms"
            )
            if s.keep < KEEP_LOW:
                log.warning(
                    f"level {level}: a noisy item keeps its nearest code with probability {s.keep:.3f} only: "
                    "the draw is nearly uniform; logit_scale: auto measures the distances' own scale"
                )
            if not MOVE_LOW <= moved <= MOVE_HIGH:
                what = "hardly move" if moved < MOVE_LOW else "may overshoot"
                log.warning(
                    f"level {level}: with lr_id {self.joint.lr_id:g} the codes {what} ({moved:.2g} of their "
                    "rms over the run)"
                )

    def _warn_of_collapse(self, figures: dict[str, float]) -> None:
        for level, k in enumerate(self.sizes, 1):
            limit, spread = self.joint.collapse_perplexity or k / 8, figures[f"perplexity/level_{level}"]
            if spread < limit:
                log.warning(
                    f"level {level} is collapsing: perplexity {spread:.1f} is below collapse_perplexity {limit:g}"
                )

    def _moved(self, places: int) -> float:
        """Share of items that differ from the start in one of the first places of their SID."""
        changed_NP = self.sids.token_NP != self.first_NP
        return float(changed_NP[:, :places].any(1).float().mean())


def check_proof(figures: dict[str, float]) -> None:
    """Problem when a road to a codebook is cut."""
    for key, norm in figures.items():
        if norm == 0 or not np.isfinite(norm):
            raise Problem(
                f"{key} is {norm}: the recommendation loss does not reach this codebook; "
                "check logit_scale and gumbel_tau (a saturated softmax has no gradient), or set gradient: detached"
            )


def trainable(module: Joint | nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
