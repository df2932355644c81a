"""The split by time against a loop over rows, its golden example, and what it says of real data; tables with commas."""

import json

import numpy as np
import pytest
from conftest import HEADER
from helpers import SHARED, samples, table, write
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

import main
from compose import configure
from readers.layouts import read_dataset
from readers.splits import DataOptions, Log, by_time, by_time_as_published
from readers.tables import Columns, core, read_rows
from utils import Problem, read_json

GOLDEN = [
    (user, word[0], int(word[1:]))
    for user, line in {
        "u1": "a1 b2 c9 z8", "u2": "a3 d4 z8 b9", "u3": "b5 c6 a10", "u4": "q8 a9", "u5": "c7 c7 z8",
    }.items()
    for word in line.split()
]  # fmt: skip


def log_of(rows):
    """(Log, users, items) of (user, item, time) rows; items numbered from 1 in sorted order."""
    users, items = list(dict.fromkeys(r[0] for r in rows)), sorted({r[1] for r in rows})
    user = np.array([users.index(r[0]) for r in rows])
    order = np.lexsort(([r[2] for r in rows], user))
    item = np.array([items.index(r[1]) + 1 for r in rows])
    offsets = np.searchsorted(user[order], np.arange(len(users) + 1))
    return Log(item[order], np.array([r[2] for r in rows], float)[order], offsets), users, items


def pairs(split):
    """{user: (history, target)} read off the flat arrays one by one."""
    found = {}
    for position, user in zip(split.position.tolist(), split.users().tolist(), strict=True):
        found[user] = (split.items[split.offsets[user] : position].tolist(), int(split.items[position]))
    return found


def naive(rows, cut, end):
    """{user: (history, target)}: first known item in [cut, end), a loop over users and rows."""
    known, found = {i for _, i, t in rows if t < cut}, {}
    for user in dict.fromkeys(r[0] for r in rows):
        own = sorted((r for r in rows if r[0] == user), key=lambda r: r[2])
        past = [i for _, i, t in own if t < cut]
        later = [i for _, i, t in own if cut <= t < end and i in known]
        if past and later:
            found[user] = (past, later[0])
    return found


# ---------------------------------------------------------------- by time


def test_the_golden_example():
    """Ties at the cut go after it; new items are skipped; no history or no known item, no sample."""
    rows, _, _ = log_of(GOLDEN)
    parts = by_time(rows, 0.6, "golden")
    assert parts.facts["time_cut"] == 8 and parts.facts["rows_before_cut"] == 8
    assert pairs(parts.test) == {0: ([1, 2], 3), 1: ([1, 4], 2), 2: ([2, 3], 1)}
    assert parts.facts["test_users_without_past"] == 1  # u4
    assert parts.facts["test_users_with_cold_items_only"] == 1  # u5
    assert parts.facts["test_cold_rows"] == 3  # z thrice


some_rows = st.lists(
    st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcdef"), st.integers(0, 12)), min_size=6, max_size=40
)


@effort(max_examples=80)
@given(some_rows, st.floats(0.3, 0.95))
def test_by_time_equals_a_loop(rows, q):
    try:
        log, users, items = log_of(rows)
        parts = by_time(log, q, "rows")
    except Problem:  # times 0, 1, 2, ... for every user
        return
    cut, valid_cut = parts.facts["time_cut"], parts.facts["valid_time_cut"]
    assert cut in {t for _, _, t in rows}
    for split, begin, end in ((parts.valid, valid_cut, cut), (parts.test, cut, np.inf)):
        found = {users[u]: ([items[i - 1] for i in h], items[t - 1]) for u, (h, t) in pairs(split).items()}
        assert found == naive(rows, begin, end)
    trained = [i for _, i, t in rows if t < valid_cut]
    assert sorted(items[i - 1] for i in np.repeat(np.arange(len(parts.count)), parts.count)) == sorted(trained)
    assert len(parts.train) == len(trained) - len({u for u, _, t in rows if t < valid_cut})
    f = parts.facts
    there = len({u for u, _, t in rows if t >= cut})
    assert f["test_users"] + f["test_users_without_past"] + f["test_users_with_cold_items_only"] == there
    assert f["cold_test_targets"] == sum(t not in trained for _, t in naive(rows, cut, np.inf).values())


@effort(max_examples=50)
@given(some_rows, st.integers(0, 5))
def test_the_published_split_in_two_groups(rows, seed):
    """Each group against the loop over that group alone; the same seed gives the same groups."""
    log, users, items = log_of(rows)
    parts = by_time_as_published(log, 0.6, 0.4, seed)
    again = by_time_as_published(log, 0.6, 0.4, seed)
    assert np.array_equal(parts.test.items, again.test.items)
    tested = np.random.default_rng(seed).choice(np.arange(len(users)), int(0.4 * len(users)), replace=False)
    for name, split in (("train", parts.train), ("test", parts.test)):
        group = [r for r in rows if (users.index(r[0]) in tested) == (name == "test")]
        want = naive(group, parts.facts[f"{name}_time_cut"], np.inf) if group else {}
        assert {users[u]: ([items[i - 1] for i in h], items[t - 1]) for u, (h, t) in pairs(split).items()} == want
        assert len(split.items) == sum(len(h) + 1 for h, _ in want.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/datasets")
@pytest.mark.parametrize(
    ("q", "rows", "users", "tested", "cold"), [(0.95, 94999, 913, 79, 0), (0.8, 79999, 751, 107, 15)]
)
def test_what_is_left_of_ml_100k(q, rows, users, tested, cold):
    """cold: targets that occur between the two cuts only, hence were not trained on."""
    options = {"dataset": "ml-100k", "data_path": str(SHARED), "split": "time", "time_quantile": q}
    data = read_dataset(configure.build(options)[DataOptions])
    assert (data.facts["rows_before_cut"], data.facts["users_before_cut"], len(data.test)) == (rows, users, tested)
    assert len(data.valid) >= 25 and data.facts["cold_test_targets"] == cold
    assert data.hash != read_dataset(configure.build(options | {"time_quantile": 0.9})[DataOptions]).hash


def test_places_in_a_sequence_are_no_times(tmp_path):
    folder = write(tmp_path / "d", inter=table([(u, i, t) for u in "uv" for t, i in enumerate("abcd")]))
    with pytest.raises(Problem, match=r"toy\.inter: timestamps are 0, 1, 2.*split: leave_one_out"):
        read_dataset(DataOptions(dataset="toy", data_path=str(folder), split="time"))


def test_a_layout_without_times(tmp_path):
    folder = write(tmp_path / "d", inter__json={"u": [0, 1, 2, 3]})
    with pytest.raises(Problem, match=r"split: time needs timestamps, .*'json'"):
        read_dataset(DataOptions(dataset="toy", data_path=str(folder), split="time"))


def test_an_empty_part_is_named(tmp_path):
    """Nobody comes back after the cut."""
    rows = [(f"u{t}", i, 10 * t + n) for t in range(9) for n, i in enumerate("abcd")]
    folder = write(tmp_path / "d", inter=table(rows))
    with pytest.raises(Problem, match=r"part of 'toy' is empty; no user has rows on both sides .* time_quantile"):
        read_dataset(DataOptions(dataset="toy", data_path=str(folder), split="time", time_quantile=0.5))


# ---------------------------------------------------------------- .csv

NAMED = "when,who,rating,what\n"
SIXTEEN = [(u, i, t) for t, (u, i) in enumerate(zip("uvuvuwwwvwuuvvwu", "abcabdcab,abdcaz", strict=True))]


def csv_of(rows, header="UserId,ProductId,Rating,Timestamp\n"):
    cell = {",": '","'}
    return header + "".join(f"{u},{cell.get(i, i)},5,{t}\n" for u, i, t in rows)


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_a_csv_gives_the_samples_of_the_same_inter(tmp_path, split):
    (tmp_path / "my.data.csv").write_text(csv_of(SIXTEEN))
    folder = write(tmp_path / "d", inter=table(SIXTEEN))
    options = {"split": split, "time_quantile": 0.7}
    found = read_dataset(configure.build({"data_path": str(tmp_path / "my.data.csv"), **options})[DataOptions])
    want = read_dataset(configure.build({"dataset": "toy", "data_path": str(folder), **options})[DataOptions])
    for part in ("train", "valid", "test"):
        assert samples(found, part) == samples(want, part)
    assert found.name == "my.data" and found.n_items == 6  # z, met by nobody in training, has its number too


def test_columns_have_the_names_of_the_options(tmp_path):
    """Also names with blanks; users and items may look like numbers; other columns do not matter."""
    path = tmp_path / "x.csv"
    path.write_text("the time,who,rating,what\n" + "".join(f"{t}.5,007,5,{i}\n" for t, i in enumerate("4321")))
    options = {"data_path": str(path), "users_col": "who", "items_col": "what", "time_col": "the time"}
    assert samples(read_dataset(configure.build(options)[DataOptions]), "test") == [(("4", "3", "2"), "1")]


BAD = {
    "column": ("a,b,c\n1,2,3\n", r"x\.csv, line 1: no column 'UserId'; .*users_col, items_col, time_col"),
    "time": (csv_of([("u", "a", "noon")]), r"x\.csv, line 2: timestamp 'noon' is not a number"),
    "cells": (csv_of([]) + 'u,"a,b",5,1\nu,a,5\n', r"x\.csv, line 3: 3 cells where the first line has 4"),
    "empty": (csv_of([]), r"x\.csv: holds no interactions"),
    "tabs": (HEADER + "\nu\ti\t1\n", r"x\.csv, line 1: no column 'UserId'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_csv_is_named_with_its_line(tmp_path, case):
    text, message = BAD[case]
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(Problem, match=message):
        read_dataset(configure.build({"data_path": str(tmp_path / "x.csv")})[DataOptions])


@given(some_rows, st.integers(1, 4))
def test_the_core_is_the_largest_that_satisfies_itself(tmp_path_factory, rows, k):
    path = tmp_path_factory.getbasetemp() / "core.csv"
    path.write_text(csv_of(rows))
    left = list(rows)
    while True:
        few = [r for r in left for n in (0, 1) if sum(r[n] == s[n] for s in left) < k]
        if not few:
            break
        left = [r for r in left if r not in few]
    found = core(read_rows(path, Columns("UserId", "ProductId", "Timestamp", ",")), k)
    assert [(found.users[u], found.items[i]) for u, i in zip(found.user, found.item, strict=True)] == [
        r[:2] for r in left
    ]


def test_columns_that_are_one(tmp_path):
    (tmp_path / "x.csv").write_text(csv_of(SIXTEEN))
    options = {"data_path": str(tmp_path / "x.csv"), "users_col": "ProductId"}
    with pytest.raises(Problem, match="ProductId, ProductId, Timestamp are not three different columns"):
        read_dataset(configure.build(options)[DataOptions])


def test_rows_that_no_core_leaves(tmp_path):
    (tmp_path / "x.csv").write_text(csv_of(SIXTEEN))
    with pytest.raises(Problem, match=r"x\.csv: k_core 50 leaves no interactions"):
        asked = {"data_path": str(tmp_path / "x.csv"), "k_core": 50, "split": "time"}
        read_dataset(configure.build(asked)[DataOptions])


def test_one_moment_cannot_be_cut(tmp_path):
    (tmp_path / "x.csv").write_text(csv_of([(f"u{i % 4}", f"i{i}", 7) for i in range(20)]))
    with pytest.raises(Problem, match="all timestamps are equal"):
        read_dataset(configure.build({"data_path": str(tmp_path / "x.csv"), "split": "time"})[DataOptions])


def test_a_core_of_data_that_come_split(tmp_path):
    (tmp_path / "x.inter.json").write_text(json.dumps({"0": [0, 1, 2], "1": [1, 2, 0]}))
    with pytest.raises(Problem, match="k_core: works on one"):
        read_dataset(configure.build({"data_path": str(tmp_path), "dataset": "x", "k_core": 2})[DataOptions])


def test_from_a_csv_to_figures(tmp_path, capsys):
    """An item that only the test shows is scored like any other; the results say how many are cold."""
    random = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{(u + n) % 23}", 100 * n + u) for u in range(40) for n in range(int(random.integers(4, 9)))]
    (tmp_path / "x.csv").write_text(csv_of([*rows, ("u0", "i-new", 10**6)]))
    options = {"method": "sasrec", "hidden_units": 8, "epochs": 1, "num_heads": 2,
               "output_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "logs")}  # fmt: skip
    argv = [f"--{k}={v}" for k, v in options.items()]
    main.main(["--data_path", str(tmp_path / "x.csv"), *argv, "--run_name=r"])
    assert "1 of 40 test targets never occur" in capsys.readouterr().out
    results = read_json(tmp_path / "out" / "x" / "r" / "test.json")
    assert results["split"]["cold_test_targets"] == 1 and results["num_users"] == 40
    argv += ["--split=time", "--time_quantile=0.8"]
    main.main(["--data_path", str(tmp_path / "x.csv"), *argv, "--run_name=s"])
    results = read_json(tmp_path / "out" / "x" / "s" / "test.json")
    assert results["num_users"] == results["split"]["test_users"] > 0
