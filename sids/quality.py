"""What can be told of semantic IDs before a recommender is trained on them.

Embedding hit rate and Gini coefficient are FORGE's (arXiv:2509.20904); docs/forge.md says what they predict. Codes of
unlike length have -1 behind their end.

Shape letters: N items, T code places, K codes of a place, D width, M items that are asked about, W their neighbours,
R of them at a time, U different rows, C rows proposed to each, H items of all histories, G targets of all queries, P
pairs.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from readers.splits import Split
from sids.pairs import Pairs
from sids.table import SidTable, perplexity
from sids.tokenizer import in_pieces

KS = (5, 10, 20, 30, 100)
LONGEST = 50  # items of a history that ask
CELLS = 1 << 22  # similarities held at a time
FINE = 10**12  # similarities are equal where they agree to so many parts
DENSE = 1 << 15  # items up to which all similarities are looked at
SPARE = 64  # rows proposed beyond those that are wanted
NOWHERE = 1 << 30  # rank of what is not in the list

Figures = dict[str, float]

# ---------------------------------------------------------------- load


def gini(count: np.ndarray | Sequence[float]) -> float:
    """(n + 1) / n - 2 sum_i (n + 1 - i) c_i / (n S) of counts in any order: mean absolute difference / (2 mean)."""
    c = np.sort(np.asarray(count, np.float64))
    n = len(c)
    return float((n + 1) / n - 2 * (np.arange(n, 0, -1) * c).sum() / (n * max(c.sum(), 1e-300)))


def entropy(count: np.ndarray) -> float:
    """-sum p ln p, in nats."""
    p = count[count > 0] / count.sum()
    return float(-(p * np.log(p)).sum())


def prefixes(sids: SidTable, places: int) -> np.ndarray:
    """Number of each item's first codes, [N]: equal for equal prefixes."""
    found: np.ndarray = sids.code_NT[:, :places].unique(dim=0, return_inverse=True)[1].numpy()
    return found


def load_figures(sids: SidTable) -> Figures:
    """How evenly SIDs and codes are used; a level's Gini counts all its K codes, those of no item included."""
    size_G = np.bincount(prefixes(sids, len(sids.sizes)))
    found = {
        "items": float(sids.n_items), "sids": float(len(size_G)), "gini_sid": gini(size_G),
        "collision_rate": 1 - len(size_G) / sids.n_items,
        "colliding_item_share": float(size_G[size_G > 1].sum() / sids.n_items), "max_group": float(size_G.max()),
        "joint_entropy": entropy(size_G), "mean_length": float(sids.length_N.double().mean()),
    }  # fmt: skip
    if sids.end_N is not None:
        found["suffixed_share"] = float((sids.end_N > 0).double().mean())  # who pays for the collisions
    for level, k in enumerate(sids.sizes, 1):
        code_N = sids.code_NT[:, level - 1].long()
        count_K = np.bincount(code_N[code_N >= 0].numpy(), minlength=k)
        used, spread = perplexity(code_N[code_N >= 0], k)
        found |= {f"codes_used/level_{level}": float(used), f"perplexity/level_{level}": spread}
        found |= {f"gini/level_{level}": gini(count_K), f"entropy/level_{level}": entropy(count_K)}
    return found


def group_sizes(sids: SidTable) -> dict[int, int]:
    """Histogram: items that share a SID -> SIDs with so many."""
    sizes, counts = np.unique(np.bincount(prefixes(sids, len(sids.sizes))), return_counts=True)
    return dict(zip(sizes.tolist(), counts.tolist(), strict=True))


# ---------------------------------------------------------------- what else needs no embeddings


def purity_figures(sids: SidTable, pairs: Pairs) -> Figures:
    """Share of training pairs whose items have the same first codes, beside that of all pairs of different items."""
    found: Figures = {}
    for level in range(1, len(sids.sizes) + 1):
        group_N = prefixes(sids, level)
        size_G = np.bincount(group_N).astype(np.float64)
        same = group_N[pairs.item_P2[:, 0]] == group_N[pairs.item_P2[:, 1]]
        found[f"pair_agreement/level_{level}"] = float(same.mean()) if len(pairs) else 0.0
        chance = (size_G * (size_G - 1)).sum() / max(sids.n_items * (sids.n_items - 1), 1)
        found[f"random_agreement/level_{level}"] = float(chance)
    return found


def cold_figures(sids: SidTable, count_N: np.ndarray) -> Figures:
    """Of the items that the training part never shows: whose codes, and whose prefixes, it does not show either."""
    cold_N = count_N == 0
    found = {"cold_item_share": float(cold_N.mean())}
    if not cold_N.any():
        return found
    for level in range(1, len(sids.sizes) + 1):
        code_N, prefix_N = sids.code_NT[:, level - 1].numpy(), prefixes(sids, level)
        here_N = cold_N & (code_N >= 0)
        if here_N.any():
            found[f"cold_seen_code/level_{level}"] = float(np.isin(code_N[here_N], code_N[~cold_N]).mean())
            found[f"cold_unseen_prefix/level_{level}"] = float(1 - np.isin(prefix_N[here_N], prefix_N[~cold_N]).mean())
    return found


def churn_figures(now: SidTable, before: SidTable) -> Figures:
    """Share of items whose code changed on a level, and whose SID did. Both tables list the same items."""
    places = max(now.code_NT.shape[1], before.code_NT.shape[1])
    both = [F.pad(t.code_NT.long(), (0, places - t.code_NT.shape[1]), value=-1) for t in (now, before)]
    changed_NT = both[0] != both[1]
    found = {f"changed/level_{level}": float(c.double().mean()) for level, c in enumerate(changed_NT.unbind(1), 1)}
    return found | {"changed/codes": float(changed_NT.any(1).double().mean())}


# ---------------------------------------------------------------- embedding hit rate


class Queries(NamedTuple):
    """Histories and targets of some queries, as flat arrays in the order of the queries; items count from 0."""

    query_H: np.ndarray
    item_H: np.ndarray  # different ones within a query
    query_G: np.ndarray
    target_G: np.ndarray  # -1: an item without embedding, a miss

    @classmethod
    def of(cls, histories: Iterable[Iterable[int]], targets: Iterable[Iterable[int]]) -> "Queries":
        """Queries with a history and a target; others do not count."""
        kept = [(sorted(set(h)), sorted(set(t))) for h, t in zip(histories, targets, strict=True) if h and t]
        query_H = np.repeat(np.arange(len(kept)), [len(h) for h, _ in kept])
        query_G = np.repeat(np.arange(len(kept)), [len(t) for _, t in kept])
        item_H, target_G = (np.array([i for q in kept for i in q[side]], np.int64) for side in (0, 1))
        return cls(query_H, item_H, query_G, target_G)

    @classmethod
    def of_split(cls, split: Split, longest: int = LONGEST) -> "Queries":
        """A query a sample: the last `longest` items of its history, and its target."""
        length = split.lengths(longest)
        query = np.repeat(np.arange(len(split)), length)
        first = np.repeat(split.position - length, length)
        place = first + np.arange(len(query)) - np.repeat(length.cumsum() - length, length)
        item = split.items[place].astype(np.int64) - 1
        rows = np.unique(np.stack([query, item], 1), axis=0)
        asked = np.flatnonzero(length > 0)
        number = np.searchsorted(asked, rows[:, 0])
        return cls(number, rows[:, 1], np.arange(len(asked)), split.targets[asked].astype(np.int64) - 1)


class Neighbours(NamedTuple):
    """The nearest items of some items by cosine, itself left out, best first, equal ones by smaller index."""

    item_M: np.ndarray  # sorted
    near_MW: np.ndarray
    score_MW: np.ndarray  # cosine in units of 1 / FINE, int64


@torch.no_grad()
def neighbours(x_ND: Tensor, width: int, item_M: np.ndarray | None = None) -> Neighbours:
    """Exact, in float64: cosines that agree to 12 digits are equal. item_M: whose, default all.

    Equal rows are multiplied once, so that their cosines are equal whatever the order of sums. In a large catalogue
    faiss proposes rows in float32, and what its error may have hidden is searched again.
    """
    n = len(x_ND)
    if n * FINE * 2 >= 2**63:
        raise ValueError(f"{n} items: similarity and index do not fit into 63 bits")
    item_M = np.arange(n) if item_M is None else np.unique(item_M)
    row_UD, row_N = distinct(F.normalize(x_ND.double(), dim=1))
    width = min(width, n - 1)
    if n <= DENSE:
        return Neighbours(item_M, *_among_all(row_UD, row_N, item_M, width))
    near_MW, score_MW, sure_M = _among_proposed(row_UD, row_N, item_M, width)
    if not sure_M.all():
        near_MW[~sure_M], score_MW[~sure_M] = _among_all(row_UD, row_N, item_M[~sure_M], width)
    return Neighbours(item_M, near_MW, score_MW)


def _among_all(row_UD: Tensor, row_N: Tensor, item_M: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(neighbours, scores), [M, width] each, by all similarities."""
    n, near, score = len(row_N), [], []
    behind_N = torch.arange(n - 1, -1, -1)
    for rows in torch.from_numpy(item_M).split(max(1, CELLS // n)):
        similar_RN = (row_UD[row_N[rows]] @ row_UD.T).mul_(FINE).round_().long()[:, row_N]
        key_RN = similar_RN * n + behind_N  # of equal ones, the smaller index is larger
        key_RN.scatter_(1, rows[:, None], -(2**63))
        best_RW = key_RN.topk(width, dim=1).values
        score.append(best_RW.div(n, rounding_mode="floor"))
        near.append(n - 1 - (best_RW - score[-1] * n))
    return torch.cat(near).numpy(), torch.cat(score).numpy()


def _among_proposed(
    row_UD: Tensor, row_N: Tensor, item_M: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same among the items of the best rows in float32, and whether no other item can belong there, [M].

    A product in float32 of rows of length 1 is off by less than (D + 3) 2^-24.
    """
    import faiss  # slow to import, and only large catalogues need it

    rows, wide = row_UD.shape
    index = faiss.IndexFlatIP(wide)
    index.add(row_UD.float().numpy())
    order_N = row_N.argsort(stable=True).numpy()  # items by row, then by index
    begin_U = np.searchsorted(row_N.numpy()[order_N], np.arange(rows + 1))
    near, score, sure = [], [], []
    for items in np.array_split(item_M, max(1, len(item_M) * (width + SPARE) * wide // CELLS)):
        query_RD = row_UD[row_N[items]]
        rough_RC, row_RC = index.search(query_RD.float().numpy(), min(rows, width + 1 + SPARE))
        exact_RC = torch.einsum("rd,rcd->rc", query_RD, row_UD[row_RC]).mul_(FINE).round_().long().numpy()
        size_E = np.diff(begin_U)[row_RC].reshape(-1)
        ask_I = np.repeat(np.repeat(np.arange(len(items)), row_RC.shape[1]), size_E)  # an entry an item proposed
        start_E = size_E.cumsum() - size_E
        item_I = order_N[np.repeat(begin_U[row_RC].reshape(-1) - start_E, size_E) + np.arange(len(ask_I))]
        score_I = np.repeat(exact_RC.reshape(-1), size_E)
        other = item_I != items[ask_I]
        ask_I, item_I, score_I = ask_I[other], item_I[other], score_I[other]
        best = np.lexsort((item_I, -score_I, ask_I))
        first_R = np.searchsorted(ask_I[best], np.arange(len(items)))
        chosen_RW = best[first_R[:, None] + np.arange(width)]
        near.append(item_I[chosen_RW])
        score.append(score_I[chosen_RW])
        reach_R = (rough_RC[:, -1] + (wide + 3) * 2.0**-24) * FINE + 1  # of rows that were not proposed
        sure.append((score[-1][:, -1] > reach_R) | (row_RC.shape[1] == rows))
    return np.concatenate(near), np.concatenate(score), np.concatenate(sure)


def distinct(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(the different rows [U, D], which of them each row is [N]); torch's own makes an object of each row."""
    rows = np.ascontiguousarray((x_ND + 0.0).numpy())  # -0 becomes 0
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    return x_ND[torch.from_numpy(first)], torch.from_numpy(inverse)


class Ranks(NamedTuple):
    """Places from 0 of all targets, NOWHERE where there is none."""

    per_item_G: np.ndarray  # among the neighbours of one item of the history, the best of them
    budget_G: np.ndarray  # in the one list of all items by their nearest item of the history, that left out


def ranks(near: Neighbours, queries: Queries) -> Ranks:
    """Where the targets stand; exact as far as `near` has W entries (the budget's list: W - longest history)."""
    n_queries = int(queries.query_G.max()) + 1
    begin_Q = np.searchsorted(queries.query_H, np.arange(n_queries + 1))
    found = [], []  # type: tuple[list[np.ndarray], list[np.ndarray]]
    step = max(1, CELLS // (near.near_MW.shape[1] * LONGEST))
    for first in range(0, len(queries.query_G), step):
        query, target = queries.query_G[first : first + step], queries.target_G[first : first + step]
        per_item, budget = _ranks(near, queries, begin_Q, query, target)
        found[0].append(per_item)
        found[1].append(budget)
    return Ranks(*map(np.concatenate, found))


def _ranks(
    near: Neighbours, queries: Queries, begin_Q: np.ndarray, query_G: np.ndarray, target_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The two ranks of some targets."""
    n_G = begin_Q[query_G + 1] - begin_Q[query_G]
    goal_E = np.repeat(np.arange(len(query_G)), n_G)  # an entry for each target and item of its history
    start_G = n_G.cumsum() - n_G
    asks_E = queries.item_H[np.arange(len(goal_E)) - start_G[goal_E] + begin_Q[query_G][goal_E]]
    row_E = np.searchsorted(near.item_M, asks_E)
    near_EW, score_EW = near.near_MW[row_E], near.score_MW[row_E]
    match_EW = near_EW == target_G[goal_E][:, None]
    place_E = np.where(match_EW.any(1), match_EW.argmax(1), NOWHERE)
    score_E = np.where(place_E < NOWHERE, np.take_along_axis(score_EW, place_E[:, None] % near_EW.shape[1], 1)[:, 0],
                       np.iinfo(np.int64).min)  # fmt: skip
    per_item_G, score_G = np.minimum.reduceat(place_E, start_G), np.maximum.reduceat(score_E, start_G)
    listed_G = per_item_G < NOWHERE

    base = 1 + int(max(near.near_MW.max(), queries.item_H.max(), target_G.max()))
    known = np.unique(goal_E * base + asks_E)
    listed_G &= ~np.isin(np.arange(len(query_G)) * base + target_G, known)  # what is in the history is left out
    before_EW = (score_EW > score_G[goal_E][:, None]) | (
        (score_EW == score_G[goal_E][:, None]) & (near_EW < target_G[goal_E][:, None])
    )
    entry, place = np.nonzero(before_EW & listed_G[goal_E][:, None])
    better = np.unique(goal_E[entry] * base + near_EW[entry, place])
    better = better[~np.isin(better, known, assume_unique=True)]
    count_G = np.bincount(better // base, minlength=len(query_G))
    return per_item_G, np.where(listed_G, count_G, NOWHERE)


def hit_rate(rank_G: np.ndarray, queries: Queries, k: int) -> np.ndarray:
    """Share of its targets that each query finds among the first k, [Q]."""
    hits = np.bincount(queries.query_G, rank_G < k)
    found: np.ndarray = hits / np.bincount(queries.query_G)
    return found


def candidates(near: Neighbours, queries: Queries, ks: Sequence[int]) -> list[float]:
    """Mean number of different items among the k neighbours of all items of a history, for each k."""
    row_H, base = np.searchsorted(near.item_M, queries.item_H), int(near.near_MW.max()) + 1
    total, deep = np.zeros(len(ks)), min(max(ks), near.near_MW.shape[1])
    n_queries = int(queries.query_G.max()) + 1
    step = max(1, CELLS // (deep * LONGEST))
    for first in range(0, n_queries, step):
        rows = slice(*np.searchsorted(queries.query_H, [first, first + step]))
        key = queries.query_H[rows, None] * base + near.near_MW[row_H[rows], :deep]
        best = np.sort((key * deep + np.arange(deep)).reshape(-1))
        place = (best % deep)[np.diff(best // deep, prepend=-1) > 0]
        total += [(place < k).sum() for k in ks]
    return [float(t) for t in total / n_queries]


def hits(x_ND: Tensor, queries: Queries, k: int) -> np.ndarray:
    """Per-item embedding hit rate at k of each query, [Q], to compare two kinds of SIDs query by query."""
    return hit_rate(ranks(neighbours(x_ND, k, queries.item_H), queries).per_item_G, queries, k)


def emb_hit_rate(x_ND: Tensor, queries: Queries, ks: Sequence[int] = KS) -> Figures:
    """Embedding hit rate at each k in both forms, and the size of the candidate sets.

    hit@k: among the k nearest of any item of the history (FORGE); budget@k: among the k nearest of all together.
    """
    longest = int(np.bincount(queries.query_H).max())
    near = neighbours(x_ND, max(ks) + longest, queries.item_H)
    rank = ranks(near, queries)
    found: Figures = {}
    for k, size in zip(ks, candidates(near, queries, ks), strict=True):
        found[f"hit@{k}"] = float(hit_rate(rank.per_item_G, queries, k).mean())
        found[f"budget@{k}"] = float(hit_rate(rank.budget_G, queries, k).mean())
        found[f"candidates@{k}"] = size
    return found


# ---------------------------------------------------------------- what an item is represented by


@torch.no_grad()
def representations(tokenizer: Any, content_ND: np.ndarray, sids: SidTable) -> dict[str, Tensor]:
    """Name -> [N, D']: the content, and what a tokenizer makes of it: its input where that is more, its latent, the
    sum of an item's code vectors, and their reconstruction at the item's length.
    """
    found = {"raw": torch.cat(list(in_pieces(content_ND)))}
    if tokenizer is None:
        return found
    if getattr(tokenizer, "side", None) is not None:
        found["joined"] = torch.cat(list(in_pieces(tokenizer.seen(content_ND))))
    code_NT = sids.code_NT.long()
    for name in ("latent", "quantized"):
        if hasattr(tokenizer, name):
            found[name] = getattr(tokenizer, name)(content_ND if name == "latent" else code_NT).cpu()
    whole_NTD = tokenizer.decode(code_NT.clamp(min=0))
    found["decoded"] = whole_NTD[torch.arange(len(code_NT)), sids.length_N - 1].cpu()
    return found


# ---------------------------------------------------------------- as a table


def text(figures: Figures, hits: dict[str, Figures], ks: Sequence[int] = KS) -> str:
    """Figures with levels side by side, then a row a representation and form of hit rate."""
    rows: dict[str, list[str]] = {}
    for name, value in figures.items():
        key, _, level = name.partition("/")
        whole = float(value).is_integer() and key.startswith(("codes", "items", "sids", "max_group"))
        number = f"{value:.0f}" if whole else f"{value:.4f}"
        rows.setdefault(key if level.startswith("level_") else name, []).append(number)
    lines = [f"{key:26}{'  '.join(f'{v:>8}' for v in values)}" for key, values in rows.items()]
    if hits:
        lines += ["", f"{'embedding hit rate at':26}{'  '.join(f'{k:>8}' for k in ks)}"]
    for name, found in hits.items():
        for form, digits in (("hit", 4), ("budget", 4), ("candidates", 1)):
            cells = "  ".join(f"{found[f'{form}@{k}']:>8.{digits}f}" for k in ks)
            lines.append(f"{name + ', ' + {'hit': 'per item'}.get(form, form):26}{cells}")
    return "\n".join(lines)
