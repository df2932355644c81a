"""Released files from the Hugging Face Hub, checked by size and hash.

The client goes on where a connection broke; a command that was stopped fetches whole files only once.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils import Problem, log, quoted, shortened

OWNER = "junchenfu"  # of the released data and tokenizers: a name without an owner is one of theirs
KINDS = ("dataset", "model")


def download(repository: str, out: Path, endpoint: str | None = None) -> list[Path]:
    """Fetch all files of a repository into a folder; one that is whole there already is not fetched again.

    repository: OWNER/NAME, or NAME of the released ones. Problem when it cannot be reached or a file is not what the
    hub says it is; what has come so far stays for the next attempt.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    name = repository if "/" in repository else f"{OWNER}/{repository}"
    api = HfApi(endpoint=endpoint)
    info: Any = None
    kind = ""
    for kind in KINDS:
        with asking(name, kind, out), contextlib.suppress(RepositoryNotFoundError):
            info = api.repo_info(name, repo_type=kind, files_metadata=True, timeout=20)
            break
    if info is None:
        raise Problem(f"{name}: no such repository on the hub (or not a public one); write OWNER/NAME")
    paths = []
    for file in info.siblings:
        path = out / file.rfilename
        if not path.resolve().is_relative_to(out.resolve()):
            raise Problem(f"{name}: its file {quoted(file.rfilename)} would lie outside {out}")
        if not (path.is_file() and fault(path, file) is None):
            with asking(name, kind, out):
                hf_hub_download(name, file.rfilename, repo_type=kind, revision=info.sha, local_dir=out,
                                endpoint=endpoint, force_download=path.is_file())  # fmt: skip
        if found := fault(path, file):
            path.unlink()
            raise Problem(f"{path}: {found}; it was removed, the same command fetches it again")
        log.info(f"{path}: {path.stat().st_size:,} bytes, as published at {info.sha[:12]}")
        paths.append(path)
    return paths


WEIGHTS = (
    "*.json",
    "*.txt",
    "*.jinja",
    "*.model",
    "*.safetensors",
    "tokenizer*",
    "*/config.json",
    "*/*.safetensors",
)  # no pickles


def snapshot(key: str, name: str, revision: str | None, way: str = "") -> Path:
    """The folder of a model OWNER/NAME, from the hub or its cache; key: the option that names it; way: a better one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        with asking(name, "model", Path(name).name):
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(WEIGHTS)))
    except RepositoryNotFoundError:
        raise Problem(f"{key}: {name} is not on the hub (or not public); write OWNER/NAME or name a folder") from None
    except Problem as e:
        raise Problem(f"{key}: {way}{e}, then --{key}={Path(name).name}") from None


@contextlib.contextmanager
def asking(name: str, kind: str, out: str | Path) -> Iterator[None]:
    """Say what to fetch where, when the hub does not deliver; that a repository is not there is for the caller."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError:
        raise
    except Exception as e:  # of the client, of what it sends its requests with, of the file system
        reason = shortened(" ".join(str(e).split()) or type(e).__name__, 160)
        where = f" --repo-type {kind}" if kind != "model" else ""
        raise Problem(
            f"{name}: not to be had from the hub ({reason}); the same command goes on where it stopped, or fetch it "
            f"elsewhere by `hf download {name}{where} --local-dir {out}` and bring that folder here as {out}"
        ) from None


def fault(path: Path, file: Any) -> str | None:
    """What differs between a file and what the hub says of it: its size, its SHA-256 or its git hash."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size} bytes, published are {file.size}"
    with path.open("rb") as f:
        if file.lfs is not None:
            return None if hashlib.file_digest(f, "sha256").hexdigest() == file.lfs.sha256 else "another SHA-256"
        if file.blob_id is not None:
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while chunk := f.read(1 << 20):
                blob.update(chunk)
            return None if blob.hexdigest() == file.blob_id else "another git hash"
    return None
