"""Is a SID of learned or cut length worth its tokens? Arms of equal length or equal token budget, one recommender.

  python scripts/length_study.py config/ml-100k_varlen.yaml [fixed4,fixed2,cut2] --data_path=DIR [--seeds 2020,2021]
                                 [--history_tokens=64] [--key=value ...]

The preset says data and recommender, an arm (config/tables/lengths.yaml) its tokenizer and length. A finished run is
used again, so that a stopped study goes on with the same command. The table is of means over seeds: tokens of an item
and a history, reconstruction, Recall and NDCG on validation and test, for popular targets (the most frequent tenth of
items) and others, speed; a second one says what each arm has more than the first one named, paired over users and
seeds. Two arms are controls: cut2's lengths dealt out anew, at random or with the shortest for the most frequent items.
All is written as <output_dir>/<data set>/lengths-<hash of the question>.*, with two pictures: how long the codes of
rare and frequent items are (-popularity.svg), and what a number of tokens reconstructs (-error.svg).
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np
import torch

from compose import build, restore
from data import make_batch, within
from metrics import EvalOptions, cutoff, per_user
from readers.dataset import Dataset, read_embeddings
from readers.splits import DataOptions
from runs.folder import RunFolder
from runs.report import read_ranks
from runs.table import markdown
from scripts import study
from scripts.cut_study import CONTROLS, Control, pictures
from settings import Config
from sids.cut import codes_of, relieve, shorten
from sids.files import to_index
from sids.lengths import by_tenth, figures, is_head
from sids.table import SidOptions, SidTable, ended
from sids.tokenizer import CodeOptions
from utils import Problem, as_command, keep_freed_memory, write_json

METRICS = ("recall@10", "ndcg@10")
COLUMNS = ("tokens/event", "search steps", "error p", "error u", "unique", "max group", "history items",
           "history tokens", "tokens p90", "valid ndcg@10", "recall@10", "ndcg@10", "head ndcg@10", "tail ndcg@10",
           "coverage@10", "seconds/epoch", "ms/user")  # fmt: skip


def dealt(name: str, deal: Control, run: RunFolder, of: Config, data: Dataset) -> dict[str, Any]:
    """Whole codes of an arm's tokenizer, cut to the lengths that the arm has, dealt out anew: as a file of SIDs."""
    path, c, count_N = build.train_tokenizer(of, data), of[CodeOptions], data.popularity[1:]
    tokenizer, content_ND = build.tokenizer_of(of, data, path).eval(), read_embeddings(data)
    whole_NT = tokenizer.encode(content_ND).cpu()
    length_N = (codes_of(tokenizer, content_ND, count_N).code_NT >= 0).sum(1).numpy()
    length_N = relieve(whole_NT, deal(length_N, count_N, of[DataOptions].seed), count_N, c.max_group)
    code_NT = shorten(whole_NT, length_N)
    sids = SidTable(code_NT, ended(code_NT, "suffix", c.max_group, count_N), tuple(c.num_emb_list), c.max_group)
    file = path.with_name(f"{data.name}-{name.replace(' ', '_')}.index.json")
    write_json(file, to_index(sids))
    return {"sid_path": str(file), "sid_lengths": "unlike", "num_emb_list": c.num_emb_list}


for name, deal in CONTROLS.items():
    study.SOURCES[f"lengths_{name.replace(' ', '_')}"] = partial(dealt, name, deal)


def history_figures(cfg: Config, data: Dataset, model: Any) -> dict[str, float]:
    """What the test users' histories hold and cost: mean items, mean and 90th percentile of tokens."""
    d = cfg[DataOptions]
    split = within(data.test, d.history_tokens, model.item_tokens).priced(model.item_tokens, d.history_tokens)
    tokens = split.tokens(d.max_his_len)
    return {"history items": float(split.lengths(d.max_his_len).mean()), "history tokens": float(tokens.mean()),
            "tokens p90": float(np.quantile(tokens, 0.9))}  # fmt: skip


def search_steps(cfg: Config, data: Dataset, model: Any) -> float:
    """Tokens that a search looks ahead until nothing can still come in, mean over batches of 64 test users."""
    places: list[set[int]] = []
    scorer = model.recommender.scorer

    def counted(*args: Any) -> Any:
        score = scorer(*args)
        places.append(set())

        def scored(place: int, *rest: Any) -> torch.Tensor:
            places[-1].add(place)
            found: torch.Tensor = score(place, *rest)
            return found

        return scored

    split = within(data.test, cfg[DataOptions].history_tokens, model.item_tokens)
    model.recommender.scorer = counted
    for begin in range(0, min(512, len(split)), 64):
        rows = np.arange(begin, min(begin + 64, len(split)))
        model.recommend(make_batch(split, rows, cfg[DataOptions].max_his_len).history_BS, 10)
    model.recommender.scorer = scorer
    return float(np.mean([len(seen) for seen in places]))


def figures_of(run: RunFolder, job: study.Job, data: Dataset) -> dict[str, float]:
    """Figures of an arm with one seed; what its codes reconstruct is by the tokenizer that they are of."""
    results, count_N, of = run.results(), data.popularity[1:], job.source or job.cfg
    model: Any = restore.restore(run.best).model
    tokenizer = build.tokenizer_of(of, data, build.train_tokenizer(of, data)).eval()
    error_NT = codes_of(tokenizer, read_embeddings(data), count_N).error_NT
    sids = figures(model.sids.code_NT, of[CodeOptions].num_emb_list, count_N, error_NT)
    ndcg = per_user("ndcg@10", torch.from_numpy(read_ranks(run, ["ndcg@10"])[1])).numpy()
    head = is_head(count_N)[data.test.targets - 1]
    tenths = {f"codes of tenth {i}": x for i, x in enumerate(by_tenth(model.item_tokens - 1, count_N), 1)}
    return history_figures(job.cfg, data, model) | tenths | {
        "tokens/event": sids["tokens_per_event"], "tokens/item": float(model.item_tokens.mean()),
        "error p": sids["reconstruction_weighted"], "error u": sids["reconstruction_uniform"],
        "error head": sids["reconstruction_head"], "error tail": sids["reconstruction_tail"],
        "perplexity": sids["perplexity_macro"], "unique": sids["unique_share"], "max group": sids["max_group"],
        "search steps": search_steps(job.cfg, data, model),
        "valid ndcg@10": results["valid"]["ndcg@10"], "recall@10": results["recall@10"], "ndcg@10": results["ndcg@10"],
        "head ndcg@10": float(ndcg[head].mean()), "tail ndcg@10": float(ndcg[~head].mean()),
        "coverage@10": results["coverage@10"], "seconds/epoch": float(np.median([r["seconds"] for r in run.rows()])),
        "ms/user": 1000 / results["users_per_s"],
    }  # fmt: skip


def table(found: Mapping[str, list[dict[str, float]]]) -> str:
    """Means over seeds in Markdown; the standard deviation over seeds behind the accuracies."""

    def cell(column: str, values: list[float]) -> str:
        spread = f" ±{np.std(values, ddof=1):.4f}" if len(values) > 1 and "@10" in column else ""
        small = column.endswith("@10") or column in ("error p", "error u", "unique")
        return f"{np.mean(values):.4f}{spread}" if small else f"{np.mean(values):.2f}"

    lines = [[name, *(cell(c, [row[c] for row in each]) for c in COLUMNS)] for name, each in found.items()]
    return markdown(["arm", *COLUMNS], lines)


def check_measured(cfg: Config) -> None:
    """Problem, before anything is trained, where the runs would lack what the table shows."""
    metrics = cfg[EvalOptions].metrics
    known = {*metrics, f"coverage@{max(map(cutoff, metrics))}"}
    if lacking := [m for m in (*METRICS, "coverage@10") if m not in known]:
        raise Problem(f"metrics: the table shows {lacking[0]}, which these runs do not measure; add it")
    if (rule := cfg[SidOptions].collision) not in ("suffix", "item"):
        raise Problem(f"collision: {rule} shares SIDs, whose tokens this study does not count; use suffix or item")


def run(argv: list[str]) -> dict[str, Any]:
    """Train or find every arm, print and save their table, return its figures."""
    _, words, ask = study.asked(argv, [])
    if ask.preset is None or len(words) > 1:
        raise Problem("length_study: needs a preset, as in: config/ml-100k_varlen.yaml fixed4,cut2 --data_path=DIR")
    names = list(dict.fromkeys(words[0].split(","))) if words else []
    arms = study.chosen_arms(study.read_table(study.TABLES / "lengths.yaml"), names, ask.overrides)
    first = names[0] if names else next(iter(arms))
    jobs = study.plan({n: replace(arm, control=first) for n, arm in arms.items()}, ask, METRICS)
    for job in jobs:
        check_measured(job.cfg)
    data = study.data_of(jobs)
    found = study.run_all(jobs, ask, data, (study.VALID, study.TEST), figures_of)
    drawn = {name: (m["tokens/event"] - 1, m["error p"], [m[f"codes of tenth {i}"] for i in range(1, 11)])
             for name, m in found.mean_figures.items()}  # fmt: skip
    return found.report("lengths", METRICS, "ndcg@10", table(found.figures), pictures(drawn), each=found.figures)


if __name__ == "__main__":
    keep_freed_memory()
    as_command(__doc__, run)
