"""What a run says: a line an epoch, the result table, recommendations."""

from typing import Any

import settings
from recommenders.protocol import Hit
from runs.folder import RunFolder
from utils import Problem, log, printable

COLUMNS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


def epoch_line(row: dict[str, Any], *, best: bool) -> str:
    """One readable line an epoch."""
    text = [f"epoch {row['epoch']:>3}", f"loss {row['loss']:.4f}", f"rec {row['loss/rec']:.4f}"]
    if "valid/recall@10" in row:
        text.append(f"valid R@10 {row['valid/recall@10']:.4f}")
    if "valid/ndcg@10" in row:
        text.append(f"N@10 {row['valid/ndcg@10']:.4f}{'*' if best else ' '}")
    if "codes_used/level_1" in row:
        levels = [k.split("_")[-1] for k in row if k.startswith("codes_used/")]
        text.append("codes " + " ".join(str(row[f"codes_used/level_{i}"]) for i in levels))
        text.append("perplexity " + " ".join(f"{row[f'perplexity/level_{i}']:.0f}" for i in levels))
        text.append(f"collisions {row['collision_rate']:.3f}")
    if "noise_scale" in row:
        text.append(f"noise {row['noise_scale']:.2f} on {row['stochastic_share']:.2f}")
        text.append(f"SIDs changed {row['sid_changed']:.3f}")
    return " | ".join([*text, f"{row['samples_per_s']:.0f} samples/s", f"{row['seconds']:.0f} s"])


def log_epoch(row: dict[str, Any], best: bool) -> None:
    """What the log says of an epoch: its line, and the proof in words."""
    log.info(epoch_line(row, best=best))
    proof = {k: v for k, v in row.items() if k.startswith("grad/")}
    if proof:
        levels = sorted({k.split("/")[1] for k in proof})
        parts = [
            f"{lv.replace('_', ' ')}: "
            + ", ".join(f"{k.split('/')[2]} {v:.3g}" for k, v in proof.items() if f"/{lv}/" in k)
            for lv in levels
        ]
        zero = not any(proof.values())
        log.info(
            "  gradient of the recommendation loss at the codebooks | "
            + ("none: detached" if zero else " | ".join(parts))
        )


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    """The table's rows: this run, then whatever stands beside it."""
    return [run.results(), *({**figures, "method": name} for name, figures in run.floors().items())]


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


def show_items(hits: list[Hit]) -> None:
    """Recommendations as a person reads them: rank, log-probability, id, title."""
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>3}  {hit.score:>8.3f}  {printable(hit.item):<16}  {printable(hit.title)}".rstrip())
