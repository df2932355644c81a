"""The RQ-VAE as it learns together with a recommender: noise on the code assignment and a soft gradient.

DIGER (arXiv:2601.19711), section 3; docs/method.md, sections 3 and 4.

Shape letters: N items of the catalogue, U distinct items of a batch, D embedding width, d latent width, L levels,
K codes of a level.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from joint.uncertainty import Decay
from layers import counter_uniform, distance
from settings import option
from sids.tokenizer import ROWS, Quantized, in_pieces, through
from utils import Problem
from vq import RQVAE, ResidualQuantizer, RQVAEOptions


@dataclass(frozen=True, kw_only=True)
class QuantizerOptions:
    """How the tokenizer assigns codes, and what of it learns, in joint training."""

    assignment_forward: Literal["sampled", "cached", "soft", "history"] = option(
        "sampled",
        "codes of the forward pass: sampled, the catalogue's (cached), a soft mixture, or sampled in the history and "
        "the catalogue's as target (history)",
    )
    codebook_update: Literal["soft", "hard"] = option(
        "soft", "whether the gradient reaches all codes (soft) or the selected one only (hard)"
    )
    logit_scale: float | Literal["auto"] = option(
        "auto",
        "scale of the logits, which are -scale * squared distance; auto = 3 / median gap between the two nearest codes",
        gt=0, sizeless=True,
    )
    freeze_id_encoder: bool = option(True, "whether only the codebooks of the tokenizer are trained, not its encoder")


@dataclass(frozen=True)
class LevelScale:
    """What decides the randomness of one level before any training."""

    gap: float  # median over the catalogue of second-nearest minus nearest distance
    scale: float  # logits = -scale * distance
    keep: float  # share of items whose drawn code is the nearest one, at the current s
    rms: float  # of the codebook's entries


class JointRQVAE(RQVAE):
    """The tokenizer as it learns together with a recommender. On level l, with r_1 = z and s from the uncertainty decay
    (arXiv:2601.19711, section 3):

        a_l = -scale_l |r_l - C_l|^2          p_l = softmax((a_l + s g_l) / tau)      g ~ Gumbel(0, 1)
        i_l = argmax(a_l + s g_l)             m_l = onehot(i_l) + p_l - sg(p_l)
        q_l = m_l C_l                         r_{l+1} = r_l - q_l
        L_vq = mean_l |sg(r_l) - q_l|^2 + beta |r_l - sg(q_l)|^2

    scale_l is in units of the catalogue's own distances (`logit_scale: auto`), fixed at the start.
    """

    only_pre_training = (*RQVAE.only_pre_training, "theta")  # the latter of sids/contrastive.py
    made_later = ("scale_L",)  # by `attach`
    scale_L: Tensor

    def __init__(self, cfg: RQVAEOptions, options: QuantizerOptions, n_input: int, seed: int) -> None:
        super().__init__(cfg, n_input)
        self.upkeep = None  # of pre-training
        for codebook in self.rq.codebooks():
            codebook.requires_grad_(True)
        self.rq.averaged = False
        self.options, self.seed = options, seed
        self.levels: list[LevelScale] = []  # as measured at the start
        self.register_buffer("scale_L", torch.ones(len(cfg.num_emb_list)))
        for name in ("input_Nd", "centre_d", "unit"):  # the catalogue behind what is frozen; its latents' mean, spread
            self.register_buffer(name, None, persistent=False)
        layers = list(self.encoder.mlp_layers)
        frozen = len(layers) if options.freeze_id_encoder else 0
        # a tuple, so that these views of the encoder's layers are not registered a second time
        self._stages = nn.Sequential(*layers[:frozen]), nn.Sequential(*layers[frozen:])
        for module in (self._stages[0], self.decoder):  # frozen once, by object, before the optimizer exists
            module.requires_grad_(False)

    # ---- the catalogue

    def attach(self, content_ND: np.ndarray, decay: Decay) -> None:
        """Run what is frozen over the catalogue once, and fix the logits' scale; decay: the noise, for the log."""
        rows = (self.prepare(piece) for piece in in_pieces(self.seen(content_ND)))
        self.input_Nd = through(self._stages[0], rows, torch.device("cpu"))
        z_Nd = self.latents()
        self.centre_d, self.unit = z_Nd.mean(0), z_Nd.std(0, correction=0).square().mean().sqrt()
        self.levels = measure_scales(self.rq, z_Nd, self.options.logit_scale, decay)
        self.scale_L.copy_(torch.tensor([s.scale for s in self.levels]))

    def latents(self) -> Tensor:
        """z of the whole catalogue, [N, d], without dropout and without gradient."""
        z_Nd = through(self._stages[1], self.input_Nd.split(ROWS), self.input_Nd.device)
        return self.moved(z_Nd).detach()

    def codes(self) -> Tensor:
        """Learned codes [N, L] of the whole catalogue as it is attached, without noise."""
        return self.rq.assign(self.latents(), self.cfg.catalogue_assignment)

    def codebooks(self) -> dict[str, nn.Parameter]:
        """What the recommendation gradient must reach, by name, first level first."""
        return {f"level_{i}": c for i, c in enumerate(self.rq.codebooks(), 1)}

    def figures(self, decay: Decay) -> dict[str, float]:
        """Share of items per level that keep their nearest code under a decay's noise."""
        now = measure_scales(self.rq, self.latents(), self.scale_L.tolist(), decay)
        return {f"keep_probability/level_{i}": s.keep for i, s in enumerate(now, 1)}

    def item_vectors(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(z - mean z) / rms(z - mean z) of some rows of the catalogue, [N, d]; mean and rms are those of the start."""
        with torch.autocast(self.input_Nd.device.type, enabled=False):
            return (self.moved(self._stages[1](self.input_Nd[rows]), rows) - self.centre_d) / self.unit

    def moved(self, content_Ud: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """z of some rows of the catalogue from their content's latents: the same (joint/offsets.py adds to them)."""
        return content_Ud

    def own_parameters(self) -> list[nn.Parameter]:
        """What an item learns for itself alone, beside what all share: nothing."""
        return []

    # ---- a batch

    def quantize(self, item_U: Tensor, step: Tensor, decay: Decay, cached_UL: Tensor) -> Quantized:
        """Quantize U items at an optimizer step, in float32 whatever the recommender's precision.

        item_U: item numbers, which name each item's noise; cached_UL: their catalogue codes.
        """
        with torch.autocast(item_U.device.type, enabled=False):
            content_Ud = self._stages[1](self.input_Nd[item_U - 1])
            return self._quantize(self.moved(content_Ud, item_U - 1), content_Ud, item_U, step, decay, cached_UL)

    def _quantize(
        self, z_Ud: Tensor, content_Ud: Tensor, item_U: Tensor, step: Tensor, decay: Decay, cached_UL: Tensor
    ) -> Quantized:
        forward, r, q_sum, vq = self.options.assignment_forward, z_Ud, torch.zeros_like(z_Ud), z_Ud.new_zeros(len(z_Ud))
        tau, blend = decay.tau(step), forward == "soft"
        soft, index, nearest, stochastic, sampled = [], [], [], [], []
        for level, codebook in enumerate(self.rq.codebooks()):
            a = -self.scale_L[level] * distance(r, codebook)
            nearest.append(a.detach().argmax(1))
            s = decay.noise_scale(nearest)
            stochastic.append((s[:, 0] > 0).expand(len(z_Ud)))
            noisy = a + s * decay.noise(counter_uniform(self.seed, step, item_U, level, len(codebook)))
            sampled.append(torch.where(stochastic[-1], noisy.argmax(1), nearest[-1]))
            i = cached_UL[:, level] if forward == "cached" else sampled[-1]
            p = self._soft(noisy / tau, i)
            q = Quantized([i], [p], blend=blend).lookup(0, codebook)
            vq = vq + self.rq.vq_loss(r, q)
            r, q_sum = r - q, q_sum + q
            soft.append(p)
            index.append(i)
        goal = list(cached_UL.unbind(1)) if forward == "history" else None
        recon = (q_sum - content_Ud).square().mean(1)
        return Quantized(index, soft, nearest, vq / len(soft), recon, stochastic, sampled, blend=blend, goal_index=goal)

    def _soft(self, sharp: Tensor, index: Tensor) -> Tensor:
        p = sharp.softmax(1)
        if self.options.codebook_update == "soft":
            return p
        # the selected code's own distance is the only path back
        hard = F.one_hot(index, p.shape[1]).bool()
        own = torch.where(hard, sharp, sharp.detach()).softmax(1)
        return torch.where(hard, own, own.detach())


@torch.no_grad()
def measure_scales(
    rq: ResidualQuantizer, z_Nd: Tensor, logit_scale: str | float | list[float], decay: Decay
) -> list[LevelScale]:
    """Measure each level over the catalogue, under a decay's noise as it is now."""
    found, r, noise = [], z_Nd, decay.scales()
    for level, codebook in enumerate(rq.codebooks()):
        pieces = [distance(piece, codebook) for piece in r.split(ROWS)]
        two = torch.cat([d.topk(2, dim=1, largest=False).values for d in pieces])
        gap = float((two[:, 1] - two[:, 0]).median())
        if logit_scale == "auto" and gap <= 1e-9 * float(two.abs().mean()):
            raise Problem(
                f"level {level + 1}: most items have two nearest codes at one distance, so logit_scale: auto "
                "cannot measure a scale; lower num_emb_list, pre-train longer, or set logit_scale to a number"
            )
        scale = 3.0 / max(gap, 1e-12) if logit_scale == "auto" else logit_scale
        scale = float(scale[level] if isinstance(scale, list) else scale)
        kept = torch.cat([decay.keep_probability(-scale * d, noise[level]) for d in pieces])
        found.append(LevelScale(gap, scale, float(kept.mean()), float(codebook.square().mean().sqrt())))
        r = r - codebook[torch.cat([d.argmin(1) for d in pieces])]
    return found
