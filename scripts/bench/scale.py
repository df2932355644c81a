"""How cost grows: history length, batch, processes, interactions, embeddings."""

import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv

import settings
from compose import build, configure
from data import Batch
from model import GenerativeModel
from readers.layouts import read_dataset
from readers.splits import DataOptions
from scripts import run
from scripts.bench import common
from scripts.bench.common import Figures, Job, device, figure, growth, seconds
from scripts.make_demo import build_demo
from settings import Config
from sids import tokenizer
from sids.search import SearchOptions
from sids.tokenizer import CodeOptions, Source
from trainer import TrainOptions
from vq import RQVAE, RQVAEOptions


def measure(job: Job) -> Figures:
    """Milliseconds per step and per search batch against size, with the fitted exponents."""
    found: Figures = {}
    lengths = [1, 5, 10, 20, 50]
    batches = [32, 64, 128] if job.quick else [32, 64, 128, 256]
    model = random_model(job.cfg, 10**4)
    found |= _sweep("history", lengths, lambda s: (model, 64, s))
    found |= _sweep("batch", batches, lambda b: (model, b, 10))
    found |= _processes()
    for n in [10**6] if job.quick else [10**6, 10**7, 10**8, 10**9]:
        found |= _interactions(n)
    return found if job.quick else found | _embeddings()


def random_model(cfg: Config, n_items: int) -> Any:
    """The configured recommender, over distinct random codes where it has some."""
    torch.manual_seed(0)
    model = build.empty_model(cfg, n_items)
    if isinstance(model, GenerativeModel):
        sizes = torch.tensor(cfg[CodeOptions].num_emb_list)
        model.set_codes((torch.rand(n_items, len(sizes)) * sizes).long())
    return model.to(device())


def random_batch(n_items: int, samples: int, length: int) -> Batch:
    """Histories of one length over random items."""
    token = torch.randint(1, n_items + 1, (samples, length + 1), generator=torch.Generator().manual_seed(1))
    item_U, row = token.unique(return_inverse=True)
    new_U = torch.ones(len(item_U), dtype=torch.bool)
    weight = torch.tensor(1.0, dtype=torch.double)
    batch = Batch(token[:, :-1], token[:, -1], torch.arange(samples), item_U, row[:, :-1], row[:, -1], new_U, weight)
    return batch.to(device())


def _sweep(name, sizes, case) -> Figures:  # type: ignore[no-untyped-def]
    """Time training and search over some sizes; case(size) -> (model, samples, history length)."""
    train, search, found = [], [], {}
    for size in sizes:
        model, samples, length = case(size)
        batch = random_batch(model.n_items, samples, length)
        model.trie()  # built outside the clock
        train.append(_median_ms(lambda m=model, b=batch: m.train()(b)[0].backward()))
        search.append(
            _median_ms(lambda m=model, b=batch: m.eval().recommend(b.history_BS, m.cfg[SearchOptions].num_beams))
        )
        found[f"{name}_{size}_train_ms"] = figure(train[-1])
        found[f"{name}_{size}_search_ms"] = figure(search[-1])
    found[f"{name}_train_exponent"] = figure(growth(sizes, train))
    found[f"{name}_search_exponent"] = figure(growth(sizes, search))
    return found


def _median_ms(work) -> float:  # type: ignore[no-untyped-def]
    work()
    return float(np.median([seconds(work) * 1000 for _ in range(3)]))


def _processes() -> Figures:
    """samples/s of an epoch of the demo, whatever else is measured, on one and two processes."""
    found: Figures = {}
    gpus = torch.cuda.device_count()
    wanted = [1, 2] if gpus < 2 else [n for n in (1, 2, 4, 8) if n <= gpus]
    with TemporaryDirectory() as folder:
        demo = configure.build(settings.read_yaml(run.ROOT / "config" / "demo.yaml") | {"data_path": folder})
        build_demo(Path(folder) / "demo")
        tokenizer = common.job(demo, Path(folder), True, ()).cfg[CodeOptions].rqvae_path
        for n in wanted:
            cfg = configure.change(
                demo, method="two_stage", rqvae_path=tokenizer, epochs=1, eval_step=1, output_dir=folder,
                log_dir=folder,
                run_name=f"p{n}", batch_size=max(1, demo[TrainOptions].batch_size // n), resume="no",
            )  # fmt: skip
            threads = os.environ.get("OMP_NUM_THREADS")
            os.environ["OMP_NUM_THREADS"] = "1"  # one core a process, so that processes are what is compared
            try:
                run.launch(cfg, n)
            finally:
                os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
            row = json.loads(
                (Path(folder) / cfg[DataOptions].dataset / f"p{n}" / "metrics.jsonl").read_text().splitlines()[0]
            )
            found[f"processes_{n}_samples_per_s"] = figure(row["samples_per_s"])
    return found


def _interactions(n: int) -> Figures:
    """Start-up of a process on a synthetic log of n lines: the first, which keeps its arrays, and a later one, and of
    two later ones at once. GB that a process has for itself; what is mapped is shared.
    """
    exponent, found = len(str(n)) - 1, {}
    with TemporaryDirectory() as folder:
        write_log(Path(folder) / "big.inter", n)
        cfg = configure.build({"dataset": "big", "data_path": folder, "short_users": "drop"})[DataOptions]
        for name, processes in (("first", 1), ("later", 1), ("two_later", 2)):
            took, private = private_memory_of(read_dataset, cfg, processes=processes)
            found[f"interactions_1e{exponent}_{name}_s"] = figure(took)
            found[f"interactions_1e{exponent}_{name}_private_gb"] = figure(private)
    return found


def _embeddings() -> Figures:
    """Items/s of pre-training steps, embeddings of width 512 in a float16 file read batch by batch, beside the same in
    memory (10^6 items); and the private memory, in GB, of steps on 10^7.
    """
    found: Figures = {}
    with TemporaryDirectory() as folder:
        for exponent in (6, 7):
            path = Path(folder) / f"{exponent}.npy"
            out = np.lib.format.open_memmap(path, "w+", np.float16, (10**exponent, 512))
            for begin in range(0, len(out), 10**5):
                out[begin : begin + 10**5] = np.random.default_rng(begin).standard_normal((10**5, 512), np.float32)
            del out
            sides = {"read": (0, path)} | ({"held": (1 << 40, path)} if exponent == 6 else {})
            figures = {name: private_memory_of(_steps, *args, processes=1) for name, args in sides.items()}
            speed = [BATCH * STEPS / took for took, _ in figures.values()]
            found[f"embeddings_1e{exponent}_items_per_s"] = figure(*speed)
            found[f"embeddings_1e{exponent}_private_gb"] = figure(*(peak for _, peak in figures.values()))
    return found


BATCH, STEPS = 1024, 100


def _steps(held: int, path: Path) -> float:
    """Steps of pre-training a small RQ-VAE; the seconds that they take."""
    tokenizer.HELD = held
    cfg = configure.build({"layers": [512, 256], "e_dim": 64})[RQVAEOptions]
    content_ND = np.load(path, mmap_mode="r")
    source = Source(content_ND, np.ones(len(content_ND)), None)  # type: ignore[arg-type]
    model = RQVAE(cfg, content_ND.shape[1]).train()
    model.begin(source, BATCH, 0, fresh=True)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = model.batches(source, BATCH, 0, 0)[:STEPS]
    begin = time.perf_counter()
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        model.loss(batch, step)[0].backward()
        optimizer.step()
    return time.perf_counter() - begin


def private_memory_of(work: Callable[..., object], *args: Any, processes: int) -> tuple[Any, float]:
    """(seconds, peak of the memory in GB that belongs to a process alone) of the slowest and largest of some. Numbers
    that the work returns take the place of the seconds.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        pool.map(_imported, range(processes))
        found = pool.starmap(_watched, [(work, args)] * processes, chunksize=1)
    return max(took for took, _ in found), max(peak for _, peak in found)


def _imported(number: int) -> None:
    time.sleep(0.5)  # so that each process gets one


def _watched(work: Callable[..., object], args: tuple[Any, ...]) -> tuple[Any, float]:
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            held = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
            peak[0] = max(peak[0], int(held[1]) if held else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    result = work(*args)
    took = result if isinstance(result, float | tuple) else time.perf_counter() - begin
    del result
    done.set()
    watcher.join()
    return took, peak[0] * 1024 / 1e9


def write_log(path: Path, n: int) -> None:
    """A log of n interactions in time order: a thousandth as many users, items by Zipf's law."""
    random = np.random.default_rng(0)
    with path.open("wb") as f:
        f.write(b"user_id:token\titem_id:token\ttimestamp:float\n")
        for begin in range(0, n, 10**6):
            rows = min(10**6, n - begin)
            user = random.integers(0, max(3, n // 1000), rows)
            item = random.zipf(1.3, rows) % 100_000
            table = pa.table({"u": user, "i": item, "t": np.arange(begin, begin + rows)})
            csv.write_csv(table, f, csv.WriteOptions(include_header=False, delimiter="\t"))
