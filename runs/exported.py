"""A checkpoint as a folder that others read too: safetensors, JSON, a line an item; nothing in it can be executed.

model.safetensors  the tensors of the model, and of the tokenizer behind its SIDs, by names that begin so
config.json        all options but paths of the machine it was trained on, and what else a checkpoint says
items.jsonl        line i is item number i: {"item_id": ..., "title": ...}
sids.index.json    the SIDs in the exchange format, for other programs; the model has its own
"""

import json
from pathlib import Path
from typing import Any

from readers.dataset import Dataset
from readers.files import json_lines
from utils import (
    Problem,
    is_file,
    one_line,
    read_checkpoint,
    read_json,
    regular_file,
    write_atomic,
    write_json,
    write_text,
)

WEIGHTS, CONFIG, ITEMS, SIDS = "model.safetensors", "config.json", "items.jsonl", "sids.index.json"
TENSORS = ("model", "tokenizer")  # entries of a checkpoint that hold tensors by name


def write_folder(folder: Path, state: dict[str, Any], sids: dict[str, list[str]] | None) -> None:
    """Write a checkpoint's state; sids: as the exchange format has them, None for a model without."""
    from safetensors.torch import save

    parts = {part: state[part] for part in TENSORS if part in state}
    # of their own memory each: the format knows no tensor that is part of another
    tensors = {f"{part}.{k}": v.clone().contiguous() for part, held in parts.items() for k, v in held.items()}
    write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    lines = (
        json.dumps({"item_id": item, "title": title})
        for item, title in zip(state["items"], state["titles"], strict=True)
    )
    write_text(folder / ITEMS, "".join(f"{line}\n" for line in lines))
    if sids is not None:
        write_json(folder / SIDS, sids)
    plain = {k: v for k, v in state.items() if k not in (*parts, "config", "items", "titles")}
    write_json(folder / CONFIG, {"library": "diger", "options": state["config"], "state": plain})


def read_folder(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint again; Problem names the file that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hint = f"; name {folder / 'best_model.pth'}" if is_file(folder / "best_model.pth") else ""
    said = read_json(regular_file(folder / CONFIG, f"no such file; the folder is no exported checkpoint{hint}"))
    if not isinstance(said, dict) or not all(isinstance(said.get(k), dict) for k in ("options", "state")):
        raise Problem(f"{folder / CONFIG}: holds no options and state of a checkpoint; export it again")
    try:
        tensors = load_file(regular_file(folder / WEIGHTS))
    except (SafetensorError, OSError, ValueError) as e:
        raise Problem(f"{folder / WEIGHTS}: not readable as safetensors ({one_line(e)}); export it again") from None
    state = {k: v for k, v in said["state"].items() if k not in TENSORS}
    state |= {"config": said["options"], "model": {}, "items": [], "titles": []}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in TENSORS or not rest:
            raise Problem(f"{folder / WEIGHTS}: {name} is of neither {' nor '.join(TENSORS)}; export it again")
        state.setdefault(part, {})[rest] = tensor
    for line, row in json_lines(folder / ITEMS):
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("item_id", "title")):
            raise Problem(f"{folder / ITEMS}, line {line}: no item_id and title; export it again")
        state["items"].append(row["item_id"])
        state["titles"].append(row["title"])
    return state


def read_state(path: str | Path) -> dict[str, Any]:
    """The state of a checkpoint, a `best_model.pth` or an exported folder."""
    try:
        exported = Path(path).is_dir()
    except (OSError, ValueError):  # no path at all; reading it as a file says why
        exported = False
    return read_folder(Path(path)) if exported else read_checkpoint(path)


def folder_of(path: str | Path) -> Path:
    """The folder that a checkpoint stands in, or that it is."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def earlier(key: str, path: str, data: Dataset) -> dict[str, Any]:
    """The checkpoint that an option names to go on from; Problem when it is of other data."""
    state = read_state(path)
    check_checkpoint(path, state)
    if sorted(state["items"]) == sorted(data.catalogue.ids) and state["items"] != data.catalogue.ids:
        raise Problem(
            f"{key}: {path} has the same items in another order, as newer interactions number them anew; it goes with "
            "the data it was trained on"
        )
    if state["items"] != data.catalogue.ids:
        raise Problem(f"{key}: {path} was trained on another catalogue; name one of this --dataset")
    if state.get("split", data.split_hash) != data.split_hash:
        raise Problem(
            f"{key}: {path} was trained on other interactions or another split; it may know the targets; name one of "
            "the same data and split options"
        )
    return state


def check_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Problem when a file is not a checkpoint of a training."""
    if missing := [k for k in ("model", "config", "items", "titles") if k not in state]:
        raise Problem(f"{path}: not a checkpoint of main.py, {missing[0]!r} is missing; use another file")
    ids, titles = state["items"], state["titles"]
    lists = isinstance(ids, list) and isinstance(titles, list) and len(ids) == len(titles)
    if not lists or not all(isinstance(text, str) for text in [*ids, *titles]):
        raise Problem(f"{path}: not a checkpoint of main.py, its items are not a list of names; use another file")
    if len(set(ids)) != len(ids):
        raise Problem(f"{path}: names an item twice; use another checkpoint")
    if not isinstance(state["config"], dict) or not isinstance(state["model"], dict):
        raise Problem(f"{path}: not a checkpoint of main.py, its config or model is not a dictionary; use another file")
