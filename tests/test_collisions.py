"""Collisions: the worked examples, what holds for any codes, and runs whose items share SIDs."""

import itertools

import numpy as np
import pytest
import torch
from conftest import tiny_at
from hypothesis import given
from hypothesis import strategies as st

import main
from compose import build, configure
from metrics import per_user
from readers.layouts import read_dataset
from readers.splits import DataOptions
from serve.loaded import load
from sids.collisions import resolve
from sids.search import unfold
from sids.table import SidTable
from utils import Problem, read_json


def by_table(rows):
    """Distances of the last level from a table [N, K], whatever the prefix; of the one before, the code's number."""
    table = torch.tensor(rows, dtype=torch.float64)

    def distances(items, prefix):
        if prefix.shape[1] == 2:
            return table[items]
        return torch.arange(4, dtype=torch.float64).expand(len(items), -1)

    return distances


def test_items_that_move_by_hand():
    """Four items at (0, 0, 0), cap 2: the nearest two stay, the others ask for the next code that has room."""
    codes = torch.tensor([(0, 0, 0)] * 4 + [(0, 0, 1), (0, 0, 2), (1, 0, 0)])
    near = [[0.3, 1, 2, 3], [0.1, 2, 1, 3], [0.2, 2, 3, 1], [0.4, 1, 3, 2], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]]
    found = resolve(codes, (4, 4, 4), 2, "knn", by_table(near))
    assert found.code_NL.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 3], [0, 0, 1], [0, 0, 2], [1, 0, 0]]
    assert found.rank_N.tolist() == [1, 0, 0, 2, 0, 0, 0] and found.rounds == 2
    assert found.cost == pytest.approx((0.7 + 1.6) / 7)
    assert found.code_NL.unique(dim=0, return_counts=True)[1].tolist() == [2, 2, 1, 1, 1]


def test_a_full_prefix_is_named_or_left():
    codes, near = torch.tensor([(0, 0, 0)] * 4), [[0.1 * i, 1] for i in range(4)]
    with pytest.raises(Problem, match=r"4 items have codes that begin with \(0, 0\), which have room for 2"):
        resolve(codes, (4, 4, 2), 1, "knn", by_table(near), fallback=False)
    found = resolve(codes, (4, 4, 2), 1, "knn", by_table(near))
    assert found.code_NL.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert found.rank_N.tolist() == [0, 1, -1, -1]
    with pytest.raises(Problem, match=r"9 items have codes that begin with \(0, 0\), which have room for 2"):
        resolve(torch.zeros(9, 3, dtype=torch.long), (4, 4, 2), 1, "knn", by_table(near[:1] * 9))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=30),
       st.integers(1, 3), st.integers(0, 5))  # fmt: skip
def test_what_holds_for_any_codes(rows, cap, seed):
    """Never above the cap, no item lost or moved in vain, prefixes kept unless it is told, the same twice;
    knn moves to nearer codes than random.
    """
    codes = torch.tensor(rows)
    table = np.random.default_rng(seed).random((len(rows), 4))
    table[np.arange(len(rows)), codes[:, 2]] = 0

    def distances(items, prefix):
        return torch.from_numpy(table)[items]

    if len(rows) > 8 * cap:  # then one half of the first level may not have room
        return
    knn, again, random = (resolve(codes, (2, 4, 4), cap, s, distances, seed) for s in ("knn", "knn", "random"))
    assert torch.equal(knn.code_NL, again.code_NL)
    for found in (knn, random):
        assert int(found.code_NL.unique(dim=0, return_counts=True)[1].max()) <= cap
        assert torch.equal(found.code_NL[found.rank_N == 0], codes[found.rank_N == 0])
        kept = found.rank_N >= 0
        assert torch.equal(found.code_NL[kept, :2], codes[kept, :2])
        size = codes.unique(dim=0, return_counts=True)[1]
        assert int((found.rank_N != 0).sum()) == int((size - cap).clamp(min=0).sum())
    if bool((knn.rank_N >= 0).all()) and bool((random.rank_N >= 0).all()) and int((knn.rank_N > 0).sum()) == 1:
        assert knn.cost <= random.cost + 1e-12


def test_lists_of_groups_by_hand():
    """SIDs with several items, in the order of the beams; unknown SIDs are passed over; hit rates as published."""
    names = "abcdefg"
    codes = [(0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 0), (0, 1, 0), (1, 0, 0)]
    trie = SidTable(torch.tensor(codes), None, (10, 10, 10)).trie()
    samples = [([1, 999, 10, 0], "ea"), ([100, 0], "b"), ([10], "gd?")]
    lists = []
    for beams, _ in samples:
        leaf = trie.find(torch.tensor([beams]))
        score = torch.where(leaf < 0, -torch.inf, -torch.arange(len(beams), dtype=torch.float)[None])
        item = unfold(trie.items_of(leaf), score, None).item_BW[0].tolist()
        lists.append("".join(names[i - 1] for i in item if i))
    assert lists == ["cdefab", "gab", "def"]
    hits = [[len(set(got[:k]) & set(want)) / len(want) for got, (_, want) in zip(lists, samples, strict=True)]
            for k in (1, 2, 3, 5, 20)]  # fmt: skip
    assert hits[2] == pytest.approx([0.5, 1, 1 / 3])
    assert [np.mean(h) for h in hits] == pytest.approx([0.1111111, 0.1111111, 0.6111111, 0.7777778, 0.7777778])


def test_items_of_a_sid_come_by_popularity():
    order = torch.tensor([3, 1, 2, 4])
    sids = SidTable(torch.tensor([(0, 0), (0, 1), (0, 0), (0, 0)]), None, (2, 2), order_N=order)
    assert sids.trie().items_of(torch.tensor([0, 1])).tolist() == [[3, 1, 4], [2, 0, 0]]
    assert sids.trie(torch.tensor([1, 4, 2])).items_of(torch.tensor([0])).tolist() == [[1, 4]]


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("collisions")
    options = tiny_at(root) | {
        "method": "two_stage", "recommender": "rq_transformer", "epochs": 1, "num_emb_list": [4, 4, 4],
        "legal_softmax": True, "num_beams": 10,
    }  # fmt: skip
    return options, read_dataset(configure.build(options)[DataOptions])


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({"collision": "knn", "collision_cap": 1}, 1), ({"collision": "knn", "collision_cap": 2}, 2),
        ({"collision": "random", "tokenizer": "random_codes"}, 5), ({"collision": "none"}, 40),
        ({"collision": "knn", "tokenizer": "rq_kmeans", "recommender": "t5"}, 5),
    ],
)  # fmt: skip
def test_a_run_whose_items_share_sids(place, changes, largest):
    """Lists of different items, whatever the groups; the checkpoint knows them; hit rate is recall."""
    options, data = place
    cfg = configure.build(options | changes | {"run_name": "-".join(map(str, changes.values()))})
    build.train_tokenizer(cfg, data)
    run = main.train(cfg)
    loaded = load(run.best)
    sids = loaded.model.sids
    assert sids.end_N is None and int(sids.code_NT.unique(dim=0, return_counts=True)[1].max()) <= largest
    popular = data.popularity[sids.order_N.numpy()]
    assert (np.diff(popular) <= 0).all()
    for hits in loaded.recommend([["i1", "i2"], ["i7"]], 10):
        items = [h.item for h in hits]
        assert len(set(items)) == len(items) == 10
        assert all(a.score >= b.score for a, b in itertools.pairwise(hits))
    rank = torch.from_numpy(np.load(run.path / "ranks-test.npy")[1])
    assert run.results()["recall@10"] == pytest.approx(float(per_user("hr@10", rank).mean()))
    assert len(read_json(run.path / "tiny.index.json")["0"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collision_cap": 3}, "collision_cap: is read by collision: knn and random"),
        ({"collision": "none", "num_beams": 5}, "num_beams: 5 is below the largest cut-off"),
    ],
)
def test_what_cannot_be_had_is_refused(place, changes, message):
    with pytest.raises(Problem, match=message):
        configure.build(place[0] | changes)


def test_codes_without_distances_have_no_nearest(place):
    options, data = place
    cfg = configure.build(options | {"collision": "knn", "tokenizer": "random_codes"})
    build.train_tokenizer(cfg, data)
    with pytest.raises(Problem, match="collision: knn needs a tokenizer that measures distances"):
        build.build_model(cfg, data)
