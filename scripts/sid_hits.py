"""Hit rates of semantic IDs that a language model generated elsewhere.

  python scripts/sid_hits.py FILE.jsonl MAP [--k 20,100,500,1000] [--codes 8192] [--json OUT]

FILE has a line a sample: `answer`, item ids separated by semicolons or a SID, and `_generated_text_` or
`_generated_new_text_`, SIDs as texts, best first (C12C8200C16390 as FORGE spells them, or <a_12><b_8><c_6>; --codes: of
a level in the former). MAP says whose SIDs these are: FORGE's .csv, or an index.json whose keys are item ids.
HR@K is |first K items and answer| / |answer|, mean over samples. Items of a SID stand in the order of MAP, and an item
counts where it stands first. An answer that is a SID stands for its first item. A line that cannot be read is a miss.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import settings
from readers import forge
from utils import Problem, as_command, log, log_to, parse_json, quoted, read_json, regular_file, write_json

OURS = re.compile(r"<[a-z]+_(\d+)>")
TEXTS = ("_generated_text_", "_generated_new_text_")
Sid = tuple[int, ...]


def read_map(path: Path) -> dict[Sid, list[str]]:
    """Items of each SID, in the file's order."""
    found: dict[Sid, list[str]] = {}
    for item, sid in entries(path):
        found.setdefault(sid, []).append(item)
    if not found:
        raise Problem(f"{path}: holds no SID; name FORGE's .csv or an index.json")
    return found


def entries(path: Path) -> Iterable[tuple[str, Sid]]:
    if path.suffix.lower() != ".json":
        return [(item, sid) for item, sid in forge.sids(path) if sid is not None]
    raw = read_json(path)
    if not isinstance(raw, dict) or not all(isinstance(row, list) for row in raw.values()):
        raise Problem(f'{path}: expected {{"item": ["<a_12>", ...], ...}}')
    return [(item, tuple(map(int, OURS.findall("".join(map(str, row)))))) for item, row in raw.items()]


def sid_of(text: str, codes: int) -> Sid | None:
    """The SID that a text spells; None where it spells none, or more than one."""
    if OURS.search(text):
        return tuple(map(int, OURS.findall(text)))
    spoken = forge.spoken(text, codes)
    return spoken[0] if spoken is not None and len(spoken) == 1 else None


def read_sample(line: str, items: dict[Sid, list[str]], codes: int) -> tuple[set[str], list[Sid | None]] | None:
    """(items of the answer, SIDs that were generated); None where the line cannot be read."""
    try:
        row = parse_json(line)
    except (ValueError, RecursionError):
        return None
    texts = next((row[key] for key in TEXTS if key in row), None) if isinstance(row, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    answer = str(row.get("answer", "")).strip()
    sid = sid_of(answer, codes)
    named = {i.strip() for i in answer.split(";") if i.strip()} if sid is None else {*items.get(sid, [answer])[:1]}
    return (named, [sid_of(text, codes) for text in texts]) if named else None


def measured(path: Path, items: dict[Sid, list[str]], cuts: list[int], codes: int) -> dict[str, Any]:
    """Hit rates, and how much of the file they are made of."""
    hits, lines, beams, valid, longest, unread = [0.0] * len(cuts), 0, 0, 0, 0, list[int]()
    with regular_file(path).open(encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            lines += 1
            if (sample := read_sample(line, items, codes)) is None:
                unread.append(number)
                continue
            answer, sids = sample
            known = [items[sid] for sid in sids if sid in items]
            ranked = list(dict.fromkeys(item for group in known for item in group))
            hits = [h + len(answer.intersection(ranked[:k])) / len(answer) for h, k in zip(hits, cuts, strict=True)]
            beams, valid, longest = beams + len(sids), valid + len(known), max(longest, len(ranked))
    if not lines:
        raise Problem(f"{path}: is empty; name a file with a line a sample")
    if unread:
        log.warning(f"{path}: {len(unread)} of {lines} lines cannot be read and count as misses, first {unread[0]}")
    if short := [k for k in cuts if k > longest]:
        log.warning(f"the longest list has {longest} items, so HR@{short[0]} is HR@{longest}")
    rates = {f"hr@{k}": h / lines for h, k in zip(hits, cuts, strict=True)}
    return {**rates, "samples": lines, "unreadable": len(unread), "valid_share": valid / max(beams, 1)}


def run(argv: list[str]) -> dict[str, Any]:
    """The command; prints all figures and returns them."""
    files, given, _ = settings.command(argv, {}, ["k", "codes", "json"])
    if len(files) != 2:
        raise Problem(f"sid_hits: name a file of generations and a map of SIDs, not {quoted(' '.join(files))}")
    cuts = settings.coerce(list[int], given.get("k", "20,100,500,1000"), "k", {"ge": 1})
    codes = settings.coerce(int, settings.parse_yaml(given.get("codes", "8192")), "codes", {"ge": 1})
    log_to(None, main=True)
    found = measured(Path(files[0]), read_map(Path(files[1])), sorted(cuts), codes)
    for name, value in found.items():
        log.info(f"{name:12} {value:.4f}" if isinstance(value, float) else f"{name:12} {value}")
    if "json" in given:
        write_json(Path(given["json"]), found)
    return found


if __name__ == "__main__":
    as_command(__doc__, run)
