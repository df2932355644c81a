"""The two baselines that need no training: popularity and content neighbours.

Shape letters: B users, S history length, N items, D embedding width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recommenders.items import in_few, with_others
from recommenders.protocol import TopK
from utils import Problem

RECENT = 5  # items of the history that make up the content query
MOST = 1 << 28  # numbers of embeddings that are compared exactly, in float64: 2 GiB, twice


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
        found = []
        for users in in_few(len(history_BS), self.n_items):
            score_BN = self.scores(history_BS[users])
            own_BS = None if excluded_BS is None else excluded_BS[users]
            if (others_BM := with_others(own_BS, candidates_M, len(score_BN), self.n_items)) is not None:
                score_BN = F.pad(score_BN, (1, 0)).scatter(1, others_BM, -torch.inf)[:, 1:]
            score_BK, place_BK = (x[:, :k] for x in score_BN.sort(dim=1, descending=True, stable=True))
            found.append(TopK((place_BK + 1).masked_fill(score_BK == -torch.inf, 0), score_BK))
        return TopK(*map(torch.cat, zip(*found, strict=True)))


class Popularity(Baseline):
    """How often an item occurs in the training part."""

    def __init__(self, count_N1: np.ndarray) -> None:
        super().__init__(len(count_N1) - 1)
        self.register_buffer("count_N", torch.from_numpy(count_N1[1:]).float())
        self.register_buffer("order_N", self.get_buffer("count_N").argsort(descending=True, stable=True) + 1)

    def recommend(
        self, history_BS: Tensor, k: int, excluded_BS: Tensor | None = None, candidates_M: Tensor | None = None
    ) -> TopK:
        """The first k of the one list that hold for all users, without what is excluded."""
        order_M = self.get_buffer("order_N")
        order_M = order_M if candidates_M is None else order_M[torch.isin(order_M, candidates_M)]
        item_M = order_M[: k + (0 if excluded_BS is None else excluded_BS.shape[1])]
        dead_BM = torch.zeros(len(history_BS), len(item_M) + 1, dtype=torch.bool, device=item_M.device)
        if excluded_BS is not None:
            place_N = torch.full((self.n_items + 1,), len(item_M), device=item_M.device)
            place_N[item_M] = torch.arange(len(item_M), device=item_M.device)
            dead_BM.scatter_(1, place_N[excluded_BS], True)
        place_BK = dead_BM[:, :-1].long().argsort(dim=1, stable=True)[:, :k]
        dead_BK, item_BK = dead_BM.gather(1, place_BK), item_M[place_BK]
        score_BK = self.get_buffer("count_N")[item_BK - 1]
        return TopK(item_BK.masked_fill(dead_BK, 0), score_BK.masked_fill(dead_BK, -torch.inf))


class Content(Baseline):
    """Cosine with the mean embedding of the last five items.

    In float64, then rounded: items with equal embeddings tie exactly, whatever the batch.
    """

    def __init__(self, content_ND: np.ndarray) -> None:
        """Problem where there are more than MOST numbers."""
        super().__init__(len(content_ND))
        if content_ND.size > MOST:
            items, width = content_ND.shape
            raise Problem(f"{items} embeddings of width {width} are too many for exact neighbours")
        self.register_buffer("content_ND", torch.from_numpy(np.array(content_ND, np.float64)))
        self.register_buffer("unit_ND", F.normalize(self.get_buffer("content_ND"), dim=1))

    def scores(self, history_BS: Tensor) -> Tensor:
        content_ND = self.get_buffer("content_ND")
        recent_BS = history_BS[:, -RECENT:]
        held_BS1 = (recent_BS > 0).unsqueeze(-1)
        sum_BD = (content_ND[(recent_BS - 1).clamp(min=0)] * held_BS1).sum(1)
        return (F.normalize(sum_BD, dim=1) @ self.get_buffer("unit_ND").T).float()
