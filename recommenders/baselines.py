"""The two baselines that need no training: popularity and content neighbours.

Shape letters: B users, S history length, N items, D embedding width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recommenders.items import with_others
from recommenders.protocol import TopK

RECENT = 5  # items of the history that make up the content query


class Baseline(nn.Module):
    """A fixed score for every item; subclasses say which."""

    free_length = 100
    item_tokens = None

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items

    def scores(self, history_BS: Tensor) -> Tensor:
        raise AssertionError("a baseline says how it scores")

    def groups(self) -> dict[str, Tensor]:
        return {}

    @torch.inference_mode()
    def recommend(
        self, history_BS: Tensor, k: int, excluded_BS: Tensor | None = None, candidates_M: Tensor | None = None
    ) -> TopK:
        """The k best items, best first; equal scores in catalogue order."""
        score_BN = self.scores(history_BS)
        excluded_BS = with_others(excluded_BS, candidates_M, len(score_BN), self.n_items)
        if excluded_BS is not None:
            score_BN = F.pad(score_BN, (1, 0)).scatter(1, excluded_BS, -torch.inf)[:, 1:]
        score_BK, place_BK = score_BN.sort(dim=1, descending=True, stable=True)
        item_BK = (place_BK + 1).masked_fill(score_BK == -torch.inf, 0)
        return TopK(item_BK[:, :k], score_BK[:, :k])


class Popularity(Baseline):
    """How often an item occurs in the training part."""

    def __init__(self, count_N1: np.ndarray) -> None:
        super().__init__(len(count_N1) - 1)
        self.register_buffer("count_N", torch.from_numpy(count_N1[1:]).float())

    def scores(self, history_BS: Tensor) -> Tensor:
        return self.get_buffer("count_N").expand(len(history_BS), -1)


class Content(Baseline):
    """Cosine with the mean embedding of the last five items.

    In float64, then rounded: items with equal embeddings tie exactly, whatever the batch.
    """

    def __init__(self, content_ND: np.ndarray) -> None:
        super().__init__(len(content_ND))
        self.register_buffer("content_ND", torch.from_numpy(np.array(content_ND, np.float64)))
        self.register_buffer("unit_ND", F.normalize(self.get_buffer("content_ND"), dim=1))

    def scores(self, history_BS: Tensor) -> Tensor:
        content_ND = self.get_buffer("content_ND")
        recent_BS = history_BS[:, -RECENT:]
        held_BS1 = (recent_BS > 0).unsqueeze(-1)
        sum_BD = (content_ND[(recent_BS - 1).clamp(min=0)] * held_BS1).sum(1)
        return (F.normalize(sum_BD, dim=1) @ self.get_buffer("unit_ND").T).float()
