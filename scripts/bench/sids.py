"""How the cost of pairs, contrastive pre-training and embedding hit rate grows with catalogue and interactions."""

import time
from collections.abc import Callable

import numpy as np
import torch

from readers.splits import Split
from scripts.bench.common import HOST, Figures, Job, figure, growth, peak_memory_of
from sids.contrastive import ContrastiveOptions, ContrastiveRQVAE
from sids.neighbour_recall import Queries, hit_figures
from sids.pairs import PairOptions, pairs_of
from sids.tokenizer import Source

WIDTH, PER_ITEM, ASKED, STEPS = 64, 10, 200, 5


def source(n_items: int) -> Source:
    """Random embeddings, and ten interactions an item by users of eleven, so that there are ten pairs an item."""
    random = np.random.default_rng(0)
    content_ND = random.standard_normal((n_items, WIDTH), np.float32)
    users = n_items * PER_ITEM // 10
    items = random.integers(1, n_items + 1, users * 11, dtype=np.int32)
    offsets = np.arange(users + 1, dtype=np.int64) * 11
    place = np.arange(len(items))
    train = Split(items, offsets, place[place % 11 > 0])
    return Source(content_ND, np.bincount(items, minlength=n_items + 1)[1:], train)


def count(n_items: int) -> float:
    """Seconds to count the pairs."""
    found = source(n_items)
    begin = time.perf_counter()
    pairs_of(found.train, n_items, PairOptions())
    return time.perf_counter() - begin


def contrast(n_items: int) -> float:
    """Seconds of a contrastive step of 1024 pairs, codebooks at random."""
    found = source(n_items)
    torch.manual_seed(0)
    options = ContrastiveOptions(
        num_emb_list=[256] * 3, layers=[256], e_dim=64, rqvae_assignment="argmin", kmeans_iters=1
    )
    model = ContrastiveRQVAE(options, WIDTH)
    model.begin(found, 1024, 0, fresh=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    steps = [s for s in model.batches(found, 1024, 0, 0)[: 4 * STEPS] if s.pair_B2 is not None][: STEPS + 1]
    begin = 0.0
    for number, step in enumerate(steps):
        begin = time.perf_counter() if number == 1 else begin  # the first one warms up
        optimizer.zero_grad()
        model.loss(step, 0)[0].backward()
        optimizer.step()
        model.after_step(optimizer)
    return (time.perf_counter() - begin) / max(len(steps) - 1, 1)


def hit_rate(n_items: int) -> float:
    """Seconds of the embedding hit rate of 200 queries of ten items over the whole catalogue."""
    found = source(n_items)
    part = Split(found.train.items, found.train.offsets[: ASKED + 1], found.train.offsets[1 : ASKED + 1] - 1)
    begin = time.perf_counter()
    hit_figures(torch.from_numpy(found.content_ND), Queries.of_split(part))
    return time.perf_counter() - begin


def measure(job: Job) -> Figures:
    """Seconds and peak memory (imports and the made-up data included) at each size, and the fitted exponents."""
    sizes = [10**3, 10**4] if job.quick else [10**4, 10**5, 10**6]
    found: Figures = {}
    works: dict[str, Callable[[int], float]] = {"pairs": count, "contrast_step": contrast, "hit_rate": hit_rate}
    for name, work in works.items():
        took = []
        for n in sizes:
            took.append(work(n))
            found[f"{name}_1e{len(str(n)) - 1}_s"] = figure(took[-1])
        found[f"{name}_exponent"] = figure(growth(sizes, took))
        if not job.quick:
            found[f"{name}_peak_gb"] = figure(peak_memory_of(work, sizes[-1], where=HOST))
    return found
