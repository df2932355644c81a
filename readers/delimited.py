"""Delimited text as Python's csv module reads it when it is strict: pyarrow reads, `Watched` sees what that misses.

pyarrow counts the cells of every row, of columns that nobody asks for as well. What it does not mind is a quotation
that never ends, or ends within a cell: that one swallows rows.
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
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow

from utils import Problem, log, quoted, regular_file, shortened

MAGIC = {b"\x1f\x8b": "gzip", b"PAR1": "parquet"}
BLOCK = 1 << 23  # bytes that are read at a time; a row has room in one
EMPTY = re.compile(rb"\n(?=\r?\n)")  # a line end before an empty line
DIGITS = re.compile(r"\d+")
DAMAGED = (OSError, EOFError, zlib.error)  # what reading a file may meet that has no fault of form


def magic(path: Path) -> str | None:
    with path.open("rb") as f:
        start = f.read(4)
    return next((kind for mark, kind in MAGIC.items() if start.startswith(mark)), None)


def open_binary(path: Path) -> IO[bytes]:
    return gzip.open(path) if magic(path) == "gzip" else path.open("rb")  # type: ignore[return-value]


def text_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """(number, line) of a text, .gz or not; Problem where it is damaged or not UTF-8."""
    number = 0
    try:
        with open_binary(regular_file(path)) as f:
            for number, line in enumerate(f, 1):
                yield number, line.decode(encoding if number == 1 else encoding.removesuffix("-sig")).rstrip("\r\n")
    except UnicodeDecodeError:
        raise Problem(f"{path}, line {number}: not UTF-8; convert it: iconv -f latin1 -t utf-8 FILE") from None
    except DAMAGED as e:
        raise Problem(f"{path}: damaged after line {number} ({e}); get it again") from None


@dataclass(frozen=True)
class Delimited:
    """A file of rows of cells. header: the names of its columns, where its first line does not say them."""

    path: Path
    separator: str = ","
    quoted: bool = True
    header: Sequence[str] = ()

    def columns(self) -> list[str]:
        """The names of the columns; [] of an empty file."""
        return list(self.header) or next((cells for _, _, cells in self.rows() if cells), [])

    def rows(self) -> Iterator[tuple[int, int, list[str]]]:
        """(first line, last line, cells) of each row, slowly; empty lines have no cells. Problem where one is none."""
        csv.field_size_limit(sys.maxsize)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        with io.TextIOWrapper(open_binary(self.path), "utf-8-sig", "surrogateescape", newline="") as lines:
            reader = csv.reader(lines, delimiter=self.separator, quoting=quoting, strict=True)
            begin = 1
            try:
                for cells in reader:
                    yield begin, reader.line_num, cells
                    begin = reader.line_num + 1
            except csv.Error as e:
                raise Problem(f"{self.path}, line {begin}: {self._said(e, begin, reader.line_num)}") from None

    def _said(self, error: csv.Error, begin: int, end: int) -> str:
        if "expected after" not in str(error) and "unexpected end" not in str(error):
            return f"not readable as a table ({error})"
        where = "" if begin == end else f" (read up to line {end}, it ends nowhere or within a cell)"
        return (
            f"a quotation mark inside a cell, or a quotation that has no end{where}; write a mark of a cell twice and "
            'put the cell in quotes: "17"" monitor"'
        )

    def check(self) -> tuple[int, int]:
        """(empty lines, line ends within cells) by Python's csv module; Problem at the first row that is none."""
        width, empty, within = len(self.header), 0, 0
        for line, end, cells in self.rows():
            width = width or len(cells)
            if not cells:
                empty += 1
            elif len(cells) != width:
                raise Problem(
                    f"{self.path}, line {line}: {len(cells)} cells where the first line has {width}; put a cell that "
                    "holds the separator in quotes, complete a row that was cut off"
                )
            elif end > line:
                within += end - line
                if lost := swallowed(cells, self.separator):
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

    def options(self, types: Mapping[str, pa.DataType]) -> dict[str, Any]:
        """How pyarrow is to read some columns of it, whose cells stay as they are."""
        mark = '"' if self.quoted else False
        return {
            "read_options": arrow.ReadOptions(block_size=BLOCK, column_names=list(self.header) or None),
            "parse_options": arrow.ParseOptions(
                delimiter=self.separator, quote_char=mark, newlines_in_values=self.quoted
            ),
            "convert_options": arrow.ConvertOptions(
                include_columns=list(types), column_types=dict(types), strings_can_be_null=False
            ),
        }


def swallowed(cells: list[str], separator: str) -> str | None:
    """The line of a cell that is a row of the same table: as many cells, and one of them like the row's own, as
    `u17` is like `u5` and 1700000000 like 1700000005.
    """
    for place, cell in enumerate(cells):
        *whole, last = cell.splitlines()[1:] or [""]
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
    """The bytes of a delimited text on their way to a reader; Problem where a quotation in them swallows rows. The log
    says at their end what made no row.

    In a sound text each mark that opens a quotation stands behind a separator, a line end or a mark, and each that
    closes one before such. Where that does not hold, or a cell holds a line end, Python's csv module has the last word.
    """

    def __init__(self, text: Delimited) -> None:
        self.text, self.file = text, open_binary(text.path)
        self.edge = np.zeros(256, bool)
        self.edge[list(b'"\r\n' + text.separator.encode())] = True
        self.rest, self.inside, self.sure = b"\n", 0, not text.quoted  # the last byte that was looked at, and one more
        self.empty = self.within = 0  # empty lines, line ends within cells: what makes no row

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the file; Problem where a quotation that they end or begin swallows rows."""
        block = self.file.read(size)
        if not self.rest:
            return block
        window = self.rest + (block or b"\n")
        self.rest = window[-2:] if block else b""
        if not self.sure and not self._sound(np.frombuffer(window, np.uint8), last=not block):
            self.empty, self.within = self.text.check()
            self.sure = True
        elif not self.within and (b"\n\n" in window or b"\n\r" in window):
            self.empty += len(EMPTY.findall(window[:-1]))
        if not block and (self.empty or self.within):
            log.info(
                f"{self.text.path}: {self.empty} empty lines left out, {self.within} line ends belong to quoted cells"
            )
        return block

    def _sound(self, byte: np.ndarray, *, last: bool) -> bool:
        mark = byte[1:-1] == ord('"')
        if not self.inside and not mark.any():
            return True
        inside = (np.cumsum(mark, dtype=np.uint8) + self.inside) & 1  # behind each byte
        opens, closes = mark & (inside == 1), mark & (inside == 0)
        self.inside = int(inside[-1])
        edge, within = self.edge[byte], (byte[1:-1] == ord("\n")) & (inside == 1)
        sound = edge[:-2][opens].all() and edge[2:][closes].all() and not within.any()
        return bool(sound) and not (last and self.inside)
