"""Pre-training: from a data set to a tokenizer's checkpoint, whatever its kind; one loop for those that learn.

Where the checkpoint lies and what it holds: sids/checkpoint.py.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from runs import guard
from sids import distributed
from sids.checkpoint import PretrainOptions, Recipe, claim, portable
from sids.table import collision_rate, perplexity
from sids.tokenizer import ROWS, Source, in_pieces, mean_of
from utils import (
    Problem,
    Stopped,
    load_weights,
    log,
    not_finite,
    one_line,
    read_checkpoint,
    write_checkpoint,
    write_json,
)

# ---------------------------------------------------------------- how good it is


@dataclass
class Report:
    """How good a tokenizer is, over the whole catalogue."""

    epoch: int
    collision_rate: float
    reconstruction_error: float  # |x_hat - x|^2 / |x - mean|^2, relative
    codes_used: list[int]
    perplexity: list[float]
    disagreement: list[float] = dataclasses.field(default_factory=list)  # of the codes in training and afterwards

    def beats(self, other: "Report", lowest: float) -> bool:
        """Fewer collisions at a reconstruction error within 10 % of the lowest that any epoch reached.

        The collision rate alone, as published, prefers an untrained tokenizer: codes that mean
        nothing spread best. Held against the lowest error, many small losses cannot add up.
        """
        good, other_good = (r.reconstruction_error <= 1.1 * lowest for r in (self, other))
        return good and (not other_good or self.collision_rate < other.collision_rate)

    def figures(self) -> dict[str, float]:
        """What a checkpoint says of it, under the released names."""
        return {
            "epoch": self.epoch, "best_loss": self.reconstruction_error, "best_collision_rate": self.collision_rate,
        }  # fmt: skip

    def lines(self) -> list[str]:
        levels = zip(self.codes_used, self.perplexity, strict=True)
        error = f"relative reconstruction error {self.reconstruction_error:.4f}"
        return [
            *(f"level {i}: {used} codes used, perplexity {p:.1f}" for i, (used, p) in enumerate(levels, 1)),
            f"collision rate {self.collision_rate:.4f}, {error} (epoch {self.epoch})",
            *self.said_of_training(),
        ]

    def fault(self, n_items: int) -> str | None:
        """Why its semantic IDs would tell little, where they would."""
        flat = [level for level, used in enumerate(self.codes_used, 1) if used == 1]
        if n_items == 1 or not (flat or self.reconstruction_error >= 1):
            return None
        what = f"level {flat[0]} has one code for all items" if flat else "it reconstructs no better than the mean does"
        return (
            f"{what}, so semantic IDs tell little apart; are the embeddings nearly alike? Try "
            "more rqvae_epochs, embeddings of another encoder, or with an RQ-VAE --standardize_embeddings=true"
        )

    def said_of_training(self) -> list[str]:
        if not self.disagreement:
            return []
        by_level = " ".join(f"{share:.3f}" for share in self.disagreement)
        return [f"share of items whose code in training was another than the catalogue's, by level: {by_level}"]


@torch.no_grad()
def measure(model: Any, content_ND: np.ndarray, epoch: int) -> Report:
    """Measure a tokenizer on a catalogue's embeddings, each item by its own code."""
    code_NT = model.encode(content_ND)
    seen_ND = model.seen(content_ND)
    last_N = (code_NT >= 0).sum(1) - 1
    mean_D = mean_of(seen_ND)
    error = spread = 0.0
    for code, last, x in zip(code_NT.split(ROWS), last_N.split(ROWS), in_pieces(seen_ND), strict=True):
        y_ND = model.decode(code.clamp(min=0))[torch.arange(len(code), device=code.device), last]
        error += float((y_ND.cpu() - x).square().sum())
        spread += float((x - mean_D.float()).square().sum())
    usage = [perplexity(code[code >= 0], k) for code, k in zip(code_NT.unbind(1), model.cfg.num_emb_list, strict=True)]
    rate, relative = collision_rate(code_NT), error / max(spread, 1e-12)
    return Report(epoch, rate, relative, [u for u, _ in usage], [p for _, p in usage])


# ---------------------------------------------------------------- making it


def is_made(path: Path) -> bool:
    """Is a tokenizer's checkpoint there, and its pre-training over?"""
    if not (path.with_name("report.json").is_file() and path.is_file()):
        return False
    path.with_name("last.pth").unlink(missing_ok=True)  # of a pre-training that was killed at its end
    log.info(f"tokenizer: {path} has these options, seed and data already; used again")
    return True


def pretrain(recipe: Recipe, path: Path, source: Source) -> None:
    """Make a tokenizer and its checkpoint; log its report. Several processes make what one does."""
    torch.manual_seed(recipe.seed)
    model = recipe.kind(recipe.codes, source.content_ND.shape[1])
    if distributed.processes() > 1 and recipe.loop is None:
        raise Problem(f"tokenizer: {recipe.name} is fitted by one process; start the command without a launcher")
    distributed.of_first(lambda: claim(path.parent))
    if recipe.loop is None:
        model.fit(source, recipe.seed)
        best = measure(model, source.content_ND, 0)
        write_checkpoint(path, portable(recipe, model, best.figures()))
    else:
        advice = "the tokenizer so far is saved; the same command goes on with it"
        with guard.orderly_stop(advice if distributed.rank() == 0 else None):
            best = Pretrainer(recipe, recipe.loop, model, source, path).run()
    for line in best.lines():
        log.info(f"tokenizer: {line}")
    if fault := best.fault(len(source.content_ND)):
        log.warning(f"tokenizer: {fault}")
    distributed.of_first(lambda: write_json(path.with_name("report.json"), dataclasses.asdict(best)))
    path.with_name("last.pth").unlink(missing_ok=True)


class Pretrainer:
    """Epochs over what the tokenizer calls its batches, until the collision rate stops falling."""

    def __init__(self, recipe: Recipe, options: PretrainOptions, model: Any, source: Source, path: Path) -> None:
        self.recipe, self.options, self.source, self.path, self.seed = recipe, options, source, path, recipe.seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.options.rqvae_lr, weight_decay=self.options.rqvae_weight_decay, fused=True
        )
        self.per_epoch = len(self._batches(0))
        self.best: Report | None = None
        self.lowest, self.looked = math.inf, -1  # reconstruction error, epoch of the last look

    def run(self) -> Report:
        """Train to the end; the best checkpoint is on disk afterwards."""
        options, first = self.options, self._resume()
        self.model.begin(self.source, options.rqvae_batch_size, self.seed, fresh=first == 0)
        distributed.agree(self.model)
        progress = tqdm(
            range(first, options.rqvae_epochs), "tokenizer", initial=first, total=options.rqvae_epochs, leave=False,
            disable=None if distributed.rank() == 0 else True,
        )  # fmt: skip
        for epoch in progress:
            if self.best is not None and self.looked - self.best.epoch >= options.rqvae_patience:
                break
            parts = self._epoch(epoch)
            collisions = f"{self.best.collision_rate:.3f}" if self.best else "-"
            progress.set_postfix({k: f"{v:.4g}" for k, v in parts.items()} | {"collisions": collisions})
            if not math.isfinite(sum(parts.values())):
                raise Problem(
                    f"rqvae_lr: the tokenizer's loss is not finite in epoch {epoch}; lower it from {options.rqvae_lr}"
                )
            due = (epoch + 1) % options.rqvae_eval_step == 0 or epoch + 1 == options.rqvae_epochs
            if due:
                self._look(epoch, parts)
            signal = distributed.largest(guard.asked())
            if due or signal or distributed.processes() > 1:  # a launcher does not wait for a long epoch's end
                self._save(epoch)
            if signal:
                raise Stopped(signal)
        assert self.best is not None
        return self.best

    def _batches(self, epoch: int) -> list[Any]:
        found: list[Any] = self.model.batches(self.source, self.options.rqvae_batch_size, self.seed, epoch)
        return found

    def _epoch(self, epoch: int) -> dict[str, float]:
        """One pass; the means of the loss's parts."""
        sums: dict[str, Tensor] = {}
        times: dict[str, int] = {}
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        self.model.train()
        for i, batch in enumerate(self._batches(epoch)):
            step = epoch * self.per_epoch + i
            loss, parts = self.model.loss(batch, step)
            self.optimizer.param_groups[0]["lr"] = self.options.rqvae_lr * self._factor(step)
            self.optimizer.zero_grad()
            loss.backward()
            distributed.average_gradients(self.model)
            self.optimizer.step()
            for key, value in {**parts, **self.model.after_step(self.optimizer)}.items():
                sums[key], times[key] = sums.get(key, 0.0) + value.detach(), times.get(key, 0) + 1
        distributed.average([*sums.values()])
        return {k: float(v) / times[k] for k, v in sums.items()}

    def _factor(self, step: int) -> float:
        """Linear warm-up, then linear fall to zero."""
        warm, total = self.options.rqvae_warmup_epochs * self.per_epoch, self.options.rqvae_epochs * self.per_epoch
        return min((step + 1) / (warm + 1), (total - step) / max(1, total - warm), 1.0)

    def _look(self, epoch: int, parts: dict[str, float]) -> None:
        now = distributed.of_first(lambda: self._measured(epoch))
        log.info(
            f"tokenizer epoch {epoch + 1} | {' | '.join(f'{k} {v:.5f}' for k, v in parts.items())} | "
            f"collisions {now.collision_rate:.4f} | codes {' '.join(map(str, now.codes_used))} | "
            f"perplexity {' '.join(f'{x:.0f}' for x in now.perplexity)}"
        )
        if not math.isfinite(now.reconstruction_error):  # the epoch's last update broke it, after its last finite loss
            raise Problem(
                f"rqvae_lr: the tokenizer is not finite after epoch {epoch}; lower it from {self.options.rqvae_lr}; "
                "nothing of it was saved"
            )
        self.looked, self.lowest = epoch, min(self.lowest, now.reconstruction_error)
        if self.best is None or self.model.keeps_last or now.beats(self.best, self.lowest):
            self.best = now
            state = portable(self.recipe, self.model, now.figures())
            state["optimizer"] = self.optimizer.state_dict()
            distributed.of_first(lambda: write_checkpoint(self.path, state))

    def _measured(self, epoch: int) -> Report:
        found = measure(self.model, self.source.content_ND, epoch)
        found.disagreement = self.model.disagreement(self.options.rqvae_batch_size, self.seed)
        return found

    def _save(self, epoch: int) -> None:
        state = {
            "epoch": epoch, "looked": self.looked, "lowest": self.lowest,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "best": dataclasses.asdict(self.best) if self.best else None,
        }  # fmt: skip
        distributed.of_first(lambda: write_checkpoint(self.path.with_name("last.pth"), state))

    def _resume(self) -> int:
        last = self.path.with_name("last.pth")
        if not last.is_file():
            return 0
        state = read_checkpoint(last)
        try:
            epoch = self._restore(state)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as e:
            raise Problem(f"{last}: not a state of this pre-training ({one_line(e)}); delete it") from None
        if self.best is not None and not self.path.is_file():
            raise Problem(f"{self.path}: is missing, {last} continues from it; put it back, or delete the other too")
        log.info(f"tokenizer: going on after epoch {epoch + 1}")
        return epoch + 1

    def _restore(self, state: dict[str, Any]) -> int:
        """Take what the epochs so far have changed; returns the last one."""
        self.looked, self.lowest = state["looked"], state["lowest"]
        self.best = None if state["best"] is None else Report(**state["best"])
        if bad := not_finite(state["model"]):
            raise ValueError(f"{bad[0]} is not finite")
        load_weights(self.model, state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        return int(state["epoch"])
