"""Readers: the field's file layouts in, flat integer arrays out.

Every reader returns a `Dataset`. Sequences are held as one flat array of items and the places where
each user's part begins; a sample is the position of its target in that array, never a list.
"""

import csv as text_csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from readers.splits import (
    SHORTEST,
    DataOptions,
    Log,
    Parts,
    Split,
    as_given,
    divide,
    leave_one_out,
    parts_of,
    training_items,
)
from utils import Problem, digest, log, read_json

SPLITS = ("train", "valid", "test")
TIMED = ("inter", "csv")  # layouts that say when


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table of interactions, and what separates its cells."""

    user: str = "user_id:token"
    item: str = "item_id:token"
    time: str = "timestamp:float"
    separator: str = "\t"

    def all(self) -> list[str]:
        return [self.user, self.item, self.time]

    @property
    def quoted(self) -> bool:
        return self.separator == ","


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
class Stamp:
    """A file as it was when it was read: its hash, and by what a change shows without hashing again."""

    digest: str
    size: int  # bytes
    times: tuple[int, int]  # of its content and of its entry, ns

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        found = path.stat()  # before the hash: a change in between is noticed later
        return cls(digest(path), found.st_size, (found.st_mtime_ns, found.st_ctime_ns))

    def holds(self, path: Path) -> bool:
        """Is the file's content still the same?"""
        found = path.stat()
        if (found.st_size, (found.st_mtime_ns, found.st_ctime_ns)) == (self.size, self.times):
            return True
        return found.st_size == self.size and digest(path) == self.digest


@dataclass(frozen=True)
class Dataset:
    name: str
    catalogue: Catalogue
    train: Split
    valid: Split
    test: Split
    popularity: np.ndarray  # int64 [N + 1]: how often each item occurs in the training part
    embedding_path: Path | None
    split_hash: str  # of the interactions and of how they were split
    hash: str  # of these and of every other file that was read
    facts: dict[str, float] = field(default_factory=dict)  # of the split, for log and results
    embedding_stamp: Stamp | None = None  # whoever reads the embeddings later must find those that were hashed

    @property
    def n_items(self) -> int:
        return len(self.catalogue)

    def split(self, name: str) -> Split:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def read_dataset(cfg: DataOptions) -> Dataset:
    """Find the data set's files, read them and split them; Problem names what is wrong and where."""
    folder, stem = _locate(cfg)
    layout = cfg.data_format if cfg.data_format != "auto" else _detect(folder, stem)
    if Path(cfg.data_path).is_file():
        layout = "csv"
    if cfg.split != "leave_one_out" and layout not in TIMED:
        raise Problem(f"split: {cfg.split} needs timestamps, which the layout {layout!r} does not hold; use leave_one_out")
    if cfg.k_core and layout not in TIMED:
        raise Problem(f"k_core: works on one .inter or .csv file; the layout {layout!r} comes split")
    data = LAYOUTS[layout](folder, stem, cfg)
    for name in SPLITS:
        if not len(data.split(name)):
            need = f"it needs users with at least {SHORTEST} interactions"
            if cfg.split != "leave_one_out":
                need = "no user has rows on both sides of its cut in time; change time_quantile"
            raise Problem(f"{folder}: the {name} part of {cfg.dataset!r} is empty; {need}")
    return data


def _locate(cfg: DataOptions) -> tuple[Path, str]:
    """(folder, stem of the file names): the data set as it was spelled, else the only one that differs in case."""
    root, stem = Path(cfg.data_path), cfg.dataset
    if root.is_file() and root.suffix.lower() == ".csv":
        return root.parent, root.stem
    if not root.is_dir():
        raise Problem(f"data_path: {root} is not a folder, nor a .csv file")
    inner = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() == stem.lower()]
    here = _spelled_alike(root, stem)
    folder = root
    if root / stem in inner or not any(p.name.startswith(f"{stem}.") for p in here):
        if inner and here and root / stem not in inner:  # another spelling as a folder, and one beside it
            inner.append(here[0])
        folder = _one_of(inner, root / stem) or root
    if not _spelled_alike(folder, stem):
        raise Problem(f"data_path: neither {root / stem} nor {root} holds files called {stem}.*")
    return folder, stem


def _spelled_alike(folder: Path, stem: str) -> list[Path]:
    """The files `<stem>.*` of a folder, whatever the case of their stem, in the order of their names."""
    return [p for p in sorted(folder.iterdir()) if p.is_file() and p.name.lower().startswith(f"{stem.lower()}.")]


def _one_of(found: list[Path], wanted: Path, *, say: bool = True) -> Path | None:
    """`wanted` itself where it is among the found, else the only one found, and the log says so (once: `say`).

    Problem when there are several others: which of them is meant only the user knows.
    """
    if wanted in found:
        return wanted
    if len(found) > 1:
        names = " and ".join(str(p) for p in found)
        raise Problem(f"{wanted}: not there, but {names}; write the name as it is spelled or rename one of them")
    if found and say:
        log.info(f"{wanted}: not there, {found[0]} is read in its place")
    return found[0] if found else None


def _files(folder: Path, stem: str) -> list[Path]:
    """The files of a data set: those of its own spelling alone where another spelling is a data set as well.

    So `T.items.jsonl` may complete `t.inter`, but not where it stands beside `T.inter`. Problem when there are
    several data sets in other spellings.
    """
    found = _spelled_alike(folder, stem)
    sets = {p.name[: len(stem)]: p for p in found if p.name.lower()[len(stem) :] in INTERACTIONS.values()}
    if len(sets) > 1 and stem in sets:
        return [p for p in found if p.name.startswith(f"{stem}.")]
    _one_of(list(sets.values()), folder / stem, say=False)
    return found


def _file(folder: Path, stem: str, ending: str, *, say: bool = True) -> Path | None:
    """The file `<stem><ending>`, or the only one whose name differs from it in case."""
    name = f"{stem}{ending}"
    return _one_of([p for p in _files(folder, stem) if p.name.lower() == name.lower()], folder / name, say=say)


# layout -> what the name of its first file ends with, in the order in which layouts are looked for
INTERACTIONS = {
    "inter": ".inter", "inter_splits": ".train.inter", "jsonl": ".train.jsonl", "json": ".inter.json", "csv": ".csv",
}  # fmt: skip


def _detect(folder: Path, stem: str) -> str:
    names = {layout: f"{stem}{ending}" for layout, ending in INTERACTIONS.items()}
    there = _files(folder, stem)
    for exact in (True, False):  # an exact name of any layout goes before an inexact one
        for layout, name in names.items():
            if any(p.name == name or (not exact and p.name.lower() == name.lower()) for p in there):
                return layout
    raise Problem(f"{folder}: found none of {', '.join(names.values())}; set data_format or add the file")


def _need(folder: Path, stem: str, ending: str) -> Path:
    path = _file(folder, stem, ending)
    if path is None:
        raise Problem(f"{folder / (stem + ending)}: no such file")
    return path


# ---------------------------------------------------------------- tables: .inter and .csv


def _read_inter(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """One .inter file, split here."""
    path = _need(folder, stem, ".inter")
    return _from_rows([path], [read_rows(path)], folder, stem, cfg)


def _read_csv(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """One comma-separated file whose columns the options name, split here."""
    named = Path(cfg.data_path)
    path = named if named.is_file() else _need(folder, stem, ".csv")
    columns = Columns(cfg.users_col, cfg.items_col, cfg.time_col, ",")
    return _from_rows([path], [read_rows(path, columns)], folder, stem, cfg)


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


def read_rows(path: Path, columns: Columns | None = None) -> Rows:
    """Read a table of interactions (.inter unless told); Problem names the file and line of the first bad row."""
    columns = columns or Columns()
    if len(set(columns.all())) < 3:
        raise Problem(f"users_col, items_col, time_col: {', '.join(columns.all())} are not three different columns")
    text = pa.dictionary(pa.int32(), pa.string())
    try:
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter=columns.separator, quote_char='"' if columns.quoted else False),
            convert_options=csv.ConvertOptions(
                include_columns=columns.all(), strings_can_be_null=False,
                column_types={columns.user: text, columns.item: text, columns.time: pa.float64()},
            ),
        ).unify_dictionaries()  # fmt: skip
    except (pa.ArrowException, OSError, ValueError, KeyError) as e:
        raise _bad_row(path, columns, str(e).splitlines()[0]) from None
    time = table[columns.time].to_numpy()
    if not np.isfinite(time).all():
        raise _bad_row(path, columns, "a timestamp is empty or not finite")
    coded = {c: table[c].combine_chunks() for c in (columns.user, columns.item)}
    names = {c: (a.chunk(0) if isinstance(a, pa.ChunkedArray) else a) for c, a in coded.items()}
    words = {c: a.dictionary.to_pylist() for c, a in names.items()}
    if any("" in w for w in words.values()):
        raise _bad_row(path, columns, "a user or item is empty")
    user, item = (names[c].indices.to_numpy() for c in (columns.user, columns.item))
    return Rows(user, item, time, words[columns.user], words[columns.item])


def _bad_row(path: Path, columns: Columns, reason: str) -> Problem:
    """Look for the row that the fast reader stumbled over, to name its line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            if columns.quoted:
                lines = text_csv.reader(f)
            else:
                lines = text_csv.reader(f, delimiter=columns.separator, quoting=text_csv.QUOTE_NONE)
            header = next(lines, [])
            if missing := [c for c in columns.all() if c not in header]:
                how = (
                    "comma-separated; name them by users_col, items_col, time_col"
                    if columns.quoted
                    else "tab-separated"
                )
                return Problem(f"{path}, line 1: no column {missing[0]!r}; expected {', '.join(columns.all())}, {how}")
            user, item, time = (header.index(c) for c in columns.all())
            for cells in lines:
                where = f"{path}, line {lines.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    return Problem(f"{where}: {len(cells)} columns where the header has {len(header)}")
                if not cells[user] or not cells[item]:
                    return Problem(f"{where}: empty user or item")
                if not _is_number(cells[time]):
                    return Problem(f"{where}: timestamp {cells[time]!r} is not a number")
    except (OSError, UnicodeDecodeError, text_csv.Error) as e:
        return Problem(f"{path}: not readable as text ({e})")
    return Problem(f"{path}: not readable ({reason})")


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _from_rows(paths: list[Path], parts: list[Rows], folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    if len(parts) == 1 and cfg.k_core:
        parts = [core(parts[0], cfg.k_core)]
    for path, rows in zip(paths, parts, strict=True):
        if not len(rows.time):
            raise Problem(f"{path}: {f'k_core {cfg.k_core} leaves' if cfg.k_core else 'holds'} no interactions")
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
    user, item, time = np.concatenate(users), np.concatenate(items), np.concatenate(times)
    order = np.lexsort((time, part, user))  # stable: ties keep the file's order
    ordered = Log(user[order], item[order], time[order], len(user_number))
    if len(parts) == 1:
        found = divide(ordered, list(user_number), cfg, paths[0])
    else:
        part, offsets = part[order], np.searchsorted(ordered.user, np.arange(ordered.users + 1))
        found = parts_of(as_given(ordered.item, offsets, part), ordered.item[part == 0])
    return _dataset(folder, stem, cfg, catalogue, found, paths)


def core(rows: Rows, k: int) -> Rows:
    """The rows whose user and item have at least k rows each, among the rows that are left."""
    kept = np.ones(len(rows.time), bool)
    while True:
        user, item = (np.bincount(x[kept], minlength=x.max(initial=0) + 1) for x in (rows.user, rows.item))
        enough = kept & (user[rows.user] >= k) & (item[rows.item] >= k)
        if enough.sum() == kept.sum():
            break
        kept = enough
    log.info(f"k_core: {kept.sum()} of {len(kept)} interactions are left")
    users, user = np.unique(rows.user[kept], return_inverse=True)
    items, item = np.unique(rows.item[kept], return_inverse=True)
    return Rows(user, item, rows.time[kept], [rows.users[u] for u in users], [rows.items[i] for i in items])


# ---------------------------------------------------------------- .jsonl and .json


def _read_jsonl(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """The released layout: a row a sample, item tokens, ids in .emb_map.json (1..N, [PAD] is 0)."""
    map_path = Path(cfg.map_path) if cfg.map_path else _need(folder, stem, ".emb_map.json")
    catalogue = _map_file(map_path)
    number = catalogue.numbers()
    paths = [_need(folder, stem, f".{part}.jsonl") for part in SPLITS]
    splits = [_jsonl_split(p, number) for p in paths]
    parts = parts_of(splits, training_items(splits[0], splits[1]))
    return _dataset(folder, stem, cfg, catalogue, parts, [*paths, map_path])


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
    return _dataset(folder, stem, cfg, catalogue, parts_of(splits, training_items(splits[0], splits[1])), [path])


LAYOUTS: dict[str, Callable[[Path, str, DataOptions], Dataset]] = {
    "inter": _read_inter,
    "inter_splits": _read_inter_splits,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
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
    folder: Path, stem: str, cfg: DataOptions, catalogue: Catalogue, parts: Parts, paths: list[Path]
) -> Dataset:
    embedding = Path(cfg.semantic_emb_path) if cfg.semantic_emb_path else _find_embedding(folder, stem)
    if cfg.semantic_emb_path and embedding and not embedding.is_file():
        beside = folder / embedding
        if not beside.is_file():
            raise Problem(f"semantic_emb_path: {embedding}: no such file")
        embedding = beside
    items = _file(folder, stem, ".items.jsonl", say=False)
    popularity = np.bincount(parts.training, minlength=len(catalogue) + 1)
    others = [*([items] if items else []), *([embedding] if embedding else [])]
    rules: list[object] = ["time", cfg.time_quantile] if cfg.split != "leave_one_out" else []
    rules += [True, cfg.test_size, cfg.seed] if cfg.split == "time_groups" else []
    rules += [cfg.k_core] if cfg.k_core else []
    rules += [cfg.users_col, cfg.items_col, cfg.time_col] if paths[0].suffix.lower() == ".csv" else []
    split_hash = digest(cfg.short_users, *rules, *paths)
    report(parts, cfg)
    return Dataset(
        stem, catalogue, parts.train, parts.valid, parts.test, popularity, embedding, split_hash,
        digest(split_hash, *others), parts.facts, Stamp.of(embedding) if embedding else None,
    )  # fmt: skip


def report(parts: Parts, cfg: DataOptions) -> None:
    """Say what the split leaves out and what nobody can have learned."""
    f = parts.facts
    if cfg.split != "leave_one_out":
        log.info(f"split by time: {', '.join(f'{k} {v:g}' if abs(v) < 1e6 else f'{k} {v:.0f}' for k, v in f.items())}")
    elif any(f.values()):
        log.info(", ".join(f"{v} of {len(s)} {n} targets never occur in the training part"
                           for n, s, v in (("validation", parts.valid, f["cold_valid_targets"]),
                                           ("test", parts.test, f["cold_test_targets"]))))  # fmt: skip


def _find_embedding(folder: Path, stem: str) -> Path | None:
    pattern = re.compile(re.escape(stem) + r"\.emb.*\.npy", re.IGNORECASE)
    found = [p for p in _files(folder, stem) if pattern.fullmatch(p.name)]
    own = {p.name.lower(): p for p in found if p.name.startswith(f"{stem}.")}
    found = [p for p in found if own.get(p.name.lower(), p) == p]  # an exact name goes before its twin
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise Problem(f"{folder}: several embeddings ({names}); choose one with semantic_emb_path")
    return found[0] if own else _one_of(found, folder / f"{stem}.emb*.npy")


def read_embeddings(data: Dataset) -> np.ndarray:
    """Content embeddings [N, D], memory-mapped; row i belongs to item i + 1.

    Problem when there are none, they have changed since the data were read, a row is missing, or a value is not
    finite.
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
    if data.embedding_stamp is not None and not data.embedding_stamp.holds(path):
        raise Problem(f"{path}: has changed since this command read it; put the old file back or begin again")
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
