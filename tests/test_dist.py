"""Two processes through the real launcher against one: same training, same results."""

import json
import os
import subprocess
import sys
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
