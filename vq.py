"""RQ-VAE tokenizer: content embedding -> one code per level, differentiable in joint training.

Shape letters: N items of the catalogue, U distinct items of a batch, D embedding width, d latent
width, L levels, K codes of a level, h recommender width.
"""

import argparse
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import MLP, counter_uniform, distance, kmeans, sinkhorn, straight_through_lookup
from settings import JointOptions, TokenizerOptions
from uncertainty import Uncertainty, keep_probability
from utils import Problem, read_checkpoint


@dataclass(frozen=True)
class Quantized:
    """The learned codes of U items, level by level.

    soft: p_l [U, K], or None where no gradient is wanted; index: the forward pass's codes i_l [U];
    nearest: the deterministic codes [U]; vq, recon: loss terms per item [U]; noisy: whether an item
    received noise [U]; sampled: the drawn codes [U], whether the forward pass uses them or not.
    """

    index: list[Tensor]
    soft: list[Tensor] | None = None
    nearest: list[Tensor] = dataclasses.field(default_factory=list)
    vq: Tensor | None = None
    recon: Tensor | None = None
    noisy: list[Tensor] = dataclasses.field(default_factory=list)
    sampled: list[Tensor] = dataclasses.field(default_factory=list)
    blend: bool = False  # assignment_forward: soft
    goal_index: list[Tensor] | None = None  # codes as a target, where they differ from those as history

    def lookup(self, level: int, table_Kh: Tensor) -> Tensor:
        """m_l @ table, [U, h]."""
        p = self.soft[level] if self.soft is not None else None
        if self.blend and p is not None:
            return p @ table_Kh
        return straight_through_lookup(p, self.index[level], table_Kh)

    def label(self, level: int, rows: Tensor, n_codes: int, weight: float) -> Tensor:
        """m_l of the items at `rows`, [B, K]: one-hot forward, `weight` times the soft gradient back."""
        hard = F.one_hot(self.index[level][rows], n_codes)
        if self.soft is None:
            return hard
        p = self.soft[level][rows]
        soft = weight * (p - p.detach())
        return p.detach() + soft if self.blend else hard + soft

    def goal(self) -> "Quantized":
        """The items as targets: with assignment_forward `history` their codes are the catalogue's."""
        return self if self.goal_index is None else dataclasses.replace(self, index=self.goal_index, goal_index=None)

    def detached(self) -> "Quantized":
        """The same codes without the road back to the codebooks."""
        soft = [p.detach() for p in self.soft] if self.blend and self.soft else None
        return dataclasses.replace(self, soft=soft)


class Codebook(nn.Module):
    """One level; the key `embedding.weight` is that of the released checkpoints."""

    def __init__(self, n_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / n_codes, 1 / n_codes)


class ResidualQuantizer(nn.Module):
    """Each level quantizes what the levels before it left over (method, section 2)."""

    def __init__(self, cfg: TokenizerOptions) -> None:
        super().__init__()
        self.cfg = cfg
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
        """|sg(r) - q|^2 + beta |r - sg(q)|^2, mean over dimensions, [U]."""
        codebook = (q - residual.detach()).square().mean(1)
        return codebook + self.cfg.beta * (residual - q.detach()).square().mean(1)


class JointQuantizer:
    """The assignment of joint training: noise, soft gradient, uncertainty decay (method, section 2).

    Holds no parameters of its own: the codebooks belong to the tokenizer, sigma and usage to the
    strategy, `scale_L` (the logits' scale) to the model that saves it.
    """

    def __init__(self, rq: ResidualQuantizer, decay: Uncertainty, cfg: JointOptions, seed: int) -> None:
        self.rq, self.decay, self.cfg, self.seed = rq, decay, cfg, seed

    def __call__(self, z_Ud: Tensor, item_U: Tensor, step: Tensor, scale_L: Tensor, cached_UL: Tensor) -> Quantized:
        """Quantize U items at an optimizer step; float32 throughout.

        item_U: item numbers, which name each item's noise; cached_UL: their catalogue codes.
        """
        c, r, q_sum, vq = self.cfg, z_Ud, torch.zeros_like(z_Ud), z_Ud.new_zeros(len(z_Ud))
        tau = self.decay.tau(step)
        soft, index, nearest, drawn, sampled = [], [], [], [], []
        for level, codebook in enumerate(self.rq.codebooks()):
            logits = -scale_L[level] * distance(r, codebook, self.rq.cfg.dist)
            nearest.append(self._deterministic(logits, r, level))
            s = self.decay.noise_scale(nearest)
            drawn.append((s[:, 0] > 0).expand(len(z_Ud)))
            u = counter_uniform(self.seed, step, item_U, level, len(codebook))
            noisy = logits + s * self.decay.noise(u)
            i = torch.where(drawn[-1], noisy.argmax(1), nearest[-1])
            sampled.append(i)
            if c.assignment_forward == "cached":
                i = cached_UL[:, level]
            p = self._soft(noisy / tau, i)

            one_level = Quantized([i], [p], blend=c.assignment_forward == "soft")
            q = one_level.lookup(0, codebook)
            vq = vq + self.rq.vq_loss(r, q)
            r, q_sum = r - q, q_sum + q
            soft.append(p)
            index.append(i)
        goal = list(cached_UL.unbind(1)) if c.assignment_forward == "history" else None
        return Quantized(
            index,
            soft,
            nearest,
            vq=vq / len(soft),
            recon=(q_sum - z_Ud).square().mean(1),
            noisy=drawn,
            sampled=sampled,
            blend=c.assignment_forward == "soft",
            goal_index=goal,
        )

    def _deterministic(self, logits: Tensor, residual: Tensor, level: int) -> Tensor:
        if self.cfg.deterministic_assignment == "sinkhorn":
            return self.rq.nearest(residual, level, "sinkhorn")
        return logits.detach().argmax(1)

    def _soft(self, sharp: Tensor, index: Tensor) -> Tensor:
        p = sharp.softmax(1)
        if self.cfg.codebook_update == "soft":
            return p
        # the selected code's own distance is the only road back
        hard = F.one_hot(index, p.shape[1]).bool()
        own = torch.where(hard, sharp, sharp.detach()).softmax(1)
        return torch.where(hard, own, own.detach())


class RQVAE(nn.Module):
    """Encoder, residual quantizer and decoder; state keys as in the released checkpoints."""

    def __init__(self, cfg: TokenizerOptions, n_input: int) -> None:
        super().__init__()
        self.cfg = cfg
        sizes = [n_input, *cfg.layers, cfg.e_dim]
        self.encoder = MLP(sizes, cfg.dropout_prob)
        self.rq = ResidualQuantizer(cfg)
        self.decoder = MLP(sizes[::-1], cfg.dropout_prob)
        if cfg.standardize_embeddings:
            self.register_buffer("shift", torch.zeros(n_input))
            self.register_buffer("spread", torch.ones(()))

    def prepare(self, x_ND: Tensor) -> Tensor:
        """The encoder's input: the embedding as it comes, or standardized."""
        if not self.cfg.standardize_embeddings:
            return x_ND
        return (x_ND - self.get_buffer("shift")) / self.get_buffer("spread")

    def forward(self, x_ND: Tensor, rule: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pre-training pass on prepared embeddings: (reconstruction loss, VQ loss, codes [N, L])."""
        z = self.encoder(x_ND)
        r, out, vq, codes = z, torch.zeros_like(z), z.new_zeros(()), []
        for level, codebook in enumerate(self.rq.codebooks()):
            with torch.no_grad():
                code = self.rq.nearest(r, level, rule)
            q = F.embedding(code, codebook)
            vq = vq + self.rq.vq_loss(r, q).mean()
            q = r + (q - r).detach()  # straight-through
            out, r = out + q, r - q
            codes.append(code)
        recon = F.mse_loss(self.decoder(out), x_ND)
        return recon, vq / len(codes), torch.stack(codes, 1)

    @torch.no_grad()
    def init_codebooks(self, x_ND: Tensor, iterations: int, seed: int) -> None:
        """k-means on the residuals of one batch, level by level (faiss)."""
        r = self.encoder(x_ND)
        for codebook in self.rq.codebooks():
            centres = kmeans(r.cpu().numpy(), len(codebook), iterations, seed)
            codebook.copy_(torch.from_numpy(centres))
            r = r - codebook[distance(r, codebook).argmin(1)]

    def encoder_stages(self, frozen_linears: int) -> tuple[nn.Sequential, nn.Sequential]:
        """(resting part, learning part) of the encoder: the first n linear blocks rest."""
        blocks = list(self.encoder.mlp_layers)
        cut = 3 * frozen_linears
        return nn.Sequential(*blocks[:cut]), nn.Sequential(*blocks[cut:])

    def n_linears(self) -> int:
        return len(self.cfg.layers) + 1


def in_chunks(rows: Iterable[Tensor], function: nn.Module, device: torch.device) -> Tensor:
    """Apply a network to a catalogue that comes in pieces, without gradient, [N, ...]."""
    with torch.no_grad():
        return torch.cat([function(piece.to(device)) for piece in rows])


# ---------------------------------------------------------------- checkpoints


def load_rqvae(path: str | Path, cfg: TokenizerOptions, n_input: int) -> RQVAE:
    """A pre-trained tokenizer, ours or a released `best_collision_model.pth`.

    Nothing in the file is executed. Problem when its shapes disagree with the configuration.
    """
    state = read_checkpoint(path, allow=(argparse.Namespace,)).get("state_dict")
    if not isinstance(state, dict):
        raise Problem(f"{path}: holds no 'state_dict'; expected an RQ-VAE checkpoint")
    first = state.get("encoder.mlp_layers.1.weight")
    if isinstance(first, Tensor) and first.shape[1] != n_input:
        raise Problem(
            f"{path}: was trained on embeddings of width {first.shape[1]}, yours have {n_input}; "
            "use the embeddings of that checkpoint or pre-train again"
        )
    model = RQVAE(cfg, n_input)
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    theirs = {str(k): tuple(v.shape) for k, v in state.items() if isinstance(v, Tensor)}
    for key in sorted(own.keys() | theirs.keys()):
        if own.get(key) != theirs.get(key):
            raise Problem(
                f"{path}: {key} has shape {theirs.get(key, 'none')}, the configuration wants "
                f"{own.get(key, 'none')}; check num_emb_list, e_dim, layers, standardize_embeddings"
            )
    if bad := [k for k in own if not torch.isfinite(state[k]).all()]:
        raise Problem(f"{path}: {bad[0]} holds NaN or infinity; pre-train again")
    model.load_state_dict({k: state[k] for k in own})
    return model


# ---------------------------------------------------------------- start-up figures


@dataclass(frozen=True)
class LevelScale:
    """What decides the randomness of one level before any training."""

    gap: float  # median over the catalogue of second-nearest minus nearest distance
    scale: float  # logits = -scale * distance
    keep: float  # share of items whose drawn code is the nearest one, at the current s
    rms: float  # of the codebook's entries


@torch.no_grad()
def measure_scales(
    rq: ResidualQuantizer, z_Nd: Tensor, logit_scale: str | float | list[float], noise: list[float]
) -> list[LevelScale]:
    """Measure each level over the catalogue (method, `logit_scale`); noise: its scale s per level."""
    found, r = [], z_Nd
    for level, codebook in enumerate(rq.codebooks()):
        pieces = [distance(piece, codebook, rq.cfg.dist) for piece in r.split(8192)]
        two = torch.cat([d.topk(2, dim=1, largest=False).values for d in pieces])
        gap = float((two[:, 1] - two[:, 0]).median())
        if logit_scale == "auto" and gap <= 1e-9 * float(two.mean()):
            raise Problem(
                f"level {level + 1}: most items have two nearest codes at one distance, so logit_scale: auto has no unit; "
                "lower num_emb_list, pre-train longer, or set logit_scale to a number"
            )
        scale = 3.0 / max(gap, 1e-12) if logit_scale == "auto" else logit_scale
        scale = float(scale[level] if isinstance(scale, list) else scale)
        kept = torch.cat([keep_probability(-scale * d, noise[level]) for d in pieces])
        found.append(LevelScale(gap, scale, float(kept.mean()), float(codebook.square().mean().sqrt())))
        r = r - codebook[torch.cat([d.argmin(1) for d in pieces])]
    return found
