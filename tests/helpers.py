"""What tests of several files call: commands that fail, runs, joint models, data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import HEADER

from compose import build, configure
from data import make_batch
from evaluation import evaluate
from main import portable
from metrics import EvalOptions
from readers.splits import DataOptions, Split
from recommenders.protocol import TopK
from runs import report
from runs.folder import RunFolder
from sids.tokenizer import Source
from trainer import Trainer
from utils import problems_exit_2

SHARED = Path(__file__).parent.parent.parent / "shared" / "datasets"  # real data, beside the checkout of some of us
N, D = 30, 10  # items of `joint`, width of their embeddings
TINY = {
    "num_emb_list": [8, 8, 8], "layers": [16], "e_dim": 6, "encoder_layers": 1, "decoder_layers": 1,
    "d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8, "dropout_rate": 0.0, "num_beams": 10, "logit_scale": "auto",
}  # fmt: skip

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LM = {  # the configurations of language models, by network
    "causal_lm": {"lm": {"model_type": "qwen2", **SMALL, "num_hidden_layers": 1, "num_key_value_heads": 1}},
    "seq2seq_lm": {"lm": {"model_type": "t5", "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2,
                          "dropout_rate": 0, "tie_word_embeddings": False}},
}  # fmt: skip


# ---------------------------------------------------------------- commands


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fails(capsys, command, *argv):
    """The one line on stderr of a command that ends with status 2."""
    with pytest.raises(SystemExit) as stop, problems_exit_2():
        command(list(argv))
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def one_line(problem):
    text = str(problem.value)
    assert "\n" not in text and len(text) < 5000
    return text


def write_file(folder, text):
    (folder / "file").write_text(text)
    return folder / "file"


# ---------------------------------------------------------------- runs


def fit_of(ground, tmp_path, **changes):
    options, data = ground
    cfg = configure.build({**options, "output_dir": str(tmp_path), "run_name": "r", "warmup_steps": 2, **changes})
    run = RunFolder.of(cfg)
    run.claim(cfg)
    torch.manual_seed(cfg[DataOptions].seed)
    built = build.build_model(cfg, data)
    extras = portable(cfg, data, built.tokenizer, built.model)
    return Trainer(cfg, built.model, data, Accelerator(cpu=True), run, extras, report.EpochLog())


def evaluated(model, split, cfg, acc, title):
    return evaluate(model, split, cfg[EvalOptions], cfg[DataOptions], acc, title)


def rows(fit):
    found = [json.loads(line) for line in fit.run.metrics.read_text().splitlines()]
    times = {"seconds", "samples_per_s", "peak_memory_gb", "valid/users_per_s"}
    return [{k: v for k, v in row.items() if k not in times} for row in found]


def assert_same_state(a, b, atol=0.0):
    ours, theirs = a.raw.state_dict(), b.raw.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.allclose(value.double(), theirs[key].double(), rtol=0, atol=atol), key


class Fixed(torch.nn.Module):
    """Recommends items 1, 2, 3, ... to everybody."""

    n_items, free_length, item_tokens = 40, 10, None

    def recommend(self, history, k, excluded=None, among=None):
        return TopK(torch.arange(1, k + 1).expand(len(history), -1), torch.zeros(len(history), k))

    def groups(self):
        return {}


# ---------------------------------------------------------------- joint models


def joint(place=None, **changes):
    """A joint model over random content; place: where what is too large for memory is kept."""
    torch.manual_seed(0)
    cfg = configure.build({**TINY, **LM.get(changes.get("recommender"), {}), **changes})
    content = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    model = build.empty_model(cfg, N, D)
    model.tokenizer.init_codebooks(torch.from_numpy(content), 20, 0)
    model.attach(Source(content, np.ones(N), some_split(), place=place), 50)
    return model


def some_split():
    items = np.random.default_rng(1).integers(1, N + 1, 60).astype(np.int32)
    return Split(items, np.arange(0, 61, 10), np.arange(4, 60, 7))


def some_batch(rows=slice(0, 6)):
    split = some_split()
    return make_batch(split, np.arange(len(split))[rows], 50)


# ---------------------------------------------------------------- data sets


def write(folder, **files):
    """write(folder, inter=..., items__jsonl=...): text, bytes, JSON values or arrays as toy.<ending>."""
    folder.mkdir(exist_ok=True)
    for ending, content in files.items():
        path = folder / f"toy.{ending.replace('__', '.')}"
        if isinstance(content, np.ndarray):
            np.save(path, content, allow_pickle=content.dtype == object)
        else:
            text = content if isinstance(content, str | bytes) else json.dumps(content)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def table(rows, header=HEADER):
    return "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"


def samples(data, part):
    """[(history, target), ...] of one part in item tokens, read off the flat arrays one by one."""
    split, found = data.split(part), []
    for p in split.position.tolist():
        begin = max(o for o in split.offsets.tolist() if o <= p)
        tokens = [data.catalogue.ids[i - 1] for i in split.items[begin : p + 1].tolist()]
        found.append((tuple(tokens[:-1]), tokens[-1]))
    return found
