"""SIDs made elsewhere: an index file in place of a tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_at, words, write_tiny

import main
import scripts.add_items
import scripts.pretrain
from compose import build, configure, parts
from readers.layouts import read_dataset
from readers.splits import DataOptions
from scripts import sid_align, sid_quality
from scripts.compare import compare
from serve.loaded import load
from sids.files import read_index, to_index
from utils import Problem, read_checkpoint, read_json

IDS = ["b", "a", "c"]  # a catalogue; its items by number are 0, 1, 2
CODES = {"b": ["<a_0>", "<b_1>"], "a": ["<a_2>", "<b_1>"], "c": ["<a_0>", "<b_3>"]}


def write(path: Path, index) -> str:
    path.write_text(json.dumps(index))
    return str(path)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(options of a run on the SIDs of a finished two-stage run, that run, data); k-means draws nothing from the
    generator that also draws the network's first weights, so the trainings may be compared bit for bit.
    """
    root = tmp_path_factory.mktemp("given")
    options = tiny_at(root) | {"method": "two_stage", "epochs": 1, "metrics": "recall@5,ndcg@5"}
    cfg = configure.build(options | {"valid_metric": "ndcg@5", "tokenizer": "rq_kmeans", "run_name": "original"})
    data = read_dataset(cfg[DataOptions])
    build.train_tokenizer(cfg, data)
    run = main.train(cfg)
    index = str(run.path / "tiny.index.json")
    return options | {"valid_metric": "ndcg@5", "tokenizer": "given", "sid_path": index}, run, data


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("index", "keys"),
    [
        (CODES, "auto"),
        (dict(reversed(CODES.items())), "ids"),
        ({"2": CODES["c"], "0": CODES["b"], "1": CODES["a"]}, "auto"),
        ({"0": CODES["b"], "1": CODES["a"], "2": CODES["c"]}, "numbers"),
        (CODES | {"z": ["<a_1>", "<b_1>"]}, "auto"),  # an item that the data do not have
    ],
)
def test_keys_are_ids_or_numbers(tmp_path, index, keys):
    found = read_index(Path(write(tmp_path / "x.json", index)), ids=IDS, keys=keys)
    assert found.code_NT.tolist() == [[0, 1], [2, 1], [0, 3]] and found.end_N is None


def test_end_tokens_are_found_whatever_the_order_of_the_keys(tmp_path):
    rows = {"c": ["<a_1>", "<b_3>"], "a": ["<a_1>", "<b_0>"], "b": ["<a_1>", "<b_1>"]}  # by their own numbers: b is 1
    for last, want in ((["<b_2>", "<b_0>", "<b_1>"], [1, 0, 2]), (["<b_3>", "<b_2>", "<b_1>"], [1, 2, 3])):
        index = {item: [row[0], end] for (item, row), end in zip(rows.items(), last, strict=True)}
        found = read_index(Path(write(tmp_path / "x.json", index)), ids=IDS)
        assert found.code_NT.tolist() == [[1], [1], [1]] and found.end_N.tolist() == want


def test_one_token_more_than_levels_is_an_end_token_whatever_it_counts(tmp_path):
    """As scripts/sid_align.py leaves them: an item keeps its dedup token though the group around it has changed."""
    path = Path(write(tmp_path / "x.json", {"0": ["<a_0>", "<b_5>"], "1": ["<a_1>", "<b_2>"], "2": ["<a_1>", "<b_7>"]}))
    assert read_index(path).end_N is None
    for told in ({"places": 1}, {"sizes": [4]}):
        found = read_index(path, **told)
        assert found.code_NT.tolist() == [[0], [1], [1]] and found.end_N.tolist() == [5, 2, 7]
    assert read_index(path, places=2).end_N is None


@pytest.mark.parametrize(
    ("index", "ids", "keys", "message"),
    [
        ({"b": CODES["b"], "a": CODES["a"]}, IDS, "auto", "has no SID for item 'c', 1 of the 3 are missing"),
        ({"b": CODES["b"], "a": CODES["a"]}, IDS, "numbers", r"are not the numbers 0 \.\.\. 2 of the 3 items"),
        ({"0": CODES["b"], "1": CODES["a"]}, ["1", "0"], "auto", "that makes a difference here; say which: --sid_keys"),
        ({"0": CODES["b"], "1": CODES["a"]}, IDS, "auto", "has no SID for item 'b', 3 of the 3 are missing"),
        (CODES | {"a": []}, IDS, "auto", "item a has no list of tokens"),
    ],
)
def test_items_that_are_missing_or_may_be_others(tmp_path, index, ids, keys, message):
    with pytest.raises(Problem, match=message):
        read_index(Path(write(tmp_path / "x.json", index)), ids=ids, keys=keys)


def test_numbers_that_are_ids_as_well_go_by_the_option(tmp_path):
    path = Path(write(tmp_path / "x.json", {"0": CODES["b"], "1": CODES["a"]}))
    assert read_index(path, ids=["1", "0"], keys="ids").code_NT.tolist() == [[2, 1], [0, 1]]
    assert read_index(path, ids=["1", "0"], keys="numbers").code_NT.tolist() == [[0, 1], [2, 1]]
    assert read_index(path, ids=["0", "1"]).code_NT.tolist() == [[0, 1], [2, 1]]


# ---------------------------------------------------------------- a training


def test_the_exported_sids_give_the_same_training_bit_for_bit(given, tmp_path):
    """Keys by item id as well; no embeddings are needed, and the file may be gone afterwards."""
    options, original, data = given
    by_number = read_json(Path(options["sid_path"]))
    by_id = {item: by_number[str(i)] for i, item in enumerate(data.catalogue.ids)}
    path = tmp_path / "ids.json"
    write(path, dict(sorted(by_id.items())))
    bare = tmp_path / "dataset" / "tiny"
    shutil.copytree(Path(options["data_path"]) / "tiny", bare)
    (bare / "tiny.emb-test.npy").unlink()
    place = {"data_path": str(tmp_path / "dataset"), "output_dir": str(tmp_path / "out"), "run_name": "again"}
    run = main.train(configure.build(options | place | {"sid_path": str(path)}))
    was, now = read_checkpoint(original.best), read_checkpoint(run.best)
    assert was["model"].keys() == now["model"].keys() and "tokenizer" not in now
    assert all(torch.equal(was["model"][k], now["model"][k]) for k in was["model"])
    assert np.array_equal(*(np.load(r.path / "ranks-test.npy") for r in (original, run)))
    assert run.results()["method"] == "two_stage[given]" and run.results()["files"]["sid_path"]["file"] == "ids.json"
    assert read_json(run.path / "tiny.index.json") == by_number
    path.unlink()
    assert load(run.best).recommend([["i3", "i17"]], 5) == load(original.best).recommend([["i3", "i17"]], 5)
    assert sid_quality.run([str(run.best)])["embedding_hit_rate"] == {}


@pytest.mark.parametrize("recommender", parts.NETWORKS)
@pytest.mark.parametrize("collision", ["suffix", "item", "none"])
def test_every_network_and_rule_takes_them(given, recommender, collision):
    options, original, _ = given
    wanted = {"recommender": recommender, "collision": collision, "legal_softmax": collision == "item"}
    cfg = configure.build({}, configure.parse_overrides(words(options | wanted)))
    model = build.build_model(cfg, read_dataset(cfg[DataOptions])).model
    theirs = load(original.best).model.sids
    assert torch.equal(model.sids.code_NT, theirs.code_NT) and (model.sids.end_N is None) == (collision == "none")
    assert collision != "suffix" or torch.equal(model.sids.end_N, theirs.end_N)


def test_end_tokens_of_the_file_are_kept(given, tmp_path):
    """Items of equal codes numbered the other way round than this program does."""
    options, _, _ = given
    index = {str(i): [f"<a_{i // 2 % 8}>", f"<b_{i // 16}>", "<c_0>", f"<d_{1 - i % 2}>"] for i in range(40)}
    cfg = configure.build(options | {"sid_path": write(tmp_path / "x.json", index)})
    model = build.build_model(cfg, read_dataset(cfg[DataOptions])).model
    assert model.sids.end_N.tolist() == [1, 0] * 20 and to_index(model.sids) == index


def test_sids_of_unlike_length(given, tmp_path):
    options, _, _ = given
    index = {str(i): [f"<a_{i % 8}>", *([f"<b_{i // 8}>"] if i % 2 else []), f"<z_{0 if i % 2 else i // 8}>"]
             for i in range(40)}  # fmt: skip
    unlike = options | {"sid_path": write(tmp_path / "x.json", index), "num_emb_list": [8, 8]}
    data = read_dataset(configure.build(unlike)[DataOptions])
    with pytest.raises(Problem, match="differ in length; set --sid_lengths=unlike"):
        build.build_model(configure.build(unlike), data)
    model = build.build_model(configure.build(unlike | {"sid_lengths": "unlike"}), data).model
    assert to_index(model.sids) == index


def test_a_table_of_methods_trains_again_when_the_file_has_changed(given, tmp_path, capsys):
    options, original, _ = given
    preset = tmp_path / "dataset" / "tiny"
    write_tiny(preset)
    kept = {k: v for k, v in options.items() if k not in ("tokenizer", "dataset", "data_path")}
    index = tmp_path / "x.json"
    shutil.copy(options["sid_path"], index)
    kept |= {"sid_path": str(index), "output_dir": str(tmp_path / "out")}
    (preset / "tiny.yaml").write_text(json.dumps(kept))
    row = "two_stage[given]"
    tables = []
    for change in (False, False, True):
        if change:
            rows = read_json(index)
            index.write_text(json.dumps({k: rows[str(39 - int(k))] for k in rows}))
        tables.append(compare(["tiny", row, f"--data_path={tmp_path / 'dataset'}"])[row])
    runs = list((tmp_path / "out" / "tiny").glob("compare-two_stage-given-*/test.json"))
    assert tables[0] == tables[1] and tables[0]["ndcg@5"]["mean"] == original.results()["ndcg@5"] and len(runs) == 2


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sid_path": None}, "sid_path: name the <Name>.index.json"),
        ({"sid_path": "nowhere.json"}, "nowhere.json: "),
        ({"num_emb_list": [8, 8]}, r"num_emb_list: levels of 8,8 codes .* set --num_emb_list=8,8,8"),
        ({"num_emb_list": [8, 4, 8]}, r"num_emb_list: levels of 8,4,8 codes"),
        ({"rqvae_path": "a.pth"}, "rqvae_path: tokenizer: given has its SIDs from sid_path"),
        ({"target_length": 2.0}, "target_length: SIDs of sid_path are taken as they are"),
        ({"collision": "knn"}, "collision: knn moves items by a tokenizer's distances"),
        ({"method": "diger"}, "tokenizer: given cannot be trained jointly"),
    ],
)
def test_what_cannot_be_had(given, change, message):
    with pytest.raises(Problem, match=message):
        main.check_training(configure.build(given[0] | change))


def test_no_pre_training_and_no_new_items(given, tmp_path):
    options, _, _ = given
    with pytest.raises(Problem, match="has no tokenizer to pre-train"):
        scripts.pretrain.run(words(options))
    run = main.train(configure.build(options | {"output_dir": str(tmp_path / "out"), "run_name": "new"}))
    items = tmp_path / "new.jsonl"
    items.write_text('{"item_id": "new"}\n')
    np.save(tmp_path / "new.npy", np.zeros((1, 12), np.float32))
    with pytest.raises(Problem, match="carries no tokenizer"):
        paths = {
            "checkpoint": run.best,
            "items": items,
            "embeddings": tmp_path / "new.npy",
            "output": tmp_path / "x.pth",
        }
        scripts.add_items.run([f"--{name}={path}" for name, path in paths.items()])


# ---------------------------------------------------------------- a refreshed tokenizer


def ranked(run):
    """Validation figures of a run's best model, without its speed."""
    return {k: v for k, v in read_checkpoint(run.best)["valid"].items() if k != "users_per_s"}


def test_a_trained_recommender_goes_on_with_refreshed_sids(given, tmp_path, capsys):
    """Codes of another name: aligned they are the old ones again, and the start ranks as the old run did."""
    options, original, _ = given
    old = read_json(Path(options["sid_path"]))
    turned = {k: [f"<a_{(int(row[0][3:-1]) + 3) % 8}>", *row[1:]] for k, row in old.items()}
    new, aligned = write(tmp_path / "new.index.json", turned), str(tmp_path / "aligned.index.json")
    assert sid_align.run([options["sid_path"], new, f"--output={aligned}"]).kept == 1
    place = {"output_dir": str(tmp_path / "out"), "lr_rec": 1e-9, "start_from": str(original.best)}
    valid = {}
    for name, path in {"aligned": aligned, "unaligned": new}.items():
        run = main.train(configure.build(options | place | {"sid_path": path, "run_name": name}))
        valid[name] = ranked(run)
    want = ranked(original)
    assert valid["aligned"] == want != valid["unaligned"]
    assert f"before the first epoch: valid ndcg@5 {want['ndcg@5']:.4f}" in capsys.readouterr().out


def test_a_recommender_of_whole_items_goes_on_after_its_first_look(given, tmp_path):
    """The look before the first epoch is a search: what it has made of the SIDs, training uses as well."""
    options = given[0] | {"recommender": "rq_transformer", "legal_softmax": True, "collision": "item",
                          "item_loss": 1.0, "item_embedding": True, "output_dir": str(tmp_path / "out")}  # fmt: skip
    first = main.train(configure.build(options | {"run_name": "first"}))
    again = main.train(configure.build(options | {"run_name": "again", "start_from": str(first.best), "lr_rec": 1e-9}))
    assert ranked(again) == ranked(first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recommender": "rq_transformer"}, "start_from: .* has other sizes; use its recommender"),
        ({"d_model": 32}, "start_from: .* has other sizes"),
        ({"max_his_len": 3}, None),
        ({"start_from": "nowhere.pth"}, "nowhere.pth: no such checkpoint"),
        ({"data": {"n_users": 50}}, "start_from: .* was trained on other interactions or another split"),
    ],
)
def test_what_cannot_be_gone_on_from(given, tmp_path, change, message):
    options, original, _ = given
    options = options | {"start_from": str(original.best)} | change
    if more := options.pop("data", None):
        write_tiny(tmp_path / "dataset" / "tiny", **more)
        options["data_path"] = str(tmp_path / "dataset")
    cfg = configure.build(options)
    data = read_dataset(cfg[DataOptions])
    if message is None:
        assert build.build_model(cfg, data).model.pretrained
        return
    with pytest.raises(Problem, match=message):
        build.build_model(cfg, data)
