"""Co-occurrence pairs: by brute force over lists, and out of reach of validation and test."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from readers.splits import leave_one_out
from sids.pairs import PairOptions, pairs_of

HISTORIES = st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=9), min_size=1, max_size=6)


def train_of(histories):
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])])
    items = np.concatenate([np.array(h, np.int32) for h in histories])
    return leave_one_out(items, offsets, [], "refuse", None).train


def by_hand(histories, window):
    """The definition, pair by pair: the last two items belong to validation and test."""
    found = Counter()
    for history in histories:
        known = history[:-2]
        for later in range(len(known)):
            for earlier in range(max(0, later - window), later):
                if known[earlier] != known[later]:
                    found[tuple(sorted((known[earlier] - 1, known[later] - 1)))] += 1
    return found


@given(HISTORIES, st.integers(1, 4), st.integers(1, 2))
def test_pairs_are_those_of_the_definition(histories, window, least):
    pairs = pairs_of(train_of(histories), 6, PairOptions(pair_window=window, pair_min_count=least))
    want = {pair: n for pair, n in by_hand(histories, window).items() if n >= least}
    got = dict(zip(map(tuple, pairs.item_P2.tolist()), pairs.count_P.tolist(), strict=True))
    assert got == want
    assert (pairs.item_P2[:, 0] < pairs.item_P2[:, 1]).all()


@pytest.mark.parametrize("ours", [True, False])
def test_a_pair_of_validation_or_test_alone_is_absent(ours):
    """5, 6 and 7 stand behind the training part; the split's array holds them, what a tokenizer gets does not."""
    train = train_of([[1, 2, 3, 5, 6], [2, 3, 4, 7]])
    assert 7 in train.items and not {5, 6, 7} & set(train.alone().items.tolist())
    pairs = pairs_of(train.alone() if ours else train, 7, PairOptions(pair_window=9))
    assert pairs.item_P2.tolist() == [[0, 1], [0, 2], [1, 2]] and pairs.count_P.tolist() == [1, 1, 2]


@given(HISTORIES)
def test_a_split_alone_has_the_same_samples(histories):
    split = train_of(histories)
    alone = split.alone()
    assert np.array_equal(alone.targets, split.targets) and np.array_equal(alone.users(), split.users())
    assert np.array_equal(alone.lengths(50), split.lengths(50))
