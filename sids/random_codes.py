"""Random codes: SIDs that know nothing, the baseline that every tokenizer has to beat.

Shape letters: N items, D embedding width, L levels.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from layers import counter_uniform
from sids.tokenizer import CodeOptions, Source, Tokenizer, mean_of


class RandomCodes(Tokenizer):
    """The code of row i is drawn by (seed, i) alone, whatever its content."""

    Options: ClassVar[type[CodeOptions]] = CodeOptions
    seed: Tensor
    mean_D: Tensor

    def __init__(self, cfg: CodeOptions, n_input: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean_D", torch.zeros(n_input))

    def fit(self, source: Source, seed: int) -> None:
        self.seed.fill_(seed)
        self.mean_D.copy_(mean_of(source.content_ND))

    def encode(self, content_ND: np.ndarray) -> Tensor:
        """Codes [N, L], uniform and independent."""
        row_N = torch.arange(len(content_ND), device=self.seed.device)
        draws = counter_uniform(int(self.seed), self.seed.new_zeros(()), row_N, 0, len(self.cfg.num_emb_list))
        return (draws * draws.new_tensor(self.cfg.num_emb_list)).long()

    def decode(self, code_NL: Tensor) -> Tensor:
        """The mean embedding: all that can be said of an item without its content, [N, L, D]."""
        return self.mean_D.expand(*code_NL.shape, -1)
