"""FORGE's published files (arXiv:2509.20904), read row by row or copied as they are: embeddings, SIDs, sequences.

Nothing in them is executed: the pickled dictionary among them is refused. docs/forge.md describes the files.
"""

import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from readers.dataset import open_array
from readers.delimited import Delimited
from utils import Problem, quoted, regular_file

BLOCK = 1 << 24  # bytes copied at a time
TOKEN = re.compile(r"C(\d+)")


def array(path: Path, name: str) -> np.ndarray:
    """An array of an .npz that fits into memory; Problem where it is not there, or is pickled objects."""
    try:
        with np.load(regular_file(path), allow_pickle=False) as held:
            if name not in held:
                raise Problem(f"{path}: holds no {name!r}, only {', '.join(held)}")
            found: np.ndarray = held[name]
            return found
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError, TypeError) as e:
        if "bject" in str(e):
            raise Problem(
                f"{path}: {name} is a pickled object, and reading one may run any program; convert it once to numbers, "
                "as docs/forge.md shows, and name the result by --ids"
            ) from None
        raise Problem(f"{path}: not readable as .npz ({e})") from None


def embeddings(path: Path, ids: np.ndarray | None, to: Path) -> np.ndarray:
    """Copy `embeds` to an .npy, some megabytes at a time; the item id of each row.

    ids: [n, 2] (id, row) where the file has only a pickle.
    """
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "embeds" not in names:
                raise Problem(f"{path}: holds no 'embeds', only {', '.join(names)}")
            with archive.open("embeds.npy") as member, to.open("wb") as out:
                shutil.copyfileobj(member, out, BLOCK)
    except zipfile.BadZipFile as e:
        raise Problem(f"{path}: not readable as .npz ({e})") from None
    content_ND = open_array(to)
    if content_ND.ndim != 2 or content_ND.dtype.kind != "f":
        there = f"{content_ND.dtype} {list(content_ND.shape)}"
        raise Problem(f"{path}: embeds is {there}, expected floating-point [items, D]")
    found = array(path, "ids" if "ids" in names else "itemEncID") if ids is None else ids
    if found.ndim == 2 and found.shape[1] == 2:  # (id, row)
        found = found[np.argsort(found[:, 1], kind="stable")]
        if not np.array_equal(found[:, 1], np.arange(len(found))):
            raise Problem(f"{path}: the rows of the ids are not 0 ... {len(found) - 1}, each once")
        found = found[:, 0]
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != len(content_ND):
        raise Problem(f"{path}: {len(found)} ids ({found.dtype}) for {len(content_ND)} embeddings")
    if len(np.unique(found)) != len(found):
        raise Problem(f"{path}: an item id stands there twice")
    return found


def pairs(path: Path, ids: np.ndarray) -> np.ndarray:
    """The pairs as rows of the embeddings, int64 [P, 2]; the file has raw ids."""
    raw = array(path, "pairs")
    if raw.ndim != 2 or raw.shape[1] != 2 or raw.dtype.kind not in "iu":
        raise Problem(f"{path}: pairs is {raw.dtype} {list(raw.shape)}, expected whole numbers [P, 2]")
    order = np.argsort(ids)
    place = np.searchsorted(ids[order], raw).clip(max=len(ids) - 1)
    if (bad := ids[order][place] != raw).any():
        raise Problem(f"{path}: pairs names item {raw[bad][0]}, which has no embedding")
    return order[place].astype(np.int64)


def sids(path: Path) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """(item id, codes) of each row of a SID file: `SID` as "c1,c2,c3", or a column a level; None: the item has none."""
    length = None
    for line, row in _rows(path, ("item_id",)):
        texts = (row.get("SID") or "").split(",") if "SID" in row else [v for k, v in row.items() if k != "item_id"]
        texts = [t.strip() for t in texts]
        if not any(texts):
            yield row["item_id"], None
            continue
        if not all(t.isdecimal() and len(t) < 10 for t in texts) or length not in (None, len(texts)):
            raise Problem(f"{path}, line {line}: {quoted(','.join(texts))} is no SID like 12,3,4000")
        length = len(texts)
        yield row["item_id"], tuple(map(int, texts))


class Sequence(NamedTuple):
    line: int
    history: list[tuple[int, ...]]  # SIDs, oldest first
    answer: list[tuple[int, ...]]
    raw: list[str]  # item ids of the answer, where it has them in place of SIDs


def sequences(path: Path, codes: int) -> Iterator[Sequence]:
    """The rows of an AL-GR file. codes: of a level; token C{c + codes * level} is code c of a level, from 0."""
    for line, row in _rows(path, ("user", "answer")):
        history, answer = (spoken(row[key], codes) for key in ("user", "answer"))
        if history is None or answer is None or not history or {len(s) for s in answer} - {len(history[0])}:
            raise Problem(f"{path}, line {line}: its tokens are no whole SIDs of levels of {codes} codes")
        raw = [t for t in row["answer"].split(";") if t.strip()] if not answer else []
        if not answer and not raw:
            raise Problem(f"{path}, line {line}: the answer is empty")
        yield Sequence(line, history, answer, raw)


def spoken(text: str, codes: int) -> list[tuple[int, ...]] | None:
    """The SIDs in a text; None where they are not whole: a level is out of turn, or lengths differ."""
    found: list[list[int]] = []
    for number in TOKEN.findall(text):
        level, code = divmod(int(number), codes)
        if level == 0:
            found.append([])
        if not found or level != len(found[-1]):
            return None
        found[-1].append(code)
    return [tuple(f) for f in found] if len({len(f) for f in found}) <= 1 else None


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a file separated by commas or tabs; Problem where columns are missing."""
    with regular_file(path).open(encoding="utf-8-sig", errors="replace") as f:
        text = Delimited(path, "\t" if "\t" in f.readline() else ",")
    names = text.columns()
    if missing := [n for n in needed if n not in names]:
        raise Problem(f"{path}: has no column {missing[0]!r}, only {', '.join(names)}")
    rows = ((line, cells) for line, _, cells in text.rows() if cells)
    next(rows)
    for line, cells in rows:
        if len(cells) != len(names):
            raise Problem(f"{path}, line {line}: has not the {len(names)} columns of the header")
        yield line, dict(zip(names, cells, strict=True))
