"""Any table with named columns: clicks in .csv, .tsv, .parquet or .jsonl (.gz or not), items with text in another."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from readers.delimited import text_lines
from readers.prepare import Prepared
from readers.raw.scan import (
    JSON,
    ROLES,
    Raw,
    SourceOptions,
    Texts,
    as_id,
    columns_of,
    ending,
    files_of,
    is_parquet,
    leaves,
    one,
    part,
    reading,
    scan,
)
from utils import Problem, log, quoted, shortened

USUAL = {  # usual names, without case and what separates words
    "users_col": ("userid", "user", "customerid", "customer", "visitorid", "reviewerid", "memberid", "clientid",
                  "accountid", "username", "buyerid", "uid"),
    "items_col": ("itemid", "item", "productid", "product", "movieid", "articleid", "businessid", "parentasin", "asin",
                  "bookid", "isbn", "videoid", "trackid", "songid", "newsid", "stockcode", "sku", "iid"),
    "time_col": ("timestamp", "time", "datetime", "date", "unixreviewtime", "unixtime", "ts", "eventtime", "createdat",
                 "timestampms", "purchasedate", "orderdate", "invoicedate"),
    "rating_col": ("rating", "stars", "overall", "score", "bookrating"),
}  # fmt: skip
ROLE_NAMES = {"users_col": "users", "items_col": "items", "time_col": "times"}
NONE = "none"  # as time_col: there is none, rows come in the order of time
TITLES = ("title", "name", "itemname", "productname", "producttitle", "itemtitle", "booktitle")
INDEX = re.compile(r"(Unnamed: \d+|__index_level_\d+__)?")  # columns that pandas writes beside those of a table
TYPE = re.compile(r":(token|float)(_seq)?$")  # of an atomic file
BETWEEN = re.compile(r"[\s_.-]+|:.*")
VALUE = re.compile(r"\s*([+-]?\d[\d.,eE+-]*|\d{4}-\d\d.*)\s*")  # a number or date, as no column is called
TABLES = (".csv", ".tsv", ".txt", ".parquet", *JSON)


def fits(source: Path, files: list[Path]) -> bool:
    return any(ending(p) in TABLES for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    """Clicks, and items with their texts where a file has them; Problem when a column cannot be told."""
    files, texts = files_of(source), Path(cfg.items) if cfg.items else None
    if source.is_dir():
        files, found = _sorted(files, cfg)
        texts = texts or found
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


def _sorted(files: list[Path], cfg: SourceOptions) -> tuple[list[Path], Path | None]:
    """The files of a folder that hold clicks, with a user and an item, and the one that holds items alone."""
    there = {p: columns_of(p) for p in files if ending(p) in TABLES}

    def have(role: str, *other: str) -> list[Path]:
        named = getattr(cfg, role)
        return [p for p, names in there.items() if named in names or (_usual(names, role) and named is None)
                or any(_plain(name) in other for name in names)]  # fmt: skip

    users, items = have("users_col"), have("items_col")
    clicks = [p for p in users if p in items] or users
    lists = [p for p in [*items, *have("items_col", "id", *USUAL["items_col"])] if p not in users]
    for path, names in there.items():  # a part of the clicks that lacks their names
        if path not in (*users, *lists) and _nameless(names) and len(names) in {len(there[p]) for p in clicks}:
            raise no_names(path, names)
    chosen = one(list(dict.fromkeys(lists)), "items") if lists and clicks and not cfg.items else None
    return clicks or list(there), chosen


def write(data: Prepared, folder: Path, name: str) -> None:
    """A comma-separated table of the usual columns; texts as in our own layout."""
    names = dict(zip(ROLES, ("UserId", "ProductId", "Timestamp", "Rating"), strict=True))
    data.write_table(folder / f"{name}.csv", names, separator=",")
    data.write_texts(folder / f"{name}.items.jsonl")


def _plain(name: str) -> str:
    return BETWEEN.sub("", name.lower())


def _column(path: Path, there: Sequence[str], role: str, named: str | None) -> str | None:
    """The column of a role: the one that is named, else the only one with a usual name."""
    if role in ("time_col", "rating_col") and named == NONE and NONE not in there:
        return None
    found = [named] if named is not None else _usual(there, role)
    if named is not None and named not in there and named not in (there := columns_of(path, whole=True)):
        raise Problem(f"{path}: no column {quoted(named)} ({role}); there are {_listed(there)}")
    if role == "rating_col":
        if len(found) > 1:
            log.warning(f"{path}: {' and '.join(found)} may both be ratings, none is read; choose by --{role}=NAME")
        return found[0] if len(found) == 1 else None
    if len(found) > 1:
        raise Problem(f"{path}: {' and '.join(found)} may both be meant; choose by --{role}=NAME")
    looked = there if named is None else [named]
    if (not found or named is not None) and not is_parquet(path) and _nameless(looked):
        raise no_names(path, there)
    if found:
        return found[0]
    if ending(path) not in JSON and not is_parquet(path) and (line := names_below(path)) > 1:
        raise Problem(f"{path}: the names of the columns stand in line {line}; remove the lines before it")
    order = f", or --{role}={NONE} where rows are in the order of time" if role == "time_col" else ""
    what = ROLE_NAMES[role]
    raise Problem(f"{path}: which column holds the {what}? Set --{role}=NAME{order}; there are {_listed(there)}")


def _nameless(names: Sequence[str]) -> bool:
    """Is what should be names of columns a row?"""
    return any(VALUE.fullmatch(name) for name in names)


def no_names(path: Path, there: Sequence[str]) -> Problem:
    return Problem(
        f"{path}, line 1: {_listed(there)} look like a row, not like the names of the columns; add a line before it "
        "such as user_id,item_id,timestamp, separated alike"
    )


def names_below(path: Path) -> int:
    """The first line whose cells are usual names of users and items; 0 where none of the first 20 is."""
    for number, line in itertools.islice(text_lines(path), 20):
        names = [name.strip().strip('"') for name in re.split(r"[,;|\t]", line)]
        if _usual(names, "users_col") and _usual(names, "items_col"):
            return number
    return 0


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
        table = scan(path, [key, *fields], ids=[key])
        item = as_id(key, table.collect_schema()[key])
        chosen = table.select(item_id=item, **{new: pl.col(old) for old, new in names.items()})
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
    return ", ".join(leaves(value)) if isinstance(value, list) else str(value)
