"""Every row of a data set's table from nothing, with a verdict on each.

  python scripts/reproduce.py scientific --data_path=DIR [--rows two_stage,frqud] [--seeds 2020,2021,2022]
                              [--table FILE] [--protocol both] [--budget small|full] [--config FILE]
                              [--name NAME] [--results DIR] [--key=value ...]

Rows are those of config/tables/rows.yaml, or of --table (scripts/study.py says what a row may hold); when none is
named, all but those that need an option which nobody has set (`latent_loss`). A row's control comes with it. Each run
is kept and found again: the same command goes on where it was stopped. `small` is 20 epochs and one seed, `full` the
preset's epochs and three seeds; --epochs and --early_stop say how long all rows train. --config names a preset to take
in place of config/<data set>.yaml, for rows of SIDs (name them by --rows where config/<data set>_<method>.yaml has
other lists). --protocol both: a second table of the same checkpoints, with seen items masked where the runs leave them
in and the other way round. Ends with results/<data set>/<name>.json and .md, pictures of the rows' test figures and of
their validation against the minutes of training: differences are paired over users and seeds, with Holm's correction,
and figures stand beside the published ones where there are any. The name is that of the preset or table, and the seeds.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import settings
from compose import parts
from metrics import EvalOptions
from runs.table import Table
from scripts import study
from utils import Problem, as_command, keep_freed_memory, make_folder, quoted, read_json

METRICS = ("recall@10", "ndcg@10")
TOLERANCE = 0.05  # of a published figure: within it a row counts as reproduced
BUDGETS: dict[str, dict[str, Any]] = {"small": {"epochs": 20, "eval_step": 5}, "full": {}}
SEEDS = {"small": "2020", "full": "2020,2021,2022"}
OWN = ["rows", "table", "protocol", "budget", "name", "results"]


def against_published(mean: float, published: float) -> dict[str, Any]:
    """Within the tolerance of a published figure?"""
    relative = mean / published - 1
    words = "reproduced" if abs(relative) <= TOLERANCE else "above" if relative > 0 else "below"
    return {"published": published, "relative": relative, "verdict": words}


def add_published(table: Table, published: dict[str, dict[str, float]]) -> None:
    """Put the published figures of a data set beside a table's."""
    for name, row in table.items():
        for metric, figure in published.get(name, {}).items():
            if metric in row:
                row[metric]["published"] = against_published(row[metric]["mean"], figure)


def stem_of(given: dict[str, str], ask: study.Asked, table: Path, budget: str) -> Path:
    """Where a table is written: named for its preset or its file of rows, the budget unless it is full, the seeds."""
    source = ask.preset.stem.removeprefix(f"{ask.dataset}_") if ask.preset else table.stem
    seeds = "-".join(map(str, [ask.seeds[0], *ask.seeds[1:][-1:]]))
    name = given.get("name", "-".join([source, *([] if budget == "full" else [budget]), seeds]))
    if not settings.plain_name(name):
        raise Problem(f"--name: {quoted(name)} is not a plain name; the folder goes to --results")
    return make_folder(Path(given.get("results", ROOT / "results")) / ask.dataset) / name


def check_free(stem: Path, question: str) -> None:
    """Problem when another table lies where this one would be written."""
    path = stem.with_name(f"{stem.name}.json")
    if path.is_file() and read_json(path).get("question") != question:
        raise Problem(f"{path}: holds the table of other rows, options or data; choose another --name, or remove it")


def reproduce(argv: list[str]) -> study.Finished:
    """Run a table and write it; Problem before anything is trained when the command line cannot be followed."""
    budget = next((v for k, v in settings.split_off(argv, OWN)[0].items() if k == "budget"), "full")
    parts.check_known("--budget", budget, BUDGETS)
    given, words, ask = study.asked(argv, OWN, SEEDS[budget])
    if words:
        raise Problem("reproduce: needs one data set, as in: reproduce.py scientific --data_path=DIR")
    parts.check_known("--protocol", given.get("protocol", "one"), {"one": None, "both": None})
    ask = ask._replace(overrides=BUDGETS[budget] | ask.overrides)
    path = Path(given.get("table", study.TABLES / "rows.yaml"))
    wanted = [r for r in given.get("rows", "").split(",") if r]
    jobs = study.plan(study.chosen_arms(study.read_table(path), wanted, ask.overrides), ask, METRICS)
    stem, data = stem_of(given, ask, path, budget), study.data_of(jobs)
    check_free(stem, study.question(jobs, data))
    views = study.both_protocols(jobs[0].cfg) if given.get("protocol") == "both" else [study.TEST]
    found = study.run_all(jobs, ask, data, views)
    tables = found.tables(METRICS)
    for view in views:
        masked = jobs[0].cfg[EvalOptions].mask_seen if view.mask_seen is None else view.mask_seen
        known = settings.read_yaml(study.TABLES / "published.yaml")
        add_published(tables[view.name], known.get(ask.dataset + ", seen items masked" * masked, {}))
    card, metric = found.card(study.as_typed("reproduce", argv)), jobs[0].cfg[EvalOptions].valid_metric
    text = "\n\n".join([found.text(tables, METRICS, "ndcg@10"), "\n".join(f"- {k}: {v}" for k, v in card.items())])
    pictures = found.intervals(tables, "ndcg@10") | {"validation": found.learning_curves(metric)}
    study.write(stem, found.plain(tables, card=card), text, pictures)
    return found


if __name__ == "__main__":
    keep_freed_memory()
    rows = ", ".join(study.read_table(study.TABLES / "rows.yaml"))
    as_command(f"{__doc__}\nrows: {rows}", lambda argv: reproduce(argv).fail_if_any())
