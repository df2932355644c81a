"""A data set: the items, the split interactions as flat arrays, the content embeddings.

Sequences are held as one flat array of items and the places where each user's part begins; a sample is the
position of its target in that array, never a list.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from readers.files import find_embedding, find_file, json_lines
from readers.splits import TEST_SHARE, DataOptions, Parts, Split
from readers.stamps import Stamp, once, place_of
from readers.texts import check_beside
from utils import (
    NUMPY,
    Problem,
    digest,
    is_file,
    kind_of,
    log,
    one_line,
    quoted,
    regular_file,
    shortened,
    shown,
    whole_text,
)

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Catalogue:
    """The items, in the order of their numbers 1..N (and of the embedding's rows)."""

    ids: list[str]
    titles: list[str]
    keyed: bool = True  # False: numbered by first appearance, so that no file's rows can be joined

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.ids, 1)}


@dataclass(frozen=True)
class Dataset:
    name: str
    catalogue: Catalogue
    train: Split
    valid: Split
    test: Split
    popularity: np.ndarray  # int64 [N + 1]: how often each item occurs in the training part
    embedding_path: Path | None
    split_hash: str  # of the interactions and of how they were split
    hash: str  # of these and of every other file that was read
    facts: dict[str, float] = field(default_factory=dict)  # of the split, for log and results
    folder: Path | None = None  # where its files lie
    embedding_stamp: Stamp | None = None  # whoever reads the embeddings later must find those that were hashed

    @property
    def n_items(self) -> int:
        return len(self.catalogue)

    @cached_property
    def content_ND(self) -> np.ndarray:
        """What `read_embeddings` gives, opened and looked through once."""
        path = Path(str(self.embedding_path))
        found = open_array(path)
        check_shape(path, found, self.catalogue.ids)

        def sound(path: Path) -> str:
            check_rows(path, found, self.catalogue.ids)
            return "sound"

        once(place_of(self.folder or path.parent, self.name), sound, path)
        if not self.catalogue.keyed:
            raise Problem(
                f"{path}: which row belongs to which item? Add {self.name}.items.jsonl, a line an item in the "
                "order of the rows"
            )
        items = find_file(self.folder, self.name, ".items.jsonl", say=False) if self.folder else None
        check_beside(path, items, self.catalogue.ids)
        return found

    def split(self, name: str) -> Split:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def items_file(folder: Path, stem: str) -> Catalogue | None:
    path = find_file(folder, stem, ".items.jsonl")
    return None if path is None else read_items(path)


ITEM = '{"item_id": "b1", "title": "..."}'


def read_items(path: Path) -> Catalogue:
    """The items of a .items.jsonl file; Problem names the first line that is none."""
    ids: dict[str, int] = {}
    titles = []
    for line, row in json_lines(path):
        token = row.get("item_id") if isinstance(row, dict) else None
        token = int(token) if isinstance(token, float) and token.is_integer() else token
        if not isinstance(token, str | int) or isinstance(token, bool) or str(token) == "":
            of_row = isinstance(row, dict)
            there = f"; there are {', '.join(map(str, row))}" if of_row and "item_id" not in row else ""
            told = there or f" (text or a whole number) but {shown(token if of_row else row, 40)}"
            raise Problem(f"{path}, line {line}: no item_id{shortened(told)}; write a line an item, {ITEM}")
        if str(token) in ids:
            raise Problem(f"{path}, line {line}: item {quoted(token)} stands already in line {ids[str(token)]}")
        ids[str(token)] = line
        titles.append(title(row))
    return Catalogue(list(ids), titles)


def title(row: Any) -> str:
    text = row.get("title") or row.get("text") or "" if isinstance(row, dict) else row
    return whole_text(re.sub(r"\s+", " ", str(text)).strip()[:200])


@dataclass(frozen=True)
class Found:
    """What a reader makes of the interactions. paths: the files that it read."""

    catalogue: Catalogue
    parts: Parts
    paths: list[Path]


def split_hash(folder: Path, stem: str, cfg: DataOptions, paths: list[Path]) -> str:
    """The hash of the interactions and of the rules by which they are split."""
    rules: list[object] = ["time", cfg.time_quantile] if cfg.split != "leave_one_out" else []
    rules += [True, TEST_SHARE, cfg.seed] if cfg.split == "time_groups" else []
    rules += [cfg.k_core] if cfg.k_core else []
    rules += [cfg.users_col, cfg.items_col, cfg.time_col] if paths[0].suffix.lower() == ".csv" else []
    return once(place_of(folder, stem), digest, cfg.short_users, *rules, *paths)


def assemble(folder: Path, stem: str, cfg: DataOptions, found: Found) -> Dataset:
    """A data set of what a reader found, with its embeddings' file and hash; Problem names a file that is missing."""
    catalogue, parts = found.catalogue, found.parts
    embedding = None if cfg.semantic_emb_path else find_embedding(folder, stem)
    if cfg.semantic_emb_path:
        named = Path(cfg.semantic_emb_path)
        embedding = next((path for path in (named, folder / named) if is_file(path)), None)
        if embedding is None:
            raise Problem(f"semantic_emb_path: {named}: no such file, here or in {folder}")
    elif embedding:
        regular_file(embedding, "a link that leads nowhere; remove it or name the embeddings by semantic_emb_path")
    items = find_file(folder, stem, ".items.jsonl", say=False)
    popularity = np.pad(parts.count, (0, len(catalogue) + 1 - len(parts.count)))
    others = [*([items] if items else []), *([embedding] if embedding else [])]
    log_split(parts, cfg)
    place, split = place_of(folder, stem), split_hash(folder, stem, cfg, found.paths)
    return Dataset(
        stem, catalogue, parts.train, parts.valid, parts.test, popularity, embedding, split,
        once(place, digest, split, *others), parts.facts, folder, Stamp.of(embedding, place) if embedding else None,
    )  # fmt: skip


def log_split(parts: Parts, cfg: DataOptions) -> None:
    """Say what the split leaves out and what nobody can have learned."""
    f = parts.facts
    if cfg.split != "leave_one_out":
        log.info(f"split by time: {', '.join(f'{k} {v:g}' if abs(v) < 1e6 else f'{k} {v:.0f}' for k, v in f.items())}")
    elif any(f.values()):
        log.info(", ".join(f"{v} of {len(s)} {n} targets never occur in the training part"
                           for n, s, v in (("validation", parts.valid, f["cold_valid_targets"]),
                                           ("test", parts.test, f["cold_test_targets"]))))  # fmt: skip


LONGEST = 1e15  # squared distances between rows of this length still fit into float32, with room for networks


def check_rows(path: Path, content_ND: np.ndarray, ids: list[str]) -> None:
    """Problem when a row is not finite, or too long for float32, in which everything is computed."""
    for begin in range(0, len(content_ND), 65536):
        most = np.abs(content_ND[begin : begin + 65536]).max(1).astype(np.float64)  # NaN where a value is NaN
        if (bad := ~(most <= LONGEST)).any():
            row = int(bad.argmax())
            long = f"holds values beyond {LONGEST:g}; normalise the embeddings"
            what = long if np.isfinite(most[row]) else "holds NaN or infinity; embed that item again"
            raise Problem(f"{path}: row {begin + row} (item {quoted(ids[begin + row])}) {what}")


AS_ARRAY = "save its vectors, a row an item: np.save('NAME.emb-MODEL.npy', np.asarray(vectors, 'float32'))"


def open_array(path: Path) -> np.ndarray:
    """An .npy file, memory-mapped; Problem when it is none."""
    try:
        found = np.load(regular_file(path), mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an .npz archive")
    except Exception as e:  # numpy raises many kinds for a damaged header
        kind = kind_of(path) or "no NumPy array"
        if kind == NUMPY and "bjects" not in str(e):
            raise Problem(f"{path}: not readable as .npy ({one_line(e)}); write it again") from None
        raise Problem(f"{path}: {'an array of Python objects' if kind == NUMPY else kind}; {AS_ARRAY}") from None
    return found


def check_shape(path: Path, content_ND: np.ndarray, ids: list[str]) -> None:
    """Problem when an array is not one embedding for each of some items."""
    if content_ND.ndim != 2 or content_ND.dtype.kind != "f" or content_ND.shape[1] < 1:
        found = f"found {content_ND.dtype} {list(content_ND.shape)}"
        raise Problem(f"{path}: expected floating-point [items, D], {found}; {AS_ARRAY}")
    if len(content_ND) != len(ids):
        rows = len(content_ND)
        first = f"; the first item without one is {quoted(ids[rows])}" if rows < len(ids) else ""
        first += "; save array[1:] where row 0 is for padding" if rows == len(ids) + 1 else ""
        first += "; save array.T where rows and columns are exchanged" if content_ND.shape[1] == len(ids) else ""
        raise Problem(f"{path}: {rows} rows for {len(ids)} items{first}; row i must belong to item i of the catalogue")


def read_embeddings(data: Dataset) -> np.ndarray:
    """Content embeddings [N, D], memory-mapped; row i belongs to item i + 1.

    Problem when there are none, they have changed since the data were read, a row is missing, or a value is not
    finite.
    """
    path = data.embedding_path
    if path is None:
        where = data.folder or data.name
        for other in sorted(data.folder.glob(f"{data.name}.emb*")) if data.folder else ():
            if not other.is_dir() or other.suffix == ".npy":
                regular_file(other, "a link that leads nowhere")
                raise Problem(f"{other}: {kind_of(other) or 'no NumPy array'}; {AS_ARRAY}")
        raise Problem(
            f"no content embeddings beside {data.name!r}: python scripts/embed_items.py {quote(str(where))} makes "
            "them; or set semantic_emb_path to a .npy with a row per item"
        )
    if data.embedding_stamp is not None and not data.embedding_stamp.holds(regular_file(path)):
        raise Problem(f"{path}: has changed since this command read it; put the old file back or begin again")
    return data.content_ND
