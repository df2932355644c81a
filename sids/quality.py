"""What can be measured of semantic IDs before a recommender is trained on them; hit rates: sids/neighbour_recall.py.

The Gini coefficient is FORGE's (arXiv:2509.20904); docs/forge.md says what it predicts. Codes of unlike length have -1
behind their end.

Shape letters: N items, T code places, K codes of a place, D width, G different SIDs or prefixes, P pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sids.neighbour_recall import KS
from sids.pairs import Pairs
from sids.table import SidTable, groups_of, perplexity
from sids.tokenizer import ROWS, Rows, is_held

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
    found: np.ndarray = groups_of(sids.code_NT[:, :places]).numpy()
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


# ---------------------------------------------------------------- what an item is represented by


@torch.no_grad()
def representations(tokenizer: Any, content_ND: np.ndarray, sids: SidTable) -> Iterator[tuple[str, Rows]]:
    """(name, [N, D']) one after the other: the content, and what a tokenizer makes of it: its input where that is more,
    its latent, the sum of an item's code vectors, and their reconstruction at the item's length.
    """
    yield "raw", content_ND
    if tokenizer is None:
        return
    if getattr(tokenizer, "side", None) is not None:
        yield "joined", tokenizer.seen(content_ND)
    for name, pieces in tokenizer.vectors(content_ND, sids.code_NT.long()).items():
        yield name, held(pieces, sids.n_items)
    decoded = (tokenizer.decode(code.long().clamp(min=0))[torch.arange(len(code)), length - 1]
               for code, length in zip(sids.code_NT.split(ROWS), sids.length_N.split(ROWS), strict=True))  # fmt: skip
    yield "decoded", held(decoded, sids.n_items)


def held(pieces: Iterable[Tensor], n: int) -> Rows:
    """[n, D'] of what comes in pieces, float32: in memory, or of a large catalogue in a file that nobody else sees."""
    rows, begin = np.empty(0, np.float32), 0
    for piece in pieces:
        if not begin:
            with nullcontext() if is_held(n, piece.shape[1]) else TemporaryFile() as file:
                shape = (n, piece.shape[1])
                rows = np.memmap(file, np.float32, "w+", 0, shape) if file else np.empty(shape, np.float32)
        rows[begin : begin + len(piece)] = piece.detach().cpu().numpy()
        begin += len(piece)
    return rows


# ---------------------------------------------------------------- as a table


def text(figures: Figures, rates: dict[str, Figures], ks: Sequence[int] = KS) -> str:
    """Figures with levels side by side, then a row a representation and form of hit rate (`hits.hit_figures`)."""
    rows: dict[str, list[str]] = {}
    for name, value in figures.items():
        key, _, level = name.partition("/")
        whole = float(value).is_integer() and key.startswith(("codes", "items", "sids", "max_group"))
        number = f"{value:.0f}" if whole else f"{value:.4f}"
        rows.setdefault(key if level.startswith("level_") else name, []).append(number)
    lines = [f"{key:26}{'  '.join(f'{v:>8}' for v in values)}" for key, values in rows.items()]
    if rates:
        lines += ["", f"{'embedding hit rate at':26}{'  '.join(f'{k:>8}' for k in ks)}"]
    for name, found in rates.items():
        for form, digits in (("hit", 4), ("budget", 4), ("candidates", 1)):
            cells = "  ".join(f"{found[f'{form}@{k}']:>8.{digits}f}" for k in ks)
            lines.append(f"{name + ', ' + {'hit': 'per item'}.get(form, form):26}{cells}")
    return "\n".join(lines)
