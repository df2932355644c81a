"""The table of reproduce.py: its rows, its verdicts against scipy, what a second call trains."""

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_overrides, write_tiny
from scipy import stats

import main
import settings
from metrics import per_user
from readers.splits import DataOptions
from scripts import reproduce
from scripts.compare import Row
from scripts.reproduce import Outcome, Spec
from utils import Problem, read_json


@pytest.mark.parametrize("name", reproduce.read_rows([]))
@pytest.mark.parametrize("dataset", ["demo", "scientific", "beauty"])
def test_every_row_is_a_run_that_can_be_composed(name, dataset):
    spec = reproduce.read_rows([name])[name]
    jobs = reproduce.plan({name: spec}, dataset, [1, 2], {"lr_rec": 2e-3})
    assert len(jobs) == (2 if jobs[0].trains else 1)


def test_a_row_reads_the_vectors_of_the_run_with_its_seed():
    jobs = reproduce.plan(reproduce.read_rows(["two_stage_vectors"]), "scientific", [1, 2], {})
    sources = [(j.cfg[DataOptions].seed, j.source[DataOptions].seed) for j in jobs if j.row == "two_stage_vectors"]
    assert sources == [(1, 1), (2, 2)]


def test_a_preset_by_name():
    """--config stands in for the data set's preset; a method that has a preset of its own keeps it."""
    preset = main.CONFIG / "beauty_rq_transformer.yaml"
    jobs = reproduce.plan(reproduce.read_rows(["sasrec", "frqud"]), "beauty", [1], {}, preset)
    epochs = {j.row: settings.flat(j.cfg)["epochs"] for j in jobs}
    assert epochs["two_stage"] == epochs["frqud"] == settings.read_yaml(preset)["epochs"]
    assert epochs["sasrec"] == settings.read_yaml(main.CONFIG / "beauty_sasrec.yaml")["epochs"]


@pytest.mark.parametrize(
    "asked",
    [
        {"recommender": "t5", "encoder_layers": 1, "decoder_layers": 1},
        {"tokenizer": "rq_kmeans", "kmeans_start": "kmeans++"},
        {"recommender": "decoder", "dropout_rate": 0.05},
    ],
)
def test_options_of_a_part_that_the_command_line_chooses(asked):
    flat = settings.flat(reproduce.plan(reproduce.read_rows(["two_stage"]), "scientific", [1], asked)[0].cfg)
    assert {key: flat[key] for key in asked} == asked


def test_a_preset_beside_the_data(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "shop.yaml").write_text("dataset: shop\nepochs: 3\n")
    (job,) = reproduce.plan(reproduce.read_rows(["two_stage"]), "shop", [1], {"data_path": str(tmp_path)})
    assert settings.flat(job.cfg)["epochs"] == 3


def test_a_row_brings_its_twin():
    assert list(reproduce.read_rows(["frqud"])) == ["two_stage", "frqud"]
    assert list(reproduce.read_rows(["frqud_vectors"])) == ["sasrec", "two_stage_vectors", "frqud_vectors"]
    needs = ["two_stage_sids_alone", "frqud_prefix_alone", "restart_alone"]
    assert list(reproduce.read_rows(["restart_alone"])) == needs
    jobs = reproduce.plan(reproduce.read_rows(["restart_alone"]), "scientific", [1, 2], {"rqvae_path": "x.pth"})
    assert [(j.row, j.source[DataOptions].seed) for j in jobs if j.source] == [
        ("restart_alone", 1),
        ("restart_alone", 2),
    ]
    with pytest.raises(Problem, match="did you mean 'two_stage'"):
        reproduce.read_rows(["two_stages"])


def test_a_row_about_an_option_needs_a_preset_that_has_it():
    """Of its own accord no table has such rows; their rates are the preset's."""
    rows = reproduce.read_rows(["restart_latent_alone"])
    assert not rows.keys() - {"two_stage_sids_alone"} & reproduce.read_rows([]).keys()
    with pytest.raises(Problem, match="at_rest_latent_alone is about latent_loss, which the preset leaves at 0"):
        reproduce.plan(rows, "scientific", [1], {})
    preset = reproduce.ROOT / "config" / "scientific_sids_alone.yaml"
    jobs = {job.row: settings.flat(job.cfg) for job in reproduce.plan(rows, "scientific", [1], {}, preset)}
    given = settings.read_yaml(preset)
    moving, resting = jobs["frqud_latent_alone"], jobs["at_rest_latent_alone"]
    assert moving["label_prior"] == given["label_prior"] == "prefix"
    assert all(moving[k] == float(given[k]) > 0 for k in ("latent_loss", "offset_prior", "lr_id", "lr_offset"))
    assert resting["latent_loss"] == given["latent_loss"] and resting["lr_id"] == resting["lr_offset"] == 0


@pytest.fixture
def ranks():
    draw = np.random.default_rng(0)
    return {name: {seed: draw.integers(0, 30, 500) for seed in (1, 2, 3)} for name in ("ours", "twin")}


def test_verdict_against_scipy(ranks):
    """z and p over users and the interval over seeds, as scipy's paired and one-sample tests have them."""
    ours = Row("ours", ranks["ours"])
    twin = Row("twin", {s: ranks["twin"][s] for s in (3, 2, 1)})  # in another order
    found = reproduce.against(ours, twin, "ndcg@10")
    value = {k: {s: per_user("ndcg@10", torch.from_numpy(r)).numpy() for s, r in v.items()} for k, v in ranks.items()}
    mean = {k: np.mean(list(v.values()), 0) for k, v in value.items()}
    assert found["z"] == pytest.approx(stats.ttest_rel(mean["ours"], mean["twin"]).statistic)
    for seed, p in zip((1, 2, 3), found["p"], strict=True):
        assert p == pytest.approx(stats.ttest_rel(value["ours"][seed], value["twin"][seed]).pvalue, rel=0.02)
    each = [value["ours"][s].mean() - value["twin"][s].mean() for s in (1, 2, 3)]
    low, high = stats.ttest_1samp(each, 0).confidence_interval(0.95)
    assert found["interval"] == pytest.approx((high - low) / 2)


def test_verdicts_in_words():
    hit, miss = np.zeros(100, int), np.full(100, 99)
    good, bad = Row("good", {1: hit}), Row("bad", {1: np.where(np.arange(100) < 50, hit, miss)})
    assert reproduce.against(good, bad, "recall@10")["verdict"] == "above"
    assert reproduce.against(bad, good, "recall@10")["verdict"] == "below"
    assert reproduce.against(good, good, "recall@10")["verdict"] == "no difference shown"
    assert reproduce.against(good, bad, "recall@10")["interval"] is None
    words = [reproduce.verdict(0.01, z, half) for z in (3, -3, 1) for half in (None, 0.009, 0.011)]
    unsure = " for these users, not over seeds"
    assert words == [
        "above",
        "above",
        f"above{unsure}",
        "below",
        "below",
        f"below{unsure}",
        *["no difference shown"] * 3,
    ]
    verdicts = [reproduce.against_published(x, 0.04)["verdict"] for x in (0.0381, 0.0379, 0.0419, 0.0421)]
    assert verdicts == ["reproduced", "below", "reproduced", "above"]


def test_only_seeds_that_both_have_are_compared(ranks):
    ours, twin = Row("ours", ranks["ours"]), Row("twin", {2: ranks["twin"][2]})
    found = reproduce.against(ours, twin, "recall@10")
    assert len(found["p"]) == 1
    alone = reproduce.against(ours.on([2]), twin, "recall@10")
    assert found == alone
    apart = {"a": Outcome(ours), "b": Outcome(Row("b", {9: ranks["twin"][1]}))}
    table = reproduce.judged({"a": Spec("frqud", twin="b")}, apart, {})
    assert "twin" not in table["a"]["ndcg@10"]


def test_further_rows_are_compared_where_the_table_has_them(ranks):
    spec, ours, twin = Spec("frqud", beside=["b", "elsewhere"]), Row("a", ranks["ours"]), Row("b", ranks["twin"])
    table = reproduce.judged({"a": spec}, {"a": Outcome(ours), "b": Outcome(twin)}, {})
    found = table["a"]["ndcg@10"]["beside"]
    assert found == {"b": reproduce.against(ours, twin, "ndcg@10")}
    assert f"| b {found['b']['difference']:+.4f} (" in reproduce.markdown(table, {})


def test_seeds_that_failed_are_told_beside_the_others(ranks):
    part = Outcome(Row("a", ranks["ours"]), failure="step 7: not finite")
    text = reproduce.markdown(reproduce.judged({"a": Spec("frqud")}, {"a": part}, {}), {})
    head, _, row, *_ = text.splitlines()
    assert row.startswith("| a | 3, failed for the others: step 7: not finite | ") and row.count("|") == head.count("|")


def test_every_row_to_be_compared_with_is_a_row():
    rows = reproduce.read_rows(list(settings.read_yaml(reproduce.ROOT / "config" / "tables" / "rows.yaml")))
    assert all(other in rows for spec in rows.values() for other in spec.beside)


def test_from_nothing_and_again(tmp_path, monkeypatch):
    """A failed row is told and leaves the others whole; the second call finds every run."""
    write_tiny(tmp_path / "dataset" / "tiny")
    options = tiny_overrides(tmp_path) | {"epochs": 1}
    (tmp_path / "config" / "tables").mkdir(parents=True)
    (tmp_path / "config" / "tiny.yaml").write_text(yaml.safe_dump(options))
    rows = {"floor": {"method": "popularity"}, "two_stage": {"method": "two_stage"}}
    rows |= {"moved": {"method": "none", "twin": "two_stage"}}
    vectors = {"behaviour": "vectors", "behaviour_width": 4}
    rows |= {"items": {"method": "sasrec"}, "lost": {"method": "sasrec", "options": {"lr_rec": 1e30}}}
    rows |= {"vectors": {"method": "two_stage", "options": vectors, "vectors_of": "items"}}
    rows |= {"vain": {"method": "two_stage", "options": vectors, "vectors_of": "lost"}}
    rows |= {"again": {"method": "two_stage[given]", "twin": "two_stage", "sids_of": "moved"}}
    rows |= {"broken": {"method": "two_stage", "options": {"rqvae_path": str(tmp_path / "nothing.pth")}}}
    (tmp_path / "config" / "tables" / "rows.yaml").write_text(yaml.safe_dump(rows, sort_keys=False))
    (tmp_path / "config" / "tables" / "published.yaml").write_text("tiny: {moved: {ndcg@10: 0.5}}")
    monkeypatch.setattr(main, "CONFIG", tmp_path / "config")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    words = ["tiny", "--seeds=1", f"--results={tmp_path / 'results'}"]
    table = reproduce.reproduce(words)
    assert "no pre-trained tokenizer" in table["broken"]["failure"]
    assert len(table["vectors"]["ndcg@10"]["seeds"]) == 1
    assert "needs row lost, which did not finish" in table["vain"]["failure"]
    assert len(table["again"]["ndcg@10"]["twin"]["seeds"]) == 1
    assert len(table["moved"]["ndcg@10"]["twin"]["seeds"]) == 1
    assert table["moved"]["ndcg@10"]["published"]["verdict"] == "below"
    runs = sorted((tmp_path / "out" / "tiny").iterdir())
    assert reproduce.reproduce(words) == table
    assert sorted((tmp_path / "out" / "tiny").iterdir()) == runs
    card = read_json(next((tmp_path / "results" / "tiny").glob("*.json")))["card"]
    assert all(found.startswith("found, ") for found in card["runs made at commits"].split("; "))
    written = {p.suffix: p for p in (tmp_path / "results" / "tiny").iterdir()}
    assert read_json(written[".json"])["rows"]["moved"]["method"] == "none"
    assert "| floor | 1 |" in written[".md"].read_text()
    assert "failed: " in written[".md"].read_text()
    assert written[".svg"].read_text().count("<line") == 6


def test_the_command_is_told_without_places_of_the_machine():
    words = ["tiny", "--rows", "a,b", "--data_path", "/x", "--results=/y", "--output_dir=/z", "--epochs=3"]
    assert reproduce.as_typed(words) == "python scripts/reproduce.py tiny --rows a,b --epochs=3 --data_path=DIR"


@pytest.mark.parametrize(
    "words, line",
    [
        (["scientific", "--rows=frqq"], "did you mean 'frqud'"),
        (["scientific", "--seeds=1,x"], "--seeds"),
        (["scientific", "--budget=large"], "--budget"),
        (["scientific", "beauty"], "one data set"),
        (["scientific", "--no_such=1"], "unknown option"),
        (["scientific", "--rows=popularity", "--hidden_units=8"], "none of the rows has this option"),
        (["nowhere"], "no such preset"),
        (["scientific", "--rows=sasrec", "--seeds=1,2", "--split=time_groups"], "make the table with one seed"),
        (
            ["scientific", "--metrics=recall@5,ndcg@5", "--valid_metric=ndcg@5", "--num_beams=5"],
            "looks at shorter lists only",
        ),
        (["beauty", "--config=nowhere.yaml"], "no such configuration"),
        (["scientific", "--rows=frqud", "--uncertainty=sdud"], "--uncertainty: is what the rows are"),
        (["scientific", "--rows=frqud", "--resume=no"], "--resume: a table names its runs by their options"),
        (["scientific", "--rows=frqud_published_loss", "--label_prior=usage"], "--label_prior: is what the rows are"),
        (["scientific", "--rows=two_stage_sids_alone", "--item_loss=0.5"], "--item_loss: is what the rows are"),
        (
            ["scientific", "--rows=popularity", "--results=/dev/null/here"],
            "/dev/null/here/scientific: cannot be written",
        ),
        (["beauty", f"--config={main.CONFIG / 'scientific.yaml'}"], "says dataset: scientific"),
    ],
)
def test_a_wrong_command_line_stops_before_anything_is_trained(words, line):
    before = sorted((reproduce.ROOT / "results").iterdir())
    with pytest.raises(Problem, match=line):
        reproduce.reproduce(words)
    assert sorted((reproduce.ROOT / "results").iterdir()) == before
