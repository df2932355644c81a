"""One end-to-end run: demo data, tokenizer, baselines, joint training, test, table. Called by run_*.sh.

  bash run_FrqUD.sh [data set] [--key=value ...]      NPROC=2 for two processes

The data set is a file in config/, or beside its data (demo when none is named), which need not repeat its name and may
not say another; --config=FILE takes another file. Options that begin with rqvae_ go to the
pre-training, the rest to the joint training; --dry_run checks everything and prints the configuration.
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import main
import settings
from compose import build, cli, configure, parts
from compose.retired import DECAYS
from readers.dataset import Dataset
from readers.splits import DataOptions
from runs import guard, page, report
from runs.folder import RunFolder, RunOptions
from scripts.make_demo import build_demo
from settings import Config
from sids.tokenizer import CodeOptions
from trainer import TrainOptions
from utils import (
    Contradiction,
    Problem,
    keep_freed_memory,
    log,
    log_to,
    now,
    problems_exit_2,
    quoted,
    regular_file,
    whole_number,
    write_json,
)


def run(uncertainty: str, argv: list[str]) -> None:
    """Validate both stages in this process before anything is trained, then train."""
    if {"--help", "-h"} & set(argv):
        print(__doc__, cli.help_text(), sep="\n")
        return
    cfg = configuration(uncertainty, [a for a in argv if a != "--dry_run"])
    processes = processes_wanted()
    log_to(None, main=True)
    if "--dry_run" in argv:
        with tempfile.TemporaryDirectory() as aside:  # a dry run leaves nothing behind, not even demo data
            there = cfg[DataOptions].dataset != "demo" or (Path(cfg[DataOptions].data_path) / "demo").exists()
            check_before_training(cfg if there else configure.change(cfg, data_path=aside))
        print(settings.dump(cfg), end="")
        return
    data, folder, beside = check_before_training(cfg), RunFolder.of(cfg), beside_of(cfg)
    for each in (cfg, *beside.values()):
        RunFolder.of(each).check_of(data)
    lacking = [c for c in (*beside.values(), cfg) if not RunFolder.of(c).finished]
    if lacking and cfg[CodeOptions].rqvae_path is None:
        build.train_tokenizer(cfg, data)
    for each in lacking:
        train(each, processes, data)
    if beside:
        figures = {name: RunFolder.of(each).results() for name, each in beside.items()}
        write_json(folder.baselines, figures | folder.beside())
        page.write(folder)
    report.log_results(folder)
    log.info(f"run folder: {folder.path}")


def check_before_training(cfg: Config) -> Dataset:
    """Meet, before anything is trained, whatever would stop one of the stages."""
    if cfg[DataOptions].dataset == "demo":
        try:
            build_demo(Path(cfg[DataOptions].data_path) / "demo")
        except OSError as e:
            raise Problem(f"the demo data cannot be written: {e}; clear that folder or set data_path") from None
    RunFolder.of(cfg).check_free_or_same(cfg)
    for name, beside in beside_of(cfg).items():
        try:
            RunFolder.of(beside).check_free_or_same(beside)
        except Problem as e:
            raise Problem(f"{e}; or leave the baseline out: --with_{name}=false") from None
    data = main.check_data(cfg)
    build.check_named(cfg, data)
    return data


def configuration(uncertainty: str, argv: list[str]) -> Config:
    """config/<data set>.yaml, this script's decay, the command line's overrides, a run name."""
    given, names, overrides = cli.words_and_options(argv, ["config"])
    if len(names) > 1:
        raise Problem(f"one data set at a time, not {', '.join(names)}; options are written --key=value")
    name = names[0] if names else "demo"
    found = cli.presets(name, name, overrides)
    if "config" not in given and not found:
        raise cli.no_preset(name, overrides)
    path = regular_file(given.get("config") or found[0], "no such configuration")
    preset = cli.preset_of(path, overrides, names[0] if names else None)
    preset = {k: v for k, v in preset.items() if k not in DECAYS}  # the script's name says it
    preset |= {"uncertainty": uncertainty, "method": "diger"}
    cfg = configure.build(preset, overrides)
    if cfg[RunOptions].run_name is None:
        cfg = configure.change(cfg, run_name=f"{parts.folder_name(cfg)}-{now()}")
    return cfg


def processes_wanted() -> int:
    text = os.environ.get("NPROC", "1")
    number, cores = whole_number(text), os.cpu_count() or 1
    if not number:
        raise Problem(f"NPROC: expected a whole number from 1, got {quoted(text)}")
    if number > 4 * cores:  # each loads all of torch: thousands would take the machine down
        raise Problem(f"NPROC: {number} processes are too many for {cores} cores; lower it")
    return number


def baseline_of(cfg: Config, method: str) -> Config:
    """The run of a baseline beside this one; two_stage has the same tokenizer, not updated."""
    # an epoch over items costs a fraction, and SASRec's best needs more of them (docs/baselines.md)
    epochs = cfg[TrainOptions].epochs * (2 if method == "sasrec" else 1)
    name = f"{cfg[RunOptions].run_name}-{method}"
    try:
        return configure.change(cfg, method=method, epochs=epochs, run_name=name)
    except Contradiction as e:  # an option that both have was typed for this run
        raise Contradiction(f"the baseline {method} beside it: {e.reason}", {f"with_{method}": False}) from None


def beside_of(cfg: Config) -> dict[str, Config]:
    """The baselines whose figures are asked for and do not stand beside this run's own yet, by method."""
    folder = RunFolder.of(cfg)
    there = folder.beside() if folder.finished else {}
    asked = {"two_stage": cfg[RunOptions].with_two_stage, "sasrec": cfg[RunOptions].with_sasrec}
    return {name: baseline_of(cfg, name) for name, wanted in asked.items() if wanted and name not in there}


def train(cfg: Config, processes: int, data: Dataset) -> None:
    """One training: in this process, or through the launcher when there are several."""
    if processes == 1:
        main.train(cfg, data=data)
    else:
        launch(cfg, processes)


def launch(cfg: Config, processes: int) -> None:
    """One training in processes of its own; Problem when they fail."""
    import torch  # only to ask for GPUs

    kind = "multi_gpu" if torch.cuda.device_count() >= processes else "multi_cpu"
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / "config.yaml"
        resolved.write_text(settings.dump(cfg))
        launcher, preset = ROOT / "scripts" / "launcher.py", ROOT / f"accelerate_{kind}.yaml"
        command = [
            sys.executable, str(launcher), "--config_file", str(preset), "--num_processes", str(processes),
            str(ROOT / "main.py"), "--config", str(resolved),
        ]  # fmt: skip
        status = guard.run_launcher(command, main.go_on(cfg), DIGER_PROCESSES=str(processes))
    if status:
        raise Problem(f"training stopped with status {status}; what it said stands above")


if __name__ == "__main__":
    keep_freed_memory()
    with problems_exit_2():
        run(sys.argv[1], sys.argv[2:])
