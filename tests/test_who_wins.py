"""Users in groups: the groups by brute force, their figures from the ranks, what is refused."""

import shutil

import numpy as np
import pytest
import torch

from metrics import ndcg
from readers.splits import Split
from scripts import who_wins
from utils import Problem, read_json, write_json


def test_steps_of_the_training_part_by_hand():
    train = Split(np.array([1, 2, 3, 2, 3, 1]), np.array([0, 3, 3, 6]), np.array([1, 2, 4, 5]))  # users 1 2 3 | | 2 3 1
    assert who_wins.follows(train, 3).tolist() == [1 * 4 + 2, 2 * 4 + 3, 3 * 4 + 1]


def test_ranges_by_hand():
    found = who_wins.ranges("x", np.array([0, 1, 4, 5, 99]), [1, 5])
    assert {k: v.nonzero()[0].tolist() for k, v in found.items()} == {
        "x 0": [0],
        "x 1 to 4": [1, 2],
        "x 5 or more": [3, 4],
    }


def test_groups_by_brute_force_and_figures_from_the_ranks(trained, tmp_path, capsys):
    _, data, runs = trained
    paths = [str(runs[name].path) for name in ("sasrec", "two_stage")]
    table = who_wins.run([*paths, "--metric=ndcg@5", f"--json={tmp_path / 't.json'}"])
    assert read_json(tmp_path / "t.json") == table and f"| {len(data.test)} " in capsys.readouterr().out
    ranks = [torch.from_numpy(np.load(f"{p}/ranks-test.npy")[1]) for p in paths]
    items, offsets, train = data.test.items, data.test.offsets, data.train.alone()
    steps = set()
    for begin, end in zip(train.offsets[:-1], train.offsets[1:], strict=True):
        steps |= set(zip(train.items[begin : end - 1].tolist(), train.items[begin + 1 : end].tolist(), strict=True))
    for known in (True, False):
        rows = [b for b, p in enumerate(data.test.position) if ((int(items[p - 1]), int(items[p])) in steps) == known]
        row = table["target followed the last item" if known else "target never followed it"]
        assert row["users"] == len(rows)
        assert row["run"] == pytest.approx(float(ndcg(ranks[0][rows], 5).mean()))
        assert row["base"] == pytest.approx(float(ndcg(ranks[1][rows], 5).mean()))
    rare = [b for b, p in enumerate(data.test.position) if 1 <= data.popularity[items[p]] < 5]
    assert table["target occurs 1 to 4"]["users"] == len(rare)
    assert len(offsets) > 1 and table["all"]["users"] == sum(v["users"] for k, v in table.items() if "history" in k)


def test_refusals(trained, tmp_path):
    _, _, runs = trained
    path = str(runs["sasrec"].path)
    for words, line in (
        ([path], "two finished runs"),
        ([path, path, "--metric=coverage@5"], "not a metric of each user"),
        ([path, path, "--split=train"], "--split"),
        ([path, str(tmp_path)], "no finished run"),
        ([path, path, "--other=1"], "unknown option"),
        ([path, path, "--metric=recall@500"], r"its lists are of \d+ items, too short for recall@500"),
    ):
        with pytest.raises(Problem, match=line):
            who_wins.run(words)


def test_runs_of_unlike_protocols_are_refused(trained, tmp_path):
    _, _, runs = trained
    path = runs["sasrec"].path
    other = tmp_path / path.name
    shutil.copytree(path, other)
    config = other / "config.yaml"
    plain = config.read_text()
    config.write_text(plain.replace("data_path: ", "data_path: ./"))  # the same data by another vocabulary
    who_wins.run([str(path), str(other)])
    config.write_text(plain.replace("mask_seen: false", "mask_seen: true"))
    with pytest.raises(Problem, match="mask_seen"):
        who_wins.run([str(path), str(other)])


def test_a_run_that_did_not_note_its_lists_length_is_known_to_its_longest_metric(trained, tmp_path):
    _, _, runs = trained
    other = tmp_path / "other"
    shutil.copytree(runs["sasrec"].path, other)
    told = read_json(other / "test.json")
    longest = max(int(m.partition("@")[2]) for m in told if m.startswith("recall@"))
    del told["list_length"]
    write_json(other / "test.json", told)
    who_wins.run([str(other), str(other), f"--metric=recall@{longest}"])
    write_json(other / "test.json", told | {"valid": None})
    with pytest.raises(Problem, match="no figures of the validation"):
        who_wins.run([str(other), str(other), "--split=valid"])
    write_json(other / "test.json", told)
    with pytest.raises(Problem, match=f"its lists are of {longest} items"):
        who_wins.run([str(other), str(other), f"--metric=recall@{longest + 1}"])
