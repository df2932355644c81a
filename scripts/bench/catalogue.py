"""What grows with the catalogue: a training step, a search and the memory of each network, over random codes."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from compose import configure
from scripts.bench.common import Figures, Job, figure, growth, wait
from scripts.bench.scale import private_memory_of, random_batch, random_model
from settings import Config

USERS, LENGTH, BEAMS = 64, 10, 20
WIDTH = {"d_model": 32, "d_ff": 64, "num_heads": 2}
LM = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 32}
SEQ2SEQ = {"d_kv": 16, "num_layers": 2, "num_decoder_layers": 2, "tie_word_embeddings": False}
NETWORKS: dict[str, dict[str, Any]] = {  # all of width 32, with two layers
    "rq_transformer": WIDTH,
    "t5": {**WIDTH, "encoder_layers": 2, "decoder_layers": 2, "d_kv": 16},
    "decoder": {**WIDTH, "decoder_layers": 2},
    "causal_lm": {"lm": {"model_type": "qwen2", "intermediate_size": 64, **LM}},
    "seq2seq_lm": {"lm": {"model_type": "t5", **WIDTH, **SEQ2SEQ}},
    "sasrec": {"hidden_units": 32, "num_heads": 2},
    "hybrid": {"recommender": "rq_transformer", "item_loss": 1.0, **WIDTH},
}


def measure(job: Job) -> Figures:
    """Milliseconds of a step and of a search and the private memory in GB of a process, with the fitted exponents. On a
    CPU its own time, so that other work on the machine does not count.
    """
    found: Figures = {}
    exponents = (3, 4) if job.quick else (4, 5, 6, 7)
    for name, options in NETWORKS.items():
        kind = {"method": "sasrec"} if name == "sasrec" else {"method": "two_stage", "recommender": name}
        cfg = configure.build({"num_emb_list": [256] * 3, "sk_epsilons": [0.0] * 3, **kind, **options})
        costs: dict[str, list[float]] = {"step_ms": [], "search_ms": [], "private_gb": []}
        for exponent in exponents:
            (step, search), peak = private_memory_of(_costs, cfg, 10**exponent, processes=1)
            for cost, value in zip(costs, (step, search, peak), strict=True):
                costs[cost].append(value)
                found[f"{name}_1e{exponent}_{cost}"] = figure(value)
        sizes = [10**exponent for exponent in exponents]
        found |= {f"{name}_{cost}_exponent": figure(growth(sizes, values)) for cost, values in costs.items()}
    return found


def _costs(cfg: Config, n_items: int) -> tuple[float, float]:
    """Milliseconds of a training step, update included, and of a search."""
    model = random_model(cfg, n_items)
    batch = random_batch(n_items, USERS, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model.train()(batch)[0].backward()
        optimizer.step()

    return _median_ms(step), _median_ms(lambda: model.eval().recommend(batch.history_BS, BEAMS))


def _median_ms(work: Callable[[], Any]) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    found = []
    for _ in range(4):  # the first builds what is built once
        begin = clock()
        work()
        wait()
        found.append((clock() - begin) * 1000)
    return float(np.median(found[1:]))
