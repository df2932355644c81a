"""Content embeddings for the items of a data set: DIR/NAME/NAME.emb-<model>.npy, a row a line of NAME.items.jsonl.

  python scripts/embed_items.py DIR/NAME                                      with all-MiniLM-L6-v2
  python scripts/embed_items.py DIR/NAME --model OWNER/NAME --fields title,brand [--key=value ...]
  python scripts/embed_items.py DIR/NAME --out OTHER                          where DIR/NAME cannot be written to

What was encoded stays beside, in NAME.embed-cache: a run that was stopped goes on, new items cost only themselves. The
folder may be removed. Models of sentence-transformers need: pip install -r requirements-data.txt
"""

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import torch

import settings
from readers.encoders import Cache, EmbedOptions, embed, identity, locate, open_encoder
from readers.files import find_file
from readers.texts import digest_of, read_texts
from utils import Problem, as_command, digest, log, log_to, read_json, write_array, write_json

KINDS = {"embeddings": EmbedOptions}


def run(argv: list[str]) -> None:
    """The command: embeddings of one data set's items, beside its other files."""
    folders, named, config = settings.command(argv, KINDS, ["out"])
    if len(folders) != 1:
        raise Problem("embed_items.py: needs one data set, DIR/NAME; --help shows how")
    cfg = config[EmbedOptions]
    log_to(None, main=True)
    folder = Path(folders[0])
    items = read_texts(items_of(folder), cfg.fields, cfg.template)
    place, revision = locate(cfg.model, cfg.revision)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = identity(cfg, place, revision, device)
    told = {"fields": cfg.fields, "template": cfg.template}
    card = {**made, **told, "items": len(items.ids), "texts": digest_of(items.texts)}
    label = re.sub(r"[^a-z0-9]+", "-", Path(cfg.model).name.lower()).strip("-") or "model"
    target = Path(named.get("out", folder))
    out = target / f"{folder.name}.emb-{label}.npy"
    if done(out, card):
        log.info(f"{out}: is there already, of these texts and this model")
        return
    cache, begin = Cache(cache_folder(target, folder.name) / digest(made)), time.perf_counter()
    known = len(cache.found)
    content = embed(items.texts, lambda: open_encoder(place, cfg, device), cache)
    width, seconds = content.shape[1], time.perf_counter() - begin
    write_array(out, content)
    write_json(out.with_suffix(".json"), {**card, "width": width, "file": digest(out)})
    log.info(f"{len(cache.found) - known} texts encoded to {width} numbers in {seconds:.1f} s on {device.type}")
    log.info(f"{out}: {list(content.shape)}, {content.dtype}")
    if target != folder:
        log.info(f"training reads them by --semantic_emb_path={out}")
    if others := [p.name for p in sorted(folder.glob(f"{folder.name}.emb*.npy")) if p != out]:
        log.warning(f"{folder}: {', '.join(others)} as well; choose by --semantic_emb_path={out}, or remove the others")


def items_of(folder: Path) -> Path:
    """The file of a data set's items; Problem where there is none."""
    path = find_file(folder, folder.name, ".items.jsonl") if folder.is_dir() else None
    if path is None:
        raise Problem(f"{folder}: no {folder.name}.items.jsonl there; scripts/prepare_data.py makes such a folder")
    return path


def cache_folder(target: Path, name: str) -> Path:
    """The folder of the cache, which can be written to; Problem where it cannot."""
    cache = target / f"{name}.embed-cache"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as e:
        raise Problem(f"{target}: cannot be written to ({e.strerror}); name another folder by --out") from None


def done(out: Path, card: dict[str, Any]) -> bool:
    """Are these the embeddings that are there? Problem when others are: they may belong to a run."""
    if not out.exists():
        return False
    beside = out.with_suffix(".json")
    old = read_json(beside) if beside.is_file() else {}
    if isinstance(old, dict) and {k: old.get(k) for k in card} == card and old.get("file") == digest(out):
        return True
    differs = [k for k in card if not isinstance(old, dict) or old.get(k) != card[k]]
    raise Problem(
        f"{out}: is there already, made otherwise ({', '.join(differs) or 'changed since'}); remove or rename it"
    )


if __name__ == "__main__":
    as_command(f"{__doc__}\n{settings.help_text(KINDS)}", run)
