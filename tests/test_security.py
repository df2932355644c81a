"""Files from strangers: nothing in them runs, nothing is written outside the output folders."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import load_rqvae, tiny_overrides, write_tiny

import main
import scripts.pretrain
from compose import build, configure, restore
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs.folder import RunFolder
from utils import Problem, read_checkpoint, read_json
from vq import RQVAEOptions


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """What a payload leaves when it runs; absent at the end of each test, present once it is let loose."""
    path = tmp_path / "ran"
    Evil(path).__reduce__()[0](path)
    assert path.exists()  # the payload is a live one
    path.unlink()
    yield path
    assert not path.exists()


def bombs(folder, marker):
    """The same payload in every way in which a file can carry a pickle."""
    state = {
        "model": {"w": Evil(marker)},
        "state_dict": Evil(marker),
        "config": {},
        "items": [],
        "titles": [],
        "world": Evil(marker),
        "args": Evil(marker),
    }
    paths = [folder / name for name in ("zip.pth", "old.pth", "bare.pth", "array.npy")]
    torch.save(state, paths[0])
    torch.save(state, paths[1], _use_new_zipfile_serialization=False)
    paths[2].write_bytes(pickle.dumps(Evil(marker)))
    np.save(paths[3], np.array([Evil(marker)], object), allow_pickle=True)
    return paths


def test_no_reader_runs_what_is_in_a_checkpoint(tmp_path, marker):
    shape = configure.build(tiny_overrides(tmp_path))[RQVAEOptions]
    for path in bombs(tmp_path, marker):
        for read in (
            read_checkpoint,
            read_json,
            configure.load,
            lambda p: load_rqvae(p, shape, 12),
            restore.restore,
        ):
            with pytest.raises(Problem, match=re.escape(path.name)) as told:
                read(path)
            if path.name in ("zip.pth", "old.pth") and read not in (read_json, configure.load):
                assert "holds a getattr, which is code that reading would run" in str(told.value)


def test_no_run_executes_a_state_or_a_tokenizer(tmp_path, marker):
    folder = RunFolder(tmp_path / "run")
    folder.states.mkdir(parents=True)
    for i, path in enumerate(bombs(tmp_path, marker)):
        (folder.states / f"step-{i:08d}.pth").write_bytes(path.read_bytes())
    assert folder.load_state() is None
    write_tiny(tmp_path / "dataset" / "tiny")
    cfg = configure.build(tiny_overrides(tmp_path))
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(tiny_overrides(tmp_path)))
    with pytest.raises(Problem, match=r"holds a getattr, which is code|not a readable"):
        main.main([f"--config={config}", "--run_name=x", f"--rqvae_path={tmp_path / 'zip.pth'}"])
    tokenizer = build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    tokenizer.with_name("report.json").unlink()
    tokenizer.with_name("last.pth").write_bytes((tmp_path / "zip.pth").read_bytes())
    with pytest.raises(Problem, match=r"last\.pth: holds a getattr, which is code|not a readable checkpoint"):
        scripts.pretrain.run([f"--config={config}"])


def test_no_reader_runs_what_is_in_the_data(tmp_path, marker):
    write_tiny(tmp_path / "dataset" / "tiny")
    bomb = bombs(tmp_path, marker)
    options = configure.build(tiny_overrides(tmp_path))[DataOptions]
    embedding = Path(read_dataset(options).embedding_path)
    for path in bomb:
        embedding.write_bytes(path.read_bytes())
        data = read_dataset(options)
        with pytest.raises(Problem, match=r"save its vectors|not readable as \.npy"):
            read_embeddings(data)
    for ending in (".items.jsonl", ".inter"):  # the second stands before the first when they are read
        (tmp_path / "dataset" / "tiny" / f"tiny{ending}").write_bytes(bomb[2].read_bytes())
        with pytest.raises(Problem, match=re.escape(f"tiny{ending}")):
            read_dataset(configure.build(tiny_overrides(tmp_path))[DataOptions])
    report = tmp_path / "out.json"
    report.write_bytes(bomb[2].read_bytes())
    with pytest.raises(Problem):
        read_json(report)


TAGS = [
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath ['{}']]",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:subprocess.check_output [['touch', '{}']]",
    "!!python/tuple ['{}']",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_build_nothing(tmp_path, marker, tag):
    text = tag.format(marker)
    (tmp_path / "c.yaml").write_text(f"epochs: {text}\n")
    with pytest.raises(Problem, match="not readable as YAML"):
        configure.load(tmp_path / "c.yaml")
    with pytest.raises(Problem, match=r"--run_name: .* is not readable"):
        configure.load(None, [f"--run_name={text}"])
    for value in (text, f"[{text}]", f"__import__('pathlib').Path('{marker}').touch()"):
        with pytest.raises(Problem):
            configure.load(None, [f"--epochs={value}"])
        with pytest.raises(Problem):
            configure.load(None, [f"--num_emb_list={value}"])


OUTSIDE = ["../x", "/x/y", "a/b", "..", ".", "", ".hidden", "a\0b", "x" * 300, "a\nb", "~/x/y"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("key", ["run_name", "dataset"])
def test_a_name_is_no_path(key, name):
    with pytest.raises(Problem, match=key):
        configure.build({key: name})


@pytest.mark.parametrize("key", ["run_name", "dataset"])
def test_the_configuration_inside_a_checkpoint_is_checked_like_any_other(tmp_path, key):
    """A shared checkpoint cannot name a folder of its own either."""
    torch.save({"model": {}, "config": {key: "../../x"}, "items": ["a"], "titles": [""]}, tmp_path / "best_model.pth")
    for command in (["evaluate"], ["recommend", "--history=a"]):
        with pytest.raises(Problem, match=key):
            main.main([*command, f"--checkpoint={tmp_path / 'best_model.pth'}"])
    assert [p.name for p in tmp_path.iterdir()] == ["best_model.pth"]


@pytest.mark.parametrize(
    "state",
    [
        {"model": [], "config": {}, "items": ["a"], "titles": [""]},
        {"model": {}, "config": [], "items": ["a"], "titles": [""]},
        {"model": {}, "config": {1: 2}, "items": ["a"], "titles": [""]},
        {"model": {}, "config": {}, "items": 7, "titles": [""]},
        {"model": {}, "config": {}, "items": ["a", None], "titles": ["", ""]},
        {"model": {}, "config": {}, "items": ["a"], "titles": []},
        {"model": {"code_NT": torch.zeros(())}, "config": {}, "items": ["a"], "titles": [""]},
        {"model": {"code_NT": 3, "tokenizer.encoder.mlp_layers.1.weight": "x"}, "config": {},
         "items": ["a"], "titles": [""]},
    ],
)  # fmt: skip
def test_a_checkpoint_of_a_strange_make(tmp_path, state):
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(Problem, match=r"m\.pth"):
        main.main(["recommend", "--history=a", f"--checkpoint={tmp_path / 'm.pth'}"])
