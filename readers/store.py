"""A large data set is read once: its arrays are kept as NumPy files, which every process maps and none changes.

They lie in <folder>/.<name>.arrays/<rules>-<files>, or under ~/.cache/diger where that folder cannot be written: hashes
of the options that shape them, and of the name, size and time of every file, so that a changed file has others.
What is damaged, or of another version, is made anew.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from readers.dataset import SPLITS, Catalogue, Found
from readers.splits import DataOptions, Parts, Split
from readers.stamps import LARGE, place_of
from utils import Problem, Unwritable, digest, in_turn, log, one_line, read_json, whole_folder, write_json

VERSION = 3
ARRAYS = ("items", "offsets", "position")  # of a split
Read = Callable[[Path | None], Found]  # of a scratch folder for long columns, None for memory


def read_once(folder: Path, stem: str, layout: str, cfg: DataOptions, files: list[Path], read: Read) -> Found:
    """What `read` finds in the files of a data set: of large ones from the store, after the first time."""
    if sum(path.stat().st_size for path in files) < LARGE:
        return read(None)
    root = place_of(folder, stem)
    rules, content = keys_of(layout, cfg, files)
    path = root / f"{rules}-{content}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with in_turn(root):  # the processes of a run come at once, and one of them reads
            if (found := opened(path, folder)) is not None:
                return found
            log.info(f"{folder}: reading {stem} once; its arrays are kept in {path}")
            with tempfile.TemporaryDirectory(prefix=".reading-", dir=root) as scratch:
                keep(path, read(Path(scratch)))
            for old in [*root.glob(f"{rules}-*"), *root.glob(".*")]:
                if old != path:  # of files that have changed since, or of a process that was killed
                    shutil.rmtree(old, ignore_errors=True)
            return opened(path, folder) or read(None)
    except (OSError, Unwritable) as e:
        log.warning(f"{root}: the arrays of {stem} cannot be kept ({e}); every process reads the files itself")
        return read(None)


def keys_of(layout: str, cfg: DataOptions, files: list[Path]) -> tuple[str, str]:
    """Hashes of the rules by which the arrays are made, and of the files. How histories are cut is decided later."""
    later = {"data_path", "data_format", "semantic_emb_path", "max_his_len", "history_tokens"}
    later |= {"seed"} if cfg.split != "time_groups" else set()  # which draws its groups
    options = {k: v for k, v in asdict(cfg).items() if k not in later}
    stats = [(path.name, (s := path.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for path in sorted(files)]
    return digest(VERSION, layout, options), digest(stats)


def keep(path: Path, found: Found) -> None:
    """Write all of it, or nothing."""
    number: dict[int, int] = {}  # arrays that parts share are written once
    splits = {}
    with whole_folder(path) as draft:
        for name in SPLITS:
            split = getattr(found.parts, name)
            for array in (getattr(split, k) for k in ARRAYS):
                if id(array) not in number:
                    number[id(array)] = len(number)
                    np.save(draft / f"{number[id(array)]}.npy", array)
            splits[name] = {k: number[id(getattr(split, k))] for k in ARRAYS}
        np.save(draft / "count.npy", found.parts.count)
        try:
            names = pa.table({"id": found.catalogue.ids, "title": found.catalogue.titles})
        except ValueError as e:  # half of a surrogate pair, which JSON may hold
            raise Unwritable(f"{path}: ids that are no text ({one_line(e)})") from None
        parquet.write_table(names, draft / "catalogue.parquet")
        sizes = {p.name: p.stat().st_size for p in sorted(draft.iterdir())}
        read = [p.name for p in found.paths]
        facts = {"keyed": found.catalogue.keyed, "facts": found.parts.facts, "read": read}
        write_json(draft / "card.json", {"version": VERSION, "splits": splits, "files": sizes, **facts})


def opened(path: Path, folder: Path) -> Found | None:
    """What is kept there of a folder's files, its arrays mapped; None where nothing is, or something is damaged, which
    is removed.
    """
    if not path.is_dir():
        return None
    try:
        card = read_json(path / "card.json")
        if card["version"] != VERSION or {n: (path / n).stat().st_size for n in card["files"]} != card["files"]:
            raise ValueError("files were cut, or are of another version")
        arrays = {n: np.load(path / n, mmap_mode="r").view(np.ndarray) for n in card["files"] if n.endswith(".npy")}
        train, valid, test = (Split(*(arrays[f"{card['splits'][name][k]}.npy"] for k in ARRAYS)) for name in SPLITS)
        names = parquet.read_table(path / "catalogue.parquet")
        catalogue = Catalogue(names["id"].to_pylist(), names["title"].to_pylist(), card["keyed"])
        parts = Parts(train, valid, test, np.array(arrays["count.npy"]), card["facts"])
        return Found(catalogue, parts, [folder / name for name in card["read"]])
    except (Problem, OSError, ValueError, KeyError, TypeError, pa.ArrowException) as e:
        log.warning(f"{path}: damaged ({e}); made anew")
        shutil.rmtree(path, ignore_errors=True)
        return None
