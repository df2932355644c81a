"""The demo data set: reproducible, well formed, and worth learning from."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from scripts.make_demo import build_demo
from utils import Unwritable

FILES = ("demo.inter", "demo.items.jsonl", "demo.emb-text.npy")


class Demo(NamedTuple):
    items: list[dict[str, str]]
    vectors: np.ndarray  # [I, D]
    sequences: list[list[int]]  # item rows of each user, in file order


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "demo"
    build_demo(path)
    return path


@pytest.fixture(scope="module")
def demo(folder: Path) -> Demo:
    items = [json.loads(line) for line in (folder / FILES[1]).read_text().splitlines()]
    row = {item["item_id"]: i for i, item in enumerate(items)}
    users: dict[str, list[int]] = {}
    with (folder / FILES[0]).open(newline="") as f:
        for user, item, _ in list(csv.reader(f, delimiter="\t"))[1:]:
            users.setdefault(user, []).append(row[item])
    return Demo(items, np.load(folder / FILES[2]), list(users.values()))


def popularity(demo: Demo) -> np.ndarray:
    """Count of each item over all but each user's last two, [I]."""
    train = np.concatenate([sequence[:-2] for sequence in demo.sequences])
    return np.bincount(train, minlength=len(demo.items)).astype(float)


def recall_at_10(demo: Demo, score_UI: np.ndarray, mask_seen: bool) -> float:
    """Share of users with fewer than ten items above their last one; ties in its favour."""
    hits = 0
    for sequence, score_I in zip(demo.sequences, score_UI, strict=True):
        *history, target = sequence
        above_I = score_I > score_I[target]
        if mask_seen:
            above_I[history] = False
        hits += above_I.sum() < 10
    return hits / len(demo.sequences)


def popularity_recall(demo: Demo, mask_seen: bool) -> float:
    score_UI = np.broadcast_to(popularity(demo), (len(demo.sequences), len(demo.items)))
    return recall_at_10(demo, score_UI, mask_seen)


def test_seed_decides_every_byte(folder: Path, tmp_path: Path) -> None:
    build_demo(tmp_path / "again" / "demo", seed=2020)
    build_demo(tmp_path / "other", seed=1)
    expected, other = contents(folder), contents(tmp_path / "other")
    assert contents(tmp_path / "again" / "demo") == expected
    assert sorted(expected) == sorted(FILES)
    assert all(other[name] != expected[name] for name in FILES)


def test_inter_is_grouped_by_user_and_in_time_order(folder: Path) -> None:
    header, *rows = (line.split("\t") for line in (folder / FILES[0]).read_text().splitlines())
    assert header == ["user_id:token", "item_id:token", "timestamp:float"]
    switches = sum(a[0] != b[0] for a, b in pairwise(rows))
    assert switches + 1 == len({user for user, _, _ in rows})
    assert all(float(a[2]) < float(b[2]) for a, b in pairwise(rows) if a[0] == b[0])


def test_items_and_embeddings_belong_together(demo: Demo) -> None:
    assert len({item["item_id"] for item in demo.items}) == len(demo.items)
    assert len({item["title"] for item in demo.items}) == len(demo.items)
    assert all(list(item) == ["item_id", "title", "categories"] for item in demo.items)
    assert demo.vectors.shape == (len(demo.items), 64)
    assert demo.vectors.dtype == np.float32
    # One non-finite entry would make its row's norm non-finite.
    np.testing.assert_allclose(np.linalg.norm(demo.vectors, axis=1), 1, atol=1e-5)


def test_size_and_no_repeats(demo: Demo) -> None:
    lengths = [len(sequence) for sequence in demo.sequences]
    assert 900 <= len(demo.items) <= 1100
    assert len(lengths) == 3000
    assert min(lengths) >= 5 and max(lengths) <= 25 and 8.5 <= np.mean(lengths) <= 10
    assert all(len(set(sequence)) == len(sequence) for sequence in demo.sequences)
    assert set().union(*demo.sequences) == set(range(len(demo.items)))


@pytest.mark.parametrize("mask_seen", [False, True])
def test_popularity_floor(demo: Demo, mask_seen: bool) -> None:
    assert 0.03 <= popularity_recall(demo, mask_seen) <= 0.06


def test_content_neighbours_beat_popularity(demo: Demo) -> None:
    query_UD = np.stack([demo.vectors[sequence[-6:-1]].mean(0) for sequence in demo.sequences])
    recall = recall_at_10(demo, query_UD @ demo.vectors.T, mask_seen=True)
    assert recall >= 1.3 * popularity_recall(demo, mask_seen=True)


def test_counting_transitions_shows_the_sequence_signal(demo: Demo) -> None:
    """What follows the last product, times popularity, times how often the brand was taken."""
    product_I = np.unique([item["categories"] for item in demo.items], return_inverse=True)[1]
    brands = [" ".join(item["title"].split()[:2]) for item in demo.items]
    brand_I = np.unique(brands, return_inverse=True)[1]
    next_PP = np.ones((product_I.max() + 1,) * 2)
    for sequence in demo.sequences:
        np.add.at(next_PP, (product_I[sequence[:-3]], product_I[sequence[1:-2]]), 1)
    count_I = popularity(demo)
    share_I = count_I / np.bincount(product_I, count_I)[product_I]  # within the product
    score_UI = np.stack(
        [
            next_PP[product_I[sequence[-2]], product_I]
            * share_I
            * (0.1 + np.bincount(brand_I[sequence[-4:-1]], minlength=brand_I.max() + 1)[brand_I])
            for sequence in demo.sequences
        ]
    )
    assert recall_at_10(demo, score_UI, mask_seen=True) >= 0.35


def test_a_complete_data_set_is_left_alone(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    expected = contents(folder)
    build_demo(folder, seed=7)
    assert contents(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="neither empty nor a complete"):
        build_demo(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(Unwritable, match="no space left"):
        build_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
