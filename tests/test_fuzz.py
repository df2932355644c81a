"""Damaged files: every reader ends in a result or in a Problem; never a traceback, a hang, a changed file."""

import json
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
import yaml
from conftest import load_rqvae, tiny_overrides, write_tiny
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import main
from compose import build, configure, parts, restore
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs.folder import RunFolder
from utils import Problem, read_checkpoint, read_json
from vq import RQVAEOptions

PIECES = [
    b"", b"\0", b"\xff\xfe", b"\n", b"\r", b"\t", b"\t\t", b"nan", b"inf", b"-1", b"0", b"1e309", b"9" * 30,
    b"null", b"true", b'"',
    b"{", b"}", b"[", b"]", b"[" * 3000, b":", b",", b"!!python/name:os.system ", b"&a ", b"*a", b"<<: ",
    b"\xe2\x80\xa8",
    b"i1", b"u0", b"<a_1>", b"[PAD]", b"item_id", b"PK\x03\x04", b"\x80\x04", b"# ", b"- ", b"? ", b"| ", b"%",
    b"0x1F", b"12:30",
]  # fmt: skip


@st.composite
def damage(draw):
    """A function that cuts, drops, repeats, swaps or replaces pieces of a file."""
    wounds = draw(st.lists(st.tuples(
        st.sampled_from(["cut", "drop", "repeat", "put", "flip"]), st.floats(0, 1), st.integers(0, 40),
        st.sampled_from(PIECES),
        st.integers(1, 255),
    ), min_size=1, max_size=4))  # fmt: skip

    def apply(content):
        for kind, where, length, piece, mask in wounds:
            at = int(where * len(content))
            end = at + length
            content = {
                "cut": content[:at], "drop": content[:at] + content[end:],
                "put": content[:at] + piece + content[end if length % 2 else at :],
                "repeat": content[:end] + content[at:],
                "flip": content[:at] + bytes(b ^ mask for b in content[at : at + 1]) + content[at + 1 :],
            }[kind]  # fmt: skip
        return content

    return apply


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Healthy files of every kind, and what reads each: name -> (path, reader)."""
    root = tmp_path_factory.mktemp("fuzz")
    folder = write_tiny(root / "dataset" / "tiny", n_users=12)
    base = tiny_overrides(root)

    def dataset(name, layout, **more):
        return lambda path: read_dataset(
            configure.build(base | {"dataset": name, "data_format": layout} | more)[DataOptions]
        )

    users = {str(u): [(u + i) % 40 for i in range(5)] for u in range(9)}
    other = root / "dataset" / "other"
    other.mkdir()
    (other / "other.inter.json").write_text(json.dumps(users))
    (other / "other.item.json").write_text(json.dumps({str(i): {"title": f"Item {i}"} for i in range(40)}))
    (other / "other.emb_map.json").write_text(json.dumps({"[PAD]": 0} | {f"i{i}": i + 1 for i in range(40)}))
    for part in ("train", "valid", "test"):
        rows = [json.dumps({"inter_history": [f"i{u}", f"i{u + 1}"], "target_id": f"i{u + 2}"}) for u in range(9)]
        (other / f"other.{part}.jsonl").write_text("\n".join(rows))
        shutil.copy(folder / "tiny.inter", other / f"other.{part}.inter")
    (root / "c.yaml").write_text(yaml.safe_dump(base, default_flow_style=None))
    cfg = configure.build(base)
    data = read_dataset(cfg[DataOptions])
    tokenizer = build.train_tokenizer(cfg, data)
    main.main([f"--config={root / 'c.yaml'}", "--run_name=run", "--epochs=1", f"--rqvae_path={tokenizer}"])
    run = root / "out" / "tiny" / "run"
    metrics = RunFolder(run)
    return {
        ".inter": (folder / "tiny.inter", dataset("tiny", "inter")),
        ".items.jsonl": (folder / "tiny.items.jsonl", dataset("tiny", "inter", short_users="drop")),
        ".train.inter": (other / "other.train.inter", dataset("other", "inter_splits")),
        ".train.jsonl": (other / "other.train.jsonl", dataset("other", "jsonl")),
        ".emb_map.json": (other / "other.emb_map.json", dataset("other", "jsonl")),
        ".inter.json": (other / "other.inter.json", dataset("other", "json")),
        ".item.json": (other / "other.item.json", dataset("other", "json")),
        ".npy": (folder / "tiny.emb-test.npy", lambda path: read_embeddings(data).sum()),
        "index.json": (run / "tiny.index.json", read_json),
        "yaml": (root / "c.yaml", configure.load),
        "metrics.jsonl": (run / "metrics.jsonl", lambda path: metrics.forget_from(9)),
        "tokenizer": (tokenizer, lambda path: load_rqvae(path, cfg[RQVAEOptions], 12)),
        "checkpoint": (run / "best_model.pth", restore.restore),
        "state": (next((run / "last").glob("*.pth")), read_checkpoint),
    }


KINDS = [".inter", ".items.jsonl", ".train.inter", ".train.jsonl", ".emb_map.json", ".inter.json", ".item.json", ".npy",
         "index.json", "yaml", "metrics.jsonl", "tokenizer", "checkpoint", "state"]  # fmt: skip


def check(good, kind, wound):
    """Damage one file, read it, put it back."""
    path, read = good[kind]
    content = path.read_bytes()
    wounded = wound(content)
    beside = sorted(path.parent.iterdir())
    try:
        path.write_bytes(wounded)
        with suppress(Problem):
            read(path)
        if kind != "metrics.jsonl":  # the one that is mended in place
            assert path.read_bytes() == wounded
        assert sorted(path.parent.iterdir()) == beside
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings(max_examples=15)
@given(wound=damage())
def test_damaged_files_are_clean_problems(good, kind, wound):
    check(good, kind, wound)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings(max_examples=800, derandomize=False, deadline=60_000)
@given(wound=damage())
def test_many_damaged_files(good, kind, wound):
    check(good, kind, wound)


ODD = [
    None,
    True,
    -1,
    1e400,
    "",
    "x" * 1000,
    [],
    {},
    [[]],
    {"a": 1},
    "nan",
    10**30,
    "\0",
    float("nan"),
    "${HOME}",
    [None],
]


@pytest.mark.parametrize("key", list(parts.owners()))
def test_every_option_takes_or_refuses_any_value(key):
    for value in ODD:
        with suppress(Problem):
            configure.load(None, [f"--{key}={value}"])
        with suppress(Problem):
            configure.build({key: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["i1", "title",
    "item_id", "[PAD]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["item_id", "title",
    "inter_history", "target_id", "0", "u"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [".items.jsonl", ".train.jsonl", ".emb_map.json", ".inter.json", ".item.json", "index.json", "metrics.jsonl"],
)
@hypothesis_settings(max_examples=20)
@given(value=JSON)
def test_valid_json_of_another_shape(good, kind, value):
    check(good, kind, lambda content: json.dumps(value).encode())


def refused(kind, write):
    """What `write` puts in the place of a good file is a Problem."""
    path, read = kind
    content = path.read_bytes()
    try:
        write(path)
        with pytest.raises(Problem):
            read(path)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("array", [np.zeros((3, 0)), np.zeros(40), np.zeros((40, 12), int), np.zeros((40, 12), "U3"), 
                                    np.zeros((40, 12), complex),
                                   np.zeros((0, 12)), np.zeros((40, 12), [("a", float)]), np.full((40, 12),
                                   np.inf)])  # fmt: skip
def test_arrays_of_another_shape(good, array):
    refused(good[".npy"], lambda path: np.save(path, array))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3), [1], {}, {"model": None}, {"state_dict": {"a": 1}}, {"state_dict": {1: torch.zeros(2)}}],
    ids=str,
)
def test_checkpoints_of_another_shape(good, value):
    for kind in ("tokenizer", "checkpoint"):
        refused(good[kind], lambda path: torch.save(value, path))


def test_every_kind_is_fuzzed(good):
    assert list(good) == KINDS
