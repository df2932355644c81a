"""How codebooks learn in pre-training beside the gradient: as moving averages, and by moving codes that nobody uses.

Moving averages are van den Oord et al.'s (arXiv:1711.00937, appendix A.1), restarted codes Jukebox's (arXiv:2005.00341,
section 3.1); what FORGE's program got wrong in both is in docs/forge.md.

Shape letters: B rows of a batch, K codes of a level, d latent width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from settings import option

DECAY = 0.99  # g, share of the past in the moving averages of sums and counts
LAPLACE, JITTER = 1e-5, 1e-2  # smoothing of counts; noise of a restarted code, in units of the rows' own spread


@dataclass(frozen=True, kw_only=True)
class CodebookOptions:
    codebook_learning: Literal["gradient", "ema"] = option(
        "gradient",
        "how codebooks learn in pre-training: by the gradient of the VQ loss or as exponential moving averages (ema)",
    )
    dead_code_ratio: float = option(
        0.0,
        "share of the mean usage below which a code is reset to a random latent of the batch; 0 = never",
        ge=0, le=0.9,
    )


class CodebookEMA(nn.Module):
    """Counts of the codes and, for `ema`, sums of their rows; both as moving averages over batches.

    n <- g n + (1 - g) n_batch, m <- g m + (1 - g) m_batch, C = m / n~ with Laplace-smoothed n~. A batch is quantized by
    the codes of before it. A code is dead when n < ratio B / K, whatever the size of batch and codebook.
    """

    def __init__(self, cfg: CodebookOptions, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.cfg, self.seen = cfg, {}  # type: ignore[var-annotated]
        for level, k in enumerate(sizes):
            self.register_buffer(f"count_{level}", torch.ones(k))
            if cfg.codebook_learning == "ema":
                self.register_buffer(f"sum_{level}", torch.zeros(k, width))

    def begin(self) -> None:
        """From codebooks that are ready: the first step counts as if each code had long had its share of such steps, so
        that neither its update nor its look for dead codes undoes their start.
        """
        for name, buffer in self.named_buffers():
            if name.startswith("count_"):
                buffer.zero_()

    def observe(self, level: int, row_Bd: Tensor, code_B: Tensor) -> None:
        """What a level quantized; several calls in a step add up."""
        self.seen.setdefault(level, []).append((row_Bd.detach(), code_B))

    @torch.no_grad()
    def step(self, codebooks: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """After an optimizer step: new averages, then new places for dead codes; share of codes that moved so."""
        moved = []
        for level, seen in self.seen.items():
            row_Bd, code_B = (torch.cat(parts) for parts in zip(*seen, strict=True))
            codebook, count_K = codebooks[level], self.get_buffer(f"count_{level}")
            if not count_K.any():  # the first step
                count_K.fill_(len(row_Bd) / len(codebook))
                if self.cfg.codebook_learning == "ema":
                    self.get_buffer(f"sum_{level}").copy_(codebook * count_K[:, None])
            count_K.mul_(DECAY).add_(code_B.bincount(minlength=len(count_K)), alpha=1 - DECAY)
            if self.cfg.codebook_learning == "ema":
                sum_Kd = self.get_buffer(f"sum_{level}")
                sum_Kd.mul_(DECAY).add_(torch.zeros_like(sum_Kd).index_add_(0, code_B, row_Bd), alpha=1 - DECAY)
                total = count_K.sum()
                smooth_K = (count_K + LAPLACE) / (total + len(count_K) * LAPLACE) * total
                codebook.copy_(sum_Kd / smooth_K[:, None])
            moved.append(self._restart(level, codebook, row_Bd, optimizer))
        self.seen = {}
        return {"restarted": torch.stack(moved).mean()} if self.cfg.dead_code_ratio else {}

    def _restart(self, level: int, codebook: nn.Parameter, row_Bd: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Move the dead codes to rows of the batch, counted as if they had their share; their moments begin anew."""
        count_K, mean = self.get_buffer(f"count_{level}"), len(row_Bd) / len(codebook)
        dead_K = count_K < self.cfg.dead_code_ratio * mean
        if dead_K.any():
            chosen = torch.randint(len(row_Bd), (int(dead_K.sum()),), device=row_Bd.device)
            spread = JITTER * row_Bd.std() / row_Bd.shape[1] ** 0.5
            codebook[dead_K] = row_Bd[chosen] + spread * torch.randn_like(row_Bd[chosen])
            count_K[dead_K] = mean
            if self.cfg.codebook_learning == "ema":
                self.get_buffer(f"sum_{level}")[dead_K] = codebook[dead_K] * mean
            for name, moment in optimizer.state.get(codebook, {}).items():
                if name.startswith("exp_avg"):
                    moment[dead_K] = 0
        return dead_K.float().mean()
