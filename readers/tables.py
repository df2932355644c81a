"""Tables of interactions: one or three .inter files, one .csv file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pyarrow as pa

from readers.columns import Column, in_order, pieces
from readers.dataset import SPLITS, Catalogue, Found, items_file
from readers.delimited import Delimited
from readers.files import need_file
from readers.splits import DataOptions, Log, Parts, as_given, divide, parts_of
from utils import Problem, log, quoted, regular_file, shortened

UNITS = {1e11: 1.0, 1e14: 1e3, 1e17: 1e6, np.inf: 1e9}  # times since 1970 below so much are seconds, ms, us, ns
UNIT_NAMES = ("seconds", "milliseconds", "microseconds", "nanoseconds")
LATEST = 4_102_444_800  # 2100, in seconds
FIRST_TIME = 1e8  # a time since 1970 that is no count of rows or days
TABLES = "scripts/prepare_data.py reads tables whose cells are separated otherwise"
DATES = "scripts/prepare_data.py makes a data set of a table with dates"
AGAIN = "the names of the columns stand there again, as where files were joined; leave out that row"
UNSEEN = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")  # characters without width
NOBODY = ("nan", "null", "none", "na", "n/a", "nil", "undefined", "unknown", "anonymous", "guest", "missing", "(null)",
          "<na>", "#n/a", "(not set)", "\\n", "-", "?", "-1")  # what is written where nothing is known
ROUNDED = re.compile(r"\d[.,]\d+E\+\d+", re.I)  # Excel's long numbers


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


def read_inter(folder: Path, stem: str, cfg: DataOptions, scratch: Path | None) -> Found:
    """One .inter file, split here."""
    path = need_file(folder, stem, ".inter")
    return _from_rows([path], [read_rows(path, scratch=scratch)], folder, stem, cfg, scratch)


def read_csv(folder: Path, stem: str, cfg: DataOptions, scratch: Path | None) -> Found:
    """One comma-separated file whose columns the options name, split here."""
    named = Path(cfg.data_path)
    path = named if named.is_file() else need_file(folder, stem, ".csv")
    columns = Columns(cfg.users_col, cfg.items_col, cfg.time_col, ",")
    log.info(f"{path}: columns: users {columns.user}, items {columns.item}, times {columns.time}")
    return _from_rows([path], [read_rows(path, columns, scratch)], folder, stem, cfg, scratch)


def read_inter_splits(folder: Path, stem: str, cfg: DataOptions, scratch: Path | None) -> Found:
    """Three .inter files, split as they come; a history is all of a user's earlier rows."""
    paths = [need_file(folder, stem, f".{part}.inter") for part in SPLITS]
    return _from_rows(paths, [read_rows(p) for p in paths], folder, stem, cfg, scratch)


@dataclass(frozen=True)
class Rows:
    """Interactions as read: codes into the lists of users and items, times, [n]."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray  # float64
    users: list[str]
    items: list[str]


class Coder:
    """Words to whole numbers, by first occurrence."""

    def __init__(self, folder: Path | None) -> None:
        self.number: dict[str, int] = {}
        self.codes = Column(np.int32, folder)

    def add(self, cells: pa.DictionaryArray) -> None:
        known = self.number
        codes = np.array([known.setdefault(word, len(known)) for word in cells.dictionary.to_pylist()], np.int32)
        self.codes.add(codes[cells.indices.to_numpy()])


def read_rows(path: Path, columns: Columns | None = None, scratch: Path | None = None) -> Rows:
    """Read a table of interactions (.inter unless told); Problem names the file and line of the first bad row.

    scratch: a folder for the columns of a long one, None for memory.
    """
    columns = columns or Columns()
    if len(set(columns.all())) < 3:
        raise Problem(f"users_col, items_col, time_col: {', '.join(columns.all())} are not three different columns")
    text = Delimited(regular_file(path), columns.separator, columns.quoted)
    coded, number = pa.dictionary(pa.int32(), pa.string()), pa.float64()
    types = {columns.user: coded, columns.item: coded, columns.time: number}
    users, items, times = Coder(scratch), Coder(scratch), Column(np.float64, scratch)
    try:
        _check_header(text, columns)
        for batch in text.batches(types):
            users.add(batch[columns.user])
            items.add(batch[columns.item])
            time = batch[columns.time].to_numpy(zero_copy_only=False)
            if not np.isfinite(time).all():
                raise ValueError("a timestamp is empty or not finite")
            times.add(time)
    except (pa.ArrowException, OSError, ValueError, KeyError) as e:
        raise _bad_row(text, columns, str(e).splitlines()[0]) from None
    if "" in users.number or "" in items.number:
        raise _bad_row(text, columns, "a user or item is empty")
    return Rows(users.codes.array(), items.codes.array(), times.array(), list(users.number), list(items.number))


def _check_header(text: Delimited, columns: Columns) -> None:
    header = text.columns()
    for name in columns.all():
        if name not in header:
            how = "comma-separated; name them by users_col, items_col, time_col" if text.quoted else "tab-separated"
            there = shortened(", ".join(header)) or "none"
            there += f"; {TABLES}" if len(header) == 1 else ""
            wanted = f"expected {', '.join(columns.all())}, {how}"
            raise Problem(f"{text.path}, line 1: no column {name!r}; {wanted}; there are {there}")
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
                remedy = AGAIN if cells == header else DATES if re.search(r"\d\D+\d", cells[time]) else "mend that row"
                return Problem(f"{where}: timestamp {quoted(cells[time])} is not a number; {remedy}")
    except Problem as e:
        return e
    return text.fault(reason)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def twins_of(items: list[str]) -> dict[str, str]:
    """Other spellings of some ids -> these: blanks, zeros before and behind, case, accents composed otherwise."""
    ways: list[Callable[[str], str]] = [
        str.strip, str.lower, str.upper, lambda i: i.removesuffix(".0"), lambda i: f"{i}.0" if i.isdecimal() else i,
        lambda i: i.lstrip("0") or "0", partial(normalize, "NFC"), partial(normalize, "NFD"), lambda i: f"{i} ",
    ]  # fmt: skip
    known = set(items)
    return {twin: item for item in items for way in ways if (twin := way(item)) and twin not in known}


def unit_of(time: float) -> float:
    """How many of the units of a time since 1970 make a second, judged by its size."""
    return next(unit for below, unit in UNITS.items() if abs(time) < below)


def warn_of(path: Path, rows: Rows, *, dated: bool = False) -> None:
    """Say what makes a wrong order, or one user or item of several, and is legal; dated: the times were dates."""
    if not dated:
        _warn_of_times(path, rows.time)
    elif odd_dates := int(((rows.time <= 0) | (rows.time >= LATEST)).sum()):
        log.warning(f"{path}: {odd_dates} rows are dated before 1970 or after 2100; is their time unknown?")
    for role, codes, words in (("user", rows.user, rows.users), ("item", rows.item, rows.items)):
        for number, word in enumerate(words):
            if word.strip().lower() in NOBODY:
                count = int((codes == number).sum())
                log.warning(f"{path}: {count} rows are of the {role} {quoted(word)}, which counts as one {role}")
        if rounded := [word for word in words if ROUNDED.fullmatch(word)]:
            log.warning(f"{path}: {len(rounded)} {role}s are numbers that were cut short, as {quoted(rounded[0])}")
        if odd := {word: plain for word in words if (plain := _as_seen(word)) != word}:
            known = set(words)
            what = "have blanks around, characters without width or accents composed otherwise"
            what += f", as {shortened(next(iter(odd)))!a}"
            if twins := [word for word, plain in odd.items() if plain in known]:
                what += f", {len(twins)} of them those of another {role} without, as {shortened(twins[0])!a}"
            log.warning(f"{path}: {len(odd)} {role}s {what}")


def _as_seen(word: str) -> str:
    """An id as it looks."""
    return word.strip() if word.isascii() else UNSEEN.sub("", normalize("NFC", word)).strip()


def _warn_of_times(path: Path, time: np.ndarray) -> None:
    edges = [-np.inf, np.nextafter(0, 1), FIRST_TIME, *UNITS]  # unset, no time since 1970, seconds, milliseconds, ...
    unset, _, *of_unit = sum((np.histogram(piece, edges)[0] for piece in pieces(time)), np.zeros(6, int)).tolist()
    if sum(of_unit) and unset:
        log.warning(f"{path}: {unset} rows have the time 0 or less, which puts them before all others; is it unknown?")
    if np.count_nonzero(of_unit) > 1:
        told = ", ".join(f"{n} in {name}" for n, name in zip(of_unit, UNIT_NAMES, strict=True) if n)
        log.warning(f"{path}: the times seem to be of several units ({told} since 1970); give all the same one")
    last = max((float(piece.max()) for piece in pieces(time)), default=0.0)
    unit = 10.0 ** (len(f"{last:.0f}") - 6)
    if len(time) > 1 and last >= FIRST_TIME and all((piece % unit == 0).all() for piece in pieces(time)):
        log.warning(f"{path}: all times have six digits and zeros, as {last:.0f}; did a spreadsheet cut them short?")


def _from_rows(
    paths: list[Path], parts: list[Rows], folder: Path, stem: str, cfg: DataOptions, scratch: Path | None
) -> Found:
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
    for path, rows in zip(paths, parts, strict=True):
        if unknown := next((token for token in rows.items if token not in number), None):
            twin = next((twin for twin in twins_of([unknown]) if twin in number), None)
            remedy = "add its line (and its embedding) or drop its interactions"
            remedy = remedy if twin is None else f"it is {shortened(twin)!a} there: spell the ids alike"
            raise Problem(f"{path}: item {shortened(unknown)!a} is not in {stem}.items.jsonl; {remedy}")
    if len(parts) > 1:
        return Found(catalogue, _as_given(parts, number), paths)
    (rows,) = parts
    numbers, item = np.array([number[t] for t in rows.items], np.int32), Column(np.int32, scratch)
    for piece in pieces(rows.item):
        item.add(numbers[piece])
    names = rows.users
    log_of = Log(*in_order(rows.user, item.array(), rows.time, len(names), scratch))
    parts.clear()
    del rows, item  # room for what comes of them
    return Found(catalogue, divide(log_of, names, cfg, paths[0], scratch), paths)


def _as_given(parts: list[Rows], number: dict[str, int]) -> Parts:
    """The parts of three tables."""
    user_number: dict[str, int] = {}
    users = [np.array([user_number.setdefault(u, len(user_number)) for u in p.users], np.int32)[p.user] for p in parts]
    items = [np.array([number[t] for t in p.items], np.int32)[p.item] for p in parts]
    part = np.repeat(np.arange(len(parts), dtype=np.int8), [len(p.time) for p in parts])
    user, item, time = np.concatenate(users), np.concatenate(items), np.concatenate([p.time for p in parts])
    order = np.lexsort((time, part, user))  # stable: ties keep the file's order
    user, item, part = user[order], item[order], part[order]
    offsets = np.searchsorted(user, np.arange(len(user_number) + 1))
    return parts_of(as_given(item, offsets, part), np.bincount(item[part == 0]))


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
