"""The one place that knows every method by name: a new one is a file and a line here."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from methods import diffsasrec, floors, sasrec, semantic
from methods.items import n_items
from readers import Dataset, read_embeddings
from settings import Config
from utils import Problem, log

# trained by the trainer
TRAINED: dict[str, Callable[[Config, Dataset], Any]] = {
    "diger": semantic.diger,
    "two_stage": semantic.two_stage,
    "sasrec": lambda cfg, data: sasrec.SASRec(cfg, data.n_items),
    "diffsasrec": lambda cfg, data: diffsasrec.DiffSASRec(cfg, data.n_items),
    "diffsasrec_sft": diffsasrec.finetuned,
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


def check_content(cfg: Config, data: Dataset) -> Dataset:
    """The data as the method may use them: content embeddings that it needs must be what the options say
    (Problem); unusable ones beside a method that needs none are left out with a warning.
    """
    if cfg.run.method in CONTENT:
        semantic.check_width(cfg, data, read_embeddings(data))
    elif data.embedding_path is not None:
        try:
            read_embeddings(data)
        except Problem as e:
            log.warning(f"{e}; {cfg.run.method} needs no embeddings and goes on without the content floor")
            return replace(data, embedding_path=None)
    return data


def floors_of(data: Dataset) -> list[str]:
    """The floors that the data allow: content neighbours need embeddings."""
    return [name for name in FLOORS if name != "content" or data.embedding_path is not None]


def check(name: str) -> None:
    """Problem when there is no such method to train."""
    if name in FLOORS:
        raise Problem(f"method: {name!r} has nothing to train; every run prints its figures beside its own")
    if name not in TRAINED:
        raise Problem(f"method: {name!r} is not one of {', '.join(TRAINED)}")
