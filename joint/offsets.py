"""Latents that move: an offset of each item's own, added to the latent of its content (docs/beyond-the-paper.md, 2.2).

Not in the paper. Shape letters: N items of the catalogue, U distinct items of a batch, d latent width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from joint.quantizer import JointRQVAE
from joint.uncertainty import Decay
from sids.tokenizer import Source


class OffsetRQVAE(JointRQVAE):
    """z_v = encoder(content of v) + delta_v; |q - z|^2 stays that of the content's latent alone."""

    offset_Nd: nn.Parameter | None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_parameter("offset_Nd", None)  # a row an item, from the catalogue or a state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        offset = state_dict.get(f"{prefix}offset_Nd")
        if self.offset_Nd is None and isinstance(offset, Tensor):
            self.offset_Nd = nn.Parameter(torch.zeros_like(offset, dtype=torch.float32))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def attach(self, source: Source, decay: Decay) -> None:
        self.offset_Nd = nn.Parameter(torch.zeros(len(source.content_ND), self.cfg.e_dim))
        super().attach(source, decay)

    def moved(self, content_Ud: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        return content_Ud if self.offset_Nd is None else content_Ud + self.offset_Nd[rows]

    def own_parameters(self) -> list[nn.Parameter]:
        """The items' offsets [N, d]."""
        return [] if self.offset_Nd is None else [self.offset_Nd]

    def offset_energy(self) -> Tensor:
        """mean_v |delta_v|^2 / (2 rms^2) over the catalogue, rms as in `item_vectors`."""
        assert self.offset_Nd is not None
        return (self.offset_Nd / self.unit).square().sum(1).mean() / 2
