"""FORGE's published files as files of ours.

  python scripts/forge_data.py embeddings reconstruct_data_mask.npz --out DIR/NAME   items and embeddings
  python scripts/forge_data.py pairs contrastive_data_mask.npz --out DIR/NAME [--ids ids.npy]   and pairs of rows
  python scripts/forge_data.py sids sids.csv --out DIR/NAME                          items and NAME.index.json
  python scripts/forge_data.py sequences TRAIN.csv VALID.csv TEST.csv --out DIR/NAME [--codes 8192] [--sids sids.csv]

`sequences` makes a data set whose items are SIDs, in the .jsonl layout, which every method reads (--data_format=jsonl).
--codes: of a level. --sids: whose SIDs the item ids are that a test file has as answers. docs/forge.md has the layouts.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np

import settings
from readers import forge
from readers.dataset import SPLITS
from sids.files import letters
from utils import Problem, as_command, log, log_to, quoted, whole_folder, write_array, write_json


def write_items(folder: Path, ids: list[str]) -> None:
    with (folder / f"{folder.name}.items.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(json.dumps({"item_id": i}) + "\n" for i in ids)


def items_and_embeddings(files: list[Path], given: dict[str, str], folder: Path, *, with_pairs: bool) -> None:
    ids = None
    if "ids" in given:
        try:
            ids = np.load(given["ids"], allow_pickle=False)
        except (OSError, ValueError) as e:
            raise Problem(f"--ids: {given['ids']} is not readable as .npy of numbers ({e})") from None
    found = forge.embeddings(files[0], ids, folder / f"{folder.name}.emb-forge.npy")
    write_items(folder, [str(i) for i in found.tolist()])
    log.info(f"{len(found)} items with embeddings")
    if with_pairs:
        rows = forge.pairs(files[0], found)
        write_array(folder / f"{folder.name}.pairs.npy", rows)
        log.info(f"{len(rows)} pairs")


def sids(files: list[Path], given: dict[str, str], folder: Path) -> None:
    ids: list[str] = []
    index: dict[str, list[str]] = {}
    without = 0
    for item, codes in forge.sids(files[0]):
        if codes is None:
            without += 1
            continue
        index[str(len(ids))] = [f"<{letters(place)}_{code}>" for place, code in enumerate(codes)]
        ids.append(item)
    if not ids or len(set(ids)) != len(ids):
        raise Problem(f"{files[0]}: {'an item stands there twice' if ids else 'no item has a SID'}")
    write_items(folder, ids)
    write_json(folder / f"{folder.name}.index.json", index)
    log.info(f"{len(ids)} items with SIDs, {without} without are left out")


def sequences(files: list[Path], given: dict[str, str], folder: Path) -> None:
    """FORGE's sequences of the three parts as .jsonl, a SID being an item; --sids: those of answers by item id."""
    if len(files) != len(SPLITS):
        raise Problem(f"sequences: needs the files of {', '.join(SPLITS)}, in this order")
    codes = settings.coerce(int, settings.parse_yaml(given.get("codes", "8192")), "codes", {"ge": 1})
    known = dict(forge.sids(Path(given["sids"]))) if "sids" in given else {}
    number: dict[tuple[int, ...], int] = {}
    for part, path in zip(SPLITS, files, strict=True):
        rows = 0
        with (folder / f"{folder.name}.{part}.jsonl").open("w", encoding="utf-8") as f:
            for row in forge.sequences(path, codes):
                for target in row.answer or answers(path, row, known):
                    for sid in (*row.history, target):
                        number.setdefault(sid, len(number) + 1)
                    f.write(json.dumps({"inter_history": [*map(name, row.history)], "target_id": name(target)}) + "\n")
                    rows += 1
        log.info(f"{part}: {rows} samples")
    write_json(folder / f"{folder.name}.emb_map.json", {"[PAD]": 0, **{name(sid): i for sid, i in number.items()}})
    log.info(f"{len(number)} different SIDs are the items")


def answers(path: Path, row: forge.Sequence, known: dict[str, tuple[int, ...] | None]) -> list[tuple[int, ...]]:
    """The SIDs of the item ids of an answer, each once."""
    found = {sid for i in row.raw if (sid := known.get(i.strip())) is not None}
    if not found:
        why = "has no SID in the file of --sids" if known else "is an item id; name the file of its SID by --sids"
        raise Problem(f"{path}, line {row.line}: {quoted(row.raw[0])} {why}")
    return sorted(found)


def name(sid: tuple[int, ...]) -> str:
    return "-".join(map(str, sid))


COMMANDS: dict[str, Callable[[list[Path], dict[str, str], Path], None]] = {
    "embeddings": lambda *a: items_and_embeddings(*a, with_pairs=False),
    "pairs": lambda *a: items_and_embeddings(*a, with_pairs=True),
    "sids": sids,
    "sequences": sequences,
}


def run(argv: list[str]) -> None:
    """The command; the folder of --out appears whole or not at all."""
    words, given, _ = settings.command(argv, {}, ["out", "ids", "codes", "sids"])
    if not words or words[0] not in COMMANDS or len(words) < 2 or "out" not in given:
        raise Problem(f"forge_data: needs one of {', '.join(COMMANDS)}, a file and --out DIR/NAME")
    own = {"sids": ("out",), "sequences": ("out", "codes", "sids")}.get(words[0], ("out", "ids"))
    if foreign := [key for key in given if key not in own]:
        raise Problem(f"--{foreign[0]}: {words[0]} has no such option")
    if words[0] != "sequences" and len(words) > 2:
        raise Problem(f"forge_data: {words[0]} reads one file, not {quoted(words[2])} as well")
    out = Path(given["out"])
    if not settings.plain_name(out.name) or out.exists():
        raise Problem(f"--out: {out} is there already, or no plain name; choose another DIR/NAME")
    log_to(None, main=True)
    with whole_folder(out) as draft:
        COMMANDS[words[0]]([Path(w) for w in words[1:]], given, draft)
    log.info(f"written: {out}")


if __name__ == "__main__":
    as_command(__doc__, run)
