"""Amazon reviews of 2014, 2018 and 2023 as published: reviews or ratings, and metadata; .json(l).gz, .csv, .parquet.

The years differ in the names of their fields only. Ratings without a header are user, item, rating, time in 2014 and
item, user, rating, time in 2018; metadata of 2014 are Python literals.
"""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from readers.raw.scan import (
    Raw,
    SourceOptions,
    Texts,
    ending,
    files_of,
    head,
    is_parquet,
    leaves,
    objects,
    part,
    reading,
)
from utils import Problem, parse_json

REVIEWS = {  # what only this year's files name -> columns of user, item, time, rating
    "parent_asin": ("user_id", "parent_asin", "timestamp", "rating"),
    "reviewerID": ("reviewerID", "asin", "unixReviewTime", "overall"),
}
ITEM_FIRST = re.compile(r"[A-Z0-9]{10},A[A-Z0-9]{10,},[\d.]+,\d+")
USER_FIRST = re.compile(r"A[A-Z0-9]{10,},[A-Z0-9]{10},[\d.]+,\d+")
FIELDS = {"title": "title", "brand": "brand", "store": "brand", "categories": "categories", "category": "categories",
          "features": "features", "description": "description"}  # fmt: skip
LISTS = ("categories", "category")  # of names; the other lists are sentences


def fits(source: Path, files: list[Path]) -> bool:
    reviews, _ = _split(source, files)
    first = head(reviews[0]) if reviews else ""
    return any(mark in first for mark in REVIEWS) or bool(ITEM_FIRST.match(first) or USER_FIRST.match(first))


def read(source: Path, cfg: SourceOptions) -> Raw:
    """Reviews or ratings of a folder, and the metadata beside them or in `items`; Problem where there are none."""
    reviews, meta = _split(source, files_of(source))
    if not reviews:
        raise Problem(f"{source}: no reviews or ratings (.json.gz, .jsonl.gz, .csv, .parquet) in this folder")
    if cfg.items:
        meta = files_of(Path(cfg.items))
    parts = []
    for path in reviews:
        first = head(path)
        names = next((names for mark, names in REVIEWS.items() if mark in first), None)
        if names:
            parts.append(part(path, names))
        else:
            order = ["item", "user"] if ITEM_FIRST.match(first) else ["user", "item"]
            columns = [*order, "rating", "time"]
            parts.append(part(path, ("user", "item", "time", "rating"), header=columns))
    return Raw("amazon", parts, _texts(meta) if meta else None, tuple(meta), repeated_texts=True)


def _split(source: Path, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Reviews and metadata: the latter's file or folder says meta."""
    meta = [p for p in files if any("meta" in word.lower() for word in p.relative_to(source.parent).parts[-2:])]
    reviews = [p for p in files if p not in meta and ending(p) in (".json", ".jsonl", ".csv", ".parquet")]
    if source.is_file():
        return [source], []
    return reviews, meta


def _texts(paths: list[Path]) -> Texts:
    def rows(wanted: set[str]) -> Iterator[dict[str, str]]:
        for path in paths:
            for row in _parquet(path) if is_parquet(path) else (r for _, r in objects(path, _literal)):
                token = str(row.get("parent_asin") or row.get("asin") or "")
                if token in wanted:
                    fields = {new: _text(row[old], old) for old, new in FIELDS.items() if row.get(old)}
                    yield {"item_id": token, **fields}

    return rows


def _literal(line: str) -> Any:
    """One line of metadata: JSON, or what Python prints (2014)."""
    try:
        return parse_json(line)
    except ValueError:
        try:
            return ast.literal_eval(line)
        except ValueError as e:
            raise SyntaxError(f"no Python literal: {str(e).partition(' on line')[0]}") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with reading(path):
        frame = pl.scan_parquet(path)
        there = frame.collect_schema().names()
        wanted = [c for c in ("parent_asin", "asin", *FIELDS) if c in there]
        for batch in frame.select(wanted).collect_batches(chunk_size=50_000):
            yield from batch.iter_rows(named=True)


def _text(value: Any, field: str) -> str:
    """Nested lists in one line, entities resolved."""
    words = list(dict.fromkeys(leaves(value)))
    return " ".join(html.unescape((", " if field in LISTS else " ").join(words)).split())
