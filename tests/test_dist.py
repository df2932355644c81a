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
from conftest import tiny_overrides, write_tiny

ROOT = Path(__file__).resolve().parent.parent


def run(folder, processes, *options):
    command = [sys.executable, str(ROOT / "scripts" / "run.py"), "frqud_sdud", "--config=tiny.yaml", *options]
    env = {**os.environ, "NPROC": str(processes), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


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
    assert torch.equal(states[0]["sid_NL"], states[1]["sid_NL"])
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
