"""What is known of large files is found out once: hashes and checks, remembered by path, size, times and inode; and
rows that are made of them.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import Problem, Unwritable, digest, in_turn, read_json, regular_file, whole_file, write_json

LARGE = 1 << 26  # bytes of files below which reading them again is as quick
YOUNG = 2 * 10**9  # ns: a file that has just changed may do so again within a tick of its clock
MOST = 100  # facts that are kept for a data set


def place_of(folder: Path, stem: str) -> Path:
    """Where what is made of a data set lies: beside it where one may write there, else in the user's cache."""
    if os.access(folder, os.W_OK):
        return folder / f".{stem}.arrays"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "diger" / f"{stem}-{digest(str(folder.resolve()))}"


def once(place: Path, work: Callable[..., str], *parts: object) -> str:
    """work(*parts), files (Path) and plain values: of large files found in `place` after the first time. The processes
    of a run come at once, and one of them works.
    """
    files = [regular_file(p) for p in parts if isinstance(p, Path)]
    stats = [p.stat() for p in files]
    if sum(s.st_size for s in stats) < LARGE:
        return work(*parts)
    seen = [(str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_dev, s.st_ino)
            for p, s in zip(files, stats, strict=True)]  # fmt: skip
    key = digest(work.__name__, seen, [p for p in parts if not isinstance(p, Path)])
    try:
        place.mkdir(parents=True, exist_ok=True)
        with in_turn(place):
            known = _known(place / "facts.json")
            if key not in known:
                known[key] = work(*parts)
                if time.time_ns() - max(max(s.st_mtime_ns, s.st_ctime_ns) for s in stats) > YOUNG:
                    write_json(place / "facts.json", dict(list(known.items())[-MOST:]))
            return known[key]
    except (OSError, Unwritable):  # nothing is remembered
        return work(*parts)


def _known(path: Path) -> dict[str, str]:
    try:
        found = read_json(path)
    except Problem:  # none yet, or damaged
        return {}
    return found if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()) else {}


def rows_once(place: Path, key: str, shape: tuple[int, int], pieces: Iterable[np.ndarray]) -> np.ndarray:
    """float32 rows, made once, a piece at a time, and mapped by all processes; those of another key go.

    OSError or Unwritable where there is no room for them.
    """
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"rows-{key}.npy"
    with in_turn(place):
        with contextlib.suppress(OSError, ValueError):  # none yet, or cut
            if (found := np.load(path, mmap_mode="r")).shape == shape:
                return found.view(np.ndarray)
        with whole_file(path, 4 * math.prod(shape)) as f:
            np.lib.format.write_array_header_2_0(f, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for piece in pieces:
                f.write(np.ascontiguousarray(piece, "<f4").data)
        for old in place.glob("rows-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)  # who has mapped it keeps it
        return np.load(path, mmap_mode="r").view(np.ndarray)


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was read: its hash, and by what a change shows without hashing again."""

    digest: str
    size: int  # bytes
    times: tuple[int, int]  # of its content and of its entry, ns

    @classmethod
    def of(cls, path: Path, place: Path) -> "Stamp":
        found = path.stat()  # before the hash: a change in between is noticed later
        return cls(once(place, digest, path), found.st_size, (found.st_mtime_ns, found.st_ctime_ns))

    def holds(self, path: Path) -> bool:
        """Is the file's content still the same?"""
        found = path.stat()
        if (found.st_size, (found.st_mtime_ns, found.st_ctime_ns)) == (self.size, self.times):
            return True
        return found.st_size == self.size and digest(path) == self.digest
