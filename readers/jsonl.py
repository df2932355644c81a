"""The released layout: a row a sample, item tokens, ids in .emb_map.json."""

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


def _jsonl_split(path: Path, number: dict[str, int]) -> Split:
    items: list[int] = []
    ends = [0]
    for line, row in json_lines(path):
        try:
            tokens = [*row["inter_history"], row["target_id"]]
            items.extend(number[str(t)] for t in tokens)
        except KeyError as e:
            what = quoted(e.args[0])
            raise Problem(f"{path}, line {line}: {what} is missing from the row or from the item map") from None
        except TypeError:
            raise Problem(f'{path}, line {line}: expected {{"inter_history": [...], "target_id": ...}}') from None
        if len(tokens) < 2:
            raise Problem(f"{path}, line {line}: empty inter_history")
        ends.append(len(items))
    offsets = np.array(ends, np.int64)
    return Split(np.array(items, np.int32), offsets, offsets[1:] - 1)
