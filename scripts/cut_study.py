"""What the length of a code is worth: residual k-means cut to several mean lengths, with controls.

  python scripts/cut_study.py scientific,ml-100k --data_path=DIR --json FILE.json [--seeds 0,1,2] [--key=value ...]

For each data set, weights (uniform, counts) and seed: the weighted and the uniform error of the fixed codes and of the
cut ones, unique shares, and two controls with the lengths of the cut, permuted over the items and sorted by count. A
tokenizer is made once and found again. The figures go to FILE.json, the table to FILE.md, and two pictures for each
data set and weights: FILE-<set>-<weights>-error.svg, error against tokens, and -popularity.svg, length against
popularity.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np

from compose import build, cli, configure
from readers.dataset import Dataset, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import charts
from runs.table import markdown
from scripts import study
from settings import Config
from sids import cut, lengths
from sids.table import by_count as most_frequent_first
from sids.tokenizer import CodeOptions
from utils import Problem, as_command, log_to

TARGETS = (1.5, 2.0, 2.5, 3.0)
USUAL = {"tokenizer": "rq_kmeans", "method": "two_stage", "num_emb_list": [256] * 4, "kmeans_iters": 40,
         "kmeans_start": "kmeans++"}  # fmt: skip
FIGURES = ("expected_tokens_weighted", "reconstruction_weighted", "reconstruction_uniform", "unique_share", "max_group",
           "spearman_length_count")  # fmt: skip
Control = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # lengths, counts, seed -> lengths
Rows = dict[str, list[dict[str, dict[str, Any]]]]  # set and weights -> of each seed: kind of codes -> figures


def by_count(length_N: np.ndarray, count_N: np.ndarray, _: int) -> np.ndarray:
    """The same lengths, the shortest to the most frequent items."""
    found = np.empty_like(length_N)
    found[most_frequent_first(count_N)] = np.sort(length_N)
    return found


def permuted(length_N: np.ndarray, _: np.ndarray, seed: int) -> np.ndarray:
    """The same lengths, dealt out at random."""
    return np.random.default_rng(seed).permutation(length_N)


CONTROLS: dict[str, Control] = {"permuted": permuted, "by count": by_count}


def figures_of(cfg: Config, data: Dataset) -> dict[str, dict[str, Any]]:
    """Kind of codes -> figures, of one tokenizer."""
    tokenizer = build.tokenizer_of(cfg, data, build.train_tokenizer(cfg, data)).eval()
    count_N, sizes, content_ND = data.popularity[1:], cfg[CodeOptions].num_emb_list, read_embeddings(data)
    code_NT = tokenizer.encode(content_ND).cpu()
    error_NT = cut.prefix_errors(tokenizer, code_NT, content_ND)
    kinds = {f"fixed {t}": np.full(len(code_NT), t) for t in range(1, len(sizes) + 1)}
    for target in TARGETS:
        kinds[f"cut {target}"] = length_N = cut.cut_to(error_NT, count_N, target)
        kinds |= {f"{name} {target}": deal(length_N, count_N, cfg[DataOptions].seed) for name, deal in CONTROLS.items()}
    found = {}
    for name, length_N in kinds.items():
        whole = lengths.figures(cut.shorten(code_NT, length_N), sizes, count_N, error_NT)
        found[name] = {k: whole[k] for k in FIGURES} | {"tenths": lengths.by_tenth(length_N, count_N)}
    return found


def table(rows: Rows) -> str:
    """Means over seeds, spread (largest minus smallest) of the weighted error."""
    lines = []
    for key, each in rows.items():
        for name in each[0]:
            x = {k: [row[name][k] for row in each] for k in FIGURES}
            error = x["reconstruction_weighted"]
            lines.append([
                f"{key}, {len(each)}", name, f"{np.mean(x['expected_tokens_weighted']):.2f}",
                f"{np.mean(error):.3f} ({max(error) - min(error):.3f})", f"{np.mean(x['reconstruction_uniform']):.3f}",
                f"{np.mean(x['unique_share']):.0%}", f"{max(x['max_group']):.0f}",
                f"{np.mean([rho or 0 for rho in x['spearman_length_count']]):+.2f}",
            ])  # fmt: skip
    heads = ["set, weights, seeds", "codes", "tokens", "error weighted (spread)", "uniform", "unique", "largest", "rho"]
    return markdown(heads, lines)


def pictures(rows: Mapping[str, tuple[float, float, Sequence[float]]]) -> dict[str, str]:
    """SVG of kinds of codes, given by (codes of an interaction's item, weighted error, mean length of each tenth of the
    items): the error against the codes, a curve for those whose names differ in their numbers only, and the lengths
    where they differ.
    """
    error: dict[str, list[tuple[float, float]]] = {}
    for name, (codes, lost, _) in rows.items():
        error.setdefault(re.sub(r" ?[\d.]+", "", name), []).append((codes, lost))
    unlike = {name: tenths for name, (*_, tenths) in rows.items() if len(set(tenths)) > 1}
    lengths = {name: list(enumerate(tenths, 1)) for name, tenths in unlike.items()}
    figures = {
        "error": charts.lines("weighted error", {name: sorted(p) for name, p in error.items()},
                              x_label="codes of an interaction's item"),
        "popularity": charts.lines("codes", lengths, x_label="tenth of the items, the rarest first"),
    }  # fmt: skip
    return {name: figure.svg() for name, figure in figures.items() if figure is not None}


def mean_of(each: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, tuple[float, float, list[float]]]:
    """What `pictures` shows: means over seeds, the tenths of the cut alone."""
    keys = (*FIGURES[:2], "tenths")
    means = {name: [np.mean([row[name][k] for row in each], 0) for k in keys] for name in each[0]}
    return {n: (float(c), float(e), t.tolist() if n.startswith("cut") else [0.0]) for n, (c, e, t) in means.items()}


def run(argv: list[str]) -> Rows:
    """The command; returns its figures."""
    given, names, overrides = cli.words_and_options(argv, ["seeds", "json"])
    if len(names) != 1 or not given.get("json", "").endswith(".json"):
        raise Problem("cut_study: needs data sets and a file, as in: scientific --data_path=DIR --json FILE.json")
    seeds = [int(s) for s in cli.seeds_asked(given, overrides, "0")]
    if own := [k for k in ("dataset", "weights", "tokenizer", "method") if k in overrides]:
        raise Problem(f"--{own[0]}: the study sets it itself; drop it")
    log_to(None, main=True)
    rows: Rows = {}
    for dataset in names[0].split(","):
        for weights in ("uniform", "counts"):
            options = overrides | {"dataset": dataset, "weights": weights}
            each = [configure.build(USUAL, options | {"seed": seed}) for seed in seeds]
            data = read_dataset(each[0][DataOptions])
            rows[f"{dataset}, {weights}"] = [figures_of(cfg, data) for cfg in each]
    drawn = {f"{key}, {name}": svg for key, of in rows.items() for name, svg in pictures(mean_of(of)).items()}
    asked = {"options": overrides, "seeds": seeds}
    study.write(Path(given["json"].removesuffix(".json")), asked | {"rows": rows}, table(rows), drawn)
    return rows


if __name__ == "__main__":
    as_command(__doc__, run)
