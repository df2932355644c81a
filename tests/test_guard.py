"""Bad luck in one process: signals, a second writer, a full disk, numbers that are not finite, no memory."""

import errno
import math
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import tiny_at, words
from helpers import assert_same_state, contents, evaluated, fails, fit_of, rows

import main
from compose import build, configure
from data import Steps
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import guard
from runs.folder import RunFolder
from sids.fit import Report
from trainer import TrainOptions
from utils import Problem, Stopped, problems_exit_2, read_json, whole_file, write_checkpoint, write_text

# the network with the cheapest steps, seven an epoch: how a run ends and goes on is the trainer's business
QUICK = {"method": "sasrec", "hidden_units": 4, "epochs": 3}


def assert_goes_on_as(whole, ground, folder, **changes):
    """The run in `folder`, gone on with, ends to the bit where `whole` did."""
    resumed = fit_of(ground, folder, **changes, resume="auto")
    resumed.train()
    assert resumed.progress == whole.progress
    assert_same_state(resumed, whole)
    assert rows(resumed) == rows(whole)


# ---------------------------------------------------------------- one writer

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, 2); f.write('77'); f.flush(); "
    "print('held', flush=True); input()"
)


def test_a_second_writer_is_refused_until_the_first_is_dead(ground, tmp_path):
    cfg = configure.build({**ground[0], "output_dir": str(tmp_path), "run_name": "r"})
    folder = RunFolder.of(cfg)
    folder.path.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(folder.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Problem, match=r"tiny/r: process 77 is writing here"):
            folder.claim(cfg)
        assert not folder.config.exists()
        other.kill()
    folder.claim(cfg)
    assert (folder.path / ".lock").read_text() == str(os.getpid())


def test_what_a_kill_left_half_written_is_cleared(ground, tmp_path):
    fit = fit_of(ground, tmp_path)
    fit.run.states.mkdir()
    torn = [fit.run.path / ".best_model.pth.1.part", fit.run.states / ".step-00000002.pth.1.part"]
    for path in torn:
        path.write_bytes(b"half")
    RunFolder.of(fit.cfg).claim(configure.change(fit.cfg, resume="auto"))
    assert not any(path.exists() for path in torn)


# ---------------------------------------------------------------- signals


def stopped(fit, at, place, monkeypatch, number=signal.SIGTERM):
    """Train until a signal that comes in a step or in the evaluation after it has been obeyed."""
    inner = getattr(fit, place)

    def signalled(*args):
        if fit.progress.step == at:
            os.kill(os.getpid(), number)
        return inner(*args)

    monkeypatch.setattr(fit, place, signalled)
    with pytest.raises(Stopped) as stop, guard.orderly_stop("go on"):
        fit.train()
    assert (stop.value.number, stop.value.advice) == (number, "go on")


@pytest.mark.parametrize(
    ("place", "at", "saved", "number"),
    [("step", 3, 4, signal.SIGTERM), ("step", 13, 14, signal.SIGINT), ("_validate", 14, 14, signal.SIGINT)],
)
def test_a_signal_ends_a_run_where_nothing_is_lost(ground, tmp_path, monkeypatch, place, at, saved, number):
    """The step is finished and saved; an evaluation is left at once; what follows is as if nothing had been."""
    whole, broken = (fit_of(ground, tmp_path / name, **QUICK) for name in ("whole", "broken"))
    whole.train()
    stopped(broken, at, place, monkeypatch, number)
    assert broken.run.load_state()["progress"]["step"] == saved
    assert_goes_on_as(whole, ground, tmp_path / "broken", **QUICK)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_one_line_and_128_plus_the_signal(capsys, number):
    with pytest.raises(SystemExit) as stop, problems_exit_2(), guard.orderly_stop("go on with --resume=auto"):
        os.kill(os.getpid(), number)
        guard.stop_if_asked()
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == f"stopped by {number.name}; go on with --resume=auto\n"


def test_a_second_key_press_does_not_wait():
    with pytest.raises(KeyboardInterrupt), guard.orderly_stop("go on"):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_process_left_alone_by_a_stop_stops_too():
    with pytest.raises(Stopped), guard.orderly_stop("go on"):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("connection closed by peer")
    with pytest.raises(RuntimeError), guard.orderly_stop("go on"):
        raise RuntimeError("a fault of our own")


def test_a_problem_is_everybodys(monkeypatch):
    """One process meets a problem; the main one says it, the others leave with it."""
    acc = Accelerator(cpu=True)
    monkeypatch.setattr(guard, "gather_object", lambda mine: [None, "rank 1 has it"])
    with pytest.raises(Problem, match="rank 1 has it"), guard.fail_together(acc):
        pass
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    with pytest.raises(SystemExit), guard.fail_together(acc):
        pass


# ---------------------------------------------------------------- numbers


JOINT = {"uncertainty": "frqud_sdud", "epochs": 2, "lr_id": 1e-3}


@pytest.fixture(scope="module")
def whole_joint(ground, tmp_path_factory):
    fit = fit_of(ground, tmp_path_factory.mktemp("whole"), **JOINT)
    fit.train()
    return fit


@pytest.mark.parametrize(("place", "said"), [("loss/vq", "loss/vq"), ("gradient", "the gradient of rec")])
def test_a_number_that_is_not_finite_stops_before_the_update(ground, whole_joint, tmp_path, monkeypatch, place, said):
    broken = fit_of(ground, tmp_path, **JOINT)
    inner, step, seen = broken.raw.forward, broken.step, []

    def forward(batch):
        loss, logs = inner(batch)
        return loss, logs | {place: logs[place] * math.nan} if seen and place != "gradient" else logs

    def poisoned(parts):
        if broken.progress.step == 9:
            seen.extend(parts[0].user_B.tolist())
        return step(parts)

    if place == "gradient":
        broken.raw.recommender.start.register_hook(lambda grad: grad * math.inf if seen else grad)
    monkeypatch.setattr(broken.raw, "forward", forward)
    monkeypatch.setattr(broken, "step", poisoned)
    with pytest.raises(Problem) as problem:
        broken.train()
    text = str(problem.value)
    assert re.search(rf"^step 9 of epoch 1: {said} is not finite; users of the batch \(counted from 0\): ", text)
    assert [int(u) for u in re.findall(r"\d+", text.partition("0): ")[2].partition(" and ")[0])] == sorted(set(seen))[
        :20
    ]
    assert broken.run.load_state()["progress"]["step"] == 9
    assert_goes_on_as(whole_joint, ground, tmp_path, **JOINT)  # without the poison the step is repeated as it was


def test_bf16_stays_close_to_float32(ground, tmp_path):
    """Stated band over 28 steps: each epoch's mean loss within 2 %, the parameters within 0.03."""
    changes = {"batch_size": 30, "epochs": 4, "eval_step": 4, "lr_id": 1e-3, "dropout_rate": 0, "uncertainty": "sdud"}
    fits = [fit_of(ground, tmp_path / precision, **changes) for precision in ("no", "bf16")]
    AcceleratorState._reset_state()
    fits[1].acc = Accelerator(cpu=True, mixed_precision="bf16")
    for fit in fits:
        fit.train()
    AcceleratorState._reset_state()
    assert fits[0].progress.step >= 28
    losses = [[r["loss/rec"] for r in rows(fit)] for fit in fits]
    assert losses[0] != losses[1]  # it is another arithmetic
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert_same_state(*fits, atol=0.03)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9")]
)
def test_an_evaluation_without_memory_halves_its_batch(ground, tmp_path, monkeypatch, caplog, error):
    fit = fit_of(ground, tmp_path)
    want = evaluated(fit.raw, fit.data.valid, fit.cfg, fit.acc, "valid")
    inner = fit.raw.recommend

    def short_of_memory(history, *args):
        if len(history) > 15:
            raise error
        return inner(history, *args)

    monkeypatch.setattr(fit.raw, "recommend", short_of_memory)
    monkeypatch.setattr(guard.log, "propagate", True)
    found = evaluated(fit.raw, fit.data.valid, fit.cfg, fit.acc, "valid")
    assert "60 users runs out of memory" in caplog.text and "30 users runs out of memory" in caplog.text
    assert np.array_equal(found.rank, want.rank)
    assert {k: v for k, v in found.figures.items() if k != "users_per_s"} == {
        k: v for k, v in want.figures.items() if k != "users_per_s"
    }
    monkeypatch.setattr(fit.raw, "recommend", lambda *a: (_ for _ in ()).throw(error))
    with pytest.raises(Problem, match="single user; lower max_his_len"):
        evaluated(fit.raw, fit.data.valid, fit.cfg, fit.acc, "valid")
    monkeypatch.setattr(fit.raw, "recommend", lambda *a: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        evaluated(fit.raw, fit.data.valid, fit.cfg, fit.acc, "valid")


KINDS = [{"uncertainty": "frqud_sdud", "label_prior": "prefix"}, {"method": "diffsasrec", "hidden_units": 8}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_widest_batch_comes_first_and_changes_nothing(ground, tmp_path, monkeypatch, caplog, kind):
    """It is the one that no other exceeds, once a run, and without it the run would be the same to the bit."""
    changes = {"dropout_rate": 0.1, "epochs": 1, "batch_size": 16, "token_budget": 300, **kind}
    fits = [fit_of(ground, tmp_path / name, **changes) for name in "ab"]
    monkeypatch.setattr(fits[0], "_try_widest", lambda: None)
    shapes, inner = [], fits[1].raw.forward
    monkeypatch.setattr(fits[1].raw, "forward", lambda b: (shapes.append(b.history_BS.shape), inner(b))[1])
    monkeypatch.setattr(guard.log, "propagate", True)
    guard.log.setLevel("INFO")
    for fit in fits:
        fit.train()
    steps = [tuple(p.history_BS.shape) for step in Steps(fit.train_split, fit.plan(0), fit.shape) for p in step]
    assert sorted(shapes[1:]) == sorted(steps) and shapes[0].numel() == max(a * b for a, b in steps)
    assert re.search(rf"memory: at most [\d.]+ GB, in {shapes[0][0]} histories of {shapes[0][1]} items", caplog.text)
    assert_same_state(*fits)
    assert rows(fits[0]) == rows(fits[1])
    again = fit_of(ground, tmp_path / "b", **changes, resume="auto")
    monkeypatch.setattr(again, "_try_widest", None)
    again.train()  # a run that goes on does not repeat it


def test_a_step_without_memory_is_one_line_before_anything_is_trained(ground, tmp_path, monkeypatch):
    fit = fit_of(ground, tmp_path)
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(fit.raw, "forward", lambda batch: (_ for _ in ()).throw(error))
    with pytest.raises(Problem, match="out of memory: no room for a training step; lower batch_size or token_budget"):
        fit.train()
    assert not list(fit.run.states.glob("*"))
    monkeypatch.setattr(fit.raw, "forward", lambda batch: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        fit.train()


@pytest.mark.parametrize("changes", [{"d_model": 10**10, "d_kv": 64}, {"d_ff": 2**50}])
def test_a_model_without_memory_is_one_line_and_leaves_the_disk_as_it_was(tmp_path, capsys, changes):
    options = tiny_at(tmp_path)
    cfg = configure.build(options)
    build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    before = contents(tmp_path / "out")
    err = fails(capsys, main.main, *words(options | changes))
    assert "out of memory: no room for the model; lower its widths" in err
    assert contents(tmp_path / "out") == before


# ---------------------------------------------------------------- disk


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A real limit of the system on the size of a file, in a process of its own kind of trouble."""
    path = tmp_path / "state.pth"
    write_checkpoint(path, {"x": torch.zeros(10)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Problem) as problem:
            write_checkpoint(path, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    need = int(
        re.search(r"state\.pth: cannot be written \(File too large\): it needs (\d+) bytes", str(problem.value))[1]
    )
    assert 400_000 < need < 410_000
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["state.pth"]


def test_a_run_survives_a_full_disk(ground, tmp_path, monkeypatch):
    """The second checkpoint finds no room: the first stays, and the run goes on from it to the same end."""
    whole, broken = (fit_of(ground, tmp_path / name, **QUICK) for name in ("whole", "broken"))
    whole.train()
    synced = os.fsync

    def full(handle):
        if broken.progress.epoch == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return synced(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        Problem, match=r"last/step-\d+\.pth: cannot be written \(No space left on device\): it needs \d+ bytes, \d+ are"
    ):
        broken.train()
    monkeypatch.undo()
    assert_goes_on_as(whole, ground, tmp_path / "broken", **QUICK)


def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    with pytest.raises(Problem, match="a: cannot be written"):
        write_text(tmp_path / "a", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_write_that_fails_without_a_number_is_told(tmp_path):
    with pytest.raises(Problem, match=r"a: cannot be written \(a library's own\)"), whole_file(tmp_path / "a"):
        raise OSError("a library's own")


# ---------------------------------------------------------------- resuming


def test_resuming_with_changes_needs_to_be_told(ground, tmp_path, caplog, monkeypatch):
    fit_of(ground, tmp_path, epochs=1).train()
    with pytest.raises(
        Problem, match=r"other options \(epochs: 1 -> 2; lr_rec: 0.001 -> 0.002\).*resume_with_changes: true"
    ):
        fit_of(ground, tmp_path, epochs=2, lr_rec=2e-3, resume="auto")
    monkeypatch.setattr(guard.log, "propagate", True)
    fit = fit_of(ground, tmp_path, epochs=2, lr_rec=2e-3, resume="auto", resume_with_changes=True)
    assert "continues with changed options (epochs: 1 -> 2; lr_rec: 0.001 -> 0.002)" in caplog.text
    fit.train()
    written = configure.load(fit.run.config)
    assert (written[TrainOptions].epochs, written[TrainOptions].lr_rec) == (2, 2e-3)
    assert [r["epoch"] for r in rows(fit)] == [0, 1]
    assert fit.schedule.base_lrs[0] == 2e-3 and rows(fit)[1]["lr/rec"] > 1e-3


@pytest.fixture(scope="module")
def begun(ground, tmp_path_factory):
    """The output folder of a run of one epoch, which the attempts to go on from it have to leave as it is."""
    folder = tmp_path_factory.mktemp("begun")
    fit_of(ground, folder, epochs=1, uncertainty="sdud").train()
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch_size": 16}, "add --batch_size=32 --resume"), ({"d_model": 32}, "does not fit this configuration"),
     ({"uncertainty": "none"}, "does not fit this configuration"), ({"method": "two_stage"}, "was begun with"),
     ({"logit_scale": 2.0}, "logit_scale: .* -> 2.0: a network that has begun cannot change it")],
)  # fmt: skip
def test_some_changes_cannot_be_resumed(ground, begun, change, message):
    with pytest.raises(Problem, match=message):
        fit_of(
            ground,
            begun,
            **{"epochs": 2, "uncertainty": "sdud", "resume": "auto", "resume_with_changes": True} | change,
        ).train()
    assert configure.load(begun / "tiny" / "r" / "config.yaml")[TrainOptions].epochs == 1  # it can still go on as begun


def test_scores_of_another_decoding_do_not_compete(ground, tmp_path, caplog, monkeypatch):
    same = {"method": "diffsasrec", "hidden_units": 4, "epochs": 1}
    fit_of(ground, tmp_path, **same).train()
    monkeypatch.setattr(guard.log, "propagate", True)
    more = {"epochs": 2, "resume": "auto", "resume_with_changes": True}
    fit = fit_of(ground, tmp_path, **same | more, decoding="multi")
    fit.state.resume(2)
    assert "chosen by another validation" in caplog.text and fit.progress.best_epoch == -1


def test_the_commits_of_a_run_are_kept(ground, tmp_path, monkeypatch):
    for told in ("one", "two", "two"):
        monkeypatch.setattr("runs.folder.environment", lambda told=told: {"commit": told})
        run = fit_of(ground, tmp_path, method="two_stage", resume="auto").run
    assert read_json(run.environment) == {"commit": "one, two"}


def test_time_before_a_stop_counts(ground, tmp_path):
    fit = fit_of(ground, tmp_path, method="two_stage", epochs=1)
    fit.state.begin -= 100
    fit.state.save()
    again = fit_of(ground, tmp_path, method="two_stage", epochs=1, resume="auto")
    again.train()
    assert 100 <= again.run.rows()[0]["seconds"] < 200
    assert again.progress.seconds < 10  # of the next epoch


def test_looks_at_once_are_all_counted(tmp_path):
    children = []
    for _ in range(4):
        if not (pid := os.fork()):
            for _ in range(25):
                RunFolder(tmp_path).look_at_test()
            os._exit(0)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    assert read_json(tmp_path / "test_looks.json") == 100


def test_the_gradient_scaler_goes_on_where_it_was(ground, tmp_path):
    """fp16 itself needs a GPU; its scaler is saved and restored anywhere."""
    fits = [fit_of(ground, tmp_path, epochs=1), fit_of(ground, tmp_path, epochs=1, resume="auto")]
    for fit, scale in zip(fits, (8.0, 2.0), strict=True):
        fit.acc.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        fit.acc.scaler.scale(torch.ones(()))  # it makes its scale when it is first used
    fits[0].state.save()
    fits[1].state.resume(1)
    assert fits[1].acc.scaler.get_scale() == 8.0


def test_resuming_on_another_tokenizer_file_is_noticed(ground, tmp_path):
    fit_of(ground, tmp_path / "run", epochs=1).train()
    state = torch.load(ground[0]["rqvae_path"], weights_only=True)
    state["state_dict"]["encoder.mlp_layers.1.weight"][0, 0] += 1
    torch.save(state, tmp_path / "other.pth")
    fit = fit_of(
        ground,
        tmp_path / "run",
        epochs=2,
        rqvae_path=str(tmp_path / "other.pth"),
        resume="auto",
        resume_with_changes=True,
    )
    with pytest.raises(Problem, match=r"was begun with .*resume it with the same data and"):
        fit.train()


def test_resuming_on_other_semantic_ids_is_noticed(ground, tmp_path):
    """Two-stage: codes and network are in the state, but what new items are coded by would be another tokenizer."""
    more = {"method": "two_stage", "epochs": 1}
    fit_of(ground, tmp_path / "run", **more).train()
    state = torch.load(ground[0]["rqvae_path"], weights_only=True)
    state["state_dict"]["decoder.mlp_layers.1.weight"][0, 0] += 1
    torch.save(state, tmp_path / "other.pth")
    fits = [
        fit_of(ground, tmp_path / "run", **more | {"epochs": 2, "resume": "auto", "resume_with_changes": True} | other)
        for other in ({}, {"rqvae_path": str(tmp_path / "other.pth")})
    ]
    with pytest.raises(Problem, match="was begun with"):
        fits[1].state.resume(2)


def test_the_kept_tokenizer_is_held_against_the_lowest_error():
    """Small losses of accuracy for fewer collisions do not add up to a large one."""
    kept = Report(0, 0.5, 1.0, [], [])
    for epoch, error in enumerate([1.08, 1.16, 1.25, 1.35], 1):
        now = Report(epoch, 0.5 - 0.1 * epoch, error, [], [])
        kept = now if now.beats(kept, 1.0) else kept
    assert kept.reconstruction_error == 1.08
    better = Report(5, 0.9, 0.5, [], [])
    assert better.beats(kept, 0.5)


def test_a_half_made_tokenizer_is_not_trained_on(ground, tmp_path):
    """What pre-training leaves until it has ended: the best so far, the state to go on from, no report."""
    options, data = ground
    path = tmp_path / "best_collision_model.pth"
    path.write_bytes(Path(options["rqvae_path"]).read_bytes())
    cfg = configure.build(options | {"rqvae_path": str(path)})
    (tmp_path / "last.pth").write_bytes(b"x")
    with pytest.raises(Problem, match="its pre-training has not ended; continue it by the same"):
        build.tokenizer_of(cfg, data)
    (tmp_path / "report.json").write_text("{}")  # killed at its very end
    build.tokenizer_of(cfg, data)


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (Report(1, 0.9, 0.5, [1, 8], [1.0, 7.0]), "level 1 has one code"),
        (Report(1, 0.0, 1.0, [8, 8], [7.0, 7.0]), "no better than the mean"),
        (Report(1, 0.1, 0.9, [8, 8], [7.0, 7.0]), None),
    ],
)
def test_a_tokenizer_that_tells_nothing_apart_is_told(report, fault):
    said = report.fault(40)
    assert (said is None) == (fault is None) and (fault is None or (fault in said and "--standardize" in said))
    assert report.fault(1) is None  # one item has nothing to be told from
