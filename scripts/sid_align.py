"""The SIDs of a refreshed tokenizer in the names of the old one, so that a trained recommender can go on from them.

  python scripts/sid_align.py old.index.json new.index.json [--output aligned.index.json]

Item i of the old file is item i of the new one; the new one may have more. Says how many items keep their codes, level
by level, and their whole SID. With --output the renamed SIDs are written, and beside them (.codes.json) the old name of
each new code, level by level, for whoever goes on to encode with the new tokenizer.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import settings
from sids.align import Aligned, align
from sids.files import read_index, to_index
from utils import Problem, as_command, log, log_to, write_json


def run(argv: list[str]) -> Aligned:
    """Match two index files, say how it went, write the renamed SIDs where asked to."""
    names, given, _ = settings.command(argv, {}, ["output"])
    if len(names) != 2:
        raise Problem("sid_align: name two files, old.index.json and new.index.json")
    output = Path(given["output"]) if "output" in given else None
    beside = None if output is None else output.with_name(f"{output.name.removesuffix('.index.json')}.codes.json")
    if there := [p for p in (output, beside) if p is not None and p.exists()]:
        raise Problem(f"--output: {there[0]} is there already; choose another name")
    old, new = (read_index(Path(name)) for name in names)
    found = align(old, new)
    for level, (before, after) in enumerate(zip(found.agree_before, found.agree, strict=True), 1):
        log.info(f"codes alike up to level {level}: {after:.4f} of {old.n_items} items (without renaming {before:.4f})")
    log.info(f"whole SIDs kept: {found.kept:.4f}; {new.n_items - old.n_items} new items")
    if output is not None and beside is not None:
        write_json(output, to_index(found.sids))
        write_json(beside, {f"level_{i}": names_K.tolist() for i, names_K in enumerate(found.codes, 1)})
        log.info(f"SIDs: {output}, names of codes: {beside}")
    return found


if __name__ == "__main__":
    log_to(None, main=True)
    as_command(__doc__, run)
