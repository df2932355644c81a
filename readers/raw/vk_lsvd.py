"""VK-LSVD as published (huggingface.co/datasets/deepvk/VK-LSVD): a Parquet file a week, embeddings of videos beside.

Only likes are read. Rows have no time, but stand in its order within a week: the n-th of N rows of week w gets the time
(w + (n - 1) / N) weeks, in seconds.
"""

import re
import zipfile
from pathlib import Path

import numpy as np
import polars as pl

from readers.raw.scan import ROW, Part, Raw, SourceOptions, Vectors, files_of, head, part, reading, vectors_beside
from utils import Problem

WEEK = 7 * 86_400
NAME = re.compile(r"week_(\d+)\.parquet$")


def fits(source: Path, files: list[Path]) -> bool:
    return any(NAME.search(p.name) and {"user_id", "item_id", "timespent", "like"} <= set(head(p).split(","))
               for p in files)  # fmt: skip


def read(source: Path, cfg: SourceOptions) -> Raw:
    weeks: dict[int, Path] = {}
    for path in files_of(source):
        if name := NAME.search(path.name):
            if (week := int(name[1])) in weeks:
                raise Problem(f"{path}: week {week} stands in {weeks[week]} too; name the folder of one sample")
            weeks[week] = path
    if not weeks:
        raise Problem(f"{source}: no week_NN.parquet in this folder")
    beside = vectors_beside(weeks[min(weeks)], "metadata/item_embeddings.npz")
    return Raw("vk_lsvd", [_part(weeks[w], w) for w in sorted(weeks)], vectors=_vectors(beside) if beside else None)


def _part(path: Path, week: int) -> Part:
    found = part(path, ("user_id", "item_id"), keep=pl.col("like"))
    with reading(path):
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    return Part(path, found.frame.with_columns(time=(week + (pl.col(ROW) - 1) / rows) * WEEK))


def _vectors(path: Path) -> Vectors:
    def of(wanted: set[str]) -> tuple[list[str], np.ndarray]:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                token_M = arrays["item_id"].astype(str)
                rows = np.flatnonzero(pl.Series(token_M).is_in(list(wanted)).to_numpy())
                return token_M[rows].tolist(), arrays["embedding"][rows].astype(np.float32)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
            raise Problem(f"{path}: not readable ({e}); expected the arrays item_id and embedding") from None

    return of
