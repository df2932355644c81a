"""Which reader reads which layout: a new layout is a file and a line here."""

from collections.abc import Callable
from pathlib import Path

from readers.dataset import SPLITS, Dataset, Found, assemble
from readers.files import detect, locate, spelled_alike
from readers.json_lists import read_json_lists
from readers.jsonl import read_jsonl
from readers.splits import SHORTEST, DataOptions
from readers.store import read_once
from readers.tables import read_csv, read_inter, read_inter_splits
from utils import Problem, regular_file

TIMED = ("inter", "csv")  # layouts that say when


LAYOUTS: dict[str, Callable[[Path, str, DataOptions, Path | None], Found]] = {
    "inter": read_inter,
    "inter_splits": read_inter_splits,
    "jsonl": read_jsonl,
    "json": read_json_lists,
    "csv": read_csv,
}


def read_dataset(cfg: DataOptions) -> Dataset:
    """Find the data set's files, read them and split them; Problem names what is wrong and where."""
    folder, stem = locate(cfg)
    layout = cfg.data_format if cfg.data_format != "auto" else detect(folder, stem)
    if Path(cfg.data_path).is_file():
        layout = "csv"
    if cfg.split != "leave_one_out" and layout not in TIMED:
        raise Problem(
            f"split: {cfg.split} needs timestamps, which the layout {layout!r} does not hold; use leave_one_out"
        )
    if cfg.k_core and layout not in TIMED:
        raise Problem(f"k_core: works on one .inter or .csv file; the layout {layout!r} comes split")

    def read(scratch: Path | None) -> Found:
        found = LAYOUTS[layout](folder, stem, cfg, scratch)
        for name in SPLITS:
            if not len(getattr(found.parts, name)):
                raise Problem(f"{folder}: the {name} part of {cfg.dataset!r} is empty; {_lacking(name, layout, cfg)}")
        return found

    files = [regular_file(p) for p in spelled_alike(folder, stem) if ".emb" not in p.name.lower()]
    return assemble(folder, stem, cfg, read_once(folder, stem, layout, cfg, files, read))


def _lacking(name: str, layout: str, cfg: DataOptions) -> str:
    """What a part of a data set would have to hold so as not to be empty."""
    if layout == "jsonl":
        return f"its .{name}.jsonl holds no row"
    if layout == "inter_splits":
        return f"its .{name}.inter holds no interaction of a user who has an earlier one"
    if cfg.split != "leave_one_out":
        return "no user has rows on both sides of its cut in time; change time_quantile"
    need = SHORTEST + (name == "train")
    return f"it needs a user with at least {need} interactions: one to test, one to validate, " + (
        "one to train on and one before that" if name == "train" else "and one before these"
    )
