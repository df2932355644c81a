"""What may follow a prefix: dictionaries in dictionaries beside our tensors."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from scripts.bench.common import HOST, Figures, Job, device, figure, peak_memory_of, seconds
from scripts.bench.plain import START, NestedTrie
from sids.search import Trie

CODES = [256, 256, 256, 256]
ROWS = 640  # 32 users of 20 beams


def measure(job: Job) -> Figures:
    """Per catalogue size: bytes an item, build time, time of one search's masks (640 rows, 4 levels)."""
    found: Figures = {}
    for n in (10**4, 10**5) if job.quick else (10**4, 10**5, 10**6, 10**7):
        sid_NL = random_sids(n)
        ours, theirs = Tensors(sid_NL), Dictionaries(sid_NL)
        name = "" if n == 10**4 else f"_1e{len(str(n)) - 1}"
        found |= {
            f"mask_ms{name}": figure(_repeated(ours, sid_NL), _repeated(theirs, sid_NL)),
            f"build_s{name}": figure(ours.build_s, theirs.build_s),
            f"bytes_per_item{name}": figure(ours.bytes() / n, _dictionary_bytes(n) / n),
        }
        if n == 10**7:
            found["build_peak_memory_gb_1e7"] = figure(peak_memory_of(_build, n, where=HOST))
        del ours, theirs
    return found


def random_sids(n: int) -> Tensor:
    """n distinct random SIDs [N, 4]."""
    random = torch.Generator().manual_seed(0)
    key = torch.randint(0, 256**4, (n + n // 100 + 100,), generator=random).unique()
    key = key[torch.randperm(len(key), generator=random)[:n]]
    return torch.stack([(key // 256 ** (3 - i) % 256).short() for i in range(4)], 1)


def _repeated(side: "Tensors | Dictionaries", sid_NL: Tensor) -> list[float]:
    """Milliseconds of the masks of one search, five times."""
    random = torch.Generator().manual_seed(1)
    rows = sid_NL[torch.randint(0, len(sid_NL), (ROWS,), generator=random)]
    run = side.masks(rows)
    run()
    return [seconds(run) * 1000 for _ in range(5)]


class Tensors:
    def __init__(self, sid_NL: Tensor) -> None:
        begin = time.perf_counter()
        self.trie = Trie(sid_NL.to(device()), CODES)
        self.build_s = time.perf_counter() - begin

    def bytes(self) -> int:
        held = [*self.trie.begin, *self.trie.token, self.trie.item_N, self.trie.key_M]
        return sum(t.numel() * t.element_size() for t in held)

    def masks(self, row_RL: Tensor) -> Callable[[], None]:
        """The children of every row's prefix, level by level, walking down with the rows as a search does."""
        row_RL = row_RL.to(device())
        top_R = torch.zeros(len(row_RL), dtype=torch.long, device=row_RL.device)
        chosen, node_R = [], top_R  # what a search knows from its topk
        for level in range(row_RL.shape[1]):
            child = self.trie.children(level, node_R)
            match = (child.token == row_RL[:, level, None]) & child.there
            chosen.append(match.int().argmax(1, keepdim=True))
            node_R = child.node.gather(1, chosen[-1])[:, 0]

        def run() -> None:
            node_R = top_R
            for level, place_R1 in enumerate(chosen):
                node_R = self.trie.children(level, node_R).node.gather(1, place_R1)[:, 0]

        return run


class Dictionaries:
    """As Hugging Face's prefix constraint asks for them: a list per row, entered into a mask."""

    def __init__(self, sid_NL: Tensor) -> None:
        tokens = (sid_NL + 1 + torch.arange(4) * 256).numpy()
        begin = time.perf_counter()
        self.trie = NestedTrie(tokens)
        self.build_s = time.perf_counter() - begin

    def masks(self, row_RL: Tensor) -> Callable[[], None]:
        tokens = row_RL + 1 + torch.arange(4) * 256
        prefix = torch.cat([torch.full((len(tokens), 1), START), tokens], 1)

        def run() -> None:
            for level in range(row_RL.shape[1]):
                mask = torch.full((len(prefix), 1 + sum(CODES)), -torch.inf)
                for i, line in enumerate(prefix[:, : level + 1]):
                    mask[i, self.trie.allowed(i, line)] = 0

        return run


def _build(n: int) -> None:
    Trie(random_sids(n), CODES)


def _dictionary_bytes(n: int) -> float:
    """Memory of the dictionaries, as the difference of two processes."""
    return (peak_memory_of(_nest, n, where=HOST) - peak_memory_of(random_sids, n, where=HOST)) * 1e9


def _nest(n: int) -> None:
    Dictionaries(random_sids(n))
