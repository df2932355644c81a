"""The study of cheap metrics: rank correlations against arithmetic, and three configurations from end to end."""

import numpy as np
import pytest
import yaml
from conftest import tiny_overrides, write_tiny

import main
from compose import cli
from scripts import sid_study
from utils import Problem, read_json


def rows_of(x, y):
    return {str(i): {"x": a, "y": b} for i, (a, b) in enumerate(zip(x, y, strict=True))}


def test_correlations_by_hand():
    """Six points, one pair out of order: rho = 1 - 6 * 2 / (6 * 35), tau = 13 / 15; ties take the mean rank."""
    found = sid_study.correlations(rows_of(range(6), [0, 1, 2, 3, 5, 4]), "x", "y")
    assert found["rho"] == pytest.approx(1 - 12 / 210) and found["tau"] == pytest.approx(13 / 15)
    # of 720 orders 12 have |rho| as large: the two monotone ones and five single exchanges of neighbours in each
    assert found["p"] == pytest.approx(12 / 720, abs=0.02) and found["low"] <= found["rho"] <= found["high"] + 1e-12
    tied = sid_study.correlations(rows_of([1, 1, 2, 3], [1, 2, 3, 4]), "x", "y")
    ranks = np.array([0.5, 0.5, 2, 3]), np.array([0, 1, 2, 3])
    assert tied["rho"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_what_never_differs_has_no_correlation():
    assert np.isnan(sid_study.correlations(rows_of([1, 1, 1, 2], [1, 2, 3, 4]), "x", "y")["rho"])


@pytest.fixture
def shop(tmp_path, monkeypatch):
    write_tiny(tmp_path / "dataset" / "tiny")
    options = tiny_overrides(tmp_path) | {
        "recommender": "rq_transformer", "epochs": 1, "num_beams": 10, "rqvae_epochs": 2, "num_emb_list": [8, 8, 8],
    }  # fmt: skip
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tiny.yaml").write_text(yaml.safe_dump(options))
    monkeypatch.setattr(cli, "CONFIG", tmp_path / "config")
    return lambda *words: sid_study.run(["tiny", *words])


def test_three_configurations_from_end_to_end(shop, tmp_path, monkeypatch):
    """Tables, correlations and plots are written; the second call trains nothing."""
    found = shop("rqvae,kmeans,random", "--seeds=1")
    assert list(found["mean"]) == ["rqvae", "kmeans", "random"]
    (path,) = (tmp_path / "out" / "tiny").glob("sid_study-*.json")
    assert read_json(path)["seeds"] == [1] and "| kmeans " in path.with_suffix(".md").read_text()
    drawn = {p.name.removeprefix(path.stem) for p in path.parent.glob("sid_study-*.svg")}
    assert drawn == {"-decoded-hit@30.svg", "-gini_sid.svg"}
    assert "kmeans" in path.with_name(f"{path.stem}-gini_sid.svg").read_text()
    test = found["tables"]["test"]
    assert {n for n, row in test.items() if "against" in row["ndcg@10"]} == {"kmeans", "random"}
    for name in ("kmeans", "random"):
        gap = found["mean"][name]["ndcg@10"] - found["mean"]["rqvae"]["ndcg@10"]
        assert test[name]["ndcg@10"]["against"]["rqvae"]["difference"] == pytest.approx(gap)
    valid = found["tables"]["validation"]["kmeans"]["ndcg@10"]["mean"]
    assert valid == pytest.approx(found["mean"]["kmeans"]["valid ndcg@10"])
    which = {(c["which"], c["n"]) for c in found["correlations"]}
    assert which == {("all", 3), ("real", 2)}
    monkeypatch.setattr(main, "train", None)
    assert shop("rqvae,kmeans,random", "--seeds=1")["mean"] == found["mean"]


def test_a_preset_may_take_the_place_of_the_data_sets(shop, tmp_path):
    options = yaml.safe_load((tmp_path / "config" / "tiny.yaml").read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(options | {"num_emb_list": [4, 4, 4]}))
    (tmp_path / "config" / "tiny.yaml").write_text("nothing: of this is read\n")
    shop("kmeans", "--seeds=1", f"--config={tmp_path / 'other.yaml'}")
    run = next((tmp_path / "out" / "tiny").glob("compare-*"))
    assert yaml.safe_load((run / "config.yaml").read_text())["num_emb_list"] == [4, 4, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rqvae,kmean"], "--rows: 'kmean' is not one of .*; did you mean 'kmeans'"),
        (["vectors"], "--vectors_from: row vectors needs it"),
        (["rqvae", "--seeds=x"], "--seeds: expected whole numbers"),
        (["rqvae", "--metrics=recall@5,ndcg@5", "--valid_metric=ndcg@5", "--num_beams=5"], "the table shows recall@10"),
    ],
)
def test_what_cannot_be_studied_is_refused(shop, words, message):
    with pytest.raises(Problem, match=message):
        shop(*words)
