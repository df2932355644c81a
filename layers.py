"""Building blocks: MLP, dropout and attention of networks; distances, noise, Sinkhorn and k-means of tokenizers; the
straight-through look-up and the soft label between the two.

Shape letters: U items, K codes of a level, d latent width; R rows, P places of a SID, C chosen tokens, h width of a
recommender.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from utils import Problem


class MLP(nn.Module):
    """Linear and ReLU in turn, no ReLU after the last; keys as in the released checkpoints, which count a dropout."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            linear = nn.Linear(n_in, n_out)
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            blocks += [nn.Identity(), linear, nn.ReLU()]
        self.mlp_layers = nn.Sequential(*blocks[:-1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp_layers(x)
        return out


class Dropout(nn.Module):
    """Dropout; on CPU its mask comes from 16-bit lanes of random words, three times faster there.

    The rate is rounded to a multiple of 2^-16 on CPU, and the rest scaled to match exactly.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.dropped = round(rate * 65536)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        if x.is_cuda:
            return nn.functional.dropout(x, self.rate)
        return x * kept_by_dropout(x.shape, self.dropped).to(x.dtype).mul_(65536 / (65536 - self.dropped))


def kept_by_dropout(shape: torch.Size, dropped: int) -> Tensor:
    """Mask that is False with probability dropped / 65536, on CPU."""
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: shape.numel()].view(shape)
    return lanes >= dropped - 32768


# ---------------------------------------------------------------- attention


class _Attention(torch.autograd.Function):
    """softmax(q k' + bias + mask) v on CPU, a few samples at a time, so that scores stay in the cache."""

    CHUNK = 250_000  # scores at a time

    @staticmethod
    def forward(ctx, q, k, v, bias, mask, dropout):  # type: ignore[no-untyped-def,override]
        """Shapes as in `attention`; what dropout kept is remembered with each chunk's scores."""
        dropped, kept = round(dropout * 65536), []
        out = q.new_empty(*q.shape[:3], v.shape[3])
        size = max(1, _Attention.CHUNK // (q.shape[1] * q.shape[2] * k.shape[2]))
        for begin in range(0, len(q), size):
            rows = slice(begin, begin + size)
            score = torch.matmul(q[rows], k[rows].transpose(2, 3))
            for term in (bias, None if mask is None else mask[rows]):
                if term is not None:
                    score += term
            p = torch.softmax(score, -1, out=score)
            keep = kept_by_dropout(p.shape, dropped) if dropped else None
            torch.matmul(p if keep is None else p * keep, v[rows], out=out[rows])
            kept.append((rows, p, keep))
        ctx.save_for_backward(q, k, v, bias)
        ctx.kept, ctx.scale = kept, 65536 / (65536 - dropped)
        return out.mul_(ctx.scale) if dropped else out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def,override]
        """d softmax = p (dp - <dp, p>), chunk by chunk; the bias belongs to all samples and sums over them."""
        q, k, v, bias = ctx.saved_tensors
        grad = grad * ctx.scale
        grad_q, grad_k, grad_v = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        for rows, p, keep in ctx.kept:
            used = p if keep is None else p * keep
            torch.matmul(used.transpose(2, 3), grad[rows], out=grad_v[rows])
            grad_p = torch.matmul(grad[rows], v[rows].transpose(2, 3))
            if keep is not None:
                grad_p *= keep
            grad_score = p * (grad_p - (grad_p * p).sum(-1, keepdim=True))
            torch.matmul(grad_score, k[rows], out=grad_q[rows])
            torch.matmul(grad_score.transpose(2, 3), q[rows], out=grad_k[rows])
            if grad_bias is not None:
                grad_bias += grad_score.sum(0, keepdim=True)
        return grad_q, grad_k, grad_v, grad_bias, None, None


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k' + bias + mask) v without scaling, [B, H, T, d].

    q [B, H, T, d], k and v [B, H, S, d]; bias [1, H, T, S] or None; mask [B, 1, 1, S], 0 or -inf, or None.
    """
    if q.is_cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        own: Tensor = _Attention.apply(q, k, v, bias, mask, dropout)
        return own
    both = [t.to(q.dtype) for t in (bias, mask) if t is not None]
    whole = sum(both[1:], both[0]) if both else None
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=whole, dropout_p=dropout, scale=1.0)


def depth_attention(qkv_RPx: Tensor, heads: int) -> Tensor:
    """Causal attention over the few places of a SID, [R, P, h]; qkv_RPx: queries, keys, values side by side.

    On CPU written out: a fused kernel is made for long sequences, here are thousands of short ones.
    """
    q, k, v = (y.unflatten(-1, (heads, -1)) for y in qkv_RPx.chunk(3, -1))
    size = q.shape[1]
    if torch.is_autocast_enabled(q.device.type) or q.is_cuda:
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    future = torch.full((size, size), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    score = torch.einsum("rihd,rjhd->rhij", q * q.shape[-1] ** -0.5, k) + future
    return torch.einsum("rhij,rjhd->rihd", score.softmax(-1), v).flatten(2)


def distance(x_Ud: Tensor, code_Kd: Tensor) -> Tensor:
    """Squared Euclidean distance, [U, K]."""
    return torch.addmm(code_Kd.square().sum(1), x_Ud, code_Kd.T, alpha=-2) + x_Ud.square().sum(1, keepdim=True)


# ---------------------------------------------------------------- noise


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser (multiply, xor-shift) on int32, so that neighbouring inputs part ways."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def counter_uniform(seed: int, step: Tensor, item_U: Tensor, level: int, n_codes: int) -> Tensor:
    """Uniform numbers in (0, 1), [U, K] float32: a function of (seed, step, item, level, code) alone.

    Whichever process or part of a batch asks for an item's noise gets the same; no state is kept.
    The largest value is 1 - 2^-24, the smallest 2^-24, so that log(-log(u)) is finite.
    """
    start = (seed * 2654435761 + level) & 0x7FFFFFFF
    word = torch.full((1,), start, dtype=torch.int32, device=item_U.device)  # no copy from the host
    key = _mix(_mix(word) ^ step.to(torch.int32))
    row_U1 = _mix(_mix(item_U.to(torch.int32)) ^ key)[:, None]
    code_K = _mix(torch.arange(n_codes, dtype=torch.int32, device=item_U.device) + 0x9E3779)
    bits_UK = (_mix(row_U1 ^ code_K) >> 9) & 0x7FFFFF
    return (bits_UK.float() + 0.5) * 2.0**-23


def gumbel(u: Tensor) -> Tensor:
    return -torch.log(-torch.log(u))


def gaussian(u: Tensor) -> Tensor:
    return torch.special.ndtri(u)


# ---------------------------------------------------------------- straight-through


def rows_of(x_UPh: Tensor, row: Tensor) -> Tensor:
    """x_UPh[row] [..., P, h], whose gradient is summed in one order whatever the number of threads."""
    return nn.functional.embedding(row, x_UPh.flatten(1)).unflatten(-1, x_UPh.shape[1:])


def are_real(token_XP: Tensor, vocabulary: Sequence[int]) -> Tensor:
    """Which tokens [..., P] are not the last of their place, which stands behind an item's end."""
    return token_XP != torch.tensor(vocabulary, device=token_XP.device) - 1


class _Lookup(torch.autograd.Function):
    """table[index] forward; backward as if it had been (onehot + p - sg(p)) @ table."""

    @staticmethod
    def forward(ctx, p_UK: Tensor, index_U: Tensor, table_Kh: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(index_U, table_Kh)
        return table_Kh[index_U]

    @staticmethod
    def backward(ctx, grad_Uh: Tensor):  # type: ignore[no-untyped-def,override]
        index_U, table_Kh = ctx.saved_tensors
        grad_p = grad_Uh @ table_Kh.T if ctx.needs_input_grad[0] else None
        grad_table = None
        if ctx.needs_input_grad[2]:
            grad_table = torch.zeros_like(table_Kh).index_add_(0, index_U, grad_Uh)
        return grad_p, None, grad_table


def straight_through_lookup(p_UK: Tensor | None, index_U: Tensor, table_Kh: Tensor) -> Tensor:
    """m @ table with m = onehot(index) + (p - sg(p)): exactly table[index] forward, [U, h].

    The gradient that reaches p is grad @ table.T, that of table goes to the chosen rows: the same as
    the dense product's, without ever building m.
    """
    if p_UK is None:
        return nn.functional.embedding(index_U, table_Kh)
    out: Tensor = _Lookup.apply(p_UK, index_U, table_Kh)
    return out


class _SoftLabel(torch.autograd.Function):
    """Mean of -log softmax(logits)[index] forward; backward as if the label had been onehot + w (p - sg(p)).

    grad_logits = (softmax - onehot) g / R and grad_p[u] = w g / R (n_u log prior - sum of log softmax over u's rows),
    n_u being how often u is a target.
    """

    @staticmethod
    def forward(ctx, logits_RK, index_R, p_UK, row_R, weight, log_prior, rows):  # type: ignore[no-untyped-def,override]
        logp_RK = logits_RK.log_softmax(1)
        ctx.save_for_backward(logp_RK, index_R, p_UK, row_R, log_prior)
        ctx.weight, ctx.rows = weight, rows
        return -logp_RK.gather(1, index_R[:, None]).mean() * (len(index_R) / rows)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def,override]
        logp_RK, index_R, p_UK, row_R, log_prior = ctx.saved_tensors
        each, grad_logits, grad_p = grad / ctx.rows, None, None
        if ctx.needs_input_grad[2]:
            grad_p = _soft_label_costs(logp_RK, p_UK, row_R, log_prior) * (each * ctx.weight)
        if ctx.needs_input_grad[0]:
            grad_logits = logp_RK.exp().mul_(each)
            grad_logits.scatter_add_(1, index_R[:, None], -each.expand(len(index_R), 1))
        return grad_logits, None, grad_p, None, None, None, None


def _soft_label_costs(logp_RK: Tensor, p_UK: Tensor, row_R: Tensor, log_prior: Tensor | None) -> Tensor:
    """What each code would cost as a label, summed over an item's rows, [U, K].

    A code that is no choice there (log-probability -inf) costs what the choices cost on average under p: it is
    neither sought nor shunned, as if p were the softmax of the choices alone.
    """
    none_RK = logp_RK == -torch.inf
    partly = bool(none_RK.any())
    cost_UK = torch.zeros_like(p_UK).index_add_(
        0, row_R, logp_RK.masked_fill(none_RK, 0) if partly else logp_RK, alpha=-1
    )
    if log_prior is not None:
        count_U = row_R.bincount(minlength=len(p_UK)).to(logp_RK.dtype)
        cost_UK.addcmul_(count_U[:, None], log_prior.to(logp_RK.dtype).expand_as(cost_UK))
    if partly:
        none_UK = torch.zeros_like(p_UK).index_add_(0, row_R, none_RK.to(p_UK.dtype)) > 0
        share_UK = p_UK.masked_fill(none_UK, 0)
        mean_U1 = (share_UK * cost_UK).sum(1, keepdim=True) / share_UK.sum(1, keepdim=True).clamp(min=1e-30)
        cost_UK = torch.where(none_UK, mean_U1, cost_UK)
    return cost_UK


def soft_label_loss(
    logits_RK: Tensor, index_R: Tensor, p_UK: Tensor | None, row_R: Tensor, weight: float = 1.0,
    log_prior: Tensor | None = None, rows: int | None = None,
) -> Tensor:  # fmt: skip
    """Mean over rows of -sum_k y_k log softmax(logits)_k with y = onehot(index) + weight (p - sg(p))[row], unbuilt.

    index_R: the label's hard codes; p_UK: soft assignment of the distinct items, None where no gradient is wanted;
    row_R: whose label each row has. log_prior, [K] or [U, K] where each item has its own, adds sum_k y_k log prior_k to
    the gradient of p alone; the value stays the cross-entropy. rows: what the sum is divided by, where it is not the
    number of rows. Logits may be -inf for codes that are no choice; p is neither drawn to those nor pushed away.
    """
    rows = len(index_R) if rows is None else rows
    if not len(index_R):
        return logits_RK.sum()  # nothing, with a gradient of zero
    if p_UK is None:
        return nn.functional.cross_entropy(logits_RK, index_R) * (len(index_R) / rows)
    loss: Tensor = _SoftLabel.apply(logits_RK, index_R, p_UK, row_R, weight, log_prior, rows)
    return loss


def some_logits(hidden_Rh: Tensor, table_Vh: Tensor, candidates_RC: Tensor) -> Tensor:
    """The scores hidden @ table' of a few tokens of each row alone, [R, C]."""
    return torch.bmm(table_Vh[candidates_RC], hidden_Rh.to(table_Vh.dtype)[..., None])[..., 0]


# ---------------------------------------------------------------- whole-set assignment


@torch.no_grad()
def sinkhorn(distance_UK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes [U] of a balanced assignment: arg-max of the entropic transport plan.

    Distances are centred to [-1, 1] first and float64 is used throughout, as published; rows sum to
    1/U, columns to 1/K. Only the scalings u, v of the plan diag(u) kernel diag(v) are iterated, which
    reads the matrix twice an iteration instead of rewriting it. Cuturi 2013, arXiv:1306.0895.
    """
    cost = distance_UK.double()
    low, high = cost.min(), cost.max()
    cost = cost / ((high - low) / 2 + 1e-5)
    nearest = cost.min(1, keepdim=True).values  # moved from the kernel into u: no row underflows
    kernel = torch.exp((nearest - cost) / epsilon)
    rows, columns = kernel.shape
    u = torch.exp((low / ((high - low) / 2 + 1e-5) - nearest[:, 0]) / epsilon)
    v = kernel.new_ones(columns)
    for _ in range(iterations):
        v = 1 / (columns * (u @ kernel)).clamp(min=1e-300)
        u = 1 / (rows * (kernel @ v)).clamp(min=1e-300)
    return (kernel * v).argmax(1)


FARTHEST = 1e36  # squared length of a vector; the squared distance of two, and some room, must fit into float32
Start = Literal["random", "kmeans++", "greedy"]


def kmeans(
    x_Ud: np.ndarray, n_codes: int, iterations: int, seed: int, weight_U: np.ndarray | None = None,
    start: Start = "random",
) -> np.ndarray:  # fmt: skip
    """Centres [K, d] float32 by faiss; with fewer points than codes the rest are jittered points.

    start: points at random, or drawn by k-means++ (Arthur and Vassilvitskii, SODA 2007; greedy: the best of several
    draws each time).

    Problem when a point is not finite, or so long that squared distances leave float32: faiss would end the process.
    """
    import faiss  # slow to import, and evaluation never needs it

    x_Ud = np.ascontiguousarray(x_Ud, dtype=np.float32)
    with np.errstate(over="ignore"):
        longest = np.einsum("ud,ud->u", x_Ud, x_Ud, dtype=np.float64).max()
    if not longest < FARTHEST:
        what = f"as long as {longest**0.5:.3g}" if np.isfinite(longest) else "not finite"
        raise Problem(
            f"k-means: the vectors, made of the content embeddings, are {what}; normalise the embeddings, or, when "
            "the tokenizer is being trained, lower rqvae_lr"
        )
    if len(x_Ud) <= n_codes:
        random = np.random.default_rng(seed)
        extra = x_Ud[random.integers(0, len(x_Ud), n_codes - len(x_Ud))]
        jitter = x_Ud.std(dtype=np.float64) * 1e-2 * random.standard_normal(extra.shape)
        return np.concatenate([x_Ud, extra + jitter]).astype(np.float32)
    run = faiss.Kmeans(
        x_Ud.shape[1], n_codes, niter=iterations, seed=seed, min_points_per_centroid=1,
        max_points_per_centroid=10**6 // n_codes + 256,
    )  # fmt: skip
    first_Kd = None
    if start != "random":
        from sklearn.cluster import kmeans_plusplus  # slow to import too

        trials = None if start == "greedy" else 1
        first_Kd, _ = kmeans_plusplus(x_Ud, n_codes, sample_weight=weight_U, random_state=seed, n_local_trials=trials)
    run.train(x_Ud, weights=weight_U, init_centroids=first_Kd)
    return np.asarray(run.centroids).reshape(n_codes, -1)
