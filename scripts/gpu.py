"""What one GPU does, in at most twelve minutes. Called by scripts/gpu.sh: DIR [OUT], or --dry_run [OUT].

Steps, each a process of its own that a clock ends: the tests marked gpu; scripts/benchmark.py in bf16 beside the plain
Hugging Face T5; the RQ-Transformer on Beauty to its end; as many epochs of the paper's preset, two-stage, as fit; in
what is left, training steps through torch.compile. OUT/gpu.json is written after each step, so that a machine which is
taken away loses one step at most.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import settings
from runs.folder import RunFolder
from utils import Problem, as_command, environment, log, log_to, make_folder, write_json, write_text

ALL = 720.0  # seconds
Figures = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """Commands that follow each other within some seconds, and what is read off what they leave."""

    name: str
    commands: list[list[str]]
    seconds: float
    read: Callable[[], Figures]


def steps_of(data: str | None, out: Path) -> list[Step]:
    """All steps; data: None for the demo, everything small."""
    places = [f"--output_dir={out / 'runs'}", f"--log_dir={out / 'logs'}", "--method=two_stage"]
    if data is None:
        name, sections, presets = "demo", ["search"], ["demo", "demo"]
        options = [*places, "--epochs=1", "--eval_step=1", "--rqvae_epochs=2"]
        fast, paper, bench = [*options, "--recommender=rq_transformer"], options, ["--quick"]
    else:
        name, sections, presets = "beauty", ["train", "search"], ["beauty_rq_transformer", "beauty"]
        bf16, fast = "--mixed_precision=bf16", [*places, f"--data_path={data}"]
        paper, bench = [*fast, bf16, "--rqvae_epochs=200"], [f"--data_path={data}", bf16]

    def of(script: str, *options: str) -> list[str]:
        return [sys.executable, str(ROOT / script), *options]

    def trained(preset: str, options: list[str], run: str) -> list[list[str]]:
        options = [f"--config={ROOT / 'config' / preset}.yaml", *options]
        return [of("scripts/pretrain.py", *options), of("main.py", *options, f"--run_name={run}")]

    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests" / "test_gpu.py")]

    def speed(step: str, seconds: float, *sections: str) -> Step:
        path = out / f"{step}.json"
        words = [*sections, "--beams", "20", f"--dataset={name}", *bench, f"--json={path}"]
        return Step(step, [of("scripts/benchmark.py", *words)], seconds, lambda: json.loads(path.read_text()))

    folder = out / "runs" / name
    return [
        Step("tests", [tests], 90, lambda: {}),
        speed("benchmark", 170, *sections),
        Step("rq_transformer", trained(presets[0], fast, "fast"), 220, lambda: of_run(folder / "fast")),
        Step("paper", trained(presets[1], paper, "paper"), 150, lambda: of_run(folder / "paper")),
        speed("compiled", ALL, "compiled"),
    ]


def of_run(path: Path) -> Figures:
    """Epochs, speed and figures of a run, finished or not; what all its epochs would take at that speed."""
    run = RunFolder(path)
    if not (rows := run.rows()):
        return {"epochs": 0}
    seconds, speed = (statistics.median(row[key] for row in rows) for key in ("seconds", "samples_per_s"))
    planned = settings.read_yaml(run.config)["epochs"]
    found: Figures = {"epochs": len(rows), "samples_per_s": speed, "hours_for_all": planned * seconds / 3600}
    found["peak_memory_gb"] = rows[-1]["peak_memory_gb"]
    known = rows[-1] | {f"test/{name}": value for name, value in (run.results() if run.finished else {}).items()}
    wanted = [f"{place}/{metric}" for place in ("valid", "test") for metric in ("recall@10", "ndcg@10")]
    return found | {key: known[key] for key in wanted if key in known}


def run_step(step: Step, seconds: float, out: Path) -> Figures:
    """Run a step's commands for so long at most; its figures, and how it ended (124: by the clock)."""
    begin, status = time.monotonic(), 0
    with (out / f"{step.name}.log").open("w") as said:
        for command in step.commands:
            left = max(1.0, seconds - (time.monotonic() - begin))  # SIGTERM lets a training save its state
            timed = ["timeout", "--foreground", "--kill-after=20", f"{left:.0f}", *command]
            status = status or subprocess.call(timed, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT)
    took = time.monotonic() - begin
    try:
        figures = step.read()
    except (OSError, ValueError, KeyError) as e:
        figures = {"unread": str(e)}
    return {"status": status, "seconds": round(took, 1), **figures}


def table(found: dict[str, Figures]) -> str:
    """The steps in Markdown."""
    lines = ["| step | seconds | status | figures |", "|---|---|---|---|"]
    for name, figures in found.items():
        rest = {k: v for k, v in figures.items() if k not in ("status", "seconds", "machine")}
        told = [f"{k} {v:.4g}" for k, v in rest.items() if isinstance(v, int | float)]
        told += [f"{section}.{k} {f['ours']:.4g}" + (f" ({f['ratio']:.3g} x)" if "ratio" in f else "")
                 for section, of in rest.items() if isinstance(of, dict) for k, f in of.items()]  # fmt: skip
        lines.append(f"| {name} | {figures['seconds']:.0f} | {figures['status']} | {', '.join(told)} |")
    return "\n".join(lines) + "\n"


def run(argv: list[str]) -> dict[str, Figures]:
    """The command: all steps, their figures in OUT/gpu.json and OUT/gpu.md."""
    small = "--dry_run" in argv
    words = [w for w in argv if w != "--dry_run"]
    if len(words) > (1 if small else 2) or (not small and not words) or any(w.startswith("-") for w in words):
        raise Problem("gpu: name the folder that holds beauty/, and perhaps one for the results; or --dry_run")
    data = None if small else str(Path(words.pop(0)).resolve())
    if data is not None and not (Path(data) / "beauty").is_dir():
        raise Problem(f"{data}: holds no folder beauty")
    out = make_folder(Path(words[0] if words else ROOT / "results" / "gpu").resolve())
    if there := [p for p in (out / "gpu.json", out / "runs") if p.exists()]:
        raise Problem(f"{there[0]}: is there already, of an earlier call; name another folder for the results")
    log_to(None, main=True)
    begin, found = time.monotonic(), dict[str, Figures]()
    for step in steps_of(data, out):
        left = ALL - (time.monotonic() - begin) - 25  # a stop takes some seconds
        found[step.name] = run_step(step, min(step.seconds, left), out) if left > 1 else {"status": -1, "seconds": 0}
        write_json(out / "gpu.json", {"machine": environment(), "steps": found})
        write_text(out / "gpu.md", table(found))
    log.info(f"{table(found)}\nas JSON: {out / 'gpu.json'}")
    return found


if __name__ == "__main__":
    as_command(__doc__, run)
