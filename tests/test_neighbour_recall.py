"""Embedding hit rate: worked examples, and brute force on random data."""

import numpy as np
import pytest
import torch

from readers.splits import Split
from sids import neighbour_recall
from sids.neighbour_recall import Queries, hit_figures, neighbours

ANGLES = [0, 10, 25, 45, 180, -30]
QUERIES = Queries.of([[0], [3, 4], [5], [4]], [[2], [1, 5], [0], [3]])


def plane(angles):
    angle = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_neighbours_by_hand():
    near = neighbours(plane(ANGLES), 5)
    want = [[1, 2, 5, 3, 4], [0, 2, 3, 5, 4], [1, 3, 0, 5, 4], [2, 1, 0, 5, 4], [3, 5, 2, 1, 0], [0, 1, 2, 3, 4]]
    assert near.near_MW.tolist() == want
    tied = neighbours(plane([0, 17.5, 17.5, 45, 180, -30]), 5).near_MW.tolist()
    assert [row[:n] for row, n in zip(tied[:5], (3, 2, 2, 4, 5), strict=True)] == [
        [1, 2, 5], [2, 0], [1, 0], [1, 2, 0, 5], [3, 5, 1, 2, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("angles", "want"),
    [
        (ANGLES, {"hit@1": 0.5, "hit@2": 1, "budget@1": 0.5, "budget@2": 0.875, "budget@3": 0.875}),
        ([0, 17.5, 17.5, 45, 180, -30], {"hit@1": 0.625, "hit@2": 1, "budget@2": 0.875}),
    ],
)
def test_embedding_hit_rate_by_hand(angles, want):
    found = hit_figures(plane(angles), QUERIES, (1, 2, 3))
    assert {k: found[k] for k in want} == pytest.approx(want)


def by_brute_force(x, histories, targets, k):
    """(per item, budget, candidates), query by query, with Python's own sort."""
    unit = x / x.norm(dim=1, keepdim=True)
    cosine = np.round((unit @ unit.T).numpy(), 10)
    n = len(x)
    order = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: (-cosine[i, j], j)) for i in range(n)]
    values = []
    for h, t in zip(histories, targets, strict=True):
        if not h or not t:
            continue
        near = {j for i in h for j in order[i][:k]}
        best = sorted((j for j in range(n) if j not in h), key=lambda j, h=h: (-max(cosine[i, j] for i in h), j))[:k]
        values.append((len(near & set(t)) / len(set(t)), len(set(best) & set(t)) / len(set(t)), len(near)))
    return np.mean(values, 0)


@pytest.mark.parametrize("seed", range(4))
def test_embedding_hit_rate_against_brute_force(seed):
    """Few different rows, so that ties are everywhere; queries of several targets, some without embedding."""
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(size=(9, 3))[random.integers(0, 9, 40)])
    histories = [random.integers(0, 40, random.integers(0, 7)).tolist() for _ in range(50)]
    targets = [random.integers(-1, 40, random.integers(0, 4)).tolist() for _ in range(50)]
    queries = Queries.of(histories, targets)
    found = hit_figures(x, queries, (1, 3, 10))
    for k in (1, 3, 10):
        got = [found[f"{form}@{k}"] for form in ("hit", "budget", "candidates")]
        assert got == pytest.approx(by_brute_force(x, histories, targets, k))


def test_of_too_many_queries_some_are_sampled(monkeypatch, caplog):
    """Whole ones, the same each time, with no more items than there is work for; what is asked of few is exact."""
    split = Split(np.arange(1, 101, dtype=np.int32), np.arange(0, 101, 10), np.arange(4, 100, 10))
    every = Queries.of_split(split, shape=(100, 8))
    monkeypatch.setattr(neighbour_recall, "WORK", 100 * 8 * 15)
    monkeypatch.setattr("utils.log.propagate", True)
    caplog.set_level("INFO", "diger")
    some, again = (Queries.of_split(split, shape=(100, 8)) for _ in range(2))
    assert "3 of 10 queries are sampled" in caplog.text and all(map(np.array_equal, some, again))
    assert len(some.item_H) == 12 and set(some.target_G) < set(every.target_G)


@pytest.mark.parametrize(("wide", "piece"), [(3, 7), (8, 299), (2, 16)])
def test_a_catalogue_read_in_pieces_from_its_file_gives_the_exact_list(monkeypatch, tmp_path, wide, piece):
    """Groups of equal rows, asked by some or by all, held against numpy's sort."""
    random = np.random.default_rng(wide)
    np.save(tmp_path / "x.npy", random.normal(size=(60, wide))[random.integers(0, 60, 300)].astype(np.float16))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    unit = x / np.linalg.norm(np.array(x, np.float64), axis=1, keepdims=True)
    cosine = np.round(unit @ unit.T, 10)
    np.fill_diagonal(cosine, -2)
    want = np.lexsort((np.broadcast_to(np.arange(300), (300, 300)), -cosine))
    monkeypatch.setattr(neighbour_recall, "PIECE", piece)
    monkeypatch.setattr(neighbour_recall, "CELLS", 4 * piece)
    assert np.array_equal(neighbours(x, 30).near_MW, want[:, :30])
    assert np.array_equal(neighbours(x, 7, np.array([3, 5, 299, 3])).near_MW, want[[3, 5, 299], :7])
