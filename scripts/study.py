"""The engine behind compare.py, reproduce.py, sid_study.py and length_study.py: arms x seeds -> runs -> one table.

An arm is a row of a YAML file (config/tables/). Each run is found again, resumed or trained, its tokenizer included.
A study is a function from a finished run to figures. Not a command of its own.

The file has `rows`: name -> arm, and may have `options`: those of every row. An arm may say

  method: sasrec, two_stage, a decay (frqud, sdud, ...), popularity, content; parts that are not the preset's stand in
          brackets, two_stage[rq_kmeans+t5]; diffsasrec_multi and sasrec_autoregressive are decoded that way
  options: what makes the row, over the preset's; how long it trains too (epochs, early_stop)
  like: an earlier row, whose method, options, needs and source it has unless it says otherwise
  label: what tables and pictures call it, its name unless said
  needs: an option that the preset or the command line must set
  control: the row that it is compared with, for joint training its frozen-SID control; it comes along
  beside: further rows to compare it with, where the table has them
  after: an earlier row; this one is a fresh recommender on the SIDs that the other's run of the same seed ended with
  vectors_of: an earlier row, whose item vectors stand beside the content in the SIDs (behaviour: vectors)
"""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from tqdm import tqdm

import main
import settings
from compose import build, cli, configure, parts, restore
from evaluation import evaluate, save_ranks
from joint.uncertainty import DECAYS
from metrics import EvalOptions, cutoff
from readers.dataset import Dataset, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from recommenders.diffusion import FineTuningOptions
from runs import charts
from runs.folder import RunFolder, RunOptions
from runs.report import check_protocol, read_ranks
from runs.table import NOTE, Row, Table, differences_table, figures_table, judged, told_apart
from scripts.make_demo import build_demo
from scripts.run import launch, processes_wanted
from settings import Config
from sids.tokenizer import CodeOptions
from utils import (
    Contradiction,
    Problem,
    digest,
    environment,
    log,
    log_to,
    make_folder,
    read_json,
    regular_file,
    write_json,
    write_text,
)

DECODINGS = {
    "sasrec": ("autoregressive",),
    "diffsasrec": ("multi", "autoregressive"),
    "diffsasrec_sft": ("multi", "autoregressive"),
}
FEW = 300  # test users below which differences of the usual size cannot be told from chance
TABLES = ROOT / "config" / "tables"

# ---------------------------------------------------------------- what is to be run

SOURCES: dict[str, Callable[[RunFolder, Config, Dataset], dict[str, Any]]] = {  # what an arm takes of another arm's run
    "vectors_of": lambda run, cfg, data: {"vectors_from": str(run.best)},
    "after": lambda run, cfg, data: {"sid_path": str(run.path / f"{data.name}.index.json")},
}


@dataclass(frozen=True)
class Arm:
    """A row of a table, as its file describes it."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    needs: str | None = None
    control: str | None = None
    beside: tuple[str, ...] = ()
    source: tuple[str, str] | None = None  # (kind, row): one of SOURCES and the arm whose run it takes from

    @property
    def trains(self) -> bool:
        return self.method not in parts.BASELINES

    def others(self) -> list[str]:
        """Arms without which this one is not run."""
        return [n for n in (self.control, self.source and self.source[1]) if n]


class Name(NamedTuple):
    """What a method's name asks for."""

    method: str
    parts: dict[str, str]  # tokenizer, recommender
    decoding: str | None  # None: as its options say


class Asked(NamedTuple):
    """What a command line asks of a table."""

    dataset: str
    seeds: list[int]
    overrides: dict[str, Any]  # options of the runs
    preset: Path | None  # a file in the place of the data set's preset


@dataclass(frozen=True)
class Job:
    """One training: an arm and a seed."""

    arm: Arm
    cfg: Config
    read: frozenset[str]  # the command line's options that this run reads
    source: Config | None = None  # of the run that the arm has taken from

    @property
    def seed(self) -> int:
        return self.cfg[DataOptions].seed


def split_name(name: str) -> Name:
    """The parts of a name like diffsasrec_multi or two_stage[rq_kmeans+t5]; Problem when one is unknown."""
    text, decoding = name, None
    for way in ("multi", "autoregressive"):
        if text.endswith(f"_{way}"):
            text, decoding = text.removesuffix(f"_{way}"), way
    method, bracket, rest = text.partition("[")
    chosen: dict[str, str] = {}
    for word in filter(None, re.split("[+,]", rest.removesuffix("]"))):
        kind = "tokenizer" if word in parts.TOKENIZERS else "recommender"
        parts.check_known(name, word, {**parts.TOKENIZERS, **parts.NETWORKS})
        if kind in chosen:
            raise Problem(f"{name!r}: {chosen[kind]} and {word} are both a {kind}; name one")
        chosen[kind] = word
    if chosen and method not in (*DECAYS, *parts.GENERATIVE):
        raise Problem(f"{name!r}: {method} recommends by items, it has no parts to choose")
    if bracket and (not chosen or not text.endswith("]")):
        raise Problem(f"{name!r}: write the parts as in two_stage[rq_kmeans]")
    if decoding and decoding not in DECODINGS.get(method, ()):
        able = [m for m, ways in DECODINGS.items() if decoding in ways]
        raise Problem(f"{name}: {method} is not decoded that way; {', '.join(able)} can be")
    return Name(method, chosen, decoding)


def read_table(path: Path) -> dict[str, Arm]:
    """All arms of a file; Problem names a row that cannot be read."""
    raw = settings.read_yaml(path)
    rows, shared = raw.get("rows"), raw.get("options") or {}
    if not isinstance(rows, dict) or not isinstance(shared, dict) or raw.keys() - {"rows", "options"}:
        raise Problem(f"{path}: expected rows: (name: arm), and perhaps options: (of every row)")
    known = dict.fromkeys(["method", "options", "like", "label", "needs", "control", "beside", *SOURCES])
    found: dict[str, Arm] = {}
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise Problem(f"{path}: row {name!r}: expected what it is made of, as in {{method: sasrec}}")
        for key in row:
            parts.check_known(f"{path}: row {name!r}", key, known)
        sources = [(kind, row[kind]) for kind in SOURCES if kind in row]
        like, own = row.get("like"), {k: v for k, v in row.items() if k not in ("like", "options", *SOURCES)}
        for other in (like, *(o for _, o in sources)):
            if other is not None and other not in found:
                raise Problem(f"{path}: row {name!r}: {other!r} is none of the rows above it")
        if like is None and "method" not in row:
            raise Problem(f"{path}: row {name!r}: names no method")
        base = replace(found[like], name=name, label="") if like else Arm(name, row["method"], shared)
        own |= {"beside": tuple(own.get("beside", base.beside)), "options": base.options | (row.get("options") or {})}
        arm = replace(base, **own, source=sources[0] if sources else base.source)
        found[name] = replace(arm, label=arm.label or name)
    for arm in found.values():
        if lost := [o for o in (arm.control, *arm.beside) if o and o not in found]:
            raise Problem(f"{path}: row {arm.name!r}: {lost[0]!r} is none of the rows")
    return found


def chosen_arms(known: dict[str, Arm], wanted: Sequence[str], given: Mapping[str, Any]) -> dict[str, Arm]:
    """The arms that were asked for, with those that they need; when none is named, all but those that need an option
    which the command line does not set.
    """
    for name in wanted:
        parts.check_known("--rows", name, known)

    def lacks(arm: Arm) -> bool:
        return bool(arm.needs and arm.needs not in given) or any(lacks(known[o]) for o in arm.others())

    chosen = set(wanted or [n for n, arm in known.items() if not lacks(arm)])
    for name in reversed(known):  # an arm stands behind those that it needs
        if name in chosen:
            chosen |= set(known[name].others())
    return {name: arm for name, arm in known.items() if name in chosen}


def asked(argv: list[str], own: list[str], usual: str = "2020") -> tuple[dict[str, str], list[str], Asked]:
    """(the command's own options, words behind the first, what is asked) of a command line; the first word is a data
    set, or a preset's file.
    """
    given, words, overrides = cli.words_and_options(argv, [*own, "seeds", "config"])
    for key in overrides:
        if key in ("method", "uncertainty"):
            raise Problem(f"--{key}: is what the rows are; choose rows, as in: two_stage,frqud,sdud")
        if key in ("run_name", "resume"):
            raise Problem(f"--{key}: a table names its runs by their options and resumes them by itself; drop it")
    if not words:
        raise Problem("name a data set, as in: scientific --data_path=DIR")
    dataset, preset = words[0], Path(given["config"]) if "config" in given else None
    if dataset.endswith(".yaml"):
        preset = Path(dataset)
        dataset = str(overrides.get("dataset") or cli.preset_of(preset, overrides).get("dataset"))
    seeds = [int(s) for s in cli.seeds_asked(given, overrides, usual)]
    return given, words[1:], Asked(dataset, seeds, overrides, preset)


def recipe(name: str, dataset: str, overrides: dict[str, Any], preset: Path | None = None) -> Config:
    """The configuration that trains a method: its preset, config/<data set>_<method>.yaml, else that of `preset`, else
    config/<data set>.yaml, or such a file beside the data; then the options.
    """
    method, chosen, _ = split_name(name)
    if preset is not None:
        regular_file(preset, "no such configuration")
    found = cli.presets(f"{dataset}_{method}", dataset, overrides)
    found += [preset] if preset else cli.presets(dataset, dataset, overrides)
    if not found:
        raise cli.no_preset(dataset, overrides)
    kind = {"method": "diger", "uncertainty": method} if method in DECAYS else {"method": method}
    if method in parts.BASELINES:
        kind = {}  # nothing to train; the protocol is that of the preset
    options = cli.preset_of(found[0], overrides, dataset)
    for key in [] if method in (*DECAYS, *parts.GENERATIVE) else ["tokenizer", "recommender"]:
        options.pop(key, None)  # of a preset for other methods
    more = {**overrides, **kind, **chosen}
    try:
        return configure.build({**options, **more}, firm=more.keys())
    except Contradiction as e:  # what the rows are is no option of the command
        ways = [way for way in e.ways if not way.keys() & {"method", "uncertainty"}]
        rest = "" if ways else "; leave that row out, or drop the option"
        raise Contradiction(f"row {name}: {e.reason}{rest}", *ways) from None


def configured(arm: Arm, ask: Asked, seed: int) -> tuple[Config, frozenset[str]]:
    """An arm's configuration, and which options of the command line it reads. What an arm does not read is none of its
    concern.
    """
    given = split_name(arm.method).parts.get("tokenizer") == "given"
    wanted = {**ask.overrides, **arm.options, "seed": seed} | ({"rqvae_path": None} if given else {})
    cfg = recipe(arm.method, ask.dataset, wanted, ask.preset)
    own = ask.overrides.keys() & settings.flat(cfg).keys() - arm.options.keys()
    if idle := {key for key in own if settings.unread(cfg, key)}:
        cfg = recipe(arm.method, ask.dataset, {k: v for k, v in wanted.items() if k not in idle}, ask.preset)
    return cfg, frozenset(own - idle)


def plan(arms: Mapping[str, Arm], ask: Asked, metrics: Iterable[str]) -> list[Job]:
    """All jobs, checked before the first one begins; Problem when an option belongs to none of the rows."""
    jobs: list[Job] = []
    for arm in arms.values():
        for seed in ask.seeds if arm.trains else ask.seeds[:1]:  # a method without training has no seed
            cfg, read = configured(arm, ask, seed)
            if arm.needs and not settings.flat(cfg).get(arm.needs):
                raise Problem(
                    f"--{arm.needs}: row {arm.name} needs it, and the preset leaves it unset; set it, name a preset "
                    "that does (--config=FILE), or leave the row out"
                )
            jobs.append(Job(arm, cfg, read))
    if short := [j.arm.name for j in jobs if build.list_length(j.cfg) < max(map(cutoff, metrics), default=0)]:
        raise Problem(f"--metrics: the table shows {', '.join(metrics)}; row {short[0]} has shorter lists only")
    for key in ask.overrides.keys() - {key for job in jobs for key in job.read}:
        raise unread(key, jobs, ask)
    check_protocol({j.arm.name: settings.flat(j.cfg) for j in jobs})
    if len(ask.seeds) > 1 and jobs[0].cfg[DataOptions].split == "time_groups":
        raise Problem("split: time_groups draws other users for each seed; make the table with one seed")
    return jobs


def unread(key: str, jobs: Sequence[Job], ask: Asked) -> Problem:
    """Why none of the rows reads an option, and what would make one read it."""
    if any(key in j.arm.options for j in jobs):
        return Problem(f"--{key}: is what the rows are (config/tables); drop it, or choose other rows")
    if having := [j.cfg for j in jobs if key in settings.flat(j.cfg)]:
        needs = settings.unread(configure.change(having[0], **{key: ask.overrides[key]}), key)
        fixed = {*ask.overrides, "method", "uncertainty"}
        ways = [way for way in needs if not way.keys() & fixed and fits(way, jobs, ask)]
        rows = [f"; choose rows like {way['uncertainty']}, or drop it" for way in needs if "uncertainty" in way]
        told = f"--{key}: is read with {configure.needs_of(key)} only, as no row is{''.join(rows[:1])}"
        return Contradiction(told, *ways, idle=not rows)
    known = parts.owners()[key]
    way = parts.ways_to(known)[0]
    row = "frqud" if way == {"method": "diger"} else way.get("method") or f"two_stage[{next(iter(way.values()))}]"
    return Problem(f"--{key} belongs to {' and '.join(known)}, which no row has; choose rows like {row}, or drop it")


def fits(way: Mapping[str, Any], jobs: Sequence[Job], ask: Asked) -> bool:
    """Would the rows be accepted with some options more?"""
    try:
        return bool(plan({j.arm.name: j.arm for j in jobs}, ask._replace(overrides={**ask.overrides, **way}), []))
    except Problem:
        return False


def data_of(jobs: Sequence[Job]) -> Dataset:
    """The data of a table; Problem, before anything is trained, where a row needs embeddings that are not there."""
    log_to(None, main=True)
    options = jobs[0].cfg[DataOptions]
    make_folder(Path(jobs[0].cfg[RunOptions].output_dir) / options.dataset)
    if options.dataset == "demo":
        build_demo(Path(options.data_path) / "demo")
    data = read_dataset(options)
    if any(j.arm.method == "content" or (j.arm.trains and build.reads_content(j.cfg)) for j in jobs):
        read_embeddings(data)
    if len(data.test) < FEW:
        log.warning(f"{len(data.test)} test users are too few to rank methods: read the intervals")
    return data


# ---------------------------------------------------------------- running it


class View(NamedTuple):
    """One way to measure the same checkpoints."""

    name: str
    split: str = "test"
    mask_seen: bool | None = None  # None: as the run does


TEST, VALID = View("test"), View("validation", "valid")


def both_protocols(cfg: Config) -> list[View]:
    """Seen items left in and masked, that of the runs first. They chose their checkpoints by it; the other table is of
    the same checkpoints, and both belong to the one final look at the test set.
    """
    views = [View("test, seen items left in", "test", False), View("test, seen items masked", "test", True)]
    return views[::-1] if cfg[EvalOptions].mask_seen else views


@dataclass
class Result:
    """What the runs of an arm gave."""

    arm: Arm
    rows: dict[str, Row] = field(default_factory=dict)  # by view
    of_seed: dict[int, tuple[RunFolder, Config]] = field(default_factory=dict)
    figures: list[dict[str, float]] = field(default_factory=list)  # of the study, a seed each
    failure: str | None = None

    @property
    def runs(self) -> list[RunFolder]:
        return [run for run, _ in self.of_seed.values()]

    def keep(self, view: View, seed: int | None, rank: np.ndarray, figures: dict[str, Any]) -> None:
        row = self.rows.setdefault(view.name, Row(self.arm.name))
        row.ranks[seed] = rank
        row.figures.append(figures)

    def note(self) -> str:
        """Epochs of each run and the best of them."""
        told = [run.results() for run in self.runs]
        epochs = [f"{r.get('epochs_trained', '?')} ({r.get('best_epoch', '?')})" for r in told]
        return ", ".join([*epochs, *(["failed"] if self.failure else [])])

    def facts(self) -> dict[str, Any]:
        """What the arm is, and what its runs took."""
        found: dict[str, Any] = {"label": self.arm.label, "method": self.arm.method, "options": self.arm.options}
        if self.runs:
            told, commits = [run.results() for run in self.runs], [run.made_with().get("commit") for run in self.runs]
            found |= {"runs": [run.path.name for run in self.runs], "commits": commits}
            found |= {"minutes": sum(minutes[-1] for run in self.runs if (minutes := minutes_of(run)))}
            found |= {key: [r.get(key) for r in told] for key in ("epochs_trained", "best_epoch")}
        return found | ({"failure": self.failure} if self.failure else {})


Study = Callable[[RunFolder, Job, Dataset], dict[str, float]]


def run_all(
    jobs: Sequence[Job], ask: Asked, data: Dataset, views: Sequence[View] = (TEST,), study: Study | None = None
) -> "Finished":
    """Train or find every run and measure it; a row that fails is named and the others go on."""
    found = {job.arm.name: Result(job.arm) for job in jobs}
    clock, done, total = time.monotonic(), 0, sum(job.arm.trains for job in jobs)
    with tqdm(jobs, desc="runs", unit="run") as bar:
        for job in bar:
            minutes = (time.monotonic() - clock) / max(done, 1) * (total - done) / 60
            bar.set_postfix_str(f"{job.arm.name}, {f'at most {minutes:.0f} min left' if done else 'time not known'}")
            try:
                done += _one(job, ask, data, views, study, found)
            except Problem as e:
                found[job.arm.name].failure = str(e)
                log.warning(f"{job.arm.name}: {e}")
    return Finished(ask, jobs, data, views, found)


def _one(
    job: Job, ask: Asked, data: Dataset, views: Sequence[View], study: Study | None, results: Mapping[str, Result]
) -> bool:
    """Train or find the run of a job, with what it takes of another arm's run of its seed, and measure it; was it
    trained now?
    """
    result = results[job.arm.name]
    if not job.arm.trains:
        acc = main.accelerator(job.cfg)
        for view in (v for v in views if v.split == "test"):
            cfg = job.cfg if view.mask_seen is None else configure.change(job.cfg, mask_seen=view.mask_seen)
            model = parts.BASELINES[job.arm.method](data).to(acc.device)
            baseline = evaluate(model, data.test, cfg[EvalOptions], cfg[DataOptions], acc, job.arm.name)
            result.keep(view, None, baseline.rank, baseline.figures)
        return False
    if job.arm.source is not None:
        kind, other = job.arm.source
        if other not in results or job.seed not in results[other].of_seed:
            raise Problem(f"needs row {other}, which did not finish")
        of_run, of_cfg = results[other].of_seed[job.seed]
        job = replace(job, cfg=configure.change(job.cfg, **SOURCES[kind](of_run, of_cfg, data)), source=of_cfg)
    before = finished(job.cfg, data)
    run = before or trained(job.arm.name, job.cfg, data, ask)
    result.of_seed[job.seed] = run, job.cfg
    for view in views:
        result.keep(view, job.seed, *measured(run, job.cfg, data, view, split_name(job.arm.method).decoding))
    result.figures += [study(run, job, data)] if study else []
    return before is None


def finished(cfg: Config, data: Dataset) -> RunFolder | None:
    """A finished run of the same options, from its first step, on the same data and files, whatever its name."""
    for path in sorted((Path(cfg[RunOptions].output_dir) / cfg[DataOptions].dataset).glob("*/config.yaml")):
        run = RunFolder(path.parent)
        if not settings.differences(settings.read_yaml(path), cfg) and run.finished and not run.changed:
            told = run.results()
            files = told.get("files", {})
            if told.get("data") == data.hash and all(files.get(k) == v for k, v in build.named_files(cfg).items()):
                return run
    return None


def trained(name: str, cfg: Config, data: Dataset, ask: Asked) -> RunFolder:
    """The run of a configuration, trained now unless there is one; fine-tuning asks for its first stage."""
    if FineTuningOptions in cfg and cfg[FineTuningOptions].sft_from is None:
        first, _ = configured(Arm("diffsasrec", "diffsasrec"), ask, cfg[DataOptions].seed)
        cfg = configure.change(cfg, sft_from=str(trained("diffsasrec", first, data, ask).best))
    if (found := finished(cfg, data)) is not None:
        log.info(f"{name}, seed {cfg[DataOptions].seed}: {found.path}")
        return found
    if CodeOptions in cfg and cfg[CodeOptions].rqvae_path is None:
        build.train_tokenizer(cfg, data)
    options = digest(data.hash, settings.counting(cfg), *build.named_files(cfg).values())
    cfg = configure.change(cfg, run_name=f"compare-{parts.folder_name(cfg)}-{options}", resume="auto")
    if (processes := processes_wanted()) > 1:
        launch(cfg, processes)
    else:
        main.train(cfg, main.SAME_AGAIN)
    run = RunFolder.of(cfg)
    log_to(None, main=True)
    if run.changed:
        raise Problem(f"{run.path}: was continued with other options than its name says; move it away, or remove it")
    if run.results().get("data") != data.hash:
        raise Problem(
            f"{run.path}: was trained on other data than this table started with; a file of {data.name!r} has changed "
            "meanwhile; the same command begins again"
        )
    return run


def measured(
    run: RunFolder, cfg: Config, data: Dataset, view: View, decoding: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Ranks [users] and figures of a finished run in a view. What the run itself has not measured is evaluated once,
    and kept in its folder as ranks-<what>.npy and <what>.json.
    """
    if view.split == "valid":
        return read_ranks(run, split="valid")[1], run.results()["valid"]
    changes: dict[str, str] = {} if decoding is None else {"decoding": decoding}
    if view.mask_seen not in (None, cfg[EvalOptions].mask_seen):
        changes["mask_seen"] = str(view.mask_seen).lower()
    if not changes:
        return read_ranks(run)[1], run.results()
    what = "-".join(["test", *(f"{k}-{v}" for k, v in changes.items())])
    path = run.path / f"{what}.json"
    if not path.is_file():
        if decoding is not None:
            run.look_at_test()  # another search; another protocol belongs to the look that the run has had
        other, model, _ = restore.restore(run.best, [f"--{k}={v}" for k, v in changes.items()])
        acc = main.accelerator(other)
        found = evaluate(model.to(acc.device), data.test, other[EvalOptions], other[DataOptions], acc, parts.label(cfg))
        save_ranks(run, what, found, data.test.users())
        write_json(path, found.figures)
    return read_ranks(run, split=what)[1], read_json(path)


# ---------------------------------------------------------------- what comes of it


def minutes_of(run: RunFolder) -> list[float]:
    """Minutes trained after each epoch of a run, its validations not counted."""
    return np.cumsum([row.get("seconds", 0.0) / 60 for row in run.rows()]).tolist()


@dataclass(frozen=True)
class Finished:
    """The runs of a table."""

    ask: Asked
    jobs: Sequence[Job]
    data: Dataset
    views: Sequence[View]
    results: dict[str, Result]

    @property
    def labels(self) -> dict[str, str]:
        labels = [result.arm.label for result in self.results.values()]
        return dict(zip(self.results, told_apart(labels, list(self.results)), strict=True))

    def tables(self, metrics: Sequence[str]) -> dict[str, Table]:
        """Of each view the rows' figures and differences."""
        compared = {n: [o for o in (r.arm.control, *r.arm.beside) if o] for n, r in self.results.items()}
        rows = {v.name: {n: r.rows[v.name] for n, r in self.results.items() if v.name in r.rows} for v in self.views}
        return {view: judged(of_view, compared, metrics) for view, of_view in rows.items()}

    @property
    def figures(self) -> dict[str, list[dict[str, float]]]:
        """Those of the study: of each row that ran to its end, a seed each."""
        return {name: r.figures for name, r in self.results.items() if r.figures and not r.failure}

    @property
    def mean_figures(self) -> dict[str, dict[str, float]]:
        return {n: {k: float(np.mean([f[k] for f in each])) for k in each[0]} for n, each in self.figures.items()}

    def text(self, tables: Mapping[str, Table], metrics: Sequence[str], compared_by: str) -> str:
        """Each view's figures and differences in Markdown."""
        notes, blocks = {name: result.note() for name, result in self.results.items()}, []
        for view, table in tables.items():
            blocks += [f"**{self.data.name}, {view}**", figures_table(table, metrics, self.labels, notes)]
            blocks.append(differences_table(table, compared_by, self.labels))
        lost = [f"- {self.labels[r.arm.name]} failed: {r.failure}" for r in self.results.values() if r.failure]
        return "\n\n".join(filter(None, [*blocks, NOTE, "\n".join(lost)]))

    def plain(self, tables: Mapping[str, Table], **more: Any) -> dict[str, Any]:
        """What is written as JSON."""
        asked = {"question": question(self.jobs, self.data), "seeds": self.ask.seeds}
        return asked | {"rows": {name: r.facts() for name, r in self.results.items()}, "tables": tables, **more}

    def intervals(self, tables: Mapping[str, Table], metric: str) -> dict[str, str]:
        """SVG of each view: a row's mean with its interval over users, and its seeds."""
        found = {}
        for view, table in tables.items():
            of = {self.labels[name]: row[metric] for name, row in table.items()}
            shown = {label: charts.Interval(x["mean"], x["interval"], x["seeds"]) for label, x in of.items()}
            found[view] = charts.intervals(f"{metric}, {view}", shown)
        return found

    def learning_curves(self, metric: str) -> str | None:
        """SVG of the validation metric against minutes of training, a curve a row: means over its seeds, as far as all
        of them were trained.
        """
        curves: dict[str, list[tuple[float, float]]] = {}
        for result in self.results.values():
            points: dict[int, list[tuple[float, float]]] = {}
            for run in result.runs:
                for row, minutes in zip(run.rows(), minutes_of(run), strict=True):
                    if f"valid/{metric}" in row and row["epoch"] >= 0:
                        points.setdefault(row["epoch"], []).append((minutes, row[f"valid/{metric}"]))
            whole = [each for each in points.values() if len(each) == len(result.runs)]
            if whole:
                curves[self.labels[result.arm.name]] = [tuple(np.mean(each, 0).tolist()) for each in whole]
        figure = charts.lines(f"validation {metric}", curves, x_label="minutes of training")
        return None if figure is None else figure.svg()

    def card(self, command: str) -> dict[str, Any]:
        """What a reader needs to repeat the table, and to know what it may be compared with."""
        flat, here, facts = settings.flat(self.jobs[0].cfg), environment(), [r.facts() for r in self.results.values()]
        made = Counter(str(commit) for found in facts for commit in found.get("commits", [])).most_common()
        return {
            "command": command,
            "data": f"{self.data.name} ({self.data.hash}), {len(self.data.test)} test users, {self.data.n_items} items",
            "protocol": ", ".join(f"{k} {flat[k]}" for k in ("split", "max_his_len", "mask_seen")),
            "seeds": ", ".join(map(str, self.ask.seeds)),
            "training": f"{sum(found.get('minutes', 0) for found in facts) / 60:.1f} hours in all",
            "runs made at commits": "; ".join(f"{commit} ({runs})" for commit, runs in made),
            "machine": f"{here['gpu'] or here['platform']}, {here['threads']} threads",
            "versions": f"torch {here['torch']}, commit {here['commit']}",
        }

    def report(
        self, name: str, metrics: Sequence[str], compared_by: str, before: str = "",
        pictures: Mapping[str, str | None] | None = None, **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Write <output_dir>/<data set>/<name>-<hash of the question>.*, the text behind another one; what stands in
        its JSON, or Problem when rows did not run to the end.
        """
        tables = self.tables(metrics)
        result, text = self.plain(tables, **more), self.text(tables, metrics, compared_by)
        place = Path(self.jobs[0].cfg[RunOptions].output_dir) / self.data.name
        write(place / f"{name}-{result['question']}", result, "\n\n".join(filter(None, [before, text])), pictures or {})
        self.fail_if_any()
        return result

    def fail_if_any(self) -> None:
        """Problem, once all is written, when rows did not run to the end."""
        if lost := {name: r.failure for name, r in self.results.items() if r.failure}:
            raise Problem("; ".join(f"{name} did not run to the end: {failure}" for name, failure in lost.items()))


def question(jobs: Sequence[Job], data: Dataset) -> str:
    """Digest of what a table asks: its rows, their options and the data."""
    return digest(data.hash, [(job.arm.name, settings.counting(job.cfg)) for job in jobs])


def as_typed(script: str, argv: list[str]) -> str:
    """The command without the places of this machine: a reader puts their own data folder in, and finds other files by
    their names.
    """
    given, words = settings.split_off(argv, ["data_path", "output_dir", "log_dir", "results"])
    names = [re.sub(r"^(--\w+=)?/.*/", r"\1", w) for w in words]
    quoted = [f'"{w}"' if re.search(r"[ \[]", w) else w for w in names]
    return " ".join([f"python scripts/{script}.py", *quoted, *(["--data_path=DIR"] if "data_path" in given else [])])


def write(stem: Path, plain: Mapping[str, Any], text: str, pictures: Mapping[str, str | None]) -> None:
    """<stem>.json, <stem>.md and <stem>-<picture>.svg; the text goes to the log as well."""
    write_json(stem.with_name(f"{stem.name}.json"), plain)
    write_text(stem.with_name(f"{stem.name}.md"), text + "\n")
    for name, drawn in pictures.items():
        if drawn is not None:
            write_text(stem.with_name(f"{stem.name}-{name.replace(', ', '-').replace(' ', '_')}.svg"), drawn)
    log.info(f"\n{text}\n\nas JSON, Markdown and pictures: {stem}")
