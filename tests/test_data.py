"""Batches against a loop over samples; the plan and the parts of a step against set arithmetic."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import SHARED
from hypothesis import given
from hypothesis import strategies as st

from data import (
    Shape,
    Steps,
    epoch_plan,
    evaluation_plan,
    make_batch,
    padding_factor,
    seen_items,
    sequences,
)
from readers.layouts import read_dataset
from readers.splits import DataOptions, Split


def split_of(sequences):
    """Every position but a user's first is a sample."""
    lengths = [len(s) for s in sequences]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = set(offsets.tolist())
    position = np.array([p for p in range(offsets[-1]) if p not in starts], dtype=np.int64)
    return Split(np.array([i for s in sequences for i in s], np.int32), offsets, position)


def naive_samples(sequences):
    """[(user, history, target)], in the order of `split_of`."""
    return [(u, s[:end], s[end]) for u, s in enumerate(sequences) for end in range(1, len(s))]


def random_sequences(users, items=30, longest=20, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(1, items + 1, random.integers(2, longest + 1)).tolist() for _ in range(users)]


some_sequences = st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=9), min_size=1, max_size=6)


# ---------------------------------------------------------------- one batch


@given(some_sequences, st.integers(1, 8), st.randoms(use_true_random=False))
def test_a_batch_equals_a_loop_over_its_samples(sequences, longest, random):
    naive = naive_samples(sequences)
    rows = [random.randrange(len(naive)) for _ in range(random.randint(1, 10))]
    batch = make_batch(split_of(sequences), np.array(rows), longest)

    chosen = [naive[r] for r in rows]
    cut = [history[-longest:] for _, history, _ in chosen]
    width = max(len(h) for h in cut)
    assert batch.history_BS.tolist() == [[0] * (width - len(h)) + h for h in cut]
    assert batch.target_B.tolist() == [target for _, _, target in chosen]
    assert batch.user_B.tolist() == [user for user, _, _ in chosen]

    items = batch.item_U.tolist()
    assert sorted(items) == sorted({i for h, t in zip(cut, batch.target_B.tolist(), strict=True) for i in [*h, t]})
    assert [items[r] for r in batch.target_row_B] == batch.target_B.tolist()
    for row, item in zip(batch.history_row_BS.ravel().tolist(), batch.history_BS.ravel().tolist(), strict=True):
        assert row == 0 if item == 0 else items[row] == item
    assert batch.new_U.all()


def test_items_that_an_earlier_part_holds_are_not_new():
    batch = make_batch(split_of([[5, 3, 9, 3]]), np.array([1]), 50, seen=np.array([0, 3, 4]))
    assert dict(zip(batch.item_U.tolist(), batch.new_U.tolist(), strict=True)) == {3: False, 5: True, 9: True}


def test_seen_items_are_the_whole_history_however_long():
    sequences = [list(range(1, 301)), [7, 7, 8]]
    found = seen_items(split_of(sequences), np.arange(301))
    assert [[i for i in row if i] for row in found.tolist()] == [h for _, h, _ in naive_samples(sequences)]


@given(some_sequences, st.integers(1, 5))
def test_whole_sequences_meet_every_target_once(seqs, longest):
    """Also where each sample is a row of its own, as in the .jsonl layout."""
    split, naive = split_of(seqs), naive_samples(seqs)
    rows = [[*h[-longest:], t] for _, h, t in naive]
    ends = np.cumsum([0, *map(len, rows)])
    own = Split(np.concatenate(rows), ends, ends[1:] - 1)
    for found in (sequences(split, longest), sequences(own, longest)):
        batch = make_batch(found, np.arange(len(found)), longest)
        met = Counter()
        for history, target in zip(batch.history_BS.tolist(), batch.target_B.tolist(), strict=True):
            row = [i for i in [*history, target] if i]
            met.update((row[j - 1], row[j]) for j in range(1, len(row)))
        if found.items is split.items:
            assert met == Counter((h[-1], t) for _, h, t in naive)
        else:  # users that repeat each other's sequences may merge
            assert met <= Counter((h[-1], t) for _, h, t in naive) and met.keys() == {(h[-1], t) for _, h, t in naive}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/datasets")
def test_whole_sequences_of_beauty():
    train = read_dataset(DataOptions(dataset="beauty", data_path=str(SHARED))).train
    found = sequences(train, 50)
    assert found.lengths(50).sum() == len(train)
    assert len(found) < 1.01 * 22363


# ---------------------------------------------------------------- the plan of an epoch


@pytest.fixture(scope="module")
def many():
    return split_of(random_sequences(300))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 10**6])
def test_an_epoch_holds_every_sample_once(many, batch_size):
    plan = epoch_plan(many, Shape(batch_size), seed=1, epoch=3)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(many)))
    assert len(plan) == -(-len(many) // batch_size)
    assert max(map(len, plan)) == min(batch_size, len(many))


def test_epochs_and_seeds_differ_and_repeat(many):
    def order(seed, epoch):
        return tuple(np.concatenate(epoch_plan(many, Shape(16), seed, epoch)).tolist())

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    assert order(1, 2) == order(1, 2)


def test_samples_meet_different_neighbours_each_epoch(many):
    """Sorting by length must not deal the same batches in another order."""

    def batches(epoch):
        return {frozenset(rows.tolist()) for rows in epoch_plan(many, Shape(16), 0, epoch)}

    assert not batches(0) & batches(1)


@pytest.mark.parametrize(("batch_size", "processes", "accumulation"), [(24, 1, 1), (12, 2, 1), (4, 2, 3), (1, 4, 6)])
def test_the_plan_does_not_depend_on_how_a_global_batch_is_dealt_out(many, batch_size, processes, accumulation):
    whole = epoch_plan(many, Shape(24), seed=5, epoch=1)
    for rank in (0, processes - 1):
        found = epoch_plan(many, Shape(batch_size, processes, accumulation, rank, tokens=99), seed=5, epoch=1)
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in whole]


def test_padding_factor_by_hand():
    split = split_of([[1, 2, 3, 4], [5, 6]])  # histories of 1, 2, 3 and 1 items
    assert padding_factor(split, [np.array([0, 2]), np.array([1, 3])], 50) == pytest.approx((6 + 4) / 7)
    assert padding_factor(split, [np.array([0, 2]), np.array([1, 3])], 2) == pytest.approx((4 + 4) / 6)


def test_neighbours_are_of_like_length(many):
    plan = epoch_plan(many, Shape(16), seed=0, epoch=0)
    assert (
        padding_factor(many, plan, 50)
        < 1.1
        < padding_factor(many, np.array_split(np.random.default_rng(0).permutation(len(many)), len(plan)), 50)
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/datasets")
def test_little_is_padded_on_beauty():
    train = read_dataset(DataOptions(dataset="beauty", data_path=str(SHARED))).train
    plan = epoch_plan(train, Shape(256), seed=2020, epoch=0)
    assert padding_factor(train, plan, 50) <= 1.10


# ---------------------------------------------------------------- the parts of a step


def all_parts(split, plan, step, shape_of, processes):
    """The parts of one step over all processes, in the order in which they count items."""
    return [Steps(split, plan, shape_of(rank))[step] for rank in range(processes)]


def sample_keys(parts):
    """(user, target, history) of each sample that carries weight."""
    return Counter(
        (int(u), int(t), tuple(i for i in h.tolist() if i))
        for part in parts if part.weight > 0
        for u, t, h in zip(part.user_B, part.target_B, part.history_BS, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 60, 300, 1 << 62])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 5])
def test_a_step_holds_its_samples_once_and_its_items_once(processes, accumulation, tokens):
    sequences = random_sequences(12, items=15, longest=9, seed=3)
    split, naive = split_of(sequences), naive_samples(sequences)

    def shape(rank):
        return Shape(4, processes, accumulation, rank, longest=6, tokens=tokens, tokens_per_item=4)

    plan = epoch_plan(split, shape(0), seed=0, epoch=0)
    for step, rows in enumerate(plan):
        ranks = all_parts(split, plan, step, shape, processes)
        parts = [part for own in ranks for part in own]
        wanted = [naive[r] for r in rows]
        assert sample_keys(parts) == Counter((u, t, tuple(h[-6:])) for u, h, t in wanted)
        assert sum(float(p.weight) for p in parts) == pytest.approx(1)
        for part in parts:
            if part.weight > 0:
                assert float(part.weight) == pytest.approx(len(part.target_B) / len(rows))
            assert part.history_BS.numel() * 4 <= max(tokens, 4 * part.history_BS.shape[1])
        counted = Counter(int(i) for part in parts for i in part.item_U[part.new_U])
        assert counted == Counter({i for _, h, t in wanted for i in [*h[-6:], t]})


@pytest.mark.parametrize(("targets", "extra"), [("next", 0), ("all", 1)])
def test_a_part_weighs_its_targets(targets, extra):
    split = split_of(random_sequences(12, longest=9, seed=3))
    ranks = all_parts(split, [np.arange(20)], 0, lambda r: Shape(5, 2, 2, r, 6, 60, targets=targets), 2)
    parts = [p for own in ranks for p in own]
    made = np.array([int((p.history_BS > 0).sum()) + extra * len(p.target_B) for p in parts])
    assert [float(p.weight) for p in parts] == pytest.approx(made / made.sum())


def test_samples_are_dealt_out_evenly():
    split = split_of(random_sequences(40, seed=1))
    plan = [np.arange(22)]
    sizes = [[len(p.target_B) for p in own] for own in all_parts(split, plan, 0, lambda r: Shape(4, 2, 3, r), 2)]
    assert sizes == [[4, 4, 3], [4, 4, 3]]


def test_a_process_without_samples_takes_part_with_no_weight():
    """Every process calls forward and backward equally often, else the others wait for ever."""
    split = split_of([[1, 2, 3], [4, 5]])
    ranks = all_parts(split, [np.array([0, 2])], 0, lambda r: Shape(8, 3, 2, r), 3)
    assert [[float(p.weight) for p in own] for own in ranks] == [
        [0.5],
        [0.5],
        [0],
    ]  # one part each: nobody has a second
    dummies = [p for own in ranks for p in own if p.weight == 0]
    assert all(len(p.target_B) == 1 and not p.new_U.any() for p in dummies)


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [1, 10, 10**6])
def test_evaluation_meets_everyone_once_longest_first(many, batch_size):
    plan = evaluation_plan(many, batch_size, 12)
    order = np.concatenate(plan)
    assert sorted(order.tolist()) == list(range(len(many)))
    assert all(len(rows) == batch_size for rows in plan[:-1])
    lengths = [min(len(h), 12) for _, h, _ in naive_samples(random_sequences(300))]
    assert [lengths[r] for r in order] == sorted(lengths, reverse=True)


def test_batches_travel_to_a_device_whole():
    batch = make_batch(split_of([[1, 2, 3]]), np.array([0, 1]), 50)
    moved = batch.to(torch.device("meta"))
    assert [t.shape for t in moved] == [t.shape for t in batch]
    assert {t.device.type for t in moved} == {"meta"}
