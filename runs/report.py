"""What a run says: a line an epoch, the result table, recommendations."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

import settings
from metrics import cutoff, is_per_user, per_user
from recommenders.protocol import Recommendation
from runs.folder import RunFolder
from utils import Problem, log, printable, read_json

SCREEN = 120  # characters of an epoch's line
COLUMNS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
PROTOCOL = ("dataset", "split", "time_quantile", "k_core", "short_users", "max_his_len",
            "mask_seen", "metrics", "data_path")  # fmt: skip


def epoch_line(row: dict[str, Any], *, best: bool) -> str:
    """One readable line an epoch; it says less where it would be wider than a screen (metrics.jsonl has all)."""
    text = [f"epoch {row['epoch']:>3}", f"loss {row['loss']:.4f}", f"rec {row['loss/rec']:.4f}"]
    names = {"R@10": "valid/recall@10", "N@10": "valid/ndcg@10"}
    if valid := [f"{name} {row[key]:.4f}" for name, key in names.items() if key in row]:
        text.append(f"valid {' '.join(valid)}{'*' if best else ' '}")
    if "codes_used/level_1" in row:
        levels = [k.split("_")[-1] for k in row if k.startswith("codes_used/")]
        text.append("codes " + " ".join(str(row[f"codes_used/level_{i}"]) for i in levels))
        text.append("perplexity " + " ".join(f"{row[f'perplexity/level_{i}']:.0f}" for i in levels))
        text.append(f"collisions {row['collision_rate']:.3f}")
    if "noise_scale" in row:
        text.append(f"noise {row['noise_scale']:.2f} on {row['stochastic_share']:.2f}")
        text.append(f"changed {row['sid_changed']:.3f}")
    text += [f"{row['samples_per_s']:.0f} samples/s"] if "samples_per_s" in row else []
    text.append(f"{row['seconds']:.0f} s")
    for begin in ("rec ", "perplexity ", "samples/s", "noise ", "codes "):
        if len(" | ".join(text)) > SCREEN:
            text = [t for t in text if begin not in t]
    return " | ".join(text)


class EpochLog:
    """What the log says of an epoch: its line; the proof of the gradient at the start and where it has changed."""

    def __init__(self) -> None:
        self.said: dict[str, float] | None = None

    def __call__(self, row: dict[str, Any], best: bool) -> None:
        log.info(epoch_line(row, best=best))
        proof = {k: v for k, v in row.items() if k.startswith("grad/")}
        if proof and (self.said is None or any(unlike(self.said.get(k, 0.0), v) for k, v in proof.items())):
            self.said = proof
            log.info(f"  gradient of the recommendation loss at the codebooks | {in_words(proof)}")


def unlike(before: float, now: float) -> bool:
    """Has a norm come, gone, or changed by more than a power of ten?"""
    return min(before, now) * 10 < max(before, now)


def in_words(proof: Mapping[str, float]) -> str:
    """Norms by level and road."""
    if not any(proof.values()):
        return "none: detached"
    levels = sorted({k.split("/")[1] for k in proof})
    roads = {lv: [f"{k.split('/')[2]} {v:.3g}" for k, v in proof.items() if f"/{lv}/" in k] for lv in levels}
    return " | ".join(f"{level.replace('_', ' ')}: {', '.join(parts)}" for level, parts in roads.items())


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    """The table's rows: this run, then whatever stands beside it."""
    return [run.results(), *({**figures, "method": name} for name, figures in run.beside().items())]


def log_results(run: RunFolder) -> None:
    """Print the result table of a finished run."""
    found = run.results()
    if not {"method", "dataset"} <= found.keys():
        raise Problem(f"{run.test}: not the results of a run (no method or data set); put the old file back")
    wanted = COLUMNS if "recall@10" in found else settings.read_yaml(run.config).get("metrics")
    names = [m for m in wanted if m in found] if isinstance(wanted, list | tuple) else []
    rows = rows_of(run)
    width = max(16, *(len(row["method"]) for row in rows))
    heads = [f"{'method (test)':<{width}}", *(f"{n:>9}" for n in names), "codes used     collisions"]
    log.info("\n" + "  ".join(heads))
    for row in rows:
        used = " ".join(str(v) for k, v in row.items() if k.startswith("codes_used/")) or "-"
        collisions = f"{row['collision_rate']:.4f}" if "collision_rate" in row else "-"
        cells = [f"{row[n]:>{max(9, len(n))}.4f}" for n in names]
        log.info("  ".join([f"{row['method']:<{width}}", *cells, f"{used:<13}  {collisions}"]))
    log.info(f"\ncheckpoint: {run.best}")
    sids = run.path / f"{run.results()['dataset']}.index.json"
    if sids.is_file():
        log.info(f"SIDs:       {sids}")


def show_items(hits: list[Recommendation]) -> None:
    """Recommendations as a person reads them: rank, log-probability, id, title."""
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>3}  {hit.score:>8.3f}  {printable(hit.item):<16}  {printable(hit.title)}".rstrip())


# ---------------------------------------------------------------- runs side by side


def check_protocol(options: Mapping[str, Mapping[str, Any]], leave: tuple[str, ...] = ()) -> None:
    """Problem when runs, given by name with their options, would be measured in different ways.

    leave: what is told otherwise, like a folder that holds the same data.
    """
    first, *others = options
    for other in others:
        for key in (k for k in PROTOCOL if k not in leave):
            ours, theirs = options[first].get(key), options[other].get(key)
            if ours != theirs:
                both = ours
                if isinstance(ours, list) and isinstance(theirs, list):
                    both = ",".join(m for m in ours if m in theirs)
                raise Problem(
                    f"{key}: {ours!r} for {first} but {theirs!r} for {other}; figures of different protocols "
                    f"cannot be compared, set the same for all, for example --{key}={both}"
                )


def read_ranks(run: RunFolder, wanted: Iterable[str] = (), split: str = "test") -> np.ndarray:
    """Users and ranks [2, users] of a finished run; Problem where they are not those that its test.json was made of, or
    its lists were too short for one of the wanted metrics: a target that is missing has their length for a rank.

    split: test, valid, or what was measured later and has its figures in <split>.json.
    """
    path, told = run.path / f"ranks-{split}.npy", run.results()
    figures: Any = told.get("valid") if split == "valid" else told
    if split not in ("test", "valid"):
        figures = read_json(run.path / f"{split}.json")
    if not isinstance(figures, dict):
        what = "the validation" if split == "valid" else split
        raise Problem(f"{run.test}: holds no figures of {what}; put the old file back")
    known = [m for m in figures if "@" in m and "/" not in m and is_per_user(m)]
    longest = told.get("list_length", max(map(cutoff, known), default=0))
    if short := [m for m in wanted if cutoff(m) > longest]:
        raise Problem(f"{run.path}: its lists are of {longest} items, too short for {short[0]}")
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
        rank = torch.from_numpy(found[1])
    except (OSError, ValueError, EOFError, IndexError, TypeError) as e:
        raise Problem(f"{path}: not readable ({' '.join(str(e).split())[:160]}); train that run again") from None
    for metric in known:
        value = float(per_user(metric, rank).mean())
        if abs(value - figures[metric]) > 1e-9:
            raise Problem(
                f"{path}: gives {metric} {value:.6f}, {run.test.name} says {figures[metric]:.6f}; train that run again "
                "(delete its folder, or choose other options)"
            )
    return found
