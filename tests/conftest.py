"""What several test files share: one thread, a quiet log, a data set and a model of toy size."""

import json
import logging
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from accelerate import Accelerator

import main
import settings
from compose import build, configure
from readers.dataset import Catalogue, Dataset
from readers.layouts import read_dataset
from readers.splits import DataOptions, Split
from runs.folder import RunFolder
from sids.checkpoint import load_state
from trainer import Trainer
from vq import RQVAE

pytest.register_assert_rewrite("helpers")
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

HEADER = "user_id:token\titem_id:token\ttimestamp:float"


def write_tiny(folder, name="tiny", n_items=40, n_users=60, width=12, seed=0):
    """A complete .inter data set; users of 4-9 interactions tend to go from item i to i + 1."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        item = int(random.integers(n_items))
        for time in range(int(random.integers(4, 10))):
            rows.append(f"u{user}\ti{item}\t{time}")
            item = (item + 1 if random.random() < 0.7 else int(random.integers(n_items))) % n_items
    (folder / f"{name}.inter").write_text("\n".join([HEADER, *rows]) + "\n")
    items = [json.dumps({"item_id": f"i{i}", "title": f"Item {i}"}) for i in range(n_items)]
    (folder / f"{name}.items.jsonl").write_text("\n".join(items) + "\n")
    np.save(folder / f"{name}.emb-test.npy", random.normal(size=(n_items, width)).astype(np.float32))
    return folder


def tiny_overrides(root, name="tiny"):
    """Options of a model that trains in a second on `root`/dataset/`name`; all output under root."""
    return {
        "dataset": name, "data_path": str(root / "dataset"),
        "output_dir": str(root / "out"), "log_dir": str(root / "logs"),
        "num_emb_list": [8, 8, 8], "layers": [16], "e_dim": 8, "rqvae_epochs": 6, "rqvae_eval_step": 2,
        "encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8,
        "epochs": 2, "num_beams": 10, "batch_size": 32,
    }  # fmt: skip


def tiny_at(root):
    """The options of `tiny_overrides`, and the data set that they name."""
    write_tiny(root / "dataset" / "tiny")
    return tiny_overrides(root)


def words(options):
    """A command line of the options that a run has; those of other parts would be refused."""
    texts = [f"--{k}={v}" for k, v in options.items()]
    known = settings.flat(configure.build(configure.parse_overrides(texts)))
    return [f"--{k}={v}" for k, v in options.items() if k in known]


def ring(users, n_items=30, longest=12, seed=0):
    """A split with one sample a user, items i -> i + 1 around a ring: history, and the step that closes it."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, longest + 1, users)
    offsets = np.concatenate([[0], lengths.cumsum()])
    items = np.concatenate([(random.integers(n_items) + np.arange(n)) % n_items + 1 for n in lengths])
    return Split(items.astype(np.int32), offsets, offsets[1:] - 1)


def load_rqvae(path, options, width):
    """The RQ-VAE of a checkpoint."""
    model = RQVAE(options, width)
    load_state(Path(path), model, "rqvae")
    return model


@pytest.fixture
def tiny_data(tmp_path):
    """tiny_data(name="tiny", n_items=40, n_users=60, width=12, seed=0) -> the folder it wrote."""

    def make(name="tiny", **sizes) -> Path:
        return write_tiny(tmp_path / "dataset" / name, name, **sizes)

    return make


@pytest.fixture
def tiny_options(tmp_path):
    """Flat overrides for `settings.build`; `tiny_data()` writes the data they name."""
    return tiny_overrides(tmp_path)


@pytest.fixture
def noisy_ring(tmp_path):
    """100 items, next = current + 1 with probability .9 else random,
    2,000 sequences of 8-19; the test is a regular step."""
    random, n = np.random.default_rng(0), 100

    def walk(length):
        row = [random.integers(n)]
        for _ in range(length - 1):
            row.append((row[-1] + 1) % n if random.random() < 0.9 else random.integers(n))
        return np.array(row)

    def split_of(rows):
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        return Split(np.concatenate(rows).astype(np.int32) + 1, offsets, offsets[1:] - 1)

    rows = [walk(length) for length in random.integers(8, 20, 2000)]
    known = split_of(rows)
    inner = np.flatnonzero(~np.isin(np.arange(len(known.items)), known.offsets))
    asked = split_of([np.append(r, (r[-1] + 1) % n) for r in rows[:500]])
    train = Split(known.items, known.offsets, inner)
    catalogue = Catalogue([str(i) for i in range(n)], [""] * n)
    return Dataset("ring", catalogue, train, asked, asked, np.ones(n + 1), None, "ring", "ring")


@pytest.fixture
def train_ring(noisy_ring, tmp_path):
    """train_ring(options) -> (trained Trainer); small enough for a minute on one core."""

    def train(options):
        small = {"hidden_units": 32, "num_heads": 2, "max_his_len": 20, "hidden_dropout": 0.1, "weight_decay": 0.0,
                 "output_dir": str(tmp_path), "run_name": "r", "eval_step": 50, "early_stop": 1000, "warmup_steps": 0,
                 "metrics": "recall@1,recall@10,ndcg@10"}  # fmt: skip
        cfg = configure.build(small | options)
        torch.manual_seed(0)
        model, run = build.build_model(cfg, noisy_ring).model, RunFolder.of(cfg)
        run.claim(cfg)
        fit = Trainer(
            cfg,
            model,
            noisy_ring,
            Accelerator(cpu=True),
            run,
            main.portable(cfg, noisy_ring),
            lambda *_: None,
        )
        fit.train()
        return fit

    return train


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """(options, data): the tiny data set and its tokenizer, once for the tests of a file."""
    root = tmp_path_factory.mktemp("ground")
    options = tiny_at(root)
    cfg = configure.build(options)
    data = read_dataset(cfg[DataOptions])
    return options | {"rqvae_path": str(build.train_tokenizer(cfg, data))}, data


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(options, data, finished runs by name) on the tiny data set; own_tokens: two_stage with collision: item."""
    root = tmp_path_factory.mktemp("trained")
    options = tiny_at(root) | {"epochs": 1, "metrics": "recall@5,ndcg@5", "valid_metric": "ndcg@5"}
    cfg = configure.build(options)
    data = read_dataset(cfg[DataOptions])
    options |= {"rqvae_path": str(build.train_tokenizer(cfg, data))}
    kinds = {"frqud": {}, "two_stage": {"method": "two_stage"}, "sasrec": {"method": "sasrec", "hidden_units": 8},
             "own_tokens": {"method": "two_stage", "collision": "item", "legal_softmax": True}}  # fmt: skip
    runs = {name: main.train(configure.build(options | kind | {"run_name": name})) for name, kind in kinds.items()}
    return options, data, runs


@pytest.fixture(autouse=True)
def log_as_before():
    """Commands point the log at this test's stdout, which is closed afterwards."""
    log = logging.getLogger("diger")
    before = list(log.handlers), log.propagate, log.level
    yield
    log.handlers[:], log.propagate = before[0], before[1]
    log.setLevel(before[2])
