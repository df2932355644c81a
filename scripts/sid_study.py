"""Do metrics that cost nothing predict the recommender? Many kinds of SIDs under one recommender, budget and seeds.

  python scripts/sid_study.py scientific [rqvae,kmeans,random] --data_path=DIR [--seeds 2020,2021,2022]
                              [--vectors_from=SASREC/best_model.pth] [--config FILE] [--key=value ...]

--config names a preset in the place of the data set's own.
Each configuration's tokenizer is pre-trained, its cheap metrics are taken on the validation queries, and two_stage is
trained on it. What is finished is used again, so that a stopped study goes on with the same command. A table, what
each configuration has more than the first one named (paired over users), rank correlations over configurations (means
over seeds; with and without random codes) and two plots are written into
<output_dir>/<data set>/study-<hash of the question>/.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from scipy.stats import kendalltau, rankdata

import settings
from compose import build, cli, parts
from metrics import EvalOptions
from readers.dataset import Dataset, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import charts
from runs.folder import RunFolder, RunOptions
from scripts.compare import paired, paired_table, recipe, trained
from scripts.sid_quality import Subject, measured
from settings import Config
from utils import (
    Problem,
    as_command,
    digest,
    is_file,
    keep_freed_memory,
    log,
    log_to,
    make_folder,
    read_json,
    write_json,
    write_text,
)

FORGE = {
    "tokenizer": "contrastive", "rqvae_assignment": "argmin", "rqvae_epochs": 30, "rqvae_eval_step": 10,
    "rqvae_warmup_epochs": 3,
}  # fmt: skip
KMEANS = {"tokenizer": "rq_kmeans"}  # seconds to make, so that sizes and rules for collisions are varied on it
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "kmeans": KMEANS,
    "K=64": KMEANS | {"num_emb_list": [64] * 3},
    "K=512": KMEANS | {"num_emb_list": [512] * 3},
    "L=2": KMEANS | {"num_emb_list": [256] * 2},
    "L=4": KMEANS | {"num_emb_list": [256] * 4},
    "kmeans+pairs": KMEANS | {"behaviour": "pairs"},
    "kmeans+vectors": KMEANS | {"behaviour": "vectors"},
    "knn-1": KMEANS | {"collision": "knn", "collision_cap": 1},
    "knn-5": KMEANS | {"collision": "knn", "collision_cap": 5},
    "random-5": KMEANS | {"collision": "random", "collision_cap": 5},
    "shared": KMEANS | {"collision": "none"},
    "random": {"tokenizer": "random_codes"},
    "rqvae": {},
    "argmin": {"rqvae_assignment": "argmin"},
    "pairs": {"behaviour": "pairs"},
    "vectors": {"behaviour": "vectors"},
    "both": FORGE,
    "contrastive": FORGE | {"task": "contrastive"},
    "W=3": FORGE | {"pair_window": 3, "rqvae_epochs": 15, "rqvae_eval_step": 5},
    "sum": FORGE | {"mixing": "sum", "rqvae_epochs": 34},
    "both+vectors": FORGE | {"behaviour": "vectors"},
}
CHEAP = ("decoded hit@30", "decoded budget@30", "gini_sid", "gini/level_1", "collision_rate",
         "joint_entropy", "pair_agreement/level_1")  # fmt: skip
DRAWS = 10_000  # of the permutation test and of the bootstrap


def cheap_metrics(cfg: Config, data: Dataset, path: Path) -> dict[str, float]:
    """Load, agreement and embedding hit rate (validation queries) of a run's SIDs, from a file where they were taken.

    Of the codes' reconstruction alone: the content's own rates are the same for all.
    """
    if is_file(path):
        return {str(k): float(v) for k, v in read_json(path).items()}
    model = build.build_model(cfg, data)
    subject = Subject(model.model.sids, model.tokenizer, data)  # type: ignore[attr-defined,arg-type]
    figures, hits = measured(subject, "valid", ("decoded",))
    found = figures | {f"{name} {key}": value for name, rates in hits.items() for key, value in rates.items()}
    write_json(path, found)
    return found


def one(
    name: str, dataset: str, overrides: dict[str, Any], data: Dataset, preset: Path | None
) -> tuple[RunFolder, dict[str, Any]]:
    """A configuration's run with one seed and all its figures, from its own files where it is finished."""
    options = dict(CONFIGURATIONS[name])
    if options.get("behaviour") != "vectors":
        overrides = {k: v for k, v in overrides.items() if k != "vectors_from"}
    cfg = recipe("two_stage", dataset, overrides | options, preset)
    run = trained(name, cfg, data, overrides, preset)
    log_to(None, main=True)
    results = run.results()
    figures = {k: v for k, v in results.items() if k.startswith(("recall@", "ndcg@", "hr@"))}
    valid = {f"valid {k}": v for k, v in results["valid"].items() if k.startswith(("recall@", "ndcg@", "hr@"))}
    return run, cheap_metrics(cfg, data, run.path / "cheap.json") | figures | valid


def correlations(rows: dict[str, dict[str, float]], cheap: str, target: str) -> dict[str, float]:
    """Spearman's rho with its permutation p-value and bootstrap interval (95 %), and Kendall's tau_b."""
    x, y = (np.array([row[key] for row in rows.values()]) for key in (cheap, target))
    random = np.random.default_rng(0)
    if len(set(x)) < 3 or len(set(y)) < 3:
        return {"n": len(x), "rho": float("nan")}
    rho = float(spearman(x[None], y[None])[0])
    by_chance = spearman(x[None], random.permuted(np.tile(y, (DRAWS, 1)), axis=1))
    p = (1 + (np.abs(by_chance) >= abs(rho) - 1e-12).sum()) / (1 + DRAWS)
    drawn = random.integers(0, len(x), (DRAWS, len(x)))
    low, high = np.nanquantile(spearman(x[drawn], y[drawn]), [0.025, 0.975])
    tau = float(kendalltau(x, y).statistic)
    return {"n": len(x), "rho": rho, "p": float(p), "low": float(low), "high": float(high), "tau": tau}


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation of each row, ties at their mean rank; NaN where a row is all alike."""
    a, b = (rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (x, y))
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return found


def table(rows: dict[str, dict[str, float]], columns: list[str]) -> str:
    head = f"{'SIDs':18}" + "  ".join(f"{c.replace('pair_agreement', 'agreement'):>17}" for c in columns)
    body = [f"{name:18}" + "  ".join(f"{row[c]:17.4f}" for c in columns) for name, row in rows.items()]
    return "\n".join([head, *body])


def told(rows: dict[str, dict[str, float]], targets: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """The correlations as text and as plain values, with and without random codes."""
    lines, plain = [f"{'cheap metric':26}{'against':14}{'SIDs':8}   rho      p    95 % interval     tau_b"], []
    real = {k: v for k, v in rows.items() if k != "random"}
    for cheap in CHEAP:
        for target in targets:
            for label, chosen in (("all", rows), ("real", real)):
                found = correlations(chosen, cheap, target)
                plain.append({"cheap": cheap, "target": target, "which": label, **found})
                if "p" in found:
                    lines.append(f"{cheap:26}{target:14}{label:8}{found['rho']:6.2f}  {found['p']:.3f}   "
                                 f"{found['low']:5.2f} ... {found['high']:5.2f}   {found['tau']:6.2f}")  # fmt: skip
    return "\n".join(lines), plain


def study(argv: list[str]) -> dict[str, Any]:
    """The command; returns what it writes as JSON: figures of each configuration, rank correlations."""
    given, names, overrides = cli.words_and_options(argv, ["seeds", "config"])
    if not 1 <= len(names) <= 2:
        raise Problem("sid_study: needs a data set, as in: scientific --data_path=DIR")
    dataset, preset = names[0], Path(given["config"]) if "config" in given else None
    chosen = list(dict.fromkeys(names[1].split(","))) if len(names) == 2 else list(CONFIGURATIONS)
    for name in chosen:
        parts.check_known("configuration", name, CONFIGURATIONS)
        if CONFIGURATIONS[name].get("behaviour") == "vectors" and "vectors_from" not in overrides:
            raise Problem(f"--vectors_from: {name} needs the best_model.pth of a sasrec run; name it, or leave it out")
    seeds = cli.seeds_asked(given, overrides)
    log_to(None, main=True)
    plain = {k: v for k, v in overrides.items() if k != "vectors_from"}
    cfg = recipe("two_stage", dataset, plain, preset)
    if lacking := [m for m in ("recall@10", "ndcg@10") if m not in cfg[EvalOptions].metrics]:
        raise Problem(f"metrics: the study is about {lacking[0]}, which these runs do not measure; add it")
    data = read_dataset(cfg[DataOptions])
    read_embeddings(data)
    each = {n: [one(n, dataset, overrides | {"seed": int(s)}, data, preset) for s in seeds] for n in chosen}
    found = {n: [figures for _, figures in of_seed] for n, of_seed in each.items()}
    rows = {n: {k: float(np.mean([f[k] for f in each])) for k in each[0]} for n, each in found.items()}
    targets: list[str] = [k for k in ("valid ndcg@10", "recall@10", "ndcg@10") if k in rows[chosen[0]]]
    measured_at = [t for t in targets if not t.startswith("valid")]
    pairs = paired({n: [run for run, _ in of_seed] for n, of_seed in each.items()}, measured_at)
    text, told_plain = told(rows, targets)
    pieces = [
        table(rows, [*CHEAP, *targets]),
        *([paired_table(pairs, chosen[0])] if pairs and measured_at else []),
        text,
    ]
    log.info("\n" + "\n\n".join([*pieces, f"{len(seeds)} seeds, {data.name}"]))
    folder = (
        Path(cfg[RunOptions].output_dir)
        / data.name
        / f"study-{digest(data.hash, chosen, seeds, overrides, settings.counting(cfg))}"
    )
    make_folder(folder)
    result = {"seeds": seeds, "mean": rows, "each": found, "paired": pairs, "correlations": told_plain}
    write_json(folder / "study.json", result)
    for cheap in ("decoded hit@30", "gini_sid"):
        points = {name: (row[cheap], row[targets[-1]]) for name, row in rows.items()}
        drawn = charts.scatter(points, x_label=cheap, y_label=targets[-1])
        write_text(folder / f"{cheap.replace(' ', '-')}.svg", drawn)
    log.info(f"written: {folder}")
    return result


if __name__ == "__main__":
    keep_freed_memory()
    as_command(__doc__, study)
