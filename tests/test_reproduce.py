"""The table of reproduce.py: its rows, how they are composed, what a second call trains."""

import numpy as np
import pytest
import yaml
from conftest import tiny_overrides, write_tiny

import main
import settings
from compose import cli
from scripts import reproduce, study
from utils import Problem, read_json

KNOWN = study.read_table(study.TABLES / "rows.yaml")


def chosen(*names):
    return study.chosen_arms(KNOWN, names, {})


def plan(names, dataset, seeds, overrides, preset=None):
    return study.plan(chosen(*names), study.Asked(dataset, seeds, overrides, preset), reproduce.METRICS)


@pytest.mark.parametrize("name", chosen())
@pytest.mark.parametrize("dataset", ["demo", "scientific", "beauty"])
def test_every_row_is_a_run_that_can_be_composed(name, dataset):
    ask = study.Asked(dataset, [1, 2], {"lr_rec": 2e-3}, None)
    jobs = study.plan({name: KNOWN[name]}, ask, reproduce.METRICS)
    assert len(jobs) == (2 if jobs[0].arm.trains else 1)


def test_a_preset_by_name():
    """--config stands in for the data set's preset; a method that has a preset of its own keeps it."""
    preset = cli.CONFIG / "beauty_rq_transformer.yaml"
    jobs = plan(["sasrec", "frqud"], "beauty", [1], {}, preset)
    epochs = {j.arm.name: settings.flat(j.cfg)["epochs"] for j in jobs}
    assert epochs["two_stage"] == epochs["frqud"] == settings.read_yaml(preset)["epochs"]
    assert epochs["sasrec"] == settings.read_yaml(cli.CONFIG / "beauty_sasrec.yaml")["epochs"]


@pytest.mark.parametrize(
    "asked",
    [
        {"recommender": "t5", "encoder_layers": 1, "decoder_layers": 1},
        {"tokenizer": "rq_kmeans", "kmeans_start": "kmeans++"},
        {"recommender": "decoder", "dropout_rate": 0.05},
    ],
)
def test_options_of_a_part_that_the_command_line_chooses(asked):
    flat = settings.flat(plan(["two_stage"], "scientific", [1], asked)[0].cfg)
    assert {key: flat[key] for key in asked} == asked


def test_an_option_is_read_by_the_rows_that_have_a_use_for_it():
    """The weight of behaviour by the row whose SIDs hold it; without such a row the option is refused."""
    weight = {"behaviour_weight": 0.5}
    jobs = plan(["two_stage", "two_stage_behaviour"], "scientific", [1], weight)
    read = {j.arm.name: settings.flat(j.cfg)["behaviour_weight"] for j in jobs}
    assert read == {"two_stage": 1.0, "two_stage_behaviour": 0.5}
    with pytest.raises(Problem, match=r"--behaviour_weight: is read with behaviour: .* only, as no row is"):
        plan(["two_stage"], "scientific", [1], weight)


def test_a_preset_beside_the_data(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "shop.yaml").write_text("dataset: shop\nepochs: 3\n")
    (job,) = plan(["two_stage"], "shop", [1], {"data_path": str(tmp_path)})
    assert settings.flat(job.cfg)["epochs"] == 3


def test_a_row_brings_its_control():
    assert list(chosen("frqud")) == ["two_stage", "frqud"]
    assert list(chosen("frqud_vectors")) == ["sasrec", "two_stage_vectors", "frqud_vectors"]
    assert list(chosen("restart_alone")) == ["two_stage_sids_alone", "frqud_prefix_alone", "restart_alone"]
    jobs = plan(["restart_alone"], "scientific", [1], {"rqvae_path": "x.pth"})
    assert {j.arm.name: settings.flat(j.cfg)["rqvae_path"] for j in jobs} == {
        "two_stage_sids_alone": "x.pth", "frqud_prefix_alone": "x.pth", "restart_alone": None}  # fmt: skip
    with pytest.raises(Problem, match="did you mean 'two_stage'"):
        chosen("two_stages")


def test_a_row_about_an_option_needs_a_preset_that_has_it():
    """Of its own accord no table has such rows; their rates are the preset's."""
    rows = chosen("restart_latent_alone")
    assert not rows.keys() - {"two_stage_sids_alone"} & chosen().keys()
    assert rows.keys() < study.chosen_arms(KNOWN, [], {"latent_loss": 1}).keys()
    with pytest.raises(Problem, match="--latent_loss: row at_rest_latent_alone needs it, and the preset leaves it"):
        plan(["restart_latent_alone"], "scientific", [1], {})
    preset = cli.CONFIG / "scientific_sids_alone.yaml"
    jobs = {j.arm.name: settings.flat(j.cfg) for j in plan(["restart_latent_alone"], "scientific", [1], {}, preset)}
    given = settings.read_yaml(preset)
    moving, resting = jobs["frqud_latent_alone"], jobs["at_rest_latent_alone"]
    assert moving["label_prior"] == given["label_prior"] == "prefix"
    assert all(moving[k] == float(given[k]) > 0 for k in ("latent_loss", "offset_prior", "lr_id", "lr_offset"))
    assert resting["latent_loss"] == given["latent_loss"] and resting["lr_id"] == resting["lr_offset"] == 0


def test_every_row_to_be_compared_with_is_a_row():
    assert all(other in KNOWN for arm in KNOWN.values() for other in arm.beside)
    assert len({arm.label for arm in KNOWN.values()}) == len(KNOWN)


def test_a_row_like_another(tmp_path):
    """It has what the other says, and its own options over those; options of the file are under both."""
    text = {"a": {"method": "sasrec", "options": {"epochs": 3, "lr_rec": 0.1}, "label": "first"},
            "b": {"like": "a", "options": {"lr_rec": 0.2}, "beside": ["a"]}}  # fmt: skip
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"options": {"epochs": 9, "seed": 5}, "rows": text}))
    a, b = study.read_table(tmp_path / "t.yaml").values()
    assert a.options == {"epochs": 3, "seed": 5, "lr_rec": 0.1} and a.label == "first"
    assert b.options == {"epochs": 3, "seed": 5, "lr_rec": 0.2} and (b.method, b.label) == ("sasrec", "b")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"a": {"method": "sasrec"}}, "expected rows:"),
        ({"rows": {"a": {"methd": "sasrec"}}}, "row 'a': 'methd' is not one of .*; did you mean 'method'"),
        ({"rows": {"a": "sasrec"}}, "row 'a': expected what it is made of"),
        ({"rows": {"a": {"options": {}}}}, "row 'a': names no method"),
        ({"rows": {"a": {"like": "b"}, "b": {"method": "sasrec"}}}, "row 'a': 'b' is none of the rows above it"),
        ({"rows": {"a": {"method": "two_stage", "after": "c"}}}, "row 'a': 'c' is none of the rows above it"),
        ({"rows": {"a": {"method": "sasrec", "control": "c"}}}, "row 'a': 'c' is none of the rows"),
    ],
)
def test_a_file_of_rows_that_cannot_be_read(tmp_path, table, line):
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    with pytest.raises(Problem, match=line):
        study.read_table(tmp_path / "t.yaml")


def test_beside_a_published_figure():
    verdicts = [reproduce.against_published(x, 0.04)["verdict"] for x in (0.0381, 0.0379, 0.0419, 0.0421)]
    assert verdicts == ["reproduced", "below", "reproduced", "above"]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A tiny data set, its preset and an empty config/tables; the options of the preset."""
    write_tiny(tmp_path / "dataset" / "tiny")
    options = tiny_overrides(tmp_path) | {"epochs": 1}
    (tmp_path / "config" / "tables").mkdir(parents=True)
    (tmp_path / "config" / "tiny.yaml").write_text(yaml.safe_dump(options))
    (tmp_path / "config" / "tables" / "published.yaml").write_text("tiny: {moved: {ndcg@10: 0.5}}")
    monkeypatch.setattr(cli, "CONFIG", tmp_path / "config")
    monkeypatch.setattr(study, "TABLES", tmp_path / "config" / "tables")
    return tmp_path


def test_from_nothing_and_again(shop):
    """A failed row is named and leaves the others whole; the second call finds every run."""
    vectors = {"behaviour": "vectors", "behaviour_width": 4}
    rows = {
        "floor": {"method": "popularity"},
        "two_stage": {"method": "two_stage", "label": "two-stage"},
        "moved": {"method": "none", "control": "two_stage"},
        "items": {"method": "sasrec"},
        "lost": {"method": "sasrec", "options": {"lr_rec": 1e30}},
        "vectors": {"method": "two_stage", "options": vectors, "vectors_of": "items"},
        "vain": {"method": "two_stage", "options": vectors, "vectors_of": "lost"},
        "again": {"method": "two_stage[given]", "control": "two_stage", "after": "moved"},
        "third": {"like": "again", "after": "vectors"},
        "broken": {"method": "two_stage", "options": {"rqvae_path": str(shop / "nothing.pth")}},
    }
    (shop / "config" / "tables" / "rows.yaml").write_text(yaml.safe_dump({"rows": rows}, sort_keys=False))
    words = ["tiny", "--seeds=1,2", f"--results={shop / 'results'}"]
    found = reproduce.reproduce(words)
    table, stem = found.tables(reproduce.METRICS)["test"], shop / "results" / "tiny" / "rows-1-2"
    failures = {name: r.failure for name, r in found.results.items() if r.failure}
    assert failures.keys() == {"lost", "vain", "broken"} == found.results.keys() - table.keys()
    assert "no pre-trained tokenizer" in failures["broken"]
    assert "needs row lost, which did not finish" in failures["vain"]
    assert table["again"]["ndcg@10"]["against"].keys() == table["moved"]["ndcg@10"]["against"].keys() == {"two_stage"}
    assert all(row["seeds"] == 2 for name, row in table.items() if name != "floor")
    for name, of, key in (("vectors", "items", "vectors_from"), ("again", "moved", "sid_path"),
                          ("third", "vectors", "sid_path")):  # fmt: skip
        for seed in (1, 2):
            path = settings.read_yaml(found.results[name].of_seed[seed][0].config)[key]
            assert path.startswith(str(found.results[of].of_seed[seed][0].path))
    runs = sorted((shop / "out" / "tiny").iterdir())
    written = read_json(stem.with_suffix(".json"))
    assert reproduce.reproduce(words).tables(reproduce.METRICS)["test"] == table
    assert sorted((shop / "out" / "tiny").iterdir()) == runs
    assert written["rows"]["moved"]["method"] == "none" and written["rows"]["broken"]["failure"] == failures["broken"]
    assert written["tables"]["test"]["moved"]["ndcg@10"]["published"]["verdict"] == "below"
    text = stem.with_suffix(".md").read_text()
    assert "| floor " in text and "failed: " in text
    assert "- command: python scripts/reproduce.py tiny --seeds=1,2\n" in text
    assert stem.with_name("rows-1-2-test.svg").read_text().count("<circle") == 3 * len(table) - 1
    curves = stem.with_name("rows-1-2-validation.svg").read_text()
    assert all(f">{name}<" in curves for name in ("two-stage", "moved", "items", "vectors", "again"))
    assert "minutes of training" in curves and "validation ndcg@10" in curves and ">floor<" not in curves
    with pytest.raises(Problem, match="lost did not run to the end"):
        found.fail_if_any()
    with pytest.raises(Problem, match=r"rows-1-2\.json: holds the table of other rows, options or data; choose"):
        reproduce.reproduce([*words, "--rows=items"])
    assert reproduce.reproduce([*words, "--rows=items", "--name=items"]).data.name == "tiny"


def test_both_protocols_of_one_training(shop, capsys):
    """The second table is what main.py evaluate measures with seen items masked; the test set was looked at once."""
    rows = {"floor": {"method": "popularity"}, "items": {"method": "sasrec"}}
    (shop / "config" / "tables" / "rows.yaml").write_text(yaml.safe_dump({"rows": rows}))
    published = {"tiny": {"items": {"ndcg@10": 0.5}}, "tiny, seen items masked": {"items": {"ndcg@10": 0.25}}}
    (shop / "config" / "tables" / "published.yaml").write_text(yaml.safe_dump(published))
    words = ["tiny", "--seeds=1", f"--results={shop / 'results'}", "--protocol=both"]
    tables = reproduce.reproduce(words).tables(reproduce.METRICS)
    written = read_json(shop / "results" / "tiny" / "rows-1.json")["tables"]
    beside = [table["items"]["ndcg@10"]["published"]["published"] for table in written.values()]
    assert beside == [0.5, 0.25] and list(written) == list(tables)
    left, masked = (tables[f"test, seen items {how}"] for how in ("left in", "masked"))
    (run,) = (shop / "out" / "tiny").glob("compare-*")
    assert read_json(run / "test_looks.json") == 1
    assert read_json(run / "test.json")["ndcg@10"] == pytest.approx(left["items"]["ndcg@10"]["mean"])
    assert masked["items"]["ndcg@10"]["mean"] != left["items"]["ndcg@10"]["mean"]
    ranks = {how: np.load(run / f"ranks-{what}.npy")[1] for how, what in
             (("left", "test"), ("masked", "test-mask_seen-true"))}  # fmt: skip
    assert masked["floor"]["recall@10"]["mean"] > left["floor"]["recall@10"]["mean"]
    capsys.readouterr()
    main.command_evaluate([f"--checkpoint={run / 'best_model.pth'}", "--mask_seen=true"])
    out = capsys.readouterr().out
    assert f"{masked['items']['ndcg@10']['mean']:.4f}" in out
    assert len(ranks["left"]) == len(ranks["masked"]) and (ranks["left"] != ranks["masked"]).any()
    names = {p.name for p in (shop / "results" / "tiny").iterdir()}
    assert names >= {"rows-1-test-seen_items_left_in.svg", "rows-1-test-seen_items_masked.svg"}


def test_how_long_rows_train(shop):
    """The file's options are those of every row: here until three validations bring nothing better."""
    rows = {"a": {"method": "sasrec"}, "b": {"method": "sasrec", "options": {"hidden_units": 8, "epochs": 2}}}
    text = {"options": {"epochs": 40, "early_stop": 3}, "rows": rows}
    (shop / "config" / "tables" / "long.yaml").write_text(yaml.safe_dump(text))
    words = [f"--table={shop / 'config' / 'tables' / 'long.yaml'}", "--lr_rec=0.05"]
    reproduce.reproduce(["tiny", "--seeds=1", f"--results={shop / 'results'}", *words])
    found = read_json(shop / "results" / "tiny" / "long-1.json")["rows"]
    (a,), (best,) = found["a"]["epochs_trained"], found["a"]["best_epoch"]
    assert a < 40 and a - 1 - best == 3 and found["b"]["epochs_trained"] == [2]
    assert f"{a} ({best})" in (shop / "results" / "tiny" / "long-1.md").read_text()


def test_the_command_is_told_without_places_of_the_machine():
    words = ["tiny", "--rows", "a,b", "--data_path", "/x", "--results=/y", "--output_dir=/z", "--sid_path=/x y/s.json"]
    told = "python scripts/reproduce.py tiny --rows a,b --sid_path=s.json --data_path=DIR"
    assert study.as_typed("reproduce", words) == told


@pytest.mark.parametrize(
    "words, line",
    [
        (["scientific", "--rows=frqq"], "did you mean 'frqud'"),
        (["scientific", "--seeds=1,x"], "--seeds"),
        (["scientific", "--budget=large"], "--budget"),
        (["scientific", "beauty"], "one data set"),
        (["scientific", "--no_such=1"], "unknown option"),
        (["scientific", "--rows=popularity", "--hidden_units=8"], "choose rows like sasrec, or drop it"),
        (["scientific", "--rows=sasrec", "--seeds=1,2", "--split=time_groups"], "make the table with one seed"),
        (["nowhere"], "no such configuration"),
        (
            ["scientific", "--metrics=recall@5,ndcg@5", "--valid_metric=ndcg@5", "--num_beams=5"],
            "has shorter lists only",
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
        (["beauty", f"--config={cli.CONFIG / 'scientific.yaml'}"], "says dataset: scientific"),
    ],
)
def test_a_wrong_command_line_stops_before_anything_is_trained(words, line):
    before = sorted((reproduce.ROOT / "results").iterdir())
    with pytest.raises(Problem, match=line):
        reproduce.reproduce(words)
    assert sorted((reproduce.ROOT / "results").iterdir()) == before
