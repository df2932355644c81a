"""New items for a trained model without training: codes by its tokenizer, a free semantic ID for each.

  python scripts/add_items.py --checkpoint myckpt/.../best_model.pth --items new.items.jsonl --embeddings new.npy
                              --output extended.pth

new.items.jsonl has a line an item ({"item_id": ..., "title": ...}), row i of new.npy belongs to line i and comes from
the text encoder that made the embeddings of the training. Items that the model knows keep their semantic IDs; the
output is a checkpoint for `main.py recommend` and `scripts/serve.py`, and beside it stand all semantic IDs.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np
import torch
from torch import Tensor

import settings
from compose import restore
from model import GenerativeModel
from readers.dataset import Catalogue, check_rows, check_shape, open_array, read_items
from readers.texts import check_beside
from sids.files import to_index
from sids.table import SidOptions, SidTable, free_end
from sids.tokenizer import CodeOptions
from utils import (
    Problem,
    as_command,
    log,
    log_to,
    quoted,
    write_checkpoint,
    write_json,
)

PER_ITEM = ("code_NT", "end_N", "first_NP", "recommender.own.weight",
            "tokenizer.side.vector_NV", "tokenizer.offset_Nd",
            "prior.count_N", "prior.weight_N")  # fmt: skip # tensors of a model with a row an item


def tokenizer_of(path: str | Path, restored: restore.Restored, width: int) -> Any:
    """The tokenizer that a checkpoint carries, for embeddings of some width; Problem where it can code no new items."""
    if not isinstance(restored.model, GenerativeModel):
        raise Problem(f"{path}: recommends by items, which have to be trained; new items need semantic IDs")
    if restored.cfg[CodeOptions].variable_length:
        raise Problem(
            f"{path}: its semantic IDs have several lengths, cut for all items together; train again with the new items"
        )
    tokenizer = restore.carried_tokenizer(path, restored, width, "--embeddings")
    if tokenizer is None:
        raise Problem(f"{path}: carries no tokenizer (its semantic IDs were made elsewhere); new items cannot be coded")
    return tokenizer


def free_ends(sids: SidTable, new_MT: Tensor, rule: str) -> Tensor:
    """The dedup token of each of M new items, [M]: the first free one, -1 where all are taken; or, as `collision: item`
    has it, 0 for one that stands alone and a new one of its own for one that shares its codes.
    """
    taken: dict[tuple[int, ...], set[int]] = {}
    for code, end in zip(map(tuple, sids.code_NT.tolist()), sids.end_N.tolist(), strict=True):  # type: ignore[union-attr]
        taken.setdefault(code, set()).add(end)
    found = []
    for number, code in enumerate(map(tuple, new_MT.tolist()), sids.n_items + 1):
        used = taken.setdefault(code, set())
        if rule == "item":
            found.append(number if used else 0)
        else:
            end = free_end(used, sids.ends)
            found.append(-1 if end is None else end)
        used.add(found[-1])
    return torch.tensor(found, dtype=new_MT.dtype)


def codes_of_strangers(tokenizer: Any, content_MD: np.ndarray) -> torch.Tensor:
    """Codes of items that nobody has met: where a tokenizer knows behaviour as well, they have none."""
    side = getattr(tokenizer, "side", None)
    if side is None:
        return torch.as_tensor(tokenizer.encode(content_MD))
    known_NV = side.vector_NV
    side.vector_NV = known_NV.new_zeros(len(content_MD), known_NV.shape[1])
    try:
        return torch.as_tensor(tokenizer.encode(content_MD))
    finally:
        side.vector_NV = known_NV


def extended(path: str | Path, new: Catalogue, content_MD: np.ndarray) -> dict[str, Any]:
    """A checkpoint's state with more items; Problem where they cannot be had. Items it knows keep their SIDs."""
    restored = restore.restore(path)
    state, model = restored.state, restored.model
    if not new.ids:
        raise Problem("--items: holds no item; there is nothing to add")
    known = set(state["items"])
    if twice := [token for token in new.ids if token in known]:
        raise Problem(f"--items: item {quoted(twice[0])} is in the checkpoint already; leave it out")
    tokenizer = tokenizer_of(path, restored, content_MD.shape[1])
    assert isinstance(model, GenerativeModel)
    if restored.cfg[SidOptions].shared:
        raise Problem(f"{path}: its items share semantic IDs (collision); new ones are known with suffix and item only")
    new_MT = codes_of_strangers(tokenizer, content_MD).to(model.code_NT.dtype)
    rule = restored.cfg[SidOptions].collision
    end_M = free_ends(model.sids, new_MT, rule)
    if (end_M < 0).any():
        item = new.ids[int((end_M < 0).int().argmax())]
        raise Problem(
            f"--items: {quoted(item)}: the {model.ends} semantic IDs of its codes are all taken; leave it out, or "
            "train anew with larger num_emb_list"
        )
    rows = {"code_NT": new_MT, "end_N": end_M, "first_NP": torch.cat([new_MT, end_M[:, None]], 1)}
    rows |= dict.fromkeys(("prior.count_N", "prior.weight_N"), torch.ones(len(new)))
    weights = dict(model.state_dict())
    for name in (n for n in PER_ITEM if n in weights):
        old = weights[name]
        more = rows.get(name, old.new_zeros(len(new), *old.shape[1:]))  # an item's own vector: nothing is known of it
        weights[name] = torch.cat([old, more.to(old.dtype)])
    if rule == "item":  # a token that nobody has met is as one that says nothing
        last = f"recommender.tables.{len(model.sids.vocabulary) - 1}"
        weights[last] = torch.cat([weights[last], weights[last][:1].expand(len(new), -1)])
    kept = {k: v for k, v in state.items() if k not in ("run", "split")}  # of the data it was trained on
    frozen = kept.get("tokenizer")
    if isinstance(frozen, dict) and isinstance(known_NV := frozen.get("side.vector_NV"), torch.Tensor):
        none_MV = known_NV.new_zeros(len(new), known_NV.shape[1])
        kept["tokenizer"] = frozen | {"side.vector_NV": torch.cat([known_NV, none_MV])}
    lists = {"items": state["items"] + new.ids, "titles": state["titles"] + new.titles}
    return {**kept, **lists, "model": weights, "added": len(new) + state.get("added", 0)}


def run(argv: list[str]) -> Path:
    """The command; returns the path of the new checkpoint."""
    names = ["checkpoint", "items", "embeddings", "output"]
    words, given, _ = settings.command(argv, {}, names)
    if words or len(given) < len(names):
        raise Problem(f"add_items: needs --{', --'.join(names)} and no other words")
    output = Path(given["output"])
    index = output.with_suffix(".index.json")
    if there := [p for p in (output, index) if p.exists()]:
        raise Problem(f"--output: {there[0]} is there already; choose another name")
    new = read_items(Path(given["items"]))
    content_MD = open_array(Path(given["embeddings"]))
    check_shape(Path(given["embeddings"]), content_MD, new.ids)
    check_rows(Path(given["embeddings"]), content_MD, new.ids)
    check_beside(Path(given["embeddings"]), Path(given["items"]), new.ids)
    state = extended(given["checkpoint"], new, content_MD)
    write_checkpoint(output, state)
    write_json(index, to_index(restore.restore(output).model.sids))  # type: ignore[attr-defined,arg-type]
    log.info(f"{len(new)} items added to {len(state['items']) - len(new)}; SIDs: {index}")
    return output


if __name__ == "__main__":
    log_to(None, main=True)
    as_command(__doc__, lambda argv: print(f"checkpoint: {run(argv)}"))
