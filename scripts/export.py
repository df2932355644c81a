"""A checkpoint as a folder for others: safetensors, config.json, SIDs, items and a model card.

  python scripts/export.py myckpt/.../best_model.pth --out DIR

DIR goes wherever a checkpoint does: serve.loaded.load(DIR), main.py recommend --checkpoint DIR, scripts/serve.py DIR.
Paths of this machine are left out of it. `hf upload OWNER/NAME DIR` puts it on the Hugging Face Hub.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import settings
from serve.card import export
from utils import Problem, as_command, log, log_to, whole_folder


def run(argv: list[str]) -> Path:
    """The command; returns the folder."""
    words, given, _ = settings.command(argv, {}, ["out"])
    if len(words) != 1 or "out" not in given:
        raise Problem("export: name one checkpoint and --out DIR, as in myckpt/.../best_model.pth --out DIR")
    out = Path(given["out"])
    if out.exists():
        raise Problem(f"--out: {out} is there already; choose another name")
    if not out.parent.is_dir():
        raise Problem(f"--out: the folder {out.parent} is not there; make it first")
    with whole_folder(out) as draft:
        items = export(words[0], draft)
    size = sum(f.stat().st_size for f in out.iterdir())
    log.info(f"{out}: {items} items, {size:,} bytes; its README.md is the model card")
    return out


if __name__ == "__main__":
    log_to(None, main=True)
    as_command(__doc__, run)
