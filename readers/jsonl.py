"""The released layout: a row a sample, item tokens, ids in .emb_map.json."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from readers.dataset import SPLITS, Catalogue, Found
from readers.files import json_lines, need_file
from readers.splits import DataOptions, Split, parts_of, training_counts
from utils import Problem, quoted, read_json


def read_jsonl(folder: Path, stem: str, cfg: DataOptions, scratch: Path | None) -> Found:
    """The released layout: a row a sample, item tokens, ids in .emb_map.json (1..N, [PAD] is 0)."""
    map_path = need_file(folder, stem, ".emb_map.json")
    catalogue = _map_file(map_path)
    number = catalogue.numbers()
    paths = [need_file(folder, stem, f".{part}.jsonl") for part in SPLITS]
    splits = [_jsonl_split(p, number) for p in paths]
    parts = parts_of(splits, training_counts(splits[0], splits[1]))
    return Found(catalogue, parts, [*paths, map_path])


def _map_file(path: Path) -> Catalogue:
    found = read_json(path)
    if not isinstance(found, dict):
        raise Problem(f"{path}: expected an object of item token -> id")
    ids = {v: k for k, v in found.items() if k != "[PAD]" and isinstance(v, int) and not isinstance(v, bool)}
    n = len(found) - ("[PAD]" in found)
    if sorted(ids) != list(range(1, n + 1)) or found.get("[PAD]", 0) != 0:
        raise Problem(f"{path}: ids must be the whole numbers 1..{n}, each once, [PAD] 0")
    return Catalogue([ids[i] for i in range(1, n + 1)], [""] * n)


def samples(path: Path) -> Iterator[tuple[int, list[str], str, str | None]]:
    """(line, history, target, user where it is named) of each row; Problem where one is no sample."""
    for line, row in json_lines(path):
        history, target = (row.get(key) if isinstance(row, dict) else None for key in ("inter_history", "target_id"))
        if not isinstance(history, list) or not history or target is None:
            raise Problem(f'{path}, line {line}: expected {{"inter_history": [...], "target_id": ...}}')
        user = row.get("user_id")
        yield line, [str(i) for i in history], str(target), None if user is None else str(user)


def _jsonl_split(path: Path, number: dict[str, int]) -> Split:
    items: list[int] = []
    ends = [0]
    for line, history, target, _ in samples(path):
        if lost := [token for token in (*history, target) if token not in number]:
            raise Problem(f"{path}, line {line}: {quoted(lost[0])} is missing from the item map")
        items.extend(number[token] for token in (*history, target))
        ends.append(len(items))
    offsets = np.array(ends, np.int64)
    return Split(np.array(items, np.int32), offsets, offsets[1:] - 1)
