"""RQ-Transformer (Lee et al., CVPR 2022, arXiv:2203.01941) over semantic IDs: one vector an item, a target a position.

A causal transformer reads a history item by item; a small depth decoder spells the next item's SID, token by token,
at *every* position. So a history of n items is n positions (T5 reads n * P tokens) and yields n targets a pass.

Shape letters: B users, S positions, U distinct items of a batch, R rows (real positions of a batch, in order; in a
search users * beams), T rows and positions that are not left out, P positions of a SID, V tokens of a position,
h width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch
from layers import depth_attention, rows_of
from recommenders.blocks import Stack, begin, causal_attention
from recommenders.protocol import NetworkOutput, Scorer
from recommenders.tokens import StackOptions, TokenNetwork, WholeItemOptions
from settings import option


@dataclass(frozen=True, kw_only=True)
class RQTransformerOptions(WholeItemOptions, StackOptions):
    item_blocks: int = option(2, "number of transformer blocks over the items of a history", ge=1, le=200)
    depth_blocks: int = option(2, "number of transformer blocks over the tokens of a semantic ID", ge=1, le=200)
    item_dropout: float = option(0.3, "dropout rate over the items of a history, 0 to 0.9", ge=0, le=0.9)
    depth_dropout: float = option(0.2, "dropout rate over the tokens of a semantic ID, 0 to 0.9", ge=0, le=0.9)


class RQTransformer(TokenNetwork):
    """Item vectors, item stack, depth stack; one token table per position, tied with the logits."""

    Options: ClassVar[type[RQTransformerOptions]] = RQTransformerOptions
    targets: Literal["one", "next"] = "next"
    taught: Literal["one", "next"] = "next"

    def __init__(self, cfg: RQTransformerOptions, *sizes: Any) -> None:
        super().__init__(cfg, *sizes)
        self.tokens_per_item, self.scale, width = 1, cfg.d_model**0.5, cfg.d_model
        self.tables = nn.ParameterList(torch.randn(v, width) * 0.02 for v in self.vocabulary)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.ages, self.places = nn.Embedding(self.longest, width), nn.Embedding(len(self.vocabulary), width)
        self.own = nn.Embedding(self.n_items + 1, width) if cfg.item_embedding else None
        self.items = Stack(width, cfg.d_ff, cfg.item_blocks, cfg.item_dropout)
        self.depth = Stack(width, cfg.d_ff, cfg.depth_blocks, cfg.depth_dropout)
        self.bridge = nn.Linear(width, width)
        self.whole = nn.Linear(width, width) if cfg.item_loss else None
        for module in self.modules():
            begin(module)

    # ---- items

    def vectors(self, token_UPh: Tensor, item_U: Tensor) -> Tensor:
        """One vector an item, [U, h]: x = sqrt(h) * sum of its tokens (and of its own vector), then x + MLP(x)."""
        x_Uh = token_UPh.sum(1)
        if self.own is not None:
            x_Uh = x_Uh + self.own(item_U)
        x_Uh = x_Uh * self.scale
        out: Tensor = x_Uh + self.mix(x_Uh)
        return out

    def encode(self, vector_Uh: Tensor, row_BS: Tensor, history_BS: Tensor) -> Tensor:
        """Hidden states [B, S, h]; row_BS: rows of vector_Uh. Those of padding mean nothing.

        Positions count from the newest item, so that padding on the left changes nothing.
        """
        size = history_BS.shape[1]
        age_S = torch.arange(size - 1, -1, -1, device=history_BS.device)
        x_BSh = F.embedding(row_BS, vector_Uh) + self.ages(age_S)
        attend = causal_attention(history_BS > 0, self.cfg.num_heads)
        out: Tensor = self.items(x_BSh, [attend] * len(self.items.blocks))
        return out

    # ---- training

    def forward(
        self, history_UPh: Tensor, batch: Batch, teacher_UPh: Tensor, open_UP: Tensor | None = None,
        real_UP: Tensor | None = None,
    ) -> NetworkOutput:  # fmt: skip
        """Teacher-forced logits [R, V] at every real position, token by token, behind the item stack's states [R, h].

        open_UP: whether an item's token at a position is a choice at all; then logits are those of the rows whose
        target's token is, `open_UP[goals]`. It must be True at the first position.
        """
        h_BSh = self.encode(self.vectors(history_UPh, batch.item_U), batch.history_row_BS, batch.history_BS)
        h_Rh = h_BSh[batch.history_BS > 0]
        return NetworkOutput(h_Rh, self._spelled(h_Rh, batch.goals("next"), teacher_UPh, open_UP))

    def _spelled(self, h_Rh: Tensor, row_R: Tensor, teacher_UPh: Tensor, open_UP: Tensor | None) -> Iterator[Tensor]:
        before_UPh = teacher_UPh[:, :-1] * self.scale
        before_RPh = rows_of(before_UPh, row_R)
        x_RPh = torch.cat([self.bridge(h_Rh)[:, None], before_RPh], 1) + self.places.weight
        if open_UP is None:
            hidden_RPh = self.depth(x_RPh, [self._attend_depth] * len(self.depth.blocks))
            yield from (self.logits(position, y_Rh) for position, y_Rh in enumerate(hidden_RPh.unbind(1)))
        else:
            yield from self._open_logits(x_RPh, open_UP[row_R])

    def _attend_depth(self, qkv_RPx: Tensor) -> Tensor:
        return depth_attention(qkv_RPx, self.cfg.num_heads)

    def _open_logits(self, x_RPh: Tensor, open_RP: Tensor) -> Iterator[Tensor]:
        """Logits where there is a choice. A position counts when it is a choice or stands before one; all others
        are left out of the stack.
        """
        needed_RP = open_RP.flip(1).cummax(1).values.flip(1)
        place_T = needed_RP.flatten().nonzero()[:, 0]

        def attend(qkv_Tx: Tensor) -> Tensor:
            qkv_RPx = qkv_Tx.new_zeros(needed_RP.numel(), qkv_Tx.shape[1]).index_copy(0, place_T, qkv_Tx)
            y_RPh = self._attend_depth(qkv_RPx.view(*needed_RP.shape, -1))
            return y_RPh.flatten(0, 1).index_select(0, place_T)

        hidden_Th = self.depth(x_RPh.flatten(0, 1).index_select(0, place_T), [attend] * len(self.depth.blocks))
        packed_RP = needed_RP.flatten().cumsum(0).view_as(needed_RP) - 1
        for position, open_R in enumerate(open_RP.unbind(1)):
            yield self.logits(position, hidden_Th.index_select(0, packed_RP[:, position][open_R]))

    # ---- search

    def scorer(self, tokens: Callable[[Tensor], Tensor], history_BS: Tensor) -> Scorer:
        """The scorer that `beam_search` asks: the history is read once, the depth stack goes token by token."""
        item_U, row_BS = history_BS.unique(return_inverse=True)
        hidden_Bh = self.encode(self.vectors(self.look_up(tokens(item_U)), item_U), row_BS, history_BS)[:, -1]
        start_Bh = self.bridge(hidden_Bh)
        past = [Past(self.cfg.num_heads) for _ in self.depth.blocks]

        def score(
            position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
        ) -> Tensor:
            if position == len(self.vocabulary) and self.whole is not None:
                return self.whole(hidden_Bh)
            if token_R is None or parent_R is None:  # another search for the same users may begin
                x_Rh = start_Bh
                for own in past:
                    own.kept = None
            else:
                for own in past:
                    own.reorder(parent_R)
                x_Rh = self.tables[position - 1][token_R] * self.scale
            hidden_R1h = self.depth((x_Rh + self.places.weight[position])[:, None], past)
            return self.scores(position, hidden_R1h[:, 0], candidates_RC)

        return score


class Past:
    """One depth block's attention in a search, which keeps keys and values of a beam's tokens so far, [R, t, 2h]."""

    kept: Tensor | None

    def __init__(self, heads: int) -> None:
        self.heads, self.kept = heads, None

    def reorder(self, row_R: Tensor) -> None:
        """Let each beam continue from its parent's row."""
        if self.kept is not None:
            self.kept = self.kept[row_R]

    def __call__(self, qkv_R1x: Tensor) -> Tensor:
        """The newest position of each row, [R, 1, h]."""
        width = qkv_R1x.shape[-1] // 3
        new_R1x = qkv_R1x[..., width:]
        self.kept = kv = new_R1x if self.kept is None else torch.cat([self.kept, new_R1x], 1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (qkv_R1x[..., :width], kv[..., :width], kv[..., width:]))
        p_RtH = ((q * k).sum(-1) * q.shape[-1] ** -0.5).softmax(1)
        return (p_RtH[..., None] * v).sum(1, keepdim=True).flatten(2)
