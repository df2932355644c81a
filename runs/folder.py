"""The folder of one run: what is written, where, and what is found there again."""

import contextlib
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import settings
from readers.dataset import Dataset
from readers.splits import DataOptions
from runs import guard
from settings import Config, option
from utils import (
    Problem,
    check_weights,
    environment,
    in_turn,
    log,
    quoted,
    read_checkpoint,
    read_json,
    shown,
    write_array,
    write_checkpoint,
    write_json,
    write_text,
)

TRACKERS = ("auto", "none", "tensorboard", "wandb", "mlflow")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    run_name: str | None = option(None, "name of the run folder; default: method and time", free=True)
    output_dir: str = option("./myckpt", "folder of all runs: <output_dir>/<dataset>/<run_name>", free=True, path=True)
    log_dir: str = option("./logs", "folder of the log files: <log_dir>/<dataset>", free=True, path=True)
    resume: Literal["no", "auto"] = option(
        "no", "auto = continue the run of this name, or print its results if it is finished", free=True
    )
    resume_with_changes: bool = option(
        False, "whether a run may be resumed with other options than it was started with; the log lists them", free=True
    )
    trackers: list[str] = option(
        ["auto"],
        "experiment trackers besides metrics.jsonl: tensorboard, wandb, mlflow or none; auto = TensorBoard in log_dir "
        "if it is installed",
        free=True,
    )
    save_steps: int = option(
        0, "number of steps between two checkpoints within an epoch; 0 = only at the end of an epoch", ge=0, free=True
    )
    with_two_stage: bool = option(
        False,
        "whether run_FrqUD.sh and run_SDUD.sh also train the two-stage baseline with the same tokenizer",
        free=True,
    )
    with_sasrec: bool = option(
        False, "whether run_FrqUD.sh and run_SDUD.sh also train SASRec, for twice the epochs", free=True
    )

    def __post_init__(self) -> None:
        if wrong := [name for name in self.trackers if name not in TRACKERS]:
            raise Problem(f"trackers: {quoted(wrong[0])} is not one of {', '.join(TRACKERS)}")


KEPT = 2  # newest resumable states


class RunFolder:
    """<output_dir>/<dataset>/<run_name>: config, metrics, checkpoints, results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best_model.pth"
        self.test = path / "test.json"
        self.baselines = path / "baselines.json"
        self.environment = path / "environment.json"
        self.states = path / "last"
        self.looks = path / "test_looks.json"
        self.identity = path / "run.json"
        self.id: str | None = None  # of the run that this process has claimed

    @classmethod
    def of(cls, cfg: Config) -> "RunFolder":
        name = cfg[RunOptions].run_name
        if name is None:
            raise ValueError("the run has no name yet")
        return cls(Path(cfg[RunOptions].output_dir) / cfg[DataOptions].dataset / name)

    @property
    def finished(self) -> bool:
        return self.test.is_file()

    @property
    def changed(self) -> bool:
        """Did it go on with other options than it was begun with?"""
        return self.identity.is_file() and self._read(self.identity).get("changed") is True

    def check_of(self, data: Dataset) -> None:
        """Problem when the run is finished, on other data than there are now."""
        if self.finished and self.results().get("data") != data.hash:
            raise Problem(
                f"{self.path}: is finished, and was trained on other data than {data.name!r} now holds; choose another "
                "run_name, or put the old files back"
            )

    def check_free_or_same(self, cfg: Config) -> None:
        """Problem when another run lives in the folder."""
        if self.path.exists() and not self.path.is_dir():
            raise Problem(
                f"{self.path}: is a file where the run folder should be; choose another run_name or output_dir"
            )
        if self.path.exists() and any(not p.name.startswith(".") for p in self.path.iterdir()):
            if cfg[RunOptions].resume != "auto":
                raise Problem(
                    f"{self.path}: holds a run already; choose another run_name, or continue it with --resume=auto"
                )
            self._same(cfg)

    def claim(self, cfg: Config) -> None:
        """Make the folder ours until this process ends; clear what a killed one left half-written."""
        self.check_free_or_same(cfg)
        guard.lock(self.path)
        for torn in [*self.path.glob(".*.part"), *self.states.glob(".*.part")]:
            torn.unlink(missing_ok=True)
        if not self.config.is_file():
            self.keep(cfg)
        if not self.identity.is_file():
            write_json(self.identity, {"run": secrets.token_hex(8)})
        self.id = self.name_of_run()
        self._note_environment()

    def _note_environment(self) -> None:
        """Versions, machine and commit as the run begins; of a run that went on with other code, all commits."""
        here, before = environment(), self.made_with().get("commit") or ""
        commits = [c for c in (*before.split(", "), here["commit"]) if c]
        write_json(self.environment, here | {"commit": ", ".join(dict.fromkeys(commits)) or None})

    def made_with(self) -> dict[str, Any]:
        """environment.json, {} where there is none."""
        return self._read(self.environment) if self.environment.is_file() else {}

    def name_of_run(self) -> str | None:
        """The run's random name, None where nobody has claimed the folder."""
        if not self.identity.is_file():
            return None
        return str(self._read(self.identity).get("run"))

    def _still_ours(self) -> None:
        """Problem when the claimed folder has been removed, emptied or replaced; before every write."""
        if self.id is None:
            return
        try:
            there = self.config.is_file() and self.name_of_run() == self.id
        except Problem:
            there = False
        if not there:
            raise Problem(
                f"{self.path}: the run folder was removed or replaced while this run was writing to it; "
                "nothing more is written, what was trained is lost; begin again under another run_name"
            )

    def check_own(self, path: Path, state: dict[str, Any]) -> None:
        """Problem when a file of this folder was written by another run."""
        self._still_ours()
        mine, theirs = self.name_of_run(), state.get("run")
        if theirs != mine:
            raise Problem(
                f"{path}: was written by another run ({shown(theirs)}) than the one that lives here ({mine}); put its "
                "own file back, or choose another run_name"
            )

    def read_best(self) -> dict[str, Any]:
        """The best model so far; Problem when it is missing, of another run, or not finite."""
        best = read_checkpoint(self.best)
        self.check_own(self.best, best)
        check_weights(self.best, best["model"])
        return best

    def wrong_best(self, found: int, wanted: int) -> Problem:
        """What to say of a best model of another epoch than the state's."""
        return Problem(
            f"{self.best}: is of epoch {found}, the best of this run was epoch {wanted}; put that file back, or choose "
            "another run_name"
        )

    def keep(self, cfg: Config) -> None:
        """Write the configuration; on resume only once the state has proved to fit it. That it has changed is noted
        first: what was trained by two configurations is a result of neither.
        """
        self._still_ours()
        if self.config.is_file() and settings.differences(settings.read_yaml(self.config), cfg):
            write_json(self.identity, read_json(self.identity) | {"changed": True})
        write_text(self.config, settings.dump(cfg))

    def _same(self, cfg: Config) -> None:
        if not self.config.is_file():
            raise Problem(f"{self.path}: is not empty and holds no config.yaml; choose another run_name")
        differ = settings.differences(settings.read_yaml(self.config), cfg)
        if differ and self.finished:  # whatever is trained now would be chosen by somebody who knows its test figures
            raise Problem(
                f"{self.path}: is finished and was begun with other options ({'; '.join(differ)}); its test set has "
                "been evaluated, so it is not trained further; choose a new run_name (old options print its results)"
            )
        fixed = settings.sizeless(cfg)
        if wrong := [line for line in differ if line.partition(":")[0] in fixed]:
            raise Problem(
                f"{self.path}: {wrong[0]}: a network that has begun cannot change it; use the old value again, or "
                "another run_name"
            )
        if differ and not cfg[RunOptions].resume_with_changes:
            raise Problem(
                f"{self.path}: was begun with other options ({'; '.join(differ)}); use them again, another "
                "run_name, or resume_with_changes: true"
            )
        if differ:
            log.warning(f"{self.path}: continues with changed options ({'; '.join(differ)})")

    # ---- metrics

    def record(self, row: dict[str, Any]) -> None:
        self._still_ours()
        write_text(self.metrics, self._rows() + json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """What `record` has written, an object an epoch; Problem names a line that is none."""
        found = []
        for number, line in enumerate(self._rows().splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or "epoch" not in row:
                raise Problem(f"{self.metrics}, line {number}: not an epoch's figures; put the old file back")
            found.append(row)
        return found

    def _rows(self) -> str:
        return self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.is_file() else ""

    def forget_from(self, epoch: int) -> None:
        """Drop the rows of epochs that will be trained again."""
        if self.metrics.is_file():
            kept = [row for row in self.rows() if row["epoch"] < epoch]
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def results(self) -> dict[str, Any]:
        """test.json; Problem where it is not what a run writes."""
        return self._read(self.test)

    def beside(self) -> dict[str, dict[str, Any]]:
        """baselines.json: figures by name, {} where there is none."""
        return self._read(self.baselines) if self.baselines.is_file() else {}

    def _read(self, path: Path) -> dict[str, Any]:
        """One of the folder's JSON files; Problem where it is torn, or another's."""
        found = read_json(path)
        if not isinstance(found, dict):
            raise Problem(f"{path}: not a file of a run; put the old file back")
        return found

    # ---- resumable state

    def save_state(self, state: dict[str, Any], step: int) -> None:
        self._still_ours()
        with contextlib.suppress(OSError):  # what is wrong with it is said by the write
            self.states.mkdir(exist_ok=True)
        write_checkpoint(self.states / f"step-{step:08d}.pth", state)
        for old in self._states()[KEPT:]:
            old.unlink()

    def load_state(self) -> dict[str, Any] | None:
        """The newest readable state; one that is torn or not finite is passed over, and the log says so."""
        for path in self._states():
            try:
                state = read_checkpoint(path)
                check_weights(path, state["model"] if isinstance(state.get("model"), dict) else {})
            except Problem as e:
                log.warning(f"{e}; trying the one before")
                continue
            self.check_own(path, state)
            return state
        return None

    def drop_state(self, step: int) -> None:
        """Remove the state of a step, from which nobody should go on."""
        (self.states / f"step-{step:08d}.pth").unlink(missing_ok=True)

    def _states(self) -> list[Path]:
        found = self.states.glob("step-*.pth") if self.states.is_dir() else []
        return sorted((p for p in found if re.fullmatch(r"step-\d+\.pth", p.name)), reverse=True)

    def _looked(self) -> int:
        found = read_json(self.looks) if self.looks.is_file() else 0
        if type(found) is not int:
            raise Problem(f"{self.looks}: expected one number, the test evaluations of this run")
        return found

    def look_once(self, result: str) -> int:
        """Count the run's own look at the test set, before it happens; returns how many there were with it.

        result: fingerprint of what was trained. Its look counts once, however often the end of the run is repeated.
        """
        self._still_ours()
        who = read_json(self.identity)
        if who.get("tested") != result or type(who.get("look")) is not int:
            who |= {"tested": result, "look": self._looked() + 1}
            write_json(self.identity, who)  # first: a kill between the two counts neither twice nor not at all
        count = max(self._looked(), int(who["look"]))
        write_json(self.looks, count)
        return count

    def look_at_test(self) -> int:
        """Count another look at the test set, before it happens; returns how many there were with it."""
        with in_turn(self.path):
            count = 1 + self._looked()
            write_json(self.looks, count)
            if self.finished:
                self.save_results(self.results() | {"test_evaluations": count})
        return count

    def save_results(self, results: dict[str, Any]) -> None:
        self.save_json(self.test.name, results)

    def save_json(self, name: str, value: Any) -> None:
        self._still_ours()
        write_json(self.path / name, value)

    def save_array(self, name: str, array: np.ndarray) -> None:
        self._still_ours()
        write_array(self.path / name, array)

    def save_best(self, state: dict[str, Any]) -> None:
        self._still_ours()
        write_checkpoint(self.best, state)
