"""Files of others, scanned with polars and never held whole; what is wrong with one is a line that names the place."""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from readers.delimited import DAMAGED, Delimited, open_binary, text_lines
from readers.files import json_lines
from settings import option
from utils import PARQUET, Problem, first_bytes, kind_of, parse_json, quoted, regular_file, shortened, shown, what_is

ROLES = ("user", "item", "time", "rating")
ROW = "(row)"  # column of a part: the number that people give to a row
JSON = (".json", ".jsonl", ".ndjson")  # an object a line
ATOMIC = (".inter", ".item")  # tab-separated, a quotation mark is a character
SPLIT_NAMES = (("train", "training"), ("valid", "validation", "val", "dev"), ("test", "testing", "holdout"))
JSON_BATCH = 50_000  # objects that become a table at a time
TABULAR = (".csv", ".tsv", ".txt", ".parquet", ".dat", ".data", *JSON, *ATOMIC)
ASIDE = re.compile(r"[._]|~\$|(readme|licen[cs]e|changelog)\b", re.I)  # names of what is kept beside data
HEAD = 1 << 16  # bytes of a file that are looked at to tell what it is
Texts = Callable[[set[str]], Iterator[dict[str, str]]]  # ids that are wanted -> {"item_id": ..., field: text}


Vectors = Callable[[set[str]], tuple[list[str], np.ndarray]]  # ids that are wanted -> those that are known, [M, D]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    source: str = option("auto", "what the files are: auto or one of KINDS")
    items: str | None = option(None, "file with the item texts; default: found beside the interactions", path=True)
    users_col: str | None = option(None, "column of user ids; default: a common name such as user_id")
    items_col: str | None = option(None, "column of item ids, in both files; default: a common name such as item_id")
    time_col: str | None = option(
        None, "column of timestamps (numbers or dates); default: a common name such as timestamp"
    )
    rating_col: str | None = option(None, "column of ratings; default: rating or stars, if there is one")
    text_cols: list[str] = option([], "columns of the item texts; default: all but the id")


@dataclass(frozen=True)
class Part:
    """One file of interactions: columns ROW, user, item, and, where there are such, time and rating."""

    path: Path
    frame: pl.LazyFrame
    columns: dict[str, str] = field(default_factory=dict)  # role -> what its column is called in the file


@dataclass(frozen=True)
class Raw:
    """A source, found but not read yet. Without a time the order of the rows is the order in time."""

    kind: str
    parts: list[Part]
    texts: Texts | None = None
    text_files: tuple[Path, ...] = ()
    repeated_texts: bool = False  # several texts of an item are usual in this source: the first counts
    vectors: Vectors | None = None  # content embeddings that are published with it
    beside: tuple[Path, ...] = ()  # what else was read


# ---------------------------------------------------------------- what a file is


def head(path: Path) -> str:
    """The first line of a text that is not empty, the column names of a Parquet file; "" where it cannot be read."""
    with contextlib.suppress(*DAMAGED, Problem, pl.exceptions.PolarsError):
        if is_parquet(path):
            return ",".join(pl.scan_parquet(path, hive_partitioning=True).collect_schema().names())
        with open_binary(path) as f:
            lines = (f.readline(HEAD).decode("utf-8-sig", errors="replace").lstrip("\r\n") for _ in range(100))
            return re.split(r"[\r\n]", next(filter(None, lines), ""), maxsplit=1)[0]
    return ""


def ending(path: Path) -> str:
    """The name's ending without .gz, lower case: .csv of clicks.CSV.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def files_of(source: Path) -> list[Path]:
    """The file itself, or the files below a folder but our own cards and what other programs keep beside, in the order
    of their names; those of a split in that of its parts. Problem where one is no table although its name says so.
    """
    found = [source]
    if source.is_dir():
        below = sorted(p for p in source.rglob("*") if p.is_file() and not p.name.endswith(".card.json"))
        found = [p for p in below if not any(ASIDE.match(w) for w in p.relative_to(source).parts)]
        if not found:
            beside = f", beside {', '.join(p.name for p in below[:3])}" if below else ""
            raise Problem(f"{source}: an empty folder{beside}; name the file or folder of the interactions")
        parts = {p: part_named(p.relative_to(source)) for p in found}
        found = sorted(found, key=lambda p: parts[p] or 0) if is_split(parts.values()) else found
    for path in (p for p in found if ending(p) in TABULAR or not source.is_dir()):
        if ending(path) == ".parquet":
            kind, remedy = what_is(first_bytes(path)) or ("no Parquet file", "give it the ending that it should have")
            if kind != PARQUET:
                raise Problem(f"{path}: {kind}; {remedy}")
        elif kind_of(path) != PARQUET:
            with reading(path):
                open_binary(path).close()
    return found


def part_named(path: Path) -> int | None:
    """Which part of a split, 0 to 2, a file's name or folder says that it is."""
    words = [word.lower().removesuffix("set") for word in re.findall(r"[A-Z]*[a-z]*", str(path))]
    return next((n for n, names in enumerate(SPLIT_NAMES) for word in words if word in names), None)


def is_split(parts: Iterable[int | None]) -> bool:
    return len(set(parts) - {None}) > 1


def one(found: Sequence[Path], what: str) -> Path:
    if len(found) != 1:
        names = ", ".join(str(p) for p in found[:3]) or "the source"
        raise Problem(f"{names}: {len(found)} files of {what}; name the one that is meant instead of its folder")
    return found[0]


# ---------------------------------------------------------------- scanning


def scan(
    path: Path, columns: Sequence[str] | None = None, ids: Sequence[str] = (), **how: Any
) -> pl.LazyFrame:  # fmt: skip
    """A table (.csv, .tsv, .parquet, a JSON object a line; .gz or not): its cells as text, its rows numbered in ROW.

    columns: those that are wanted (JSON needs them, others are checked), default all; ids: those of them that hold ids,
    of which JSON has other kinds than text. how: what a text is beside its
    first line, `separator`, `quoted` and `header` (there is no header then).
    """
    regular_file(path)
    with reading(path):
        if is_parquet(path):
            frame = pl.scan_parquet(path, hive_partitioning=True)
            there = frame.collect_schema().names()
        elif ending(path) in JSON:
            there = list(columns or json_keys(path))
        else:
            text = Delimited(path, **{"separator": separator(path), "quoted": ending(path) not in ATOMIC, **how})
            there = text.columns()
            if not there:
                raise Problem(f"{path}: empty; a table begins with the names of its columns")
    for name in columns or ():
        if there.count(name) != 1:
            fault = "two columns are called" if name in there else "no column"
            raise Problem(f"{path}: {fault} {quoted(name)}; there are {shortened(', '.join(there), 400)}")
    if is_parquet(path):
        return frame.with_row_index(ROW, offset=1)
    names = list(columns or dict.fromkeys(there))
    if ending(path) in JSON:
        return _frame(names, lambda wanted: _json_batches(path, wanted, ids), first=1)
    return _frame(names, lambda wanted: _text_batches(text, wanted), first=1 if text.header else 2)


def is_parquet(path: Path) -> bool:
    return ending(path) == ".parquet" or kind_of(path) == PARQUET


def _frame(names: list[str], batches: Callable[[list[str]], Iterator[pl.DataFrame]], first: int) -> pl.LazyFrame:
    """What polars is to treat as a file: batches of some of its columns of text; the number of its first row."""

    def source(
        wanted: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        row = first
        for batch in batches([name for name in names if wanted is None or name in wanted] or names[:1]):
            numbered = batch.with_row_index(ROW, offset=row)
            row += batch.height
            numbered = numbered if predicate is None else numbered.filter(predicate)
            yield numbered if wanted is None else numbered.select(wanted)

    return register_io_source(source, schema={ROW: pl.UInt32, **dict.fromkeys(names, pl.String)})


def _text_batches(text: Delimited, names: list[str]) -> Iterator[pl.DataFrame]:
    try:
        for batch in text.batches(dict.fromkeys(names, pa.string())):
            yield pl.DataFrame(pl.from_arrow(batch))
    except pa.ArrowException as e:
        raise text.fault(e) from None


def _json_batches(path: Path, names: list[str], ids: Sequence[str]) -> Iterator[pl.DataFrame]:
    found = objects(path)
    while rows := list(itertools.islice(found, JSON_BATCH)):
        cells = {
            name: [_id(path, line, name, row.get(name)) if name in ids else cell(row.get(name)) for line, row in rows]
            for name in names
        }
        yield pl.DataFrame(cells, dict.fromkeys(names, pl.String))


def _id(path: Path, line: int, name: str, value: Any) -> str | None:
    """An id of JSON as text: a whole number is one, however it is written."""
    if isinstance(value, list | dict):
        what = "a list" if isinstance(value, list) else "an object"
        raise Problem(f"{path}, line {line}: {quoted(name)} holds {what}; write a line for each id")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else cell(value)


def as_id(name: str, kind: pl.DataType) -> pl.Expr:
    """A column of ids as text. Whole numbers beside a missing one are often stored as floats: 12.0 is 12, NaN none."""
    cells = pl.col(name)
    if not kind.is_float():
        return cells.cast(pl.String)
    whole = pl.when(cells == cells.round()).then(cells.cast(pl.Int64, strict=False).cast(pl.String))
    return whole.otherwise(cells.fill_nan(None).cast(pl.String))


def cell(value: Any) -> str | None:
    """A value of JSON as text."""
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)


def leaves(value: Any) -> Iterator[str]:
    """The texts of a list of lists that are not empty."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from leaves(each)
    elif value is not None and str(value).strip():
        yield str(value).strip()


def json_keys(path: Path, most: int | None = 1000) -> dict[str, None]:
    """The keys of the first objects of a file, of all where most is None."""
    rows = itertools.islice(objects(path), most)
    return dict.fromkeys(key for _, row in rows for key in row)


def columns_of(path: Path, *, whole: bool = False) -> list[str]:
    """The columns of a table; whole: of a file of JSON objects the keys of all, not of the first 1,000 alone."""
    regular_file(path)
    with reading(path):
        if whole and ending(path) in JSON:
            return list(json_keys(path, None))
        return [c for c in scan(path).collect_schema().names() if c != ROW]


def objects(path: Path, parse: Callable[[str], Any] = parse_json) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty; Problem where one is no object."""
    for number, row in json_lines(path, parse):
        if isinstance(row, list):
            raise Problem(f"{path}, line {number}: a list of JSON; write an object a line: jq -c '.[]' FILE")
        if not isinstance(row, dict):
            raise Problem(f"{path}, line {number}: expected a JSON object, found {shown(row, 40)}")
        yield number, row


def separator(path: Path) -> str:
    """Tab, comma, semicolon or bar: whatever the first line holds most of, a blank where it holds none."""
    first = head(path)
    found = max("\t,;|", key=first.count)
    return " " if " " in first and found not in first else found


def part(
    path: Path, names: Sequence[str | None], columns: Sequence[str] | None = None, keep: pl.Expr | None = None,
    **how: Any,
) -> Part:  # fmt: skip
    """A file of interactions; names: its columns of users, items, times and ratings, None where there are none.

    keep: which of its rows count, default all.
    """
    named = {role: name for role, name in zip(ROLES, names, strict=False) if name is not None}
    frame = scan(path, columns or list(named.values()), [named[role] for role in ROLES[:2] if role in named], **how)
    cells, kinds = {role: pl.col(name) for role, name in named.items()}, frame.collect_schema()
    for role, name in named.items():
        if kinds[name].is_nested() and role != "rating":
            raise Problem(f"{path}: {quoted(name)} holds a list a row; explode it first, to a row for each {role}")
        if kinds[name].is_float() and role in ROLES[:2]:
            cells[role] = as_id(name, kinds[name])
    frame = frame if keep is None else frame.filter(keep)
    return Part(path, frame.select(ROW, **cells), named)


def lists(path: Path, users: Sequence[str], items: Sequence[list[str]]) -> Part:
    """Interactions as a list of items a user: the place in a list is the time."""
    rows = pl.LazyFrame({"user": users, "item": items}, {"user": pl.String, "item": pl.List(pl.String)})
    timed = rows.with_row_index(ROW, offset=1).with_columns(time=pl.int_ranges(0, pl.col("item").list.len()))
    return Part(path, timed.explode("item", "time"))


def texts_beside(cfg: SourceOptions, usual: Path) -> Path | None:
    """The file of texts: the one that is named, else the usual one where it is there."""
    return Path(cfg.items) if cfg.items else usual if usual.is_file() else None


def vectors_beside(path: Path, name: str) -> Path | None:
    """The file of embeddings in one of the next four folders above a file of events."""
    return next((found for folder in path.resolve().parents[:4] if (found := folder / name).is_file()), None)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line what a library stumbles over in a file, with the line where it can be found."""
    try:
        yield
    except (pl.exceptions.PolarsError, *DAMAGED) as e:
        if not is_parquet(path):
            for _ in text_lines(path):
                pass
        told = shortened(" ".join(str(e).split()) or type(e).__name__)
        raise Problem(f"{path}: not readable ({told}); is it whole? Get it again") from None
