"""Behaviour beside the content: what is joined, by hand; that it travels with the tokenizer; what is refused."""

import numpy as np
import pytest
import torch
from conftest import tiny_at

import main
from compose import build, configure, restore
from readers.dataset import Catalogue, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions, Split
from scripts import add_items
from sids.behaviour import BehaviourOptions, Side, components, spectrum
from sids.pairs import PairOptions, pairs_of
from sids.tokenizer import Source
from utils import Problem, read_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(options, data, best_model.pth of a SASRec of two epochs)."""
    root = tmp_path_factory.mktemp("behaviour")
    options = tiny_at(root) | {"method": "two_stage", "recommender": "rq_transformer", "epochs": 1}
    run = main.train(configure.build(options | {"method": "sasrec", "hidden_units": 16, "run_name": "sasrec"}))
    return options, read_dataset(configure.build(options)[DataOptions]), run.best


def test_halves_are_centred_of_length_one_and_weighted():
    """Three items in the plane; the last one never occurs in the training part."""
    cfg = BehaviourOptions(behaviour="vectors", behaviour_weight=2.0, behaviour_width=2)
    content = np.array([[3, 0], [0, 0], [0, 3]], np.float32)
    vectors = np.array([[5, 1], [1, 1], [9, 9]], np.float32)
    side = Side(cfg, 2)
    side.learn(Source(content, np.array([4, 1, 0]), None, vectors), 0)
    joined = side.join(content)
    got = joined[0:3]
    unit = np.array([2, -1]) / 5**0.5  # item 1 less the mean (1, 1)
    assert np.allclose(got[:, :2], [unit, [-(0.5**0.5)] * 2, unit[::-1]], atol=1e-6)
    assert np.allclose(np.abs(got[:, 2:]), [[2, 0], [2, 0], [0, 0]], atol=1e-6) and got[0, 2] == -got[1, 2]
    assert np.array_equal(joined[1:2], got[1:2]) and len(joined) == 3


def test_components_are_a_rotation_where_none_is_left_out():
    x = np.random.default_rng(0).normal(size=(30, 5))
    x -= x.mean(0)
    assert np.allclose(components(x, 5) @ components(x, 5).T, x @ x.T)
    u, s, _ = np.linalg.svd(x)
    assert np.allclose(np.abs(components(x, 2)), np.abs(u[:, :2] * s[:2]))


def test_the_spectrum_approaches_the_mutual_information():
    """Against the dense matrix and numpy's own singular values."""
    random = np.random.default_rng(0)
    items = random.integers(1, 13, 400).astype(np.int32)
    pairs = pairs_of(Split(items, np.array([0, 400]), np.arange(1, 400)), 12, PairOptions())
    count = np.zeros((12, 12))
    for (a, b), n in zip(pairs.item_P2, pairs.count_P, strict=True):
        count[a, b] = count[b, a] = n
    total = count.sum(1)
    with np.errstate(divide="ignore"):
        want = np.maximum(np.log(count * count.sum() / np.outer(total, total)), 0)
    u, s, _ = np.linalg.svd(want)
    got = spectrum(pairs, 12, 4, 0)
    assert np.allclose(np.linalg.norm(got, axis=0), s[:4] ** 0.5, rtol=1e-3)
    assert np.allclose(np.abs(got), np.abs(u[:, :4]) * s[:4] ** 0.5, atol=1e-2)


@pytest.mark.parametrize("tokenizer", ["rqvae", "rq_kmeans"])
@pytest.mark.parametrize("behaviour", ["pairs", "vectors"])
def test_a_run_carries_its_behaviour(place, tokenizer, behaviour):
    """The SIDs of a run are made again from its checkpoint and the content alone, and are not those of the content."""
    options, data, sasrec = place
    source = {"vectors_from": str(sasrec)} if behaviour == "vectors" else {}
    chosen = {"tokenizer": tokenizer, "behaviour": behaviour, "behaviour_width": 8, **source}
    cfg = configure.build(options | chosen | {"run_name": f"{tokenizer}-{behaviour}"})
    build.train_tokenizer(cfg, data)
    run = main.train(cfg)
    restored = restore.restore(run.best)
    again = restore.carried_tokenizer(run.best, restored, read_embeddings(data).shape[1])
    code = again.encode(read_embeddings(data))
    assert torch.equal(code, restored.model.code_NT.long())
    plain = configure.build(options | {"tokenizer": tokenizer})
    build.train_tokenizer(plain, data)
    assert not torch.equal(code, build.tokenizer_of(plain, data).eval().encode(read_embeddings(data)))


def test_its_table_measures_what_was_quantized(place):
    """2 - 2 cos of the joined vector and its reconstruction; content alone is narrower than what is decoded."""
    options, data, _ = place
    cfg = configure.build(options | {"behaviour": "pairs", "behaviour_width": 8})
    path = build.train_tokenizer(cfg, data)
    figures, tokenizer = build.sid_figures(cfg, data, path), build.tokenizer_of(cfg, data).eval()
    content = read_embeddings(data)
    got = tokenizer.decode(tokenizer.encode(content))[:, -1].detach().double()
    want = torch.from_numpy(tokenizer.seen(content)[: len(content)]).double()
    error = 2 - 2 * torch.nn.functional.cosine_similarity(got, want)
    assert figures["reconstruction_uniform"] == pytest.approx(float(error.mean()), abs=1e-6)


def test_joint_training_takes_it_along(place):
    options, data, sasrec = place
    chosen = {"method": "diger", "behaviour": "vectors", "vectors_from": str(sasrec), "behaviour_width": 8}
    cfg = configure.build(options | chosen | {"run_name": "joint"})
    build.train_tokenizer(cfg, data)
    run = main.train(cfg)
    model = restore.restore(run.best).model
    assert model.tokenizer.side.vector_NV.shape == (data.n_items, 8)


@pytest.mark.parametrize("method", ["two_stage", "diger"])
def test_new_items_have_no_behaviour(place, tmp_path, method):
    """Their codes are those of a zero row, and the extended checkpoint gives the whole catalogue its codes again."""
    options, data, _ = place
    cfg = configure.build(options | {"method": method, "behaviour": "pairs", "behaviour_width": 8, "run_name": method})
    build.train_tokenizer(cfg, data)
    run = main.train(cfg)
    content = np.asarray(read_embeddings(data))
    new = content[[3]] + 1
    state = add_items.extended(run.best, Catalogue(["n0"], [""]), new)
    torch.save(state, tmp_path / "best_model.pth")
    restored = restore.restore(tmp_path / "best_model.pth")
    tokenizer = restore.carried_tokenizer(tmp_path / "best_model.pth", restored, 12)
    assert tokenizer.side.vector_NV.shape == (41, 8) and not tokenizer.side.vector_NV[40].any()
    assert torch.equal(tokenizer.encode(np.concatenate([content, new])), restored.model.code_NT.long())


def test_another_file_of_vectors_is_another_tokenizer(place, tmp_path):
    options, data, sasrec = place
    chosen = options | {"tokenizer": "rq_kmeans", "behaviour": "vectors", "behaviour_width": 8}
    copy, other = tmp_path / "copy.pth", tmp_path / "other.pth"
    copy.write_bytes(sasrec.read_bytes())
    state = read_checkpoint(sasrec)
    state["model"]["encoder.items.weight"] = state["model"]["encoder.items.weight"].flip(1)
    torch.save(state, other)
    paths = [
        build.train_tokenizer(configure.build(chosen | {"vectors_from": str(p)}), data) for p in (sasrec, copy, other)
    ]
    assert paths[0] == paths[1] != paths[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"behaviour": "vectors"}, "vectors_from: behaviour: vectors needs the best_model.pth"),
        ({"behaviour": "pairs", "behaviour_width": 500}, "behaviour_width: 500 is too wide"),
        ({"behaviour": "vectors", "behaviour_width": 17, "vectors_from": "SASREC"}, "have 16 dimensions; lower it"),
        ({"behaviour": "none", "vectors_from": "SASREC"}, "is read by behaviour: vectors alone"),
        ({"behaviour": "vectors", "vectors_from": "TOKENIZER"}, "not a checkpoint of main.py, .* is missing"),
        ({"behaviour": "vectors", "vectors_from": "OTHER"}, "was trained on another catalogue"),
        ({"rqvae_path": "TOKENIZER", "behaviour": "pairs"}, "was trained without behaviour .*; set --behaviour=none"),
    ],
)
def test_what_cannot_be_joined_is_refused(place, tmp_path, changes, message):
    options, data, sasrec = place
    plain = str(build.train_tokenizer(configure.build(options | {"tokenizer": "rq_kmeans"}), data))
    torch.save(read_checkpoint(sasrec) | {"items": ["x"], "titles": [""]}, tmp_path / "other.pth")
    names = {"SASREC": str(sasrec), "TOKENIZER": plain, "OTHER": str(tmp_path / "other.pth")}
    changes = {k: names.get(v, v) for k, v in changes.items()}
    with pytest.raises(Problem, match=message):
        cfg = configure.build(options | {"tokenizer": "rq_kmeans"} | changes)
        (build.tokenizer_of if "rqvae_path" in changes else build.train_tokenizer)(cfg, data)
