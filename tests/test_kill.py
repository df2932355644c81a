"""SIGKILL anywhere, then --resume=auto: what is on disk at the end equals the uninterrupted run bit for bit."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed
import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_overrides, write_tiny
from helpers import LM

from compose import build, configure
from readers.layouts import read_dataset
from readers.splits import DataOptions

ROOT = Path(__file__).resolve().parent.parent
TIMES = {"seconds", "samples_per_s", "peak_memory_gb", "users_per_s"}
KILLS = {"step": 11, "write": 8, "evaluation": 14}  # of 21 steps, 7 an epoch, a state every 4


def timeless(value):
    """Figures without those that measure time or memory."""
    if not isinstance(value, dict):
        return value
    return {k: timeless(v) for k, v in value.items() if k.split("/")[-1] not in TIMES}


def assert_same_results(ours, theirs):
    """Metrics, test figures, ranks, SIDs and every tensor of the best model."""
    rows = [[timeless(json.loads(x)) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (ours, theirs)]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    named = ["test.json", "baselines.json", *(f.name for f in theirs.glob("*.index.json"))]  # SIDs, where there are any
    for name in named:
        assert timeless(json.loads((ours / name).read_text())) == timeless(json.loads((theirs / name).read_text()))
    for name in ("ranks-valid.npy", "ranks-test.npy"):
        assert np.array_equal(np.load(ours / name), np.load(theirs / name))
    models = [torch.load(f / "best_model.pth", weights_only=True)["model"] for f in (ours, theirs)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with data, tokenizer and configuration, and the uninterrupted runs on 1 and 2 processes."""
    root = tmp_path_factory.mktemp("kill")
    write_tiny(root / "dataset" / "tiny")
    options = tiny_overrides(root) | {"epochs": 3, "save_steps": 4, "uncertainty": "frqud_sdud", "lr_id": 1e-3}
    (root / "tiny.yaml").write_text(yaml.safe_dump(options))
    cfg = configure.build(options)
    path = build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    return root, [f"--config={root / 'tiny.yaml'}", f"--rqvae_path={path}"], {}


def whole(ground, processes, *more):
    root, argv, runs = ground
    if (processes, more) not in runs:
        run = [*argv, f"--run_name=whole-{len(runs)}", f"--batch_size={32 // processes}", *more]
        codes, said = killed.train(root, run, processes=processes)
        assert codes == [0] * processes, said
        runs[processes, more] = root / "out" / "tiny" / f"whole-{len(runs)}"
    return runs[processes, more]


def killed_and_resumed(ground, processes, places, name, *more):
    """A run killed at each of the places in turn, and at last let go to its end."""
    root, argv, _ = ground
    run = [*argv, f"--run_name={name}", f"--batch_size={32 // processes}", "--resume=auto", *more]
    for place in places:
        codes, said = killed.train(root, run, processes=processes, kill=[(place, KILLS[place])])
        assert codes[0] == -signal.SIGKILL, said
        print(f"{processes} process(es):", re.search(r"SIGKILL in .*", said[0])[0])
    codes, said = killed.train(root, run, processes=processes)
    assert codes == [0] * processes, said
    assert "resumed at epoch" in said[0]
    folder = root / "out" / "tiny" / name
    assert not list(folder.rglob(".*.part"))
    return folder


def test_a_killed_run_ends_as_if_it_had_not_been(ground):
    assert_same_results(killed_and_resumed(ground, 1, ["write"], "write"), whole(ground, 1))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("places", [["step"], ["write"], ["evaluation"], ["write", "step", "evaluation"]], ids="-".join)
def test_killed_anywhere(ground, processes, places):
    folder = killed_and_resumed(ground, processes, places, f"slow-{'-'.join(places)}-{processes}")
    assert_same_results(folder, whole(ground, processes))


@pytest.mark.slow
@pytest.mark.parametrize("network", LM)
def test_language_models_killed_anywhere(ground, network):
    more = f"--recommender={network}", f"--lm={json.dumps(LM[network]['lm'])}"
    folder = killed_and_resumed(ground, 1, ["write", "step", "evaluation"], network, *more)
    assert_same_results(folder, whole(ground, 1, *more))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_from_outside_at_a_random_moment(ground, seed):
    """No hook inside: another process kills this one some time after its training began."""
    root, argv, _ = ground
    name, random = f"outside-{seed}", np.random.default_rng(seed)
    command = [sys.executable, str(ROOT / "main.py"), *argv, f"--run_name={name}", "--resume=auto"]
    folder = root / "out" / "tiny" / name
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not list(folder.glob("last/step-*.pth")):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        run.kill()
    states = sorted(p.name for p in folder.rglob("*.pth"))
    print(
        f"killed from outside: {states}, {sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())} "
        "bytes on disk"
    )
    codes, said = killed.train(root, [*argv, f"--run_name={name}", "--resume=auto"])
    assert codes == [0], said
    assert_same_results(folder, whole(ground, 1))


@pytest.mark.slow
def test_both_stages_of_diffusion_go_on_where_they_were_killed(ground):
    """Fine-tuning is a run like any other: killed in a step and in a write, it ends as if it had not been."""
    root, argv, _ = ground
    start = []
    for method, steps in (("diffsasrec", {"step": 11}), ("diffsasrec_sft", {"step": 5, "write": 8})):
        options = [
            *(a for a in argv if not a.startswith("--rqvae_path")),
            f"--method={method}",
            "--hidden_units=16",
            "--hidden_dropout=0.1",
            "--batch_size=16",
            *start,
        ]
        folders = [root / "out" / "tiny" / f"{kind}-{method}" for kind in ("left-alone", "killed")]
        for folder, kills in zip(folders, ([], [[k] for k in steps.items()]), strict=True):
            run = [*options, f"--run_name={folder.name}", "--resume=auto"]
            for kill in kills:
                codes, said = killed.train(root, run, kill=kill)
                assert codes == [-signal.SIGKILL], said
            codes, said = killed.train(root, run)
            assert codes == [0], said
            assert ("resumed at epoch" in said[0]) == bool(kills)
        assert_same_results(*folders[::-1])
        start = [f"--sft_from={folders[0] / 'best_model.pth'}"]
