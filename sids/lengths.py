"""What SIDs cost and what they tell: tokens an event, reconstruction, collisions, who gets a short code.

Every figure is by hard codes. *Weighted* is over interactions of the training part, an item counting as often as
it occurs there; *uniform* over items.

Shape letters: N items, T code positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sids.cut import count_weights
from sids.quality import load_figures
from sids.table import SidTable, by_count, perplexity
from utils import log

HEAD = 0.1  # share of the items that count as popular
Figures = dict[str, Any]


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Spearman's rho; None where one of them is the same for all."""
    from scipy.stats import spearmanr  # slow to import, and only this needs it

    if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    return float(spearmanr(x_N, y_N).statistic)


def is_head(count_N: np.ndarray) -> np.ndarray:
    """Which items are among the most frequent tenth, at least one, [N] bool."""
    head_N = np.zeros(len(count_N), bool)
    head_N[by_count(count_N)[: max(1, round(HEAD * len(count_N)))]] = True
    return head_N


def prefix_share(code_NT: np.ndarray) -> float:
    """Share of the items whose code is the beginning of another item's."""
    code_MT, size_M = np.unique(code_NT, axis=0, return_counts=True)
    longer = {tuple(code[:t]) for code in code_MT.tolist() for t in range(1, sum(c >= 0 for c in code))}
    begins = np.array([tuple(c for c in code if c >= 0) in longer for code in code_MT.tolist()])
    return float(size_M[begins].sum() / len(code_NT))


def usage(code_NT: Tensor, sizes: Sequence[int]) -> Figures:
    """Perplexity and share of used codes: the mean over used positions, and of all codes in one histogram."""
    at = [perplexity(code_N[code_N >= 0], k) for code_N, k in zip(code_NT.long().unbind(1), sizes, strict=True)]
    live = [(used / k, spread) for (used, spread), k in zip(at, sizes, strict=True) if used]
    used, spread = perplexity(code_NT[code_NT >= 0].long(), max(sizes))
    return {
        "perplexity_macro": float(np.mean([p for _, p in live])), "perplexity_micro": spread,
        "usage_macro": float(np.mean([u for u, _ in live])), "usage_micro": used / max(sizes),
    }  # fmt: skip


def popularity(length_N: np.ndarray, count_N: np.ndarray) -> Figures:
    """How long the codes are, and of which items."""
    head_N, by_length = is_head(count_N), {}
    for length in np.unique(length_N):
        c = count_N[length_N == length]
        by_length[str(length)] = {
            "items": len(c), "mean": float(c.mean()), "median": float(np.median(c)),
            "std": float(c.std(ddof=1)) if len(c) > 1 else 0.0, "min": float(c.min()), "max": float(c.max()),
        }  # fmt: skip
    share = np.bincount(length_N)[1:] / len(length_N)
    return {
        "length_histogram": np.bincount(length_N)[1:].tolist(),
        "length_entropy": float(-(share[share > 0] * np.log(share[share > 0])).sum()),
        "length_head": float(length_N[head_N].mean()),
        "length_tail": float(length_N[~head_N].mean()) if not head_N.all() else None,
        "popularity_by_length": by_length,
    }


def by_tenth(length_N: np.ndarray, count_N: np.ndarray) -> list[float]:
    """Mean length for each tenth of the items, the rarest first."""
    return [float(length_N[rows].mean()) for rows in np.array_split(np.argsort(count_N, kind="stable"), 10)]


def price(length_N: np.ndarray, count_N: np.ndarray) -> dict[str, float]:
    """Codes an item, and with the dedup token; Spearman's rho of length and count, 0 where either is constant."""
    weighted, rho = float(count_weights(count_N) @ length_N), spearman(length_N, count_N)
    return {
        "expected_tokens_weighted": weighted, "expected_tokens_uniform": float(length_N.mean()),
        "tokens_per_event": weighted + 1, "spearman_length_count": 0.0 if rho is None else rho,
    }  # fmt: skip


def figures(code_NT: Tensor, sizes: Sequence[int], count_N: np.ndarray, error_NT: np.ndarray | None = None) -> Figures:
    """All figures of a table of codes (-1 after an item's end).

    count_N: training counts; error_NT: squared error of unit vectors after 1 ... T tokens of every item, whatever its
    length, where reconstruction is known.
    """
    code_NT, count_N = code_NT.cpu(), np.asarray(count_N, np.float64)
    length_N, share_N = (code_NT >= 0).sum(1).numpy(), count_weights(count_N)
    found: Figures = price(length_N, count_N) | {"total_tokens": int(length_N.sum())}
    if error_NT is not None:
        own_N = error_NT[np.arange(len(length_N)), length_N - 1]
        head_N = is_head(count_N)
        found |= {
            "reconstruction_weighted": float(share_N @ own_N),
            "reconstruction_uniform": float(own_N.mean()),
            "reconstruction_head": float(own_N[head_N].mean()),
            "reconstruction_tail": float(own_N[~head_N].mean()) if not head_N.all() else None,
            "prefix_weighted": (share_N @ error_NT).tolist(),
            "prefix_uniform": error_NT.mean(0).tolist(),
        }
    found |= load_figures(SidTable(code_NT, None, tuple(sizes)))
    found |= {"unique_share": 1 - found["collision_rate"], "prefix_share": prefix_share(code_NT.numpy())}
    return found | usage(code_NT, sizes) | popularity(length_N, count_N)


def log_table(found: Figures) -> None:
    """The figures as a table."""
    rho = found["spearman_length_count"]
    rows = [
        ("tokens an item", f"{found['expected_tokens_weighted']:.3f} weighted, "
         f"{found['expected_tokens_uniform']:.3f} uniform; and one for its end"),
        ("unique codes", f"{found['unique_share']:.1%}, largest group {found['max_group']:.0f}, "
         f"{found['colliding_item_share']:.1%} of the items share theirs, "
         f"{found['prefix_share']:.1%} begin another one"),
        ("perplexity", " ".join(f"{p:.1f}" for key, p in found.items() if key.startswith("perplexity/"))),
        ("length and count", f"Spearman's rho {rho:.3f}, "
         f"mean length {found['length_head']:.2f} of the {HEAD:.0%} most frequent, "
         + (f"{found['length_tail']:.2f} of the others" if found["length_tail"] is not None else "no others")),
    ]  # fmt: skip
    if "reconstruction_weighted" in found:
        prefixes = " ".join(f"{d:.4f}" for d in found["prefix_weighted"])
        rows.insert(1, ("error", f"{found['reconstruction_weighted']:.4f} weighted, "
                        f"{found['reconstruction_uniform']:.4f} uniform; every item after 1, 2 ... tokens, weighted: "
                        + prefixes))  # fmt: skip
    for name, text in rows:
        log.info(f"SIDs: {name:<17}{text}")
    log.info(f"SIDs: {'length':<17}{'items':>8}{'mean count':>12}{'median':>9}{'max':>7}")
    for length, row in found["popularity_by_length"].items():
        log.info(f"SIDs: {length:<17}{row['items']:>8}{row['mean']:>12.1f}{row['median']:>9.1f}{row['max']:>7.0f}")
