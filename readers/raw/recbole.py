"""RecBole's atomic files: <name>.inter and <name>.item, a header of name:type. Ours has such a .inter."""

import json
from pathlib import Path

import polars as pl

from readers.prepare import Prepared
from readers.raw.scan import ROLES, Raw, SourceOptions, files_of, head, one, part
from readers.raw.table import texts_of
from utils import Problem

COLUMNS = dict(zip(ROLES, ("user_id:token", "item_id:token", "timestamp:float", "rating:float"), strict=True))


def fits(source: Path, files: list[Path]) -> bool:
    return any(p.suffix == ".inter" and ":token" in head(p) for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    path = one([p for p in files_of(source) if p.suffix == ".inter"], "interactions (.inter)")
    there = head(path).split("\t")
    short = {name.partition(":")[0]: name for name in there}
    named = (cfg.users_col, cfg.items_col, cfg.time_col, cfg.rating_col)
    names = [own or short.get(usual.partition(":")[0]) for own, usual in zip(named, COLUMNS.values(), strict=True)]
    for name, usual in list(zip(names, COLUMNS.values(), strict=True))[:3]:
        if name not in there:
            way = "; where rows are in the order of time: --source=table --time_col=none" * (usual == COLUMNS["time"])
            raise Problem(f"{path}: no column {name or usual}, separated by tabs; there are {', '.join(there)}{way}")
    beside = [path.with_name(f"{path.stem}{end}") for end in (".items.jsonl", ".item")]
    texts = Path(cfg.items) if cfg.items else next((p for p in beside if p.is_file()), None)
    if texts is None:
        return Raw("recbole", [part(path, names)])
    return Raw("recbole", [part(path, names)], texts_of(texts, [cfg.items_col], cfg.text_cols), (texts,))


def write(data: Prepared, folder: Path, name: str) -> None:
    """The atomic files; a text loses its tabs and line ends there."""
    data.write_table(folder / f"{name}.inter", COLUMNS, separator="\t")
    rows = [json.loads(text) for text in data.texts]
    fields = list(dict.fromkeys(key for row in rows for key in row if key != "item_id"))
    columns = {"item_id:token": data.items}
    columns |= {f"{f}:token_seq": [" ".join(row.get(f, "").split()) for row in rows] for f in fields}
    pl.DataFrame(columns).write_csv(folder / f"{name}.item", separator="\t", quote_style="never")


def write_own(data: Prepared, folder: Path, name: str) -> None:
    """The layout that training reads: <name>.inter and <name>.items.jsonl."""
    data.write_table(folder / f"{name}.inter", COLUMNS, separator="\t")
    data.write_texts(folder / f"{name}.items.jsonl")
