"""<Name>.inter.json: user -> item indices; <Name>.item.json: their texts."""

import itertools
from pathlib import Path

import numpy as np

from readers.dataset import Catalogue, Found, title
from readers.files import find_file, need_file
from readers.splits import DataOptions, leave_one_out
from utils import Problem, quoted, read_json


def read_json_lists(folder: Path, stem: str, cfg: DataOptions, scratch: Path | None) -> Found:
    """<Name>.inter.json: user -> item indices from 0, in time order; <Name>.item.json: their texts."""
    path = need_file(folder, stem, ".inter.json")
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(v, list) for v in found.values()):
        raise Problem(f"{path}: expected an object of user -> list of item indices")
    for user, row in found.items():
        if bad := [i for i in row if type(i) is not int or not 0 <= i < 2**31 - 1]:
            raise Problem(f"{path}: user {quoted(user)} has the item {quoted(bad[0])}; expected whole numbers from 0")
    item_path = find_file(folder, stem, ".item.json")
    texts = read_json(item_path) if item_path else {}
    if not isinstance(texts, dict):
        raise Problem(f"{item_path}: expected an object of item index -> text fields")
    flat = np.fromiter(itertools.chain.from_iterable(found.values()), np.int32) + 1
    n = max([int(flat.max(initial=0)), *(int(k) + 1 for k in texts if k.isdecimal() and len(k) < 12)], default=0)
    if n > 1000 * (len(np.unique(flat)) + len(texts)) + 1_000_000:  # a slip; nobody has room for what lies between
        raise Problem(f"{path}: the largest item index is {n - 1}; number the items 0, 1, 2, ... without such gaps")
    titles = [title(texts.get(str(i), {})) for i in range(n)]
    catalogue = Catalogue([str(i) for i in range(n)], titles)
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in found.values()], dtype=np.int64)])
    return Found(catalogue, leave_one_out(flat, offsets, list(found), cfg.short_users, path), [path])
