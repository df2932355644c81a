"""What the length of a code is worth: residual k-means cut to several mean lengths, with controls.

  python scripts/cut_study.py scientific,ml-100k --data_path=DIR --json FILE [--seeds 0,1,2] [--key=value ...]

For each data set, weights (uniform, counts) and seed: the weighted and the uniform error of the fixed codes and of the
cut ones, unique shares, and two controls with the lengths of the cut, permuted over the items and sorted by count. A
line a run is added to FILE; what it has already of the same data and options is not run again. The table is that of
all such lines, and so are two pictures for each data set and weights: FILE-<set>-<weights>-error.svg, error against
tokens, and -popularity.svg, length against popularity (with options, their digest stands in the name).
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from compose import cli, configure
from readers.dataset import Dataset
from readers.files import json_lines
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import charts
from settings import Config
from sids import cut, lengths
from sids.rq_kmeans import RQKMeans
from sids.table import by_count as most_frequent_first
from sids.tokenizer import Source
from utils import Problem, as_command, digest, write_text

TARGETS = (1.5, 2.0, 2.5, 3.0)
USUAL = {"tokenizer": "rq_kmeans", "method": "two_stage", "num_emb_list": [256] * 4, "kmeans_iters": 40,
         "kmeans_start": "kmeans++"}  # fmt: skip


def by_count(length_N: np.ndarray, count_N: np.ndarray, _: int) -> np.ndarray:
    """The same lengths, the shortest to the most frequent items."""
    found = np.empty_like(length_N)
    found[most_frequent_first(count_N)] = np.sort(length_N)
    return found


def permuted(length_N: np.ndarray, _: np.ndarray, seed: int) -> np.ndarray:
    """The same lengths, dealt out at random."""
    return np.random.default_rng(seed).permutation(length_N)


CONTROLS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {"permuted": permuted, "by count": by_count}


def recipe(dataset: str, weights: str, seed: int, given: dict[str, Any]) -> Config:
    return configure.build(USUAL, given | {"dataset": dataset, "weights": weights, "seed": seed})


def study(cfg: Config, data: Dataset) -> dict[str, Any]:
    """Figures of one fit."""
    source, seed = Source.of(data), cfg[DataOptions].seed
    model: Any = RQKMeans(cfg[RQKMeans.Options], source.content_ND.shape[1])
    begin = time.perf_counter()
    model.fit(source, seed)
    row: dict[str, Any] = {"seconds": time.perf_counter() - begin}
    code_NT = model.encode(source.content_ND)
    error_NT, sizes = cut.prefix_errors(model, code_NT, source.content_ND), cfg[RQKMeans.Options].num_emb_list
    whole = np.ones(len(code_NT), np.int64)
    for t in range(1, len(sizes) + 1):
        row[f"fixed {t}"] = measured(code_NT, whole * t, error_NT, sizes, source)
    for target in TARGETS:
        length_N = cut.cut_to(error_NT, source.count_N, target)
        dealt = {name: control(length_N, source.count_N, seed) for name, control in CONTROLS.items()}
        for name, own_N in {"cut": length_N, **dealt}.items():
            row[f"{name} {target}"] = measured(code_NT, own_N, error_NT, sizes, source)
    return row


def measured(code_NT: Any, length_N: np.ndarray, error_NT: np.ndarray, sizes: list[int], source: Source) -> Any:
    found = lengths.figures(cut.shorten(code_NT, length_N), sizes, source.count_N, error_NT)
    names = ("expected_tokens_weighted", "reconstruction_weighted", "reconstruction_uniform", "unique_share",
             "max_group", "spearman_length_count")  # fmt: skip
    return {name: found[name] for name in names} | {"tenths": lengths.by_tenth(length_N, source.count_N)}


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


def pictures(rows: list[dict[str, Any]]) -> dict[str, str]:
    """SVG of the means over seeds: of each kind of codes the error at its tokens, of each cut the tenths' lengths."""
    figures = ("expected_tokens_weighted", "reconstruction_weighted", "tenths")
    names = [name for name, v in rows[0].items() if isinstance(v, dict) and "tenths" in v]
    mean = {name: {k: np.mean([r[name][k] for r in rows], 0) for k in figures} for name in names}
    error: dict[str, list[tuple[float, float]]] = {}
    for name, m in mean.items():
        at = (float(m["expected_tokens_weighted"]), float(m["reconstruction_weighted"]))
        error.setdefault(name.rpartition(" ")[0], []).append(at)
    tenths = {name: list(enumerate(m["tenths"].tolist(), 1)) for name, m in mean.items() if name.startswith("cut")}
    return {
        "error": charts.curves({k: sorted(p) for k, p in error.items()}, x_label="codes of an interaction's item",
                               y_label="weighted error"),
        "popularity": charts.curves(tenths, x_label="tenth of the items, the rarest first", y_label="codes"),
    }  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What a file of rows holds, if it is there; Problem names a line that is none."""
    found = list(json_lines(path)) if path.exists() else []
    if wrong := [number for number, row in found if not isinstance(row, dict)]:
        raise Problem(f"{path}, line {wrong[0]}: not a row of this study; name another --json")
    return [row for _, row in found]


def run(argv: list[str]) -> None:
    """The command; what the file of rows holds already is not computed again."""
    given, names, overrides = cli.words_and_options(argv, ["seeds", "json"])
    if len(names) != 1 or "json" not in given:
        raise Problem("cut_study: needs data sets and a file, as in: scientific,ml-100k --data_path=DIR --json FILE")
    seeds = [int(s) for s in cli.seeds_asked(given, overrides, "0")]
    if own := [k for k in ("dataset", "weights", "tokenizer", "method") if k in overrides]:
        raise Problem(f"--{own[0]}: the study sets it itself; drop it")
    path, options = Path(given["json"]), {k: v for k, v in overrides.items() if k != "data_path"}
    rows, stamps = read_rows(path), []
    for dataset in names[0].split(","):
        data = read_dataset(recipe(dataset, "counts", 0, overrides)[DataOptions])
        stamps.append(stamp := {"dataset": dataset, "data": data.hash, "options": options})
        for weights in ("uniform", "counts"):
            for seed in seeds:
                asked = stamp | {"weights": weights, "seed": seed}
                if not any(asked.items() <= r.items() for r in rows):
                    rows.append(asked | study(recipe(dataset, weights, seed, overrides), data))
                    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))
    told = [r for r in rows if any(stamp.items() <= r.items() for stamp in stamps)]
    print(table(told))
    stem = path.stem + (f"-{digest(options)}" if options else "")
    for key in dict.fromkeys((r["dataset"], r["weights"]) for r in told):
        for name, drawn in pictures([r for r in told if (r["dataset"], r["weights"]) == key]).items():
            write_text(path.with_name(f"{stem}-{'-'.join(key)}-{name}.svg"), drawn)


if __name__ == "__main__":
    as_command(__doc__, run)
