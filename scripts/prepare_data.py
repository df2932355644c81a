"""Make a data set of what you have: files of interactions (and of items with text) to DIR/NAME.

  python scripts/prepare_data.py clicks.csv --items items.csv --out dataset/shop
  python scripts/prepare_data.py SOURCE --out DIR/NAME [--key=value ...]   SOURCE: a file, or a folder as published
  python scripts/prepare_data.py SOURCE --out DIR/NAME --to LAYOUT         written for another program
  python scripts/prepare_data.py --fetch NAME [--out DIR/NAME]             a published data set, downloaded and prepared

docs/data-formats.md says which sources and layouts there are, docs/get-the-data.md which names.
Needs polars: pip install -r requirements-data.txt
"""

import hashlib
import json
import logging
import re
import sys
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import numpy as np
import yaml

import settings
from readers.dataset import SPLITS
from readers.fetch import compare, degrees, fetch, published
from readers.layouts import read_dataset
from readers.splits import SHORTEST, DataOptions
from utils import (
    Problem,
    log,
    log_to,
    problems_exit_2,
    quoted,
    shortened,
    whole_folder,
    write_array,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from readers.prepare import Prepared, PrepareOptions

OWN = ["out", "to", "fetch"]
TIES = "grouped by user as they first occur, then by time; rows of equal time keep the order of the source's files"
PRESETS = {2000: "scientific", 0: "demo"}  # items from which on -> the preset whose sizes fit
STEPS, LARGEST_BATCH = 200, 2048  # most steps of an epoch, while batches stay below that
READ = {"own": "auto", "recbole": "inter", "letter": "json", "diger": "jsonl"}  # layouts that training reads as well


def run(argv: list[str]) -> None:
    """The command: a data set in the one layout, with its card and preset, or a conversion to another layout."""
    try:
        import polars

        polars.LazyFrame()
    except (ImportError, NameError):  # not there, or without its runtime
        need = "prepare_data.py needs polars, which is not installed or lacks its runtime"
        raise Problem(f"{need}: pip install -r requirements-data.txt") from None
    from readers.prepare import PrepareOptions, cut_at, prepare
    from readers.raw.kinds import KINDS, WRITERS, find
    from readers.raw.scan import SourceOptions

    kinds: dict[str, type] = {"source": SourceOptions, "preparation": PrepareOptions}
    if {"--help", "-h"} & set(argv):
        print(__doc__, settings.help_text(kinds), sep="\n")
        print(
            f"\nsources: {', '.join(KINDS)}\nlayouts of --to: {', '.join(WRITERS)} (default own, which training reads)"
        )
        return
    log_to(None, main=True)
    sources, named, cfg = settings.command(argv, kinds, OWN)
    if "fetch" in named:
        sources, named, cfg = fetched(sources, named, argv, kinds)
    layout = named.get("to", "own")
    if len(sources) != 1 or "out" not in named:
        raise Problem("prepare_data.py: needs one SOURCE and --out DIR/NAME; --help shows how")
    if layout not in WRITERS:
        raise Problem(f"--to: unknown layout {quoted(layout)}; expected one of {', '.join(WRITERS)}")
    out = free_folder(Path(named["out"]))
    raw = find(Path(settings.at_home(sources[0])), cfg[SourceOptions])
    events, texts = (shortened(", ".join(map(str, p))) for p in ([p.path for p in raw.parts], raw.text_files))
    log.info(f"read as {raw.kind}: {events}; texts: {texts or 'none'}")
    for columns in dict.fromkeys(", ".join(f"{role}s {name}" for role, name in p.columns.items()) for p in raw.parts):
        log.info(f"columns: {columns or 'none are named'}")
    data, facts = prepare(raw, cfg[PrepareOptions])
    options = cut_at(facts.pop("test_begin"), data.time, cfg[PrepareOptions])
    files = [{"name": p.name, "bytes": p.stat().st_size} for p in (*(p.path for p in raw.parts), *raw.text_files)]
    facts = {"source": {"kind": raw.kind, "files": files}, "layout": layout, "options": settings.flat(cfg), **facts}
    with whole_folder(out) as draft:
        WRITERS[layout](data, draft, out.name)
        if data.vectors_ND is not None:
            write_array(draft / f"{out.name}.emb-{raw.kind}.npy", data.vectors_ND)
        card = {**facts, **described(data, draft, layout, options)}
        write_json(draft / f"{out.name}.card.json", card)
    show(card, out, data)
    if "fetch" in named:
        found = card["statistics"]
        compare(named["fetch"], (found["users"], found["items"], found["interactions"]), found["degrees"])


def fetched(sources: list[str], named: dict[str, str], argv: list[str], kinds: dict[str, type]) -> Any:
    """The command line of a published data set, once its files are there: what is typed goes before its own options."""
    name = named["fetch"]
    if sources:
        raise Problem(f"--fetch={name}: takes no SOURCE beside it; drop {sources[0]}")
    usual = published(name).options
    out = named.get("out", f"dataset/{name}")
    free_folder(Path(out))  # before anything is fetched
    typed = {word.partition("=")[0] for word in argv}
    more = [word for word in usual if word.partition("=")[0] not in typed]
    folder = fetch(name, Path(out).parent / f"{Path(out).name}-published")
    return settings.command([str(folder), *argv, *more, *([] if "out" in named else [f"--out={out}"])], kinds, OWN)


def free_folder(out: Path) -> Path:
    """The folder of the data set to be; Problem where something is in the way, or its name is no name."""
    if not settings.plain_name(out.name) or out.name.startswith("-"):
        raise Problem(f"--out: {out} ends in no plain name; write --out DIR/NAME, NAME being that of the data set")
    if out.name == "demo":
        raise Problem(f"--out: {out} is the name of the demo's data, which the run scripts make; choose another one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Problem(f"--out: {out} is there already; choose another name, or remove it")
    return out


# ---------------------------------------------------------------- what is told about it


def described(data: "Prepared", folder: Path, layout: str, cfg: "PrepareOptions") -> dict[str, Any]:
    """Statistics, the split as training will read it, hashes of the files; the preset is written beside them."""
    lengths = np.bincount(data.user)
    uses = np.bincount(data.item)
    counts = data.counts()
    ties = int(((data.user[1:] == data.user[:-1]) & (data.time[1:] == data.time[:-1])).sum())
    facts: dict[str, Any] = {
        "statistics": {
            **counts,
            "degrees": degrees(data.user, data.item),
            "density": counts["interactions"] / (counts["users"] * counts["items"]),
            "of_a_user": {"mean": float(lengths.mean()), "median": float(np.median(lengths)),
                          "least": int(lengths.min()), "most": int(lengths.max())},
            "of_an_item": {"mean": float(uses.mean()), "median": float(np.median(uses)),
                           "least": int(uses.min()), "most": int(uses.max())},
            "time": {"first": float(data.time.min()), "last": float(data.time.max()), "equal_neighbours": ties},
        },
        "order": TIES,
    }  # fmt: skip
    short = int((lengths < SHORTEST).sum())
    split = split_counts(folder, layout, cfg)
    facts["split"] = {"kind": cfg.split, "users_of_fewer_than_3": short, **split}
    if layout == "own":
        text = preset(folder.name, counts["items"], int(split.get("train", 0)), cfg, drop=short > 0)
        write_text(folder / f"{folder.name}.yaml", text)
    files = sorted(p for p in folder.iterdir() if p.is_file())
    facts["files"] = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    return {**facts, "versions": {name: version(name) for name in ("polars", "numpy")}}


def split_counts(folder: Path, layout: str, cfg: "PrepareOptions") -> dict[str, Any]:
    """Samples of each part, counted by the reader that training uses; or why there can be none."""
    if layout not in READ:
        return {}
    split = {"split": cfg.split, "time_quantile": cfg.time_quantile} if layout in ("own", "recbole") else {}
    where = {"dataset": folder.name, "data_path": str(folder.parent), "data_format": READ[layout]}
    log.setLevel(logging.ERROR)  # what is odd about the rows has been said of their source
    try:
        found = read_dataset(settings.section(DataOptions, {**where, **split, "short_users": "drop"}))
        return {name: len(found.split(name)) for name in SPLITS}
    except Problem as e:
        problem = str(e)
    finally:
        log.setLevel(logging.INFO)
    log.warning(f"not to be trained on as it is: {problem.replace(str(folder.parent), '...')}")
    return {"problem": problem.replace(str(folder), folder.name)}


def preset(name: str, items: int, samples: int, cfg: "PrepareOptions", *, drop: bool) -> str:
    """A preset of config/ whose sizes fit, for this data set; batches grow with the training samples, so that an epoch
    has at most STEPS of them, up to LARGEST_BATCH.
    """
    base = next(preset for least, preset in PRESETS.items() if items >= least)
    text = (ROOT / "config" / f"{base}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^dataset:.*$", lambda _: f"dataset: {json.dumps(name)}", text, flags=re.MULTILINE)
    size = yaml.safe_load(text)["batch_size"]
    while size < LARGEST_BATCH and size * STEPS < samples:
        size *= 2
    text = re.sub(r"^batch_size:.*$", f"batch_size: {size}", text, flags=re.MULTILINE)
    text = re.sub(r"^with_two_stage:.*\n", "", text, flags=re.MULTILINE)
    more = ["with_two_stage: true", "with_sasrec: true"]  # one table of all that a shop would choose from
    more += ["short_users: drop"] if drop and cfg.split == "leave_one_out" else []
    more += [f"split: time\ntime_quantile: {cfg.time_quantile}"] if cfg.split == "time" else []
    begin = (
        f"# The sizes of config/{base}.yaml; change what you like.  bash run_FrqUD.sh {quote(name)} --data_path=DIR\n"
    )
    return begin + text + "".join(f"{line}\n" for line in more)


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def show(card: dict[str, Any], out: Path, data: "Prepared") -> None:
    """The statistics on the screen, and what to do next."""
    print(f"{'step':<14}{'users':>12}{'items':>12}{'interactions':>15}")
    for name, counts in card["steps"].items():
        print(f"{name:<14}{counts['users']:>12,}{counts['items']:>12,}{counts['interactions']:>15,}")
    found, split = card["statistics"], card["split"]
    user, item = found["of_a_user"], found["of_an_item"]
    print(f"a user: {user['least']} to {user['most']}, mean {user['mean']:.1f}, median {user['median']:g}; "
          f"an item: {item['least']} to {item['most']}, mean {item['mean']:.1f}, median {item['median']:g}; "
          f"density {found['density']:.2e}")  # fmt: skip
    if "train" in split:
        print(
            f"{split['kind']}: {split['train']:,} to train, {split['valid']:,} to validate, {split['test']:,} to test"
        )
    equal = found["time"]["equal_neighbours"]
    print(f"texts: {card['texts']['with']:,} of {found['items']:,} items")
    print(f"{equal:,} rows at the time of the one before keep the source's order")
    print(f"written: {out}/ ({', '.join(card['files'])}, {out.name}.card.json)")
    if card["layout"] == "own" and "train" in split:
        where = "" if out.parent == Path("dataset") else f" --data_path={quote(str(out.parent))}"
        embed = "" if data.vectors_ND is not None else f"python scripts/embed_items.py {quote(str(out))}, then "
        print(f"next: {embed}bash run_FrqUD.sh {quote(out.name)}{where}")


if __name__ == "__main__":
    with problems_exit_2():
        run(sys.argv[1:])
