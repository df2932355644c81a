"""Is a SID of learned or cut length worth its tokens? Arms of equal length or equal token budget, one recommender.

  python scripts/length_study.py config/ml-100k_varlen.yaml [fixed4,fixed2,cut2] --data_path=DIR [--seeds 2020,2021]
                                 [--history_tokens=64] [--key=value ...]

The preset says data and recommender, an arm its tokenizer and length. A finished run is used again, so that a stopped
study goes on with the same command. The table is of means over seeds: tokens of an item and a history, reconstruction,
Recall and NDCG on validation and test, for popular targets (the most frequent tenth of items) and others, speed; a
second one says what each arm has more than the first one named, paired over users.
Two arms are controls: cut2's lengths dealt out anew, at random or with the shortest for the most frequent items.
All is written as <output_dir>/<data set>/lengths-<hash of the question>.json too, with two pictures: how long the codes
of rare and frequent items are (-popularity.svg), and what a number of tokens reconstructs (-error.svg).
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import main
import settings
from compose import build, cli, configure, parts, restore
from data import make_batch, within
from metrics import EvalOptions, cutoff, per_user
from readers.dataset import Dataset, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import charts
from runs.folder import RunFolder, RunOptions
from runs.report import read_ranks
from scripts.compare import paired, paired_table, trained
from scripts.cut_study import CONTROLS
from settings import Config
from sids.cut import codes_of, count_weights, relieve, shorten
from sids.files import spelled
from sids.lengths import by_tenth, figures, is_head
from sids.table import SidOptions, SidTable, ended
from sids.tokenizer import CodeOptions
from utils import Problem, as_command, digest, keep_freed_memory, log, log_to, write_json, write_text

KMEANS = {"tokenizer": "rq_kmeans", "kmeans_start": "kmeans++", "kmeans_iters": 40, "weights": "counts"}
DVAE = {"tokenizer": "dvae"}
RQVAE = {"tokenizer": "rqvae", "num_emb_list": [256] * 3, "target_length": None, "layers": [512, 256, 128],
         "e_dim": 64, "rqvae_epochs": 300, "rqvae_eval_step": 20, "rqvae_patience": 200, "rqvae_warmup_epochs": 5,
         "rqvae_batch_size": 1024, "rqvae_lr": 1e-3, "rqvae_weight_decay": 1e-4}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    **{f"fixed{n}": KMEANS | {"num_emb_list": [256] * n, "target_length": None} for n in (2, 3, 4)},
    **{f"cut{n}": KMEANS | {"num_emb_list": [256] * 4, "target_length": float(n)} for n in (2, 3)},
    "fixed4 uniform": KMEANS | {"num_emb_list": [256] * 4, "target_length": None, "weights": "uniform"},
    "cut2 uniform": KMEANS | {"num_emb_list": [256] * 4, "target_length": 2.0, "weights": "uniform"},
    **{f"dvae{n}": DVAE | {"num_emb_list": [256] * n, "target_length": None, "length": "fixed"} for n in (2, 3, 4)},
    **{f"dvae cut{n}": DVAE | {"target_length": float(n)} for n in (2, 3)},
    **{f"dvae learned{n}": DVAE | {"target_length": float(n), "length": "learned"} for n in (2, 3)},
    "dvae cut2 uniform": DVAE | {"target_length": 2.0, "weights": "uniform"},
    "rqvae3": RQVAE,
}  # fmt: skip
DEALT = {f"cut2 {name}": deal for name, deal in CONTROLS.items()}  # lengths of cut2, dealt out anew
ARMS |= dict.fromkeys(DEALT, ARMS["cut2"])
NEEDED = ("recall@10", "ndcg@10", "coverage@10")
COLUMNS = ("tokens/event", "search steps", "error p", "error u", "unique", "max group", "history items",
           "history tokens", "tokens p90", "valid ndcg@10", "recall@10", "ndcg@10", "head ndcg@10", "tail ndcg@10",
           "coverage@10", "seconds/epoch", "ms/user")  # fmt: skip


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


class Arm(NamedTuple):
    """What is trained, and the figures of its SIDs."""

    cfg: Config
    sids: dict[str, Any]


def plain(cfg: Config, data: Dataset) -> Arm:
    """An arm whose tokenizer makes its SIDs; it is trained where it has not been."""
    path = build.train_tokenizer(cfg, data)
    return Arm(cfg, build.sid_figures(cfg, data, path))


def control(name: str, of: Config, data: Dataset, preset: dict[str, Any], overrides: dict[str, Any]) -> Arm:
    """Whole codes of an arm's tokenizer, cut to the lengths that the arm has, dealt out anew."""
    path, seed = build.train_tokenizer(of, data), of[DataOptions].seed
    tokenizer, c, count_N = build.tokenizer_of(of, data, path).eval(), of[CodeOptions], data.popularity[1:]
    content_ND = read_embeddings(data)
    short_NT, error_NT = codes_of(tokenizer, content_ND, count_N)
    whole_NT = tokenizer.encode(content_ND).cpu()
    length_N = DEALT[name]((short_NT >= 0).sum(1).numpy(), count_N, seed)
    code_NT = shorten(whole_NT, relieve(whole_NT, length_N, count_N, c.max_group))
    sids = SidTable(code_NT, ended(code_NT, "suffix", c.max_group, count_N), tuple(c.num_emb_list), c.max_group)
    file = path.with_name(f"{data.name}-{name.replace(' ', '_')}.index.json")
    write_json(file, spelled(sids))
    options = {"tokenizer": "given", "sid_path": str(file), "sid_lengths": "unlike", "target_length": None,
             "num_emb_list": c.num_emb_list, "seed": seed}  # fmt: skip
    return Arm(configure.build({**preset, **options}, overrides | {"seed": seed}),
               figures(code_NT, c.num_emb_list, count_N, error_NT))  # fmt: skip


def of_run(run: RunFolder, arm: Arm, data: Dataset) -> dict[str, float]:
    """Figures of an arm with one seed."""
    cfg, sids = arm
    results, count_N = run.results(), data.popularity[1:]
    model: Any = restore.restore(run.best).model
    ndcg = per_user("ndcg@10", torch.from_numpy(read_ranks(run, ["ndcg@10"])[1])).numpy()
    head = is_head(count_N)[data.test.targets - 1]
    seconds = [row["seconds"] for row in run.rows()]
    assert abs(float(count_weights(count_N) @ model.item_tokens) - sids["tokens_per_event"]) < 1e-6
    tenths = {f"codes of tenth {i}": x for i, x in enumerate(by_tenth(model.item_tokens - 1, count_N), 1)}
    return history_figures(cfg, data, model) | tenths | {
        "tokens/event": sids["tokens_per_event"], "tokens/item": float(model.item_tokens.mean()),
        "error p": sids["reconstruction_weighted"], "error u": sids["reconstruction_uniform"],
        "error head": sids["reconstruction_head"], "error tail": sids["reconstruction_tail"],
        "perplexity": sids["perplexity_macro"], "unique": sids["unique_share"], "max group": sids["max_group"],
        "search steps": search_steps(cfg, data, model),
        "valid ndcg@10": results["valid"]["ndcg@10"], "recall@10": results["recall@10"], "ndcg@10": results["ndcg@10"],
        "head ndcg@10": float(ndcg[head].mean()), "tail ndcg@10": float(ndcg[~head].mean()),
        "coverage@10": results["coverage@10"], "seconds/epoch": float(np.median(seconds)),
        "ms/user": 1000 / results["users_per_s"],
    }  # fmt: skip


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds in Markdown; the standard deviation over seeds behind the accuracies."""
    lines = [f"| arm | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 1)]
    for name, each in found.items():
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in each]
            spread = f" ±{np.std(values, ddof=1):.4f}" if len(values) > 1 and "@10" in column else ""
            small = column.endswith("@10") or column in ("error p", "error u", "unique")
            cells.append(f"{np.mean(values):.4f}{spread}" if small else f"{np.mean(values):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pictures(found: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    """Length against popularity, error against tokens: means over seeds, as SVG."""
    mean = {name: {k: float(np.mean([row[k] for row in each])) for k in each[0]} for name, each in found.items()}
    uneven = {name: m for name, m in mean.items() if len({m[f"codes of tenth {i}"] for i in range(1, 11)}) > 1}
    error: dict[str, list[tuple[float, float]]] = {}
    for name, m in mean.items():
        error.setdefault(re.sub(r"\d", "", name), []).append((m["tokens/event"] - 1, m["error p"]))
    drawn = {"error": charts.curves({k: sorted(p) for k, p in error.items()}, x_label="codes of an interaction's item",
                                    y_label="weighted error")}  # fmt: skip
    if uneven:
        length = {name: [(i, m[f"codes of tenth {i}"]) for i in range(1, 11)] for name, m in uneven.items()}
        drawn["popularity"] = charts.curves(length, x_label="tenth of the items, the rarest first", y_label="codes")
    return drawn


def check_measured(cfg: Config) -> None:
    """Problem, before anything is trained, where the runs would lack what the table shows."""
    metrics = cfg[EvalOptions].metrics
    measured = {*metrics, f"coverage@{max(map(cutoff, metrics))}"}
    if lacking := [m for m in NEEDED if m not in measured]:
        raise Problem(f"metrics: the table shows {lacking[0]}, which these runs do not measure; add it")
    if (rule := cfg[SidOptions].collision) not in ("suffix", "item"):
        raise Problem(f"collision: {rule} shares SIDs, whose tokens this study does not count; use suffix or item")


def study(argv: list[str]) -> dict[str, Any]:
    """Train or find every arm, print and save their table, return its figures."""
    given, names, overrides = cli.words_and_options(argv, ["seeds"])
    if not 1 <= len(names) <= 2:
        raise Problem("length_study: needs a preset, as in: config/ml-100k_varlen.yaml fixed4,cut2 --data_path=DIR")
    chosen = names[1].split(",") if len(names) == 2 else list(ARMS)
    for name in chosen:
        parts.check_known("arm", name, ARMS)
    preset, seeds = main.preset_of(Path(names[0]), overrides), cli.seeds_asked(given, overrides)
    fixed = {"method", "rqvae_path", *(key for name in chosen for key in ARMS[name])}
    if own := [key for key in overrides if key in fixed]:
        raise Problem(f"--{own[0]}: is what the arms differ in; drop it, or choose other arms")
    preset |= {"method": "two_stage", "rqvae_path": None}
    log_to(None, main=True)
    shared = preset | overrides  # what an arm does not read is none of its concern
    configs = {n: [configure.build({**shared, **ARMS[n], "seed": int(s)}) for s in seeds] for n in chosen}
    cfg = configs[chosen[0]][0]
    check_measured(cfg)
    data = read_dataset(cfg[DataOptions])

    def arm(name: str, cfg: Config) -> Arm:
        return control(name, cfg, data, preset, overrides) if name in DEALT else plain(cfg, data)

    runs: dict[str, list[RunFolder]] = {n: [] for n in configs}
    found: dict[str, list[dict[str, float]]] = {n: [] for n in configs}
    for name, each in configs.items():
        for seeded in (arm(name, c) for c in each):
            runs[name].append(trained(name, seeded.cfg, data, overrides))
            log_to(None, main=True)
            found[name].append(of_run(runs[name][-1], seeded, data))
    pairs = paired(runs, ("recall@10", "ndcg@10"))
    text = "\n\n".join([table(found), *([paired_table(pairs, chosen[0])] if pairs else [])])
    log.info(f"\n{text}\n\n{data.name}, {len(data.test)} test users, seeds {', '.join(seeds)}")
    question = digest(data.hash, chosen, seeds, [settings.counting(c[0]) for c in configs.values()])
    path = Path(cfg[RunOptions].output_dir) / data.name / f"lengths-{question}.json"
    result = {"seeds": seeds, "each": found, "paired": pairs}
    write_json(path, result)
    for name, drawing in pictures(found).items():
        write_text(path.with_name(f"{path.stem}-{name}.svg"), drawing)
    log.info(f"as JSON and pictures: {path}")
    return result


if __name__ == "__main__":
    keep_freed_memory()
    as_command(__doc__, study)
