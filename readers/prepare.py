"""From the rows of a source to a data set: rating, repeats, k-core, order, longest history; statistics and files.

Order: by user (as they first occur), then by time; rows of equal time keep the order of the source's files.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from tqdm import tqdm

from readers.raw.scan import ROLES, ROW, Part, Raw, head, reading
from readers.tables import AGAIN, Coder, Rows, core_rows, twins_of, unit_of, warn_of
from settings import option
from utils import Problem, log, quoted, shortened, whole_text

BATCH = 500_000  # rows that are held as text at a time
DAY = 86_400  # seconds
ENTITY = re.compile(r"&(#?\w+);")  # a character of HTML
UNFIT = r"[\t\r\n\x00]"  # what no id may hold: .inter files have no quotes


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    min_rating: float | None = option(None, "lowest rating that is kept; applied before all other filters")
    duplicates: Literal["all", "exact", "first", "last"] = option(
        "exact",
        "which repeated interactions are kept: all, all but exact copies in user, item and time, or the first or last "
        "of a user and an item",
    )
    k_core: int = option(
        5, "minimum number of interactions per user and per item, applied until nothing changes; 0 = no filter", ge=0
    )
    item_core: int = option(
        0,
        "minimum number of interactions per item, applied once after k_core (with test_days: before the test period); "
        "0 = no filter",
        ge=0,
    )
    max_history: int = option(0, "number of most recent interactions kept per user, after k_core; 0 = all", ge=0)
    split: Literal["leave_one_out", "time"] = option(
        "leave_one_out", "split that the statistics describe and the written preset names; the data are the same"
    )
    time_quantile: float = option(0.95, "share of interactions before the test period, for split: time", gt=0, le=1)
    test_days: float | None = option(
        None, "length of the test period in days, instead of time_quantile; timestamps must be in seconds", gt=0
    )

    anonymous: Literal["error", "drop"] = option("error", "what to do with rows whose user is empty")

    def __post_init__(self) -> None:
        if self.test_days is not None and self.split != "time":
            raise Problem("test_days: needs --split=time")


@dataclass(frozen=True)
class Events(Rows):
    """Rows as read, with their ratings where there are such, float32 [n]; dated: their times were dates."""

    rating: np.ndarray | None = None
    dated: bool = False

    def of(self, rows: np.ndarray) -> "Events":
        rating = None if self.rating is None else self.rating[rows]
        return replace(self, user=self.user[rows], item=self.item[rows], time=self.time[rows], rating=rating)

    def counts(self) -> dict[str, int]:
        users, items = (int((np.bincount(x) > 0).sum()) if len(x) else 0 for x in (self.user, self.item))
        return {"interactions": len(self.user), "users": users, "items": items}


@dataclass(frozen=True)
class Prepared(Events):
    """Events in their order, numbered as they first occur, with the text of each item as a JSON object."""

    texts: list[str] = field(default_factory=list)
    vectors_ND: np.ndarray | None = None  # content embeddings that the source has, float32

    def sequences(self) -> Iterator[list[int]]:
        """The item numbers of each user."""
        ends = np.flatnonzero(np.diff(self.user, append=-1)) + 1
        begin = 0
        for end in ends.tolist():
            yield self.item[begin:end].tolist()
            begin = end

    def write_texts(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as f:
            f.writelines(f"{text}\n" for text in self.texts)

    def write_table(self, path: Path, names: dict[str, str], separator: str) -> None:
        """A text table of the interactions; `names` of the columns by role."""
        columns = {"user": pl.Series(self.users, dtype=pl.String).gather(self.user),
                   "item": pl.Series(self.items, dtype=pl.String).gather(self.item)}  # fmt: skip
        if self.rating is not None:
            columns["rating"] = pl.Series(_whole(self.rating))
        columns["time"] = pl.Series(_whole(self.time))
        quotes: Any = "necessary" if separator == "," else "never"
        frame = pl.DataFrame({names[role]: column for role, column in columns.items()})
        frame.write_csv(path, separator=separator, quote_style=quotes)


def _whole(numbers: np.ndarray) -> np.ndarray:
    """As whole numbers, where they are such: so they are written."""
    whole = (numbers == np.rint(numbers)).all() and np.abs(numbers).max() < 2**53
    return numbers.astype(np.int64) if whole else numbers


# ---------------------------------------------------------------- reading


def read_events(raw: Raw, *, rated: bool = False, drop: bool = False) -> Events:
    """All rows of a source; Problem names the file and row of the first that is not one.

    rated: ratings are needed; else they are left out where one is no number. drop: rows without a user are left out.
    """
    coders = {"user": Coder(None), "item": Coder(None)}
    numbers: dict[str, list[np.ndarray]] = {"time": [], "rating": []}
    seen, clocks = 0, list[Clock]()
    with tqdm(unit=" rows", unit_scale=True, desc="reading", mininterval=1) as bar:
        for part in raw.parts:
            clocks.append(clock := Clock(part))
            with reading(part.path):
                for batch in batches_of(part, drop=drop):
                    check_ids(part, batch)
                    for role, coder in coders.items():
                        coder.add(batch[role].cast(pl.String).to_arrow().cast(pa.large_string()).dictionary_encode())
                    timed = "time" in batch.columns
                    numbers["time"].append(clock.seconds(batch) if timed else np.arange(seen, seen + len(batch)))
                    if "rating" in batch.columns:
                        found = _number(batch["rating"])
                        if rated:
                            _all_there(part, batch, "rating", found, "is not a number")
                        numbers["rating"].append(found.fill_null(np.nan).to_numpy().astype(np.float32))
                    seen += batch.height
                    bar.update(batch.height)
    if not seen:
        raise Problem(
            f"{raw.parts[0].path}: holds no interactions; a table needs a line for each, below the names of its columns"
        )
    (user, users), (item, items) = ((coder.codes.array(), list(coder.number)) for coder in coders.values())
    time = np.concatenate(numbers["time"]).astype(np.float64)
    rating = np.concatenate(numbers["rating"]) if numbers["rating"] else None
    if rating is not None and len(rating) != seen:
        if rated:
            raise Problem(f"{raw.parts[0].path}: some of the files have ratings and some have not; prepare them alike")
        rating = np.full(seen, np.nan)
    if rating is not None and (none := int((~np.isfinite(rating)).sum())):
        log.info(f"{raw.parts[0].path}: {none} rows have no number as rating, so ratings are left out")
        rating = None
    return Events(user, item, time, users, items, rating, all(clock.dates for clock in clocks))


def batches_of(part: Part, *, drop: bool) -> Iterator[pl.DataFrame]:
    """The rows of a part, some at a time; drop: without those whose user is empty, which the log counts."""
    dropped = 0
    for batch in part.frame.collect_batches(chunk_size=BATCH, engine="streaming"):
        found = batch.filter(pl.col("user").cast(pl.String).fill_null("") != "") if drop else batch
        dropped += batch.height - found.height
        if found.height:
            yield found
    if dropped:
        log.warning(f"{part.path}: {dropped} rows without a user are left out")


def check_ids(part: Part, batch: pl.DataFrame) -> None:
    for role in ROLES[:2]:
        text = batch[role].cast(pl.String)
        for bad, what in ((text.is_null() | (text == ""), "is empty"),
                          (text.str.contains(UNFIT), "holds a tab, line end or NUL, as no .inter may")):  # fmt: skip
            if bad.any():
                row = batch.row(int(bad.arg_max() or 0), named=True)
                drop = ", or all such: --anonymous=drop" if role == "user" and what == "is empty" else ""
                raise Problem(f"{part.path}, row {row[ROW]}: the {role} {what}; mend or leave out that row{drop}")


def _number(cells: pl.Series) -> pl.Series:
    if cells.dtype.is_nested():
        return pl.repeat(None, len(cells), dtype=pl.Float64, eager=True)
    text = cells.str.strip_chars() if cells.dtype == pl.String else cells
    return text.cast(pl.Float64, strict=False)


def _all_there(part: Part, batch: pl.DataFrame, role: str, found: pl.Series, what: str) -> None:
    bad = found.is_null() | ~found.is_finite()
    if bad.any():
        row = batch.row(int(bad.arg_max() or 0), named=True)
        again = row[role] is not None and row[role] == part.columns.get(role)
        remedy = AGAIN if again else "mend or leave out that row"
        raise Problem(f"{part.path}, row {row[ROW]}: the {role} {quoted(row[role])} {what}; {remedy}")


class Clock:
    """Times of one file as seconds (or whatever numbers they are): numbers, or dates, decided by its first rows."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.dates: bool | None = None

    def seconds(self, batch: pl.DataFrame) -> np.ndarray:
        """The times of some rows, float64 [n]; Problem names the first that is none."""
        cells = batch["time"]
        if isinstance(cells.dtype, pl.Time | pl.Duration):
            raise Problem(f"{self.part.path}: the column of the times has no dates ({cells.dtype}); name one that has")
        if cells.dtype.is_temporal():
            self.dates = True
            found = cells.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
            _all_there(self.part, batch, "time", found, "is no date")
            return found.to_numpy()
        if self.dates is None:
            first = _number(cells.head(100))
            self.dates = cells.dtype == pl.String and bool(first.is_null().all())
        if not self.dates:
            found = _number(cells)
            _all_there(self.part, batch, "time", found, "is not a number")
            return found.to_numpy()
        found = _dates(cells)
        _all_there(self.part, batch, "time", found, "is no date like 2024-05-31 or 2024-05-31T12:30:00Z")
        return found.to_numpy()


def _dates(cells: pl.Series) -> pl.Series:
    """Seconds since 1970 of ISO dates; without an offset they count as UTC. Null where a cell is none."""
    text = cells.str.strip_chars().str.replace(r"( UTC|Z)$", "").str.replace(" ", "T", literal=True)
    text = text.str.replace(r"(:[\d.]+[+-]\d\d)$", "${1}:00")  # an offset of hours alone, as PostgreSQL writes it
    text = text.set(~text.str.contains(r"^\d{4}-"), None)  # polars takes the year 24 for 24, not for 2024
    clocks = ("%H:%M:%S%.f", "%H:%M")
    ways = [text.str.to_datetime(f"%Y-%m-%dT{clock}", strict=False, time_unit="us") for clock in clocks]
    ways.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    offset = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", strict=False, time_unit="us")
    ways.append(offset.dt.replace_time_zone(None))
    frame = pl.DataFrame({str(i): way for i, way in enumerate(ways)})
    return frame.select(pl.coalesce(pl.all()).dt.epoch("us") / 1e6).to_series()


# ---------------------------------------------------------------- filtering


def prepare(raw: Raw, cfg: PrepareOptions) -> tuple[Prepared, dict[str, Any]]:
    """(the data set, what each step left)."""
    events = read_events(raw, rated=cfg.min_rating is not None, drop=cfg.anonymous == "drop")
    steps: dict[str, Any] = {"read": events.counts()}
    source = raw.parts[0].path
    last = float(events.time.max())
    unit = 1.0 if events.dated else unit_of(last)
    warn_of(source, events, dated=events.dated)
    begin = np.inf if cfg.test_days is None else last - cfg.test_days * DAY * unit
    known, vectors_MD = raw.vectors(set(events.items)) if raw.vectors else ([], None)
    row_of = {token: row for row, token in enumerate(known)}
    if raw.vectors:
        has = np.array([token in row_of for token in events.items])
        events = _left(events.of(has[events.item]), "embedded", "items", steps, source)
    if cfg.min_rating is not None:
        if events.rating is None:
            raise Problem(f"{source}: min_rating: there are no ratings; name their column by rating_col")
        events = _left(events.of(events.rating >= cfg.min_rating), "min_rating", cfg.min_rating, steps, source)
    if cfg.duplicates != "all":
        events = _left(events.of(kept_of_repeats(events, cfg.duplicates)), "duplicates", cfg.duplicates, steps, source)
    if cfg.k_core:
        events = _left(events.of(core_rows(events.user, events.item, cfg.k_core)), "k_core", cfg.k_core, steps, source)
    if cfg.item_core:
        counted = events.item[events.time < begin]
        core = np.bincount(counted, minlength=len(events.items)) >= cfg.item_core
        events = _left(events.of(core[events.item]), "item_core", cfg.item_core, steps, source)
    events = in_order(events)
    if cfg.max_history:
        kept = events.of(latest(events.user, cfg.max_history))
        events = in_order(_left(kept, "max_history", cfg.max_history, steps, source))
    texts, found = texts_of(raw, events.items)
    vectors_ND = None if vectors_MD is None else vectors_MD[[row_of[token] for token in events.items]]
    return Prepared(**vars(events), texts=texts, vectors_ND=vectors_ND), {
        "steps": steps,
        "texts": found,
        "test_begin": begin,
    }


def cut_at(begin: float, time: np.ndarray, cfg: PrepareOptions) -> PrepareOptions:
    """The time_quantile that cuts all rows where the test days begin; without such days the options as they are."""
    if not np.isfinite(begin):
        return cfg
    before = int((time < begin).sum())
    if not 0 < before < len(time):
        first, last = float(time.min()), float(time.max())
        raise Problem(
            f"test_days: {before} of {len(time)} interactions lie before the last {cfg.test_days:g} days; times, from "
            f"{first:.10g} to {last:.10g} here, must be dates or seconds since 1970"
        )
    return replace(cfg, time_quantile=before / (len(time) - 1))


def _left(events: Events, name: str, value: object, steps: dict[str, Any], source: Path) -> Events:
    steps[name] = events.counts()
    if not len(events.user):
        before = list(steps.values())[-2]["interactions"]
        raise Problem(f"{source}: {name} {value} leaves none of {before} interactions; choose another --{name}")
    return events


def kept_of_repeats(events: Events, rule: str) -> np.ndarray:
    """[n] bool: the first (or last) in time of each user and item, or of each user, item and time."""
    order = np.lexsort((events.time, events.item, events.user))  # stable: equal ones stay as they came
    same = np.ones(len(order) - 1, bool)
    for key in (events.user, events.item, *([events.time] if rule == "exact" else [])):
        ordered = key[order]
        same &= ordered[1:] == ordered[:-1]
    kept = np.ones(len(order), bool)
    kept[order[:-1] if rule == "last" else order[1:]] = ~same
    return kept


def latest(user: np.ndarray, longest: int) -> np.ndarray:
    """[n] bool: the last `longest` rows of each user; rows grouped by user."""
    ends = np.searchsorted(user, user, side="right")
    return ends - np.arange(len(user)) <= longest


def in_order(events: Events) -> Events:
    """Grouped by user and ordered by time, both numbered as they first occur."""
    user, users = renumbered(events.user, events.users)
    order = np.lexsort((events.time, user))
    item, items = renumbered(events.item[order], events.items)
    return replace(events.of(order), user=user[order], item=item, users=users, items=items)


def renumbered(codes: np.ndarray, words: list[str]) -> tuple[np.ndarray, list[str]]:
    """Codes by first occurrence, and what they stand for."""
    first = np.full(len(words), len(codes), np.int64)
    np.minimum.at(first, codes, np.arange(len(codes)))
    occurring = np.flatnonzero(first < len(codes))
    order = occurring[np.argsort(first[occurring])]
    number = np.zeros(len(words), np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return number[codes], [words[i] for i in order.tolist()]


def texts_of(raw: Raw, items: list[str]) -> tuple[list[str], dict[str, int]]:
    """The text of each item as a JSON object, {"item_id": ...} alone where none is known; and how many are."""
    found: dict[str, str] = {}
    empty: set[str] = set()
    repeated, other = 0, ""
    if raw.texts is not None:
        wanted, twins = set(items), twins_of(items[:1000])
        for row in tqdm(raw.texts(wanted | twins.keys()), unit=" items", unit_scale=True, desc="texts", mininterval=1):
            token = row["item_id"]
            if token not in wanted:
                other = other or f"; {shortened(twins[token])!a} is {shortened(token)!a} there: spell the ids alike"
                continue
            if token in found:
                repeated += 1
                if not raw.repeated_texts:
                    where = ", ".join(map(str, raw.text_files))
                    raise Problem(f"{where}: item {quoted(token)} stands there twice; leave one out")
                continue
            found[token] = whole_text(json.dumps(row, ensure_ascii=False))
            if not any(v.strip() for k, v in row.items() if k != "item_id"):
                empty.add(token)
    bare = [token for token in items if token not in found or token in empty]
    if empty_files := [path for path in raw.text_files if not head(path)]:
        raise Problem(f"{empty_files[0]}: holds no items; get it again, or leave it out")
    if raw.text_files and not found:
        raise Problem(
            f"{', '.join(map(str, raw.text_files))}: no id there is one of the items that are kept, whose first is "
            f"{quoted(items[0])}{other or '; name the column by --items_col, or spell the ids alike'}"
        )
    if marked := [token for token, text in found.items() if ENTITY.search(text)]:
        log.warning(f"{len(marked)} texts hold HTML as &amp;, first that of {quoted(marked[0])}; they stay as they are")
    if bare:
        where = ", ".join(map(str, raw.text_files)) or "no file of texts was named (--items=FILE)"
        where = shortened(where) + other
        log.warning(f"{len(bare)} of {len(items)} items have no text, first {quoted(bare[0])}; {where}")
    texts = [found.get(token) or json.dumps({"item_id": token}, ensure_ascii=False) for token in items]
    return texts, {"with": len(items) - len(bare), "repeated": repeated}
