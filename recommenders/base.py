"""What every trained model offers: the trainer, evaluation and search know no more of a model than this.

Shape letters: B users, S history length, k list length, M items that may be recommended.
"""

import contextlib
from typing import Any

import numpy as np
from torch import Tensor, nn

from data import Batch
from recommenders.protocol import AllReduce, Autocast, Logs, Targets, TopK


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are not frozen."""
    return [p for p in module.parameters() if p.requires_grad]


class Model(nn.Module):
    """A recommender that learns. `forward` and `recommend` make one; all else has a default."""

    n_items: int
    sequences = False  # does it learn from whole sequences, not from a sample a position?
    targets: Targets = "one"  # what it predicts of a sample: its target, every next item, every item
    tokens_per_item = 1  # of a history, for the token budget
    pretrained = False  # does it come trained? Then it is validated before the first epoch
    free_length = 0  # lists of this length cost no more than shorter ones

    @property
    def item_tokens(self) -> np.ndarray | None:
        """Tokens of each item, [N], for budgets of tokens; None for models over items."""
        return None

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        """(loss of a batch, figures to average over the epoch)."""
        raise AssertionError("a model has a loss")

    def recommend(
        self, history_BS: Tensor, k: int, excluded_BS: Tensor | None = None, candidates_M: Tensor | None = None
    ) -> TopK:
        """k items for each history (item numbers, 0 pads on the left), best first.

        excluded_BS: items never returned, 0 excludes nothing; candidates_M: the only items that may be returned, None
        for the whole catalogue.
        """
        raise AssertionError("a model recommends")

    def groups(self) -> dict[str, Tensor]:
        """Further ways to count a hit: name -> group of each item, [N + 1], -1 for none (and for padding)."""
        return {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters by owner, each in one group: name and params. Where they differ from the trainer's own also lr,
        weight_decay, clip (false: not clipped), moves (epoch -> do they move in it?), pauses (true: what the
        optimizer remembers of them rests with them).
        """
        return [{"name": "rec", "params": list(self.parameters())}]

    def check_gradient(self, *parts: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
        """Figures of some samples before an epoch, in parts that weigh together 1; Problem where a gradient is cut."""
        return {}

    def after_step(self, all_reduce: AllReduce) -> None:
        """Once per optimizer step, on every process alike."""

    def refresh(self) -> dict[str, Any]:
        """After each epoch: bring up to date whatever depends on the weights; figures to report."""
        return self.figures()

    def figures(self) -> dict[str, float]:
        """Figures of the model as it is, for the results."""
        return {}

    def resting(self) -> list[str]:
        """Names in the state that training never changes and whoever builds the model reads again from a file."""
        return []

    def announce(self, reachable: dict[str, float]) -> None:
        """Log before training what will decide its course; reachable: how far a parameter of a group can move."""
