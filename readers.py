"""Readers: the field's file layouts in, flat integer arrays out.

Every reader returns a `Dataset`. Sequences are held as one flat array of items and the places where
each user's part begins; a sample is the position of its target in that array, never a list.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from settings import DataOptions
from utils import Problem, digest, log, read_json

COLUMNS = USER, ITEM, TIME = "user_id:token", "item_id:token", "timestamp:float"
SPLITS = ("train", "valid", "test")
SHORTEST = 3  # one item each to train on, validate and test


@dataclass(frozen=True)
class Split:
    """Samples of one part: target = items[position], history = what stands before it.

    items: int32 [n], 1..N; offsets: int64 [users + 1], where each user's sequence begins;
    position: int64 [samples].
    """

    items: np.ndarray
    offsets: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def users(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """User number of each sample."""
        found: np.ndarray = np.searchsorted(self.offsets, self.position[rows], side="right") - 1
        return found

    def lengths(self, longest: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """History length of each sample, at most `longest`."""
        history = self.position[rows] - self.offsets[self.users(rows)]
        shorter: np.ndarray = np.minimum(history, longest)
        return shorter


@dataclass(frozen=True)
class Catalogue:
    """The items, in the order of their numbers 1..N (and of the embedding's rows)."""

    ids: list[str]
    titles: list[str]
    keyed: bool = True  # False: numbered by first appearance, so that no file's rows can be joined

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.ids, 1)}


@dataclass(frozen=True)
class Dataset:
    name: str
    catalogue: Catalogue
    train: Split
    valid: Split
    test: Split
    popularity: np.ndarray  # int64 [N + 1]: how often each item occurs in the training part
    embedding_path: Path | None
    hash: str  # of the files that were read

    @property
    def n_items(self) -> int:
        return len(self.catalogue)

    def split(self, name: str) -> Split:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def read_dataset(cfg: DataOptions) -> Dataset:
    """Find the data set's files, read them and split them; Problem names what is wrong and where."""
    folder, stem = _locate(cfg)
    layout = cfg.data_format if cfg.data_format != "auto" else _detect(folder, stem)
    data = LAYOUTS[layout](folder, stem, cfg)
    for name in SPLITS:
        if not len(data.split(name)):
            raise Problem(
                f"{folder}: the {name} part of {cfg.dataset!r} is empty; it needs users with at least {SHORTEST} interactions"
            )
    return data


def _locate(cfg: DataOptions) -> tuple[Path, str]:
    """(folder, stem of the file names); case of the name does not matter."""
    root, wanted = Path(cfg.data_path), cfg.dataset.lower()
    if not root.is_dir():
        raise Problem(f"data_path: {root} is not a folder")
    inner = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() == wanted]
    folder = inner[0] if inner else root
    stems = {p.name.split(".")[0] for p in folder.iterdir() if p.name.lower().startswith(wanted + ".")}
    if not stems:
        raise Problem(f"data_path: neither {root / cfg.dataset} nor {root} holds files called {cfg.dataset}.*")
    return folder, cfg.dataset


def _file(folder: Path, stem: str, ending: str) -> Path | None:
    """The file `<stem><ending>`, whatever the case of its stem."""
    name = f"{stem}{ending}".lower()
    found = [p for p in sorted(folder.iterdir()) if p.name.lower() == name]
    return found[0] if found else None


def _detect(folder: Path, stem: str) -> str:
    endings = {"inter": ".inter", "inter_splits": ".train.inter", "jsonl": ".train.jsonl", "json": ".inter.json"}
    for layout, ending in endings.items():
        if _file(folder, stem, ending):
            return layout
    wanted = ", ".join(stem + e for e in endings.values())
    raise Problem(f"{folder}: found none of {wanted}; set data_format or add the file")


def _need(folder: Path, stem: str, ending: str) -> Path:
    path = _file(folder, stem, ending)
    if path is None:
        raise Problem(f"{folder / (stem + ending)}: no such file")
    return path


# ---------------------------------------------------------------- .inter


def _read_inter(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """One .inter file, split leave-one-out."""
    path = _need(folder, stem, ".inter")
    return _from_rows([path], [read_rows(path)], folder, stem, cfg)


def _read_inter_splits(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """Three .inter files, split as they come; a history is all of a user's earlier rows."""
    paths = [_need(folder, stem, f".{part}.inter") for part in SPLITS]
    return _from_rows(paths, [read_rows(p) for p in paths], folder, stem, cfg)


@dataclass(frozen=True)
class Rows:
    """Interactions as read: codes into the lists of users and items, times."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    users: list[str]
    items: list[str]


def read_rows(path: Path) -> Rows:
    """Read a tab-separated .inter file; Problem names the file and line of the first bad row."""
    text = pa.dictionary(pa.int32(), pa.string())
    try:
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(
                include_columns=list(COLUMNS), strings_can_be_null=False,
                column_types={USER: text, ITEM: text, TIME: pa.float64()},
            ),
        ).unify_dictionaries()  # fmt: skip
    except (pa.ArrowException, OSError, ValueError, KeyError) as e:
        raise _bad_row(path, str(e).splitlines()[0]) from None
    time = table[TIME].to_numpy()
    if not np.isfinite(time).all():
        raise _bad_row(path, "a timestamp is empty or not finite")
    coded = {c: table[c].combine_chunks() for c in (USER, ITEM)}
    names = {c: (a.chunk(0) if isinstance(a, pa.ChunkedArray) else a) for c, a in coded.items()}
    words = {c: a.dictionary.to_pylist() for c, a in names.items()}
    if "" in words[USER] or "" in words[ITEM]:
        raise _bad_row(path, "a user or item is empty")
    codes = {c: a.indices.to_numpy() for c, a in names.items()}
    return Rows(codes[USER], codes[ITEM], time, words[USER], words[ITEM])


def _bad_row(path: Path, reason: str) -> Problem:
    """Look for the row that the fast reader stumbled over, to name its line."""
    try:
        with path.open(encoding="utf-8") as f:
            header = f.readline().rstrip("\r\n").split("\t")
            if missing := [c for c in COLUMNS if c not in header]:
                return Problem(
                    f"{path}, line 1: no column {missing[0]!r}; expected {', '.join(COLUMNS)}, tab-separated"
                )
            where = {c: header.index(c) for c in COLUMNS}
            for number, line in enumerate(f, 2):
                cells = line.rstrip("\r\n").split("\t")
                if cells == [""]:
                    continue
                if len(cells) != len(header):
                    return Problem(f"{path}, line {number}: {len(cells)} columns where the header has {len(header)}")
                if not cells[where[USER]] or not cells[where[ITEM]]:
                    return Problem(f"{path}, line {number}: empty user or item")
                if not _is_number(cells[where[TIME]]):
                    return Problem(f"{path}, line {number}: timestamp {cells[where[TIME]]!r} is not a number")
    except (OSError, UnicodeDecodeError) as e:
        return Problem(f"{path}: not readable as text ({e})")
    return Problem(f"{path}: not readable ({reason})")


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _from_rows(paths: list[Path], parts: list[Rows], folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    catalogue = _items_file(folder, stem)
    if catalogue is None:
        seen = dict.fromkeys(token for rows in parts for token in rows.items)
        catalogue = Catalogue(list(seen), [""] * len(seen), keyed=False)
    number = catalogue.numbers()
    user_number: dict[str, int] = {}
    users, items, times = [], [], []
    for path, rows in zip(paths, parts, strict=True):
        for token in rows.items:
            if token not in number:
                raise Problem(
                    f"{path}: item {token!r} is not in {stem}.items.jsonl; add its line (and its embedding) or drop its interactions"
                )
        users.append(np.array([user_number.setdefault(u, len(user_number)) for u in rows.users], np.int32)[rows.user])
        items.append(np.array([number[t] for t in rows.items], np.int32)[rows.item])
        times.append(rows.time)
    part = np.repeat(np.arange(len(parts), dtype=np.int8), [len(t) for t in times])
    user, item = np.concatenate(users), np.concatenate(items)
    order = np.lexsort((np.concatenate(times), part, user))  # stable: ties keep the file's order
    user, item, part = user[order], item[order], part[order]
    offsets = np.searchsorted(user, np.arange(len(user_number) + 1))
    if len(parts) == 1:
        splits = leave_one_out(item, offsets, list(user_number), cfg.short_users, paths[0])
        training = training_items(splits[0], splits[1])
    else:
        splits, training = _as_given(item, offsets, part), item[part == 0]
    return _dataset(folder, stem, cfg, catalogue, splits, training, paths)


def leave_one_out(
    items: np.ndarray, offsets: np.ndarray, names: Sequence[str], short_users: str, source: Path
) -> list[Split]:
    """Last item to test, the one before to valid, every earlier one with a history to train."""
    lengths = np.diff(offsets)
    short = lengths < SHORTEST
    if short.any() and short_users == "refuse":
        first = int(short.argmax())
        raise Problem(
            f"{source}: {short.sum()} users have fewer than {SHORTEST} interactions, "
            f"first {names[first]!r} with {lengths[first]}; set short_users: drop to leave them out"
        )
    if short.any():
        log.info(f"{short.sum()} users with fewer than {SHORTEST} interactions are left out")
        items = items[np.repeat(~short, lengths)]
        offsets = np.concatenate([[0], lengths[~short].cumsum()])
    place = np.arange(len(items)) - np.repeat(offsets[:-1], np.diff(offsets))
    left = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(items))  # 1 on the last item
    train = np.flatnonzero((place >= 1) & (left >= 3))
    return [Split(items, offsets, p) for p in (train, offsets[1:] - 2, offsets[1:] - 1)]


def _as_given(items: np.ndarray, offsets: np.ndarray, part: np.ndarray) -> list[Split]:
    has_history = np.ones(len(items), bool)
    has_history[offsets[:-1]] = False
    return [Split(items, offsets, np.flatnonzero(has_history & (part == p))) for p in range(3)]


def training_items(train: Split, valid: Split) -> np.ndarray:
    """The items of the training part: whatever stands before a user's validation item."""
    if train.items is valid.items:
        end = train.offsets[1:].copy()
        end[valid.users()] = valid.position
        place = np.arange(len(train.items))
        return train.items[place < np.repeat(end, np.diff(train.offsets))]
    first = train.position[train.position == train.offsets[train.users()] + 1] - 1
    return np.concatenate([train.items[train.position], train.items[first]])


# ---------------------------------------------------------------- .jsonl and .json


def _read_jsonl(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """The released layout: a row a sample, item tokens, ids in .emb_map.json (1..N, [PAD] is 0)."""
    map_path = Path(cfg.map_path) if cfg.map_path else _need(folder, stem, ".emb_map.json")
    catalogue = _map_file(map_path)
    number = catalogue.numbers()
    paths = [_need(folder, stem, f".{part}.jsonl") for part in SPLITS]
    splits = [_jsonl_split(p, number) for p in paths]
    training = training_items(splits[0], splits[1])
    return _dataset(folder, stem, cfg, catalogue, splits, training, [*paths, map_path])


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
            raise Problem(f"{path}, line {line}: {e.args[0]!r} is missing from the row or from the item map") from None
        except TypeError:
            raise Problem(f'{path}, line {line}: expected {{"inter_history": [...], "target_id": ...}}') from None
        if len(tokens) < 2:
            raise Problem(f"{path}, line {line}: empty inter_history")
        ends.append(len(items))
    offsets = np.array(ends, np.int64)
    return Split(np.array(items, np.int32), offsets, offsets[1:] - 1)


def _read_json(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """<Name>.inter.json: user -> item indices from 0, in time order; <Name>.item.json: their texts."""
    path = _need(folder, stem, ".inter.json")
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(v, list) for v in found.values()):
        raise Problem(f"{path}: expected an object of user -> list of item indices")
    for user, row in found.items():
        if bad := [i for i in row if type(i) is not int or not 0 <= i < 2**31 - 1]:
            raise Problem(f"{path}: user {user!r} has the item {bad[0]!r}; expected whole numbers from 0")
    item_path = _file(folder, stem, ".item.json")
    texts = read_json(item_path) if item_path else {}
    if not isinstance(texts, dict):
        raise Problem(f"{item_path}: expected an object of item index -> text fields")
    flat = np.fromiter(itertools.chain.from_iterable(found.values()), np.int32) + 1
    n = max([int(flat.max(initial=0)), *(int(k) + 1 for k in texts if k.isdecimal())], default=0)
    titles = [_title(texts.get(str(i), {})) for i in range(n)]
    catalogue = Catalogue([str(i) for i in range(n)], titles)
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in found.values()], dtype=np.int64)])
    splits = leave_one_out(flat, offsets, list(found), cfg.short_users, path)
    return _dataset(folder, stem, cfg, catalogue, splits, training_items(splits[0], splits[1]), [path])


LAYOUTS: dict[str, Callable[[Path, str, DataOptions], Dataset]] = {
    "inter": _read_inter,
    "inter_splits": _read_inter_splits,
    "jsonl": _read_jsonl,
    "json": _read_json,
}

# ---------------------------------------------------------------- items and embeddings


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each non-empty line."""
    try:
        with path.open(encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except (json.JSONDecodeError, RecursionError) as e:
                        raise Problem(f"{path}, line {number}: not readable as JSON ({e})") from None
    except (OSError, UnicodeDecodeError) as e:
        raise Problem(f"{path}: not readable as text ({e})") from None


def _items_file(folder: Path, stem: str) -> Catalogue | None:
    path = _file(folder, stem, ".items.jsonl")
    if path is None:
        return None
    ids: dict[str, int] = {}
    titles = []
    for line, row in json_lines(path):
        token = row.get("item_id") if isinstance(row, dict) else None
        if not isinstance(token, str | int) or str(token) == "":
            raise Problem(f"{path}, line {line}: no item_id")
        if str(token) in ids:
            raise Problem(f"{path}, line {line}: item {token!r} stands already in line {ids[str(token)]}")
        ids[str(token)] = line
        titles.append(_title(row))
    return Catalogue(list(ids), titles)


def _title(row: Any) -> str:
    text = row.get("title") or row.get("text") or "" if isinstance(row, dict) else row
    return re.sub(r"\s+", " ", str(text)).strip()[:200]


def _dataset(
    folder: Path, stem: str, cfg: DataOptions, catalogue: Catalogue, splits: list[Split],
    training: np.ndarray, paths: list[Path],
) -> Dataset:  # fmt: skip
    embedding = Path(cfg.semantic_emb_path) if cfg.semantic_emb_path else _find_embedding(folder, stem)
    if cfg.semantic_emb_path and embedding and not embedding.is_file():
        beside = folder / embedding
        if not beside.is_file():
            raise Problem(f"semantic_emb_path: {embedding}: no such file")
        embedding = beside
    items = _file(folder, stem, ".items.jsonl")
    popularity = np.bincount(training, minlength=len(catalogue) + 1)
    files = [*paths, *([items] if items else []), *([embedding] if embedding else [])]
    train, valid, test = splits
    return Dataset(stem, catalogue, train, valid, test, popularity, embedding, digest(cfg.short_users, *files))


def _find_embedding(folder: Path, stem: str) -> Path | None:
    pattern = re.compile(re.escape(stem) + r"\.emb.*\.npy", re.IGNORECASE)
    found = [p for p in sorted(folder.iterdir()) if pattern.fullmatch(p.name)]
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise Problem(f"{folder}: several embeddings ({names}); choose one with semantic_emb_path")
    return found[0] if found else None


def read_embeddings(data: Dataset) -> np.ndarray:
    """Content embeddings [N, D], memory-mapped; row i belongs to item i + 1.

    Problem when there are none, a row is missing, or a value is not finite.
    """
    path = data.embedding_path
    if path is None:
        raise Problem(
            f"no content embeddings beside {data.name!r}; set semantic_emb_path to a .npy with a row per item"
        )
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an .npz archive")
    except Exception as e:  # numpy raises many kinds for a damaged header
        reason = " ".join(str(e).split())[:160] or type(e).__name__
        raise Problem(f"{path}: not readable as .npy ({reason})") from None
    if found.ndim != 2 or found.dtype.kind != "f" or found.shape[1] < 1:
        raise Problem(f"{path}: expected floating-point [items, D], found {found.dtype} {list(found.shape)}")
    if len(found) != data.n_items:
        ids = data.catalogue.ids
        first = f"; the first item without one is {ids[len(found)]!r}" if len(found) < len(ids) else ""
        raise Problem(
            f"{path}: {len(found)} rows for {data.n_items} items{first}; row i must belong to item i of the catalogue"
        )
    for begin in range(0, len(found), 65536):
        bad = ~np.isfinite(found[begin : begin + 65536]).all(1)
        if bad.any():
            row = begin + int(bad.argmax())
            raise Problem(
                f"{path}: row {row} (item {data.catalogue.ids[row]!r}) holds NaN or infinity; embed that item again"
            )
    if not data.catalogue.keyed:
        raise Problem(
            f"{path}: which row belongs to which item? Add {data.name}.items.jsonl, a line an item in the order of the rows"
        )
    return found
