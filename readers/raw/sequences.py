"""A line a user, `user item item ...` in time order: S3-Rec's <Name>.txt of numbers, P5's user_sequence.txt."""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from readers.delimited import text_lines
from readers.prepare import Prepared
from readers.raw.scan import ROW, Part, Raw, SourceOptions, Texts, ending, files_of, head, one, scan
from utils import Problem, quoted

P5_NAMES = ("user_sequence.txt", "sequential_data.txt")
P5_TEXTS = "item_plain_text.txt"
NUMBERS = re.compile(r"\d+( +\d+){2,}\s*")


def fits_p5(source: Path, files: list[Path]) -> bool:
    return any(p.name in P5_NAMES for p in files)


def fits_s3rec(source: Path, files: list[Path]) -> bool:
    return any(ending(p) == ".txt" and NUMBERS.fullmatch(_start(p)) for p in files)


def _start(path: Path) -> str:
    """The first line without its last word, which may be cut."""
    return " ".join(head(path).split(" ")[:50])


def read_p5(source: Path, cfg: SourceOptions) -> Raw:
    files = files_of(source)
    path = files[0] if len(files) == 1 else one([p for p in files if p.name in P5_NAMES], "sequences")
    beside = Path(cfg.items) if cfg.items else path.with_name(P5_TEXTS)
    texts = beside if cfg.items or beside.is_file() else None
    return Raw("p5", [_part(path)], _texts(texts) if texts else None, (texts,) if texts else ())


def read_s3rec(source: Path, cfg: SourceOptions) -> Raw:
    files = [p for p in files_of(source) if ending(p) == ".txt" and NUMBERS.fullmatch(_start(p))]
    path = one(files, "sequences of numbers (.txt)") if files else source
    found = renamed(_part(path), path.stem)
    names = tuple(path.with_name(f"{path.stem}.{role}2id") for role in ("user", "item"))
    if cfg.items is None:
        return Raw("s3rec", [found], beside=names)
    return Raw("s3rec", [found], _texts(Path(cfg.items)), (Path(cfg.items),), beside=names)


def _part(path: Path) -> Part:
    """A row for each item of each line; its place in the line is its time."""
    lines = scan(path, header=["line"], separator="\x01", quoted=False)
    words = lines.select(ROW, pl.col("line").str.extract_all(r"[^ \r]+").alias("words"))
    pairs = words.select(
        ROW, pl.col("words").list.first().alias("user"), pl.col("words").list.slice(1).alias("item"),
        pl.int_ranges(0, pl.col("words").list.len().cast(pl.Int64) - 1).alias("time"),
    )  # fmt: skip
    return Part(path, pairs.explode("item", "time"))


def read_numbers(path: Path) -> dict[str, str]:
    """Number -> id, of a file with `id<TAB>number` a line; {} where there is none."""
    found: dict[str, str] = {}
    for line, text in text_lines(path) if path.is_file() else ():
        token, *number = text.split("\t")
        if text and (len(number) != 1 or not number[0].isdecimal()):
            raise Problem(f"{path}, line {line}: expected an id, a tab and a number, found {quoted(text)}")
        found |= {number[0]: token} if text else {}
    return found


def renamed(found: Part, stem: str) -> Part:
    """The part with ids in place of its numbers, where <stem>.user2id and .item2id beside it know them."""
    frame = found.frame
    for role in ("user", "item"):
        path = found.path.with_name(f"{stem}.{role}2id")
        if ids := read_numbers(path):
            there = found.frame.select(pl.col(role).cast(pl.String).unique()).collect()[role].to_list()
            if unknown := [n for n in there if n is not None and n not in ids]:
                raise Problem(f"{found.path}: {role} {quoted(unknown[0])} is not in {path}; add it there")
            frame = frame.with_columns(pl.col(role).replace_strict(ids, default=None, return_dtype=pl.String))
    return Part(found.path, frame)


def _texts(path: Path) -> Texts:
    def rows(wanted: set[str]) -> Iterator[dict[str, str]]:
        for _, line in text_lines(path):
            token, _, text = line.partition(" ")
            if token in wanted and text.strip():
                yield {"item_id": token, "text": text.strip()}

    return rows


def write_p5(data: Prepared, folder: Path, name: str) -> None:
    """user_sequence.txt and item_plain_text.txt; Problem where an id holds a blank."""
    for token in (*data.users, *data.items):
        if re.search(r"\s", token):
            raise Problem(f"{quoted(token)}: the layout p5 separates ids by blanks, this one holds one; use another")
    _write(folder / P5_NAMES[0], data, data.users, data.items)
    with (folder / P5_TEXTS).open("w", encoding="utf-8", newline="\n") as f:
        f.writelines(f"{token} {text}\n" for token, text in zip(data.items, data.plain_texts(), strict=True))


def write_s3rec(data: Prepared, folder: Path, name: str) -> None:
    """<name>.txt of numbers from 1, and which ids they stand for; texts have no place in this layout."""
    numbers = [[str(i) for i in range(1, len(of) + 1)] for of in (data.users, data.items)]
    _write(folder / f"{name}.txt", data, *numbers)
    for role, ids in (("user", data.users), ("item", data.items)):
        write_numbers(folder / f"{name}.{role}2id", ids, 1)


def write_numbers(path: Path, ids: list[str], first: int) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as f:
        f.writelines(f"{token}\t{number}\n" for number, token in enumerate(ids, first))


def _write(path: Path, data: Prepared, users: list[str], items: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as f:
        for user, row in zip(users, data.sequences(), strict=True):
            f.write(" ".join([user, *(items[i] for i in row)]) + "\n")
