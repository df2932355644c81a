"""Delimited text as Python's csv module reads it when it is strict: pyarrow reads, `Watched` sees what that misses.

pyarrow counts the cells of every row, of columns that nobody asks for as well. What it does not mind is a quotation
that never ends, or ends within a cell: that one swallows rows. So a text with quotation marks is read once more.
"""

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
from pyarrow import csv as arrow

from utils import GZIP, START, Problem, first_bytes, log, parse_json, quoted, shortened, what_is

BLOCK = 1 << 23  # bytes that are read at a time, of which a row has room in one
DIGITS, LINE_END, EMPTY = re.compile(r"\d+"), re.compile(r"\r\n|\n|\r"), re.compile(rb"\n(?=\r?\n)")
DRAWN = re.compile(r"[\s|+:=-]*-{3}[\s|+:=-]*")  # the line below the names of a drawn table
DAMAGED = (OSError, EOFError, zlib.error)  # what reading a file may meet that has no fault of form
BOM = b"\xef\xbb\xbf"


def _is_json(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict | list)
    except (ValueError, RecursionError):
        return False


def open_binary(path: Path) -> IO[bytes]:
    """The bytes of a text, .gz or not; Problem where it is none."""
    kind, remedy = what_is(first_bytes(path)) or ("", "")
    if kind == GZIP:
        with gzip.open(path) as inner:
            kind, remedy = what_is(inner.read(START)) or ("", "")
        if not kind:
            return gzip.open(path)  # type: ignore[return-value]
        kind += " within gzip"
    if kind:
        raise Problem(f"{path}: {kind}; {remedy}")
    return path.open("rb")


def text_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """(number, line) of a text, .gz or not; Problem where it is damaged or not UTF-8."""
    number = 0
    try:
        with open_binary(path) as f:
            for number, line in enumerate(f, 1):
                yield number, line.decode(encoding if number == 1 else encoding.removesuffix("-sig")).rstrip("\r\n")
    except UnicodeDecodeError:
        raise Problem(f"{path}, line {number}: not UTF-8; convert it: iconv -f latin1 -t utf-8 FILE") from None
    except DAMAGED as e:
        where = f" after line {number}" if number else ""
        raise Problem(f"{path}: damaged{where} ({e}); get it again") from None


@dataclass(frozen=True)
class Delimited:
    """A file of rows of cells. header: the names of its columns, where its first line does not say them."""

    path: Path
    separator: str = ","
    quoted: bool = True
    header: Sequence[str] = ()

    def columns(self) -> list[str]:
        """The names of the columns; [] of an empty file."""
        if self.header:
            return list(self.header)
        self._check_kind()
        rows = ((line, cells) for line, _, cells in self.rows() if cells)
        line, found = next(rows, (1, []))
        if found and found[0].lower().startswith("sep="):
            raise Problem(f"{self.path}, line 1: {quoted(found[0])} is for Excel alone; remove that line")
        if not any(map(str.strip, found)):
            if any(any(map(str.strip, cells)) for _, cells in rows):
                raise Problem(f"{self.path}, line {line}: holds blanks where the names of the columns stand; remove it")
            return []
        if all(re.fullmatch("'.*'", cell) for cell in found):
            raise Problem(f'{self.path}, line {line}: cells are quoted by \'; write " or no quotes')
        return found

    def _check_kind(self) -> None:
        """Problem where the first lines are those of something else than rows of cells."""
        with open_binary(self.path) as f:
            lines = f.read(1 << 16).removeprefix(BOM).decode(errors="replace").lstrip().splitlines()[:2]
        if lines and (lines[0].strip() in ("[", "{") or (lines[0][0] in "[{" and _is_json(lines[0].rstrip(", ")))):
            raise Problem(f"{self.path}, line 1: holds JSON, no table; give it the ending .jsonl, an object a line")
        if any(DRAWN.fullmatch(line) for line in lines):
            raise Problem(f"{self.path}: a table as psql, MySQL or Markdown draws it; export it as .csv instead")

    def rows(self) -> Iterator[tuple[int, int, list[str]]]:
        """(first line, last line, cells) of each row by Python's csv module, slowly; empty lines have no cells. Problem
        where a row is none.
        """
        csv.field_size_limit(sys.maxsize)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        begin = 1
        with io.TextIOWrapper(open_binary(self.path), "utf-8-sig", "surrogateescape", newline="") as lines:
            reader = csv.reader(lines, delimiter=self.separator, quoting=quoting, strict=True)
            try:
                for cells in reader:
                    yield begin, reader.line_num, cells
                    begin = reader.line_num + 1
            except csv.Error as e:
                raise Problem(f"{self.path}, line {begin}: {self._said(str(e), begin, reader.line_num)}") from None

    def _said(self, reason: str, begin: int, end: int) -> str:
        if "expected after" not in reason and "unexpected end" not in reason:
            return f"not readable as a table ({reason})"
        where = "" if begin == end else f" (read up to line {end}, it ends nowhere or within a cell)"
        return (
            f"a quotation mark inside a cell, or a quotation that has no end{where}; write a mark of a cell twice and "
            'put the cell in quotes: "17"" monitor"'
        )

    def check(self) -> tuple[int, int]:
        """(empty lines, line ends within cells): what makes no row; Problem at the first row that is none."""
        first, width = list(self.header), len(self.header)
        empty = within = 0
        for line, end, cells in self.rows():
            empty += not cells
            within += sum(cell.count("\n") for cell in cells) if end > line else 0
            first, width = first or cells, width or len(cells)
            if cells and len(cells) != width:
                remedy = "put a cell that holds the separator in quotes, complete a row that was cut off"
                if len(cells) - width in (1, -1) and not (cells if len(cells) > width else first)[-1]:
                    remedy = f"let the first line end in {self.separator!r} where the others do, or none of them"
                elif len(cells) == 1 and self.separator == "\t":
                    remedy = "cells are separated by tabs here"
                found, wanted = ((n + 1) // 2 if "-" in self.header else n for n in (len(cells), width))  # - between ::
                where = "such a file" if self.header else "the first line"
                raise Problem(f"{self.path}, line {line}: {found} cells where {where} has {wanted}; {remedy}")
            if end > line and (lost := swallowed(cells, self.separator)):
                raise Problem(
                    f"{self.path}, line {line}: a quotation that begins here holds what looks like another row, "
                    f"{quoted(lost)}; end the quotation where its cell ends"
                )
        return empty, within

    def fault(self, reason: object) -> Problem:
        """What is wrong with a text that pyarrow does not read, with its line where one is found."""
        try:
            self.check()
            for _ in text_lines(self.path):
                pass
        except Problem as e:
            return e
        if "straddling" in str(reason):
            return Problem(f"{self.path}: a row of more than {BLOCK >> 20} MB; mend or leave out that row")
        return Problem(f"{self.path}: not readable ({shortened(' '.join(str(reason).split()))})")

    def batches(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        """Some columns of the rows, some at a time, whose cells stay as they are; pyarrow's errors are for `fault`."""
        mark = '"' if self.quoted else False
        reading = arrow.ReadOptions(block_size=BLOCK, column_names=list(self.header) or None)
        parsing = arrow.ParseOptions(delimiter=self.separator, quote_char=mark, newlines_in_values=self.quoted)
        converting = arrow.ConvertOptions(
            include_columns=list(types), column_types=dict(types), strings_can_be_null=False
        )
        yield from arrow.open_csv(Watched(self), reading, parsing, converting)  # `with` waits for a read that failed


def swallowed(cells: list[str], separator: str) -> str | None:
    """The line of a cell that is a row of the same table: as many cells, and one of them like the row's own, as
    `u17` is like `u5` and 1700000000 like 1700000005.
    """
    for place, cell in enumerate(cells):
        *whole, last = LINE_END.split(cell)[1:] or [""]
        for line, width in [*((line, len(cells)) for line in whole), (last, place + 1)]:
            found = line.split(separator)
            compared = zip(cells, found if line is not last else found[:-1], strict=False)
            if len(found) == width and any(_alike(a, b) for a, b in compared):
                return line
    return None


def _alike(a: str, b: str) -> bool:
    shape = DIGITS.sub("9", a)
    return "9" in shape and shape == DIGITS.sub("9", b) and (len(shape) > 1 or min(len(a), len(b)) > 4)


class Watched(io.RawIOBase):
    """The bytes of a delimited text on their way to a reader. One with quotation marks is checked at its end: Problem
    where a quotation swallows rows. The log says what made no row.
    """

    def __init__(self, text: Delimited) -> None:
        self.text, self.file = text, open_binary(text.path)
        self.before, self.marked = b"\n", False  # what was read last; are there quotation marks?
        self.empty = self.within = 0  # empty lines, line ends within cells: what makes no row

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the file; Problem, behind the last ones, where a quotation swallows rows."""
        block = self.file.read(size)
        if b"\0" in block:
            line = next((number for number, text in text_lines(self.text.path) if "\0" in text), 1)
            raise Problem(f"{self.text.path}, line {line}: a NUL byte; the file is damaged, or: tr -d '\\0' < FILE")
        seen = self.before + block
        self.marked = self.marked or (self.text.quoted and b'"' in block)
        if b"\n\n" in seen or b"\n\r" in seen:
            self.empty += len(EMPTY.findall(seen))
        self.before = seen[-2:] if seen.endswith(b"\n\r") else seen[-1:]
        if not block and self.before:  # the end, met once
            self.before = b""
            if self.marked:
                self.empty, self.within = self.text.check()
            if self.empty or self.within:
                told = f"{self.empty} empty lines left out, {self.within} line ends belong to quoted cells"
                log.info(f"{self.text.path}: {told}")
        return block
