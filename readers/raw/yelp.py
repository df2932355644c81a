"""Yelp Open Dataset: yelp_academic_dataset_review.json and _business.json, an object a line."""

from collections.abc import Iterator
from pathlib import Path

from readers.raw.scan import Raw, SourceOptions, Texts, files_of, head, objects, one, part

FIELDS = {"name": "title", "categories": "categories", "city": "city", "state": "state"}


def fits(source: Path, files: list[Path]) -> bool:
    return any("review" in p.name.lower() and '"business_id"' in head(p) for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    files = files_of(source)
    review = one([p for p in files if "review" in p.name.lower()], "reviews")
    business = [Path(cfg.items)] if cfg.items else [p for p in files if "business" in p.name.lower()]
    parts = [part(review, ("user_id", "business_id", "date", "stars"))]
    return Raw("yelp", parts, _texts(business[0]) if business else None, tuple(business[:1]))


def _texts(path: Path) -> Texts:
    def rows(wanted: set[str]) -> Iterator[dict[str, str]]:
        for _, row in objects(path):
            token = str(row.get("business_id") or "")
            if token in wanted:
                yield {"item_id": token, **{new: str(row[old]) for old, new in FIELDS.items() if row.get(old)}}

    return rows
