"""What the length of a code is worth: residual k-means cut to several mean lengths, with controls.

  python scripts/cut_study.py scientific,ml-100k --data_path=DIR --json FILE [--seeds 0,1,2] [--key=value ...]

For each data set, weights (uniform, counts) and seed: the weighted and the uniform error of the fixed codes and of the
cut ones, unique shares, and two controls with the lengths of the cut, permuted over the items and sorted by count. A
line a run is added to FILE; what it has already is not run again. The table is that of all its lines.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import main
import methods
from readers.layouts import read_dataset
from readers.splits import DataOptions
from sids import cut, lengths
from sids.rq_kmeans import RQKMeans
from sids.table import by_count as most_frequent_first
from sids.tokenizer import Source
from utils import Problem, problems_exit_2, seeds_of, write_text

TARGETS = (1.5, 2.0, 2.5, 3.0)
USUAL = {"tokenizer": "rq_kmeans", "method": "two_stage", "num_emb_list": [256] * 4, "kmeans_iters": 40,
         "kmeans_start": "kmeans++"}  # fmt: skip


def study(dataset: str, weights: str, seed: int, given: dict[str, Any]) -> dict[str, Any]:
    """Figures of one fit."""
    cfg = methods.build(USUAL, given | {"dataset": dataset, "weights": weights, "seed": seed})
    source = Source.of(read_dataset(cfg[DataOptions]))
    model: Any = RQKMeans(cfg[RQKMeans.Options], source.content_ND.shape[1])
    begin = time.perf_counter()
    model.fit(source, seed)
    row: dict[str, Any] = {"dataset": dataset, "weights": weights, "seed": seed, "options": given,
                           "seconds": time.perf_counter() - begin}  # fmt: skip
    code_NT = model.encode(source.content_ND)
    error_NT, sizes = cut.prefix_errors(model, code_NT, source.content_ND), cfg[RQKMeans.Options].num_emb_list
    whole = np.ones(len(code_NT), np.int64)
    for t in range(1, len(sizes) + 1):
        row[f"fixed {t}"] = measured(code_NT, whole * t, error_NT, sizes, source)
    for target in TARGETS:
        length_N = cut.cut_to(error_NT, source.count_N, target)
        by_count = np.empty_like(length_N)
        by_count[most_frequent_first(source.count_N)] = np.sort(length_N)
        permuted = np.random.default_rng(seed).permutation(length_N)
        for name, lengths_N in (("cut", length_N), ("permuted", permuted), ("by count", by_count)):
            row[f"{name} {target}"] = measured(code_NT, lengths_N, error_NT, sizes, source)
    return row


def measured(code_NT: Any, length_N: np.ndarray, error_NT: np.ndarray, sizes: list[int], source: Source) -> Any:
    found = lengths.figures(cut.shorten(code_NT, length_N), sizes, source.count_N, error_NT)
    names = ("expected_tokens_weighted", "reconstruction_weighted", "reconstruction_uniform", "unique_share",
             "max_group", "spearman_length_count")  # fmt: skip
    return {name: found[name] for name in names}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, spread (largest minus smallest) of the weighted error."""
    lines = ["| set, weights, seeds | codes | tokens | error weighted (spread) | uniform | unique | largest | rho |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for key in dict.fromkeys((r["dataset"], r["weights"]) for r in rows):
        own = [r for r in rows if (r["dataset"], r["weights"]) == key]
        for name in (k for k, v in own[0].items() if isinstance(v, dict) and k != "options"):
            several = {k: [r[name][k] for r in own] for k in own[0][name]}
            error = several["reconstruction_weighted"]
            lines.append(
                f"| {key[0]}, {key[1]}, {len(own)} | {name} | {np.mean(several['expected_tokens_weighted']):.2f} | "
                f"{np.mean(error):.3f} ({max(error) - min(error):.3f}) | "
                f"{np.mean(several['reconstruction_uniform']):.3f} | {np.mean(several['unique_share']):.0%} | "
                f"{max(several['max_group'])} | {np.mean([x or 0 for x in several['spearman_length_count']]):+.2f} |"
            )
    return "\n".join(lines)


def run(argv: list[str]) -> None:
    given, words = main.split_off(argv, ["seeds", "json"])
    names = [w for w in words if not w.startswith("-")]
    overrides = methods.parse_overrides([w for w in words if w.startswith("-")])
    if len(names) != 1 or "json" not in given:
        raise Problem("cut_study: needs data sets and a file, as in: scientific,ml-100k --data_path=DIR --json FILE")
    path = Path(given["json"])
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(r["dataset"], r["weights"], r["seed"], json.dumps(r["options"])) for r in rows}
    for dataset in names[0].split(","):
        for weights in ("uniform", "counts"):
            for seed in map(int, seeds_of(given.get("seeds", "0"))):
                if (dataset, weights, seed, json.dumps(overrides)) not in done:
                    rows.append(study(dataset, weights, seed, overrides))
                    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))
    print(table([r for r in rows if r["options"] == overrides]))


if __name__ == "__main__":
    with problems_exit_2():
        run(sys.argv[1:])
