"""FORGE's published layouts: small files of each kind, and what is wrong in them."""

import json

import numpy as np
import pytest

from compose import configure
from readers.layouts import read_dataset
from readers.splits import DataOptions
from scripts import forge_data
from sids.files import read_index
from utils import Problem, read_json

EMBEDS = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_embeddings_and_pairs(tmp_path):
    """Raw ids become rows; the pickled dictionary is refused, its numbers are taken from --ids."""
    np.savez(tmp_path / "r.npz", ids=np.array([70, 50, 60]), embeds=EMBEDS)
    forge_data.run(["embeddings", str(tmp_path / "r.npz"), "--out", str(tmp_path / "d" / "a")])
    assert np.array_equal(np.load(tmp_path / "d" / "a" / "a.emb-forge.npy"), EMBEDS)
    lines = (tmp_path / "d" / "a" / "a.items.jsonl").read_text().splitlines()
    assert [json.loads(line)["item_id"] for line in lines] == ["70", "50", "60"]
    pickled = np.array({70: 0, 50: 1, 60: 2}, object)
    np.savez(tmp_path / "c.npz", itemEncID=pickled, embeds=EMBEDS, pairs=np.array([[50, 60], [70, 50]]))
    words = ["pairs", str(tmp_path / "c.npz"), "--out", str(tmp_path / "d" / "b")]
    with pytest.raises(Problem, match=r"itemEncID is a pickled object, .* docs/forge.md shows"):
        forge_data.run(words)
    assert not (tmp_path / "d" / "b").exists()
    np.save(tmp_path / "ids.npy", np.array([[50, 1], [70, 0], [60, 2]]))
    forge_data.run([*words, "--ids", str(tmp_path / "ids.npy")])
    assert np.load(tmp_path / "d" / "b" / "b.pairs.npy").tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embeddings", "a.npz", "--id", "ids.npy"], "unknown option 'id'"),
        (["sids", "a.csv", "b.csv"], "reads one file"),
        (["embeddings", "a.npz", "--codes=8"], "--codes: embeddings has no such option"),
        (["sequences", "a", "b", "c", "--ids=x"], "--ids: sequences has no such option"),
    ],
    ids=str,
)
def test_words_that_would_be_passed_over_are_refused(tmp_path, words, said):
    with pytest.raises(Problem, match=said):
        forge_data.run([*words, "--out", str(tmp_path / "d")])


@pytest.mark.parametrize(
    "text",
    [
        'item_id,SID\nx,"1,2,3"\ny,\nz,"0,8191,3"\n',
        "item_id,codebook_lv1,codebook_lv2,codebook_lv3\nx,1,2,3\ny,,,\nz,0,8191,3\n",
    ],
)
def test_both_layouts_of_sids(tmp_path, text):
    (tmp_path / "s.csv").write_text(text)
    forge_data.run(["sids", str(tmp_path / "s.csv"), "--out", str(tmp_path / "d")])
    assert read_index(tmp_path / "d" / "d.index.json").code_NT.tolist() == [[1, 2, 3], [0, 8191, 3]]
    assert '"z"' in (tmp_path / "d" / "d.items.jsonl").read_text()


def sequence_files(tmp_path, answer="C3C10C20"):
    rows = ["id,system,user,answer", f'0,s,"so far: C1C9C17C2C8C16 next:",{answer}']
    for part in ("train", "valid"):
        (tmp_path / f"{part}.csv").write_text(rows[0] + '\n0,s,"so far: C1C9C17 C2C8C16, next:",C3C10C20\n')
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    return [str(tmp_path / f"{p}.csv") for p in ("train", "valid", "test")]


def test_sequences_become_a_data_set_of_sids(tmp_path):
    """Levels of 8 codes: C9 is code 1 of the second; the answers of a test file may be item ids."""
    (tmp_path / "s.csv").write_text('item_id,SID\np,"3,2,4"\nq,"1,1,1"\n')
    files = sequence_files(tmp_path, "p;q;r")
    forge_data.run(["sequences", *files, "--codes=8", "--sids", str(tmp_path / "s.csv"), "--out", str(tmp_path / "d")])
    data = read_dataset(configure.build({"dataset": "d", "data_path": str(tmp_path), "method": "sasrec"})[DataOptions])
    assert data.catalogue.ids == ["1-1-1", "2-0-0", "3-2-4"]
    assert data.train.items.tolist() == [1, 2, 3] and data.test.targets.tolist() == [1, 3]
    assert read_json(tmp_path / "d" / "d.emb_map.json")["3-2-4"] == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("p", "line 2: 'p' is an item id; name the file of its SID by --sids"),
        ("C3C20C10", "line 2: its tokens are no whole SIDs of levels of 8 codes"),
        ("C3", "line 2: its tokens are no whole SIDs of levels of 8 codes"),
        ("", "line 2: the answer is empty"),
    ],
)
def test_sequences_that_are_none_are_one_line(tmp_path, answer, message):
    words = ["sequences", *sequence_files(tmp_path, answer), "--codes=8", "--out", str(tmp_path / "d")]
    with pytest.raises(Problem, match=message):
        forge_data.run(words)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("embeddings", {"ids": np.array([1, 1, 2]), "embeds": EMBEDS}, "an item id stands there twice"),
        ("embeddings", {"ids": np.array([1, 2]), "embeds": EMBEDS}, r"2 ids \(int64\) for 3 embeddings"),
        ("embeddings", {"ids": np.array([1, 2, 3]), "embeds": EMBEDS[0]}, r"expected floating-point \[items, D\]"),
        ("embeddings", {"x": EMBEDS}, "holds no 'embeds', only x"),
        ("pairs", {"ids": np.array([1, 2, 3]), "embeds": EMBEDS, "pairs": np.array([[1, 9]])}, "pairs names item 9"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path, kind, content, message):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(Problem, match=message):
        forge_data.run([kind, str(tmp_path / "x.npz"), "--out", str(tmp_path / "d")])


def test_columns_that_are_missing_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Problem, match="has no column 'item_id', only a, b"):
        forge_data.run(["sids", str(tmp_path / "x.csv"), "--out", str(tmp_path / "d")])
    (tmp_path / "y.csv").write_text('item_id,SID\nx,"1,x"\n')
    with pytest.raises(Problem, match="line 2: '1,x' is no SID like"):
        forge_data.run(["sids", str(tmp_path / "y.csv"), "--out", str(tmp_path / "d")])
