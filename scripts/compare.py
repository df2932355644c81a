"""One table of several methods on one data set: same split, same users, several seeds.

  python scripts/compare.py scientific sasrec,diffsasrec,two_stage,frqud --data_path=DIR [--seeds 2020,2021]
                            [--config FILE] [--key=value ...]

Methods: sasrec, diffsasrec, diffsasrec_sft, two_stage, a decay (frqud, sdud, ...), popularity, content;
with _multi or _autoregressive behind it, one of the first three is decoded that way. Parts that are not the preset's
stand in brackets: two_stage[rq_kmeans], frqud[rq_transformer]. A method's preset is
config/<data set>_<method>.yaml, else that of --config, else config/<data set>.yaml, or such a file beside the data.
Finished runs of the same options are reused. z compares with the first method, paired over users.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import Tensor

import main
import settings
from compose import build, cli, configure, parts, restore
from compose.retired import upgraded
from evaluation import evaluate
from joint.uncertainty import DECAYS
from metrics import EvalOptions, half_interval, is_per_user, paired_difference, per_user
from readers.dataset import Dataset, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from recommenders.diffusion import FineTuningOptions
from runs.folder import RunFolder, RunOptions
from runs.report import check_protocol, read_ranks
from settings import Config
from sids.tokenizer import CodeOptions
from utils import (
    Problem,
    digest,
    keep_freed_memory,
    log,
    log_to,
    make_folder,
    problems_exit_2,
    regular_file,
    write_json,
)

DECODINGS = {
    "sasrec": ("autoregressive",),
    "diffsasrec": ("multi", "autoregressive"),
    "diffsasrec_sft": ("multi", "autoregressive"),
}
FEW = 300  # test users below which differences of the usual size cannot be told from chance


@dataclass(frozen=True)
class Row:
    """A method's results by seed; those of a floor, which has none, under 0."""

    name: str
    ranks: dict[int, np.ndarray] = field(default_factory=dict)  # of the targets, [users]
    figures: list[dict[str, Any]] = field(default_factory=list)

    def of_seed(self, metric: str, seed: int) -> Tensor:
        """A metric of each user, [users]."""
        return per_user(metric, torch.from_numpy(self.ranks[seed]))

    def per_user(self, metric: str) -> Tensor:
        """Mean over seeds of a metric of each user, [users]."""
        return torch.stack([self.of_seed(metric, seed) for seed in self.ranks]).mean(0)

    def on(self, seeds: list[int]) -> "Row":
        """The ranks of some seeds alone."""
        return Row(self.name, {seed: self.ranks[seed] for seed in seeds})

    def summary(self, metric: str, base: "Row | None" = None) -> dict[str, Any]:
        """Mean, half of the 95 % interval over users, z against another row where one is named, mean of each seed."""
        ours = self.per_user(metric)
        z = {} if base is None else {"z": paired_difference(ours, base.per_user(metric))[1]}
        seeds = [float(self.of_seed(metric, seed).mean()) for seed in self.ranks]
        return {"mean": float(ours.mean()), "interval": half_interval(ours), **z, "seeds": seeds}

    def coverage(self, metric: str) -> float:
        return float(np.mean([f[metric] for f in self.figures]))


# ---------------------------------------------------------------- what is to be run


class Name(NamedTuple):
    """What a row's name asks for."""

    method: str
    chosen: dict[str, str]  # tokenizer, recommender
    decoding: str | None  # None: as its options say


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
    return Name(method, chosen, decoding)


def recipe(name: str, dataset: str, overrides: dict[str, Any], preset: Path | None = None) -> Config:
    """The configuration that trains a method: its preset or the data set's, then the command line's options.

    preset: a file in the place of the data set's.
    """
    method, chosen, decoding = split_name(name)
    if decoding and decoding not in DECODINGS.get(method, ()):
        able = [m for m, ways in DECODINGS.items() if decoding in ways]
        raise Problem(f"{name}: {method} is not decoded that way; {', '.join(able)} can be")
    if preset is not None:
        regular_file(preset, "no such configuration")
    found = main.presets(f"{dataset}_{method}", dataset, overrides)
    found += [preset] if preset else main.presets(dataset, dataset, overrides)
    if not found:
        raise Problem(f"config/{dataset}.yaml: no such preset, nor beside the data; copy one for your own data")
    kind = {"method": "diger", "uncertainty": method} if method in DECAYS else {"method": method}
    if method in parts.BASELINES:
        kind = {}  # nothing to train; the protocol is that of the preset
    options = main.preset_of(found[0], overrides, dataset)
    for key in [] if method in (*DECAYS, *parts.GENERATIVE) else ["tokenizer", "recommender"]:
        options.pop(key, None)  # of a preset for other methods
    return configure.build({**options, **overrides, **kind, **chosen})


def check_for_all_rows(overrides: dict[str, Any]) -> None:
    """Problem when an option of the command line is one that a table sets row by row."""
    for key in overrides:
        if key in ("method", "uncertainty"):
            raise Problem(f"--{key}: is what the rows are; name them, as in: two_stage,frqud,sdud")
        if key in ("run_name", "resume"):
            raise Problem(f"--{key}: a table names its runs by their options, finds them again and goes on; drop it")


def is_of(results: dict[str, Any], data: Dataset, cfg: Config) -> bool:
    """Are results those of data, and of the files that options name, as they are now?"""
    earlier = {"sid_path": results.get("sids")}  # all that earlier versions told
    told = results.get("files", earlier)
    return results.get("data") == data.hash and all(
        told.get(key) == file for key, file in build.named_files(cfg).items()
    )


def finished(cfg: Config, data: Dataset) -> RunFolder | None:
    """A finished run of the same options, from its first step, on the same data, whatever its name."""
    for path in sorted((Path(cfg[RunOptions].output_dir) / cfg[DataOptions].dataset).glob("*/config.yaml")):
        run = RunFolder(path.parent)
        same = not settings.differences(upgraded(settings.read_yaml(path)), cfg)
        if same and run.finished and not run.changed and is_of(run.results(), data, cfg):
            return run
    return None


def trained(name: str, cfg: Config, data: Dataset, overrides: dict[str, Any], preset: Path | None = None) -> RunFolder:
    """The run of a method, trained now unless there is one; fine-tuning asks for its first stage."""
    if FineTuningOptions in cfg and cfg[FineTuningOptions].sft_from is None:
        first = recipe("diffsasrec", cfg[DataOptions].dataset, overrides | {"seed": cfg[DataOptions].seed}, preset)
        cfg = configure.change(cfg, sft_from=str(trained("diffsasrec", first, data, overrides).best))
    found = finished(cfg, data)
    if found is not None:
        log.info(f"{name}, seed {cfg[DataOptions].seed}: {found.path}")
        return found
    if CodeOptions in cfg and cfg[CodeOptions].rqvae_path is None:
        build.train_tokenizer(cfg, data)
    options = digest(data.hash, settings.counting(cfg), *build.named_files(cfg).values())
    cfg = configure.change(cfg, run_name=f"compare-{parts.folder_name(cfg)}-{options}", resume="auto")
    run = main.train(cfg, main.SAME_AGAIN)
    log_to(None, main=True)
    if run.changed:
        raise Problem(f"{run.path}: went on with other options than its name stands for; move it away, or remove it")
    if run.results().get("data") != data.hash:
        raise Problem(
            f"{run.path}: was trained on other data than this table began with; a file of {data.name!r} has changed "
            "meanwhile; the same command begins again"
        )
    return run


# ---------------------------------------------------------------- results


def results(
    name: str, configs: list[Config], data: Dataset, overrides: dict[str, Any], preset: Path | None = None
) -> Row:
    """Ranks of every seed: of a floor, of a run, or of a run's checkpoint decoded in another way."""
    method, _, decoding = split_name(name)
    if method in parts.BASELINES:
        cfg = configs[0]
        acc = main.accelerator(cfg)
        found = [evaluate(parts.BASELINES[method](data).to(acc.device), data.test, cfg, acc, name)]
        return Row(name, {0: found[0].rank}, [found[0].figures])
    row = Row(name)
    for cfg in configs:
        run = trained(name, cfg, data, overrides, preset)
        if decoding is None:
            row.ranks[cfg[DataOptions].seed] = read_ranks(run)[1]
            row.figures.append(run.results())
            continue
        run.look_at_test()
        other, model, _ = restore.restore(run.best, [f"--decoding={decoding}"])
        acc = main.accelerator(other)
        again = evaluate(model.to(acc.device), data.test, other, acc, name)
        row.ranks[cfg[DataOptions].seed] = again.rank
        row.figures.append(again.figures)
    return row


def table(rows: list[Row], metrics: list[str]) -> tuple[str, dict[str, Any]]:
    """(text, the same as plain values): mean ± half of the 95 % interval, z against the first row."""
    width = max(len("method (test)"), *(len(r.name) for r in rows))
    heads = [f"{m:>23}" if is_per_user(m) else f"{m:>12}" for m in metrics]
    lines, plain = ["  ".join([f"{'method (test)':<{width}}", "seeds", *heads])], {}
    for row in rows:
        found: dict[str, Any] = {m: row.summary(m, rows[0]) if is_per_user(m) else row.coverage(m) for m in metrics}
        plain[row.name] = {"seeds": len(row.ranks), "users": len(next(iter(row.ranks.values()))), **found}
        cells = []
        for value in found.values():
            if isinstance(value, float):
                cells.append(f"{value:>12.4f}")
            else:
                z = f"z {value['z']:+.1f}" if row is not rows[0] else ""
                cells.append(f"{value['mean']:.4f} ±{value['interval']:.4f} {z:>8}")
        lines.append("  ".join([f"{row.name:<{width}}", f"{len(row.ranks):>5}", *cells]))
    return "\n".join(lines), plain


def paired(runs: dict[str, list[RunFolder]], metrics: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """What each row has more than the first: mean difference and z, paired over users whose seeds are averaged, on
    validation and test.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, each in runs.items():
        for split in ("valid", "test"):
            row = Row(name, {i: read_ranks(run, metrics, split)[1] for i, run in enumerate(each)})
            found.setdefault(name, {}).update({f"{split} {m}": row.per_user(m) for m in metrics})
    first, *others = found
    pairs = {n: {m: paired_difference(x, found[first][m]) for m, x in found[n].items()} for n in others}
    return {n: {m: {"difference": d, "z": z} for m, (d, z) in row.items()} for n, row in pairs.items()}


def paired_table(pairs: dict[str, dict[str, dict[str, float]]], first: str) -> str:
    """The same in Markdown."""
    columns = list(next(iter(pairs.values())))
    lines = [f"| less {first} | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name, row in pairs.items():
        cells = [f"{x['difference']:+.4f} (z {x['z']:+.1f})" for x in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(argv: list[str]) -> dict[str, Any]:
    """Train or find all runs, print and save their table, return it; Problem when they cannot be compared."""
    given, names, overrides = cli.words_and_options(argv, ["seeds", "config"])
    if len(names) != 2:
        raise Problem("compare: needs a data set and methods, as in: scientific sasrec,two_stage,frqud --data_path=DIR")
    dataset, chosen = names[0], list(dict.fromkeys(n for n in re.split(r",(?![^\[]*\])", names[1]) if n))
    if not chosen:
        raise Problem(f"{names[1]!r} names no method; for example sasrec,two_stage,frqud")
    check_for_all_rows(overrides)
    seeds = cli.seeds_asked(given, overrides)
    preset = Path(given["config"]) if "config" in given else None
    configs = {n: [recipe(n, dataset, overrides | {"seed": int(s)}, preset) for s in seeds] for n in chosen}
    check_protocol({n: settings.flat(c[0]) for n, c in configs.items()})
    known = {key for c in configs.values() for key in settings.flat(c[0])}
    if foreign := [key for key in overrides if key not in known]:
        raise Problem(f"--{foreign[0]}: none of {', '.join(chosen)} has this option")
    if len(seeds) > 1 and configs[chosen[0]][0][DataOptions].split == "time_groups":
        raise Problem("split: time_groups draws other users for each seed; compare with one seed")
    log_to(None, main=True)
    cfg = configs[chosen[0]][0]
    folder = make_folder(Path(cfg[RunOptions].output_dir) / cfg[DataOptions].dataset)
    data = read_dataset(cfg[DataOptions])
    trained_on_content = any(build.reads_content(c[0]) for n, c in configs.items() if n not in parts.BASELINES)
    if trained_on_content or "content" in configs:  # else it would stop the table after the others have been trained
        read_embeddings(data)
    rows = [results(n, configs[n], data, overrides, preset) for n in chosen]
    text, plain = table(rows, cfg[EvalOptions].metrics)
    log.info(
        f"\n{text}\n\n{len(data.test)} test users, {data.name}, split {cfg[DataOptions].split}; ± 95 % over "
        f"users, z against {chosen[0]}"
    )
    if len(data.test) < FEW:
        log.warning(f"{len(data.test)} test users rank nothing: read the intervals")
    options = digest(data.hash, chosen, seeds, [settings.counting(configs[n][0]) for n in chosen])
    path = folder / f"compare-{options}.json"  # another question, another file
    write_json(path, plain)
    log.info(f"as JSON: {path}")
    return plain


if __name__ == "__main__":
    keep_freed_memory()
    with problems_exit_2():
        if {"--help", "-h"} & set(sys.argv):
            print(__doc__, cli.help_text(), sep="\n")
        else:
            compare(sys.argv[1:])
