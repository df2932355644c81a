"""The comparison: its reuse of runs, what it refuses, how a run's ranks are read."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_at, write_tiny

import main
from compose import cli
from runs.folder import RunFolder
from runs.report import read_ranks
from scripts import compare
from utils import Problem


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A data set, its presets, and `compare` looking for them there; returns a caller of compare."""
    options = tiny_at(tmp_path) | {
        "hidden_units": 8,
        "epochs": 1,
        "metrics": ["recall@5", "ndcg@5", "coverage@5"],
    }
    options |= {"valid_metric": "ndcg@5", "num_beams": 5}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tiny.yaml").write_text(yaml.safe_dump(options))
    monkeypatch.setattr(cli, "CONFIG", tmp_path / "config")
    return lambda *words: compare.compare(["tiny", *words])


def looks(tmp_path):
    return {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "out" / "tiny").glob("*/test_looks.json")}


def test_every_method_in_one_table(shop, tmp_path):
    """All kinds and decodings, two seeds; the second call trains nothing."""
    names = "popularity,sasrec,diffsasrec,diffsasrec_multi,sasrec_autoregressive,diffsasrec_sft,two_stage,frqud,content"
    found = shop(names, "--seeds=1,2")
    assert list(found) == names.split(",")
    assert {r["users"] for r in found.values()} == {60}
    assert [found[n]["seeds"] for n in ("popularity", "frqud", "diffsasrec_sft")] == [1, 2, 2]
    before = looks(tmp_path)
    assert len(before) == 2 * 5  # sasrec, diffsasrec, diffsasrec_sft, two_stage, frqud
    again = shop(names.replace("_multi", ""), "--seeds=1,2")
    assert again["frqud"]["ndcg@5"]["seeds"] == found["frqud"]["ndcg@5"]["seeds"]
    assert looks(tmp_path) == before


def test_options_make_another_run(shop, tmp_path):
    shop("sasrec", "--seeds=1")
    shop("sasrec", "--seeds=1", "--hidden_units=16")
    assert len(looks(tmp_path)) == 2


def test_a_run_that_went_on_with_other_options_is_no_row(shop, tmp_path):
    shop("sasrec", "--seeds=1")
    (run,) = (tmp_path / "out" / "tiny").glob("*/run.json")
    mine = run.parent.rename(run.parent.with_name("mine")) / "run.json"
    shop("sasrec", "--seeds=1")
    assert list(looks(tmp_path)) == ["mine"]
    mine.write_text(json.dumps(json.loads(mine.read_text()) | {"changed": True}))
    shop("sasrec", "--seeds=1")
    assert len(looks(tmp_path)) == 2
    (own,) = (tmp_path / "out" / "tiny").glob("compare-*/run.json")
    own.write_text(mine.read_text())
    with pytest.raises(Problem, match=r"compare-sasrec.*: was continued with other options than its name says"):
        shop("sasrec", "--seeds=1")


def test_another_file_under_the_same_name_makes_another_run(shop, tmp_path):
    shop("two_stage", "--seeds=1,2")
    named, counts = tmp_path / "t.pth", []
    for tokenizer in sorted((tmp_path / "out" / "tiny").glob("rqvae-*/best_collision_model.pth")):
        for _ in range(2):
            shutil.copy(tokenizer, named)
            shop("two_stage", "--seeds=1", f"--rqvae_path={named}")
            counts.append(len(looks(tmp_path)))
    assert counts == [3, 3, 4, 4]


def test_unlike_protocols_are_refused(shop, tmp_path):
    preset = yaml.safe_load((tmp_path / "config" / "tiny.yaml").read_text())
    (tmp_path / "config" / "tiny_diffsasrec.yaml").write_text(yaml.safe_dump(preset | {"mask_seen": True}))
    with pytest.raises(Problem, match=r"mask_seen: False for sasrec but True for diffsasrec; .* --mask_seen=False"):
        shop("sasrec,diffsasrec")
    assert not (tmp_path / "out").exists()


WRONG = {
    ("sasrecc",): "method: 'sasrecc' is not one of",
    (): "needs a data set and methods",
    ("sasrec", "--seeds=1,x"): "--seeds: expected whole numbers .* got 'x'",
    ("sasrec", "--epoch=1"): "did you mean 'epochs'",
    (",",): "',' names no method",
    ("popularity_multi,sasrec",): "popularity_multi: popularity is not decoded that way",
    ("frqud_autoregressive",): "frqud_autoregressive: frqud is not decoded that way",
    ("sasrec_multi",): "sasrec_multi: sasrec is not decoded that way; diffsasrec, diffsasrec_sft can be",
    ("sasrec[t5],frqud",): r"'sasrec\[t5\]': sasrec recommends by items, it has no parts to choose",
    ("popularity[t5]",): "has no parts to choose",
    ("two_stage[t5+rq_transformer]",): "t5 and rq_transformer are both a recommender; name one",
    ("two_stage[]",): "write the parts as in",
    ("two_stage[rq_kmean]",): "did you mean 'rq_kmeans'",
    ("sasrec", "--encoder_layers=2"): "which no row has; choose rows like two_stage.t5., or drop it",
    ("frqud", "--initial_std=3"): "is read with uncertainty: sdud .*, as no row is; choose rows like sdud, or",
    ("two_stage", "--behaviour_width=3"): "with behaviour: .*; add --behaviour=pairs or --behaviour=vectors, or",
    ("frqud", "--target_length=2"): "row frqud: target_length: .*; leave that row out, or drop the option",
    ("sasrec,frqud", "--split=time_groups", "--seeds=1,2"): "make the table with one seed",
    ("frqud", "--uncertainty=sdud"): "--uncertainty: is what the rows are; choose rows",
    ("frqud", "--run_name=mine"): "--run_name: a table names its runs by their options",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_command_is_refused(shop, words):
    with pytest.raises(Problem, match=WRONG[words]):
        shop(*words)


def test_a_data_set_without_a_preset(shop):
    with pytest.raises(Problem, match=r"config/other\.yaml: no such configuration"):
        compare.compare(["other", "sasrec"])


def test_what_a_later_method_lacks_is_said_before_the_first_is_trained(shop, tmp_path):
    (tmp_path / "dataset" / "tiny" / "tiny.emb-test.npy").unlink()
    with pytest.raises(Problem, match="no content embeddings"):
        shop("sasrec,content")
    assert not looks(tmp_path)


def test_a_seed_counts_once(shop):
    assert shop("sasrec", "--seeds=1,1")["sasrec"]["seeds"] == 1


def test_few_users_are_called_few(shop, capsys):
    shop("popularity,content")
    assert "60 test users are too few to rank methods" in capsys.readouterr().out
    assert torch.get_num_threads() == 1


# ranks as they may lie in a run of 4 users whose true ranks are 0, 9, 40000 (missed), 70000 (missed): are they its own?
RANKS = {
    "whole": ([0, 9, 40_000, 70_000], True),
    "cut to 16 bits": (np.array([0, 9, 40_000, 70_000]).astype(np.int16), False),
    "of other users": ([0, 1], False),
    "of another run": ([5, 9, 40_000, 3], False),
}


@pytest.mark.parametrize("kind", RANKS)
def test_ranks_must_give_the_figures_of_the_run(tmp_path, kind):
    rank, own = RANKS[kind]
    run = RunFolder(tmp_path)
    run.save_results({"recall@5": 0.25, "recall@10": 0.5, "coverage@10": 0.7, "num_users": 4})
    np.save(tmp_path / "ranks-test.npy", np.stack([np.arange(len(rank)), rank]).astype(np.int32))
    if own:
        assert read_ranks(run)[1].tolist() == rank
    else:
        with pytest.raises(Problem, match=r"ranks-test\.npy: gives recall@\d+ .* says 0"):
            read_ranks(run)


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x93NUMPY"])
def test_ranks_that_cannot_be_read(tmp_path, content):
    run = RunFolder(tmp_path)
    run.save_results({"recall@5": 0.25})
    if content is not None:
        (tmp_path / "ranks-test.npy").write_bytes(content)
    with pytest.raises(Problem, match=r"ranks-test\.npy: not readable"):
        read_ranks(run)


@pytest.mark.parametrize("ending", [".emb-test.npy", ".inter", ".items.jsonl"])
def test_data_that_change_while_a_table_is_made(shop, tmp_path, monkeypatch, ending):
    """The second method would be trained on other data than the first."""
    path, inner = tmp_path / "dataset" / "tiny" / f"tiny{ending}", main.train

    def train(cfg, advice):
        run = inner(cfg, advice)
        other = write_tiny(tmp_path / "other", seed=1) / path.name
        path.write_bytes(
            other.read_bytes() if ending != ".items.jsonl" else path.read_bytes().replace(b"Item", b"Thing")
        )
        return run

    monkeypatch.setattr(main, "train", train)
    with pytest.raises(Problem, match="was trained on other data than this table started with"):
        shop("sasrec,diffsasrec")
