"""What users did with an item, beside what it is: vectors of behaviour joined to the content before it is quantized.

    x_v = [ unit(c_v - mean c) ; w unit(b_v - mean b) ]

c_v: content embedding, b_v: behaviour of item v, w: `behaviour_weight`; b_v is the row of a trained SASRec's item
table, or the spectrum of the training part's co-occurrence pairs. The vectors and the means are state of the
tokenizer, so that its checkpoint stands alone.

Shape letters: N items, D content width, V behaviour width, P pairs.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from layers import distance
from settings import option
from sids.pairs import PairOptions, Pairs, pairs_of
from sids.tokenizer import CodeOptions, Distances, Joined, Source, Tokenizer, mean_of
from utils import Contradiction, Problem

BESIDE = ("behaviour: pairs vectors",)


@dataclass(frozen=True, kw_only=True)
class BehaviourOptions(CodeOptions, PairOptions):
    behaviour: Literal["none", "pairs", "vectors"] = option(
        "none",
        "behaviour vectors joined to the content embeddings: none, from co-occurrence pairs of the training part, or "
        "the item vectors of a trained SASRec",
    )
    vectors_from: str | None = option(
        None, "best_model.pth of the sasrec run (same data and split) whose item vectors are used", path=True
    )
    behaviour_weight: float = option(
        1.0, "length of the behaviour vectors relative to the content embeddings, above 0", gt=0, needs=BESIDE
    )
    behaviour_width: int = option(
        128, "number of principal components of the behaviour vectors that are kept", ge=1, needs=BESIDE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors_from is not None and self.behaviour != "vectors":
            raise Contradiction(
                f"vectors_from: is read by behaviour: vectors alone, not {self.behaviour}; drop one of them",
                {"vectors_from": None}, {"behaviour": "vectors"},
            )  # fmt: skip


def side_width(cfg: CodeOptions) -> int:
    """Width of what stands beside the content; 0 for tokenizers that know none."""
    return cfg.behaviour_width if isinstance(cfg, BehaviourOptions) and cfg.behaviour != "none" else 0


class Side(nn.Module):
    """The behaviour of every item of a catalogue, ready to be joined."""

    mean_D: Tensor
    vector_NV: Tensor

    def __init__(self, cfg: BehaviourOptions, n_content: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.register_buffer("mean_D", torch.zeros(n_content))
        self.register_buffer("vector_NV", torch.zeros(0, cfg.behaviour_width))  # as many rows as it learns or loads

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        found = state_dict.get(f"{prefix}vector_NV")
        if isinstance(found, Tensor) and found.shape[1:] == self.vector_NV.shape[1:]:
            self.vector_NV = self.vector_NV.new_zeros(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def learn(self, source: Source, seed: int) -> None:
        """Take the means and the vectors; an item that the training part never shows has no behaviour, a zero row."""
        self.mean_D.copy_(mean_of(source.content_ND))
        known_N = source.count_N > 0
        if not known_N.any():
            raise Problem("behaviour: the training part holds no interaction; set behaviour: none")
        raw_NV = self._raw(source, seed).astype(np.float64)
        raw_NV -= raw_NV[known_N].mean(0)
        raw_NV[~known_N] = 0
        vector_NV = self.cfg.behaviour_weight * unit(components(raw_NV, self.cfg.behaviour_width))
        self.vector_NV = torch.from_numpy(vector_NV.astype(np.float32)).to(self.mean_D.device)

    def _raw(self, source: Source, seed: int) -> np.ndarray:
        if self.cfg.behaviour == "pairs":
            pairs = pairs_of(source.train, len(source.content_ND), self.cfg)
            return spectrum(pairs, len(source.content_ND), self.cfg.behaviour_width, seed)
        if source.vectors_NV is None:
            raise Problem("vectors_from: behaviour: vectors needs the best_model.pth of a sasrec run on these data")
        return source.vectors_NV

    def join(self, content_ND: np.ndarray) -> Joined:
        if len(content_ND) != len(self.vector_NV):
            raise Problem(
                f"behaviour: the tokenizer was trained with that of {len(self.vector_NV)} items, the catalogue has "
                f"{len(content_ND)}; pre-train again"
            )
        return Joined(content_ND, self.mean_D.cpu().numpy(), self.vector_NV.cpu().numpy())


class ContentTokenizer(Tokenizer):
    """What tokenizers share that may have behaviour beside their content."""

    def __init__(self, cfg: BehaviourOptions, n_input: int) -> None:
        """n_input: width of the content embeddings."""
        super().__init__()
        self.side = Side(cfg, n_input) if side_width(cfg) else None
        self.width = n_input + side_width(cfg)  # of what is quantized

    def seen(self, content_ND: np.ndarray) -> np.ndarray | Joined:
        """What is quantized, [N, width]: the content, or content and behaviour side by side."""
        return content_ND if self.side is None else self.side.join(content_ND)


def residual_distances(z_Nd: Tensor, books: list[Tensor]) -> Distances:
    """(rows [n], their codes on the first l levels [n, l]) -> distances of what is left to level l, [n, K]."""

    def of(rows: Tensor, prefix_nl: Tensor) -> Tensor:
        left = z_Nd[rows]
        for book, code in zip(books, prefix_nl.unbind(1), strict=False):
            left = left - book[code]
        return distance(left, books[prefix_nl.shape[1]])

    return of


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def components(x_NV: np.ndarray, width: int) -> np.ndarray:
    """The first principal components of centred rows, [N, width]: a rotation where none is left out."""
    if x_NV.shape[1] < width:
        raise Problem(f"behaviour_width: {width}, but the vectors have {x_NV.shape[1]} dimensions; lower it")
    _, axis_VV = np.linalg.eigh(x_NV.T @ x_NV)
    return x_NV @ axis_VV[:, ::-1][:, :width]


def spectrum(pairs: Pairs, n_items: int, width: int, seed: int) -> np.ndarray:
    """Item vectors [N, width] whose products approach the positive pointwise mutual information of the pairs.

    M_ij = max(0, ln n_ij n / (n_i n_j)), n_i = sum_j n_ij, n = sum_i n_i; M ~ U S U', vectors U sqrt(S) (Levy and
    Goldberg 2014).
    """
    from scipy.sparse import coo_array  # slow to import, and only this needs it
    from sklearn.utils.extmath import randomized_svd

    if min(len(pairs), n_items) <= width:
        raise Problem(f"behaviour_width: {width} is too wide for {len(pairs)} pairs of {n_items} items; lower it")
    both = np.concatenate([pairs.item_P2, pairs.item_P2[:, ::-1]]).T
    count = np.tile(pairs.count_P, 2).astype(np.float64)
    total_N = np.bincount(both[0], count, n_items)
    information = np.log(count * count.sum() / (total_N[both[0]] * total_N[both[1]]))
    matrix = coo_array((np.maximum(information, 0), (both[0], both[1])), shape=(n_items, n_items)).tocsr()
    left_NV, size_V, _ = randomized_svd(matrix, width, n_iter=4, random_state=seed)
    found: np.ndarray = left_NV * np.sqrt(size_V)
    return found
