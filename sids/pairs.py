"""Which items the training part shows close together: co-occurrence pairs, behaviour that a tokenizer may learn from.

Shape letters: N items, P pairs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from readers.splits import Split
from settings import option

CHUNK = 1 << 22  # pairs that are counted at a time, so that memory follows the distinct pairs and not all of them


WHERE = ("behaviour: pairs", "task: both contrastive")  # pairs are looked for


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    pair_window: int = option(
        1, "maximum distance, in positions, of two items of a history that count as a pair", ge=1, needs=WHERE
    )
    pair_min_count: int = option(1, "minimum number of occurrences of a pair", ge=1, needs=WHERE)


class Pairs(NamedTuple):
    """Unordered pairs of different items, each once, by smaller and then larger item."""

    item_P2: np.ndarray  # rows of the catalogue (item number - 1), int64, the smaller one first
    count_P: np.ndarray  # how often they were seen, int64

    def __len__(self) -> int:
        return len(self.count_P)


def pairs_of(train: Split, n_items: int, options: PairOptions) -> Pairs:
    """All (s_t, s_u) with t < u <= t + window and s_t != s_u of the sequences of a training part.

    Every u is the target of a sample, so that nothing behind a user's last training target can enter, whatever the
    split's array of items holds besides.
    """
    begin = train.offsets[train.users()]
    key, count = np.empty(0, np.int64), np.empty(0, np.int64)
    for gap in range(1, options.pair_window + 1):
        for first in range(0, len(train), CHUNK):
            later = train.position[first : first + CHUNK]
            later = later[later - gap >= begin[first : first + CHUNK]]
            a, b = (train.items[place].astype(np.int64) - 1 for place in (later - gap, later))
            met = (np.minimum(a, b) * n_items + np.maximum(a, b))[a != b]
            key, where = np.unique(np.concatenate([key, met]), return_inverse=True)
            seen = np.concatenate([count, np.ones(len(met), np.int64)])
            count = np.zeros(len(key), np.int64)
            np.add.at(count, where, seen)
    kept = count >= options.pair_min_count
    return Pairs(np.stack(np.divmod(key[kept], n_items), 1), count[kept])
