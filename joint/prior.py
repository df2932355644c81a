"""The term that the published joint loss leaves out: what it costs to share a code (docs/beyond-the-paper.md, 2.3).

What a recommender is asked for is the item, p(v|h) = sum_c p(c|h) p(v|c), and by Jensen with the soft assignment
q(c|v) as posterior

    log p(v|h) >= E_q(c|v) [ log p(c|h) - log qbar(c) ] + log pi(v),

qbar(c) being the share of code c among the targets, pi(v) that of item v. The published loss is the first term
alone. The second is a constant while the tokenizer rests; once the label carries gradient it is what makes a
merged code cost something.

Shape letters: N items of the catalogue, U distinct items of a batch, R targets, K codes of a level, L levels, G
prefixes that occur, M codes that occur behind them.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from joint.uncertainty import move_shares
from recommenders.protocol import AllReduce
from settings import option


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    label_prior: Literal["none", "usage", "prefix"] = option(
        "none",
        "usage correction of the recommendation loss by -log of a code's share of the targets: usage = moving average "
        "per level, prefix = among items with the same preceding codes (not in the paper)",
    )


class NoPrior(nn.Module):
    """The published loss."""

    def __init__(self, cfg: PriorOptions, codes: list[int], n_items: int) -> None:
        super().__init__()
        self.cfg, self.codes = cfg, codes

    def log_share(self, level: int, item_U: Tensor, code_NL: Tensor) -> Tensor | None:
        """log qbar of a level's codes, [K], or for each of some items [U, K]; None: the term is left out.

        code_NL: the catalogue's codes.
        """
        return None

    def observe(self, item_R: Tensor, index: list[Tensor], weight: Tensor) -> None:
        """See one part of a step: its targets [R] and their hard codes, [R] per level; a part of weight 0 does not
        count.
        """

    def after_step(self, all_reduce: AllReduce) -> None:
        """Once per optimizer step, on every process alike."""

    def renew(self) -> None:
        """The catalogue has taken new codes."""


class UsagePrior(NoPrior):
    """qbar_l <- mu qbar_l + (1 - mu) counts / sum(counts) per level, over the targets of the global batch; 1 / K first.

    A uniform qbar adds the same to every code's cost and is the published loss.
    """

    MOMENTUM = 0.99  # mu
    FLOOR = 1e-4  # of a code's even share: an empty code is cheap, not free

    def __init__(self, cfg: PriorOptions, codes: list[int], n_items: int) -> None:
        super().__init__(cfg, codes, n_items)
        for level, k in enumerate(codes):
            self.register_buffer(f"share_{level}", torch.full((k,), 1 / k))
            self.register_buffer(f"pending_{level}", torch.zeros(k), persistent=False)

    def log_share(self, level: int, item_U: Tensor, code_NL: Tensor) -> Tensor:
        return self.get_buffer(f"share_{level}").clamp(min=self.FLOOR / self.codes[level]).log()

    @torch.no_grad()
    def observe(self, item_R: Tensor, index: list[Tensor], weight: Tensor) -> None:
        for level, code_R in enumerate(index):
            pending = self.get_buffer(f"pending_{level}")
            pending += code_R.bincount(minlength=len(pending)) * (weight > 0)

    def after_step(self, all_reduce: AllReduce) -> None:
        move_shares(self, "share", self.codes, self.MOMENTUM, all_reduce)


class Prefixes(NamedTuple):
    """Of a level: each item's prefix [N]; of each prefix the codes that occur behind it, and their weights."""

    group_N: Tensor
    first_G: Tensor  # [G + 1], where a prefix's codes begin
    code_M: Tensor
    mass_M: Tensor
    total_G: Tensor


class PrefixPrior(NoPrior):
    """qbar(c_l | c_1 ... c_{l-1}) among the catalogue's items, for each item as if it had the code it is asked about:

        qbar_v(k) = ( pi(v) + sum of pi(w), the other items w of v's prefix with code k ) / sum of pi over the prefix

    An empty code costs an item its own weight alone, a code of others as much more as they weigh; the product over
    levels is the share of the whole code. pi: how often an item has been a target, one more than that, taken where
    the catalogue takes its codes.
    """

    def __init__(self, cfg: PriorOptions, codes: list[int], n_items: int) -> None:
        super().__init__(cfg, codes, n_items)
        self.register_buffer("count_N", torch.ones(n_items))
        self.register_buffer("weight_N", torch.ones(n_items))
        self.register_buffer("pending_N", torch.zeros(n_items), persistent=False)
        self._prefixes: list[Prefixes] | None = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._prefixes = None

    @torch.no_grad()
    def observe(self, item_R: Tensor, index: list[Tensor], weight: Tensor) -> None:
        pending_N = self.get_buffer("pending_N")
        pending_N += (item_R - 1).bincount(minlength=len(pending_N)) * (weight > 0)

    @torch.no_grad()
    def after_step(self, all_reduce: AllReduce) -> None:
        self.get_buffer("count_N").add_(all_reduce(self.get_buffer("pending_N").clone()))
        self.get_buffer("pending_N").zero_()

    def renew(self) -> None:
        self.get_buffer("weight_N").copy_(self.get_buffer("count_N"))
        self._prefixes = None

    @torch.no_grad()
    def log_share(self, level: int, item_U: Tensor, code_NL: Tensor) -> Tensor:
        if self._prefixes is None:
            self._prefixes = self._group(code_NL.long())
        p, row_U, weight_N = self._prefixes[level], item_U - 1, self.get_buffer("weight_N")
        group_U, own_U1 = p.group_N[row_U], weight_N[row_U, None]
        count_U = p.first_G[group_U + 1] - p.first_G[group_U]
        place_U = torch.repeat_interleave(count_U)
        entry = torch.arange(len(place_U), device=place_U.device)
        entry += (p.first_G[group_U] - count_U.cumsum(0) + count_U)[place_U]
        share_UK = own_U1.repeat(1, self.codes[level])
        share_UK[place_U, p.code_M[entry]] += p.mass_M[entry]
        share_UK.scatter_add_(1, code_NL[row_U, level, None].long(), -own_U1)  # its own mass is counted there already
        return (share_UK / p.total_G[group_U, None]).log()

    def _group(self, code_NL: Tensor) -> list[Prefixes]:
        group_N, weight_N, found = torch.zeros_like(code_NL[:, 0]), self.get_buffer("weight_N"), []
        for level, k in enumerate(self.codes):
            key_M, next_N = (group_N * k + code_NL[:, level]).unique(return_inverse=True)
            mass_M = weight_N.new_zeros(len(key_M)).index_add_(0, next_N, weight_N)
            total_G = weight_N.new_zeros(int(group_N.max()) + 1).index_add_(0, group_N, weight_N)
            first_G = torch.searchsorted(key_M, torch.arange(len(total_G) + 1, device=key_M.device) * k)
            found.append(Prefixes(group_N, first_G, key_M % k, mass_M, total_G))
            group_N = next_N
        return found


PRIORS: dict[str, type[NoPrior]] = {"none": NoPrior, "usage": UsagePrior, "prefix": PrefixPrior}
