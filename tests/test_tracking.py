"""An epoch's figures to trackers: TensorBoard's own reader finds what metrics.jsonl has."""

import importlib.util
import sys
from pathlib import Path

import pytest

import main
import methods
from runs import tracking
from utils import Problem


@pytest.fixture
def only(monkeypatch):
    """only(*names): as if of all trackers just these were installed."""

    def make(*names):
        find = importlib.util.find_spec
        hidden = set(tracking.PACKAGES) - set(names)
        spec = lambda name, *more: None if name in hidden else (name if name in names else find(name, *more))  # noqa: E731
        monkeypatch.setattr("runs.tracking.importlib.util.find_spec", spec)

    return make


@pytest.mark.parametrize(
    ("installed", "asked", "want"),
    [
        ((), "auto", []),
        (("tensorboard",), "auto", ["tensorboard"]),
        (("tensorboard",), "none", []),
        (("tensorboard", "wandb"), "auto,wandb,tensorboard", ["tensorboard", "wandb"]),
        (("mlflow",), "mlflow", ["mlflow"]),
    ],
)
def test_which_trackers_a_run_has(only, installed, asked, want):
    only(*installed)
    assert tracking.wanted(methods.load(None, [f"--trackers={asked}"])) == want


def test_what_is_named_must_be_there(only):
    only("tensorboard")
    with pytest.raises(Problem, match="trackers: wandb is not installed; pip install wandb"):
        tracking.wanted(methods.load(None, ["--trackers=wandb"]))
    with pytest.raises(Problem, match="trackers: 'tensorbord' is not one of auto, none, tensorboard"):
        methods.load(None, ["--trackers=tensorbord"])


def test_scalars_of_a_row():
    row = {
        "epoch": 3,
        "loss": 2.5,
        "grad/level_1/target": float("inf"),
        "code_count/level_1": [1, 2],
        "codes_used/level_1": 6,
    }
    assert tracking.scalars(row, [8]) == {"loss": 2.5, "codes_used/level_1": 6.0, "dead_codes/level_1": 2.0}


def test_nothing_happens_where_nothing_is_installed(trained, only, tmp_path, capsys):
    only()
    options, _, runs = trained
    before = {m for m in sys.modules if "tensorboard" in m}
    place = {"output_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "logs"), "run_name": "bare"}
    run = main.train(methods.build(options | place | {"method": "sasrec", "hidden_units": 8}))
    assert {m for m in sys.modules if "tensorboard" in m} == before
    assert [p.suffix for p in (tmp_path / "logs").rglob("*") if p.is_file()] == [".log"]
    assert "track" not in capsys.readouterr().out.lower()
    assert run.results()["ndcg@5"] == runs["sasrec"].results()["ndcg@5"]


def test_tensorboards_reader_finds_the_figures(trained, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = trained[0] | {"output_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "logs"), "epochs": 2}
    run = main.train(methods.build(options | {"run_name": "seen"}))
    events = EventAccumulator(str(tmp_path / "logs" / "tiny" / "seen" / tracking.PROJECT))
    events.Reload()
    rows = run.rows()
    tags = set(events.Tags()["scalars"])
    live = {"loss", "loss/rec", "noise_scale", "noise_scale/level_3", "perplexity/level_1", "dead_codes/level_1",
            "sid_changed", "codes_changed", "valid/ndcg@5", "grad/level_1/history"}  # fmt: skip
    assert live <= tags
    for name in live - {"dead_codes/level_1"}:
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert found == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
    dead = [e.value for e in events.Scalars("dead_codes/level_1")]
    assert dead == [8 - row["codes_used/level_1"] for row in rows]


def test_a_tracker_that_fails_costs_no_training(trained, only, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboard")

    def full(self, *args, **more):
        raise OSError("no space left")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", full)
    options = trained[0] | {"output_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "logs"), "epochs": 2}
    run = main.train(methods.build(options | {"run_name": "lost", "method": "sasrec", "hidden_units": 8}))
    said = capsys.readouterr().out
    assert said.count("trackers: no space left; the run goes on without them") == 1
    assert run.finished and Path(run.metrics).is_file()
