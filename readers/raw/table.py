"""Any table with named columns: clicks in .csv, .tsv, .parquet or .jsonl (.gz or not), items with text in another."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from readers.prepare import Prepared
from readers.raw.scan import ROLES, Raw, SourceOptions, Texts, columns_of, ending, files_of, one, part, reading, scan
from utils import Problem, log, quoted, shortened

USUAL = {  # usual names, without case, underscores and spaces
    "users_col": ("userid", "user", "customerid", "visitorid", "reviewerid", "memberid", "uid"),
    "items_col": ("itemid", "item", "productid", "product", "movieid", "articleid", "businessid", "parentasin", "asin",
                  "sku", "iid"),
    "time_col": ("timestamp", "time", "datetime", "date", "unixreviewtime", "ts", "eventtime", "createdat"),
    "rating_col": ("rating", "stars", "overall", "score"),
}  # fmt: skip
ROLE_NAMES = {"users_col": "users", "items_col": "items", "time_col": "times"}
TITLES = ("title", "name", "itemname", "productname", "producttitle", "itemtitle")
INDEX = re.compile(r"(Unnamed: \d+|__index_level_\d+__)?")  # columns that pandas writes beside those of a table
TYPE = re.compile(r":(token|float)(_seq)?$")  # of an atomic file
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".jsonl", ".ndjson", ".json")


def fits(source: Path, files: list[Path]) -> bool:
    return all(ending(p) in TABLES for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    """Clicks, and items with their texts where a file has them; Problem when a column cannot be told."""
    files, texts = files_of(source), Path(cfg.items) if cfg.items else None
    if source.is_dir() and texts is None:  # a file that names no user holds the items
        lists = [p for p in files if cfg.users_col is None and not _usual(columns_of(p), "users_col")]
        texts = one(lists, "items") if lists and len(lists) < len(files) else None
    if texts is not None and files == [texts]:
        raise Problem(f"{texts}: is named as clicks and as items; give the items a file of their own, a row an item")
    of_items = columns_of(texts, whole=True) if texts else []
    parts = []
    for path in (p for p in files if p != texts):
        there = columns_of(path)
        named = {role: getattr(cfg, role) for role in USUAL}
        if cfg.items_col in of_items and cfg.items_col not in there:  # what the items' own file calls them
            named["items_col"] = None
        roles = [_column(path, there, role, named[role]) for role in USUAL]
        if len(set(roles[:3])) < 3:
            three = ", ".join(map(str, roles[:3]))
            raise Problem(f"{path}: users_col, items_col, time_col: {three} are not three columns")
        parts.append(part(path, roles))
    if texts is None:
        return Raw("table", parts)
    ids = [cfg.items_col, *(p.columns["item"] for p in parts)]
    return Raw("table", parts, texts_of(texts, ids, cfg.text_cols), (texts,))


def write(data: Prepared, folder: Path, name: str) -> None:
    """A comma-separated table of the usual columns; texts as in our own layout."""
    names = dict(zip(ROLES, ("UserId", "ProductId", "Timestamp", "Rating"), strict=True))
    data.write_table(folder / f"{name}.csv", names, separator=",")
    data.write_texts(folder / f"{name}.items.jsonl")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "").partition(":")[0]


def _column(path: Path, there: Sequence[str], role: str, named: str | None) -> str | None:
    """The column of a role: the one that is named, else the only one with a usual name."""
    if named is not None:
        if named not in there and named not in (there := columns_of(path, whole=True)):
            raise Problem(f"{path}: no column {quoted(named)} ({role}); there are {_listed(there)}")
        return named
    found = _usual(there, role)
    if len(found) > 1:
        raise Problem(f"{path}: {' and '.join(found)} may both be meant; choose by --{role}=NAME")
    if found:
        return found[0]
    if role == "rating_col":
        return None
    raise Problem(f"{path}: which column holds the {ROLE_NAMES[role]}? Set --{role}=NAME; there are {_listed(there)}")


def _listed(names: Sequence[str]) -> str:
    return shortened(", ".join(names), 400) or "none"


def _usual(there: Sequence[str], role: str) -> list[str]:
    """The columns with a usual name of a role."""
    return [c for c in there if _plain(c) in USUAL[role]]


def texts_of(path: Path, ids: Sequence[str | None], text_cols: Sequence[str]) -> Texts:
    """The items of a table; its column of titles is called title, the others keep their names.

    ids: what the column of the items may be called, before the usual names.
    """
    there = columns_of(path, whole=True)
    own = next((c for c in ids if c in there), None)
    if own is None and not _usual(there, "items_col"):
        own = next((c for c in there if _plain(c) == "id"), None)
    key = _column(path, there, "items_col", own) or ""
    index = [c for c in there if INDEX.fullmatch(c)]
    fields = list(text_cols) or [c for c in there if c != key and c not in index]
    if missing := [c for c in fields if c not in there]:
        raise Problem(f"{path}: no column {quoted(missing[0])} (text_cols); there are {_listed(there)}")
    left = [quoted(c) for c in there if c not in (key, *fields)]
    log.info(f"{path}: items {key}, texts {_listed(fields)}" + (f"; left out: {_listed(left)}" if left else ""))
    names = {c: TYPE.sub("", c) for c in fields if c != "item_id"}
    if "title" not in names.values() and (title := next((c for t in TITLES for c in fields if _plain(c) == t), None)):
        names[title] = "title"

    def rows(wanted: set[str]) -> Iterator[dict[str, str]]:
        wanted_columns = {"item_id": pl.col(key).cast(pl.String), **{n: pl.col(c) for c, n in names.items()}}
        chosen = scan(path, [key, *fields]).select(**wanted_columns)
        with reading(path):
            for batch in chosen.collect_batches(chunk_size=50_000):
                for row in batch.iter_rows(named=True):
                    if row["item_id"] in wanted:
                        yield {k: _joined(v) for k, v in row.items() if v is not None}

    return rows


def _joined(value: object) -> str:
    """A cell as text; a list, also one written as JSON, in one line."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
