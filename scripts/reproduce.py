"""Every row of a data set's table from nothing, with a verdict on each.

  python scripts/reproduce.py scientific --data_path=DIR [--rows two_stage,frqud] [--seeds 2020,2021,2022]
                              [--budget small|full] [--config FILE] [--results DIR] [--key=value ...]

Rows are those of config/tables/rows.yaml; when none is named, all but those that need an option of a preset
(`latent_loss`). A row's frozen twin comes with it. Each run is kept and found again: the same command goes on where it
was stopped. `small` is 20 epochs and one seed, `full` the preset's epochs and three. --config names a preset to take in
place of config/<data set>.yaml, for rows of SIDs (name them by --rows where config/<data set>_<method>.yaml has other
lists). Ends with results/<data set>/<digest of the question>.{json,md,svg}: test figures (looked at once a run), paired
differences from the twin and from further rows over users and over seeds, published figures where there are.
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from scipy import stats
from tqdm import tqdm

import settings
from compose import build, cli, configure, parts
from metrics import cutoff, paired_difference
from readers.dataset import Dataset
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import charts
from runs.report import check_protocol, read_ranks
from scripts import compare
from scripts.compare import Row
from scripts.make_demo import build_demo
from settings import Config
from utils import (
    Problem,
    digest,
    environment,
    keep_freed_memory,
    log,
    log_to,
    make_folder,
    problems_exit_2,
    write_json,
    write_text,
)

METRICS = ("recall@10", "ndcg@10")
TOLERANCE = 0.05  # of a published figure: within it a row counts as reproduced
CERTAIN = 1.96  # z beyond which a difference over users is called one
BUDGETS: dict[str, dict[str, Any]] = {"small": {"epochs": 20, "eval_step": 5}, "full": {}}
SEEDS = {"small": "2020", "full": "2020,2021,2022"}


# ---------------------------------------------------------------- what is to be run


@dataclass(frozen=True)
class Spec:
    """A row as the file of rows describes it."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None  # the option that the preset must have
    twin: str | None = None
    beside: list[str] = field(default_factory=list)  # further rows to compare with, where the table has them
    vectors_of: str | None = None  # the row whose item vectors stand beside the content (behaviour: vectors)
    sids_of: str | None = None  # the row on whose semantic IDs, as it left them, a fresh recommender is trained


def read_rows(wanted: list[str]) -> dict[str, Spec]:
    """The rows that were asked for and their twins, in the file's order; when none is named, all that need no option of
    a preset.
    """
    path = ROOT / "config" / "tables" / "rows.yaml"
    try:
        known = {name: Spec(**row) for name, row in settings.read_yaml(path).items()}
    except TypeError as e:
        raise Problem(f"{path}: a row has {', '.join(f.name for f in fields(Spec))} only ({e})") from None
    for name in wanted:
        parts.check_known("--rows", name, known)
    chosen = set(wanted or [n for n, spec in known.items() if not (spec.needs or known[spec.sids_of or n].needs)])
    for name in reversed(known):  # a row stands behind those that it needs
        if name in chosen:
            spec = known[name]
            chosen |= {other for other in (spec.twin, spec.vectors_of, spec.sids_of) if other is not None}
    return {name: spec for name, spec in known.items() if name in chosen}


@dataclass(frozen=True)
class Job:
    """One training: a row and a seed."""

    row: str
    spec: Spec
    cfg: Config
    source: Config | None = None  # of the run with the same seed that the row takes item vectors or SIDs from

    @property
    def trains(self) -> bool:
        return self.spec.method not in parts.BASELINES


def plan(
    rows: dict[str, Spec], dataset: str, seeds: list[int], overrides: dict[str, Any], preset: Path | None = None
) -> list[Job]:
    """All jobs, checked before the first one begins; Problem when an option belongs to none of the rows."""
    jobs: list[Job] = []
    compare.check_for_all_rows(overrides)
    known = parts.owners()
    for key in overrides:
        if key not in known:
            raise configure.unknown(key, known)
    for name, spec in rows.items():
        for seed in seeds:
            wanted = {**overrides, **spec.options, "seed": seed} | ({"rqvae_path": None} if spec.sids_of else {})
            cfg = of_row(spec.method, dataset, wanted, preset)
            if spec.needs and not settings.flat(cfg)[spec.needs]:
                raise Problem(
                    f"--rows: {name} is about {spec.needs}, which the preset leaves at 0; name one that has it by "
                    "--config (config/*_sids_alone.yaml), or leave the row out"
                )
            needed = spec.vectors_of or spec.sids_of
            sources = [j.cfg for j in jobs if j.row == needed and j.cfg[DataOptions].seed == seed]
            jobs.append(Job(name, spec, cfg, sources[0] if sources else None))
            if not jobs[-1].trains:
                break  # a floor has no seed
    if short := [job.row for job in jobs if build.list_length(job.cfg) < max(map(cutoff, METRICS))]:
        raise Problem(f"--metrics: the table shows {', '.join(METRICS)}; row {short[0]} looks at shorter lists only")
    used = {key for job in jobs for key in settings.flat(job.cfg)}
    if foreign := [key for key in overrides if key not in used]:
        raise Problem(f"--{foreign[0]}: none of the rows has this option")
    free = {key for job in jobs for key in settings.flat(job.cfg).keys() - job.spec.options.keys()}
    if fixed := [key for key in overrides if key not in free]:
        raise Problem(f"--{fixed[0]}: is what the rows are (config/tables/rows.yaml); drop it, or choose other rows")
    check_protocol({job.row: settings.flat(job.cfg) for job in jobs})
    if len(seeds) > 1 and jobs[0].cfg[DataOptions].split == "time_groups":
        raise Problem("split: time_groups draws other users for each seed; make the table with one seed")
    return jobs


def of_row(method: str, dataset: str, wanted: dict[str, Any], preset: Path | None) -> Config:
    """A row's configuration with those of the wanted options that it has: of its own parts, or of parts that they
    choose.
    """
    chosen = {k: v for k, v in wanted.items() if k == "data_path" or (k == "rqvae_path" and v is None)}
    for choice in (("tokenizer", "recommender"), wanted):
        own = set(settings.flat(compare.recipe(method, dataset, chosen, preset)))
        chosen |= {k: wanted[k] for k in choice if k in wanted and k in own}
    return compare.recipe(method, dataset, chosen, preset)


# ---------------------------------------------------------------- running it


class Made(NamedTuple):
    """At which commit a run was made, and whether it was there before."""

    commit: str
    found: bool


@dataclass
class Outcome:
    """What the runs of a row gave."""

    row: Row
    runs: list[str] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None


def run_all(jobs: list[Job], data: Dataset) -> dict[str, Outcome]:
    """Train or find every run; a row that fails is named and the others go on."""
    found: dict[str, Outcome] = {job.row: Outcome(Row(job.row)) for job in jobs}
    trained = [job for job in jobs if job.trains]
    clock, done = time.monotonic(), 0
    with tqdm(jobs, desc="runs", unit="run") as bar:
        for job in bar:
            bar.set_postfix_str(f"{job.row}, {_left(clock, done, len(trained))}")
            outcome = found[job.row]
            try:
                done += _run(job, data, outcome)
            except Problem as e:
                outcome.failure = str(e)
                log.warning(f"{job.row}: {e}")
    return found


def _run(job: Job, data: Dataset, outcome: Outcome) -> bool:
    """One job; was anything trained?"""
    if not job.trains:
        outcome.row.ranks.update(compare.results(job.spec.method, [job.cfg], data, {}).ranks)
        return False
    cfg = job.cfg
    if job.source is not None:
        if (source := compare.finished(job.source, data)) is None:
            raise Problem(f"needs row {job.spec.vectors_of or job.spec.sids_of}, which did not finish")
        if job.spec.vectors_of:
            cfg = configure.change(cfg, vectors_from=str(source.path / "best_model.pth"))
        else:
            cfg = configure.change(cfg, sid_path=str(source.path / f"{data.name}.index.json"))
    before = compare.finished(cfg, data)
    run = before or compare.trained(job.row, cfg, data, {})
    outcome.row.ranks[cfg[DataOptions].seed] = read_ranks(run, METRICS)[1]
    outcome.runs.append(run.path.name)
    outcome.made.append(Made(run.made_with().get("commit") or "unknown", before is not None))
    outcome.seconds += sum(row.get("seconds", 0.0) for row in run.rows())
    return before is None


def _left(clock: float, done: int, total: int) -> str:
    """The time that is left, from what the runs so far took."""
    if not done:
        return "time left not known yet"
    minutes = (time.monotonic() - clock) / done * (total - done) / 60
    return f"at most {minutes / 60:.1f} h left" if minutes > 90 else f"at most {minutes:.0f} min left"


# ---------------------------------------------------------------- verdicts


def against(ours: Row, other: Row, metric: str) -> dict[str, Any]:
    """How far a row is above another, over the seeds that both have.

    z: of the difference over users, each user's mean over seeds; p: of each seed alone, over users, two-sided;
    interval: half of the 95 % interval of the seeds' differences (Student's t), None with one seed. What is certain
    over users only, where the seeds' interval holds 0, is called so.
    """
    both = [seed for seed in ours.ranks if seed in other.ranks]
    difference, z = paired_difference(ours.on(both).per_user(metric), other.on(both).per_user(metric))
    each = [paired_difference(ours.of_seed(metric, seed), other.of_seed(metric, seed)) for seed in both]
    base = float(other.on(both).per_user(metric).mean())
    spread = np.std([d for d, _ in each], ddof=1) if len(each) > 1 else None
    half = None if spread is None else float(stats.t.ppf(0.975, len(each) - 1) * spread / len(each) ** 0.5)
    return {
        "difference": difference,
        "relative": difference / base if base else None,
        "z": z,
        "interval": half,
        "seeds": [d for d, _ in each],
        "p": [float(2 * stats.norm.sf(abs(seed_z))) for _, seed_z in each],
        "verdict": verdict(difference, z, half),
    }


def verdict(difference: float, z: float, half: float | None) -> str:
    """A difference in words; half: of its interval over seeds."""
    if abs(z) <= CERTAIN:
        return "no difference shown"
    over = "" if half is None or abs(difference) > half else " for these users, not over seeds"
    return ("above" if z > 0 else "below") + over


def against_published(mean: float, published: float) -> dict[str, Any]:
    """Within the tolerance of a published figure?"""
    relative = mean / published - 1
    words = "reproduced" if abs(relative) <= TOLERANCE else "above" if relative > 0 else "below"
    return {"published": published, "relative": relative, "verdict": words}


def judged(rows: dict[str, Spec], found: dict[str, Outcome], published: dict[str, Any]) -> dict[str, Any]:
    """All figures and verdicts, row by row."""
    table: dict[str, Any] = {}
    for name, spec in rows.items():
        outcome, ours = found[name], found[name].row
        others = [o for o in (spec.twin, *spec.beside) if o in found and ours.ranks.keys() & found[o].row.ranks.keys()]
        table[name] = {"method": spec.method, "options": spec.options, "seconds": outcome.seconds, "runs": outcome.runs}
        if outcome.failure is not None:
            table[name]["failure"] = outcome.failure
        if not ours.ranks:
            continue
        for metric in METRICS:
            table[name][metric] = ours.summary(metric)
            compared = {other: against(ours, found[other].row, metric) for other in others}
            if spec.twin in compared:
                table[name][metric]["twin"] = {"row": spec.twin, **compared.pop(spec.twin)}
            if compared:
                table[name][metric]["beside"] = compared
            if metric in published.get(name, {}):
                mean = table[name][metric]["mean"]
                table[name][metric]["published"] = against_published(mean, published[name][metric])
    return table


# ---------------------------------------------------------------- as people read it


def markdown(table: dict[str, Any], card: dict[str, Any]) -> str:
    """The table, then the protocol card."""
    verdicts = ("against its frozen twin, ndcg@10", "against other rows, ndcg@10", "published ndcg@10")
    heads = ["row", "seeds", *(f"{m} (test)" for m in METRICS), *verdicts]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in table.items():
        if METRICS[0] not in row:
            lines.append(f"| {name} | 0 | failed: {row.get('failure', 'not run')} |" + " |" * (len(heads) - 3))
            continue
        cells = [f"{row[m]['mean']:.4f} ± {row[m]['interval']:.4f}" for m in METRICS]
        lost = f", failed for the others: {row['failure']}" if "failure" in row else ""
        cells = [name, f"{len(row[METRICS[0]]['seeds'])}{lost}", *cells]
        lines.append("| " + " | ".join([*cells, _twin_words(row), _beside_words(row), _published_words(row)]) + " |")
    lines += ["", "± half of the 95 % interval over users; z and p paired over users, each user's mean over seeds.", ""]
    return "\n".join([*lines, *(f"- {key}: {value}" for key, value in card.items())]) + "\n"


def _twin_words(row: dict[str, Any]) -> str:
    twin = row["ndcg@10"].get("twin")
    return "" if twin is None else _verdict_words(twin)


def _beside_words(row: dict[str, Any]) -> str:
    return "; ".join(f"{name} {_verdict_words(found)}" for name, found in row["ndcg@10"].get("beside", {}).items())


def _verdict_words(found: dict[str, Any]) -> str:
    seeds = "" if found["interval"] is None else f" ± {found['interval']:.4f} over seeds"
    share = "" if found["relative"] is None else f" ({found['relative']:+.1%})"
    return f"{found['difference']:+.4f}{share}{seeds}, z {found['z']:+.1f}: {found['verdict']}"


def _published_words(row: dict[str, Any]) -> str:
    found = row["ndcg@10"].get("published")
    return "" if found is None else f"{found['published']:.4f} ({found['relative']:+.0%}): {found['verdict']}"


def as_typed(argv: list[str]) -> str:
    """The command without the places of this machine: a reader puts their own data folder in."""
    places = ("output_dir", "log_dir", "results")
    given, words = settings.split_off(argv, ["data_path", *places])
    return " ".join(["python scripts/reproduce.py", *words, *(["--data_path=DIR"] if "data_path" in given else [])])


def protocol(cfg: Config, data: Dataset, seeds: list[int], command: str, found: list[Outcome]) -> dict[str, Any]:
    """What a reader needs to repeat the table, and to know what it may be compared with."""
    flat, here = settings.flat(cfg), environment()
    made = Counter(run for outcome in found for run in outcome.made).most_common()
    commits = [f"{'found, ' if run.found else ''}{run.commit} ({runs})" for run, runs in made]
    return {
        "command": command,
        "data": f"{data.name} ({data.hash}), {len(data.test)} test users, {data.n_items} items",
        "protocol": ", ".join(f"{k} {flat[k]}" for k in ("split", "max_his_len", "mask_seen")),
        "seeds": ", ".join(map(str, seeds)),
        "training": f"{sum(outcome.seconds for outcome in found) / 3600:.1f} hours in all",
        "runs made at commits": "; ".join(commits),
        "machine": f"{here['gpu'] or here['platform']}, {here['threads']} threads",
        "versions": f"torch {here['torch']}, commit {here['commit']}",
    }


# ---------------------------------------------------------------- the command


def reproduce(argv: list[str]) -> dict[str, Any]:
    """Run a table and write it; Problem before anything is trained when the command line cannot be followed."""
    given, names, asked = cli.words_and_options(argv, ["rows", "seeds", "budget", "results", "config"])
    if len(names) != 1:
        raise Problem("reproduce: needs one data set, as in: reproduce.py scientific --data_path=DIR")
    budget = given.get("budget", "full")
    parts.check_known("--budget", budget, BUDGETS)
    overrides = BUDGETS[budget] | asked
    seeds = list(map(int, cli.seeds_asked(given, overrides, SEEDS[budget])))
    rows = read_rows([r for r in given.get("rows", "").split(",") if r])
    log_to(None, main=True)
    jobs = plan(rows, names[0], seeds, overrides, Path(given["config"]) if "config" in given else None)
    folder = make_folder(Path(given.get("results", ROOT / "results")) / names[0])
    cfg = jobs[0].cfg
    if names[0] == "demo":
        build_demo(Path(cfg[DataOptions].data_path) / "demo")
    data = read_dataset(cfg[DataOptions])
    found = run_all(jobs, data)
    published = settings.read_yaml(ROOT / "config" / "tables" / "published.yaml").get(names[0], {})
    table = judged(rows, found, published)
    card = protocol(cfg, data, seeds, as_typed(argv), list(found.values()))
    question = digest(data.hash, [(job.row, settings.counting(job.cfg)) for job in jobs])
    write(folder / question, table, card)
    return table


def write(stem: Path, table: dict[str, Any], card: dict[str, Any]) -> None:
    """JSON, Markdown and picture, named by the question that they answer."""
    text = markdown(table, card)
    write_json(stem.with_suffix(".json"), {"rows": table, "card": card})
    write_text(stem.with_suffix(".md"), text)
    rows = {name: row["ndcg@10"] for name, row in table.items() if "ndcg@10" in row}
    shown = {name: charts.Interval(v["mean"], v["interval"], v["seeds"]) for name, v in rows.items()}
    write_text(stem.with_suffix(".svg"), charts.intervals("ndcg@10, test", shown))
    log.info(f"\n{text}\nas JSON, Markdown and picture: {stem}.json, .md, .svg")


if __name__ == "__main__":
    keep_freed_memory()
    with problems_exit_2():
        if {"--help", "-h"} & set(sys.argv):
            print(__doc__, "rows: " + ", ".join(read_rows([])), sep="\n")
        else:
            failed = [name for name, row in reproduce(sys.argv[1:]).items() if "failure" in row]
            if failed:
                raise Problem(f"{', '.join(failed)}: did not run to the end; the reasons stand in the table")
