"""How much noise an item's code assignment receives, and what that does to the task loss.

Every variant of DIGER (arXiv:2601.19711, section 3) is one number `s` per item and level in

    p = softmax((logits + s * noise) / tau).

A decay answers: which noise (`noise`, `keep_probability`), how much of it (`noise_scale`; `scales` for the log), what
happens to the recommendation loss (`task_loss`), what to remember after a step (`observe`, `after_step`). A new one is
a class here, a line in `DECAYS` and its name in `DecayName`. docs/method.md has the formulas in one place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from layers import gaussian, gumbel
from recommenders.protocol import AllReduce
from settings import option
from utils import Contradiction

DecayName = Literal["none", "gumbel", "frqud", "sdud", "frqud_sdud", "gaussian", "tau_annealing"]


NODES = 24  # of a sum in the place of an integral over one code's noise
BIAS = (0.5, 3.0)  # where a learned lambda of SDUD is kept


ANNEALED = ("uncertainty: tau_annealing",)
BY_USAGE, BY_SIGMA = ("uncertainty: frqud frqud_sdud",), ("uncertainty: sdud frqud_sdud",)


@dataclass(frozen=True, kw_only=True)
class UncertaintyOptions:
    uncertainty: DecayName = option("frqud", "noise on the code assignment and how it decays")
    gumbel_tau: float = option(2.0, "temperature of the soft code assignment, above 0", gt=0)
    tau_anneal_min: float = option(0.5, "lowest temperature of the annealing, at most gumbel_tau", gt=0, needs=ANNEALED)
    tau_anneal_rate: float = option(3e-5, "exponential decay rate of the temperature, per step", ge=0, needs=ANNEALED)
    hot_threshold_ratio: float = option(
        1.5, "FrqUD: a code keeps its noise while its usage is above this ratio / K", gt=0, needs=BY_USAGE
    )
    usage_momentum: float = option(
        0.99, "FrqUD: momentum of the moving average of code usage, 0 to 1", ge=0, le=1, needs=BY_USAGE
    )
    hot_granularity: Literal["item", "level"] = option(
        "item", "FrqUD: whether level 1 decides for the whole item, or each level for itself", needs=BY_USAGE
    )
    initial_std: float = option(2.0, "SDUD: initial noise scale sigma, above 0", gt=0, needs=BY_SIGMA)
    lr_sigma: float = option(1e-3, "SDUD: learning rate of the noise scale sigma", ge=0, needs=BY_SIGMA)
    sigma_lambda: float = option(
        1.7,
        "SDUD: lambda in the weighted loss L / (2 (sigma + lambda)^2) + log(sigma + lambda), above 0",
        gt=0,
        needs=BY_SIGMA,
    )
    auto_lambda_mode: Literal["fixed", "learnable", "adaptive"] = option(
        "fixed", "SDUD: whether lambda is fixed, learned, or follows a moving average of the loss", needs=BY_SIGMA
    )
    sdud_loss: Literal["uncertainty", "raw"] = option(
        "uncertainty",
        "SDUD: whether the recommendation loss is weighted by the uncertainty or left as it is (raw)",
        needs=BY_SIGMA,
    )

    def __post_init__(self) -> None:
        if self.uncertainty == "tau_annealing" and self.tau_anneal_min > self.gumbel_tau:
            raise Contradiction(
                f"tau_anneal_min: {self.tau_anneal_min} exceeds gumbel_tau {self.gumbel_tau}, where annealing starts",
                {"tau_anneal_min": self.gumbel_tau}, {"gumbel_tau": self.tau_anneal_min},
            )  # fmt: skip
        if self.auto_lambda_mode == "learnable" and not BIAS[0] <= self.sigma_lambda <= BIAS[1]:
            raise Contradiction(
                f"sigma_lambda: {self.sigma_lambda} lies outside {BIAS[0]} to {BIAS[1]}, where auto_lambda_mode: "
                "learnable keeps it",
                {"sigma_lambda": min(max(self.sigma_lambda, BIAS[0]), BIAS[1])}, {"auto_lambda_mode": "fixed"},
            )  # fmt: skip


@torch.no_grad()
def move_shares(module: nn.Module, name: str, codes: Sequence[int], momentum: float, all_reduce: AllReduce) -> None:
    """share <- momentum share + (1 - momentum) counts / sum(counts) on each level, over all processes.

    Buffers of the module: <name>_0, _1 ... [K] are the shares, pending_0, _1 ... [K] the counts, which begin again.
    """
    counts = all_reduce(torch.cat([module.get_buffer(f"pending_{level}") for level in range(len(codes))]))
    for level, count_K in enumerate(counts.split(list(codes))):
        share_K = count_K / count_K.sum().clamp(min=1)
        module.get_buffer(f"{name}_{level}").lerp_(share_K, 1 - momentum)
        module.get_buffer(f"pending_{level}").zero_()


class Decay(nn.Module):
    """Full Gumbel noise that never fades, s = 1; the others override what differs."""

    def __init__(self, cfg: UncertaintyOptions, codes: list[int]) -> None:
        super().__init__()
        self.cfg = cfg
        self.codes = codes

    def noise(self, u: Tensor) -> Tensor:
        """Uniform numbers in (0, 1), [U, K], as this decay's noise."""
        return gumbel(u)

    def noise_scale(self, nearest: list[Tensor]) -> Tensor:
        """Scale s, broadcastable to [U, 1], on level `len(nearest)`.

        nearest: the deterministic codes [U] of this and the shallower levels, shallowest first.
        """
        return torch.ones(1, 1, device=nearest[0].device)

    def task_loss(self, loss: Tensor) -> Tensor:
        """What becomes of the recommendation loss, a scalar."""
        return loss

    def observe(self, nearest: list[Tensor], new_U: Tensor, loss: Tensor) -> None:
        """See one part of a step: its deterministic codes, [U] a level; which items no other part counts, [U] bool; its
        recommendation loss times its share of the step.
        """

    def after_step(self, all_reduce: AllReduce) -> None:
        """Once per optimizer step, on every process alike."""

    def tau(self, step: Tensor) -> Tensor | float:
        """Temperature at an optimizer step."""
        return self.cfg.gumbel_tau

    def scales(self) -> list[float]:
        """Noise scale per level where noise is applied, for the log."""
        return [1.0] * len(self.codes)

    def keep_probability(self, logits_UK: Tensor, scale: float) -> Tensor:
        """P(noisy arg-max = arg-max) of each item, [U], under this noise, scaled; tau plays no part.

        Of Gumbel noise exactly max_k softmax(logits / scale)_k, by the Gumbel-max theorem.
        """
        if scale == 0:
            return logits_UK.new_ones(len(logits_UK))
        return (logits_UK / scale).softmax(1).amax(1)


class NoNoise(Decay):
    """The deterministic straight-through estimator."""

    def noise_scale(self, nearest: list[Tensor]) -> Tensor:
        return torch.zeros(1, 1, device=nearest[0].device)

    def scales(self) -> list[float]:
        return [0.0] * len(self.codes)


class Gaussian(Decay):
    """Full Gaussian noise that never fades."""

    def noise(self, u: Tensor) -> Tensor:
        return gaussian(u)

    def keep_probability(self, logits_UK: Tensor, scale: float) -> Tensor:
        """E_x prod_{k not best} Phi(x + (best - logits_k) / scale), x the best code's own noise; Gauss-Hermite."""
        ahead_UK = (logits_UK.amax(1, keepdim=True) - logits_UK) / scale
        kept_U = torch.zeros(len(logits_UK), device=logits_UK.device)
        for x, weight in zip(*np.polynomial.hermite_e.hermegauss(NODES), strict=True):
            log_ndtr_UK = torch.special.log_ndtr(ahead_UK + x)
            own_U = torch.special.log_ndtr(torch.tensor(x))  # of the best code against itself
            kept_U += weight / math.sqrt(2 * math.pi) * (log_ndtr_UK.sum(1) - own_U).exp()
        return kept_U


class TauAnnealing(Decay):
    """Gumbel noise whose temperature falls: max(tau_anneal_min, gumbel_tau exp(-tau_anneal_rate step))."""

    def tau(self, step: Tensor) -> Tensor:
        c = self.cfg
        return (c.gumbel_tau * torch.exp(-c.tau_anneal_rate * step)).clamp(min=c.tau_anneal_min)


class FrqUD(Decay):
    """Frequency-based decay: only items whose deterministic code is over-used keep their noise.

    With u <- mu u + (1 - mu) counts / sum(counts), u_0 = 1 / K, once per optimizer step from the distinct
    items of the global batch: s = 1 where u[nearest] > rho / K, else 0 (arXiv:2601.19711, FrqUD).
    """

    def __init__(self, cfg: UncertaintyOptions, codes: list[int]) -> None:
        super().__init__(cfg, codes)
        for level, k in enumerate(codes):
            self.register_buffer(f"usage_{level}", torch.full((k,), 1 / k))
            self.register_buffer(f"pending_{level}", torch.zeros(k), persistent=False)

    def usage(self, level: int) -> Tensor:
        """Moving average of how often each code of a level is used, [K]; levels count from 0."""
        return self.get_buffer(f"usage_{level}")

    def noise_scale(self, nearest: list[Tensor]) -> Tensor:
        level = 0 if self.cfg.hot_granularity == "item" else len(nearest) - 1
        hot_K = self.usage(level) > self.cfg.hot_threshold_ratio / self.codes[level]
        return hot_K[nearest[level]].float()[:, None]

    @torch.no_grad()
    def observe(self, nearest: list[Tensor], new_U: Tensor, loss: Tensor) -> None:
        for level, code_U in enumerate(nearest):
            pending = self.get_buffer(f"pending_{level}")
            pending.index_add_(0, code_U, new_U.to(pending.dtype))

    def after_step(self, all_reduce: AllReduce) -> None:
        move_shares(self, "usage", self.codes, self.cfg.usage_momentum, all_reduce)


class SDUD(Decay):
    """Standard-deviation-based decay: a learned noise scale per level, s = |sigma|, that weighs the task loss too.

    L / (2 (|sigma| + lambda)^2) + log(|sigma| + lambda), |sigma| averaged over levels, so that for a constant
    loss its mean settles at max(0, sqrt(L) - lambda) (arXiv:2601.19711, SDUD).
    """

    bias: nn.Parameter | None  # lambda, where it is learned

    def __init__(self, cfg: UncertaintyOptions, codes: list[int]) -> None:
        super().__init__(cfg, codes)
        self.sigma = nn.Parameter(torch.full((len(codes),), cfg.initial_std))
        self.register_buffer("loss_average", torch.tensor(5.0))
        self.register_buffer("pending_loss", torch.tensor(0.0), persistent=False)
        learned = cfg.auto_lambda_mode == "learnable" and cfg.sdud_loss == "uncertainty"
        self.register_parameter("bias", nn.Parameter(torch.tensor(cfg.sigma_lambda)) if learned else None)

    def lambda_(self) -> Tensor | float:
        """lambda, by `auto_lambda_mode`."""
        if self.bias is not None:
            return self.bias.clamp(*BIAS)
        if self.cfg.auto_lambda_mode == "adaptive":
            return self.get_buffer("loss_average").clamp(0.25, 25.0).sqrt()
        return self.cfg.sigma_lambda

    def noise_scale(self, nearest: list[Tensor]) -> Tensor:
        return self.sigma[len(nearest) - 1].abs().view(1, 1)

    def task_loss(self, loss: Tensor) -> Tensor:
        if self.cfg.sdud_loss == "raw":
            return loss
        total = self.sigma.abs().mean() + self.lambda_()
        return loss / (2 * total.square()) + total.log()

    @torch.no_grad()
    def observe(self, nearest: list[Tensor], new_U: Tensor, loss: Tensor) -> None:
        self.get_buffer("pending_loss").add_(loss)

    @torch.no_grad()
    def after_step(self, all_reduce: AllReduce) -> None:
        if self.bias is not None:
            self.bias.clamp_(*BIAS)  # beyond, it would have no gradient to come back by
        pending = self.get_buffer("pending_loss")
        self.get_buffer("loss_average").lerp_(all_reduce(pending.clone()), 0.01)
        pending.zero_()

    def scales(self) -> list[float]:
        return self.sigma.detach().abs().tolist()


class FrqSDUD(SDUD):
    """FrqUD's mask times SDUD's scale."""

    def __init__(self, cfg: UncertaintyOptions, codes: list[int]) -> None:
        super().__init__(cfg, codes)
        self.frequency = FrqUD(cfg, codes)

    def noise_scale(self, nearest: list[Tensor]) -> Tensor:
        return self.frequency.noise_scale(nearest) * super().noise_scale(nearest)

    def observe(self, nearest: list[Tensor], new_U: Tensor, loss: Tensor) -> None:
        super().observe(nearest, new_U, loss)
        self.frequency.observe(nearest, new_U, loss)

    def after_step(self, all_reduce: AllReduce) -> None:
        super().after_step(all_reduce)
        self.frequency.after_step(all_reduce)


DECAYS: dict[str, type[Decay]] = {
    "none": NoNoise,
    "gumbel": Decay,
    "gaussian": Gaussian,
    "tau_annealing": TauAnnealing,
    "frqud": FrqUD,
    "sdud": SDUD,
    "frqud_sdud": FrqSDUD,
}
