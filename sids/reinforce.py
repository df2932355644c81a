"""The discrete autoencoder trained by REINFORCE, a baseline of the dVAE (arXiv:2602.16375): hard tokens, sampled.

The receiver learns by the reconstruction's own gradient, the sender by the score function against a running mean:

    L = mean (r - b_r) sum_t ln p(token t) - c_H mean entropy + mean r,    r = 1 - cos(y, x)

With `length: learned` symbol 0 ends a code, and every token costs: + mean (price L - b_L) sum_t ln p(token t). Only
what stands *behind* the end is erased; a code that was never ended keeps its last symbol. Codes hold the content,
without the symbol that ends them, and are reconstructed from it; one that ends at once is the symbol 0 alone.

Shape letters: B rows of a batch, T code places, V symbols, H encoder width, D embedding width.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from settings import option
from sids.dvae import Discrete, DiscreteOptions, cosine
from utils import Contradiction

END = 0
MOMENTUM = 0.99
ENTROPY = (0.03, 0.001)  # first and last weight c_H


@dataclass(frozen=True, kw_only=True)
class ReinforceOptions(DiscreteOptions):
    length: Literal["fixed", "learned"] = option("fixed", "SID length: fixed, or learned, where symbol 0 ends a code")
    token_cost: float = option(
        0.005,
        "price of a token, in units of the cosine error, reached at the end of dvae_steps",
        ge=0, needs=("length: learned",),
    )

    @property
    def learns_length(self) -> bool:
        return self.length == "learned"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learns_length and self.target_length is not None:
            raise Contradiction("target_length: reinforce cannot aim at one; with length: learned token_cost decides",
                                {"target_length": None}, {"length": "fixed"})  # fmt: skip


class Drawn(NamedTuple):
    """Tokens of B items and what the sender thought of them; nothing behind an end."""

    code_BT: Tensor
    logp_BT: Tensor
    entropy_BT: Tensor
    live_BT: Tensor  # places up to the end, the symbol that ends included


def kept(code_BT: Tensor, *, ends: bool) -> tuple[Tensor, Tensor]:
    """(codes with 0 behind the first end, places up to it [B, T] bool)."""
    ended_BT = (code_BT == END).long().cumsum(1)
    live_BT = (ended_BT - (code_BT == END).long() == 0) if ends else torch.ones_like(code_BT, dtype=torch.bool)
    return code_BT * live_BT, live_BT


def content(code_BT: Tensor, *, ends: bool) -> Tensor:
    """The codes without the symbol that ends them, -1 behind; an empty one is the symbol 0 alone."""
    if not ends:
        return code_BT
    found_BT = code_BT.masked_fill((code_BT == END).long().cumsum(1) > 0, -1)
    found_BT[:, 0] = found_BT[:, 0].clamp(min=END)
    return found_BT


class Reinforce(Discrete):
    Options: ClassVar[type[ReinforceOptions]] = ReinforceOptions
    baseline_2: Tensor

    def __init__(self, cfg: ReinforceOptions, n_input: int) -> None:
        super().__init__(cfg, n_input, stops=False)
        self.register_buffer("baseline_2", torch.full((2,), -1.0))  # of error and length cost; below 0: none yet

    def draw(self, x_BD: Tensor, *, sample: bool) -> Drawn:
        """Tokens one by one; the encoder's state rests once a code has ended."""
        h_BH, codes, logps, entropies = self.sender.f(x_BD), [], [], []
        live_B = torch.ones(len(x_BD), dtype=torch.bool, device=x_BD.device)
        for t in range(self.sender.places):
            logp_BV = self.sender.logits(h_BH, t).log_softmax(1)
            code_B = torch.multinomial(logp_BV.detach().exp(), 1)[:, 0] if sample else logp_BV.argmax(1)
            code_B = code_B * live_B
            codes.append(code_B)
            logps.append(logp_BV.gather(1, code_B[:, None])[:, 0] * live_B)
            entropies.append(-(logp_BV.exp() * logp_BV).sum(1) * live_B)
            left_BH = self.sender.rest(h_BH, F.embedding(code_B, self.sender.table(t)), t)
            h_BH = torch.where(live_B[:, None], left_BH, h_BH)
            if self.cfg.learns_length:
                live_B = live_B & (code_B != END)
        code_BT, live_BT = kept(torch.stack(codes, 1), ends=self.cfg.learns_length)
        return Drawn(code_BT, torch.stack(logps, 1), torch.stack(entropies, 1), live_BT)

    def spell(self, x_BD: Tensor) -> Tensor:
        return content(self.draw(x_BD, sample=False).code_BT, ends=self.cfg.learns_length)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of item rows at a step of the schedules."""
        cfg, x_BD = self.cfg, self.rows_of(batch)
        drawn = self.draw(x_BD, sample=True)
        told_BT = content(drawn.code_BT, ends=cfg.learns_length)
        last_B = (told_BT >= 0).sum(1) - 1
        y_BD = self.receiver.decode(told_BT.clamp(min=0))[torch.arange(len(batch)), last_B]
        r_B = 1 - (y_BD * x_BD).sum(1)
        length_B, logp_B = drawn.live_BT.sum(1), drawn.logp_BT.sum(1)
        half = 1.0 if cfg.learns_length else 0.5
        c_entropy = cosine(*ENTROPY, step, half * cfg.dvae_steps)
        entropy = (drawn.entropy_BT.sum(1) / length_B).mean()
        policy = ((r_B.detach() - self._baseline(0, r_B)) * logp_B).mean()
        loss = policy - c_entropy * entropy + r_B.mean()
        if cfg.learns_length:
            cost_B = cosine(0.0, cfg.token_cost, step, cfg.dvae_steps) * length_B
            loss = loss + ((cost_B - self._baseline(1, cost_B)) * logp_B).mean()
        parts = {"recon": 2 * r_B.mean(), "entropy": entropy, "length": (last_B + 1).double().mean()}
        return loss, parts

    @torch.no_grad()
    def _baseline(self, which: int, value_B: Tensor) -> Tensor:
        """The running mean before this batch; the first batch's own mean at the start."""
        now, before = value_B.mean(), self.baseline_2[which].clone()
        before = torch.where(before < 0, now, before)
        if self.training:
            self.baseline_2[which] = MOMENTUM * before + (1 - MOMENTUM) * now
        return before
