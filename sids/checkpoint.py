"""A tokenizer's files: the folder that options, seed and data lead to; what a checkpoint holds, ours or a released one.

What is made and how good it is: sids/fit.py.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import settings
from runs import guard
from settings import option
from sids.tokenizer import CodeOptions, Tokenizer
from utils import Problem, digest, read_checkpoint

LENGTH = ("target_length", "max_group", "max_shared")  # what becomes of codes, where a tokenizer does not learn it


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Of the loop in sids/fit.py; here, because a folder's name depends on them."""

    rqvae_epochs: int = option(10000, "maximum number of pre-training epochs", ge=1)
    rqvae_patience: int = option(
        500, "number of epochs without a better checkpoint after which pre-training stops", ge=1
    )
    rqvae_eval_step: int = option(50, "number of epochs between two evaluations of the tokenizer", ge=1)
    rqvae_batch_size: int = option(
        1024, "rows per pre-training step: items, pairs (contrastive) or interactions (dvae, reinforce)", ge=1
    )
    rqvae_lr: float = option(1e-3, "peak learning rate of pre-training", gt=0)
    rqvae_weight_decay: float = option(1e-4, "weight decay of pre-training", ge=0)
    rqvae_warmup_epochs: int = option(50, "number of epochs of linear learning-rate warm-up in pre-training", ge=0)


@dataclass(frozen=True)
class Recipe:
    """What a tokenizer is made by: its class and the name of that, its options, those of the loop that it learns in
    (None: it is fitted at once), the seed.
    """

    name: str
    kind: type[Any]
    codes: CodeOptions
    loop: PretrainOptions | None
    seed: int

    def folder(self, data_hash: str) -> str:
        """The name of the folder of these options, seed and data: equal ones share it.

        Only options that differ from their default count, so that an option that comes later moves nothing.
        """
        parts = [settings.changed(options) for options in (self.codes, self.loop) if options is not None]
        for key in ("rqvae_path", *(() if self.codes.learns_length else LENGTH)):  # make none
            parts[0].pop(key, None)
        if vectors := parts[0].pop("vectors_from", None):  # what it holds counts, not where it lies
            parts.append({"vectors": digest(Path(vectors))})
        return f"{self.name}-{digest(*parts, self.seed, data_hash)}"


# ---------------------------------------------------------------- where it lies


def claim(folder: Path) -> None:
    """Make this process the one that writes in a folder, and clear it of what a kill left half written."""
    guard.lock(folder)
    for torn in folder.glob(".*.part"):
        torn.unlink(missing_ok=True)


# ---------------------------------------------------------------- what it holds


def portable(recipe: Recipe, model: Tokenizer, figures: dict[str, float]) -> dict[str, Any]:
    """A tokenizer's checkpoint in the layout of the released ones, with plain values in `args`.

    figures: `epoch`, `best_loss`, `best_collision_rate`.
    """
    learned = {} if recipe.loop is None else dataclasses.asdict(recipe.loop)
    return {
        "tokenizer": recipe.name, "args": {**dataclasses.asdict(recipe.codes), **learned}, **figures,
        "state_dict": model.state_dict(),
    }  # fmt: skip


def load_state(path: Path, model: Tokenizer, name: str) -> None:
    """Fill a tokenizer from a checkpoint, ours or a released `best_collision_model.pth`.

    Nothing in the file is executed. Problem when its shapes disagree with the configuration.
    """
    found = read_checkpoint(path, allow=(argparse.Namespace,))
    state, kind = found.get("state_dict"), found.get("tokenizer", "rqvae")
    if not isinstance(state, dict):
        raise Problem(f"{path}: holds no 'state_dict'; expected a tokenizer's checkpoint")
    if kind != name:
        raise Problem(f"{path}: holds a tokenizer of the kind {kind!r}, this run has {name!r}; set --tokenizer={kind}")
    state = {str(k).removeprefix("module."): v for k, v in state.items()}  # DistributedDataParallel's
    own, passing = model.state_dict(), model.only_pre_training
    state = {k: v for k, v in state.items() if k in own or not str(k).startswith(passing)}
    own = {k: v for k, v in own.items() if k in state or k not in model.made_later}
    check_state(path, state, own)
    model.load_state_dict({k: state[k] for k in own}, strict=False)


def check_state(path: Path, state: dict[str, Any], own: dict[str, Tensor]) -> None:
    """Problem when a tokenizer's saved tensors are not those that the configuration asks for."""
    beside = "side.vector_NV"
    if (beside in own) != (beside in state):
        how, way = ("with", "pairs or vectors, as it was") if beside in state else ("without", "none")
        raise Problem(f"{path}: the tokenizer was trained {how} behaviour beside the content; set --behaviour={way}")
    own = {k: v for k, v in own.items() if k != beside}  # as many rows as are loaded
    first = "encoder.mlp_layers.1.weight"
    if first in own and isinstance(state.get(first), Tensor) and state[first].shape[1] != own[first].shape[1]:
        raise Problem(
            f"{path}: was trained on embeddings of width {state[first].shape[1]}, yours have {own[first].shape[1]}; "
            "use the embeddings of that checkpoint or pre-train again"
        )
    ours = {k: tuple(v.shape) for k, v in own.items()}
    theirs = {str(k): tuple(v.shape) for k, v in state.items() if isinstance(v, Tensor) and k != beside}
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise Problem(
                f"{path}: {key} has shape {theirs.get(key, 'none')}, the configuration needs "
                f"{ours.get(key, 'none')}; check num_emb_list, e_dim, layers, standardize_embeddings"
            )
    if bad := [k for k in ours if not torch.isfinite(state[k]).all()]:
        raise Problem(f"{path}: {bad[0]} holds NaN or infinity; pre-train again")
