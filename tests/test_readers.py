"""What is on disk against the samples a naive reading gives, and every way for a file to be wrong."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
from conftest import HEADER
from helpers import SHARED, samples, table, write
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from utils import Problem

PARTS = ("train", "valid", "test")


# ---------------------------------------------------------------- writing and reading, naively


def read(folder, **options):
    return read_dataset(DataOptions(dataset="toy", data_path=str(folder), **options))


def lines(*values):
    return "".join(json.dumps(v) + "\n" for v in values)


def naive_split(rows):
    """Leave-one-out of (user, item, time) rows: {part: [(history, target), ...]}, users as they appear."""
    users = {}
    for user, item, time in rows:
        users.setdefault(user, []).append((time, item))
    found = {part: [] for part in PARTS}
    for log in users.values():
        items = [item for _, item in sorted(log, key=lambda pair: pair[0])]
        for end in range(1, len(items) - 2):
            found["train"].append((tuple(items[:end]), items[end]))
        found["valid"].append((tuple(items[:-2]), items[-2]))
        found["test"].append((tuple(items[:-1]), items[-1]))
    return found


def sequence_rows(sequences):
    return [(u, item, t) for u, sequence in sequences.items() for t, item in enumerate(sequence)]


LOGS = {"ann": ["p", "q", "r", "s", "p"], "bob": ["q", "p", "t"], "cy": ["t", "s", "r", "q"]}


@pytest.fixture
def logs_inter(tmp_path):
    return write(tmp_path / "d", inter=table(sequence_rows(LOGS)))


# ---------------------------------------------------------------- right input


@st.composite
def interleaved_logs(draw):
    """Rows of several users in any order, with many equal timestamps and repeated items."""
    rows = []
    for user in range(draw(st.integers(1, 6))):
        n = draw(st.integers(4 if user == 0 else 3, 9))
        rows += [
            (f"u{user}", f"i{draw(st.integers(0, 7))}", draw(st.sampled_from([0, 1, 2.5, -3, 1e9]))) for _ in range(n)
        ]
    return draw(st.permutations(rows))


@effort(max_examples=60)
@given(rows=interleaved_logs())
def test_leave_one_out_equals_the_naive_split(tmp_path_factory, rows):
    folder = write(tmp_path_factory.getbasetemp() / "one_inter", inter=table(rows))
    data, want = read(folder), naive_split(rows)
    assert {part: samples(data, part) for part in PARTS} == want
    counts = Counter(i for history, _ in want["valid"] for i in history)
    assert dict(zip(data.catalogue.ids, data.popularity[1:].tolist(), strict=True)) == {
        i: counts[i] for i in data.catalogue.ids
    }
    assert data.popularity[0] == 0


def test_rows_of_equal_time_keep_the_order_of_the_file(tmp_path):
    data = read(write(tmp_path / "d", inter=table([("u", i, 7) for i in "dacbe"] + [("u", "z", 6)])))
    assert samples(data, "test") == [(tuple("zdacb"), "e")]


def as_one_inter(folder, logs=LOGS):
    return write(folder, inter=table(sequence_rows(logs)))


def as_three_inter(folder, logs=LOGS):
    cut = {"train": slice(None, -2), "valid": slice(-2, -1), "test": slice(-1, None)}
    files = {f"{p}__inter": table(sequence_rows({u: s[c] for u, s in logs.items()})) for p, c in cut.items()}
    return write(folder, **files)


def as_jsonl(folder, logs=LOGS):
    naive = naive_split(sequence_rows(logs))
    rows = {p: lines(*({"inter_history": h, "target_id": t} for h, t in naive[p])) for p in PARTS}
    ids = {token: i for i, token in enumerate("tsrqp", 1)}
    return write(folder, emb_map__json={"[PAD]": 0, **ids}, **{f"{p}__jsonl": text for p, text in rows.items()})


def as_json(folder, logs=LOGS):
    index = {u: ["pqrst".index(i) for i in s] for u, s in logs.items()}
    return write(folder, inter__json=index, item__json={str(i): {"title": t} for i, t in enumerate("pqrst")})


LAYOUTS = {"inter": as_one_inter, "inter_splits": as_three_inter, "jsonl": as_jsonl, "json": as_json}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path, layout):
    folder = LAYOUTS[layout](tmp_path / "d")
    naive = naive_split(sequence_rows(LOGS))
    for chosen in ("auto", layout):
        data = read(folder, data_format=chosen)
        named = data.catalogue.titles if layout == "json" else data.catalogue.ids  # there ids are indices
        name = dict(zip(data.catalogue.ids, named, strict=True))
        for part in PARTS:
            found = [(tuple(name[i] for i in h), name[t]) for h, t in samples(data, part)]
            assert sorted(found) == sorted(naive[part])
    assert data.n_items == 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_popularity_counts_all_but_the_last_two(tmp_path, layout):
    logs = {"ann": list("pqrsp"), "cy": list("tsrq"), "dee": list("qqptrs")}
    data = read(LAYOUTS[layout](tmp_path / "d", logs))
    named = data.catalogue.titles if layout == "json" else data.catalogue.ids
    counts = Counter("pqr" + "ts" + "qqpt")
    assert dict(zip(named, data.popularity[1:].tolist(), strict=True)) == counts


def test_numbers_follow_the_map_and_the_items_file(tmp_path):
    """Row i of the embedding belongs to item i + 1, so the catalogue's order is not free."""
    assert read(as_jsonl(tmp_path / "a")).catalogue.ids == list("tsrqp")
    folder = write(
        as_one_inter(tmp_path / "b"), items__jsonl=lines(*({"item_id": i, "title": f" {i}\n x"} for i in "zsrqpt"))
    )
    data = read(folder)
    assert data.catalogue.ids == list("zsrqpt")
    assert data.catalogue.titles[0] == "z x"
    assert data.popularity.tolist() == [0, 0, 1, 1, 2, 1, 1]  # p q r, q, t s


def test_windows_that_begin_anywhere_count_all_their_items(tmp_path):
    """By hand: a lone window, and a user's samples whose histories were cut at three items and stand in any order."""
    row = lambda history, target: {"inter_history": list(history), "target_id": target}  # noqa: E731
    train = [row("abc", "d"), row("bce", "a"), row("qrs", "t"), row("p", "q"), row("pqr", "s"), row("pq", "r")]
    number = {"[PAD]": 0} | {c: n for n, c in enumerate("abcdepqrstx", 1)}
    held = lines(row("x", "a"))
    data = read(
        write(
            tmp_path / "windows", train__jsonl=lines(*train), valid__jsonl=held, test__jsonl=held, emb_map__json=number
        )
    )
    assert dict(zip(data.catalogue.ids, data.popularity[1:].tolist(), strict=True)) == {
        "a": 2, "b": 2, "c": 2, "d": 1, "e": 1, "p": 1, "q": 1, "r": 1, "s": 1, "t": 1, "x": 0,
    }  # fmt: skip


@effort(max_examples=40)
@given(st.lists(st.lists(st.tuples(st.sampled_from(PARTS), st.integers(0, 5)), min_size=1, max_size=7), max_size=5))
def test_given_splits_are_kept_whatever_they_hold(tmp_path_factory, users):
    """Any number of rows a part: histories are the user's earlier rows, popularity counts the train file."""
    users = [[(p, 0) for p in PARTS for _ in range(2)], *users]
    rows = {
        p: [(f"u{u}", f"i{i}", t) for u, log in enumerate(users) for t, (q, i) in enumerate(log) if q == p]
        for p in PARTS
    }
    folder = write(tmp_path_factory.getbasetemp() / "three_inter", **{f"{p}__inter": table(r) for p, r in rows.items()})
    data = read(folder)
    for part in PARTS:
        want = []
        for log in users:
            ordered = sorted(log, key=lambda row: PARTS.index(row[0]))
            tokens = [f"i{i}" for _, i in ordered]
            want += [(tuple(tokens[:e]), tokens[e]) for e in range(1, len(log)) if ordered[e][0] == part]
        assert sorted(samples(data, part)) == sorted(want)
    counts = Counter(i for _, i, _ in rows["train"])
    assert dict(zip(data.catalogue.ids, data.popularity[1:].tolist(), strict=True)) == {
        i: counts[i] for i in data.catalogue.ids
    }


def test_line_ends_case_extra_columns_and_odd_tokens(tmp_path):
    """Windows line ends and byte order mark, a rating column, tokens like numbers, quotes, missing values."""
    tokens = ["007", "7", "NA", 'a"b', "null", "nan"]
    header = "user_id:token\trating:float\titem_id:token\ttimestamp:float"
    text = table([("NULL", 3, t, i) for i, t in enumerate(tokens)], header).replace("\n", "\r\n")
    (tmp_path / "Toy.inter").write_bytes(text.encode("utf-8-sig"))
    assert samples(read(tmp_path), "test") == [(tuple(tokens[:-1]), "nan")]


def test_the_folder_of_the_data_set_or_the_files_themselves(tmp_path):
    rows = table(sequence_rows(LOGS))
    (tmp_path / "Toy").mkdir()
    write(tmp_path / "Toy", inter=rows)
    assert samples(read(tmp_path), "test") == samples(read(tmp_path / "Toy"), "test")


def test_the_hash_follows_every_file_that_is_read(tmp_path):
    """A tokenizer is shared between runs of equal hash."""
    folder = write(as_one_inter(tmp_path / "d"), items__jsonl=lines(*({"item_id": i} for i in "pqrst")))
    seen = [read(folder).hash, read(folder, short_users="drop").hash]
    for changed in (
        {"inter": table(sequence_rows(LOGS | {"dee": list("pqr")}))},
        {"items__jsonl": lines(*({"item_id": i} for i in "qprst"))},
        {"emb__npy": np.ones((5, 2), np.float32)},
    ):
        write(folder, **changed)
        seen.append(read(folder).hash)
    assert len(set(seen)) == len(seen)
    assert read(folder).hash == seen[-1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/datasets")
@pytest.mark.parametrize(
    ("name", "counts", "items"),
    [
        ("beauty", [131413, 22363, 22363], 12101),
        ("yelp", [225061, 30431, 30431], 20033),
        ("scientific", [33541, 8317, 8317], 4344),
    ],
)
def test_published_counts(name, counts, items):
    data = read_dataset(DataOptions(dataset=name, data_path=str(SHARED)))
    assert [len(data.split(p)) for p in PARTS] == counts
    assert read_embeddings(data).shape == (items, 384)
    assert data.popularity.sum() == counts[0] + counts[1]  # all but two of each user
    rows = (line.split("\t") for line in (SHARED / name / f"{name}.inter").read_text().splitlines()[1:])
    last = {user: item for user, item, _ in rows}  # the file is in time order
    assert [data.catalogue.ids[i - 1] for i in data.test.items[data.test.position]] == list(last.values())


# ---------------------------------------------------------------- wrong input

GOOD = sequence_rows(LOGS)

BAD_INTER = {
    "missing column": (
        HEADER.replace("timestamp:float", "time") + "\nu\ti\t1\n",
        r"toy\.inter, line 1: no column 'timestamp:float'",
    ),
    "commas": (HEADER.replace("\t", ",") + "\nu,i,1\n", r"toy\.inter, line 1: no column 'user_id:token'"),
    "missing cell": (table([*GOOD, ("ann", "p")]), r"toy\.inter, line 14: 2 cells where the first line has 3"),
    "extra cell": (
        table([*GOOD[:4], ("ann", "p", 1, 2), *GOOD]),
        r"toy\.inter, line 6: 4 cells where the first line has 3",
    ),
    "word for a time": (
        table([*GOOD[:2], ("ann", "p", "noon"), *GOOD]),
        r"toy\.inter, line 4: timestamp 'noon' is not a number",
    ),
    "NaN for a time": (table([("ann", "p", "nan"), *GOOD]), r"toy\.inter, line 2: timestamp 'nan' is not a number"),
    "no time": (table([*GOOD[:1], ("ann", "p", ""), *GOOD]), r"toy\.inter, line 3: timestamp '' is not a number"),
    "infinite time": (table([*GOOD, ("ann", "p", "inf")]), r"toy\.inter, line 14: timestamp 'inf' is not a number"),
    "empty user": (table([*GOOD[:3], ("", "p", 1), *GOOD]), r"toy\.inter, line 5: empty user or item"),
    "empty item": (table([*GOOD[:3], ("ann", "", 1), *GOOD]), r"toy\.inter, line 5: empty user or item"),
    "not UTF-8": (table(GOOD).replace("bob", "b\xf6b").encode("latin-1"), r"toy\.inter, line 7: not UTF-8; convert it"),
    "empty file": (b"", r"toy\.inter, line 1: no column 'user_id:token'"),
    "header only": (HEADER + "\n", r"toy.inter: holds no interactions"),
}


@pytest.mark.parametrize("case", BAD_INTER)
def test_a_bad_interaction_file_is_named_with_its_line(tmp_path, case):
    text, message = BAD_INTER[case]
    with pytest.raises(Problem, match=message):
        read(write(tmp_path / "d", inter=text))


def test_blank_lines_are_no_rows(tmp_path):
    text = table(GOOD).replace("bob\tq", "\nbob\tq") + "\n"
    assert samples(read(write(tmp_path / "d", inter=text)), "test") == naive_split(GOOD)["test"]


def test_the_line_of_a_bad_row_counts_blank_ones(tmp_path):
    text = table([*GOOD[:2], ("ann", "p", "noon")]).replace("ann\tp\tnoon", "\n\nann\tp\tnoon")
    with pytest.raises(Problem, match=r"toy\.inter, line 6: timestamp 'noon'"):
        read(write(tmp_path / "d", inter=text))


def test_bad_given_splits_name_the_file_of_the_three(tmp_path):
    folder = as_three_inter(tmp_path / "d")
    write(folder, valid__inter=table([("ann", "p", "noon")]))
    with pytest.raises(Problem, match=r"toy\.valid\.inter, line 2: timestamp 'noon'"):
        read(folder)
    (folder / "toy.valid.inter").unlink()
    with pytest.raises(Problem, match=r"toy\.valid\.inter: no such file"):
        read(folder)


def test_an_unknown_item_is_named(tmp_path):
    folder = write(as_one_inter(tmp_path / "d"), items__jsonl=lines(*({"item_id": i} for i in "pqst")))
    with pytest.raises(Problem, match=r"toy\.inter: item 'r' is not in toy\.items\.jsonl"):
        read(folder)


@pytest.mark.parametrize("layout", ["inter", "json"])
def test_short_users_are_counted_or_dropped(tmp_path, layout):
    short = {"dee": [0, 1], "eve": [2]}
    keep = {"ann": [0, 1, 2, 3], "cy": [3, 2, 1]}
    together = {"dee": short["dee"], "ann": keep["ann"], "eve": short["eve"], "cy": keep["cy"]}
    files = {"inter": table(sequence_rows(together))} if layout == "inter" else {"inter__json": together}
    folder = write(tmp_path / "d", **files)
    with pytest.raises(Problem, match=r"2 users .* fewer than 3 .*'dee' with 2; set short_users: drop"):
        read(folder)
    found = read(folder, short_users="drop")
    want = naive_split(sequence_rows({u: list(map(str, s)) for u, s in keep.items()}))
    assert {p: samples(found, p) for p in PARTS} == want


def test_users_too_short_to_train_on(tmp_path):
    folder = write(tmp_path / "d", inter=table(sequence_rows({"ann": "pqr", "bob": "rqp"})))
    with pytest.raises(Problem, match="the train part of 'toy' is empty"):
        read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines({"item_id": "p"}, {"item_id": "q"}, {"item_id": "p"}), r"line 3: item 'p' stands already in line 1"),
        (lines({"item_id": "7"}, {"item_id": 7}), r"line 2: item 7 stands already in line 1"),
        (lines({"item_id": "p"}, {"title": "no id"}), r"line 2: no item_id"),
        (lines({"item_id": "p"}, {"item_id": ""}), r"line 2: no item_id"),
        (lines({"item_id": "p"}, {"item_id": None}), r"line 2: no item_id"),
        (lines({"item_id": "p"}, ["item_id", "q"]), r"line 2: no item_id"),
        (lines({"item_id": "p"}) + '\n{"item_id": "q"\n', r"line 3: not readable as JSON"),
        (lines({"item_id": "p"}).encode() + b'{"item_id": "\xff"}\n', r"line 2: not UTF-8"),
    ],
)
def test_a_bad_items_file_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(Problem, match=r"toy\.items\.jsonl(, |: )" + message):
        read(write(as_one_inter(tmp_path / "d"), items__jsonl=text))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"p": 1, "q": 2, "r": 3, "s": 4, "t": 4}, r"1\.\.5, each once"),
        ({"p": 0, "q": 1, "r": 2, "s": 3, "t": 4}, r"1\.\.5"),
        ({"p": 1, "q": 2, "r": 3, "s": 4, "t": 6}, r"1\.\.5"),
        ({"p": True, "q": 2, "r": 3, "s": 4, "t": 5}, r"1\.\.5"),
        ({"p": "1", "q": 2, "r": 3, "s": 4, "t": 5}, r"1\.\.5"),
        (["p", "q"], r"expected an object"),
        ("{", r"not readable as JSON"),
        (b'{"\xff": 1}', r"not readable as JSON"),
    ],
)
def test_a_bad_item_map_is_named(tmp_path, ids, message):
    with pytest.raises(Problem, match=r"toy\.emb_map\.json: .*" + message):
        read(write(as_jsonl(tmp_path / "d"), emb_map__json=ids))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"inter_history": ["p"], "target_id": "zz"}, r"'zz' is missing from"),
        ({"inter_history": ["p"]}, r'expected \{"inter_history": \[...\], "target_id"'),
        ({"target_id": "p"}, r'expected \{"inter_history": \[...\], "target_id"'),
        ({"inter_history": [], "target_id": "p"}, r'expected \{"inter_history": \[...\], "target_id"'),
        ({"inter_history": None, "target_id": "p"}, r"expected"),
        ([1, 2], r"expected"),
        ("word", r"expected"),
    ],
)
def test_a_bad_sample_is_named_with_its_line(tmp_path, row, message):
    good = {"inter_history": ["p"], "target_id": "q"}
    folder = write(as_jsonl(tmp_path / "d"), valid__jsonl=lines(good, row))
    with pytest.raises(Problem, match=r"toy\.valid\.jsonl, line 2: " + message):
        read(folder)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"ann": [0, 1, 2, 3], "bob": [0, "x", 2]}, r"user 'bob' has the item 'x'"),
        ({"ann": [0, 1, 2, 3], "bob": [0, -1, 2]}, r"user 'bob' has the item -1"),
        ({"ann": [0, 1, 2, 3], "bob": [0, 1.5, 2]}, r"user 'bob' has the item 1\.5"),
        ({"ann": [0, 1, 2, 3], "bob": [0, True, 2]}, r"user 'bob' has the item True"),
        ({"ann": [0, 1, 2, 3], "bob": "012"}, r"expected an object of user -> list"),
        ([[0, 1, 2, 3]], r"expected an object of user -> list"),
        ("{", r"not readable as JSON"),
    ],
)
def test_a_bad_inter_json_names_the_user(tmp_path, found, message):
    with pytest.raises(Problem, match=r"toy\.inter\.json: " + message):
        read(write(tmp_path / "d", inter__json=found))


def test_no_data_at_all(tmp_path):
    with pytest.raises(Problem, match=r"neither .*toy nor .* holds files called toy\.\*"):
        read(tmp_path)
    with pytest.raises(Problem, match=r"gone' is no folder"):
        read(tmp_path / "gone")
    write(tmp_path / "d", notes="nothing")
    with pytest.raises(
        Problem, match=r"found none of toy\.inter, toy\.train\.inter, toy\.train\.jsonl, toy\.inter\.json"
    ):
        read(tmp_path / "d")
    with pytest.raises(Problem, match=r"toy\.train\.jsonl|toy\.emb_map\.json: no such file"):
        read(tmp_path / "d", data_format="jsonl")


# ---------------------------------------------------------------- embeddings

FIVE = np.arange(10, dtype=np.float32).reshape(5, 2)


def with_nan(row):
    return np.where(np.arange(5)[:, None] == row, np.nan, FIVE).astype(np.float32)


BAD_EMBEDDING = {
    "missing rows": (FIVE[:3], r"3 rows for 5 items; the first item without one is 's'"),
    "too many rows": (np.vstack([FIVE, FIVE]), r"10 rows for 5 items"),
    "NaN": (with_nan(2), r"row 2 \(item 'r'\) holds NaN"),
    "infinity": (np.where(FIVE == 9, np.inf, FIVE), r"row 4 \(item 't'\) holds NaN or infinity"),
    "one dimension": (FIVE[:, 0], r"expected floating-point \[items, D\], found float32 \[5\]"),
    "three dimensions": (FIVE[..., None], r"expected floating-point .*found float32 \[5, 2, 1\]"),
    "no width": (FIVE[:, :0], r"expected floating-point .*found float32 \[5, 0\]"),
    "integers": (FIVE.astype(np.int64), r"expected floating-point .*found int64 \[5, 2\]"),
    "empty file": (b"", "no NumPy array"),
}


@pytest.mark.parametrize("case", BAD_EMBEDDING)
def test_a_bad_embedding_is_named_with_its_row(tmp_path, case):
    content, message = BAD_EMBEDDING[case]
    folder = write(
        as_one_inter(tmp_path / "d"), items__jsonl=lines(*({"item_id": i} for i in "pqrst")), emb__npy=content
    )
    data = read(folder)
    with pytest.raises(Problem, match=r"toy\.emb\.npy: " + message):
        read_embeddings(data)


@pytest.mark.parametrize("kept", [8, 60, 130])
def test_a_truncated_embedding_is_a_clean_problem(tmp_path, kept):
    folder = write(as_one_inter(tmp_path / "d"), emb__npy=FIVE)
    path = folder / "toy.emb.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Problem, match=r"toy\.emb\.npy: not readable as \.npy"):
        read_embeddings(read(folder))


def test_an_archive_under_the_name_of_an_array(tmp_path):
    folder = as_one_inter(tmp_path / "d")
    with (folder / "toy.emb.npy").open("wb") as f:
        np.savez(f, FIVE)
    with pytest.raises(Problem, match=r"toy\.emb\.npy: "):
        read_embeddings(read(folder))


def test_which_embedding(logs_inter):
    with pytest.raises(Problem, match=r"beside 'toy': python scripts/embed_items.py .*; or set semantic_emb_path"):
        read_embeddings(read(logs_inter))
    np.save(logs_inter / "Toy.emb-a.npy", FIVE)
    with pytest.raises(Problem, match=r"which row belongs to which item\? Add toy\.items\.jsonl"):
        read_embeddings(read(logs_inter))
    rows = (logs_inter / "toy.inter").read_text().splitlines()[1:]
    ids = dict.fromkeys(row.split("\t")[1] for row in rows)
    (logs_inter / "toy.items.jsonl").write_text("".join(json.dumps({"item_id": i}) + "\n" for i in ids))
    assert np.array_equal(read_embeddings(read(logs_inter)), FIVE)
    np.save(logs_inter / "toy.emb-b.npy", -FIVE)
    with pytest.raises(Problem, match=r"several embeddings \(Toy\.emb-a\.npy, toy\.emb-b\.npy\)"):
        read(logs_inter)
    for chosen in ("toy.emb-b.npy", str(logs_inter / "toy.emb-b.npy")):
        assert np.array_equal(read_embeddings(read(logs_inter, semantic_emb_path=chosen)), -FIVE)
    with pytest.raises(Problem, match=r"semantic_emb_path: c\.npy: no such file"):
        read(logs_inter, semantic_emb_path="c.npy")


# ---------------------------------------------------------------- names that differ in case

# what lies in the folder; which data set is asked for -> whose interactions are read, or what is refused.
# A file's content tells whose it is: "t/t.inter" holds the users of "t/t".
SPELLED = {
    "both folders": (["t/t.inter", "T/T.inter"], {"t": "t/t", "T": "T/T"}),
    "both folders, other file names": (["t/T.inter", "T/t.inter"], {"t": "t/T", "T": "T/t"}),
    "only the other folder": (["T/T.inter"], {"t": "T/T", "T": "T/T"}),
    "three folders": (["Tt/Tt.inter", "tT/tT.inter", "TT/TT.inter"], {"TT": "TT/TT", "tt": "TT and .*Tt and .*tT"}),
    "both files": (["t.inter", "T.inter"], {"t": "t", "T": "T"}),
    "only the other file": (["T.inter"], {"t": "T", "T": "T"}),
    "several other files": (["TT.inter", "Tt.inter"], {"Tt": "Tt", "tt": r"TT\.inter and .*Tt\.inter"}),
    "endings that differ": (["t.INTER", "t.Inter"], {"t": r"t\.INTER and .*t\.Inter"}),
    "a file beside the other folder": (["t.inter", "T/T.inter"], {"t": "t", "T": "T/T"}),
}


@pytest.mark.parametrize("kind", SPELLED)
def test_an_exact_name_wins_and_an_inexact_one_must_be_the_only_one(tmp_path, caplog, monkeypatch, kind):
    monkeypatch.setattr(logging.getLogger("diger"), "propagate", True)
    caplog.set_level("INFO", "diger")
    paths, asked = SPELLED[kind]
    for path in paths:
        owner = path.rsplit(".", 1)[0]
        rows = [(owner, f"{owner}{i}", i) for i in range(4)]
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(table(rows, HEADER))
    if len({p.lower() for p in paths}) > len({p.name.lower() for p in tmp_path.rglob("*")}):
        pytest.skip("a file system that does not tell cases apart")
    for name, want in asked.items():
        caplog.clear()
        options = DataOptions(dataset=name, data_path=str(tmp_path))
        if any(want == path.rsplit(".", 1)[0] for path in paths):
            assert read_dataset(options).catalogue.ids == [f"{want}{i}" for i in range(4)]
            assert ("is read in its place" in caplog.text) == ({*want.split("/")} != {name})
        else:
            with pytest.raises(Problem, match=want):
                read_dataset(options)


# files of a folder; asked for toy -> files taken for items and embeddings (None: none), or what is refused
COMPANIONS = {
    "all exact": (["toy.items.jsonl", "toy.emb-a.npy"], "toy.items.jsonl", "toy.emb-a.npy"),
    "all inexact": (["Toy.items.jsonl", "Toy.emb-a.npy"], "Toy.items.jsonl", "Toy.emb-a.npy"),
    "twins": (["Toy.emb-a.npy", "toy.emb-a.npy"], None, "toy.emb-a.npy"),
    "twins of another vocabulary": (["Toy.emb-a.npy", "TOY.emb-a.npy"], r"TOY\.emb-a\.npy and .*Toy\.emb-a", None),
    "two models": (["Toy.emb-a.npy", "toy.emb-b.npy"], "several embeddings", None),
    "two lists": (["Toy.items.jsonl", "TOY.items.jsonl"], r"TOY\.items\.jsonl and .*Toy\.items\.jsonl", None),
}


@pytest.mark.parametrize("kind", COMPANIONS)
def test_which_items_and_embeddings_belong_to_a_data_set(logs_inter, kind):
    names, items, embedding = COMPANIONS[kind]
    ids = dict.fromkeys(row.split("\t")[1] for row in (logs_inter / "toy.inter").read_text().splitlines()[1:])
    for name in names:
        path = logs_inter / name
        if name.endswith(".npy"):
            np.save(path, FIVE)
        elif name.endswith(".inter"):
            path.write_text((logs_inter / "toy.inter").read_text())
        else:
            path.write_text(lines(*({"item_id": i, "title": name} for i in ids)))
    if items is not None and items not in names:
        with pytest.raises(Problem, match=items):
            read(logs_inter)
        return
    data = read(logs_inter)
    assert set(data.catalogue.titles) == {items or ""}
    assert (data.embedding_path and data.embedding_path.name) == embedding


def test_a_csv_file_that_is_named_is_the_one_that_is_read(tmp_path):
    for name in ("a.csv", "a.CSV", "A.csv"):
        rows = [("u", f"{name}{i}", i) for i in range(4)]
        (tmp_path / name).write_text(table(rows, "UserId\tProductId\tTimestamp").replace("\t", ","))
    for name in ("a.csv", "a.CSV", "A.csv"):
        data = read_dataset(DataOptions(dataset="a", data_path=str(tmp_path / name)))
        assert data.catalogue.ids == [f"{name}{i}" for i in range(4)]
