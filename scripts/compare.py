"""One table of several methods on one data set: same split, same users, several seeds.

  python scripts/compare.py scientific sasrec,diffsasrec,two_stage,frqud --data_path=DIR [--seeds 2020,2021] [--key=value ...]

Methods: sasrec, diffsasrec, diffsasrec_sft, two_stage, a decay (frqud, sdud, ...), popularity, content;
with _multi or _autoregressive behind it, one of the first three is decoded that way. A method's preset is
config/<data set>_<method>.yaml, else config/<data set>.yaml. Finished runs of the same options are reused.
z compares with the first method, paired over users.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import main
import methods
import report
import settings
from metrics import is_per_user, paired_difference, per_user
from pretrain import pretrain
from readers import Dataset, read_dataset, read_embeddings
from runs import RunFolder
from settings import Config
from trainer import evaluate
from uncertainty import STRATEGIES
from utils import Problem, digest, keep_freed_memory, log, log_to, problems_exit_2, write_json

DECODINGS = {
    "sasrec": ("autoregressive",),
    "diffsasrec": ("multi", "autoregressive"),
    "diffsasrec_sft": ("multi", "autoregressive"),
}
PROTOCOL = ("dataset", "split", "time_quantile", "reference", "test_size", "k_core", "short_users", "max_his_len",
            "mask_seen", "metrics", "data_path")  # fmt: skip
FREE = {"run_name", "resume", "log_dir", "num_workers", "with_two_stage", "data_path", "output_dir"}
FEW = 300  # test users below which differences of the usual size cannot be told from chance


@dataclass(frozen=True)
class Row:
    """A method's results: ranks [seeds, users] of the targets, figures per seed."""

    name: str
    rank: np.ndarray
    figures: list[dict[str, Any]]

    def per_user(self, metric: str) -> torch.Tensor:
        """Mean over seeds of a metric of each user, [users]."""
        return torch.stack([per_user(metric, torch.from_numpy(r)) for r in self.rank]).mean(0)

    def summary(self, metric: str, base: "Row") -> dict[str, Any]:
        """Mean, half of the 95 % interval over users, z against another row, mean of each seed."""
        ours = self.per_user(metric)
        seeds = [float(per_user(metric, torch.from_numpy(r)).mean()) for r in self.rank]
        half = 1.96 * float(ours.std()) / len(ours) ** 0.5 if len(ours) > 1 else 0.0
        z = paired_difference(ours, base.per_user(metric))[1]
        return {"mean": float(ours.mean()), "interval": half, "z": z, "seeds": seeds}

    def coverage(self, metric: str) -> float:
        return float(np.mean([f[metric] for f in self.figures]))


# ---------------------------------------------------------------- what is to be run


def split_name(name: str) -> tuple[str, str | None]:
    """(method, decoding) of a name like diffsasrec_multi; None: as its options say."""
    for decoding in ("multi", "autoregressive"):
        if name.endswith(f"_{decoding}"):
            return name.removesuffix(f"_{decoding}"), decoding
    return name, None


def recipe(name: str, dataset: str, overrides: dict[str, Any]) -> Config:
    """The configuration that trains a method: its preset or the data set's, then the command line's options."""
    method, decoding = split_name(name)
    if decoding and decoding not in DECODINGS.get(method, ()):
        able = [m for m, ways in DECODINGS.items() if decoding in ways]
        raise Problem(f"{name}: {method} is not decoded that way; {', '.join(able)} can be")
    found = [p for p in (ROOT / "config" / f"{stem}.yaml" for stem in (f"{dataset}_{method}", dataset)) if p.is_file()]
    if not found:
        raise Problem(f"config/{dataset}.yaml: no such preset; copy one for your own data")
    kind = {"method": "diger", "uncertainty": method} if method in STRATEGIES else {"method": method}
    if method in methods.FLOORS:
        kind = {}  # nothing to train; the protocol is that of the preset
    else:
        methods.check(kind["method"])
    return settings.build(main.options_of(found[0], settings.read_yaml(found[0]), overrides, dataset) | kind)


def check_protocol(configs: dict[str, Config]) -> None:
    """Problem when two methods would be measured in different ways."""
    first, *others = configs
    ours = settings.flat(configs[first])
    for other in others:
        theirs = settings.flat(configs[other])
        for key in PROTOCOL:
            if ours[key] != theirs[key]:
                raise Problem(
                    f"{key}: {ours[key]!r} for {first} but {theirs[key]!r} for {other}; figures of unlike protocols "
                    f"cannot be compared, set --{key}=... for all"
                )


def options_of(cfg: Config) -> dict[str, Any]:
    """The options that a run's results depend on."""
    return {k: v for k, v in settings.flat(cfg).items() if k not in FREE}


def finished(cfg: Config, data: Dataset) -> RunFolder | None:
    """A finished run of the same options on the same data, whatever its name."""
    for path in sorted((Path(cfg.run.output_dir) / cfg.data.dataset).glob("*/config.yaml")):
        run, saved = RunFolder(path.parent), settings.read_yaml(path)
        same = all(saved.get(k) == v for k, v in options_of(cfg).items())
        if same and run.finished and run.results().get("data") == data.hash:
            return run
    return None


def trained(name: str, cfg: Config, data: Dataset, overrides: dict[str, Any]) -> RunFolder:
    """The run of a method, trained now unless there is one; fine-tuning asks for its first stage."""
    if cfg.run.method == "diffsasrec_sft" and cfg.sequence.sft_from is None:
        first = recipe("diffsasrec", cfg.data.dataset, overrides | {"seed": cfg.data.seed})
        cfg = settings.replace(cfg, sft_from=str(trained("diffsasrec", first, data, overrides).best))
    found = finished(cfg, data)
    if found is not None:
        log.info(f"{name}, seed {cfg.data.seed}: {found.path}")
        return found
    if cfg.run.method in methods.CONTENT and cfg.joint.rqvae_path is None:
        pretrain(cfg, data)
    options = digest(data.hash, options_of(cfg))
    run = main.train(settings.replace(cfg, run_name=f"compare-{report.label(cfg)}-{options}", resume="auto"))
    log_to(None, main=True)
    if run.results().get("data") != data.hash:
        raise Problem(
            f"{run.path}: was trained on other data than this table began with; a file of {data.name!r} has changed "
            "meanwhile; the same command begins again"
        )
    return run


# ---------------------------------------------------------------- results


def results(name: str, configs: list[Config], data: Dataset, overrides: dict[str, Any]) -> Row:
    """Ranks of every seed: of a floor, of a run, or of a run's checkpoint decoded in another way."""
    method, decoding = split_name(name)
    if method in methods.FLOORS:
        cfg = configs[0]
        acc = main.accelerator(cfg)
        found = [evaluate(methods.FLOORS[method](cfg, data).to(acc.device), data.test, cfg, acc, name)]
        return Row(name, found[0].rank[None], [found[0].figures])
    ranks, figures = [], []
    for cfg in configs:
        run = trained(name, cfg, data, overrides)
        if decoding is None:
            ranks.append(saved_ranks(run))
            figures.append(run.results())
            continue
        run.look_at_test()
        other, model, _ = main.restore(str(run.best), [f"--decoding={decoding}"])
        acc = main.accelerator(other)
        again = evaluate(model.to(acc.device), data.test, other, acc, name)
        ranks.append(again.rank)
        figures.append(again.figures)
    return Row(name, np.stack(ranks), figures)


def saved_ranks(run: RunFolder) -> np.ndarray:
    """Ranks [users] of a finished run; Problem where they are not those that its test.json was made of."""
    path, told = run.path / "ranks-test.npy", run.results()
    try:
        rank: np.ndarray = np.load(path, allow_pickle=False)[1]
    except (OSError, ValueError, EOFError, IndexError) as e:
        raise Problem(f"{path}: not readable ({' '.join(str(e).split())[:160]}); train that run again") from None
    for metric in (m for m in told if "@" in m and is_per_user(m)):
        found = float(per_user(metric, torch.from_numpy(rank)).mean())
        if abs(found - told[metric]) > 1e-9:  # for one: ranks above 32,767 that an earlier version cut to 16 bits
            raise Problem(
                f"{path}: gives {metric} {found:.6f}, {run.test.name} says {told[metric]:.6f}; train that run again "
                "(delete its folder, or choose other options)"
            )
    return rank


def table(rows: list[Row], metrics: list[str]) -> tuple[str, dict[str, Any]]:
    """(text, the same as plain values): mean ± half of the 95 % interval, z against the first row."""
    width = max(len("method (test)"), *(len(r.name) for r in rows))
    heads = [f"{m:>23}" if is_per_user(m) else f"{m:>12}" for m in metrics]
    lines, plain = ["  ".join([f"{'method (test)':<{width}}", "seeds", *heads])], {}
    for row in rows:
        found: dict[str, Any] = {m: row.summary(m, rows[0]) if is_per_user(m) else row.coverage(m) for m in metrics}
        plain[row.name] = {"seeds": len(row.rank), "users": row.rank.shape[1], **found}
        cells = []
        for value in found.values():
            if isinstance(value, float):
                cells.append(f"{value:>12.4f}")
            else:
                z = f"z {value['z']:+.1f}" if row is not rows[0] else ""
                cells.append(f"{value['mean']:.4f} ±{value['interval']:.4f} {z:>8}")
        lines.append("  ".join([f"{row.name:<{width}}", f"{len(row.rank):>5}", *cells]))
    return "\n".join(lines), plain


def compare(argv: list[str]) -> dict[str, Any]:
    """Train or find all runs, print and save their table, return it; Problem when they cannot be compared."""
    given, words = main.take(argv, ["seeds", "data_path"])
    names = [w for w in words if not w.startswith("-")]
    overrides = settings.parse_overrides([w for w in words if w not in names])
    overrides |= {"data_path": given["data_path"]} if "data_path" in given else {}
    if len(names) != 2:
        raise Problem("compare: needs a data set and methods, as in: scientific sasrec,two_stage,frqud --data_path=DIR")
    dataset, chosen = names[0], list(dict.fromkeys(n for n in names[1].split(",") if n))
    if not chosen:
        raise Problem(f"{names[1]!r} names no method; for example sasrec,two_stage,frqud")
    seeds = list(dict.fromkeys(given.get("seeds", str(overrides.pop("seed", 2020))).split(",")))
    if bad := [s for s in seeds if not s.isdecimal()]:
        raise Problem(f"--seeds: expected whole numbers separated by commas, got {bad[0]!r}")
    configs = {n: [recipe(n, dataset, overrides | {"seed": int(s)}) for s in seeds] for n in chosen}
    check_protocol({n: c[0] for n, c in configs.items()})
    if len(seeds) > 1 and configs[chosen[0]][0].data.reference and configs[chosen[0]][0].data.split == "time":
        raise Problem("reference: its split by time draws other users for each seed; compare with one seed")
    log_to(None, main=True)
    cfg = configs[chosen[0]][0]
    data = read_dataset(cfg.data)
    trained_on_content = any(c[0].run.method in methods.CONTENT for n, c in configs.items() if n not in methods.FLOORS)
    if trained_on_content or "content" in configs:  # else it would stop the table after the others have been trained
        read_embeddings(data)
    rows = [results(n, configs[n], data, overrides) for n in chosen]
    text, plain = table(rows, cfg.eval.metrics)
    log.info(
        f"\n{text}\n\n{len(data.test)} test users, {data.name}, split {cfg.data.split}; ± 95 % over users, z against {chosen[0]}"
    )
    if len(data.test) < FEW:
        log.warning(f"{len(data.test)} test users rank nothing: read the intervals")
    options = digest(data.hash, chosen, seeds, [options_of(configs[n][0]) for n in chosen])
    path = Path(cfg.run.output_dir) / cfg.data.dataset / f"compare-{options}.json"  # another question, another file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, plain)
    log.info(f"as JSON: {path}")
    return plain


if __name__ == "__main__":
    keep_freed_memory()
    with problems_exit_2():
        if {"--help", "-h"} & set(sys.argv):
            print(__doc__, settings.help_text(), sep="\n")
        else:
            compare(sys.argv[1:])
