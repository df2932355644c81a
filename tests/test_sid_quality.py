"""The command that judges SIDs: files of every kind, an index made elsewhere, what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_at

import main
from compose import build, configure
from readers.layouts import read_dataset
from readers.splits import DataOptions
from scripts import sid_quality
from sids.files import read_index, to_index
from sids.quality import load_figures
from sids.table import SidTable
from utils import Problem, read_json


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(run folder, tokenizer's checkpoint, words that name the data)."""
    root = tmp_path_factory.mktemp("quality")
    options = tiny_at(root) | {"method": "two_stage", "recommender": "rq_transformer", "epochs": 1}
    cfg = configure.build(options | {"run_name": "r"})
    path = build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    return main.train(cfg).path, path, ["--dataset=tiny", f"--data_path={root / 'dataset'}"]


def table(codes, end, sizes, ends=0):
    return SidTable(torch.tensor(codes), None if end is None else torch.tensor(end), sizes, ends)


@pytest.mark.parametrize(
    "sids",
    [
        table([(0, 1), (0, 1), (2, 0)], [0, 1, 0], (3, 2), 2),
        table([(0, 2), (0, 2), (2, 0)], None, (3, 3)),
        table([(0, 1), (0, 1), (2, 0)], [1, 2, 0], (3, 2), 3),
        table([(0, -1), (0, 1), (2, 0)], [0, 0, 0], (3, 2), 1),
        table([(0, -1), (0, -1), (2, 0)], [0, 1, 0], (3, 1), 2),
    ],
)
def test_an_index_is_read_as_it_was_written(tmp_path, sids):
    path = tmp_path / "x.index.json"
    path.write_text(json.dumps(to_index(sids)))
    got = read_index(path)
    assert torch.equal(got.code_NT, sids.code_NT) and got.sizes == sids.sizes
    assert (got.end_N is None) == (sids.end_N is None)
    assert sids.end_N is None or torch.equal(got.end_N, sids.end_N)
    assert read_index(path, [9, 9]).sizes == (9, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected"),
        ({"1": ["<a_0>"]}, "item 0 of 1 has no list of tokens"),
        ({"0": ["<a_0>"], "1": ["a0"]}, "item 1: 'a0' is no token like"),
        ({"0": ["<b_0>"]}, r"token 1 is <b_...>, expected <a_...>"),
        ({"0": ["<a_7>", "<b_0>"], "1": ["<a_1>", "<b_4>"]}, r"largest codes 7, 4 do not fit into levels of 4, 4"),
    ],
)
def test_a_damaged_index_is_one_line(tmp_path, content, message):
    path = tmp_path / "x.index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(Problem, match=message):
        read_index(path, [4, 4])


def test_index_run_and_tokenizer_tell_the_same(place, tmp_path):
    run, tokenizer, words = place
    of_run = sid_quality.run([str(run / "best_model.pth"), "--json", str(tmp_path / "out.json")])
    of_index = sid_quality.run([str(run / "tiny.index.json"), *words, "--sizes", "8,8,8"])
    of_tokenizer = sid_quality.run([str(tokenizer), *words])
    for key in load_figures(table([(0, 0, 0)] * 2, None, (8, 8, 8))):
        assert of_run[key] == of_index[key] == of_tokenizer[key]
    assert of_run["embedding_hit_rate"] == of_tokenizer["embedding_hit_rate"]
    assert set(of_run["embedding_hit_rate"]) == {"raw", "latent", "quantized", "decoded"}
    assert of_index["embedding_hit_rate"] == {"raw": of_run["embedding_hit_rate"]["raw"]}
    assert read_json(tmp_path / "out.json")["gini_sid"] == of_run["gini_sid"]


def test_a_run_is_not_judged_by_the_same_items_in_another_order(place):
    run, _, words = place
    folder = Path(words[1].partition("=")[2]) / "tiny"
    file = folder / "tiny.items.jsonl"
    lines = file.read_text().splitlines()
    try:
        file.write_text("\n".join([*lines[1:], lines[0]]) + "\n")
        with pytest.raises(Problem, match="other items than tiny, or in another order"):
            sid_quality.run([str(run / "best_model.pth")])
    finally:
        file.write_text("\n".join(lines) + "\n")


def test_embeddings_that_its_tokenizer_does_not_take_are_refused(place, tmp_path):
    run, _, words = place
    np.save(tmp_path / "wide.npy", np.ones((40, 13), np.float32))
    with pytest.raises(Problem, match="its tokenizer does not take embeddings of width 13"):
        sid_quality.run([str(run / "best_model.pth"), *words, f"--semantic_emb_path={tmp_path / 'wide.npy'}"])


def test_an_index_alone_is_told_by_load_and_churn(place, tmp_path, capsys):
    run, _, _ = place
    old = read_json(run / "tiny.index.json")
    codes = [row[:-1] for row in old.values()]
    alone = next(item for item, row in old.items() if codes.count(row[:-1]) == 1)
    free = next(t for i in range(8) for t in [[f"<a_{i}>", "<b_7>", f"<c_{7 - i}>"]] if t not in codes)
    (tmp_path / "old.json").write_text(json.dumps(old | {alone: [*free, "<d_0>"]}))
    got = sid_quality.run([str(run / "tiny.index.json"), "--against", str(tmp_path / "old.json")])
    assert got["changed/codes"] == pytest.approx(1 / 40) and "cold_item_share" not in got
    assert "gini_sid" in capsys.readouterr().out


def test_two_tokenizers_are_compared_query_by_query(place):
    run, tokenizer, words = place
    got = sid_quality.run([str(run / "best_model.pth"), "--against", str(tokenizer), *words])
    assert got["decoded hit@30 gain"] == got["decoded hit@30 +-"] == 0 and got["changed/codes"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs one file"),
        (["TOKENIZER"], "--dataset: name the data set"),
        (["TOKENIZER", "--dataset=tiny", "--epochs=3"], "unknown option 'epochs'"),
        (["TOKENIZER", "--sizes", "8,8,8"], "--sizes: .* already says how many"),
        (["INDEX", "--queries=train"], "--queries: expected valid or test"),
        (["INDEX", "--against", "SHORT"], "has 1 items, not 40"),
    ],
)
def test_what_cannot_be_judged_is_refused(place, tmp_path, words, message):
    run, tokenizer, _ = place
    (tmp_path / "short.json").write_text('{"0": ["<a_1>", "<b_1>"]}')
    names = {"TOKENIZER": tokenizer, "INDEX": run / "tiny.index.json", "SHORT": tmp_path / "short.json"}
    with pytest.raises(Problem, match=message):
        sid_quality.run([str(names.get(w, w)) for w in words])
