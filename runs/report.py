"""What a run says: start-up figures, the result table, SIDs in the field's exchange format."""

from typing import Any

import settings
from model import GenerativeModel, Hit, JointModel, JointOptions
from readers.splits import DataOptions
from runs.folder import RunFolder
from settings import Config
from sids.tokenizer import CodeOptions
from uncertainty import UncertaintyOptions
from utils import log, read_json
from vq import QuantizerOptions

COLUMNS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
KEEP_LOW, MOVE_LOW, MOVE_HIGH = 0.2, 0.01, 1.0


def log_start(cfg: Config, model: Any, fit: Any) -> None:
    """Figures per level that tell harmful, inert and overshooting runs apart before they train."""
    if not isinstance(model, JointModel):
        return
    log.info(
        f"DIGER: uncertainty {cfg[UncertaintyOptions].uncertainty}, gradient {cfg[JointOptions].gradient}, "
        f"forward {cfg[QuantizerOptions].assignment_forward}, "
        f"tau {float(model.decay.tau(model.step)):g}, logit_scale {cfg[QuantizerOptions].logit_scale}"
    )
    if not model.roads:
        log.info(
            "gradient: detached - the recommendation loss does NOT reach the codebooks; every grad/ figure will be zero"
        )
    for level, s in enumerate(model.tokenizer.levels, 1):
        moved = fit.reachable["id"] / s.rms
        log.info(
            f"level {level}: median gap {s.gap:.3g}, logits -{s.scale:.3g} d, P(drawn = nearest) {s.keep:.2f} "
            "where noise falls, "
            f"rms(C) {s.rms:.3g}, reachable movement {fit.reachable['id']:.3g} = {moved:.3g} rms"
        )
        if s.keep < KEEP_LOW:
            log.warning(
                f"level {level}: a noisy item keeps its nearest code with probability {s.keep:.3f} only: the "
                "draw is nearly uniform; "
                "logit_scale: auto measures the distances' own scale"
            )
        if not MOVE_LOW <= moved <= MOVE_HIGH:
            what = "hardly move" if moved < MOVE_LOW else "may overshoot"
            log.warning(
                f"level {level}: with lr_id {cfg[JointOptions].lr_id:g} the codes {what} ({moved:.2g} of their "
                "rms over the run)"
            )


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


def log_epoch(cfg: Config, row: dict[str, Any], best: bool) -> None:
    """What the log says of an epoch: its line, the proof in words, a collapsing codebook called out."""
    log.info(epoch_line(row, best=best))
    epoch_notes(cfg, row)


def epoch_notes(cfg: Config, row: dict[str, Any]) -> None:
    """The proof in words, and a collapsing codebook called out."""
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
    for i, k in enumerate(cfg[CodeOptions].num_emb_list if JointOptions in cfg else (), 1):
        limit = cfg[JointOptions].collapse_perplexity or k / 8
        spread = row.get(f"perplexity/level_{i}")
        if spread is not None and spread < limit:
            log.warning(f"level {i} is collapsing: perplexity {spread:.1f} is below collapse_perplexity {limit:g}")


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    """The table's rows: this run, then whatever stands beside it."""
    rows = [run.results()]
    if run.baselines.is_file():
        rows += [{"method": name, **figures} for name, figures in read_json(run.baselines).items()]
    return rows


def log_results(run: RunFolder) -> None:
    """Print the result table of a finished run."""
    found = run.results()
    wanted = COLUMNS if "recall@10" in found else settings.read_yaml(run.config)["metrics"]
    names = [m for m in wanted if m in found]
    log.info("\n" + "  ".join([f"{'method (test)':<16}", *(f"{n:>9}" for n in names), "codes used     collisions"]))
    for row in rows_of(run):
        used = " ".join(str(v) for k, v in row.items() if k.startswith("codes_used/")) or "-"
        collisions = f"{row['collision_rate']:.4f}" if "collision_rate" in row else "-"
        cells = [f"{row[n]:>{max(9, len(n))}.4f}" for n in names]
        log.info("  ".join([f"{row['method']:<16}", *cells, f"{used:<13}  {collisions}"]))
    log.info(f"\ncheckpoint: {run.best}")
    sids = run.path / f"{run.results()['dataset']}.index.json"
    if sids.is_file():
        log.info(f"SIDs:       {sids}")


def letters(level: int) -> str:
    """Name of a level, from 0: a ... z, aa, ab, ..."""
    before = letters(level // 26 - 1) if level >= 26 else ""
    return before + "abcdefghijklmnopqrstuvwxyz"[level % 26]


def write_index(run: RunFolder, cfg: Config, model: Any) -> None:
    """<dataset>.index.json: item index -> ["<a_12>", "<b_3>", ...], the field's exchange format."""
    if not isinstance(model, GenerativeModel):
        return
    names = [letters(place) for place in range(len(model.sids.vocabulary))]
    rows = enumerate(model.sids.token_NP.tolist())
    sids = {str(i): [f"<{name}_{c}>" for name, c in zip(names, row, strict=True)] for i, row in rows}
    run.save_json(f"{cfg[DataOptions].dataset}.index.json", sids)


def show_items(hits: list[Hit]) -> None:
    """Recommendations as a person reads them: rank, log-probability, id, title."""
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>3}  {hit.score:>8.3f}  {hit.item:<16}  {hit.title}".rstrip())
