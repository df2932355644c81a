"""Pre-training of the RQ-VAE tokenizer, its own stage with its own checkpoint (method, section 2)."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import guard
from layers import collision_rate, perplexity
from readers import Dataset, read_embeddings
from settings import Config
from utils import Problem, digest, log, read_checkpoint, write_checkpoint, write_json
from vq import RQVAE


def checkpoint_path(cfg: Config, data: Dataset) -> Path:
    """Where the tokenizer of these options, seed and data lies: equal ones share it."""
    options = [dataclasses.asdict(part) for part in (cfg.tokenizer, cfg.pretrain)]
    name = digest(*options, cfg.data.seed, cfg.joint.catalogue_assignment, data.hash)
    return Path(cfg.run.output_dir) / cfg.data.dataset / f"rqvae-{name}" / "best_collision_model.pth"


@dataclass
class Report:
    """How good a tokenizer is, over the whole catalogue."""

    epoch: int
    collision_rate: float
    reconstruction_error: float  # |x_hat - x|^2 / |x - mean|^2, relative
    codes_used: list[int]
    perplexity: list[float]

    def beats(self, other: "Report", lowest: float) -> bool:
        """Fewer collisions at a reconstruction error within 10 % of the lowest that any epoch reached.

        The collision rate alone, as published, prefers an untrained tokenizer: codes that mean
        nothing spread best. Held against the lowest error, many small losses cannot add up.
        """
        good, other_good = (r.reconstruction_error <= 1.1 * lowest for r in (self, other))
        return good and (not other_good or self.collision_rate < other.collision_rate)

    def lines(self) -> list[str]:
        levels = zip(self.codes_used, self.perplexity, strict=True)
        return [
            *(f"level {i}: {used} codes used, perplexity {p:.1f}" for i, (used, p) in enumerate(levels, 1)),
            f"collision rate {self.collision_rate:.4f}, relative reconstruction error {self.reconstruction_error:.4f} (epoch {self.epoch})",
        ]


@torch.no_grad()
def report(model: RQVAE, x_ND: torch.Tensor, epoch: int, rule: str) -> Report:
    """Measure a tokenizer on prepared embeddings."""
    was, _ = model.training, model.eval()
    z = torch.cat([model.encoder(x) for x in x_ND.split(8192)])
    code_NL = model.rq.assign(z, rule)
    q = torch.stack([c[i] for c, i in zip(model.rq.codebooks(), code_NL.unbind(1), strict=True)]).sum(0)
    error = 0.0
    for a, x in zip(q.split(8192), x_ND.split(8192), strict=True):
        error += float((model.decoder(a) - x).square().sum())
    spread = float((x_ND - x_ND.mean(0)).square().sum())
    usage = [perplexity(code, k) for code, k in zip(code_NL.unbind(1), model.cfg.num_emb_list, strict=True)]
    model.train(was)
    return Report(
        epoch, collision_rate(code_NL), error / max(spread, 1e-12), [u for u, _ in usage], [p for _, p in usage]
    )


def pretrain(cfg: Config, data: Dataset) -> Path:
    """Train the tokenizer unless its checkpoint is there; print its report; return its path."""
    path = checkpoint_path(cfg, data)
    done = path.with_name("report.json")
    if done.is_file() and path.is_file():
        log.info(f"tokenizer: {path} has these options, seed and data already; used again")
        return path
    torch.manual_seed(cfg.data.seed)
    content_ND = torch.from_numpy(np.array(read_embeddings(data), np.float32))
    model = RQVAE(cfg.tokenizer, content_ND.shape[1])
    if cfg.tokenizer.standardize_embeddings:
        model.get_buffer("shift").copy_(content_ND.mean(0))
        model.get_buffer("spread").copy_((content_ND - content_ND.mean(0)).std())
    guard.lock(path.parent)
    with guard.orderly_stop("the tokenizer so far is saved; the same command goes on with it"):
        best = _Training(cfg, model, model.prepare(content_ND), path).run()
    for line in best.lines():
        log.info(f"tokenizer: {line}")
    write_json(done, dataclasses.asdict(best))
    path.with_name("last.pth").unlink(missing_ok=True)
    return path


class _Training:
    def __init__(self, cfg: Config, model: RQVAE, x_ND: torch.Tensor, path: Path) -> None:
        p = cfg.pretrain
        self.cfg, self.p, self.model, self.x_ND, self.path = cfg, p, model, x_ND, path
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.x_ND = x_ND.to(self.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=p.rqvae_lr, weight_decay=p.rqvae_weight_decay, fused=True
        )
        self.per_epoch = math.ceil(len(x_ND) / p.rqvae_batch_size)
        self.best: Report | None = None
        self.lowest, self.looked = math.inf, -1  # reconstruction error, epoch of the last look

    def run(self) -> Report:
        """Epochs until the collision rate stops falling; the best checkpoint is on disk afterwards."""
        p, first = self.p, self._resume()
        if first == 0 and p.kmeans_init:
            self.model.init_codebooks(
                self.x_ND[self._order(0)[: p.rqvae_batch_size]], p.kmeans_iters, self.cfg.data.seed
            )
        progress = tqdm(
            range(first, p.rqvae_epochs), "tokenizer", initial=first, total=p.rqvae_epochs, leave=False, disable=None
        )
        for epoch in progress:
            if self.best is not None and self.looked - self.best.epoch >= p.rqvae_patience:
                break
            recon, vq = self._epoch(epoch)
            progress.set_postfix(
                recon=f"{recon:.4g}", vq=f"{vq:.4g}", collisions=f"{self.best.collision_rate:.3f}" if self.best else "-"
            )
            if not math.isfinite(recon + vq):
                raise Problem(
                    f"rqvae_lr: the tokenizer's loss is not finite in epoch {epoch}; lower it from {p.rqvae_lr}"
                )
            if (epoch + 1) % p.rqvae_eval_step == 0 or epoch + 1 == p.rqvae_epochs:
                self._look(epoch, recon, vq)
            if guard.asked():
                self._save(epoch)
                guard.stop_if_asked()
        assert self.best is not None
        return self.best

    def _order(self, epoch: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng([self.cfg.data.seed, epoch, 11]).permutation(len(self.x_ND)))

    def _epoch(self, epoch: int) -> tuple[float, float]:
        p, sums = self.p, torch.zeros(2, device=self.device)
        torch.manual_seed(self.cfg.data.seed * 1_000_003 + epoch)
        self.model.train()
        for i, rows in enumerate(self._order(epoch).split(p.rqvae_batch_size)):
            recon, vq, _ = self.model(self.x_ND[rows], p.rqvae_assignment)
            loss = recon + p.quant_loss_weight * vq
            self.optimizer.param_groups[0]["lr"] = p.rqvae_lr * self._factor(epoch * self.per_epoch + i)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            sums += torch.stack([recon.detach(), vq.detach()])
        recon, vq = (sums / self.per_epoch).tolist()
        return recon, vq

    def _factor(self, step: int) -> float:
        """Linear warm-up, then linear fall to zero."""
        warm, total = self.p.rqvae_warmup_epochs * self.per_epoch, self.p.rqvae_epochs * self.per_epoch
        return min((step + 1) / (warm + 1), (total - step) / max(1, total - warm), 1.0)

    def _look(self, epoch: int, recon: float, vq: float) -> None:
        now = report(self.model, self.x_ND, epoch, self.cfg.joint.catalogue_assignment)
        log.info(
            f"tokenizer epoch {epoch + 1} | recon {recon:.5f} | vq {vq:.5f} | collisions {now.collision_rate:.4f} | "
            f"codes {' '.join(map(str, now.codes_used))} | perplexity {' '.join(f'{x:.0f}' for x in now.perplexity)}"
        )
        if not math.isfinite(now.reconstruction_error):  # the epoch's last update broke it, after its last finite loss
            raise Problem(
                f"rqvae_lr: the tokenizer is not finite after epoch {epoch}; lower it from {self.p.rqvae_lr}; nothing of it "
                "was saved"
            )
        self.looked, self.lowest = epoch, min(self.lowest, now.reconstruction_error)
        if self.best is None or now.beats(self.best, self.lowest):
            self.best = now
            write_checkpoint(self.path, self._portable(epoch))
        self._save(epoch)

    def _save(self, epoch: int) -> None:
        write_checkpoint(self.path.with_name("last.pth"), {
            "epoch": epoch, "looked": self.looked, "lowest": self.lowest,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "best": dataclasses.asdict(self.best) if self.best else None,
        })  # fmt: skip

    def _portable(self, epoch: int) -> dict[str, Any]:
        """The layout of the released checkpoints, with plain values in `args`."""
        assert self.best is not None
        return {
            "args": {**dataclasses.asdict(self.cfg.tokenizer), **dataclasses.asdict(self.p)}, "epoch": epoch,
            "best_loss": self.best.reconstruction_error, "best_collision_rate": self.best.collision_rate,
            "state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def _resume(self) -> int:
        last = self.path.with_name("last.pth")
        if not last.is_file():
            return 0
        state = read_checkpoint(last)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best = Report(**state["best"]) if state["best"] else None
            self.looked, self.lowest, epoch = int(state["looked"]), float(state["lowest"]), int(state["epoch"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as e:
            raise Problem(f"{last}: not a state of this pre-training ({type(e).__name__}); delete it") from None
        log.info(f"tokenizer: going on after epoch {epoch + 1}")
        return epoch + 1
