"""Large data sets: read once and mapped from then on; what is read is what is read in memory."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from conftest import HEADER, write_tiny
from hypothesis import given
from hypothesis import strategies as st

from readers import columns, dataset, layouts, stamps, store
from readers.dataset import SPLITS, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from utils import Problem

CASES = {
    "inter": {},
    "dropped": {"short_users": "drop"},
    "core": {"k_core": 2, "short_users": "drop"},
    "time": {"split": "time", "time_quantile": 0.7},
    "groups": {"split": "time_groups", "time_quantile": 0.7},
}


def same(ours, theirs):
    """Are all arrays, names and figures of two data sets equal?"""
    for name in SPLITS:
        a, b = ours.split(name), theirs.split(name)
        for key in store.ARRAYS:
            x, y = getattr(a, key), getattr(b, key)
            assert x.dtype == y.dtype and np.array_equal(x, y), (name, key)
    assert np.array_equal(ours.popularity, theirs.popularity) and ours.facts == theirs.facts
    assert (ours.catalogue, ours.hash, ours.split_hash) == (theirs.catalogue, theirs.hash, theirs.split_hash)


def kept(folder):
    return sorted(p for p in (folder / ".tiny.arrays").glob("*") if p.is_dir())


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """(options, folder) of a data set that counts as large, in pieces of seven rows."""
    folder = write_tiny(tmp_path / "tiny")
    random = np.random.default_rng(3)  # times of several users beside each other, many equal, users of one row
    rows = [f"u{random.integers(25)}\ti{random.integers(40)}\t{random.integers(9)}.5" for _ in range(200)]
    (folder / "tiny.inter").write_text("\n".join([HEADER, *rows, "late\ti1\t3"]) + "\n")
    monkeypatch.setattr(columns, "PIECE", 7)
    return DataOptions(dataset="tiny", data_path=str(tmp_path), short_users="drop"), folder


@pytest.mark.parametrize("case", CASES)
def test_what_is_mapped_is_what_is_read(tiny, monkeypatch, case):
    cfg = DataOptions(**vars(tiny[0]) | CASES[case])
    plain = read_dataset(cfg)
    monkeypatch.setattr(store, "LARGE", 0)
    same(read_dataset(cfg), plain)
    assert len(kept(tiny[1])) == 1
    monkeypatch.setattr(layouts, "LAYOUTS", {})  # nobody reads it again
    again = read_dataset(cfg)
    same(again, plain)
    assert not again.train.items.flags.writeable and again.train.items.base is not None
    assert (again.train.items is again.test.items) == (plain.train.items is plain.test.items)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40), st.integers(1, 9))
def test_rows_are_ordered_as_by_a_stable_sort(rows, piece):
    user, time = (np.array([r[i] for r in rows], t) for i, t in ((0, np.int32), (1, float)))
    item, before = np.arange(len(rows), dtype=np.int32), columns.PIECE
    columns.PIECE = piece
    try:
        items, times, offsets = columns.in_order(user, item, time, 5, None)
    finally:
        columns.PIECE = before
    order = sorted(range(len(rows)), key=lambda i: (user[i], time[i], i))
    assert items.tolist() == order and times.tolist() == time[order].tolist()
    assert offsets.tolist() == [0, *np.cumsum(np.bincount(user, minlength=5))]


def cut(path):
    file = max(path.glob("*.npy"), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-8])


def other_version(path):
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps(card | {"version": 0}))


@pytest.mark.parametrize("damage", [cut, other_version, lambda p: (p / "card.json").write_text("{"),
                                    lambda p: (p / "catalogue.parquet").unlink()])  # fmt: skip
def test_what_is_damaged_is_made_anew(tiny, monkeypatch, caplog, damage):
    plain = read_dataset(tiny[0])
    monkeypatch.setattr(store, "LARGE", 0)
    read_dataset(tiny[0])
    damage(kept(tiny[1])[0])
    monkeypatch.setattr("utils.log.propagate", True)
    same(read_dataset(tiny[0]), plain)
    assert "damaged" in caplog.text and len(kept(tiny[1])) == 1


def test_a_changed_file_is_read_and_the_old_arrays_go(tiny, monkeypatch):
    monkeypatch.setattr(store, "LARGE", 0)
    before = read_dataset(tiny[0])
    (old,) = kept(tiny[1])
    with (tiny[1] / "tiny.inter").open("a") as f:
        f.write("late\ti2\t4\nlate\ti3\t5\n")
    after = read_dataset(tiny[0])
    assert len(after.test) == len(before.test) + 1 and after.hash != before.hash
    assert len(kept(tiny[1])) == 1 and kept(tiny[1]) != [old]


def test_what_other_options_have_made_stays(tiny, monkeypatch):
    """Two splits have arrays of their own; a seed that draws nothing, and how histories are cut, need none."""
    monkeypatch.setattr(store, "LARGE", 0)
    for changes in ({}, {"split": "time", "time_quantile": 0.7}):
        read_dataset(DataOptions(**vars(tiny[0]) | changes))
    assert len(kept(tiny[1])) == 2
    with pytest.raises(Problem, match=r"tiny\.inter: \d+ users have fewer than 3 .* set short_users: drop"):
        read_dataset(DataOptions(**vars(tiny[0]) | {"short_users": "refuse"}))
    monkeypatch.setattr(layouts, "LAYOUTS", {})  # nobody reads it again
    for changes in ({"seed": 7}, {"max_his_len": 3}, {"split": "time", "time_quantile": 0.7}):
        read_dataset(DataOptions(**vars(tiny[0]) | changes))


def test_what_is_known_of_a_large_file_is_found_out_once(tmp_path, monkeypatch):
    """But for a file that has just changed, or changes; what is damaged, or cannot be kept, costs nothing."""
    path, place, calls = tmp_path / "x.npy", tmp_path / ".arrays", []
    path.write_text("a")

    def work(*parts):
        calls.append(parts)
        return path.read_text() + str(parts[1:])

    def asked(*more, place=place):
        calls.clear()
        assert stamps.once(place, work, path, *more) == path.read_text() + str(more)
        return len(calls)

    assert asked() == asked() == 1 and not place.exists()  # small
    monkeypatch.setattr(stamps, "LARGE", 0)
    assert asked() == asked() == 1  # young
    monkeypatch.setattr(stamps, "YOUNG", -(10**9))
    assert [asked(), asked(), asked("b"), asked("b"), asked()] == [1, 0, 1, 0, 0]
    path.write_text("c")
    assert [asked(), asked()] == [1, 0]
    (place / "facts.json").write_text("{")
    assert [asked(), asked()] == [1, 0]
    assert asked(place=path / "none") == 1


def test_embeddings_are_hashed_and_looked_through_once(tiny, monkeypatch):
    monkeypatch.setattr(stamps, "LARGE", 0)
    monkeypatch.setattr(stamps, "YOUNG", -(10**9))
    cfg = DataOptions(**vars(tiny[0]))
    before = read_dataset(cfg)
    assert np.isfinite(read_embeddings(before)).all()
    monkeypatch.setattr(dataset, "check_rows", None)  # nobody asks again
    monkeypatch.setattr(dataset, "digest", lambda *parts: 1 / 0)
    monkeypatch.setattr(dataset.digest, "__name__", "digest")
    again = read_dataset(cfg)
    read_embeddings(again)
    assert (again.hash, again.embedding_stamp) == (before.hash, before.embedding_stamp)


def test_a_full_disk_and_a_folder_that_cannot_be_written_cost_nothing(tiny, monkeypatch, tmp_path, caplog):
    plain = read_dataset(tiny[0])
    monkeypatch.setattr(store, "LARGE", 0)
    monkeypatch.setattr("utils.log.propagate", True)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        same(read_dataset(tiny[0]), plain)
    assert "cannot be kept" in caplog.text and kept(tiny[1]) == []
    full = {
        "readers.columns.tempfile.NamedTemporaryFile": lambda dir, delete: Path("/dev/full").open("wb", 0),  # noqa: SIM115
        "os.posix_fallocate": lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    }  # while rows are read, and while room for their order is asked for
    for name, fails in full.items():
        with monkeypatch.context() as patch:
            patch.setattr(name, fails)
            caplog.clear()
            same(read_dataset(tiny[0]), plain)
        assert "cannot be kept" in caplog.text and kept(tiny[1]) == []
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *a: False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        same(read_dataset(tiny[0]), plain)
        assert kept(tiny[1]) == [] and len([*Path(tmp_path / "cache" / "diger").glob("tiny-*/*/card.json")]) == 1


def reading(cfg, place):
    """Read, and note who read the files."""
    store.LARGE, inner = 0, layouts.LAYOUTS["inter"]
    layouts.LAYOUTS["inter"] = lambda *a: (place.open("a").write("x"), inner(*a))[1]
    read_dataset(cfg)


def test_of_processes_that_come_at_once_one_reads(tiny, tmp_path):
    place, context = tmp_path / "readers", multiprocessing.get_context("fork")
    children = [context.Process(target=reading, args=(tiny[0], place)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4 and place.read_text() == "x"
