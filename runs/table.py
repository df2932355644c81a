"""Tables of several systems on the same users: rows of ranks by seed, their differences with verdicts, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from metrics import half_interval, is_per_user, paired_difference, per_user
from runs.paired import holm, two_way

CERTAIN = 0.05  # p below which a difference is called one
NOTE = """A mean ± half of its 95 % interval over users. A difference ± half of its 95 % interval over users and seeds,
its p, and p after Holm's correction over all differences of the table. Epochs trained, and in brackets the best one on
validation (from 0), of each seed: where the best is the last, longer training might help."""

Table = dict[str, dict[str, Any]]  # row -> what `judged` says of it


@dataclass(frozen=True)
class Row:
    """A system's ranks of the targets by seed, [users] each; of what is not trained, and has no seed, under None."""

    name: str
    ranks: dict[int | None, np.ndarray] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)  # of each seed, for metrics that no user has alone

    def of_seed(self, metric: str, seed: int | None) -> Tensor:
        """A metric of each user, [users]."""
        return per_user(metric, torch.from_numpy(self.ranks[seed]))

    def summary(self, metric: str) -> dict[str, Any]:
        """Mean, half of the 95 % interval over users, whose seeds are averaged, and the mean of each seed."""
        if not is_per_user(metric):
            return {"mean": float(np.mean([f[metric] for f in self.figures]))}
        x_US = torch.stack([self.of_seed(metric, seed) for seed in self.ranks], 1)
        return {"mean": float(x_US.mean()), "interval": half_interval(x_US.mean(1)), "seeds": x_US.mean(0).tolist()}


# ---------------------------------------------------------------- how rows differ


def against(ours: Row, other: Row, metric: str) -> dict[str, Any] | None:
    """How far a row is above another, over the seeds that both have; None where there are none.

    interval: half of the 95 % interval over users and seeds, with its p and df (runs/paired.py); z_over_users: of each
    user's mean over seeds; seeds, p_by_seed: difference and p (over users, two-sided) of each seed alone.
    """
    pairs = [(s, s) for s in ours.ranks if s in other.ranks]
    if None in ours.ranks or None in other.ranks:
        pairs = [(s, o) for s in ours.ranks for o in other.ranks]
    if not pairs:
        return None
    a_US = torch.stack([ours.of_seed(metric, s) for s, _ in pairs], 1)
    b_US = torch.stack([other.of_seed(metric, o) for _, o in pairs], 1)
    found, base = two_way((a_US - b_US).numpy()), float(b_US.mean())
    each = [paired_difference(a, b) for a, b in zip(a_US.T, b_US.T, strict=True)]
    return {
        **found._asdict(),
        "relative": found.difference / base if base else None,
        "z_over_users": paired_difference(a_US.mean(1), b_US.mean(1))[1],
        "seeds": [d for d, _ in each],
        "p_by_seed": [float(2 * stats.norm.sf(abs(z))) for _, z in each],
    }


def verdict(found: Mapping[str, Any]) -> str:
    """A difference in words, by its p after Holm's correction."""
    word = "above" if found["difference"] > 0 else "below"
    if found["p_holm"] < CERTAIN:
        return word + (", one seed" if len(found["seeds"]) == 1 else "")
    if found["p"] < CERTAIN:
        return f"{word} before Holm's correction only"
    if 2 * stats.norm.sf(abs(found["z_over_users"])) < CERTAIN:
        return f"{word} for these users, not over seeds"
    return "no difference shown"


def judged(rows: Mapping[str, Row], compared: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> Table:
    """Row -> seeds, users and of each metric its summary, with `against`: the differences from the rows that it is
    compared with, as far as they are there. Holm's correction is over all differences of one metric.
    """
    there = {name: row for name, row in rows.items() if row.ranks}
    table: Table = {
        name: {"seeds": len(row.ranks), "users": len(next(iter(row.ranks.values())))}
        | {metric: row.summary(metric) for metric in metrics}
        for name, row in there.items()
    }
    for metric in filter(is_per_user, metrics):
        every: list[dict[str, Any]] = []
        for name, row in there.items():
            others = [o for o in compared.get(name, ()) if o in there and o != name]
            found = {o: x for o in others if (x := against(row, there[o], metric)) is not None}
            table[name][metric] |= {"against": found} if found else {}
            every += found.values()
        for x, p in zip(every, holm([x["p"] for x in every]), strict=True):
            x["p_holm"] = p
            x["verdict"] = verdict(x)
    return table


# ---------------------------------------------------------------- as people read it


def told_apart(names: Sequence[str], *more: Sequence[str]) -> list[str]:
    """Names of rows; behind equal ones the first of `more` that tells them apart, else their number."""
    found = list(names)
    for name in {n for n in names if list(names).count(n) > 1}:
        rows = [i for i, n in enumerate(names) if n == name]
        number = [str(i) for i in range(1, len(names) + 1)]
        by = next((m for m in (*more, number) if len({m[i] for i in rows}) == len(rows)), number)
        for i in rows:
            found[i] = f"{name}, {by[i]}"
    return found


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned, for terminals."""
    cells = [list(heads), *map(list, lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def figures_table(table: Table, metrics: Sequence[str], labels: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """Every row of `labels`; one that has no figures has its note alone."""
    shown = [m for m in metrics if any("published" in row[m] for row in table.values())]
    lines = []
    for name, label in labels.items():
        row = table.get(name)
        cells = ["0", *([""] * len(metrics))] if row is None else [str(row["seeds"]), *(_mean(row[m]) for m in metrics)]
        marks = ["" if row is None or "published" not in row[m] else _published(row[m]["published"]) for m in shown]
        lines.append([label, *cells, notes.get(name, ""), *marks])
    return markdown(["row", "seeds", *metrics, "epochs (best)", *(f"published {m}" for m in shown)], lines)


def _mean(x: Mapping[str, Any]) -> str:
    return f"{x['mean']:.4f}" + (f" ± {x['interval']:.4f}" if "interval" in x else "")


def _published(x: Mapping[str, Any]) -> str:
    return f"{x['published']:.4f} ({x['relative']:+.0%}): {x['verdict']}"


def differences_table(table: Table, metric: str, labels: Mapping[str, str]) -> str:
    """A line a difference; "" where nothing is compared."""
    lines = [
        [labels[name], labels[other], f"{x['difference']:+.4f} ± {x['interval']:.4f}",
         "" if x["relative"] is None else f"{x['relative']:+.1%}", _p(x["p"]), _p(x["p_holm"]),
         f"{x['z_over_users']:+.1f}", " ".join(f"{d:+.4f}" for d in x["seeds"]), x["verdict"]]
        for name, row in table.items() for other, x in row[metric].get("against", {}).items()
    ]  # fmt: skip
    heads = ["row", "against", f"difference of {metric}", "relative", "p", "p (Holm)", "z over users", "each seed"]
    return markdown([*heads, "verdict"], lines) if lines else ""


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
