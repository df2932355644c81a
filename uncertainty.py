"""How much noise an item's code assignment receives, and what that does to the task loss.

Every variant of DIGER is one number `s` per item and level in

    p = softmax((logits + s * noise) / tau).

A strategy answers: how much noise (`noise_scale`), what happens to the recommendation loss
(`task_loss`), what to remember after a step (`observe`, `after_step`). A new one is a class here and
a line in `STRATEGIES`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from layers import gaussian, gumbel
from settings import JointOptions

AllReduce = Callable[[Tensor], Tensor]


class Uncertainty(nn.Module):
    """Full Gumbel noise that never fades; the others override what differs."""

    def __init__(self, cfg: JointOptions, codes: list[int]) -> None:
        super().__init__()
        self.cfg = cfg
        self.codes = codes

    def noise(self, u: Tensor) -> Tensor:
        """Turn uniform numbers into this strategy's noise."""
        return gumbel(u)

    def noise_scale(self, nearest: list[Tensor]) -> Tensor:
        """Scale s, broadcastable to [U, 1], on level `len(nearest)`.

        nearest: the deterministic codes [U] of this and the shallower levels, shallowest first.
        """
        return torch.ones(1, 1, device=nearest[0].device)

    def task_loss(self, loss: Tensor) -> Tensor:
        return loss

    def observe(self, nearest: list[Tensor], new_U: Tensor, loss: Tensor) -> None:
        """See one part of a step: deterministic codes, which items no other part counts, its loss
        times its share of the step."""

    def after_step(self, all_reduce: AllReduce) -> None:
        """Once per optimizer step, on every process alike."""

    def tau(self, step: Tensor) -> Tensor | float:
        """Temperature at an optimizer step; falls only with `use_tau_annealing`."""
        c = self.cfg
        if not (c.use_tau_annealing or c.uncertainty == "tau_annealing"):
            return c.gumbel_tau
        return (c.tau_anneal_init * torch.exp(-c.tau_anneal_rate * step)).clamp(min=c.tau_anneal_min)

    def scales(self) -> list[float]:
        """Noise scale per level where noise is applied, for the log."""
        return [1.0] * len(self.codes)


class NoNoise(Uncertainty):
    """The deterministic straight-through estimator."""

    def noise_scale(self, nearest: list[Tensor]) -> Tensor:
        return torch.zeros(1, 1, device=nearest[0].device)

    def scales(self) -> list[float]:
        return [0.0] * len(self.codes)


class Gaussian(Uncertainty):
    def noise(self, u: Tensor) -> Tensor:
        return gaussian(u)


class FrqUD(Uncertainty):
    """Only items whose deterministic code is over-used keep their noise (DIGER, section 3)."""

    def __init__(self, cfg: JointOptions, codes: list[int]) -> None:
        super().__init__(cfg, codes)
        for level, k in enumerate(codes):
            self.register_buffer(f"usage_{level}", torch.full((k,), 1 / k))
            self.register_buffer(f"pending_{level}", torch.zeros(k), persistent=False)

    def usage(self, level: int) -> Tensor:
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

    @torch.no_grad()
    def after_step(self, all_reduce: AllReduce) -> None:
        counts = all_reduce(torch.cat([self.get_buffer(f"pending_{i}") for i in range(len(self.codes))]))
        for level, count_K in enumerate(counts.split(self.codes)):
            share_K = count_K / count_K.sum().clamp(min=1)
            self.usage(level).lerp_(share_K, 1 - self.cfg.usage_momentum)
            self.get_buffer(f"pending_{level}").zero_()


class SDUD(Uncertainty):
    """A learned noise scale per level; the task loss is weighted by it (DIGER, section 3).

    L / (2 (|sigma| + lambda)^2) + log(|sigma| + lambda), so the mean of |sigma| settles at
    max(0, sqrt(L) - lambda).
    """

    def __init__(self, cfg: JointOptions, codes: list[int]) -> None:
        super().__init__(cfg, codes)
        self.sigma = nn.Parameter(torch.full((len(codes),), cfg.initial_std))
        self.register_buffer("loss_average", torch.tensor(5.0))
        self.register_buffer("pending_loss", torch.tensor(0.0), persistent=False)
        if cfg.auto_lambda_mode == "learnable" and cfg.sdud_loss == "uncertainty":
            self.bias = nn.Parameter(torch.tensor(cfg.sigma_lambda))

    def lambda_(self) -> Tensor | float:
        mode = self.cfg.auto_lambda_mode
        if mode == "learnable":
            return self.bias.abs().clamp(0.5, 3.0)
        if mode == "adaptive":
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
        pending = self.get_buffer("pending_loss")
        self.get_buffer("loss_average").lerp_(all_reduce(pending.clone()), 0.01)
        pending.zero_()

    def scales(self) -> list[float]:
        return self.sigma.detach().abs().tolist()


class FrqSDUD(SDUD):
    """FrqUD's mask times SDUD's scale."""

    def __init__(self, cfg: JointOptions, codes: list[int]) -> None:
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


STRATEGIES: dict[str, type[Uncertainty]] = {
    "none": NoNoise,
    "gumbel": Uncertainty,
    "gaussian": Gaussian,
    "tau_annealing": Uncertainty,
    "frqud": FrqUD,
    "sdud": SDUD,
    "frqud_sdud": FrqSDUD,
}


def keep_probability(logits_UK: Tensor, scale: float) -> Tensor:
    """P(noisy arg-max = arg-max) of each item, [U], under Gumbel noise of this scale.

    Exactly max_k softmax(logits / scale)_k by the Gumbel-max theorem; tau plays no part.
    """
    if scale == 0:
        return logits_UK.new_ones(len(logits_UK))
    return (logits_UK / scale).softmax(1).amax(1)
