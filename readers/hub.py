"""Models from the Hugging Face Hub or its cache."""

from pathlib import Path

from utils import Problem, shortened

WEIGHTS = ["*.json", "*.txt", "*.jinja", "*.model", "*.safetensors", "tokenizer*", "*/config.json", "*/*.safetensors"]


def snapshot(key: str, name: str, revision: str | None, way: str = "") -> Path:
    """The folder of a model OWNER/NAME without its pickles, from the hub or its cache; Problem where it cannot be had.

    key: the option that names it; way: a better one.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WEIGHTS))
    except RepositoryNotFoundError:
        raise Problem(f"{key}: {name} is not on the hub (or not public); write OWNER/NAME or name a folder") from None
    except Exception as e:  # of the client, of what it sends its requests with, of the file system
        reason, out = shortened(" ".join(str(e).split()) or type(e).__name__, 160), Path(name).name
        raise Problem(
            f"{key}: {way}{name}: not to be had from the hub ({reason}); the same command goes on where it stopped, or "
            f"fetch it elsewhere by `hf download {name} --local-dir {out}` and bring that folder here, then "
            f"--{key}={out}"
        ) from None
