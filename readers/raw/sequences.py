"""A line a user, `user item item ...` in time order: S3-Rec's <Name>.txt of numbers, P5's user_sequence.txt."""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from readers.delimited import text_lines
from readers.raw.scan import ROW, Part, Raw, SourceOptions, Texts, ending, files_of, head, one, scan, texts_beside

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
    texts = texts_beside(cfg, path.with_name(P5_TEXTS))
    return Raw("p5", [_part(path)], _texts(texts) if texts else None, (texts,) if texts else ())


def read_s3rec(source: Path, cfg: SourceOptions) -> Raw:
    files = [p for p in files_of(source) if ending(p) == ".txt" and NUMBERS.fullmatch(_start(p))]
    path = one(files, "sequences of numbers (.txt)") if files else source
    texts = Path(cfg.items) if cfg.items else None
    return Raw("s3rec", [_part(path)], _texts(texts) if texts else None, (texts,) if texts else ())


def _part(path: Path) -> Part:
    """A row for each item of each line; its place in the line is its time."""
    lines = scan(path, header=["line"], separator="\x01", quoted=False)
    words = lines.select(ROW, pl.col("line").str.extract_all(r"[^ \r]+").alias("words"))
    pairs = words.select(
        ROW, pl.col("words").list.first().alias("user"), pl.col("words").list.slice(1).alias("item"),
        pl.int_ranges(0, pl.col("words").list.len().cast(pl.Int64) - 1).alias("time"),
    )  # fmt: skip
    return Part(path, pairs.explode("item", "time"))


def _texts(path: Path) -> Texts:
    def rows(wanted: set[str]) -> Iterator[dict[str, str]]:
        for _, line in text_lines(path):
            token, _, text = line.partition(" ")
            if token in wanted and text.strip():
                yield {"item_id": token, "text": text.strip()}

    return rows
