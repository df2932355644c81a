"""A plain decoder over the flat tokens of semantic IDs, one row a user, the next token a target at every position.

GPT-like blocks (pre-LN, GELU, causal) read item after item, token after token: the way of generative retrieval by
language models, of FORGE (arXiv:2509.20904) and of the published protocol of variable-length SIDs (arXiv:2602.16375).
Where RQ-Transformer has a position an item, it has P; so it costs P times the positions and P^2 times the attention.

Shape letters: B users, S history items, P positions of a SID, T = (S + 1) P positions, U distinct items of a batch,
R rows (real history positions of a batch, in order), W beams of a user, V tokens of a position, H heads, h width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch
from layers import rows_of
from recommenders.blocks import Stack, begin, causal_attention
from recommenders.protocol import NetworkOutput, Scorer
from recommenders.tokens import StackOptions, TokenNetwork
from settings import option


@dataclass(frozen=True, kw_only=True)
class DecoderOptions(StackOptions):
    decoder_layers: int = option(4, "number of decoder layers", ge=1, le=200)
    dropout_rate: float = option(0.2, "dropout rate of the recommender, 0 to 0.9", ge=0, le=0.9)


class Decoder(TokenNetwork):
    """x = sqrt(h) E_p[token] + age of the item + position p; the state at an item's last token predicts the next item's
    first one, that at its position p the token at p + 1.
    """

    Options: ClassVar[type[DecoderOptions]] = DecoderOptions
    targets: Literal["one", "next"] = "next"
    taught: Literal["one", "next"] = "one"

    def __init__(self, cfg: DecoderOptions, *sizes: Any) -> None:
        super().__init__(cfg, *sizes)
        width = cfg.d_model
        self.tables = nn.ParameterList(torch.randn(v, width) * 0.02 for v in self.vocabulary)
        self.ages, self.places = nn.Embedding(self.longest + 1, width), nn.Embedding(len(self.vocabulary), width)
        self.stack = Stack(width, cfg.d_ff, cfg.decoder_layers, cfg.dropout_rate)
        for module in self.modules():
            begin(module)

    def positions(self, token_BSPh: Tensor, newest: int) -> Tensor:
        """Tokens as the stack reads them, [B, S, P, h]; newest: age of the last item, the one to come being 0."""
        age_S = torch.arange(token_BSPh.shape[1] - 1 + newest, newest - 1, -1, device=token_BSPh.device)
        return token_BSPh * self.cfg.d_model**0.5 + self.ages(age_S)[:, None] + self.places.weight

    def read(self, x_BTh: Tensor, real_BT: Tensor, keep: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Hidden states [B, T, h]; those of positions that are not real mean nothing. keep takes each block's keys and
        values.
        """
        attend = causal_attention(real_BT, self.cfg.num_heads, keep)
        out: Tensor = self.stack(x_BTh, [attend] * len(self.stack.blocks))
        return out

    # ---- training

    def forward(
        self, history_UPh: Tensor, batch: Batch, teacher_UPh: Tensor, open_UP: Tensor | None = None,
        real_UP: Tensor | None = None,
    ) -> NetworkOutput:  # fmt: skip
        """Teacher-forced logits [R, V] at every real position, token by token; where open_UP says so, of those rows
        only whose target's token is a choice there.

        An item is read as a history's and spelled with the same tokens; only the last item's are teacher_UPh.
        """
        real_BS, P = batch.history_BS > 0, history_UPh.shape[1]
        history_BSPh = rows_of(history_UPh, batch.history_row_BS)
        token_BSPh = torch.cat([history_BSPh, rows_of(teacher_UPh, batch.target_row_B)[:, None]], 1)
        row_BS = torch.cat([batch.history_row_BS, batch.target_row_B[:, None]], 1)
        there_BS = F.pad(real_BS, (0, 1), value=True)
        there_BSP = there_BS[..., None].expand(-1, -1, P)
        last_BS = torch.full_like(row_BS, P - 1)
        if real_UP is not None:
            there_BSP, last_BS = there_BSP & real_UP[row_BS], real_UP.sum(1)[row_BS] - 1
        hidden_BTh = self.read(self.positions(token_BSPh, 0).flatten(1, 2), there_BSP.flatten(1))
        hidden_BSPh = hidden_BTh.unflatten(1, (-1, P))
        row_R, before_RPh, spelled_RPh = batch.goals("next"), hidden_BSPh[:, :-1][real_BS], hidden_BSPh[:, 1:][real_BS]
        last_R = last_BS[:, :-1][real_BS]
        first_Rh = before_RPh[torch.arange(len(last_R), device=last_R.device), last_R]
        return self.spelled(first_Rh, (first_Rh, *spelled_RPh[:, :-1].unbind(1)), row_R, open_UP)

    # ---- search

    def scorer(self, tokens: Callable[[Tensor], Tensor], history_BS: Tensor) -> Scorer:
        """The scorer that `beam_search` asks: the history is read once a user, the beams token by token."""
        token_BSP = tokens(history_BS)
        there_BSP = (history_BS > 0)[..., None].expand_as(token_BSP)
        last_B = torch.full_like(history_BS[:, 0], token_BSP.shape[2] - 1)
        if (real_BSP := self.real(token_BSP)) is not None:
            there_BSP, last_B = there_BSP & real_BSP, real_BSP[:, -1].sum(1) - 1
        keep: list[tuple[Tensor, Tensor]] = []
        x_BTh = self.positions(self.look_up(token_BSP), 1).flatten(1, 2)
        hidden_BSPh = self.read(x_BTh, there_BSP.flatten(1), keep).unflatten(1, token_BSP.shape[1:])
        start_Bh = hidden_BSPh[torch.arange(len(last_B), device=last_B.device), -1, last_B]
        past = [Beams(k, v, there_BSP.flatten(1)) for k, v in keep]
        first = self.ages.weight[0] + self.places.weight

        def score(
            position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
        ) -> Tensor:
            if token_R is None or parent_R is None:
                return self.scores(position, start_Bh, candidates_RC)
            for own in past:
                own.reorder(parent_R)
            x_Rh = self.tables[position - 1][token_R] * self.cfg.d_model**0.5 + first[position - 1]
            return self.scores(position, self.stack(x_Rh[:, None], past)[:, 0], candidates_RC)

        return score


class Beams:
    """One block's attention in a search: over a user's history, and over a beam's own tokens so far."""

    own: Tensor | None

    def __init__(self, k_BHTd: Tensor, v_BHTd: Tensor, real_BT: Tensor) -> None:
        self.k, self.v, self.own = k_BHTd, v_BHTd, None
        self.dead_BT = ~real_BT

    def reorder(self, row_R: Tensor) -> None:
        """Let each beam continue from its parent's row."""
        if self.own is not None:
            self.own = self.own[row_R]

    def __call__(self, qkv_R1x: Tensor) -> Tensor:
        """The newest token of each beam, [R, 1, h]; R = B W, a user's beams together."""
        B, H, T, d = self.k.shape
        q_RHd, k_RHd, v_RHd = qkv_R1x.view(-1, 3, H, d).unbind(1)
        new = torch.stack([k_RHd, v_RHd], 1)[:, None]
        self.own = own = new if self.own is None else torch.cat([self.own, new], 1)  # [R, t, 2, H, d]
        q_BHWd = q_RHd.view(B, -1, H, d).transpose(1, 2) * d**-0.5
        there_BHWT = (q_BHWd @ self.k.transpose(2, 3)).masked_fill(self.dead_BT[:, None, None], -torch.inf)
        here_RHt = torch.einsum("rhd,rthd->rht", q_RHd * d**-0.5, own[:, :, 0])
        here_BHWt = here_RHt.view(B, -1, H, own.shape[1]).transpose(1, 2)
        p = torch.cat([there_BHWT, here_BHWt], -1).softmax(-1)
        y_BWHd = (p[..., :T] @ self.v).transpose(1, 2)
        p_RHt = p[..., T:].transpose(1, 2).reshape(-1, H, own.shape[1])
        y_RHd = y_BWHd.reshape(-1, H, d) + torch.einsum("rht,rthd->rhd", p_RHt, own[:, :, 1])
        return y_RHd.flatten(1)[:, None]
