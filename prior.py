"""The term that the published joint loss leaves out: what it costs to share a code (docs/method.md, section 5).

What a recommender is asked for is the item, p(v|h) = sum_c p(c|h) p(v|c), and by Jensen with the soft assignment
q(c|v) as posterior

    log p(v|h) >= E_q(c|v) [ log p(c|h) - log qbar(c) ] + log pi(v),

qbar(c) being the share of code c among the targets, pi(v) that of item v. The published loss is the first term
alone. The second is a constant while the tokenizer rests; once the label carries gradient it is what makes a
merged code cost something.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recommenders.protocol import AllReduce
from settings import option


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    label_prior: Literal["none", "usage"] = option(
        "none",
        "completes the loss by -log of a code's share of the targets, in the gradient of the soft label: usage = a "
        "moving average per level (not in the paper)",
    )
    prior_momentum: float = option(0.99, "label_prior: momentum of that average", ge=0, le=1)


class NoPrior(nn.Module):
    """The published loss."""

    def __init__(self, cfg: PriorOptions, codes: list[int]) -> None:
        super().__init__()
        self.cfg, self.codes = cfg, codes

    def log_share(self, level: int) -> Tensor | None:
        """log qbar of a level's codes [K]; None: the term is left out."""
        return None

    def observe(self, index: list[Tensor], weight: Tensor) -> None:
        """See one part of a step: the hard codes of its targets, [R] per level; a part of weight 0 does not count."""

    def after_step(self, all_reduce: AllReduce) -> None:
        """Once per optimizer step, on every process alike."""


class UsagePrior(NoPrior):
    """qbar_l <- mu qbar_l + (1 - mu) counts / sum(counts) per level, over the targets of the global batch; 1 / K first.

    A uniform qbar adds the same to every code's cost and is the published loss.
    """

    FLOOR = 1e-4  # of a code's even share: an empty code is cheap, not free

    def __init__(self, cfg: PriorOptions, codes: list[int]) -> None:
        super().__init__(cfg, codes)
        for level, k in enumerate(codes):
            self.register_buffer(f"share_{level}", torch.full((k,), 1 / k))
            self.register_buffer(f"pending_{level}", torch.zeros(k), persistent=False)

    def log_share(self, level: int) -> Tensor:
        return self.get_buffer(f"share_{level}").clamp(min=self.FLOOR / self.codes[level]).log()

    @torch.no_grad()
    def observe(self, index: list[Tensor], weight: Tensor) -> None:
        for level, code_R in enumerate(index):
            pending = self.get_buffer(f"pending_{level}")
            pending += code_R.bincount(minlength=len(pending)) * (weight > 0)

    @torch.no_grad()
    def after_step(self, all_reduce: AllReduce) -> None:
        counts = all_reduce(torch.cat([self.get_buffer(f"pending_{i}") for i in range(len(self.codes))]))
        for level, count_K in enumerate(counts.split(self.codes)):
            share_K = count_K / count_K.sum().clamp(min=1)
            self.get_buffer(f"share_{level}").lerp_(share_K, 1 - self.cfg.prior_momentum)
            self.get_buffer(f"pending_{level}").zero_()


PRIORS: dict[str, type[NoPrior]] = {"none": NoPrior, "usage": UsagePrior}
