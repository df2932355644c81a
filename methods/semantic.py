"""DIGER and its two-stage twin: how they are put together from data, tokenizer and options."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import GenerativeModel, JointModel
from pretrain import checkpoint_path
from readers import Dataset, read_embeddings
from settings import Config
from utils import Problem
from vq import RQVAE, in_chunks, load_rqvae


def check_width(cfg: Config, data: Dataset, content_ND: np.ndarray) -> None:
    """Problem when semantic_hidden_size is given and is not the embeddings' width."""
    width = cfg.tokenizer.semantic_hidden_size
    if width is not None and width != content_ND.shape[1]:
        raise Problem(f"semantic_hidden_size: {width}, but {data.embedding_path} has width {content_ND.shape[1]}")


def tokenizer_of(cfg: Config, data: Dataset, content_ND: np.ndarray) -> RQVAE:
    """The pre-trained tokenizer: `rqvae_path`, or what pre-training left for these options."""
    check_width(cfg, data, content_ND)
    path = Path(cfg.joint.rqvae_path) if cfg.joint.rqvae_path else checkpoint_path(cfg, data)
    if not path.is_file():
        raise Problem(
            f"{path}: no pre-trained tokenizer; run scripts/pretrain_rqvae.py with the same options, or set rqvae_path"
        )
    return load_rqvae(path, cfg.tokenizer, content_ND.shape[1])


def diger(cfg: Config, data: Dataset) -> JointModel:
    content_ND = read_embeddings(data)
    return JointModel(cfg, tokenizer_of(cfg, data, content_ND), content_ND, data.n_items)


def two_stage(cfg: Config, data: Dataset) -> GenerativeModel:
    """Fixed SIDs: the codes of the pre-trained tokenizer under the same catalogue rule as DIGER."""
    content_ND = read_embeddings(data)
    tokenizer = tokenizer_of(cfg, data, content_ND).eval()
    pieces = (
        tokenizer.prepare(torch.from_numpy(np.array(content_ND[i : i + 8192], np.float32)))
        for i in range(0, len(content_ND), 8192)
    )
    latents = in_chunks(pieces, tokenizer.encoder, torch.device("cpu"))
    model = GenerativeModel(cfg, data.n_items)
    model.set_codes(tokenizer.rq.assign(latents, cfg.joint.catalogue_assignment))
    return model


def restore_diger(cfg: Config, state: dict[str, Any]) -> JointModel:
    width = state["tokenizer.encoder.mlp_layers.1.weight"].shape[1]
    return JointModel(cfg, RQVAE(cfg.tokenizer, width), None, len(state["sid_NL"]))


def restore_two_stage(cfg: Config, state: dict[str, Any]) -> GenerativeModel:
    return GenerativeModel(cfg, len(state["sid_NL"]))
