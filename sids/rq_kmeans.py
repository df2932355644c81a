"""Residual k-means: level by level the nearest of K centres, the next level on what is left over.

The simplest residual quantizer, without a network: r_1 = x, r_{l+1} = r_l - C_l[i_l], C_l from k-means (faiss) on the
residuals of the catalogue.

Shape letters: N items, D embedding width, L levels, K codes of a level.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from layers import distance, kmeans
from settings import option
from sids.behaviour import BehaviourOptions, ContentTokenizer, residual_distances
from sids.tokenizer import Distances, Source, in_pieces


@dataclass(frozen=True, kw_only=True)
class RQKMeansOptions(BehaviourOptions):
    weights: Literal["uniform", "counts"] = option(
        "uniform", "weight of an item in training: all alike (uniform) or its training count (counts)"
    )
    kmeans_iters: int = option(100, "number of k-means iterations per level", ge=1)
    kmeans_start: Literal["random", "kmeans++", "greedy"] = option(
        "random",
        "initial centroids of a level: random items, k-means++, or the best of several k-means++ draws (greedy)",
    )


class RQKMeans(ContentTokenizer):
    Options: ClassVar[type[RQKMeansOptions]] = RQKMeansOptions
    cfg: RQKMeansOptions

    def __init__(self, cfg: RQKMeansOptions, n_input: int) -> None:
        super().__init__(cfg, n_input)
        self.cfg = cfg
        for level, k in enumerate(cfg.num_emb_list):
            self.register_buffer(f"centre_{level}", torch.zeros(k, self.width))

    def centres(self) -> list[Tensor]:
        return [self.get_buffer(f"centre_{level}") for level in range(len(self.cfg.num_emb_list))]

    def fit(self, source: Source, seed: int) -> None:
        """k-means of each level on the residuals; with `counts`, items that never occur weigh nothing."""
        if self.side is not None:
            self.side.learn(source, seed)
        r_ND = torch.cat(list(in_pieces(self.seen(source.content_ND))))
        weight_N = source.count_N.astype(np.float32) if self.cfg.weights == "counts" else None
        for centre_KD in self.centres():
            found = kmeans(r_ND.numpy(), len(centre_KD), self.cfg.kmeans_iters, seed, weight_N, self.cfg.kmeans_start)
            centre_KD.copy_(torch.from_numpy(found))
            r_ND = r_ND - centre_KD[distance(r_ND, centre_KD).argmin(1)]

    def encode(self, content_ND: np.ndarray) -> Tensor:
        """Codes [N, L] by the nearest centre, level by level."""
        return torch.cat([self._assign(piece) for piece in in_pieces(self.seen(content_ND))])

    def _assign(self, r_ND: Tensor) -> Tensor:
        codes = []
        for centre_KD in self.centres():
            codes.append(distance(r_ND.to(centre_KD), centre_KD).argmin(1))
            r_ND = r_ND.to(centre_KD) - centre_KD[codes[-1]]
        return torch.stack(codes, 1)

    def distances_of(self, content_ND: np.ndarray) -> Distances:
        """Distances of a catalogue's residuals to the centres of any level, after any codes before it."""
        return residual_distances(torch.cat(list(in_pieces(self.seen(content_ND)))), self.centres())

    def decode(self, code_NL: Tensor) -> Tensor:
        """Sums of the first 1, 2 ... L centres, [N, L, D]."""
        chosen = [c[i] for c, i in zip(self.centres(), code_NL.unbind(1), strict=True)]
        return torch.stack(chosen, 1).cumsum(1)
