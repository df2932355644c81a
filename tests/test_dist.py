"""Two processes through the real launcher against one: same training, same results."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import tiny_overrides, write_tiny
from killed import free_port, join_group, server

import data as batches
import methods
from main import portable
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs.folder import RunFolder
from trainer import Fit

ROOT = Path(__file__).resolve().parent.parent


def run(folder, processes, *options):
    command = [sys.executable, str(ROOT / "scripts" / "run.py"), "frqud_sdud", "--config=tiny.yaml", *options]
    env = {**os.environ, "NPROC": str(processes), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


CASES = {
    "no noise": {"uncertainty": "none"},
    "frqud_sdud": {"uncertainty": "frqud_sdud"},
    "rq_transformer": {
        "recommender": "rq_transformer",
        "item_dropout": 0,
        "depth_dropout": 0,
        "legal_softmax": True,
        "assignment_forward": "history",
        "label_prior": "usage",
    },
    "sinkhorn": {"uncertainty": "sdud", "auto_lambda_mode": "adaptive", "catalogue_assignment": "sinkhorn"},
}


def two_epochs(options, rank, processes, port, folder):
    """Train in float64, then take the gradients of one more step; all of it to a file per case and rank."""
    torch.set_num_threads(1)
    join_group(rank, processes, port)
    acc = Accelerator(cpu=True)
    for case, changes in CASES.items():
        cfg = methods.build(options | changes | {"output_dir": str(folder), "run_name": case})
        data, run = read_dataset(cfg[DataOptions]), RunFolder.of(cfg)
        if rank == 0:
            run.claim(cfg)
        acc.wait_for_everyone()
        torch.manual_seed(cfg[DataOptions].seed)
        model = methods.build_model(cfg, data).model.double()
        fit = Fit(cfg, model, data, acc, run, portable(cfg, data), lambda row, best: None)
        fit.train()
        assert fit.progress.step >= 20
        steps = batches.Steps(fit.train_split, fit.plan(0), fit.shape)
        fit._gradients(next(parts for parts in steps if len(parts[0].user_B) == len(steps[0][0].user_B)))
        grads = {f"gradient/{k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
        torch.save(model.state_dict() | grads, folder / f"{case}-{rank}.pt")
    acc.end_training()


@pytest.mark.dist
def test_processes_and_accumulation_give_the_same_numbers(tmp_path):
    """2 x 8 = 1 x 16 = 1 x 8 x 2 parts: 26 steps in float64, noise off and on, the last batch uneven.

    Parameters, gradients, FrqUD's usage, SDUD's sigma and the catalogue's SIDs; all ranks alike to the bit.
    """
    write_tiny(tmp_path / "dataset" / "tiny")
    options = tiny_overrides(tmp_path) | {
        "dropout_rate": 0,
        "lr_id": 1e-3,
        "hot_threshold_ratio": 1.0,
        "warmup_steps": 2,
    }
    cfg = methods.build(options)
    options["rqvae_path"] = str(methods.train_tokenizer(cfg, read_dataset(cfg[DataOptions])))
    cuts = {"whole": (1, 16, 1), "parts": (1, 8, 2), "processes": (2, 8, 1)}
    for name, (processes, batch, parts) in cuts.items():
        (tmp_path / name).mkdir()
        cut = options | {"batch_size": batch, "gradient_accumulation_steps": parts}
        port = free_port()
        children = [
            server.Process(target=two_epochs, args=(cut, rank, processes, port, tmp_path / name))
            for rank in range(processes)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(200)
        assert [child.exitcode for child in children] == [0] * processes
    for case in CASES:
        whole, parts, rank_0, rank_1 = (
            torch.load(tmp_path / f, weights_only=True)
            for f in (f"whole/{case}-0.pt", f"parts/{case}-0.pt", f"processes/{case}-0.pt", f"processes/{case}-1.pt")
        )
        assert any(k.startswith("gradient/tokenizer") for k in whole) and whole.keys() == parts.keys() == rank_0.keys()
        assert all(torch.equal(value, rank_1[key]) for key, value in rank_0.items())
        assert torch.equal(whole["code_NT"], rank_0["code_NT"]) and torch.equal(whole["code_NT"], parts["code_NT"])
        for name, other in (("parts", parts), ("processes", rank_0)):
            apart = {k: float((v.double() - other[k].double()).abs().max()) for k, v in whole.items()}
            grads = max(v for k, v in apart.items() if k.startswith("gradient/"))
            print(
                f"{case}, {name}: gradients {grads:.1e}, all else "
                f"{max(v for k, v in apart.items() if 'grad' not in k):.1e}"
            )
            assert max(apart.values()) < 1e-7, max(apart, key=apart.get)


@pytest.mark.dist
def test_two_processes_give_the_result_of_one(tmp_path):
    """Noise on, the last batch uneven: parameters, usage, sigma, SIDs and figures agree."""
    write_tiny(tmp_path / "dataset" / "tiny")
    options = tiny_overrides(tmp_path) | {"dropout_rate": 0, "lr_id": 1e-3, "hot_threshold_ratio": 1.0, "epochs": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    one = run(tmp_path, 1, "--run_name=one", "--batch_size=32")
    two = run(tmp_path, 2, "--run_name=two", "--batch_size=16")
    assert (one.returncode, two.returncode) == (0, 0), one.stderr[-2000:] + two.stderr[-2000:]
    assert two.stdout.splitlines()[-1].startswith("run folder: ")

    folders = [tmp_path / "out" / "tiny" / name for name in ("one", "two")]
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    assert [[r["world_size"] for r in rs] for rs in rows] == [[1, 1], [2, 2]]
    for a, b in zip(*rows, strict=True):
        for key in ("loss/rec", "loss/vq", "valid/ndcg@10", "noise_scale", "collision_rate", "sid_changed"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key
    states = [torch.load(f / "best_model.pth", weights_only=True)["model"] for f in folders]
    for key, value in states[0].items():
        assert torch.allclose(value.double(), states[1][key].double(), atol=2e-4), key
    assert torch.equal(states[0]["code_NT"], states[1]["code_NT"])
    results = [json.loads((f / "test.json").read_text()) for f in folders]
    assert results[0]["recall@10"] == results[1]["recall@10"]
    assert results[1]["num_users"] == 60


def children(pid):
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.dist
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stop_reaches_every_worker_and_none_outlives_its_launcher(tmp_path):
    """SIGTERM to the run script: saved, status 143, a line. SIGKILL to the launcher: no worker is left."""
    write_tiny(tmp_path / "dataset" / "tiny")
    options = tiny_overrides(tmp_path) | {"epochs": 1000, "early_stop": 1000, "run_name": "r", "resume": "auto"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, str(ROOT / "scripts" / "run.py"), "frqud", "--config=tiny.yaml"]
    env = {**os.environ, "NPROC": "2", "OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "out" / "tiny" / "r" / "metrics.jsonl"

    def begin(rows):
        script = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > rows)
        (launcher,) = children(script.pid)
        workers = children(launcher)
        assert len(workers) == 2
        return script, launcher, workers

    script, launcher, workers = begin(0)
    script.send_signal(signal.SIGTERM)
    said = script.communicate(timeout=60)[0]
    assert script.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].startswith("stopped by SIGTERM; its state is saved; go on with")
    assert "Traceback" not in said and "SignalException" not in said, said
    assert not any(map(alive, [launcher, *workers]))
    done = len(metrics.read_text().splitlines())

    script, launcher, workers = begin(done)
    assert [json.loads(x)["epoch"] for x in metrics.read_text().splitlines()][: done + 1] == list(range(done + 1))
    os.kill(launcher, signal.SIGKILL)
    said = script.communicate(timeout=60)[0]
    assert script.returncode == 2 and "training stopped with status -9" in said
    assert "resumed at epoch" in said
    wait_for(lambda: not any(map(alive, workers)), 10)

    script, launcher, workers = begin(len(metrics.read_text().splitlines()))
    script.kill()
    wait_for(lambda: not any(map(alive, [launcher, *workers])), 60)
    script.communicate()
