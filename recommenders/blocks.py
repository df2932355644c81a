"""Transformer blocks of networks over the tokens of semantic IDs (GPT-like: pre-LN, GELU), and of the dVAE.

Shape letters: B rows, T positions, H heads, h width.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import Dropout
from utils import Contradiction

Attend = Callable[[Tensor], Tensor]  # projected queries, keys, values [..., T, 3h] -> [..., T, h]


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each normalised before (pre-LN)."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, inner), nn.GELU(), Dropout(dropout), nn.Linear(inner, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.dropout(self.out(attend(self.qkv(self.norms[0](x)))))
        return x + self.dropout(self.feed(self.norms[1](x)))


class Stack(nn.Module):
    """Blocks and a last norm."""

    def __init__(self, width: int, inner: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, inner, dropout) for _ in range(blocks))
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(dropout)

    def forward(self, x: Tensor, attends: Sequence[Attend]) -> Tensor:
        """attends: the attention of each block; blocks share one in training and keep one each in a search."""
        x = self.dropout(x)
        for block, attend in zip(self.blocks, attends, strict=True):
            x = block(x, attend)
        out: Tensor = self.norm(x)
        return out


def causal_attention(real_BT: Tensor, heads: int, keep: list[tuple[Tensor, Tensor]] | None = None) -> Attend:
    """Attention to real positions that do not come later; keep takes the keys and values [B, H, T, h / H] of each call.

    What positions that are not real get means nothing.
    """
    # everyone may attend to themselves: a row without any key would be NaN
    eye_TT = torch.eye(real_BT.shape[1], dtype=torch.bool, device=real_BT.device)
    allowed = (real_BT[:, None, None] | eye_TT).tril()
    mask = torch.zeros(allowed.shape, device=real_BT.device).masked_fill_(~allowed, -torch.inf)

    def attend(qkv_BTx: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in qkv_BTx.chunk(3, -1))
        if keep is not None:
            keep.append((k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype)).transpose(1, 2).flatten(2)

    return attend


def begin(module: nn.Module) -> None:
    """How a module of a network starts."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


def check_heads(name: str, width: int, heads: int) -> None:
    """Contradiction when attention heads do not share out a width; name: the width's option."""
    if width % heads:
        raise Contradiction(
            f"{name}: {width} is not divisible by num_heads {heads}",
            {"num_heads": math.gcd(width, heads)}, {name: width + -width % heads},
        )  # fmt: skip
