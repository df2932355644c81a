"""Recommendations for a file of users: the same as one by one, whatever the order of rows and the format."""

import csv
import json

import killed
import numpy as np
import pyarrow.parquet as pq
import pytest

import main
from serve import bulk
from serve.loaded import load
from utils import Problem

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def users_of(data):
    """Histories by user, from the splits."""
    s, ids = data.test, data.catalogue.ids
    return [[ids[i - 1] for i in s.items[a:b]] for a, b in zip(s.offsets[:-1], s.offsets[1:], strict=True)]


@pytest.fixture
def log_file(trained, tmp_path):
    """All interactions, rows shuffled among users and times; returns (path, histories)."""
    histories = users_of(trained[1])
    rows = [f"u{u}\t{item}\t{t}\n" for u, h in enumerate(histories) for t, item in enumerate(h)]
    order = np.random.default_rng(0).permutation(len(rows))
    (tmp_path / "all.inter").write_text(HEADER + "".join(rows[i] for i in order))
    return tmp_path / "all.inter", histories


def read(path):
    """{user: [(item, title, score)]} of any of the formats."""
    found = {}
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {r["user_id"]: [(i["item_id"], i["title"], i["score"]) for i in r["items"]] for r in lines}
    table = path.suffix == ".parquet"
    rows = pq.read_table(path).to_pylist() if table else list(csv.DictReader(path.open(newline="")))
    for row in rows:
        found.setdefault(row["user_id"], []).append((row["item_id"], row["title"], float(row["score"])))
        assert int(row["rank"]) == len(found[row["user_id"]])
    return found


@pytest.mark.parametrize("name", ["frqud", "two_stage", "sasrec"])
def test_every_user_gets_what_they_get_alone(trained, log_file, tmp_path, name):
    path, histories = log_file
    for words in ([], ["--mask_seen=true"]):
        out = tmp_path / f"recs{len(words)}.parquet"
        main.main(
            ["recommend", f"--checkpoint={trained[2][name].best}", f"--users={path}", f"--output={out}", "--k=5",
             "--eval_batch_size=7", *words]
        )  # fmt: skip
        alone = load(trained[2][name].best, words).recommend(histories, 5)
        found = read(out)
        assert len(found) == len(histories)
        for user, wanted in enumerate(alone):
            mine = found[f"u{user}"]
            assert [m[:2] for m in mine] == [h[:2] for h in wanted]
            assert [m[2] for m in mine] == pytest.approx([h.score for h in wanted], abs=1e-4)


def test_all_formats_hold_the_same(trained, log_file, tmp_path):
    found = []
    for ending in ("parquet", "csv", "jsonl"):
        out = tmp_path / f"recs.{ending}"
        main.main(
            ["recommend", f"--checkpoint={trained[2]['sasrec'].best}", f"--users={log_file[0]}", f"--output={out}"]
        )
        found.append(read(out))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for user, rows in other.items():
            assert [r[:2] for r in rows] == [r[:2] for r in found[0][user]]
            assert [r[2] for r in rows] == pytest.approx([r[2] for r in found[0][user]], rel=1e-5)


@pytest.mark.parametrize("name", ["frqud", "sasrec"])
def test_allow_and_deny(trained, log_file, tmp_path, name, capsys):
    (tmp_path / "allow").write_text("i1\ni2\ni3\ni4\n")
    (tmp_path / "deny").write_text("i2\ni9\n")
    words = [f"--checkpoint={trained[2][name].best}", f"--allow={tmp_path / 'allow'}", f"--deny={tmp_path / 'deny'}"]
    main.main(["recommend", *words, f"--users={log_file[0]}", f"--output={tmp_path / 'recs.csv'}"])
    assert {tuple(sorted(r[0] for r in rows)) for rows in read(tmp_path / "recs.csv").values()} == {("i1", "i3", "i4")}
    capsys.readouterr()
    main.main(["recommend", *words, "--history=i5"])
    assert sorted(line.split()[2] for line in capsys.readouterr().out.splitlines()) == ["i1", "i3", "i4"]


def test_what_the_model_does_not_know_is_left_out(trained, tmp_path):
    loaded = load(trained[2]["sasrec"].best)
    rows = ["a\ti1\t3\n", "a\tnew\t2\n", "b\tnew\t1\n", "a\ti2\t1\n", "c\ti3\t5\n", "a\ti4\t1\n"]
    (tmp_path / "x.inter").write_text(HEADER + "".join(rows))
    found = bulk.read_histories(tmp_path / "x.inter", loaded.number)
    assert found.users == ["a", "c"]
    assert [[loaded.items[i - 1] for i in found.of(u)] for u in range(2)] == [["i2", "i4", "i1"], ["i3"]]
    (tmp_path / "y.inter").write_text(HEADER + "b\tnew\t1\n")
    with pytest.raises(Problem, match=r"y\.inter: holds no item of the model"):
        bulk.read_histories(tmp_path / "y.inter", loaded.number)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--users=X", "--output=recs.txt"], r"recs\.txt: expected a name that ends in \.parquet, \.csv, \.jsonl"),
        (["--users=X", "--output=there.csv"], r"there\.csv is there already"),
        (["--users=X"], "go together"),
        (["--output=a.csv", "--history=i1"], "go together"),
        (["--users=X", "--history=i1", "--output=a.csv"], "or --users"),
        (["--users=nowhere.inter", "--output=a.csv"], r"nowhere\.inter: no such file"),
        (["--users=X", "--output=a.csv", "--allow=one", "--deny=one"], "they leave no item to recommend"),
        (["--users=X", "--output=none/a.csv"], "the folder none is not there"),
    ],
)
def test_a_wrong_command_is_one_line(trained, log_file, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "one").write_text("i1\n")
    words = [w.replace("=X", f"={log_file[0]}") for w in words]
    with pytest.raises(Problem, match=message):
        main.main(["recommend", f"--checkpoint={trained[2]['sasrec'].best}", *words])
    assert (tmp_path / "there.csv").read_text() == "mine" and not (tmp_path / "a.csv").exists()


def test_a_failure_leaves_no_part_of_a_file(trained, log_file, tmp_path):
    loaded = load(trained[2]["sasrec"].best)
    histories = bulk.read_histories(log_file[0], loaded.number)
    histories.item[-1] = 10**6  # the last user's: met when others have been written
    object.__setattr__(loaded.cfg.sections["evaluation"], "eval_batch_size", 1)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Exception):  # noqa: B017 - whatever the model says of an item that is none
        bulk.recommend_all(loaded, histories, tmp_path / "recs.parquet", 5)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.dist
@pytest.mark.parametrize("name", ["two_stage", "sasrec"])
def test_two_processes_rank_as_one(trained, log_file, tmp_path, name):
    """The file of `recommend`, the order of users included, and the figures of `evaluate`, said once."""
    argv = ["recommend", f"--checkpoint={trained[2][name].best}", f"--users={log_file[0]}", "--eval_batch_size=2"]
    outputs = [tmp_path / f"{n}.csv" for n in (1, 2)]
    main.main([*argv, f"--output={outputs[0]}"])
    codes, said = killed.train(tmp_path, [*argv, f"--output={outputs[1]}"], processes=2)
    assert codes == [0, 0], said
    one, two = (read(path) for path in outputs)  # whose scores may end otherwise: threads sum in another order
    assert list(one) == list(two) and "recommendations" in said[0] and "recommendations" not in said[1]
    for user, rows in one.items():
        assert [row[:2] for row in rows] == [row[:2] for row in two[user]]
        assert [row[2] for row in rows] == pytest.approx([row[2] for row in two[user]], abs=1e-4)
    figures = []
    for n in (1, 2):
        words = ["evaluate", f"--checkpoint={trained[2][name].best}", "--split=valid"]
        codes, said = killed.train(tmp_path, words, processes=n)
        assert codes == [0] * n, said
        lines = [line for line in said[0].splitlines() if line.startswith("valid/") and "users_per_s" not in line]
        figures.append(lines)
        assert not any("valid/" in text for text in said[1:])
    assert figures[0] == figures[1] and len(figures[0]) > 4
