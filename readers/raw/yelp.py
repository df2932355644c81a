"""Yelp Open Dataset: yelp_academic_dataset_review.json and _business.json, an object a line."""

from pathlib import Path

from readers.raw.scan import Raw, SourceOptions, files_of, head, one, part
from readers.raw.table import texts_of

FIELDS = ("name", "categories", "city", "state")


def fits(source: Path, files: list[Path]) -> bool:
    return any("review" in p.name.lower() and '"business_id"' in head(p) for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    files = files_of(source)
    review = one([p for p in files if "review" in p.name.lower()], "reviews")
    business = [Path(cfg.items)] if cfg.items else [p for p in files if "business" in p.name.lower()]
    parts = [part(review, ("user_id", "business_id", "date", "stars"))]
    return Raw("yelp", parts, texts_of(business[0], ["business_id"], FIELDS) if business else None, tuple(business[:1]))
