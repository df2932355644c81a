"""The comparison of lengths and the study of unseen items, from end to end on a toy."""

import numpy as np
import pytest
import yaml
from conftest import tiny_at

import main
import settings
from compose import cli
from scripts import cut_study, length_study, study
from utils import Problem, read_json

DVAE = {"tokenizer": "dvae", "num_emb_list": [16, 16, 16], "dvae_steps": 12, "rqvae_epochs": 3, "rqvae_batch_size": 32,
        "dvae_width": 16, "dvae_decoder_width": 16, "taught_share": 0.3, "max_shared": 1.0}  # fmt: skip


@pytest.fixture
def shop(tmp_path, monkeypatch):
    options = tiny_at(tmp_path) | {
        "method": "two_stage", "recommender": "rq_transformer", "epochs": 1, "num_beams": 10, **DVAE}  # fmt: skip
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tiny.yaml").write_text(yaml.safe_dump(options))
    monkeypatch.setattr(cli, "CONFIG", tmp_path / "config")
    table = settings.read_yaml(study.TABLES / "lengths.yaml")
    for row in table["rows"].values():
        if "num_emb_list" in (own := row.get("options", {})):
            own["num_emb_list"] = [16] * len(own["num_emb_list"])
    (tmp_path / "config" / "lengths.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    monkeypatch.setattr(study, "TABLES", tmp_path / "config")
    return tmp_path


def test_arms_from_end_to_end(shop, monkeypatch):
    """The table's figures, pictures whose curves are the families of arms, and a second call that trains nothing."""
    names = ["fixed2", "fixed3", "cut2", "dvae cut2", "cut2 permuted", "cut2 by count", "rqvae3"]
    argv = [str(shop / "config" / "tiny.yaml"), ",".join(names)]
    result = length_study.run(argv)
    found = result["each"]
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(names, 1)
    cut, dealt = found["cut2"][0], found["cut2 permuted"][0]
    assert found["cut2 by count"][0]["tokens/event"] <= cut["tokens/event"] and cut["error p"] < dealt["error p"]
    assert len({found[name][0]["tokens/item"] for name in ("cut2", "cut2 permuted", "cut2 by count")}) == 1
    assert found["fixed2"][0]["tokens/event"] == pytest.approx(3)
    assert found["cut2"][0]["tokens/event"] <= 3.05
    assert {found["fixed3"][0][f"codes of tenth {i}"] for i in range(1, 11)} == {3}
    path = next((shop / "out" / "tiny").glob("lengths-*.json"))
    assert read_json(path) == result
    test = result["tables"]["test"]
    assert {n for n, row in test.items() if "against" in row["ndcg@10"]} == {*names[1:]}
    for name, metric in ((n, m) for n in names[1:] for m in ("recall@10", "ndcg@10")):
        gap = found[name][0][metric] - found["fixed2"][0][metric]
        assert test[name][metric]["against"]["fixed2"]["difference"] == pytest.approx(gap)
    drawn = {kind: path.with_name(f"{path.stem}-{kind}.svg").read_text() for kind in ("error", "popularity")}
    assert [drawn["error"].count(f">{name}<") for name in ("fixed", "cut", "dvae cut")] == [1, 1, 1]
    assert drawn["error"].count("<polyline") == 6 and drawn["popularity"].count("<polyline") == 4
    monkeypatch.setattr(main, "train", None)
    again = length_study.run(argv)["each"]
    assert {n: e[0]["ndcg@10"] for n, e in again.items()} == {n: e[0]["ndcg@10"] for n, e in found.items()}


@pytest.mark.parametrize("name", ["ml-100k", "scientific", "beauty"])
def test_every_arm_is_a_run_that_can_be_composed(name):
    arms = study.read_table(study.ROOT / "config" / "tables" / "lengths.yaml")
    ask = study.Asked(name, [1], {}, cli.CONFIG / f"{name}_varlen.yaml")
    lengths = {job.arm.name: settings.flat(job.cfg) for job in study.plan(arms, ask, ["ndcg@10"])}
    assert lengths["fixed2"]["target_length"] is lengths["cut2 permuted"]["target_length"] is None
    assert lengths["cut2"]["target_length"] == 2 and lengths["rqvae3"]["num_emb_list"] == [256] * 3



def test_the_study_of_the_cut_draws_what_it_measured(shop, tmp_path, monkeypatch):
    """Four pictures and a table; a second call fits nothing, and one on other embeddings fits anew."""
    out, here = tmp_path / "cut.json", [f"--data_path={shop / 'dataset'}", f"--output_dir={tmp_path / 'fits'}"]
    argv = ["tiny", *here, "--json", str(out), "--num_emb_list=16,16,16", "--kmeans_iters=3"]
    rows = cut_study.run(argv)
    assert list(rows) == ["tiny, uniform", "tiny, counts"]
    assert rows["tiny, counts"][0]["cut 2.0"]["expected_tokens_weighted"] == pytest.approx(2, abs=0.05)
    fits = sorted(p.name for p in (tmp_path / "fits" / "tiny").iterdir())
    assert cut_study.run(argv) == rows and len(fits) == 2
    assert sorted(p.name for p in (tmp_path / "fits" / "tiny").iterdir()) == fits
    names = sorted(p.name for p in tmp_path.glob("cut-*.svg"))
    assert names == [f"cut-tiny-{w}-{n}.svg" for w in ("counts", "uniform") for n in ("error", "popularity")]
    error = (tmp_path / names[0]).read_text()
    assert [error.count(f">{name}<") for name in ("fixed", "cut", "permuted", "by count")] == [1, 1, 1, 1]
    assert "| tiny, counts, 1 | cut 2.0 |" in " ".join(out.with_suffix(".md").read_text().split())
    file = next((shop / "dataset" / "tiny").glob("*.npy"))
    np.save(file, np.load(file)[::-1])
    assert cut_study.run(argv) != rows and len(list((tmp_path / "fits" / "tiny").iterdir())) == 4


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (cut_study.run, ["--tokenizer=dvae", "--json", "x.json"], "the study sets it itself"),
        (length_study.run, ["--num_emb_list=16,16"], "is what the rows are"),
        (length_study.run, ["--method=diger"], "is what the rows are"),
        (length_study.run, ["--rqvae_path=x.pth"], "is what the rows are"),
        (cut_study.run, [], "needs data sets and a file"),
        (
            length_study.run,
            ["--metrics=recall@10,ndcg@10,recall@20", "--num_beams=20"],
            "the table shows coverage@10",
        ),
        (length_study.run, ["--collision=none"], "shares SIDs"),
        (length_study.run, ["--seed=1", "--seeds=2"], "name one of the two"),
    ],
    ids=lambda x: x.__module__ if callable(x) else str(x),
)
def test_what_a_study_cannot_follow_is_said_before_it_begins(shop, command, words, said):
    first = ["tiny"] if command is cut_study.run else [str(shop / "config" / "tiny.yaml"), "fixed2"]
    with pytest.raises(Problem, match=said):
        command([*first, f"--data_path={shop / 'dataset'}", *words])
