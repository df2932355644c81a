"""An epoch's figures to trackers: TensorBoard's own reader finds what metrics.jsonl has."""

import importlib.util
import sys
from pathlib import Path

import accelerate
import pytest
from accelerate.tracking import GeneralTracker

import main
from compose import configure
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
    assert tracking.wanted(configure.load(None, [f"--trackers={asked}"])) == want


def test_what_is_named_must_be_there(only):
    only("tensorboard")
    with pytest.raises(Problem, match="trackers: wandb is not installed; pip install wandb"):
        tracking.wanted(configure.load(None, ["--trackers=wandb"]))
    with pytest.raises(Problem, match="trackers: 'tensorbord' is not one of auto, none, tensorboard"):
        configure.load(None, ["--trackers=tensorbord"])


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
    run = main.train(configure.build(options | place | {"method": "sasrec", "hidden_units": 8}))
    assert {m for m in sys.modules if "tensorboard" in m} == before
    assert [p.suffix for p in (tmp_path / "logs").rglob("*") if p.is_file()] == [".log"]
    assert "track" not in capsys.readouterr().out.lower()
    assert run.results()["ndcg@5"] == runs["sasrec"].results()["ndcg@5"]


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboards_reader_finds_the_figures(trained, tmp_path):
    pytest.importorskip("tensorboard")
    options = trained[0] | {"output_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "logs"), "epochs": 2}
    run = main.train(configure.build(options | {"run_name": "seen"}))
    events = events_of(tmp_path / "logs" / "tiny" / "seen" / tracking.PROJECT)
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


@pytest.mark.parametrize("where", ["start", "log"])
def test_a_tracker_that_fails_costs_neither_the_training_nor_the_others(trained, only, tmp_path, capsys, where):
    pytest.importorskip("tensorboard")

    class Full(GeneralTracker):
        name, requires_logging_directory, tracker = "wandb", False, None

        def __init__(self, *args, **more):
            super().__init__()

        def store_init_configuration(self, values):
            pass

        def start(self):
            self.full("start")

        def log(self, values, step=None, **more):
            self.full("log")

        def full(self, now):
            if now == where:
                raise OSError("no space left")

    options = trained[0] | {"output_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "logs"), "epochs": 2}
    options |= {"run_name": "lost", "method": "sasrec", "hidden_units": 8, "trackers": ["wandb", "tensorboard"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Full)
        patch.setattr("runs.tracking.importlib.util.find_spec", lambda name, *more: name)
        patch.setattr("accelerate.accelerator.filter_trackers", lambda names, *more: names)
        run = main.train(configure.build(options))
    said = capsys.readouterr().out
    assert said.count("trackers: wandb: no space left; the run continues without it") == 1
    assert run.finished and Path(run.metrics).is_file()
    events = events_of(tmp_path / "logs" / "tiny" / "lost" / tracking.PROJECT)
    assert {"loss", "valid/ndcg@5"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_others_write_is_what_metrics_jsonl_has(trained, tmp_path, monkeypatch, name):
    """With the real packages, without a network; skipped where they are not installed."""
    package = pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    logged = []
    if name == "wandb":
        log = package.sdk.wandb_run.Run.log
        monkeypatch.setattr(
            package.sdk.wandb_run.Run, "log", lambda run, data, *a, **k: (logged.append(data), log(run, data, *a, **k))
        )
    options = trained[0] | {"output_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "logs"), "epochs": 2}
    run = main.train(
        configure.build(options | {"run_name": "seen", "method": "sasrec", "hidden_units": 8, "trackers": [name]})
    )
    rows = run.rows()
    if name == "mlflow":
        found = package.search_runs(experiment_names=[tracking.PROJECT]).iloc[0]
        assert (
            found["tags.mlflow.runName"] == "seen"
            and found["status"] == "FINISHED"
            and found["params.hidden_units"] == "8"
        )
        assert found["metrics.loss"] == pytest.approx(rows[-1]["loss"])
        assert found["metrics.valid/ndcg_at_5"] == pytest.approx(rows[-1]["valid/ndcg@5"])
    else:
        assert [x["loss"] for x in logged] == [row["loss"] for row in rows]
        assert list((tmp_path / "wandb").glob("offline-run-*"))
