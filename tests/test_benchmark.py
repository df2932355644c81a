"""The benchmark: every figure it writes is its two sides' quotient, and both sides do the same work."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_overrides, words, write_tiny

from readers.splits import DataOptions
from scripts import benchmark
from scripts.bench import common, plain, search, train
from trainer import TrainOptions
from utils import Problem

SLOW = ["recommender", "train", "search", "compiled"]
NAMED = [
    "recommender.samples_per_s",
    "recommender.users_per_s",
    "train.samples_per_s",
    "train.peak_memory_gb",
    "search.users_per_s",
]  # figures that others rely upon


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    """The command line of a benchmark of a tiny data set."""
    root = tmp_path_factory.mktemp("benchmark")
    write_tiny(root / "dataset" / "tiny")
    return words(tiny_overrides(root))


def written(sections, argv, path, capsys):
    """The figures of some sections as written, held against what is shown."""
    benchmark.run([*sections, "--quick", "--beams=5,3", f"--json={path}", *argv])
    found = json.loads(path.read_text())
    assert "torch" in found.pop("machine") and list(found) == sections
    for section, figure in (name.split(".") for name in NAMED):
        assert section not in sections or "ratio" in found[section][figure], figure
    shown = capsys.readouterr().out
    for section, figures in found.items():
        assert section in shown
        for name, f in figures.items():
            assert name in shown and f["ours"] > 0
            assert "baseline" not in f or f["ratio"] == pytest.approx(f["ours"] / f["baseline"])
    return found


def test_the_written_figures(argv, tmp_path, capsys, monkeypatch):
    sides = {"alone": common.figure(2.0), "two": common.figure([1.0, 3.0, 2.0], [4.0, 5.0, 8.0])}
    monkeypatch.setitem(benchmark.SECTIONS, "toy", lambda job: sides if job.data().n_items else {})
    found = written(["toy"], argv, tmp_path / "figures.json", capsys)
    two = found["toy"]["two"]
    assert (two["ours"], two["ours_spread"], two["baseline_spread"], two["ratio"]) == (2, [1, 3], [4, 8], 0.4)


@pytest.mark.slow
def test_the_written_figures_beside_a_plain_t5(argv, tmp_path, capsys):
    found = written(SLOW, argv, tmp_path / "figures.json", capsys)
    assert "users_per_s_3_beams" in found["search"]
    job = common.Job(benchmark.configuration(argv), True, (5,))
    length = job.data().train.lengths(job.cfg[DataOptions].max_his_len)
    order, size = (
        np.random.default_rng(job.cfg[DataOptions].seed).permutation(len(length)),
        job.cfg[TrainOptions].batch_size,
    )
    batches = [length[order[i : i + size]] for i in range(0, len(length), size)]
    random = sum(b.max() * len(b) for b in batches) / length.sum()
    assert found["train"]["padding_factor"]["baseline"] == pytest.approx(random)
    assert found["train"]["padding_factor"]["ours"] < random


def test_both_sides_learn_from_the_same_samples(argv, tmp_path):
    """Our parts and the plain batch of the same rows have the same loss, softmax over each level's codes."""
    job = common.job(benchmark.configuration(argv), tmp_path, True, (5,))
    data = job.data()
    ours, theirs = train.OurSteps(job, data), train.PlainSteps(job, data)
    model = ours.fit.raw
    plain.copy_weights(model.recommender, theirs.model)
    rows = ours.steps.plan[0]
    padded = theirs.tokens.batch(data.train, rows, job.cfg[DataOptions].max_his_len)
    model.eval(), theirs.model.eval()
    legal_LV, theirs.model.level_mask = theirs.model.level_mask, None  # `generate` masks one level at a time
    with torch.no_grad():
        logit_BLV = theirs.model(**padded).logits + legal_LV
        loss = sum(float(part.weight) * float(model(part)[0]) for part in ours.steps[0])
        assert loss == pytest.approx(
            F.cross_entropy(logit_BLV.flatten(0, 1), padded["labels"].flatten()).item(), rel=1e-5
        )


def test_the_plain_search_gets_no_more_beams_than_fit(argv):
    job = common.Job(benchmark.configuration([*argv, "--eval_batch_size=256"]), True, (20,))
    assert [search.users_at_once(job, width) for width in (1, 20, 5000)] == [256, 64, 1]


@pytest.mark.parametrize(("argv", "said"), [
    (["trian"], "'trian': no such section; there are train, search"),
    (["search", "--beams=20,x"], "--beams: expected numbers such as 20,50,80"),
    (["--beam=3"], "beam"),
])  # fmt: skip
def test_a_wrong_command_is_refused(argv, said):
    with pytest.raises(Problem, match=said):
        benchmark.run(argv)
