"""Two processes through the real launcher against one: same training, same results."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import tiny_at, tiny_overrides, write_tiny
from helpers import LM
from killed import Process, free_port, join_group

import data as batches
import main
from compose import build, configure
from main import portable
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import guard
from runs.folder import RunFolder
from scripts import run as run_script
from trainer import Trainer
from utils import problems_exit_2

ROOT = Path(__file__).resolve().parent.parent


RQ = {
    "recommender": "rq_transformer", "item_dropout": 0, "depth_dropout": 0, "legal_softmax": True,
    "assignment_forward": "history",
}  # fmt: skip
CASES = {
    "no noise": {
        "uncertainty": "none",
        **RQ,
        "label_prior": "prefix",
        "latent_loss": 1.0,
        "lr_offset": 1e-3,
        "offset_prior": 0.1,
    },
    "frqud_sdud": {"uncertainty": "frqud_sdud"},
    "rq_transformer": {**RQ, "label_prior": "usage"},
    "em": {**RQ, "method": "em", "em_every": 1, "epochs": 3},
    "causal_lm": {"recommender": "causal_lm", **LM["causal_lm"]},
    "seq2seq_lm": {"recommender": "seq2seq_lm", **LM["seq2seq_lm"]},
    "sinkhorn": {"uncertainty": "sdud", "auto_lambda_mode": "adaptive", "catalogue_assignment": "sinkhorn"},
}


def two_epochs(options, rank, processes, port, folder):
    """Train in float64, then take the gradients of one more step; all of it to a file per case and rank."""
    torch.set_num_threads(1)
    join_group(rank, processes, port)
    acc = Accelerator(cpu=True)
    for case, changes in CASES.items():
        cfg = configure.build(options | changes | {"output_dir": str(folder), "run_name": case})
        data, run = read_dataset(cfg[DataOptions]), RunFolder.of(cfg)
        if rank == 0:
            run.claim(cfg)
        acc.wait_for_everyone()
        torch.manual_seed(cfg[DataOptions].seed)
        model = build.build_model(cfg, data).model.double()
        fit = Trainer(cfg, model, data, acc, run, portable(cfg, data), lambda row, best: None)
        fit.train()
        assert fit.progress.step >= 12 and len(data.train) % 16
        steps = batches.Steps(fit.train_split, fit.plan(0), fit.shape)
        fit.optimizer.zero_grad = lambda: None
        fit.step(next(parts for parts in steps if len(parts[0].user_B) == len(steps[0][0].user_B)))
        grads = {f"gradient/{k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
        torch.save(model.state_dict() | grads, folder / f"{case}-{rank}.pt")
    acc.end_training()


@pytest.mark.slow  # the next test is the same proof from end to end
@pytest.mark.dist
def test_two_processes_give_the_numbers_of_one(tmp_path):
    """2 x 8 = 1 x 16 in float64, noise off and on, the last batch uneven (that both equal 1 x 8 in two parts shows
    test_trainer.py): parameters, gradients, FrqUD's usage, SDUD's sigma, the catalogue's SIDs; ranks alike to the bit.
    """
    write_tiny(tmp_path / "dataset" / "tiny", n_users=35)
    changes = {"dropout_rate": 0, "lr_id": 1e-3, "hot_threshold_ratio": 1.0, "warmup_steps": 2}
    options = tiny_overrides(tmp_path) | changes
    cfg = configure.build(options)
    options["rqvae_path"] = str(build.train_tokenizer(cfg, read_dataset(cfg[DataOptions])))
    children = []
    for name, (processes, batch) in {"whole": (1, 16), "processes": (2, 8)}.items():
        (tmp_path / name).mkdir()
        cut, port = options | {"batch_size": batch}, free_port()
        ranks = [(cut, rank, processes, port, tmp_path / name) for rank in range(processes)]
        children += [Process(target=two_epochs, args=args) for args in ranks]
    for child in children:
        child.start()
    for child in children:
        child.join(200)
    assert [child.exitcode for child in children] == [0, 0, 0]
    for case in CASES:
        whole, rank_0, rank_1 = (
            torch.load(tmp_path / f, weights_only=True)
            for f in (f"whole/{case}-0.pt", f"processes/{case}-0.pt", f"processes/{case}-1.pt")
        )
        assert any(k.startswith("gradient/tokenizer") for k in whole) == (case != "em")
        assert whole.keys() == rank_0.keys()
        assert all(torch.equal(value, rank_1[key]) for key, value in rank_0.items())
        assert torch.equal(whole["code_NT"], rank_0["code_NT"])
        apart = {k: float((v.double() - rank_0[k].double()).abs().max()) for k, v in whole.items()}
        assert max(apart.values()) < 1e-7, (case, max(apart, key=apart.get))


def children(pid):
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pending(pid):
    """Is SIGTERM waiting for a stopped process?"""
    words = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(words["ShdPnd"], 16) >> signal.SIGTERM - 1 & 1


class Script:
    """A run script with two workers, begun; `ready` says when its workers are at work."""

    def __init__(self, folder, options, ready):
        (folder / "tiny.yaml").write_text(yaml.safe_dump(options))
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "run.py"), "frqud_sdud", f"--config={folder / 'tiny.yaml'}"],
            env={**os.environ, "NPROC": "2", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for(ready)
        (self.launcher,) = children(self.process.pid)
        self.workers = children(self.launcher)
        assert len(self.workers) == 2

    def end(self):
        """What it said; none of its processes is left."""
        said = self.process.communicate(timeout=60)[0]
        wait_for(lambda: not any(map(alive, [self.launcher, *self.workers])), 60)
        return said


def nodes(folder):
    """Two launchers on this machine, one process each, as two machines would be started; (process, its output) each."""
    config = yaml.safe_load((ROOT / "accelerate_multi_node.yaml").read_text()) | {"use_cpu": True, "num_processes": 2}
    (folder / "node.yaml").write_text(yaml.safe_dump(config | {"main_process_port": free_port()}))
    started = []
    for rank in range(2):
        out = folder / f"node-{rank}.txt"
        launcher = [ROOT / "scripts" / "launcher.py", f"--config_file={folder / 'node.yaml'}", f"--machine_rank={rank}"]
        command = [sys.executable, *map(str, launcher), str(ROOT / "main.py"), f"--config={folder / 'tiny.yaml'}"]
        with out.open("w") as f:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append((subprocess.Popen(command, env=env, stdout=f, stderr=subprocess.STDOUT), out))
    return started


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_machines_of_which_one_dies(tmp_path):
    """The other one ends within half a minute, in one line; started again, both come to the result of one process."""
    options = tiny_at(tmp_path) | {"dropout_rate": 0, "lr_id": 1e-3, "hot_threshold_ratio": 1.0, "epochs": 3}
    options |= {"run_name": "two", "batch_size": 16, "save_steps": 1, "uncertainty": "frqud", "resume": "auto"}
    cfg = configure.build(options)
    options["rqvae_path"] = str(build.train_tokenizer(cfg, read_dataset(cfg[DataOptions])))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    folders = [tmp_path / "out" / "tiny" / name for name in ("one", "two")]
    (first, said), (second, _) = nodes(tmp_path)
    wait_for(lambda: [*folders[1].glob("last/step-*.pth")])
    second.kill()
    assert first.wait(30) != 0
    (line,) = [x for x in said.read_text().splitlines() if "error" in x]
    assert "another process of this run has ended" in line and "--resume=auto" in line
    assert "Traceback" not in said.read_text()
    assert all(torch.load(path, weights_only=True)["progress"]["step"] for path in folders[1].glob("last/*.pth"))
    for process, out in nodes(tmp_path):
        assert process.wait(120) == 0, out.read_text()
    main.main([f"--config={tmp_path / 'tiny.yaml'}", "--run_name=one", "--batch_size=32"])
    states = [torch.load(f / "best_model.pth", weights_only=True)["model"] for f in folders]
    for key, value in states[0].items():
        assert torch.allclose(value.double(), states[1][key].double(), atol=2e-4), key
    results = [json.loads((f / "test.json").read_text()) for f in folders]
    assert results[0]["recall@10"] == results[1]["recall@10"]


def compared(folder, rank, port, what):
    """Hold what two machines see beside each other; the second one has another run folder, or other data."""
    join_group(rank, 2, port)
    acc, told = Accelerator(cpu=True), ["run", "data"]
    guard.PATIENCE = 0.0
    if rank and what in told:
        told[told.index(what)] = None if what == "run" else "other"
    with (folder / f"{rank}.txt").open("w") as f, contextlib.redirect_stderr(f), problems_exit_2():
        guard.check_shared(acc, Path("out"), lambda: told[0], told[1])


@pytest.mark.dist
@pytest.mark.parametrize(("what", "said"), [
    ("nothing", ""),
    ("run", "output_dir: process 1 on .* all machines share"),
    ("data", "data_path: process 1 on .* has other"),
])  # fmt: skip
def test_machines_that_do_not_share_their_files_are_told_before_training(tmp_path, what, said):
    port = free_port()
    children = [Process(target=compared, args=(tmp_path, rank, port, what)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == ([2, 2] if said else [0, 0])
    texts = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert re.search(said, texts[0]) and not texts[1]


def by_script(monkeypatch, folder, processes, *options):
    """The run script's work, in this process; its workers are others."""
    monkeypatch.setenv("NPROC", str(processes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_script.run("frqud_sdud", [f"--config={folder / 'tiny.yaml'}", *options])


@pytest.mark.dist
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_stopped_and_resumed_give_the_result_of_one(tmp_path, monkeypatch):
    """SIGTERM to the run script reaches every worker: all is saved, status 143, one line, nobody left. Gone on with,
    noise on, the last batch variable_length: parameters, usage, sigma, SIDs and figures agree with one process's.
    """
    options = tiny_at(tmp_path) | {"dropout_rate": 0, "lr_id": 1e-3, "hot_threshold_ratio": 1.0, "epochs": 2}
    options |= {"run_name": "two", "batch_size": 16, "save_steps": 1}
    folders = [tmp_path / "out" / "tiny" / name for name in ("one", "two")]
    script = Script(tmp_path, options, lambda: [*folders[1].glob("last/step-*.pth")])
    for worker in script.workers:  # so that it cannot end before the signal comes
        os.kill(worker, signal.SIGSTOP)
    script.process.send_signal(signal.SIGTERM)
    wait_for(lambda: all(map(pending, script.workers)))
    for worker in script.workers:
        os.kill(worker, signal.SIGCONT)
    said = script.end()
    assert script.process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].startswith("stopped by SIGTERM; its state is saved; continue with")
    assert "Traceback" not in said and "SignalException" not in said, said

    by_script(monkeypatch, tmp_path, 2, "--resume=auto")
    by_script(monkeypatch, tmp_path, 1, "--run_name=one", "--batch_size=32")
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
    assert results[0]["recall@10"] == results[1]["recall@10"] and results[1]["num_users"] == 60


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_its_launcher_nor_a_launcher_its_script(tmp_path):
    """SIGKILL to the launcher: told, and no worker is left; then to the script."""
    options = tiny_at(tmp_path) | {"epochs": 1000, "early_stop": 1000, "run_name": "r", "resume": "auto"}
    metrics = tmp_path / "out" / "tiny" / "r" / "metrics.jsonl"

    def begin(rows):
        return Script(tmp_path, options, lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > rows)

    script = begin(0)
    os.kill(script.launcher, signal.SIGKILL)
    said = script.end()
    assert script.process.returncode == 2 and "training stopped with status -9" in said
    done = len(metrics.read_text().splitlines())
    script = begin(done)
    script.process.kill()
    script.end()
    epochs = [json.loads(x)["epoch"] for x in metrics.read_text().splitlines()]
    assert epochs[: done + 1] == list(range(done + 1))
