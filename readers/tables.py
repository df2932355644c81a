"""Tables of interactions: one or three .inter files, one .csv file."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from readers.dataset import SPLITS, Catalogue, Dataset, assemble, items_file
from readers.delimited import Delimited, Watched
from readers.files import need_file
from readers.splits import DataOptions, Log, as_given, divide, parts_of
from utils import Problem, log, quoted, regular_file, shortened

UNITS = {1e11: 1.0, 1e14: 1e3, 1e17: 1e6, np.inf: 1e9}  # times since 1970 below so much are seconds, ms, us, ns
UNIT_NAMES = ("seconds", "milliseconds", "microseconds", "nanoseconds")
FIRST_TIME = 1e8  # a time since 1970 that is no count of rows or days
DATES = "scripts/prepare_data.py makes a data set of a table with dates"
NOBODY = ("nan", "null", "none", "na", "n/a", "nil", "undefined")  # what programs write where nothing is known
ROUNDED = re.compile(r"\d\.\d+E\+\d+")  # Excel's long numbers


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
    log.info(f"{path}: columns: users {columns.user}, items {columns.item}, times {columns.time}")
    return _from_rows([path], [read_rows(path, columns)], folder, stem, cfg)


def read_inter_splits(folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    """Three .inter files, split as they come; a history is all of a user's earlier rows."""
    paths = [need_file(folder, stem, f".{part}.inter") for part in SPLITS]
    return _from_rows(paths, [read_rows(p) for p in paths], folder, stem, cfg)


@dataclass(frozen=True)
class Rows:
    """Interactions as read: codes into the lists of users and items, times, [n]."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray  # float64
    users: list[str]
    items: list[str]


def read_rows(path: Path, columns: Columns | None = None) -> Rows:
    """Read a table of interactions (.inter unless told); Problem names the file and line of the first bad row."""
    columns = columns or Columns()
    if len(set(columns.all())) < 3:
        raise Problem(f"users_col, items_col, time_col: {', '.join(columns.all())} are not three different columns")
    text = Delimited(regular_file(path), columns.separator, columns.quoted)
    coded, number = pa.dictionary(pa.int32(), pa.string()), pa.float64()
    types = {columns.user: coded, columns.item: coded, columns.time: number}
    try:
        _check_header(text, columns)
        table = csv.read_csv(Watched(text), **text.options(types)).unify_dictionaries()
    except (pa.ArrowException, OSError, ValueError, KeyError) as e:
        raise _bad_row(text, columns, str(e).splitlines()[0]) from None
    time = table[columns.time].to_numpy()
    if not np.isfinite(time).all():
        raise _bad_row(text, columns, "a timestamp is empty or not finite")
    codes = {c: table[c].combine_chunks() for c in (columns.user, columns.item)}
    names = {c: (a.chunk(0) if isinstance(a, pa.ChunkedArray) else a) for c, a in codes.items()}
    words = {c: a.dictionary.to_pylist() for c, a in names.items()}
    if any("" in w for w in words.values()):
        raise _bad_row(text, columns, "a user or item is empty")
    user, item = (names[c].indices.to_numpy() for c in (columns.user, columns.item))
    return Rows(user, item, time, words[columns.user], words[columns.item])


def _check_header(text: Delimited, columns: Columns) -> None:
    header = text.columns()
    for name in columns.all():
        if name not in header:
            how = "comma-separated; name them by users_col, items_col, time_col" if text.quoted else "tab-separated"
            raise Problem(
                f"{text.path}, line 1: no column {name!r}; expected {', '.join(columns.all())}, {how}; there are "
                f"{shortened(', '.join(header))}"
            )
        if header.count(name) > 1:
            raise Problem(f"{text.path}, line 1: two columns are called {name!r}; rename one")


def _bad_row(text: Delimited, columns: Columns, reason: str) -> Problem:
    """Look for the row that the fast reader stumbled over, to name its line."""
    try:
        text.check()
        rows = ((line, cells) for line, _, cells in text.rows() if cells)
        _, header = next(rows)
        user, item, time = (header.index(c) for c in columns.all())
        for line, cells in rows:
            where = f"{text.path}, line {line}"
            if not cells[user] or not cells[item]:
                return Problem(f"{where}: empty user or item")
            if not _is_number(cells[time]):
                return Problem(f"{where}: timestamp {quoted(cells[time])} is not a number; {DATES}")
    except Problem as e:
        return e
    return text.fault(reason)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def unit_of(time: float) -> float:
    """How many of the units of a time since 1970 make a second, judged by its size."""
    return next(unit for below, unit in UNITS.items() if abs(time) < below)


def warn_of(path: Path, rows: Rows) -> None:
    """Say what makes a wrong order, or one user or item of several, and is legal nonetheless."""
    last = float(rows.time.max(initial=0))
    if last > FIRST_TIME and (unset := int((rows.time <= 0).sum())):
        log.warning(f"{path}: {unset} rows have the time 0, which puts them before all others; is theirs unknown?")
    later = rows.time[rows.time > FIRST_TIME]
    if len(later) and unit_of(float(later.min())) != unit_of(last):
        few = [int((np.abs(later) < below).sum()) for below in UNITS]
        counts = ", ".join(f"{n} in {name}" for n, name in zip(np.diff(few, prepend=0), UNIT_NAMES, strict=True) if n)
        log.warning(f"{path}: the times seem to be of several units ({counts} since 1970); give all the same one")
    for role, codes, words in (("user", rows.user, rows.users), ("item", rows.item, rows.items)):
        for number, word in enumerate(words):
            if word.strip().lower() in NOBODY:
                count = int((codes == number).sum())
                log.warning(f"{path}: {count} rows are of the {role} {quoted(word)}, which counts as one {role}")
        if rounded := [word for word in words if ROUNDED.fullmatch(word)]:
            log.warning(f"{path}: {len(rounded)} {role}s are numbers that were cut short, as {quoted(rounded[0])}")
        if padded := [word for word in words if word != word.strip()]:
            known = set(words)
            twins = [word for word in padded if word.strip() in known]
            same = f", {len(twins)} of them those of another {role} without, as {quoted(twins[0])}" if twins else ""
            log.warning(f"{path}: {len(padded)} {role}s begin or end with a blank, as {quoted(padded[0])}{same}")


def _from_rows(paths: list[Path], parts: list[Rows], folder: Path, stem: str, cfg: DataOptions) -> Dataset:
    for path, rows in zip(paths, parts, strict=True):
        warn_of(path, rows)
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
