"""Tables of interactions: one or three .inter files, one .csv file."""

import csv as text_csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from readers.dataset import SPLITS, Catalogue, Dataset, assemble, items_file
from readers.files import need_file
from readers.splits import DataOptions, Log, as_given, divide, parts_of
from utils import Problem, log, quoted, regular_file, shortened


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


def read_inter(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """One .inter file, split here."""
    path = need_file(folder, stem, ".inter")
    return _from_rows([path], [read_rows(path)], folder, stem, cfg)


def read_csv(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """One comma-separated file whose columns the options name, split here."""
    named = Path(cfg.data_path)
    path = named if named.is_file() else need_file(folder, stem, ".csv")
    columns = Columns(cfg.users_col, cfg.items_col, cfg.time_col, ",")
    return _from_rows([path], [read_rows(path, columns)], folder, stem, cfg)


def read_inter_splits(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """Three .inter files, split as they come; a history is all of a user's earlier rows."""
    paths = [need_file(folder, stem, f".{part}.inter") for part in SPLITS]
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
    regular_file(path)
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
                    return Problem(f"{where}: timestamp {quoted(cells[time])} is not a number")
    except (OSError, UnicodeDecodeError, text_csv.Error) as e:
        return Problem(f"{path}: not readable as text ({e})")
    return Problem(f"{path}: not readable ({shortened(reason)})")


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
    catalogue = items_file(folder, stem)
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
                    f"{path}: item {quoted(token)} is not in {stem}.items.jsonl; add its line (and its embedding) or "
                    "drop its interactions"
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
    return assemble(folder, stem, cfg, catalogue, found, paths)


def core(rows: Rows, k: int) -> Rows:
    """The rows whose user and item have at least k rows each, among the rows that are left."""
    kept = core_rows(rows.user, rows.item, k)
    log.info(f"k_core: {kept.sum()} of {len(kept)} interactions are left")
    users, user = np.unique(rows.user[kept], return_inverse=True)
    items, item = np.unique(rows.item[kept], return_inverse=True)
    return Rows(user, item, rows.time[kept], [rows.users[u] for u in users], [rows.items[i] for i in items])


def core_rows(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """[n] bool, the k-core of codes of users and items."""
    kept = np.ones(len(user), bool)
    while True:
        users, items = (np.bincount(x[kept], minlength=x.max(initial=0) + 1) for x in (user, item))
        enough = kept & (users[user] >= k) & (items[item] >= k)
        if enough.sum() == kept.sum():
            return kept
        kept = enough
