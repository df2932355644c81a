"""New items for a trained model: their codes are the tokenizer's own, nothing that was there moves."""

import json

import numpy as np
import pytest
import torch

from compose import build, configure
from readers.dataset import read_embeddings
from scripts import add_items, cold_items
from serve.loaded import load
from sids.table import SidTable, free_end
from sids.tokenizer import CodeOptions
from utils import Problem


@pytest.fixture
def ground(trained):
    return trained[:2]


@pytest.fixture
def runs(trained):
    return trained[2]


@pytest.fixture
def arrivals(tmp_path, ground):
    """Two new items: one with the embedding of an old item, one of its own."""
    content = np.asarray(read_embeddings(ground[1]))
    rows = [json.dumps({"item_id": "n0", "title": "New zero"}), json.dumps({"item_id": "n1", "title": "New one"})]
    (tmp_path / "new.items.jsonl").write_text("\n".join(rows) + "\n")
    np.save(tmp_path / "new.npy", np.stack([content[3], -content[7]]))
    return [f"--items={tmp_path / 'new.items.jsonl'}", f"--embeddings={tmp_path / 'new.npy'}"]


@pytest.mark.parametrize("name", ["frqud", "two_stage", "own_tokens"])
def test_new_items_are_coded_and_old_ones_stay(runs, arrivals, tmp_path, ground, name):
    before = load(runs[name].best)
    path = add_items.run([f"--checkpoint={runs[name].best}", *arrivals, f"--output={tmp_path / 'x.pth'}"])
    after = load(path)
    old, new = before.model.sids, after.model.sids
    assert after.items == [*before.items, "n0", "n1"] and after.titles[-1] == "New one"
    assert torch.equal(new.token_NP[:-2], old.token_NP)
    assert new.code_NT[40].tolist() == old.code_NT[3].tolist()  # what has the embedding of item 3 has its codes
    group = (old.code_NT == old.code_NT[3]).all(1)
    assert int(new.end_N[40]) == (41 if name == "own_tokens" else int(old.end_N[group].max()) + 1)
    assert len(new.token_NP.unique(dim=0)) == 42
    if name == "two_stage":  # by the tokenizer's own file
        cfg = configure.build(ground[0] | {"method": "two_stage"})
        own = build.tokenizer_of(cfg, ground[1]).eval()
        wanted = own.encode(np.load(tmp_path / "new.npy"))
        assert cfg[CodeOptions].rqvae_path and new.code_NT[40:].tolist() == wanted.tolist()
    index = json.loads((tmp_path / "x.index.json").read_text())
    assert index["41"][0] == f"<a_{int(new.code_NT[41, 0])}>" and len(index) == 42
    hits = after.recommend([["i1", "n0"]], 2, allow=["n1", "n0"])[0]
    assert {h.item for h in hits} == {"n0", "n1"}


def test_what_cannot_take_new_items_is_one_line(runs, arrivals, tmp_path):
    def attempt(checkpoint, *words):
        add_items.run([f"--checkpoint={checkpoint}", *words, f"--output={tmp_path / 'x.pth'}"])

    with pytest.raises(Problem, match="recommends by items"):
        attempt(runs["sasrec"].best, *arrivals)
    np.save(tmp_path / "wide.npy", np.zeros((2, 13), np.float32))
    for name in ("frqud", "two_stage"):
        with pytest.raises(Problem, match="width"):
            attempt(runs[name].best, arrivals[0], f"--embeddings={tmp_path / 'wide.npy'}")
    np.save(tmp_path / "three.npy", np.zeros((3, 12), np.float32))
    with pytest.raises(Problem, match="3 rows for 2 items"):
        attempt(runs["frqud"].best, arrivals[0], f"--embeddings={tmp_path / 'three.npy'}")
    (tmp_path / "none.items.jsonl").write_text("")
    np.save(tmp_path / "none.npy", np.zeros((0, 12), np.float32))
    with pytest.raises(Problem, match="holds no item"):
        attempt(runs["frqud"].best, f"--items={tmp_path / 'none.items.jsonl'}", f"--embeddings={tmp_path / 'none.npy'}")
    (tmp_path / "new.items.jsonl").write_text('{"item_id": "n0"}\n{"item_id": "i3"}\n')
    with pytest.raises(Problem, match="'i3' is in the checkpoint already"):
        attempt(runs["frqud"].best, *arrivals)
    (tmp_path / "x.pth").write_text("mine")
    with pytest.raises(Problem, match="is there already"):
        attempt(runs["frqud"].best, *arrivals)
    assert (tmp_path / "x.pth").read_text() == "mine"


def test_end_tokens_are_the_first_free_ones():
    code = torch.tensor([[1, 1], [1, 1], [2, 2]])
    end = torch.tensor([0, 2, 0])
    new = torch.tensor([[1, 1], [1, 1], [2, 2], [3, 3], [1, 1]])
    sids = SidTable(code, end, (4, 4), 4)
    assert add_items.free_ends(sids, new, "suffix").tolist() == [1, 3, 1, 0, -1]
    assert add_items.free_ends(sids, new, "item").tolist() == [4, 5, 6, 0, 8]


def test_a_free_end_token_is_one_that_there_may_be():
    assert [free_end(used, 3) for used in (set(), {0, 2}, {1, 7}, {0, 1, 2})] == [0, 1, 0, None]


def test_the_newest_items_and_the_questions_about_them(ground):
    """By a loop over users."""
    data = ground[1]
    s = data.test
    users = [s.items[a:b].tolist() for a, b in zip(s.offsets[:-1], s.offsets[1:], strict=True)]
    places = {}
    for row in users:
        for at, item in enumerate(row):
            places.setdefault(item, []).append(at / (len(row) - 1))
    wanted = sorted(sorted(places, key=lambda i: (-np.mean(places[i]), i))[:4])
    new = cold_items.newest(data, 0.1)
    assert new == wanted
    asked = cold_items.questions(data, set(new))
    by_hand = [
        (" ".join(f"i{x - 1}" for x in row[:at] if x not in new), f"i{item - 1}")
        for row in users for at, item in enumerate(row) if item in new and any(x not in new for x in row[:at])
    ]  # fmt: skip
    assert [(" ".join(h), t) for h, t in zip(asked.histories, asked.targets, strict=True)] == by_hand


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "rqvae_path: what was trained with the new items"),
        ({"rqvae_path": None, "split": "time"}, "split: time is not known here"),
        ({"rqvae_path": None, "tokenizer": "rq_kmeans", "target_length": 2.0}, "SIDs of one length"),
        ({"rqvae_path": None, "collision": "random"}, "suffix and item only"),
        ({"rqvae_path": None, "method": "sasrec"}, "has no tokenizer"),
    ],
    ids=str,
)
def test_what_knows_new_items_or_can_take_none_is_refused(ground, change, said):
    with pytest.raises(Problem, match=said):
        cold_items.check_able(configure.build(ground[0] | {"method": "two_stage"} | change))


@pytest.mark.slow
def test_cold_items_end_to_end(ground, tmp_path):
    options = ground[0]
    given = ("rqvae_path", "dataset", "data_path", "output_dir")
    words = [f"--{k}={v}" for k, v in options.items() if k not in given]
    (tmp_path / "c.yaml").write_text("dataset: tiny\nmethod: two_stage\n")
    found = cold_items.run(
        ["--config", str(tmp_path / "c.yaml"), f"--data_path={options['data_path']}", f"--output_dir={tmp_path}",
         "--share=0.1", *words]
    )  # fmt: skip
    assert found["new items"] == 4 and 0 <= found["new items alone, all"]["recall@10"] <= 1
    assert found["new items alone, all"]["questions"] == found["questions"]
    assert sum(v for k, v in found.items() if k.startswith("items: ")) == 4
