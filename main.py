"""Train, evaluate, recommend.

  accelerate launch --config_file accelerate_config.yaml main.py --config config/beauty.yaml [--key=value ...]
  python main.py evaluate --checkpoint myckpt/.../best_model.pth [--split valid] [--key=value ...]
  python main.py recommend --checkpoint myckpt/.../best_model.pth --history itemA,itemB --k 10 [--among items.txt]

--help lists every option, --dry_run checks everything and prints the resolved configuration.
"""

import csv
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object

import guard
import memory
import methods
import report
import settings
from readers import Dataset, read_dataset
from runs import RunFolder
from settings import Config
from trainer import Fit, NotFinite, evaluate, save_ranks, unsound
from utils import (
    Problem,
    check_weights,
    environment,
    fingerprint,
    keep_freed_memory,
    log,
    log_to,
    problems_exit_2,
    read_checkpoint,
)


def configuration(argv: list[str], usage: str | None, check: Callable[[Config], object]) -> Config:
    """The configuration that a command line asks for; answers --help and --dry_run (`check`) itself."""
    if "--help" in argv or "-h" in argv:
        print(usage, settings.help_text(), sep="\n")
        raise SystemExit(0)
    given, overrides = take(argv, ["config", "data_path"])
    overrides += [f"--data_path={given['data_path']}"] if "data_path" in given else []
    words = [a for a in overrides if a != "--dry_run"]
    if "config" in given:
        path = Path(given["config"])
        options_of(path, settings.read_yaml(path), settings.parse_overrides(words))
    cfg = settings.load(given.get("config"), words)
    methods.check(cfg.run.method)
    if "--dry_run" in overrides:
        check(cfg)
        print(settings.dump(cfg), end="")
        raise SystemExit(0)
    return cfg


def options_of(path: Path, raw: dict[str, Any], overrides: dict[str, Any], typed: str | None = None) -> dict[str, Any]:
    """The options of a file and of a command line together, with the data set that they mean.

    typed: its name as a word of the command line. A file need not repeat it. Problem where the two name different data
    sets, as a copied preset does until its line is changed, or none: the default is for commands without a file.
    """
    if typed is not None:
        said = raw.get("dataset")
        if said is not None and str(said) != typed:
            raise Problem(
                f"{path}: says dataset: {said}, but {typed} was asked for; write dataset: {typed} there, or, if the "
                f"file is a preset for {said}, ask for {said} with --config={path}"
            )
        if str(overrides.get("dataset", typed)) != typed:
            raise Problem(
                f"--dataset={overrides['dataset']}: {typed} was asked for; drop one of the two, --config=FILE names a "
                "preset"
            )
        return {**raw, **overrides, "dataset": typed}
    both = {**raw, **overrides}
    if both.get("dataset") is None and not str(both.get("data_path")).lower().endswith(".csv"):
        raise Problem(f"{path}: names no data set; write dataset: NAME there, or add --dataset=NAME")
    return both


def take(argv: list[str], names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split off `--name value` or `--name=value` for some names; the rest stays in order."""
    found: dict[str, str] = {}
    rest, words = [], iter(argv)
    for word in words:
        name, sep, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in names:
            rest.append(word)
            continue
        if name in found:
            raise Problem(f"--{name}: given twice")
        found[name] = value if sep else next(words, "")
        if not found[name]:
            raise Problem(f"--{name}: needs a value")
    return found, rest


def check_data(cfg: Config) -> Dataset:
    """Read data and embeddings as training will, so that a dry run meets the same problems."""
    return methods.check_content(cfg, read_dataset(cfg.data))


def check_training(cfg: Config) -> None:
    """Meet, without training, whatever would stop a training: data, run folder, a tokenizer that was named."""
    data = check_data(cfg)
    if cfg.run.run_name is not None:
        RunFolder.of(cfg).check(cfg)
    if cfg.run.method in methods.CONTENT and cfg.joint.rqvae_path is not None:
        methods.TRAINED[cfg.run.method](cfg, data)


# ---------------------------------------------------------------- train


def train(cfg: Config) -> RunFolder:
    """One run from configuration to test figures."""
    acc = accelerator(cfg)
    cfg = named(cfg)
    run = RunFolder.of(cfg)
    with guard.alike(acc):
        if acc.is_main_process:
            run.check(cfg)
    if run.finished and cfg.run.resume == "auto":
        log_to(None, main=acc.is_main_process)
        log.info(f"{run.path} is finished already")
        acc.end_training()
        return run
    stamp = time.strftime("%Y%m%d-%H%M%S")
    log_file = Path(cfg.run.log_dir) / cfg.data.dataset / f"{stamp}-{cfg.run.run_name}.log"
    log_to(log_file, main=acc.is_main_process)

    data = check_data(cfg)
    torch.manual_seed(cfg.data.seed)
    model = methods.TRAINED[cfg.run.method](cfg, data)
    with guard.alike(acc):
        if acc.is_main_process:
            run.claim(cfg)  # only now: what is wrong with the data must not use up the name
    say = functools.partial(report.epoch, cfg)
    fit = Fit(cfg, model, data, acc, run, portable(cfg, data), say)
    report.start(cfg, model, fit)
    memory.tell(cfg, model, data, fit.shape, acc.device)
    with guard.orderly_stop(go_on(cfg) if acc.is_main_process else None):
        fit.train()
        finish(cfg, data, fit, run)
        acc.wait_for_everyone()  # the results are on disk before anyone reads them
    log.info(f"log: {log_file}")
    acc.end_training()  # closes the process group; without it a rank may abort at exit
    return run


def go_on(cfg: Config) -> str:
    return f"its state is saved; go on with the same command and --run_name={cfg.run.run_name} --resume=auto"


def accelerator(cfg: Config) -> Accelerator:
    """The process group; Problem when it is not of the size that was asked for."""
    gpu = torch.cuda.is_available()
    if cfg.train.mixed_precision == "fp16" and not gpu:
        raise Problem("mixed_precision: fp16 needs a GPU; use bf16 or no")
    # every process computes its buffers alike: broadcasting them each step would only cost time
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # the option is renamed in a torch that is not everywhere yet
    warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
    acc = Accelerator(mixed_precision=cfg.train.mixed_precision, cpu=not gpu, kwargs_handlers=[ddp])
    check_processes(cfg, acc.num_processes)
    asked = int(os.environ.get("DIGER_PROCESSES", acc.num_processes))
    if acc.num_processes != asked:
        raise Problem(
            f"{asked} processes were asked for, {acc.num_processes} started; launch with accelerate_multi_gpu.yaml or accelerate_multi_cpu.yaml"
        )
    return acc


def check_processes(cfg: Config, processes: int) -> None:
    """Problem when an option cannot be had with so many processes."""
    if cfg.joint.deterministic_assignment == "sinkhorn":
        whole = cfg.train.batch_size * cfg.data.max_his_len * (len(cfg.tokenizer.num_emb_list) + 1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if processes > 1 or whole > settings.token_budget(cfg.train, device):
            raise Problem(
                "deterministic_assignment: sinkhorn balances whole batches: it needs one process and "
                f"token_budget of at least {whole}"
            )


def named(cfg: Config) -> Config:
    """Give the run a name, the same on every process."""
    if cfg.run.run_name is not None:
        return cfg
    what = cfg.joint.uncertainty if cfg.run.method == "diger" else cfg.run.method
    name = [f"{what}-{time.strftime('%Y%m%d-%H%M%S')}"]
    return settings.replace(cfg, run_name=broadcast_object_list(name)[0])


def portable(cfg: Config, data: Dataset) -> dict[str, Any]:
    """What a checkpoint carries so that it can be used alone."""
    names = {"items": data.catalogue.ids, "titles": data.catalogue.titles}
    return {"format": 1, "config": settings.flat(cfg), "split": data.split_hash, **names}


def finish(cfg: Config, data: Dataset, fit: Fit, run: RunFolder) -> None:
    """Load the checkpoint that validation chose, look at the test set once, write the results.

    The look comes last, after all else that can fail, and only its own figures are written after it: an end that
    failed is repeated by resuming, without a second look.
    """
    acc, model = fit.acc, fit.raw
    acc.wait_for_everyone()
    with guard.alike(acc):
        best = run.read_best()
        if best["epoch"] != fit.progress.best_epoch:
            raise Problem(
                f"{run.best}: is of epoch {best['epoch']}, the best of this run was epoch {fit.progress.best_epoch}; "
                "put that file back, or choose another run_name"
            )
    model.load_state_dict(best["model"])
    floors, figures, looks = floor_figures(cfg, data, acc), model.figures(), 0
    with guard.alike(acc):
        if acc.is_main_process:
            report.write_index(run, cfg, model)
            run.save_json(run.baselines.name, floors)
            run.save_json("environment.json", environment())
            looks = run.look_once(fingerprint(best["model"]))
    found = evaluate(model, data.test, cfg, acc, "test")
    results = {
        "method": report.label(cfg), "dataset": cfg.data.dataset, "seed": cfg.data.seed, "best_epoch": best["epoch"],
        "epochs_trained": fit.progress.epoch, **found.figures, "valid": best["valid"],
        **figures, "test_evaluations": looks, "data": data.hash,
        "split": {"kind": cfg.data.split, **data.facts},
    }  # fmt: skip
    with guard.alike(acc):
        if acc.is_main_process:
            save_ranks(run, "test", found, data.test.users())
            run.save_results(results)


def floor_figures(cfg: Config, data: Dataset, acc: Accelerator) -> dict[str, dict[str, float]]:
    """Test figures of the floors. One that can no longer be had costs its own row, not the run's results."""
    figures = {}
    for name in methods.floors_of(data):
        floor, mine = None, None
        try:
            floor = methods.FLOORS[name](cfg, data).to(acc.device)
        except (Problem, MemoryError) as e:  # the embeddings have changed or gone, or do not fit as float64
            mine = str(e) or "out of memory"
        lost = [text for text in gather_object([mine]) if text is not None]  # all processes leave out the same
        try:
            if floor is not None and not lost:
                figures[name] = evaluate(floor, data.test, cfg, acc, name).figures
        except NotFinite as e:
            lost = [str(e)]
        if lost:
            log.warning(f"{lost[0]}; the floor {name!r} is left out")
    return figures


# ---------------------------------------------------------------- from a checkpoint


def restore(path: str, overrides: list[str]) -> tuple[Config, Any, dict[str, Any]]:
    """(configuration, model, checkpoint) of a `best_model.pth`."""
    state = read_checkpoint(path)
    if missing := [k for k in ("model", "config", "items", "titles") if k not in state]:
        raise Problem(f"{path}: not a checkpoint of main.py, {missing[0]!r} is missing")
    ids, titles = state["items"], state["titles"]
    lists = isinstance(ids, list) and isinstance(titles, list) and len(ids) == len(titles)
    if not lists or not all(isinstance(text, str) for text in [*ids, *titles]):
        raise Problem(f"{path}: not a checkpoint of main.py, its items are not a list of names")
    if not isinstance(state["config"], dict) or not isinstance(state["model"], dict):
        raise Problem(f"{path}: not a checkpoint of main.py, its config or model is not a dictionary")
    try:
        settings.build(state["config"])
    except Problem as e:
        raise Problem(f"{path}: holds a wrong configuration: {e}") from None
    cfg = settings.build({**state["config"], **(given := settings.parse_overrides(overrides))})
    for key in settings.SIZELESS:
        if key in given and given[key] != state["config"].get(key):
            raise Problem(f"{key}: {path} was trained with {state['config'].get(key)!r}, which cannot be changed now")
    methods.check(cfg.run.method)
    try:
        model = methods.RESTORED[cfg.run.method](cfg, state["model"])
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise Problem(f"{path}: does not fit its configuration ({' '.join(str(e).split())[:300]})") from None
    check_weights(path, model.state_dict())
    if model.n_items != len(ids):
        raise Problem(f"{path}: its model knows {model.n_items} items, its list {len(ids)}")
    return cfg, model.eval(), state


def command_evaluate(argv: list[str]) -> None:
    """`main.py evaluate`: the figures of a checkpoint on a split, counted as a look at the test set."""
    given, overrides = take(argv, ["checkpoint", "split"])
    if "checkpoint" not in given:
        raise Problem("evaluate: needs --checkpoint myckpt/.../best_model.pth")
    split = given.get("split", "test")
    if split not in ("valid", "test"):
        raise Problem(f"--split: expected valid or test, got {split!r}")
    cfg, model, state = restore(given["checkpoint"], overrides)
    acc = accelerator(cfg)
    log_to(None, main=acc.is_main_process)
    data = read_dataset(cfg.data)
    if data.catalogue.ids != state["items"]:
        raise Problem(
            f"{given['checkpoint']}: was trained on another catalogue than {cfg.data.dataset!r} in {cfg.data.data_path}"
        )
    if state.get("split", data.split_hash) != data.split_hash:
        raise Problem(
            f"{given['checkpoint']}: was trained on other interactions or another split; what is the {split} part now may "
            "have been learned from"
        )
    run = RunFolder(Path(given["checkpoint"]).parent)
    if split == "test" and acc.is_main_process:
        run.look_at_test()
    found = evaluate(model.to(acc.device), data.split(split), cfg, acc, split)
    for name, value in found.figures.items():
        log.info(f"{split}/{name} {value:.6g}")
    log.info(f"run folder: {run.path}")
    acc.end_training()


def command_recommend(argv: list[str]) -> None:
    """`main.py recommend`: the best items for a history, with titles where they are known.

    --among FILE restricts them to the items of a file, one id a line (what is in stock, a category).
    """
    given, overrides = take(argv, ["checkpoint", "history", "k", "among"])
    if "checkpoint" not in given or "history" not in given:
        raise Problem("recommend: needs --checkpoint FILE and --history itemA,itemB")
    k = given.get("k", "10")
    if not k.isdecimal() or int(k) < 1:
        raise Problem(f"--k: expected a whole number from 1, got {k!r}")
    cfg, model, state = restore(given["checkpoint"], overrides)
    number = {token: i for i, token in enumerate(state["items"], 1)}
    wanted = numbers_of(ids_of(given["history"], number), number, "--history")
    most = len(number)
    if "among" in given:
        among = sorted(set(numbers_of(read_lines(given["among"]), number, f"--among {given['among']}")))
        model.restrict(torch.tensor(among))
        most = len(among)
    history = torch.tensor([wanted[-cfg.data.max_his_len :]])
    banned = torch.tensor([wanted]) if cfg.eval.mask_seen else None
    found = model.recommend(history, min(int(k), most), banned)
    if unsound(found.score_BW, banned=banned is not None).any():
        raise Problem(
            f"{given['checkpoint']}: its scores are not finite, its training diverged; use another checkpoint, or "
            "train it again with lower learning rates"
        )
    if not found.item_BW.any():
        raise Problem("recommend: nothing is left, all items that were asked for are in the history (mask_seen)")
    report.show_items(found.item_BW[0].tolist(), found.score_BW[0].tolist(), state["items"], state["titles"])


def numbers_of(tokens: list[str], number: dict[str, int], source: str) -> list[int]:
    """Item numbers of some ids; Problem names the first that is not in the catalogue."""
    wanted = [t if t in number else t.strip() for t in tokens if t.strip()]
    if unknown := [t for t in wanted if t not in number]:
        raise Problem(f"{source}: item {unknown[0]!r} is not in the catalogue; {report.near(unknown[0], number)}")
    if not wanted:
        raise Problem(f"{source}: needs at least one item")
    return [number[t] for t in wanted]


def ids_of(text: str, number: dict[str, int]) -> list[str]:
    """Ids separated by commas; one that holds a comma stands alone or in double quotes."""
    return [text] if text in number else next(csv.reader([text], skipinitialspace=True), [])


def read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")  # text mode has turned \r\n into \n
    except (OSError, UnicodeDecodeError) as e:
        raise Problem(f"--among: {path} is not readable as text ({e})") from None


COMMANDS = {"evaluate": command_evaluate, "recommend": command_recommend}


def main(argv: list[str]) -> None:
    if argv and argv[0] in COMMANDS and not {"--help", "-h"} & set(argv):
        COMMANDS[argv[0]](argv[1:])
        return
    run = train(configuration(argv, __doc__, check_training))
    if "DIGER_PROCESSES" not in os.environ:  # else the run script says it, once
        report.show(run)
        log.info(f"run folder: {run.path}")


def cli() -> NoReturn:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # in a session of its own, where nobody else would end it
        guard.die_with_parent()
    keep_freed_memory()
    with problems_exit_2():
        main(sys.argv[1:])
    raise SystemExit(0)


if __name__ == "__main__":
    cli()
