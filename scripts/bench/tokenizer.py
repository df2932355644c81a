"""Pre-training and whole-catalogue assignment of the RQ-VAE."""

import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from compose import build
from readers.dataset import read_embeddings
from scripts.bench.common import Figures, Job, device, figure, interleave, seconds
from sids.checkpoint import PretrainOptions
from sids.fit import Pretrainer
from sids.tokenizer import Source
from vq import RQVAE, SINKHORN_ITERATIONS, RQVAEOptions


def measure(job: Job) -> Figures:
    """Epochs/s beside a straightforward loop; items/s of assignment from a memory-mapped file."""
    data = job.data()
    content_ND = torch.from_numpy(np.array(read_embeddings(data), np.float32))
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        source = Source.of(data)
        model = RQVAE(job.cfg[RQVAEOptions], content_ND.shape[1])
        recipe, options = build.recipe_of(job.cfg), job.cfg[PretrainOptions]
        ours = Pretrainer(recipe, options, model, source, Path(folder) / "x.pth")
        model.begin(source, options.rqvae_batch_size, 0, fresh=True)
        theirs = PlainLoop(job, content_ND)
        ours._epoch(0)
        speed = interleave(
            job.rounds,
            {"ours": lambda turn: 1 / seconds(lambda: ours._epoch(turn + 1)),
            "plain": lambda turn: 1 / seconds(theirs.epoch)},
        )  # fmt: skip
        found = {"epochs_per_s": figure(speed["ours"], speed["plain"])}
        for n in (10**4, 10**5) if job.quick else (10**4, 10**5, 10**6):
            found[f"assigned_items_per_s_1e{len(str(n)) - 1}"] = figure(
                _assign(model, n, content_ND.shape[1], Path(folder))
            )
    return found


def _assign(model: RQVAE, n: int, width: int, folder: Path) -> float:
    """Items a second from an .npy on disk to codes."""
    path, random = folder / "items.npy", np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, width))
    for i in range(0, n, 50_000):
        out[i : i + 50_000] = random.standard_normal((min(50_000, n - i), width), np.float32)
    out.flush()
    del out
    begin = time.perf_counter()
    model.encode(np.load(path, mmap_mode="r", allow_pickle=False))
    return n / (time.perf_counter() - begin)


class PlainLoop:
    """The network by the book: a shuffling DataLoader, Sinkhorn as published on the whole plan."""

    def __init__(self, job: Job, content_ND: Tensor) -> None:
        self.t, self.p = job.cfg[RQVAEOptions], job.cfg[PretrainOptions]
        torch.manual_seed(0)
        self.encoder = _mlp([content_ND.shape[1], *self.t.layers, self.t.e_dim]).to(device())
        self.decoder = _mlp([self.t.e_dim, *self.t.layers[::-1], content_ND.shape[1]]).to(device())
        books = [nn.Embedding(k, self.t.e_dim) for k in self.t.num_emb_list]
        self.books = nn.ModuleList(books).to(device())
        parameters = [p for m in (self.encoder, self.decoder, self.books) for p in m.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.p.rqvae_lr, weight_decay=self.p.rqvae_weight_decay)
        self.loader = DataLoader(TensorDataset(content_ND), self.p.rqvae_batch_size, shuffle=True)

    def epoch(self) -> None:
        """One pass over the catalogue."""
        for (rows,) in self.loader:
            x = rows.to(device())
            z = self.encoder(x)
            residual, total, vq = z, torch.zeros_like(z), torch.zeros((), device=x.device)
            for book, epsilon in zip(self.books, self.t.sk_epsilons, strict=True):
                code = self._codes(residual, book.weight, epsilon)  # type: ignore[arg-type]
                q = book(code)
                vq = vq + ((q - residual.detach()) ** 2).mean() + self.t.beta * ((residual - q.detach()) ** 2).mean()
                q = residual + (q - residual).detach()
                residual, total = residual - q, total + q
            loss = ((self.decoder(total) - x) ** 2).mean() + self.t.quant_loss_weight * vq / len(self.books)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()

    def _codes(self, residual: Tensor, book: Tensor, epsilon: float) -> Tensor:
        d = (residual**2).sum(1, keepdim=True) + (book**2).sum(1) - 2 * residual @ book.T
        if self.t.rqvae_assignment != "sinkhorn" or epsilon <= 0:
            return d.argmin(1)
        return plain_sinkhorn(d.detach(), epsilon)


def plain_sinkhorn(d: Tensor, epsilon: float) -> Tensor:
    """The whole transport plan, rescaled by rows and columns in turn."""
    middle, half = (d.max() + d.min()) / 2, (d.max() - d.min()) / 2 + 1e-5
    plan = torch.exp(-((d - middle) / half).double() / epsilon)
    plan = plan / plan.sum()
    for _ in range(SINKHORN_ITERATIONS):
        plan = plan / plan.sum(0, keepdim=True) / plan.shape[1]
        plan = plan / plan.sum(1, keepdim=True) / plan.shape[0]
    return plan.argmax(1)


def _mlp(sizes: list[int]) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        blocks += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*blocks[:-1])
