"""A transformer over item embeddings, with all that SASRec and its diffusion twin share.

Shape letters: B users, S positions, N items, d width, R rows (real positions of a batch).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import Dropout
from recommenders.base import Model
from recommenders.blocks import check_heads
from recommenders.protocol import TopK
from settings import option
from utils import log


@dataclass(frozen=True, kw_only=True)
class ItemOptions:
    """What every network over items is asked."""

    hidden_units: int = option(128, "width d of the item embeddings", ge=1)
    num_blocks: int = option(2, "number of transformer blocks", ge=1, le=200)
    num_heads: int = option(4, "number of attention heads", ge=1, sizeless=True)
    hidden_dropout: float = option(
        0.5, "dropout rate of embeddings, attention and feed-forward layers, 0 to 0.9", ge=0, le=0.9
    )
    decoding: Literal["single", "multi", "autoregressive"] = option(
        "single",
        "how a list is made: single = rank the next item, multi = fill one masked position per list entry (diffusion "
        "only), autoregressive = append the best next item again and again",
        judges=True,
    )
    as_published: bool = option(
        False,
        "whether transformer block, targets and multi-step decoder are those of DiffSASRec's program",
        sizeless=True,
    )

    def __post_init__(self) -> None:
        check_heads("hidden_units", self.hidden_units, self.num_heads)


LOGITS = 1 << 24  # most scores held at a time by the loss (64 MiB)


class ItemBlock(nn.Module):
    """Self-attention and a feed-forward layer of the same width, each normalised before (pre-LN).

    original: as in SASRec's own code, only the query is normalised and the residuals start from the
    normalised value.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, original: bool) -> None:
        super().__init__()
        self.heads, self.rate, self.original = heads, dropout, original
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, width), Dropout(dropout), nn.ReLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-8) for _ in range(2))
        self.dropout = Dropout(dropout)

    def attention(self, query_BSd: Tensor, x_BSd: Tensor, allowed: Tensor) -> Tensor:
        """Attention of the queries over x, both [B, S, d], where it is allowed."""
        if query_BSd is x_BSd:
            q, k, v = self.qkv(x_BSd).chunk(3, -1)
        else:
            w, b = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
            q, k, v = (F.linear(y, *wb) for y, *wb in zip((query_BSd, x_BSd, x_BSd), w, b, strict=True))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # [B, H, S, d / H]
        drop = self.rate if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=drop)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        y = self.norms[0](x)
        if self.original:
            y = self.norms[1](y + self.attention(y, x, allowed))
            return y + self.dropout(self.feed(y))
        x = x + self.dropout(self.attention(y, y, allowed))
        return x + self.dropout(self.feed(self.norms[1](x)))


class ItemEncoder(nn.Module):
    """Item numbers to hidden states; positions count from the newest, so that padding changes nothing.

    SASRec, arXiv:1808.09781: x = E[item] sqrt(d) + P[position], blocks, a last norm.
    """

    def __init__(self, s: ItemOptions, rows: int, positions: int, *, causal: bool) -> None:
        """rows: of the item table, padding included."""
        super().__init__()
        self.causal, self.original = causal, s.as_published
        self.items = nn.Embedding(rows, s.hidden_units, padding_idx=0)
        self.positions = nn.Embedding(positions, s.hidden_units)
        sizes = (s.hidden_units, s.num_heads, s.hidden_dropout)
        self.blocks = nn.ModuleList(ItemBlock(*sizes, original=self.original) for _ in range(s.num_blocks))
        self.norm = nn.LayerNorm(s.hidden_units, 1e-8)
        self.dropout = Dropout(s.hidden_dropout)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_normal_(p)
        with torch.no_grad():
            self.items.weight[0] = 0

    def forward(self, item_BS: Tensor) -> Tensor:
        """Hidden states [B, S, d]; those of padding mean nothing.

        As published, histories are padded to full length and attend to the padding.
        """
        width = item_BS.shape[1]
        if self.original:
            item_BS = F.pad(item_BS, (self.positions.num_embeddings - item_BS.shape[1], 0))
        size = item_BS.shape[1]
        age_S = torch.arange(size - 1, -1, -1, device=item_BS.device)
        x = self.items(item_BS) * self.items.embedding_dim**0.5 + self.positions(age_S)
        # everyone may attend to themselves: a row without any key would be NaN
        allowed = (item_BS > 0)[:, None, None] | torch.eye(size, dtype=torch.bool, device=item_BS.device)
        if self.original:
            x, allowed = x * (item_BS > 0)[..., None], torch.ones_like(allowed)
        if self.causal:
            allowed = allowed.tril()
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, allowed)
        out: Tensor = self.norm(x)[:, size - width :]
        return out


# ---------------------------------------------------------------- scores of the whole catalogue


class _Softmax(torch.autograd.Function):
    """Weighted cross-entropy of h @ table.T, chunk by chunk: no more than LOGITS scores exist at a time.

    The gradients are computed on the way forward, while a chunk's probabilities are at hand.
    """

    @staticmethod
    def forward(ctx, h_Rd: Tensor, table_Nd: Tensor, target_R: Tensor, weight_R: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        loss, grad_h, grad_table = h_Rd.new_zeros(()), torch.empty_like(h_Rd), torch.zeros_like(table_Nd)
        size = max(1, LOGITS // len(table_Nd))
        for begin in range(0, len(h_Rd), size):
            part = slice(begin, begin + size)
            h, target, weight = h_Rd[part], target_R[part], weight_R[part, None]
            score = h @ table_Nd.T
            right, top = score.gather(1, target[:, None]), score.amax(1, keepdim=True)
            p = score.sub_(top).exp_()  # in place: every pass over the scores costs
            total = p.sum(1, keepdim=True)
            loss += ((top + total.log() - right) * weight).sum()
            grad_h[part] = (p @ table_Nd) * (weight / total) - table_Nd[target] * weight
            grad_table.addmm_(p.T, h * (weight / total)).index_add_(0, target, h * weight, alpha=-1)
        ctx.save_for_backward(grad_h, grad_table)
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def,override]
        grad_h, grad_table = ctx.saved_tensors
        return grad * grad_h, grad * grad_table, None, None


def softmax_loss(h_Rd: Tensor, table_Nd: Tensor, target_R: Tensor, weight_R: Tensor) -> Tensor:
    """Sum over rows of weight * -log softmax(h @ table.T)[target], in bounded memory.

    target_R: rows of the table; weight_R: no gradient flows to it. In float32 at least.
    """
    with torch.autocast(h_Rd.device.type, enabled=False):
        h_Rd = h_Rd.to(table_Nd.dtype)
        loss: Tensor = _Softmax.apply(h_Rd, table_Nd, target_R, weight_R.to(table_Nd.dtype))
    return loss


EXACT = 1 << 16  # items up to which a softmax over the whole catalogue is computed as it is
SAMPLED = 1 << 13  # items that stand for all others beyond that, drawn anew each step
RANKED = 1 << 18  # items up to which all are ranked beside those that a search over their SIDs finds
SCORES = 1 << 26  # most scores held at a time where items are ranked (256 MiB)


def say_sampled(n_items: int) -> None:
    """Tell the log, where losses over whole items go by a sample."""
    if n_items > EXACT:
        log.info(f"losses over whole items: of {n_items} items {SAMPLED} are drawn for each step")


def sampled_loss(h_Rd: Tensor, vectors: Callable[[Tensor], Tensor], target_R: Tensor, n_items: int) -> Tensor:
    """Mean over rows of -log softmax(h @ table.T)[target], the partition function estimated by a uniform sample: each
    of its M items stands for N / M (log-Q correction, Bengio and Senecal 2008); a row's own target is not among them.

    vectors: rows of the table -> their vectors, with gradient; target_R: rows of the table.
    """
    sample_M = torch.randint(n_items, (SAMPLED,), device=h_Rd.device)
    goal_U, place_R = target_R.unique(return_inverse=True)
    with torch.autocast(h_Rd.device.type, enabled=False):
        goal_Ud, sample_Md = vectors(torch.cat([goal_U, sample_M])).split([len(goal_U), SAMPLED])
        h_Rd = h_Rd.to(goal_Ud.dtype)
        own_R = (h_Rd * goal_Ud[place_R]).sum(1)
        other_RM = h_Rd @ sample_Md.T + math.log(n_items / SAMPLED)
        other_R = other_RM.masked_fill(sample_M == target_R[:, None], -torch.inf).logsumexp(1)
        return (torch.logaddexp(own_R, other_R) - own_R).mean()


def in_few(users: int, n_items: int) -> Iterator[slice]:
    """Users whose scores of all items are held at a time."""
    size = max(1, SCORES // n_items)
    yield from (slice(begin, begin + size) for begin in range(0, users, size))


def best_of_all(query_Bd: Tensor, table_Nd: Tensor, k: int, excluded_BS: Tensor | None = None) -> tuple[TopK, Tensor]:
    """The k best rows of a table by softmax(query @ table.T), as items from 1, and each user's logsumexp, [B, 1]."""
    found, totals = [], []
    for users in in_few(len(query_Bd), len(table_Nd)):
        score_BN = F.linear(query_Bd[users], table_Nd).to(table_Nd.dtype)
        found.append(best_items(score_BN, k, None if excluded_BS is None else excluded_BS[users]))
        totals.append(score_BN.logsumexp(1, keepdim=True))
    return TopK(*map(torch.cat, zip(*found, strict=True))), torch.cat(totals)


def best_items(score_BN: Tensor, k: int, excluded_BS: Tensor | None = None) -> TopK:
    """The k best items by score, column i being item i + 1; 0 where there are fewer."""
    if excluded_BS is not None:
        score_BN = F.pad(score_BN, (1, 0)).scatter(1, excluded_BS, -torch.inf)[:, 1:]
    score_BK, place_BK = score_BN.topk(min(k, score_BN.shape[1]))
    return TopK((place_BK + 1).masked_fill(score_BK == -torch.inf, 0), score_BK)


def one_by_one(
    score: Callable[[Tensor], Tensor], history_BS: Tensor, k: int, excluded_BS: Tensor | None = None
) -> TopK:
    """Greedy continuation: the best next item joins the history k times, never one twice.

    score: histories -> scores [B, N] of the next item.
    """
    excluded = history_BS[:, :0] if excluded_BS is None else excluded_BS
    found = []
    for _ in range(k):
        found.append(best_items(score(history_BS), 1, excluded))
        history_BS = torch.cat([history_BS, found[-1].item_BW], 1)
        excluded = torch.cat([excluded, found[-1].item_BW], 1)
    return TopK(*(torch.cat(x, 1) for x in zip(*found, strict=True)))


# ---------------------------------------------------------------- what the trainer asks for


def with_others(excluded_BS: Tensor | None, candidates_M: Tensor | None, users: int, n_items: int) -> Tensor | None:
    """The excluded items [B, S], and with them all that are not among some item numbers."""
    if candidates_M is None:
        return excluded_BS
    every_N = torch.arange(1, n_items + 1, device=candidates_M.device)
    outside_BM = every_N[~torch.isin(every_N, candidates_M)].expand(users, -1)
    return outside_BM if excluded_BS is None else torch.cat([excluded_BS, outside_BM], 1)


class SequenceModel(Model, ABC):
    """A model of item sequences as the trainer wants it; subclasses say how it learns and recommends."""

    sequences = True
    extra_rows = 1  # of the item table beside the items: padding
    encoder: ItemEncoder

    def __init__(self, cfg: ItemOptions, n_items: int, longest: int) -> None:
        """longest: items of a history at most."""
        super().__init__()
        self.n_items, self.max_his_len = n_items, longest
        self.free_length = 100 if cfg.decoding == "single" else 0  # one pass ranks all; elsewhere each place costs

    @torch.inference_mode()
    def recommend(
        self, history_BS: Tensor, k: int, excluded_BS: Tensor | None = None, candidates_M: Tensor | None = None
    ) -> TopK:
        """k items for each history, best first; 0 where there are fewer."""
        found = []
        for users in in_few(len(history_BS), self.n_items):
            own_BS = None if excluded_BS is None else excluded_BS[users]
            others_BM = with_others(own_BS, candidates_M, len(history_BS[users]), self.n_items)
            found.append(self.choose(history_BS[users], k, others_BM))
        return TopK(*map(torch.cat, zip(*found, strict=True)))

    @abstractmethod
    def choose(self, history_BS: Tensor, k: int, excluded_BS: Tensor | None) -> TopK:
        """How the method ranks or decodes; items in excluded_BS are left out."""
