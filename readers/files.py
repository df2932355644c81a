"""Finding the files of a data set by name; what they are read as is decided elsewhere."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from readers.delimited import text_lines
from readers.splits import DataOptions
from utils import Problem, log, parse_json, shortened

# layout -> what the name of its first file ends with, in the order in which layouts are looked for
INTERACTIONS = {
    "inter": ".inter", "inter_splits": ".train.inter", "jsonl": ".train.jsonl", "json": ".inter.json", "csv": ".csv",
}  # fmt: skip


PACKED = {".gz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".zip": "unzip"}


def locate(cfg: DataOptions) -> tuple[Path, str]:
    """(folder, stem of the file names): the data set as it was spelled, else the only one that differs in case."""
    root, stem = Path(cfg.data_path), cfg.dataset
    if root.is_file() and root.suffix.lower() == ".csv":
        return root.parent, root.stem
    if not root.is_dir():
        way = "name that of the data: --data_path=DIR"
        if root.is_file():
            known = next((end for end in INTERACTIONS.values() if root.name.lower().endswith(end)), None)
            own = f"name its folder: --data_path={root.parent} --dataset={root.name[: -len(known or ' ')]}"
            way = own if known else f"python scripts/prepare_data.py {root} --out DIR/NAME makes a data set of a table"
        raise Problem(f"data_path: {str(root)!r} is no folder and no .csv file; {way}")
    inner = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() == stem.lower()]
    beside = root / stem not in inner and spelled_alike(root, stem)
    folder = root if beside else _one_of(inner, root / stem) or root
    if not spelled_alike(folder, stem):
        known = next((stem[: -len(end)] for end in INTERACTIONS.values() if stem.lower().endswith(end)), None)
        hint = f"; the name of a data set has no ending: --dataset={known}" if known else ""
        raise Problem(f"data_path: neither {root / stem} nor {root} holds files called {stem}.*{hint}")
    return folder, stem


def spelled_alike(folder: Path, stem: str) -> list[Path]:
    """The files `<stem>.*` of a folder, whatever the case of their stem, in the order of their names."""
    return [p for p in sorted(folder.iterdir()) if not p.is_dir() and p.name.lower().startswith(f"{stem.lower()}.")]


def _one_of(found: list[Path], wanted: Path, *, say: bool = True) -> Path | None:
    """`wanted` itself where it is among the found, else the only one found, and the log says so (once: `say`).

    Problem when there are several others: which of them is meant only the user knows.
    """
    if wanted in found:
        return wanted
    if len(found) > 1:
        names = " and ".join(str(p) for p in found)
        raise Problem(f"{wanted}: not there, but {names}; write the name as it is spelled or rename one of them")
    if found and say:
        log.info(f"{wanted}: not there, {found[0]} is read in its place")
    return found[0] if found else None


def find_file(folder: Path, stem: str, ending: str, *, say: bool = True) -> Path | None:
    """The file `<stem><ending>`, or the only one whose name differs from it in case."""
    name, there = f"{stem}{ending}", spelled_alike(folder, stem)
    found = _one_of([p for p in there if p.name.lower() == name.lower()], folder / name, say=say)
    check_unpacked([] if found else there, [name])
    return found


def check_unpacked(there: list[Path], names: Collection[str]) -> None:
    """Problem where one of some files is there, but packed."""
    for path in there:
        if path.suffix.lower() in PACKED and path.stem.lower() in {name.lower() for name in names}:
            raise Problem(f"{path}: is packed; unpack it: {PACKED[path.suffix.lower()]} {path}")


def detect(folder: Path, stem: str) -> str:
    names = {layout: f"{stem}{ending}" for layout, ending in INTERACTIONS.items()}
    there = spelled_alike(folder, stem)
    if found := [k for k, name in names.items() if any(p.name.lower() == name.lower() for p in there)]:
        if others := [names[k] for k in found[1:]]:
            told = f"{names[found[0]]} is read, not {', '.join(others)}; data_format chooses"
            log.warning(f"{folder}: holds the data set in several layouts: {told}")
        return found[0]
    check_unpacked(there, names.values())
    raise Problem(f"{folder}: found none of {', '.join(names.values())}; set data_format or add the file")


def need_file(folder: Path, stem: str, ending: str) -> Path:
    path = find_file(folder, stem, ending)
    if path is None:
        raise Problem(f"{folder / (stem + ending)}: no such file")
    return path


def find_embedding(folder: Path, stem: str) -> Path | None:
    pattern = re.compile(re.escape(stem) + r"\.emb.*\.npy", re.IGNORECASE)
    found = [p for p in spelled_alike(folder, stem) if pattern.fullmatch(p.name)]
    if len({p.name.lower() for p in found}) > 1:
        names = ", ".join(p.name for p in found)
        raise Problem(f"{folder}: several embeddings ({names}); choose one with semantic_emb_path")
    own = [p for p in found if p.name.startswith(f"{stem}.")]
    return own[0] if own else _one_of(found, folder / f"{stem}.emb*.npy")


def json_lines(path: Path, parse: Callable[[str], Any] = parse_json) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line that is not empty."""
    for number, line in text_lines(path):
        if line.strip():
            try:
                yield number, parse(line)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as e:  # also a number of thousands of digits
                raise Problem(f"{path}, line {number}: not readable as JSON ({_why(line.strip(), e)})") from None


def _why(line: str, e: BaseException) -> str:
    """Why a line is no JSON, as far as its form tells."""
    if line in ("[", "{"):
        return "a value over several lines; write one a line: jq -c '.[]?' FILE"
    if line.endswith(","):
        return "it ends in a comma; leave that out: sed 's/,$//' FILE"
    if line.startswith(("{'", "['")) and not isinstance(e, SyntaxError):  # of metadata that Python printed
        return "quoted by ' as Python prints it; write it by json.dumps"
    return "several values in a line; write one a line: jq -c . FILE" if "Extra data" in str(e) else shortened(e)
