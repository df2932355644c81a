"""A checkpoint as a folder for others: safetensors, config.json, SIDs, items and a model card; or onto the hub.

  python scripts/export.py myckpt/.../best_model.pth --out DIR [--push OWNER/NAME]

DIR goes wherever a checkpoint does: serve.loaded.load(DIR), main.py recommend --checkpoint DIR, scripts/serve.py DIR.
Paths of this machine are left out of it. --push uploads it as a private repository of the Hugging Face Hub (log in with
`hf auth login`); serve.hub.HubModel.from_pretrained("OWNER/NAME") fetches one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import settings
from serve.hub import HubModel
from utils import Problem, as_command, log, log_to, one_line, quoted, whole_folder


def run(argv: list[str]) -> Path:
    """The command; returns the folder."""
    words, given, _ = settings.command(argv, {}, ["out", "push"])
    if len(words) != 1 or "out" not in given:
        raise Problem("export: name one checkpoint and --out DIR, as in myckpt/.../best_model.pth --out DIR")
    out = Path(given["out"])
    if out.exists():
        raise Problem(f"--out: {out} is there already; choose another name")
    if not out.parent.is_dir():
        raise Problem(f"--out: the folder {out.parent} is not there; make it first")
    model = HubModel(words[0])
    with whole_folder(out) as draft:
        model.save_pretrained(draft)
    size = sum(f.stat().st_size for f in out.iterdir())
    log.info(f"{out}: {len(model.loaded.items)} items, {size:,} bytes; its README.md is the model card")
    if "push" in given:
        push(model, given["push"])
    return out


def push(model: HubModel, name: str) -> None:
    try:
        where = model.push_to_hub(name, private=True)
    except Exception as e:  # of the client and of what it sends its requests with
        raise Problem(
            f"--push: {quoted(name)} was not uploaded ({one_line(e)}); log in with `hf auth login`, or upload the "
            f"folder elsewhere by `hf upload {name} DIR`"
        ) from None
    log.info(f"uploaded: {where}")


if __name__ == "__main__":
    log_to(None, main=True)
    as_command(__doc__, run)
