"""Yambda as published (arXiv:2505.22238): likes of the flat layout in Parquet, audio embeddings of the tracks beside.

An event is uid, timestamp (seconds, in steps of five), item_id, is_organic; multi_event.parquet has its event_type too.
"""

from pathlib import Path

import numpy as np
import polars as pl

from readers.raw.scan import Raw, SourceOptions, Vectors, files_of, head, one, part, reading, vectors_beside

COLUMNS = ("uid", "item_id", "timestamp")


def fits(source: Path, files: list[Path]) -> bool:
    return any(_events(p) for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    events = [p for p in files_of(source) if _events(p)] or files_of(source)
    likes = [p for p in events if p.stem == "likes"] or events
    path = one(likes, "events (likes.parquet of one size)")
    found = part(path, COLUMNS, keep=pl.col("event_type") == "like" if "event_type" in head(path) else None)
    beside = vectors_beside(path, "embeddings.parquet")
    return Raw("yambda", [found], vectors=_vectors(beside) if beside else None)


def _events(path: Path) -> bool:
    return {*COLUMNS, "is_organic"} <= set(head(path).split(","))


def _vectors(path: Path) -> Vectors:
    def of(wanted: set[str]) -> tuple[list[str], np.ndarray]:
        token = pl.col("item_id").cast(pl.String)
        with reading(path):
            frame = pl.scan_parquet(path).select(token, "embed").filter(token.is_in(list(wanted)))
            found = frame.unique("item_id", keep="first", maintain_order=True).collect(engine="streaming")
            return found["item_id"].to_list(), np.array(found["embed"].to_list(), np.float32)

    return of
