"""The RQ-VAE as it learns together with a recommender: noise on the code assignment and a soft gradient.

DIGER (arXiv:2601.19711), section 3; docs/method.md, sections 3 and 4.

Shape letters: N items of the catalogue, U distinct items of a batch, D embedding width, d latent width, L levels,
K codes of a level.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from joint.uncertainty import Decay
from layers import counter_uniform, distance
from readers.stamps import rows_once
from settings import option
from sids.tokenizer import Quantized, Source, each, in_pieces, is_held, joined
from utils import Problem, Unwritable, digest, fingerprint, log
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
    n_items: int  # once it is attached

    def __init__(self, cfg: RQVAEOptions, options: QuantizerOptions, n_input: int, seed: int) -> None:
        super().__init__(cfg, n_input)
        self.upkeep = None  # of pre-training
        for codebook in self.rq.codebooks():
            codebook.requires_grad_(True)
        self.rq.averaged = False
        self.options, self.seed = options, seed
        self.levels: list[LevelScale] = []  # as measured at the start
        self.register_buffer("scale_L", torch.ones(len(cfg.num_emb_list)))
        for name in ("centre_d", "unit"):  # mean and spread of the catalogue's latents
            self.register_buffer(name, None, persistent=False)
        layers = list(self.encoder.mlp_layers)
        frozen = len(layers) if options.freeze_id_encoder else 0
        # a tuple, so that these views of the encoder's layers are not registered a second time
        self._stages = nn.Sequential(*layers[:frozen]), nn.Sequential(*layers[frozen:])
        for module in (self._stages[0], self.decoder):  # frozen once, by object, before the optimizer exists
            module.requires_grad_(False)

    # ---- the catalogue

    def attach(self, source: Source, decay: Decay) -> None:
        """Hold the catalogue behind what is frozen, and fix the logits' scale; decay: the noise, for the log."""
        if len(self._stages[0]):
            self.hold(self._frozen(source), self.cfg.e_dim, ready=True)
        else:
            self.hold(self.seen(source.content_ND), self.width)
        self.n_items, sum_2d = len(source.content_ND), torch.zeros((), device=self.scale_L.device)
        for z_Nd in self.latents():
            sum_2d = sum_2d + torch.stack([z_Nd.double().sum(0), z_Nd.double().square().sum(0)])
        mean_d, square_d = sum_2d / self.n_items
        self.centre_d, self.unit = mean_d.float(), (square_d - mean_d.square()).mean().sqrt().float()
        self.levels = measure_scales(self.rq, self.latents, self.n_items, self.options.logit_scale, decay)
        self.scale_L.copy_(torch.tensor([s.scale for s in self.levels]))

    def _frozen(self, source: Source) -> np.ndarray:
        """Latents of the frozen encoder, [N, d]; of a large catalogue in a file that all processes map."""
        shape, rest = (len(source.content_ND), self.cfg.e_dim), ("rq", "decoder", "theta", "scale_L", "offset_Nd")

        def pieces() -> Iterator[np.ndarray]:
            rows = (self.prepare(piece) for piece in in_pieces(self.seen(source.content_ND)))
            yield from (z_Nd.numpy() for z_Nd in each(self._stages[0], rows, torch.device("cpu")))

        if source.place is not None and not is_held(*shape):
            made_by = fingerprint({k: v for k, v in self.state_dict().items() if not k.startswith(rest)})
            try:
                return rows_once(source.place, digest(source.digest, made_by), shape, pieces())
            except (OSError, Unwritable) as e:
                log.warning(f"{e}; the latents are held in memory")
        return joined(map(torch.from_numpy, pieces()), shape[0]).numpy()

    def latents(self) -> Iterator[Tensor]:
        """z of the whole catalogue, [N, d], some rows at a time, without dropout and without gradient."""
        begin = 0
        for content_Nd in each(self._stages[1], self.pieces(), self.scale_L.device):
            yield self.moved(content_Nd, slice(begin, begin + len(content_Nd))).detach()
            begin += len(content_Nd)

    def codes(self) -> Tensor:
        """Learned codes [N, L] of the whole catalogue as it is attached, without noise."""
        return self.rq.assign_all(self.latents(), self.n_items, self.cfg.catalogue_assignment)

    def codebooks(self) -> dict[str, nn.Parameter]:
        """What the recommendation gradient must reach, by name, first level first."""
        return {f"level_{i}": c for i, c in enumerate(self.rq.codebooks(), 1)}

    def figures(self, decay: Decay) -> dict[str, float]:
        """Share of items per level that keep their nearest code under a decay's noise."""
        kept = keep_shares(self.rq, self.latents(), self.n_items, self.scale_L.tolist(), decay)
        return {f"keep_probability/level_{i}": share for i, share in enumerate(kept, 1)}

    def item_vectors(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(z - mean z) / rms(z - mean z) of some rows of the catalogue, [N, d]; mean and rms are those of the start."""
        with torch.autocast(self.scale_L.device.type, enabled=False):
            return (self.moved(self._stages[1](self.rows_of(rows)), rows) - self.centre_d) / self.unit

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
            content_Ud = self._stages[1](self.rows_of(item_U - 1))
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
    rq: ResidualQuantizer, latents: Callable[[], Iterable[Tensor]], n: int, logit_scale: str | float, decay: Decay
) -> list[LevelScale]:
    """Measure each level over the catalogue's n latents, gone through twice, under a decay's noise as it is now."""

    def nearest_two(z_Nd: Tensor) -> Tensor:
        return torch.stack([far_NK.topk(2, dim=1, largest=False).values for far_NK, _ in rq.levels(z_Nd)], 1)

    near_NL2 = joined(map(nearest_two, latents()), n)
    gaps = [float((two_N2[:, 1] - two_N2[:, 0]).median()) for two_N2 in near_NL2.unbind(1)]
    if logit_scale == "auto":
        for level, (gap, two_N2) in enumerate(zip(gaps, near_NL2.unbind(1), strict=True), 1):
            if gap <= 1e-9 * float(two_N2.abs().mean()):
                raise Problem(
                    f"level {level}: most items have two nearest codes at one distance, so logit_scale: auto "
                    "cannot measure a scale; lower num_emb_list, pre-train longer, or set logit_scale to a number"
                )
    scales = [3.0 / max(gap, 1e-12) if logit_scale == "auto" else float(logit_scale) for gap in gaps]
    kept = keep_shares(rq, latents(), n, scales, decay)
    sizes = [float(codebook.square().mean().sqrt()) for codebook in rq.codebooks()]
    return [LevelScale(*figures) for figures in zip(gaps, scales, kept, sizes, strict=True)]


@torch.no_grad()
def keep_shares(
    rq: ResidualQuantizer, latents: Iterable[Tensor], n: int, scales: list[float], decay: Decay
) -> list[float]:
    """Share of the catalogue that keeps its nearest code under a decay's noise, level by level."""
    noise = decay.scales()

    def kept(z_Nd: Tensor) -> Tensor:
        logits = (-scale * far_NK for (far_NK, _), scale in zip(rq.levels(z_Nd), scales, strict=True))
        return torch.stack([decay.keep_probability(x, s) for x, s in zip(logits, noise, strict=True)], 1)

    return [float(share_N.mean()) for share_N in joined(map(kept, latents), n).T.contiguous()]
