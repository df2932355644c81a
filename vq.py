"""RQ-VAE tokenizer: content embedding -> one code per level.

Residual quantization (Zeghidour et al., arXiv:2107.03312; for recommendation TIGER, arXiv:2305.05065). The form that
learns with a recommender is joint/quantizer.py; docs/method.md has all formulas.

Shape letters: N items of the catalogue, U rows of a batch, D embedding width, d latent width, L levels, K codes of a
level.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import MLP, distance, kmeans, sinkhorn
from settings import option
from sids import distributed
from sids.behaviour import BehaviourOptions, ContentTokenizer, residual_distances
from sids.codebooks import CodebookEMA, CodebookOptions
from sids.tokenizer import ROWS, Distances, Learned, Rows, Source, each, in_pieces, joined, mean_of
from utils import Contradiction, Problem

SINKHORN_ITERATIONS = 50
LOOKED = 1 << 17  # items whose codes in training and afterwards are compared


@dataclass(frozen=True, kw_only=True)
class RQVAEOptions(BehaviourOptions, CodebookOptions):
    e_dim: int = option(256, "width d of latents and code vectors", ge=1)
    layers: list[int] = option([2048, 1024, 512], "hidden widths of the encoder MLP; the decoder mirrors them", ge=1)
    beta: float = option(0.25, "weight of the commitment term in the VQ loss, at least 0", ge=0)
    sk_epsilons: list[float] = option(
        [0.003, 0.003, 0.003], "Sinkhorn entropy weight per level, at least 0.0015; 0 = nearest code", ge=0
    )
    standardize_embeddings: bool = option(
        False, "whether embeddings are centred and divided by their standard deviation"
    )
    catalogue_assignment: Literal["argmin", "sinkhorn"] = option(
        "argmin", "how the codes of the whole catalogue are assigned: nearest code or Sinkhorn"
    )
    rqvae_assignment: Literal["sinkhorn", "argmin"] = option(
        "sinkhorn", "how codes are assigned in pre-training: Sinkhorn or nearest code"
    )
    quant_loss_weight: float = option(
        1.0, "weight of the VQ loss relative to the reconstruction loss, at least 0", ge=0
    )
    kmeans_iters: int = option(100, "number of k-means iterations that initialise each codebook", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bad := [e for e in self.sk_epsilons if 0 < e < 0.0015]:
            raise Problem(f"sk_epsilons: {bad[0]} overflows; use 0 (arg-min) or at least 0.0015")
        if len(self.sk_epsilons) != len(self.num_emb_list):
            levels, given = len(self.num_emb_list), self.sk_epsilons or [0.0]
            raise Contradiction(
                f"sk_epsilons: one number a level, {levels}, not {self.sk_epsilons}",
                {"sk_epsilons": (given[:1] * levels + given)[-levels:]},
                {"num_emb_list": (self.num_emb_list[:1] * len(given) + self.num_emb_list)[-len(given):]},
            )  # fmt: skip


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
        """The levels' codebooks, [K, d] each."""
        return [layer.embedding.weight for layer in self.vq_layers]  # type: ignore[union-attr,misc]

    def nearest(self, residual: Tensor, level: int, rule: str) -> Tensor:
        """Deterministic codes on one level: plain arg-min, or Sinkhorn over all rows given."""
        return self._chosen(distance(residual, self.codebooks()[level]), level, rule)

    def _chosen(self, far_NK: Tensor, level: int, rule: str) -> Tensor:
        epsilon = self.cfg.sk_epsilons[level]
        if rule == "sinkhorn" and epsilon > 0:
            return sinkhorn(far_NK, epsilon, SINKHORN_ITERATIONS)
        return far_NK.argmin(1)

    @torch.no_grad()
    def assign(self, z_Nd: Tensor, rule: str = "argmin") -> Tensor:
        """Deterministic codes [N, L] of rows that belong together."""
        return torch.stack([code for _, code in self.levels(z_Nd, rule)], 1)

    def levels(self, z_Nd: Tensor, rule: str = "argmin") -> Iterator[tuple[Tensor, Tensor]]:
        """(squared distances [N, K] of what is left, codes [N] that are chosen), level by level."""
        residual = z_Nd
        for level, codebook in enumerate(self.codebooks()):
            far_NK = distance(residual, codebook)
            code = self._chosen(far_NK, level, rule)
            yield far_NK, code
            residual = residual - codebook[code]

    def assign_all(self, pieces: Iterable[Tensor], n: int, rule: str) -> Tensor:
        """The same of n latents that come in pieces; Sinkhorn looks at all of them together."""
        together = [joined(pieces, n)] if rule == "sinkhorn" else pieces
        return joined((self.assign(z_Nd, rule) for z_Nd in together), n)

    def vq_loss(self, residual: Tensor, q: Tensor) -> Tensor:
        """|sg(r) - q|^2 + beta |r - sg(q)|^2, mean over dimensions, [U]; without the first term for moving averages."""
        commitment = self.cfg.beta * (residual - q.detach()).square().mean(1)
        return commitment if self.averaged else (q - residual.detach()).square().mean(1) + commitment


class RQVAE(ContentTokenizer, Learned):
    """Encoder, residual quantizer and decoder; state keys as in the released checkpoints."""

    Options: ClassVar[type[RQVAEOptions]] = RQVAEOptions
    cfg: RQVAEOptions
    cumulative: ClassVar[bool] = False  # VQ loss of the latent and all codes so far, not of each residual and its code
    only_pre_training: ClassVar[tuple[str, ...]] = ("upkeep.",)

    def __init__(self, cfg: RQVAEOptions, n_input: int) -> None:
        super().__init__(cfg, n_input)
        self.cfg = cfg
        sizes = [self.width, *cfg.layers, cfg.e_dim]
        self.encoder = MLP(sizes)
        self.rq = ResidualQuantizer(cfg)
        self.decoder = MLP(sizes[::-1])
        self.upkeep: CodebookEMA | None = None
        if cfg.codebook_learning == "ema" or cfg.dead_code_ratio:
            self.upkeep = CodebookEMA(cfg, cfg.num_emb_list, cfg.e_dim)
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
        return self.rq.assign_all(self._latents(content_ND), len(content_ND), self.cfg.catalogue_assignment)

    @torch.no_grad()
    def decode(self, code_NL: Tensor) -> Tensor:
        """Reconstruction from the first 1, 2 ... L codes, [N, L, D]."""
        q_NLd = torch.stack([c[i] for c, i in zip(self.rq.codebooks(), code_NL.unbind(1), strict=True)], 1)
        x_NLD = joined(each(self.decoder, q_NLd.cumsum(1).split(ROWS), q_NLd.device), len(q_NLd))
        if self.cfg.standardize_embeddings:
            x_NLD = x_NLD * self.get_buffer("spread") + self.get_buffer("shift")
        return x_NLD

    def latent(self, content_ND: np.ndarray) -> Tensor:
        """z of a whole catalogue, [N, d]."""
        return joined(self._latents(content_ND), len(content_ND))

    def _latents(self, content_ND: np.ndarray) -> Iterator[Tensor]:
        device = self.rq.codebooks()[0].device
        return each(self.encoder, (self.prepare(x.to(device)) for x in in_pieces(self.seen(content_ND))), device)

    def vectors(self, content_ND: np.ndarray, code_NT: Tensor) -> dict[str, Iterator[Tensor]]:
        """The latent, and the sum of the code vectors."""
        books = self.rq.codebooks()
        sums = (torch.stack([c[i] for c, i in zip(books, code.unbind(1), strict=True)]).sum(0)
                for code in code_NT.split(ROWS))  # fmt: skip
        return {"latent": self._latents(content_ND), "quantized": sums}

    @torch.no_grad()
    def distances_of(self, content_ND: np.ndarray) -> Distances:
        """Distances of a catalogue's residuals to the codes of any level, after any codes before it."""
        books = [c.detach().cpu() for c in self.rq.codebooks()]
        return residual_distances(self.latent(content_ND).cpu(), books)

    # ---- pre-training

    def begin(self, source: Source, size: int, seed: int, *, fresh: bool) -> None:
        """Hold the catalogue; on a fresh start take the embeddings' spread and k-means on one batch."""
        if fresh and self.side is not None:
            self.side.learn(source, seed)
        rows = self.seen(source.content_ND)
        if fresh and self.cfg.standardize_embeddings:
            self._take_spread(rows)
        self.hold(rows, self.width)
        if fresh:
            first = RQVAE.batches(self, source, size, seed, 0)[0]
            self.init_codebooks(self.rows_of(first), self.cfg.kmeans_iters, seed)
        if fresh and self.upkeep is not None:
            self.upkeep.begin()

    def _take_spread(self, rows: Rows) -> None:
        """Mean of each dimension, and one standard deviation of all that is left."""
        mean_D, total = mean_of(rows), 0.0
        for piece in in_pieces(rows):
            total += float((piece.double() - mean_D).square().sum())
        spread = (total / max(len(rows) * len(mean_D) - 1, 1)) ** 0.5
        self.get_buffer("shift").copy_(mean_D)
        self.get_buffer("spread").fill_(spread)
        if not 1e-30 < spread < 1e30:
            raise Problem(
                "standardize_embeddings: all embeddings are equal, so their standard deviation is zero; "
                "embed the items anew or leave the option out"
            )

    def batches(self, source: Source, size: int, seed: int, epoch: int) -> list[Tensor]:
        """Rows of the catalogue in a fresh random order, `size` at a time."""
        order = np.random.default_rng([seed, epoch, 11]).permutation(len(source.content_ND))
        return list(torch.from_numpy(order).split(size))

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """|decoder(sum_l q_l) - x|^2 + w L_vq of the rows of a batch."""
        recon, vq, _ = self(self.rows_of(batch), self.cfg.rqvae_assignment)
        return recon + self.cfg.quant_loss_weight * vq, {"recon": recon, "vq": vq}

    def forward(self, x_ND: Tensor, rule: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pre-training pass on prepared embeddings: (reconstruction loss, VQ loss, codes [N, L])."""
        out, vq, codes = self.straight_through(distributed.spread(self.encoder, x_ND), rule)
        return F.mse_loss(distributed.spread(self.decoder, out), x_ND), vq, codes

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
            vq = vq + self.rq.vq_loss(*((z_Nd, total) if self.cumulative else (r, q))).mean()
            q = r + (q - r).detach()  # straight-through
            out, r = out + q, r - q
            codes.append(code)
        return out, vq / len(codes), torch.stack(codes, 1)

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """After each step of pre-training: the codebooks' upkeep; figures for the log."""
        return {} if self.upkeep is None else self.upkeep.step(self.rq.codebooks(), optimizer)

    @torch.no_grad()
    def disagreement(self, size: int, seed: int) -> list[float]:
        """Share of items per level, of LOOKED at most, whose code in a batch of pre-training is not the catalogue's; []
        for equal rules.
        """
        rule, device = self.cfg.rqvae_assignment, self.rq.codebooks()[0].device
        if rule == self.cfg.catalogue_assignment == "argmin" or not any(self.cfg.sk_epsilons):
            return []
        items = len(self.rows if self.x_ND is None else self.x_ND)
        some = torch.from_numpy(np.random.default_rng(seed).permutation(items)[:LOOKED])
        z_Nd = joined(each(self.encoder, map(self.rows_of, some.split(ROWS)), device), len(some))
        batches_NL = torch.cat([self.rq.assign(z_Xd, rule) for z_Xd in z_Nd.split(size)])
        differ_NL = batches_NL != self.rq.assign_all(z_Nd.split(ROWS), len(z_Nd), self.cfg.catalogue_assignment)
        return [float(level) for level in differ_NL.float().mean(0)]

    @torch.no_grad()
    def init_codebooks(self, x_ND: Tensor, iterations: int, seed: int) -> None:
        """k-means on the residuals of one batch, level by level (faiss)."""
        r = self.encoder(x_ND)
        for codebook in self.rq.codebooks():
            centres = kmeans(r.cpu().numpy(), len(codebook), iterations, seed)
            codebook.copy_(torch.from_numpy(centres))
            r = r - codebook[distance(r, codebook).argmin(1)]
