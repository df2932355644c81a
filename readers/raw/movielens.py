"""MovieLens as published: 100K (u.data, u.item), 1M and 10M (ratings.dat, movies.dat), 20M, 25M, 32M (.csv)."""

import csv
from collections.abc import Iterator
from pathlib import Path

from readers.delimited import text_lines
from readers.raw.scan import Part, Raw, SourceOptions, Texts, files_of, head, part, texts_beside
from utils import Problem, shortened

GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
          "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
          "Western")  # fmt: skip
RATINGS = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}
MARK = "userId,movieId"


def fits(source: Path, files: list[Path]) -> bool:
    return any(p.name in ("u.data", "ratings.dat") or (p.name == "ratings.csv" and head(p).startswith(MARK))
               for p in files)  # fmt: skip


def read(source: Path, cfg: SourceOptions) -> Raw:
    files = files_of(source)
    ratings = [p for p in files if p.name in RATINGS]
    if not ratings:
        raise Problem(f"{source}: none of {', '.join(RATINGS)} here; name the unpacked folder")
    path = ratings[0]
    texts = texts_beside(cfg, path.with_name(RATINGS[path.name]))
    return Raw("movielens", [_ratings(path)], _texts(texts) if texts else None, (texts,) if texts else ())


def _ratings(path: Path) -> Part:
    names = ("user", "item", "time", "rating")
    if path.name == "u.data":
        return part(path, names, separator="\t", header=["user", "item", "rating", "time"])
    if path.name == "ratings.dat":  # user::item::rating::time
        return part(path, names, separator=":", header=["user", "-", "item", "--", "rating", "---", "time"])
    return part(path, ("userId", "movieId", "timestamp", "rating"), separator=",")


def _encoding(path: Path) -> str:
    """100K and 1M are in Latin-1, 10M and later in UTF-8."""
    if path.suffix == ".csv":
        return "utf-8-sig"
    try:
        path.read_bytes().decode()
    except (UnicodeDecodeError, OSError):
        return "latin-1"
    return "utf-8"


def _texts(path: Path) -> Texts:
    def rows(wanted: set[str]) -> Iterator[dict[str, str]]:
        for number, line in text_lines(path, _encoding(path)):
            if path.suffix == ".csv":
                cells = next(csv.reader([line]), [])
            else:
                cells = line.split("|" if path.name == "u.item" else "::")
            if len(cells) < 3:
                raise Problem(f"{path}, line {number}: expected item, title, genres, found {shortened(line, 60)}")
            if cells[0] not in wanted:  # the header, for one
                continue
            if path.name == "u.item":
                genres = [name for name, flag in zip(GENRES, cells[5:], strict=False) if flag == "1"]
            else:
                genres = [g for g in cells[2].split("|") if g != "(no genres listed)"]
            yield {"item_id": cells[0], "title": cells[1], "categories": ", ".join(genres)}

    return rows
