"""RQ-VAE tokenizer: content embedding -> one code per level, differentiable in joint training.

Residual quantization (Zeghidour et al., arXiv:2107.03312; for recommendation TIGER, arXiv:2305.05065), and its
joint form with noise and soft gradient (DIGER, arXiv:2601.19711). docs/method.md has all formulas.

Shape letters: N items of the catalogue, U distinct items of a batch, D embedding width, d latent
width, L levels, K codes of a level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import MLP, Distance, counter_uniform, distance, kmeans, sinkhorn
from settings import option
from sids import shares
from sids.behaviour import BehaviourOptions, ContentTokenizer, residual_distances
from sids.codebooks import Upkeep, UpkeepOptions
from sids.tokenizer import ROWS, Quantized, Source, in_pieces, through
from uncertainty import Uncertainty
from utils import Problem


@dataclass(frozen=True, kw_only=True)
class RQVAEOptions(BehaviourOptions, UpkeepOptions):
    e_dim: int = option(256, "width d of latents and codebooks", ge=1)
    layers: list[int] = option([2048, 1024, 512], "hidden widths of the encoder MLP (the decoder mirrors them)", ge=1)
    beta: float = option(0.25, "weight of the commitment term in the VQ loss", ge=0)
    dist: Distance = option("l2", "distance between residual and code")
    dropout_prob: float = option(0.0, "dropout in the tokenizer's MLPs", ge=0, le=0.9)
    sk_epsilons: list[float] = option([0.003, 0.003, 0.003], "entropy weight of Sinkhorn per level; 0 = arg-min", ge=0)
    sk_iters: int = option(50, "Sinkhorn iterations", ge=1)
    standardize_embeddings: bool = option(False, "centre the embeddings and divide by their standard deviation")
    catalogue_assignment: Literal["argmin", "sinkhorn"] = option("argmin", "SIDs of the whole catalogue")
    rqvae_assignment: Literal["sinkhorn", "argmin"] = option("sinkhorn", "how pre-training assigns codes")
    vq_form: Literal["residual", "cumulative"] = option(
        "residual", "pre-training: VQ loss of each residual and code, or of the latent and all codes so far (FORGE)"
    )
    quant_loss_weight: float = option(1.0, "weight w of the VQ loss beside the reconstruction", ge=0)
    kmeans_init: bool = option(True, "codebooks start from k-means on the first batch's residuals")
    kmeans_iters: int = option(100, "iterations of that k-means", ge=1, needs=("kmeans_init",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if bad := [e for e in self.sk_epsilons if 0 < e < 0.0015]:
            raise Problem(f"sk_epsilons: {bad[0]} overflows; use 0 (arg-min) or at least 0.0015")
        if len(self.sk_epsilons) != len(self.num_emb_list):
            raise Problem(f"sk_epsilons: one number a level, {len(self.num_emb_list)}, not {self.sk_epsilons}")


@dataclass(frozen=True, kw_only=True)
class QuantizerOptions:
    """How the tokenizer assigns codes, and what of it learns, in joint training."""

    assignment_forward: Literal["sampled", "cached", "soft", "history"] = option(
        "sampled",
        "code of the forward pass: the drawn one, the catalogue's, the soft mixture, or the drawn one in "
        "histories and the catalogue's as target",
    )
    deterministic_assignment: Literal["argmax", "sinkhorn"] = option(
        "argmax", "code of an item without noise, counted by FrqUD"
    )
    codebook_update: Literal["soft", "hard"] = option("soft", "hard: gradient to the selected code only (ablation)")
    logit_scale: float | Literal["auto"] = option(
        "auto",
        "logits = -scale * distance; auto: 3 / median gap between the two nearest codes",
        gt=0,
        sizeless=True,
    )
    freeze_id_encoder: bool = option(True, "train only the codebooks of the tokenizer")
    freeze_id_encoder_layers: int = option(
        0,
        "with freeze_id_encoder=false: rest the first n linear layers",
        ge=0,
        needs=("freeze_id_encoder: false",),
    )
    lr_offset: float = option(
        0.0, "learning rate of an offset of each item's own to its latent; 0: items stay where their content is", ge=0
    )


class Codebook(nn.Module):
    """One level; the key `embedding.weight` is that of the released checkpoints."""

    def __init__(self, n_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / n_codes, 1 / n_codes)


class ResidualQuantizer(nn.Module):
    """Each level quantizes what the levels before it left over: r_1 = z, r_{l+1} = r_l - C_l[i_l]."""

    def __init__(self, cfg: RQVAEOptions) -> None:
        super().__init__()
        self.cfg, self.averaged = cfg, False  # averaged: codes do not learn by gradient
        self.vq_layers = nn.ModuleList(Codebook(k, cfg.e_dim) for k in cfg.num_emb_list)

    def codebooks(self) -> list[nn.Parameter]:
        return [layer.embedding.weight for layer in self.vq_layers]  # type: ignore[union-attr,misc]

    def nearest(self, residual: Tensor, level: int, rule: str) -> Tensor:
        """Deterministic codes on one level: plain arg-min, or Sinkhorn over all rows given."""
        d = distance(residual, self.codebooks()[level], self.cfg.dist)
        epsilon = self.cfg.sk_epsilons[level]
        if rule == "sinkhorn" and epsilon > 0:
            return sinkhorn(d, epsilon, self.cfg.sk_iters)
        return d.argmin(1)

    @torch.no_grad()
    def assign(self, z_Nd: Tensor, rule: str = "argmin") -> Tensor:
        """Deterministic codes [N, L] of a whole catalogue."""
        residual, codes = z_Nd, []
        for level, codebook in enumerate(self.codebooks()):
            code = self.nearest(residual, level, rule)
            residual = residual - codebook[code]
            codes.append(code)
        return torch.stack(codes, 1)

    def vq_loss(self, residual: Tensor, q: Tensor) -> Tensor:
        """|sg(r) - q|^2 + beta |r - sg(q)|^2, mean over dimensions, [U]; without the first term for moving averages."""
        commitment = self.cfg.beta * (residual - q.detach()).square().mean(1)
        return commitment if self.averaged else (q - residual.detach()).square().mean(1) + commitment


class RQVAE(ContentTokenizer):
    """Encoder, residual quantizer and decoder; state keys as in the released checkpoints."""

    Options: ClassVar[type[RQVAEOptions]] = RQVAEOptions
    cfg: RQVAEOptions
    keeps_last = False
    only_pre_training: ClassVar[tuple[str, ...]] = ("upkeep.",)

    def __init__(self, cfg: RQVAEOptions, n_input: int) -> None:
        super().__init__(cfg, n_input)
        self.cfg = cfg
        sizes = [self.width, *cfg.layers, cfg.e_dim]
        self.encoder = MLP(sizes, cfg.dropout_prob)
        self.rq = ResidualQuantizer(cfg)
        self.decoder = MLP(sizes[::-1], cfg.dropout_prob)
        self.upkeep: Upkeep | None = None
        if cfg.codebook_learning == "ema" or cfg.dead_code_ratio:
            self.upkeep = Upkeep(cfg, cfg.num_emb_list, cfg.e_dim)
        for codebook in self.rq.codebooks():
            codebook.requires_grad_(cfg.codebook_learning == "gradient")
        self.rq.averaged = cfg.codebook_learning == "ema"
        if cfg.standardize_embeddings:
            self.register_buffer("shift", torch.zeros(self.width))
            self.register_buffer("spread", torch.ones(()))

    def prepare(self, x_ND: Tensor) -> Tensor:
        """The encoder's input: the embedding as it comes, or standardized."""
        if not self.cfg.standardize_embeddings:
            return x_ND
        return (x_ND - self.get_buffer("shift")) / self.get_buffer("spread")

    # ---- codes and back

    def encode(self, content_ND: np.ndarray) -> Tensor:
        """Codes [N, L] of a whole catalogue, by `catalogue_assignment`."""
        return self.rq.assign(self.latent(content_ND), self.cfg.catalogue_assignment)

    @torch.no_grad()
    def decode(self, code_NL: Tensor) -> Tensor:
        """Reconstruction from the first 1, 2 ... L codes, [N, L, D]."""
        q_NLd = torch.stack([c[i] for c, i in zip(self.rq.codebooks(), code_NL.unbind(1), strict=True)], 1)
        x_NLD = through(self.decoder, q_NLd.cumsum(1).split(ROWS), q_NLd.device)
        if self.cfg.standardize_embeddings:
            x_NLD = x_NLD * self.get_buffer("spread") + self.get_buffer("shift")
        return x_NLD

    def latent(self, content_ND: np.ndarray) -> Tensor:
        """z of a whole catalogue, [N, d]."""
        device = self.rq.codebooks()[0].device
        return through(self.encoder, (self.prepare(x.to(device)) for x in in_pieces(self.seen(content_ND))), device)

    @torch.no_grad()
    def quantized(self, code_NL: Tensor) -> Tensor:
        """Sum of the code vectors, [N, d]."""
        chosen = [c[i] for c, i in zip(self.rq.codebooks(), code_NL.unbind(1), strict=True)]
        return torch.stack(chosen).sum(0)

    @torch.no_grad()
    def distances_of(self, content_ND: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
        """Distances of a catalogue's residuals to the codes of any level, after any codes before it."""
        books = [c.detach().cpu() for c in self.rq.codebooks()]
        return residual_distances(self.latent(content_ND).cpu(), books, self.cfg.dist)

    # ---- pre-training

    def begin(self, source: Source, size: int, seed: int, *, fresh: bool) -> None:
        """Hold the catalogue; on a fresh start take the embeddings' spread and k-means on one batch."""
        if fresh and self.side is not None:
            self.side.learn(source, seed)
        x_ND = torch.cat(list(in_pieces(self.seen(source.content_ND))))
        if fresh and self.cfg.standardize_embeddings:
            self.get_buffer("shift").copy_(x_ND.mean(0))
            self.get_buffer("spread").copy_((x_ND - x_ND.mean(0)).std())
            if not 1e-30 < float(self.get_buffer("spread")) < 1e30:
                raise Problem(
                    "standardize_embeddings: the embeddings are all alike, there is no spread to divide by; "
                    "embed the items anew or leave the option out"
                )
        self.register_buffer("x_ND", self.prepare(x_ND.to(self.rq.codebooks()[0].device)), persistent=False)
        if fresh and self.cfg.kmeans_init:
            first = RQVAE.batches(self, source, size, seed, 0)[0]
            self.init_codebooks(self.get_buffer("x_ND")[first], self.cfg.kmeans_iters, seed)
        if fresh and self.upkeep is not None:
            self.upkeep.begin()

    def batches(self, source: Source, size: int, seed: int, epoch: int) -> list[Tensor]:
        """Rows of the catalogue in a fresh random order, `size` at a time."""
        order = np.random.default_rng([seed, epoch, 11]).permutation(len(source.content_ND))
        return list(torch.from_numpy(order).split(size))

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """|decoder(sum_l q_l) - x|^2 + w L_vq of the rows of a batch."""
        recon, vq, _ = self(self.get_buffer("x_ND")[batch], self.cfg.rqvae_assignment)
        return recon + self.cfg.quant_loss_weight * vq, {"recon": recon, "vq": vq}

    def forward(self, x_ND: Tensor, rule: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pre-training pass on prepared embeddings: (reconstruction loss, VQ loss, codes [N, L])."""
        out, vq, codes = self.straight_through(shares.spread(self.encoder, x_ND), rule)
        return F.mse_loss(shares.spread(self.decoder, out), x_ND), vq, codes

    def straight_through(self, z_Nd: Tensor, rule: str) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of the codes with the latent's gradient [N, d], VQ loss, codes [N, L])."""
        r, out, total, vq, codes = z_Nd, torch.zeros_like(z_Nd), torch.zeros_like(z_Nd), z_Nd.new_zeros(()), []
        for level, codebook in enumerate(self.rq.codebooks()):
            with torch.no_grad():
                code = self.rq.nearest(r, level, rule)
            if self.training and self.upkeep is not None:
                self.upkeep.observe(level, r, code)
            q = F.embedding(code, codebook)
            total = total + q
            whole = self.cfg.vq_form == "cumulative"
            vq = vq + self.rq.vq_loss(z_Nd if whole else r, total if whole else q).mean()
            q = r + (q - r).detach()  # straight-through
            out, r = out + q, r - q
            codes.append(code)
        return out, vq / len(codes), torch.stack(codes, 1)

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """After each step of pre-training: the codebooks' upkeep; figures for the log."""
        return {} if self.upkeep is None else self.upkeep.step(self.rq.codebooks(), optimizer)

    @torch.no_grad()
    def disagreement(self, size: int, seed: int) -> list[float]:
        """Share of items per level whose code in a batch of pre-training is not the catalogue's; [] for equal rules."""
        x_ND, rule = self.get_buffer("x_ND"), self.cfg.rqvae_assignment
        if rule == self.cfg.catalogue_assignment == "argmin" or not any(self.cfg.sk_epsilons):
            return []
        z_Nd = through(self.encoder, x_ND.split(ROWS), x_ND.device)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(z_Nd)))
        batches_NL = torch.cat([self.rq.assign(z_Nd[rows], rule) for rows in order.split(size)])
        differ_NL = batches_NL != self.rq.assign(z_Nd, self.cfg.catalogue_assignment)[order]
        return [float(level) for level in differ_NL.float().mean(0)]

    @torch.no_grad()
    def init_codebooks(self, x_ND: Tensor, iterations: int, seed: int) -> None:
        """k-means on the residuals of one batch, level by level (faiss)."""
        r = self.encoder(x_ND)
        for codebook in self.rq.codebooks():
            centres = kmeans(r.cpu().numpy(), len(codebook), iterations, seed)
            codebook.copy_(torch.from_numpy(centres))
            r = r - codebook[distance(r, codebook, self.cfg.dist).argmin(1)]

    def n_linears(self) -> int:
        return len(self.cfg.layers) + 1


# ---------------------------------------------------------------- joint training


@dataclass(frozen=True)
class LevelScale:
    """What decides the randomness of one level before any training."""

    gap: float  # median over the catalogue of second-nearest minus nearest distance
    scale: float  # logits = -scale * distance
    keep: float  # share of items whose drawn code is the nearest one, at the current s
    rms: float  # of the codebook's entries


class JointRQVAE(RQVAE):
    """The tokenizer as it learns together with a recommender: noise, soft gradient, what rests and what moves.

    On level l, with r_1 = z and s from the uncertainty decay (arXiv:2601.19711, section 3):

        a_l = -scale_l |r_l - C_l|^2          p_l = softmax((a_l + s g_l) / tau)      g ~ Gumbel(0, 1)
        i_l = argmax(a_l + s g_l)             m_l = onehot(i_l) + p_l - sg(p_l)
        q_l = m_l C_l                         r_{l+1} = r_l - q_l
        L_vq = mean_l |sg(r_l) - q_l|^2 + beta |r_l - sg(q_l)|^2

    scale_l is in units of the catalogue's own distances (`logit_scale: auto`), fixed at the start. With `lr_offset`
    z is the content's latent plus an offset that each item learns, and |q - z|^2 is of the content's latent alone.
    """

    only_pre_training = (*RQVAE.only_pre_training, "theta")  # the latter of sids/contrastive.py
    made_later = ("scale_L",)  # by `attach`
    scale_L: Tensor
    offset_Nd: nn.Parameter | None

    def __init__(self, cfg: RQVAEOptions, joint: QuantizerOptions, n_input: int, seed: int) -> None:
        super().__init__(cfg, n_input)
        self.upkeep = None  # of pre-training
        for codebook in self.rq.codebooks():
            codebook.requires_grad_(True)
        self.rq.averaged = False
        self.joint, self.seed = joint, seed
        self.levels: list[LevelScale] = []  # as measured at the start
        self.register_buffer("scale_L", torch.ones(len(cfg.num_emb_list)))
        for name in ("input_Nd", "centre_d", "unit"):  # the catalogue behind what rests; its latents' mean and spread
            self.register_buffer(name, None, persistent=False)
        self.register_parameter("offset_Nd", None)  # with lr_offset a row an item, from the catalogue or a state
        self._freeze()

    def _freeze(self) -> None:
        """What rests is frozen once, by object, before the optimizer exists."""
        rest = self.n_linears() if self.joint.freeze_id_encoder else self.joint.freeze_id_encoder_layers
        blocks = list(self.encoder.mlp_layers)
        # a tuple, so that these views of the encoder's layers are not registered a second time
        self._stages = nn.Sequential(*blocks[: 3 * rest]), nn.Sequential(*blocks[3 * rest :])
        for module in (self._stages[0], self.decoder):
            module.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """What rests was run over the catalogue once: another resting part would not belong to those latents."""
        offset = state_dict.get(f"{prefix}offset_Nd")
        if self.offset_Nd is None and self.joint.lr_offset and isinstance(offset, Tensor):
            self.offset_Nd = nn.Parameter(torch.zeros_like(offset, dtype=torch.float32))
        if self.input_Nd is not None:
            resting = {id(p) for p in self._stages[0].parameters()}
            for name, ours in self.state_dict(prefix=prefix, keep_vars=True).items():
                theirs = state_dict.get(name)
                rests = id(ours) in resting or name.endswith((".shift", ".spread"))
                if rests and (theirs is None or not torch.equal(theirs.cpu().to(ours.dtype), ours.detach().cpu())):
                    raise Problem(
                        f"{name}: the tokenizer's file has changed since this run began; restore it or begin a new run"
                    )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ---- the catalogue

    def attach(self, content_ND: np.ndarray, decay: Uncertainty) -> None:
        """Run what rests over the catalogue once, and fix the logits' scale; decay: the noise, for the log."""
        rows = (self.prepare(piece) for piece in in_pieces(self.seen(content_ND)))
        self.input_Nd = through(self._stages[0], rows, torch.device("cpu"))
        if self.joint.lr_offset:
            self.offset_Nd = nn.Parameter(torch.zeros(len(content_ND), self.cfg.e_dim))
        z_Nd = self.latents()
        self.centre_d, self.unit = z_Nd.mean(0), z_Nd.std(0, correction=0).square().mean().sqrt()
        self.levels = measure_scales(self.rq, z_Nd, self.joint.logit_scale, decay)
        self.scale_L.copy_(torch.tensor([s.scale for s in self.levels]))

    def latents(self) -> Tensor:
        """z of the whole catalogue, [N, d], without dropout."""
        z_Nd = through(self._stages[1], self.input_Nd.split(ROWS), self.input_Nd.device)
        return self._moved(z_Nd).detach()

    def codes(self) -> Tensor:
        """Learned codes [N, L] of the whole catalogue as it is attached, without noise."""
        return self.rq.assign(self.latents(), self.cfg.catalogue_assignment)

    def figures(self, decay: Uncertainty) -> dict[str, float]:
        """Share of items per level that keep their nearest code under a decay's noise."""
        now = measure_scales(self.rq, self.latents(), self.scale_L.tolist(), decay)
        return {f"keep_probability/level_{i}": s.keep for i, s in enumerate(now, 1)}

    # ---- a batch

    @property
    def e_dim(self) -> int:
        return self.cfg.e_dim

    def item_vectors(self) -> Tensor:
        """(z - mean z) / rms(z - mean z) of the whole catalogue, [N, d]; mean and rms are those of the start."""
        with torch.autocast(self.input_Nd.device.type, enabled=False):
            z_Nd = self._stages[1](self.input_Nd)
            return (self._moved(z_Nd) - self.centre_d) / self.unit

    def _moved(self, content_Ud: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """z of some rows of the catalogue, from their content's latents."""
        return content_Ud if self.offset_Nd is None else content_Ud + self.offset_Nd[rows]

    def offset_energy(self) -> Tensor:
        """mean_v |delta_v|^2 / (2 rms^2) over the catalogue, rms as in `item_vectors`; 0 without offsets."""
        if self.offset_Nd is None:
            return torch.zeros((), device=self.input_Nd.device)
        return (self.offset_Nd / self.unit).square().sum(1).mean() / 2

    def offsets(self) -> list[nn.Parameter]:
        """The items' own offsets [N, d] to their latents, where they have any."""
        return [] if self.offset_Nd is None else [self.offset_Nd]

    def probed(self) -> dict[str, nn.Parameter]:
        """What the recommendation gradient must reach, by name: the codebooks."""
        return {f"level_{i}": c for i, c in enumerate(self.rq.codebooks(), 1)}

    def quantize(self, item_U: Tensor, step: Tensor, decay: Uncertainty, cached_UL: Tensor) -> Quantized:
        """Quantize U items at an optimizer step, in float32 whatever the recommender's precision.

        item_U: item numbers, which name each item's noise; cached_UL: their catalogue codes.
        """
        with torch.autocast(item_U.device.type, enabled=False):
            content_Ud = self._stages[1](self.input_Nd[item_U - 1])
            return self._quantize(self._moved(content_Ud, item_U - 1), content_Ud, item_U, step, decay, cached_UL)

    def _quantize(
        self, z_Ud: Tensor, content_Ud: Tensor, item_U: Tensor, step: Tensor, decay: Uncertainty, cached_UL: Tensor
    ) -> Quantized:
        c, r, q_sum, vq = self.joint, z_Ud, torch.zeros_like(z_Ud), z_Ud.new_zeros(len(z_Ud))
        tau, blend = decay.tau(step), c.assignment_forward == "soft"
        soft, index, nearest, stochastic, drawn = [], [], [], [], []
        for level, codebook in enumerate(self.rq.codebooks()):
            logits = -self.scale_L[level] * distance(r, codebook, self.cfg.dist)
            nearest.append(self._deterministic(logits, r, level))
            s = decay.noise_scale(nearest)
            stochastic.append((s[:, 0] > 0).expand(len(z_Ud)))
            u = counter_uniform(self.seed, step, item_U, level, len(codebook))
            noisy_logits = logits + s * decay.noise(u)
            drawn.append(torch.where(stochastic[-1], noisy_logits.argmax(1), nearest[-1]))
            i = cached_UL[:, level] if c.assignment_forward == "cached" else drawn[-1]
            p = self._soft(noisy_logits / tau, i)
            q = Quantized([i], [p], blend=blend).lookup(0, codebook)
            vq = vq + self.rq.vq_loss(r, q)
            r, q_sum = r - q, q_sum + q
            soft.append(p)
            index.append(i)
        goal = list(cached_UL.unbind(1)) if c.assignment_forward == "history" else None
        recon = (q_sum - content_Ud).square().mean(1)
        return Quantized(index, soft, nearest, vq / len(soft), recon, stochastic, drawn, blend=blend, goal_index=goal)

    def _deterministic(self, logits: Tensor, residual: Tensor, level: int) -> Tensor:
        if self.joint.deterministic_assignment == "sinkhorn":
            return self.rq.nearest(residual, level, "sinkhorn")
        return logits.detach().argmax(1)

    def _soft(self, sharp: Tensor, index: Tensor) -> Tensor:
        p = sharp.softmax(1)
        if self.joint.codebook_update == "soft":
            return p
        # the selected code's own distance is the only road back
        hard = F.one_hot(index, p.shape[1]).bool()
        own = torch.where(hard, sharp, sharp.detach()).softmax(1)
        return torch.where(hard, own, own.detach())


@torch.no_grad()
def measure_scales(
    rq: ResidualQuantizer, z_Nd: Tensor, logit_scale: str | float | list[float], decay: Uncertainty
) -> list[LevelScale]:
    """Measure each level over the catalogue, under a decay's noise as it is now."""
    found, r, noise = [], z_Nd, decay.scales()
    for level, codebook in enumerate(rq.codebooks()):
        pieces = [distance(piece, codebook, rq.cfg.dist) for piece in r.split(ROWS)]
        two = torch.cat([d.topk(2, dim=1, largest=False).values for d in pieces])
        gap = float((two[:, 1] - two[:, 0]).median())
        if logit_scale == "auto" and gap <= 1e-9 * float(two.abs().mean()):
            raise Problem(
                f"level {level + 1}: most items have two nearest codes at one distance, so logit_scale: auto has no "
                "unit; lower num_emb_list, pre-train longer, or set logit_scale to a number"
            )
        scale = 3.0 / max(gap, 1e-12) if logit_scale == "auto" else logit_scale
        scale = float(scale[level] if isinstance(scale, list) else scale)
        kept = torch.cat([decay.keep_probability(-scale * d, noise[level]) for d in pieces])
        found.append(LevelScale(gap, scale, float(kept.mean()), float(codebook.square().mean().sqrt())))
        r = r - codebook[torch.cat([d.argmin(1) for d in pieces])]
    return found
