"""The T5 encoder-decoder (arXiv:1910.10683) over the tokens of semantic IDs, with caches for beam search.

Same definition as Hugging Face's T5 (pre-norm RMS, no biases, unscaled attention, one table of
relative position biases per stack), laid out for speed: fused projections, scaled_dot_product_attention,
cross-attention keys computed once per user and shared by all beams.

Shape letters: B users, W beams, T source tokens, S target tokens, h width, H heads, k width of a head; in
the network over SIDs also U distinct items of a batch, P positions of a SID, V tokens of a position.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch
from layers import Dropout, attention, rows_of
from recommenders.protocol import NetworkOutput, Scorer
from recommenders.tokens import TokenNetwork, WholeItemOptions, WidthOptions, packed
from settings import option


@dataclass(frozen=True, kw_only=True)
class T5Options(WholeItemOptions, WidthOptions):
    encoder_layers: int = option(6, "number of encoder layers", ge=1, le=200)
    decoder_layers: int = option(6, "number of decoder layers", ge=1, le=200)
    d_kv: int = option(64, "width of one attention head", ge=1, sizeless=True)
    dropout_rate: float = option(0.1, "dropout rate of the recommender, 0 to 0.9", ge=0, le=0.9)
    recency_embedding: bool = option(
        False,
        "whether each item of a history gets a learned vector for its age, counted from the newest (not in the paper)",
    )


BUCKETS, FAR = 32, 128  # relative positions: buckets, and the distance from which all share the last


class KeyValue(NamedTuple):
    """Keys and values of one layer, [B, H, T, k] each."""

    key: Tensor
    value: Tensor


@dataclass
class DecoderCache:
    """What the decoder keeps between two steps: per layer, self-attention [B*W, H, t, k]."""

    own: list[KeyValue | None]
    source: list[KeyValue]
    source_mask: Tensor | None

    def reorder(self, row: Tensor) -> None:
        """Let each beam continue from its parent's row."""
        self.own = [kv and KeyValue(kv.key[row], kv.value[row]) for kv in self.own]


class RMSNorm(nn.Module):
    """Root-mean-square norm in the precision of its gain (float32), whatever comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), (x.shape[-1],), self.weight, 1e-6)


def relative_bucket(offset: Tensor, *, bidirectional: bool) -> Tensor:
    """Bucket of key position minus query position: exact up close, logarithmic further away."""
    n, bucket = BUCKETS, torch.zeros_like(offset)
    if bidirectional:
        n //= 2
        bucket = bucket + (offset > 0).long() * n
        distance = offset.abs()
    else:
        distance = (-offset).clamp(min=0)
    exact = n // 2
    ratio = torch.log(distance.float().clamp(min=1) / exact) / math.log(FAR / exact)
    far = (exact + (ratio * (n - exact)).long()).clamp(max=n - 1)
    return bucket + torch.where(distance < exact, distance, far)


class PositionBias(nn.Module):
    """[1, H, query, key] added to the attention scores of every layer of a stack."""

    def __init__(self, heads: int, *, bidirectional: bool, std: float) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.table = nn.Embedding(BUCKETS, heads)
        nn.init.normal_(self.table.weight, 0, std)

    def forward(self, n_query: int, n_key: int) -> Tensor:
        device = self.table.weight.device
        query = torch.arange(n_key - n_query, n_key, device=device)[:, None]
        key = torch.arange(n_key, device=device)[None]
        bucket = relative_bucket(key - query, bidirectional=self.bidirectional)
        bias = self.table(bucket).permute(2, 0, 1)[None]
        if not self.bidirectional:
            bias = bias.masked_fill(key > query, -torch.inf)
        return bias


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, d_kv: int, dropout: float) -> None:
        super().__init__()
        inner = heads * d_kv
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, inner, bias=False)
        self.kv = nn.Linear(width, 2 * inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.q.weight, 0, (width * d_kv) ** -0.5)
        nn.init.normal_(self.kv.weight, 0, width**-0.5)
        nn.init.normal_(self.o.weight, 0, inner**-0.5)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, t, k]

    def keys(self, x: Tensor) -> KeyValue:
        key, value = self.kv(x).chunk(2, -1)
        return KeyValue(self.split(key), self.split(value))

    def forward(self, x: Tensor, kv: KeyValue, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        drop = self.dropout if self.training else 0.0
        out = attention(self.split(self.q(x)), *kv, bias, mask, drop)
        y: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return y


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.wi = nn.Linear(width, inner, bias=False)
        self.wo = nn.Linear(inner, width, bias=False)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.wi.weight, 0, width**-0.5)
        nn.init.normal_(self.wo.weight, 0, inner**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wo(self.dropout(F.relu(self.wi(x))))
        return y


class EncoderLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, d_kv: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, d_kv, dropout)
        self.feed = FeedForward(width, inner, dropout)
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        y = self.norms[0](x)
        x = x + self.dropout(self.attention(y, self.attention.keys(y), bias, mask))
        return x + self.dropout(self.feed(self.norms[1](x)))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, d_kv: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, d_kv, dropout)
        self.cross = Attention(width, heads, d_kv, dropout)
        self.feed = FeedForward(width, inner, dropout)
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, bias: Tensor, own: KeyValue | None, source: KeyValue, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """x [B*W, S, h] against source keys [B, H, T, k]: beams of a user share one set of keys."""
        y = self.norms[0](x)
        new = self.attention.keys(y)
        if own is not None:
            new = KeyValue(torch.cat([own.key, new.key], 2), torch.cat([own.value, new.value], 2))
        x = x + self.dropout(self.attention(y, new, bias, None))
        users = len(source.key)
        y = self.norms[1](x).view(users, -1, x.shape[-1])  # beams become query positions
        x = x + self.dropout(self.cross(y, source, None, mask)).view_as(x)
        return x + self.dropout(self.feed(self.norms[2](x))), new


def padding_mask(keep_BT: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores, [B, 1, 1, T]: -inf on padding, else 0."""
    if keep_BT is None:
        return None
    return torch.zeros_like(keep_BT, dtype=dtype).masked_fill(~keep_BT, -torch.inf)[:, None, None]


class T5(nn.Module):
    """Encoder and decoder stacks; embeddings in, hidden states out (after the final norm)."""

    def __init__(
        self, *, width: int, inner: int, heads: int, d_kv: int, encoder_layers: int,
        decoder_layers: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = (width, inner, heads, d_kv, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(decoder_layers))
        std = width**-0.5
        self.encoder_bias = PositionBias(heads, bidirectional=True, std=std)
        self.decoder_bias = PositionBias(heads, bidirectional=False, std=std)
        self.encoder_norm, self.decoder_norm = RMSNorm(width), RMSNorm(width)
        self.dropout = Dropout(dropout)

    def encode(self, x_BTh: Tensor, keep_BT: Tensor | None) -> Tensor:
        """Hidden states [B, T, h]; keep_BT is False on padding, None where there is none."""
        bias = self.encoder_bias(x_BTh.shape[1], x_BTh.shape[1])
        mask = padding_mask(keep_BT, x_BTh.dtype)
        x = self.dropout(x_BTh)
        for layer in self.encoder:
            x = layer(x, bias, mask)
        out: Tensor = self.dropout(self.encoder_norm(x))
        return out

    def start(self, memory_BTh: Tensor, keep_BT: Tensor | None) -> DecoderCache:
        """Keys and values of the source, once per user."""
        source = [layer.cross.keys(memory_BTh) for layer in self.decoder]  # type: ignore[union-attr,operator]
        return DecoderCache([None] * len(self.decoder), source, padding_mask(keep_BT, memory_BTh.dtype))

    def decode(self, x_RSh: Tensor, cache: DecoderCache) -> Tensor:
        """Hidden states [R, S, h] of the next S positions of R = B*W rows; extends the cache."""
        past = 0 if cache.own[0] is None else cache.own[0].key.shape[2]
        bias = self.decoder_bias(x_RSh.shape[1], past + x_RSh.shape[1])
        x = self.dropout(x_RSh)
        for i, layer in enumerate(self.decoder):
            x, cache.own[i] = layer(x, bias, cache.own[i], cache.source[i], cache.source_mask)
        out: Tensor = self.dropout(self.decoder_norm(x))
        return out


# ---------------------------------------------------------------- over the tokens of semantic IDs


class T5Network(TokenNetwork):
    """T5 over the tokens of semantic IDs; one token table per position, tied with the logits."""

    Options: ClassVar[type[T5Options]] = T5Options
    targets: Literal["one", "next"] = "one"
    taught: Literal["one", "next"] = "one"

    def __init__(self, cfg: T5Options, *sizes: Any) -> None:
        super().__init__(cfg, *sizes)
        self.t5 = T5(
            width=cfg.d_model, inner=cfg.d_ff, heads=cfg.num_heads, d_kv=cfg.d_kv, dropout=cfg.dropout_rate,
            encoder_layers=cfg.encoder_layers, decoder_layers=cfg.decoder_layers,
        )  # fmt: skip
        self.tables = nn.ParameterList(torch.randn(v, cfg.d_model) * 0.02 for v in self.vocabulary)
        self.start = nn.Parameter(torch.randn(cfg.d_model) * 0.02)
        self.recency = nn.Embedding(self.longest, cfg.d_model) if cfg.recency_embedding else None
        if self.recency is not None:
            nn.init.normal_(self.recency.weight, 0, 0.02)
        self.own = nn.Embedding(self.n_items + 1, cfg.d_model) if cfg.item_embedding else None
        self.whole = nn.Linear(cfg.d_model, cfg.d_model) if cfg.item_loss else None
        if self.own is not None:
            nn.init.normal_(self.own.weight, 0, 0.02)

    def encode(self, token_BSPh: Tensor, history_BS: Tensor, real_BSP: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(hidden states [B, T, h], mask [B, T]); of unlike lengths only the real tokens are read."""
        keep_BT = (history_BS > 0).repeat_interleave(token_BSPh.shape[2], 1)
        if self.recency is not None:  # histories are padded on the left, the newest item stands last
            age_S = torch.arange(history_BS.shape[1] - 1, -1, -1, device=history_BS.device)
            token_BSPh = token_BSPh + self.recency(age_S)[:, None]
        if self.own is not None:
            token_BSPh = token_BSPh + self.own(history_BS)[:, :, None]
        x_BTh = token_BSPh.flatten(1, 2)
        if real_BSP is not None:
            x_BTh, keep_BT = packed(x_BTh, keep_BT & real_BSP.flatten(1))
        return self.t5.encode(x_BTh, keep_BT), keep_BT

    def forward(
        self, history_UPh: Tensor, batch: Batch, teacher_UPh: Tensor, open_UP: Tensor | None = None,
        real_UP: Tensor | None = None,
    ) -> NetworkOutput:  # fmt: skip
        """Teacher-forced logits [B, V] of each sample's target, position by position; where open_UP says so, of those
        targets only whose token is a choice there. No positions come that no target has.
        """
        real_BSP = None if real_UP is None else real_UP[batch.history_row_BS]
        cache = self.t5.start(*self.encode(rows_of(history_UPh, batch.history_row_BS), batch.history_BS, real_BSP))
        # of the position after it; nobody has more positions than the longest target
        most = teacher_UPh.shape[1] if real_UP is None else int(real_UP[batch.target_row_B].sum(1).max())
        before_BPh = rows_of(teacher_UPh[:, : most - 1], batch.target_row_B)
        start_B1h = self.start.expand(len(before_BPh), 1, -1)
        hidden = self.t5.decode(torch.cat([start_B1h, before_BPh], 1), cache)
        return self.spelled(hidden[:, 0], hidden.unbind(1), batch.target_row_B, open_UP)

    def scorer(self, tokens: Callable[[Tensor], Tensor], history_BS: Tensor) -> Scorer:
        """The scorer that `beam_search` asks; encoder and source keys run once per user."""
        token_BSP = tokens(history_BS)
        cache = self.t5.start(*self.encode(self.look_up(token_BSP), history_BS, self.real(token_BSP)))
        users = len(history_BS)

        def score(
            position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
        ) -> Tensor:
            if token_R is None or parent_R is None:  # another search for the same users may begin
                cache.own = [None] * len(cache.own)
                x = self.start.expand(users, 1, -1)
            else:
                cache.reorder(parent_R)
                x = self.tables[position - 1][token_R][:, None]
            hidden_Rh = self.t5.decode(x, cache)[:, 0]
            if position == len(self.vocabulary) and self.whole is not None:
                return self.whole(hidden_Rh)
            return self.scores(position, hidden_Rh, candidates_RC)

        return score
