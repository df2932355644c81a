"""The one place that knows every method by name: a new one is a file and a line here."""

from collections.abc import Callable
from typing import Any

from methods import floors, semantic
from readers import Dataset, read_embeddings
from settings import Config
from utils import Problem

# trained by the trainer
TRAINED: dict[str, Callable[[Config, Dataset], Any]] = {
    "diger": semantic.diger,
    "two_stage": semantic.two_stage,
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
}


def check(name: str) -> None:
    """Problem when there is no such method to train."""
    if name in FLOORS:
        raise Problem(f"method: {name!r} has nothing to train; every run prints its figures beside its own")
    if name not in TRAINED:
        raise Problem(f"method: {name!r} is not one of {', '.join(TRAINED)}")
