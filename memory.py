"""How much memory a run will need, told before it trains.

Shape letters: B samples, T history tokens, R = B * beams.
"""

from pathlib import Path

import torch
from torch import nn

from data import Shape
from model import GenerativeModel, JointModel
from readers import Dataset
from settings import Config
from utils import log

FLOAT = 4  # bytes; bf16 needs less, which leaves the estimate on the safe side


def tell(cfg: Config, model: nn.Module, data: Dataset, shape: Shape, device: torch.device) -> None:
    """Log the estimate beside what the device has, and warn when it does not fit."""
    need, have = estimate(cfg, model, data, shape), available(device)
    turns = need.get("training step", 0), need.get("evaluation batch", 0)  # never both at once
    total = sum(need.values()) - min(turns)
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in need.items())
    log.info(f"memory: about {gigabytes(total)} of {gigabytes(have)} GB ({parts})")
    if total > have:
        log.warning(
            f"memory: about {gigabytes(total)} GB are needed, {gigabytes(have)} GB are there; "
            "lower token_budget (training) or eval_batch_size and num_beams (evaluation)"
        )


def estimate(cfg: Config, model: nn.Module, data: Dataset, shape: Shape) -> dict[str, int]:
    """Bytes by owner; for generative models with the working memory of a step and of an evaluation batch."""
    trained = FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    need = {
        "model": sum(p.nbytes for p in model.parameters()),
        "gradients": trained,
        "optimizer": 2 * trained if cfg.train.learner != "sgd" else 0,
        "embeddings and SIDs": sum(b.nbytes for b in model.buffers()),
    }
    if isinstance(model, GenerativeModel):
        longest = int(max(s.lengths(cfg.data.max_his_len).max() for s in (data.train, data.valid, data.test)))
        tokens = longest * model.tokens_per_item
        part = min(shape.batch_size, max(1, shape.tokens // tokens))
        items = min(data.n_items, part * (longest + 1))
        need["training step"] = FLOAT * training_numbers(cfg, part, tokens)
        if isinstance(model, JointModel):  # per level: distances, noise, logits, soft assignment and their gradients
            need["training step"] += FLOAT * 10 * items * sum(cfg.tokenizer.num_emb_list)
        need["evaluation batch"] = FLOAT * evaluation_numbers(
            cfg, min(cfg.eval.eval_batch_size, len(data.test)), tokens
        )
    return need


def training_numbers(cfg: Config, B: int, T: int) -> int:
    """Numbers kept for the backward pass of B samples: per layer, streams, keys and values, attention."""
    r = cfg.recommender
    inner, levels = r.num_heads * r.d_kv, len(cfg.tokenizer.num_emb_list) + 1
    encoder = r.encoder_layers * (B * T * (8 * r.d_model + 4 * inner + 3 * r.d_ff) + 3 * B * r.num_heads * T * T)
    cross = r.decoder_layers * (2 * B * T * inner + 3 * B * r.num_heads * levels * T)
    decoder = r.decoder_layers * B * levels * (12 * r.d_model + 8 * inner + 3 * r.d_ff)
    return encoder + cross + decoder + 4 * B * T * r.d_model + 6 * B * sum(cfg.tokenizer.num_emb_list)


def evaluation_numbers(cfg: Config, B: int, T: int) -> int:
    """Numbers held at the widest moment of a search for B users: in the encoder, or on the last level."""
    r, k = cfg.recommender, cfg.tokenizer.num_emb_list
    inner, levels, R = r.num_heads * r.d_kv, len(k) + 1, B * r.num_beams
    source = r.decoder_layers * 2 * B * T * inner
    encoder = B * T * (4 * r.d_model + max(4 * inner, 2 * r.d_ff)) + 2 * B * r.num_heads * T * T
    beams = R * (4 * r.d_model + 4 * inner + 2 * r.d_ff + 2 * r.num_heads * T)
    own = 2 * r.decoder_layers * 2 * R * levels * inner  # twice while the beams are re-ordered
    return max(encoder, source + beams + own + 8 * R * max(k))


def available(device: torch.device) -> int:
    """Bytes that are free for this process: on the GPU, else in the machine or its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [int(words[1]) * 1024 for words in _lines("/proc/meminfo") if words[0] == "MemAvailable:"]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0][0].isdecimal():
        cache = [int(w[1]) for w in _lines("/sys/fs/cgroup/memory.stat") if w[0] == "inactive_file"]  # given up on need
        found.append(int(limit[0][0]) - int(used[0][0]) + sum(cache))
    return min(found, default=1 << 62)


def _lines(path: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:  # another system, or no container
        return []


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g}"
