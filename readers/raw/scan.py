"""Files of others, scanned with polars and never held whole; what is wrong with one is a line that names the place."""

import contextlib
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from settings import option
from utils import Problem, quoted, regular_file, shortened

ROLES = ("user", "item", "time", "rating")
ROW = "row"  # column of a part: the number that people give to a row
MAGIC = {b"\x1f\x8b": "gzip", b"PAR1": "parquet"}
JSON = (".json", ".jsonl", ".ndjson")  # an object a line
ATOMIC = (".inter", ".item")  # tab-separated, a quotation mark is a character
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
    """One file of interactions: columns `row`, user, item, and, where there are such, time and rating."""

    path: Path
    frame: pl.LazyFrame


@dataclass(frozen=True)
class Raw:
    """A source, found but not read yet. Without a time the order of the rows is the order in time."""

    kind: str
    parts: list[Part]
    texts: Texts | None = None
    text_files: tuple[Path, ...] = ()
    repeated_texts: bool = False  # several texts of an item are usual in this source: the first counts
    vectors: Vectors | None = None  # content embeddings that are published with it


# ---------------------------------------------------------------- what a file is


def magic(path: Path) -> str | None:
    with path.open("rb") as f:
        start = f.read(4)
    return next((kind for mark, kind in MAGIC.items() if start.startswith(mark)), None)


def open_binary(path: Path) -> IO[bytes]:
    return gzip.open(path) if magic(path) == "gzip" else path.open("rb")  # type: ignore[return-value]


def head(path: Path) -> str:
    """The first line of a text, the column names of a Parquet file; "" where it cannot be read."""
    with contextlib.suppress(OSError, EOFError, zlib.error, pl.exceptions.PolarsError):
        if magic(path) == "parquet":
            return ",".join(pl.scan_parquet(path).collect_schema().names())
        with open_binary(path) as f:
            return f.readline(HEAD).decode("utf-8-sig", errors="replace").rstrip("\r\n")
    return ""


def ending(path: Path) -> str:
    """The name's ending without .gz, lower case: .csv of clicks.CSV.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def files_of(source: Path) -> list[Path]:
    """The file itself, or the files below a folder but our own cards, in the order of their names."""
    if source.is_dir():
        found = sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith("."))
        found = [p for p in found if not p.name.endswith(".card.json")]
        if not found:
            raise Problem(f"{source}: an empty folder; name the file or folder of the interactions")
        return found
    return [regular_file(source)]


def one(found: Sequence[Path], what: str) -> Path:
    if len(found) != 1:
        names = ", ".join(str(p) for p in found[:3]) or "the source"
        raise Problem(f"{names}: {len(found)} files of {what}; name the one that is meant instead of its folder")
    return found[0]


# ---------------------------------------------------------------- scanning


def scan(path: Path, columns: Sequence[str] | None = None, **how: Any) -> pl.LazyFrame:
    """A table (.csv, .tsv, .parquet, a JSON object a line; .gz or not): its cells as text, its rows numbered in `row`.

    columns: those that are wanted (JSON needs them, others are checked), default all. how: further arguments for
    text tables, `separator` and `new_columns` (there is no header then) among them.
    """
    regular_file(path)
    with reading(path):
        kind = "json" if ending(path) in JSON else magic(path)
        if ending(path) == ".parquet" or kind == "parquet":
            frame, first = pl.scan_parquet(path), 1
        elif kind == "json":
            names = columns or list(json_keys(path))
            frame, first = pl.scan_ndjson(path, schema=dict.fromkeys(names, pl.String)), 1
        else:
            if ending(path) in ATOMIC:
                how = {"separator": "\t", "quote_char": None, **how}
            how.setdefault("separator", separator(path))
            header = "new_columns" not in how
            frame = pl.scan_csv(path, infer_schema=False, has_header=header, **how)
            first = 2 if header else 1
        there = frame.collect_schema().names()
    for name in columns or ():
        if name not in there:
            raise Problem(f"{path}: no column {quoted(name)}; there are {shortened(', '.join(there), 400)}")
    return frame.with_row_index(ROW, offset=first)


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


def objects(path: Path, parse: Callable[[str], Any] = json.loads) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty; Problem where one is no object."""
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as e:
            raise Problem(f"{path}, line {number}: not readable as JSON ({shortened(e)})") from None
        if not isinstance(row, dict):
            raise Problem(f"{path}, line {number}: expected a JSON object, found {shortened(line, 40)}")
        yield number, row


def text_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """(number, line) of a text, .gz or not; Problem where it is damaged or not UTF-8."""
    number = 0
    try:
        with open_binary(regular_file(path)) as f:
            for number, line in enumerate(f, 1):
                yield number, line.decode(encoding if number == 1 else encoding.removesuffix("-sig")).rstrip("\r\n")
    except UnicodeDecodeError:
        raise Problem(f"{path}, line {number}: not UTF-8; convert it: iconv -f latin1 -t utf-8 FILE") from None
    except (OSError, EOFError, zlib.error) as e:
        raise Problem(f"{path}: damaged after line {number} ({e}); get it again") from None


def separator(path: Path) -> str:
    """Tab, comma, semicolon or bar: whatever the first line holds most of."""
    first = head(path)
    return max("\t,;|", key=first.count)


def part(
    path: Path, names: Sequence[str | None], columns: Sequence[str] | None = None, keep: pl.Expr | None = None,
    **how: Any,
) -> Part:  # fmt: skip
    """A file of interactions; names: its columns of users, items, times and ratings, None where there are none.

    keep: which of its rows count, default all.
    """
    named = {role: name for role, name in zip(ROLES, names, strict=False) if name is not None}
    frame = scan(path, columns or list(named.values()), **how)
    frame = frame if keep is None else frame.filter(keep)
    return Part(path, frame.select(ROW, **{role: pl.col(name) for role, name in named.items()}))


def vectors_beside(path: Path, name: str) -> Path | None:
    """The file of embeddings in one of the next four folders above a file of events."""
    return next((found for folder in path.resolve().parents[:4] if (found := folder / name).is_file()), None)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line what polars stumbles over in a file, with the line where it can be found."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as e:
        reason = shortened(" ".join(str(e).split()) or type(e).__name__)
        raise _first_fault(path) or Problem(f"{path}: not readable ({reason})") from None


def _stray_quote(path: Path) -> Problem | None:
    """The first line that polars stumbles over and Python's reader does not: one with a quotation mark in a cell."""
    between = f'[^"{re.escape(separator(path))}]'
    inside = re.compile(f'(?<={between})"(?={between})')
    odd = None
    for number, line in text_lines(path):
        if inside.search(line):
            odd = number
            break
        odd = odd or (number if line.count('"') % 2 else None)
    if odd is None:
        return None
    return Problem(
        f'{path}, line {odd}: a quotation mark inside a cell; write it twice and put the cell in quotes: "17"" monitor"'
    )


def _first_fault(path: Path) -> Problem | None:
    """Read again, slowly, to name the line; None where nothing is found."""
    if ending(path) == ".parquet" or magic(path) == "parquet":
        return None
    try:
        if ending(path) in JSON:
            for _ in objects(path):
                pass
            return None
        first = head(path)
        if not first and path.stat().st_size == 0:
            return Problem(f"{path}: empty; a table begins with the names of its columns")
        rows = csv.reader((line + "\n" for _, line in text_lines(path)), delimiter=separator(path))
        width = len(next(rows, []))
        for row in rows:
            if len(row) > width:
                return Problem(
                    f"{path}, line {rows.line_num}: {len(row)} cells where the first line has {width}; "
                    "put a cell that holds the separator in quotes"
                )
        return _stray_quote(path)
    except (Problem, csv.Error) as e:
        return e if isinstance(e, Problem) else _stray_quote(path) or Problem(f"{path}: not readable as a table ({e})")
