"""The one place that knows every method by name: a new one is a file and a line here."""

from collections.abc import Callable
from typing import Any

from methods import diffsasrec, floors, sasrec, semantic
from methods.items import n_items
from readers import Dataset, read_embeddings
from settings import Config
from utils import Problem

# trained by the trainer
TRAINED: dict[str, Callable[[Config, Dataset], Any]] = {
    "diger": semantic.diger,
    "two_stage": semantic.two_stage,
    "sasrec": lambda cfg, data: sasrec.SASRec(cfg, data.n_items),
    "diffsasrec": lambda cfg, data: diffsasrec.DiffSASRec(cfg, data.n_items),
    "diffsasrec_sft": lambda cfg, data: diffsasrec.finetuned(cfg, data.catalogue.ids),
}

# need no training
FLOORS: dict[str, Callable[[Config, Dataset], Any]] = {
    "popularity": lambda cfg, data: floors.Popularity(data.popularity),
    "content": lambda cfg, data: floors.Content(read_embeddings(data)),
}

# rebuilt from a checkpoint's own figures, for evaluation and recommendation
RESTORED: dict[str, Callable[[Config, dict[str, Any]], Any]] = {
    "diger": semantic.restore_diger,
    "two_stage": semantic.restore_two_stage,
    "sasrec": lambda cfg, state: sasrec.SASRec(cfg, n_items(state)),
    "diffsasrec": lambda cfg, state: diffsasrec.DiffSASRec(cfg, n_items(state, extra=2)),
    "diffsasrec_sft": lambda cfg, state: diffsasrec.DiffSASRec(cfg, n_items(state, extra=2)),
}


# read the content embeddings
CONTENT = {"diger", "two_stage"}


def check_content(cfg: Config, data: Dataset) -> None:
    """Problem when the method reads content embeddings and they are not what the options say."""
    if cfg.run.method in CONTENT:
        semantic.check_width(cfg, data, read_embeddings(data))


def floors_of(data: Dataset) -> list[str]:
    """The floors that the data allow: content neighbours need embeddings."""
    return [name for name in FLOORS if name != "content" or data.embedding_path is not None]


def check(name: str) -> None:
    """Problem when there is no such method to train."""
    if name in FLOORS:
        raise Problem(f"method: {name!r} has nothing to train; every run prints its figures beside its own")
    if name not in TRAINED:
        raise Problem(f"method: {name!r} is not one of {', '.join(TRAINED)}")
