"""Whom one run serves better than another: users in groups, with paired differences.

  python scripts/who_wins.py myckpt/scientific/RUN myckpt/scientific/BASE [--split valid|test] [--metric ndcg@10]
                              [--data_path DIR] [--json FILE]

Groups: how often the target occurs in the training part, how long the history is, whether the target followed the
history's last item in the training part. Nothing is trained or searched: the ranks that finished runs keep are read.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np
import torch

import settings
from compose import configure, parts
from metrics import is_per_user, paired_difference, per_user
from readers.dataset import Dataset
from readers.layouts import read_dataset
from readers.splits import DataOptions, Split
from runs.folder import RunFolder
from runs.report import check_protocol, read_ranks
from runs.table import markdown
from utils import Problem, as_command, printable, quoted, write_json

Groups = dict[str, np.ndarray]  # name -> which users [B]


def follows(train: Split, n_items: int) -> np.ndarray:
    """The training part's steps from an item to the next one, as sorted distinct keys before * (N + 1) + after."""
    inner = np.ones(len(train.items), bool)
    inner[train.offsets[:-1][train.offsets[:-1] < len(inner)]] = False
    after = inner.nonzero()[0]
    return np.unique(train.items[after - 1].astype(np.int64) * (n_items + 1) + train.items[after])


def ranges(name: str, values: np.ndarray, edges: list[int]) -> Groups:
    """Users by where a whole number lies: below the first edge, ..., from the last one on."""
    found = {}
    for low, high in zip([0, *edges], [*edges, None], strict=True):
        words = f"{low} or more" if high is None else f"{low}" if high == low + 1 else f"{low} to {high - 1}"
        found[f"{name} {words}"] = (values >= low) & (True if high is None else values < high)
    return found


def groups(data: Dataset, split: Split, longest: int) -> Groups:
    """All groups of a split's users."""
    last, target = split.items[split.position - 1], split.targets
    step = last.astype(np.int64) * (data.n_items + 1) + target
    known = np.isin(step, follows(data.train.alone(), data.n_items))
    return {
        "all": np.ones(len(split), bool),
        **ranges("target occurs", data.popularity[target], [1, 5, 20]),
        **ranges("history of", split.lengths(longest), [3, 6, 11]),
        "target followed the last item": known,
        "target never followed it": ~known,
    }


def read(path: str, split: str, metric: str) -> tuple[RunFolder, np.ndarray]:
    """A finished run and its ranks [2, users]."""
    run = RunFolder(Path(path))
    if not run.finished:
        raise Problem(f"{path}: no finished run; name a folder that holds test.json")
    return run, read_ranks(run, [metric], split)


def compared(paths: list[str], split: str, metric: str, data_path: str | None = None) -> dict[str, dict[str, Any]]:
    """Group -> users, the metric of both runs, difference and its z; Problem when the runs are of other data or
    another protocol.
    """
    (ours, rank), (base, other) = (read(path, split, metric) for path in paths)
    options = {str(run.path): settings.read_yaml(run.config) for run in (ours, base)}
    check_protocol(options, leave=("data_path", "metrics"))  # the data's hash and the lists' length are looked at
    cfg = configure.build(options[str(ours.path)])
    data = read_dataset((configure.change(cfg, data_path=data_path) if data_path else cfg)[DataOptions])
    for run, found in ((ours, rank), (base, other)):
        part = data.split(split)
        if run.results().get("data") != data.hash or not np.array_equal(found[0], part.users()):
            raise Problem(f"{run.path}: was made on other data than {data.name!r} as it is now; name its --data_path")
    theirs, mine = (per_user(metric, torch.from_numpy(found[1])) for found in (other, rank))
    table = {}
    for name, chosen in groups(data, part, cfg[DataOptions].max_his_len).items():
        a, b = mine[chosen], theirs[chosen]
        if len(a):
            difference, z = paired_difference(a, b)
            table[name] = {"users": len(a), "run": float(a.mean()), "base": float(b.mean()),
                           "difference": difference, "z": z}  # fmt: skip
    return table


def run(argv: list[str]) -> dict[str, dict[str, Any]]:
    """The command; prints the table and returns it."""
    paths, given, _ = settings.command(argv, {}, ["split", "metric", "json", "data_path"])
    if len(paths) != 2:
        raise Problem("who_wins: name the folders of two finished runs, the one in question first")
    split, metric = given.get("split", "test"), given.get("metric", "ndcg@10")
    parts.check_known("--split", split, {"valid": None, "test": None})
    if not is_per_user(metric):
        raise Problem(f"--metric: {quoted(metric)} is not a metric of each user, like ndcg@10 or recall@10")
    table = compared(paths, split, metric, given.get("data_path"))
    told = [f"{RunFolder(Path(path)).results().get('method')} ({path})" for path in paths]
    print(f"{metric}, {split}: run {printable(told[0])}, base {printable(told[1])}\n")
    lines = [[name, str(row["users"]), f"{row['run']:.4f}", f"{row['base']:.4f}", f"{row['difference']:+.4f}",
              f"{row['z']:+.1f}"] for name, row in table.items()]  # fmt: skip
    print(markdown(["group", "users", "run", "base", "difference", "z"], lines))
    if "json" in given:
        write_json(Path(given["json"]), table)
    return table


if __name__ == "__main__":
    as_command(__doc__, run)
