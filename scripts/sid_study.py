"""Do metrics that cost nothing predict the recommender? Many kinds of SIDs under one recommender, budget and seeds.

  python scripts/sid_study.py scientific [rqvae,kmeans,random] --data_path=DIR [--seeds 2020,2021,2022]
                              [--vectors_from=SASREC/best_model.pth] [--config FILE] [--key=value ...]

--config names a preset in the place of the data set's own. The kinds are those of config/tables/sids.yaml; when none is
named, all, those with item vectors where --vectors_from says whose. The cheap metrics are taken on the validation
queries. What is finished is used again, so that a stopped study goes on with the same command. A table, what each kind
has more than the first one named (paired over users and seeds), rank correlations over kinds (means over seeds; with
and without random codes) and two plots are written as <output_dir>/<data set>/sid_study-<hash of the question>.*.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np
from scipy.stats import kendalltau, rankdata

from compose import build
from readers.dataset import Dataset, read_embeddings
from runs import charts
from runs.folder import RunFolder
from runs.table import markdown
from scripts import study
from scripts.sid_quality import Subject, measured
from utils import Problem, as_command, is_file, keep_freed_memory, read_json, write_json

CHEAP = ("decoded hit@30", "decoded budget@30", "gini_sid", "gini/level_1", "collision_rate",
         "joint_entropy", "pair_agreement/level_1")  # fmt: skip
METRICS = ("recall@10", "ndcg@10")
TARGETS = ("valid ndcg@10", *METRICS)
DRAWS = 10_000  # of the permutation test and of the bootstrap


def figures_of(run: RunFolder, job: study.Job, data: Dataset) -> dict[str, float]:
    """Accuracy of a run, and the cheap metrics of its SIDs: load, agreement and embedding hit rate of the codes'
    reconstruction (the content's own is the same for all), from a file where they were taken.
    """
    path, told = run.path / "cheap.json", run.results()
    if not is_file(path):
        model = build.build_model(job.cfg, data)
        subject = Subject(model.model.sids, model.tokenizer, data)  # type: ignore[attr-defined,arg-type]
        figures, hits = measured(subject, "valid", ("decoded",))
        write_json(path, figures | {f"{name} {key}": value for name, r in hits.items() for key, value in r.items()})
    of_split = {"": told, "valid ": told["valid"]}
    kept = {f"{s}{k}": v for s, of in of_split.items() for k, v in of.items() if k.startswith(("recall@", "ndcg@"))}
    return {str(k): float(v) for k, v in read_json(path).items()} | kept


def correlations(rows: Mapping[str, Mapping[str, float]], cheap: str, target: str) -> dict[str, float]:
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


def all_correlations(rows: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Of every cheap metric with every target, with and without random codes."""
    which = {"all": rows, "real": {k: v for k, v in rows.items() if k != "random"}}
    return [
        {"cheap": cheap, "target": target, "which": label, **correlations(chosen, cheap, target)}
        for cheap in CHEAP for target in TARGETS for label, chosen in which.items()
    ]  # fmt: skip


def text(rows: Mapping[str, Mapping[str, float]], found: Sequence[Mapping[str, Any]]) -> str:
    """The figures and the correlations, in Markdown."""
    figures = [[name, *(f"{row[c]:.4f}" for c in (*CHEAP, *TARGETS))] for name, row in rows.items()]
    lines = [
        [x["cheap"], x["target"], x["which"], f"{x['rho']:.2f}", f"{x['p']:.3f}",
         f"{x['low']:.2f} ... {x['high']:.2f}", f"{x['tau']:.2f}"]
        for x in found if "p" in x
    ]  # fmt: skip
    heads = ["cheap metric", "against", "SIDs", "rho", "p", "95 % interval", "tau_b"]
    return "\n\n".join([markdown(["SIDs", *CHEAP, *TARGETS], figures), markdown(heads, lines)])


def run(argv: list[str]) -> dict[str, Any]:
    """The command; returns what it writes as JSON: figures of each kind, differences, rank correlations."""
    _, words, ask = study.asked(argv, [])
    if len(words) > 1:
        raise Problem("sid_study: needs a data set, and perhaps kinds of SIDs, as in: scientific rqvae,kmeans")
    names = list(dict.fromkeys(words[0].split(","))) if words else []
    arms = study.chosen_arms(study.read_table(study.TABLES / "sids.yaml"), names, ask.overrides)
    if (vectors := ask.overrides.pop("vectors_from", None)) is not None:
        of = {"vectors_from": vectors}
        arms = {n: replace(arm, options=arm.options | of) if arm.needs else arm for n, arm in arms.items()}
    order = names or list(arms)
    jobs = study.plan({n: replace(arms[n], control=order[0]) for n in order}, ask, METRICS)
    data = study.data_of(jobs)
    read_embeddings(data)
    found = study.run_all(jobs, ask, data, (study.VALID, study.TEST), figures_of)
    rows = found.mean_figures
    related = all_correlations(rows)
    pictures = {
        cheap.replace(" ", "-"): charts.scatter(
            "ndcg@10, test", {name: (row[cheap], row["ndcg@10"]) for name, row in rows.items()}, cheap
        ).svg()
        for cheap in ("decoded hit@30", "gini_sid")
        if rows
    }
    more = {"mean": rows, "each": found.figures, "correlations": related}
    return found.report("sid_study", METRICS, "ndcg@10", text(rows, related), pictures, **more)


if __name__ == "__main__":
    keep_freed_memory()
    as_command(__doc__, run)
