"""Columns that grow row by row, in memory or in files of a folder, and how they are gone through in pieces.

So a log of any length is read, ordered and split with a bounded part of it in memory.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils import Unwritable

PIECE = 1 << 22  # rows that are held in memory at a time


class Column:
    """Numbers of one type, added in batches. folder: where they are kept, None for memory."""

    def __init__(self, dtype: type, folder: Path | None = None) -> None:
        self.dtype, self.batches = np.dtype(dtype), list[np.ndarray]()
        self.file = None if folder is None else tempfile.NamedTemporaryFile(dir=folder, delete=False)  # noqa: SIM115

    def add(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        if self.file is None:
            self.batches.append(values)
        else:
            try:
                self.file.write(values.data)
            except OSError as e:  # no fault of what is read
                raise Unwritable(f"{self.file.name}: cannot be written ({e.strerror})") from None

    def array(self) -> np.ndarray:
        """All of them; of a file, mapped."""
        if self.file is None:
            return np.concatenate(self.batches or [np.zeros(0, self.dtype)])
        self.file.close()
        path = Path(self.file.name)
        return mapped(path, self.dtype, path.stat().st_size // self.dtype.itemsize)


def mapped(path: Path, dtype: np.dtype, rows: int) -> np.ndarray:
    """The numbers of a file, to read and to write; its room on disk is free again when the last array of it goes."""
    found = np.memmap(path, dtype, "r+", shape=(rows,)).view(np.ndarray) if rows else np.zeros(0, dtype)
    with contextlib.suppress(OSError):  # Windows keeps it as long as the folder
        path.unlink()
    return found


def empty(dtype: type, rows: int, folder: Path | None) -> np.ndarray:
    """Room for so many numbers, in memory or in a file of a folder."""
    if folder is None or not rows:
        return np.empty(rows, dtype)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as f:
        size = rows * np.dtype(dtype).itemsize
        f.truncate(size)
        if hasattr(os, "posix_fallocate"):  # a mapped file without room would end the process
            os.posix_fallocate(f.fileno(), 0, size)
    return mapped(Path(f.name), np.dtype(dtype), rows)


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces that fit in memory."""
    for begin in range(0, len(array), PIECE):
        yield array[begin : begin + PIECE]


def counts(codes: np.ndarray, size: int = 0) -> np.ndarray:
    """np.bincount, int64, a piece at a time."""
    found = np.zeros(size, np.int64)
    for piece in pieces(codes):
        more = np.bincount(piece, minlength=len(found))
        more[: len(found)] += found
        found = more
    return found


def groups_of(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of neighbouring users who have about a piece of rows together; at least one user."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + PIECE, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def in_order(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, users: int, folder: Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(items, times, offsets) user by user, each in time order, equal times as they came.

    Rows are first dealt out to their users, a piece at a time, then each user's are ordered.
    """
    offsets = np.concatenate([[0], counts(user, users).cumsum()])
    free = offsets[:-1].copy()  # where a user's next row goes
    items, times = empty(np.int32, len(user), folder), empty(np.float64, len(user), folder)
    for begin in range(0, len(user), PIECE):
        rows = slice(begin, begin + PIECE)
        order = np.argsort(user[rows], kind="stable")
        owner, first, size = np.unique(user[rows][order], return_index=True, return_counts=True)
        place = np.arange(len(order)) + np.repeat(free[owner] - first, size)
        items[place], times[place] = item[rows][order], time[rows][order]
        free[owner] += size
    for a, b in groups_of(offsets):
        rows = slice(offsets[a], offsets[b])
        order = np.lexsort((times[rows], np.repeat(np.arange(a, b), np.diff(offsets[a : b + 1]))))
        items[rows], times[rows] = items[rows][order], times[rows][order]
    return items, times, offsets
