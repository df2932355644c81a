"""Train, evaluate, recommend.

  accelerate launch --config_file accelerate_config.yaml main.py --config config/beauty.yaml [--key=value ...]
  python main.py evaluate --checkpoint myckpt/.../best_model.pth [--split valid] [--key=value ...]
  python main.py recommend --checkpoint myckpt/.../best_model.pth --history itemA,itemB [--k 10] [--allow items.txt]
  python main.py recommend --checkpoint myckpt/.../best_model.pth --users FILE.inter --output recs.parquet

--help lists every option (evaluate and recommend have their own), --dry_run checks everything and prints the resolved
configuration.
"""

import runs.early  # noqa: F401

import csv
import inspect
import io
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast_object_list

import settings
from compose import build, cli, configure, parts
from evaluation import evaluate, save_ranks
from metrics import EvalOptions
from model import GenerativeModel
from readers.dataset import Dataset
from readers.layouts import read_dataset
from readers.splits import DataOptions
from recommenders.base import Model
from runs import guard, page, report, shards, tracking
from runs.exported import folder_of
from runs.folder import RunFolder, RunOptions
from serve.loaded import Loaded, load, numbers
from settings import Config
from sids.files import to_index
from trainer import Trainer, TrainOptions
from utils import (
    Problem,
    Unwritable,
    digest,
    fingerprint,
    is_file,
    log,
    log_to,
    now,
    one_line,
    quoted,
    regular_file,
    room_for,
    whole_number,
)


def check_data(cfg: Config) -> Dataset:
    """Read data and embeddings as training will, so that a dry run meets the same problems."""
    return build.check_content(cfg, read_dataset(cfg[DataOptions]))


def check_training(cfg: Config) -> None:
    """Meet, without training, whatever would stop a training: data, run folder, a tokenizer that was named."""
    data = check_data(cfg)
    if cfg[RunOptions].run_name is not None:
        RunFolder.of(cfg).check_free_or_same(cfg)
    build.check_named(cfg, data)


# ---------------------------------------------------------------- train


def train(cfg: Config, advice: str | None = None, data: Dataset | None = None) -> RunFolder:
    """One run from configuration to test figures; advice: how to go on after a stop, by default `go_on`; data: of these
    options, where they have been read already.
    """
    acc = accelerator(cfg, tracking.wanted(cfg))
    cfg = with_run_name(cfg)
    run = RunFolder.of(cfg)
    with guard.fail_together(acc):
        if acc.is_main_process:
            run.check_free_or_same(cfg)
    if run.finished and cfg[RunOptions].resume == "auto":
        with guard.fail_together(acc):
            run.check_of(data or read_dataset(cfg[DataOptions]))
        log_to(None, main=acc.is_main_process)
        log.info(f"{run.path} is finished: its results follow")
        if acc.is_main_process and not is_file(run.path / "report.html"):
            page.write(run)  # an end that was killed behind its results
        acc.end_training()
        return run
    stamp = time.strftime("%Y%m%d-%H%M%S")
    log_file = Path(cfg[RunOptions].log_dir) / cfg[DataOptions].dataset / f"{stamp}-{cfg[RunOptions].run_name}.log"
    log_to(log_file, main=acc.is_main_process)

    data = build.check_content(cfg, data or read_dataset(cfg[DataOptions]))
    torch.manual_seed(cfg[DataOptions].seed)
    with room_for("the model", "lower its widths and layers, num_emb_list or max_his_len"):
        model, tokenizer = build.build_model(cfg, data)
    if shards.asked():
        shards.deal_out(model, acc)
    with guard.fail_together(acc):
        if acc.is_main_process:
            run.claim(cfg)  # only now: what is wrong with the data must not use up the name
    guard.check_shared(acc, run.path, run.name_of_run, data.hash)
    on_epoch = tracking.tracked(cfg, acc, model.sizes if isinstance(model, GenerativeModel) else (), report.EpochLog())
    fit = Trainer(cfg, model, data, acc, run, portable(cfg, data, tokenizer, model), on_epoch)
    model.announce(fit.reachable)
    speaks = acc.is_main_process and "DIGER_PROCESSES" not in os.environ  # else the run script says it
    with guard.orderly_stop((advice or go_on(cfg)) if speaks else None):
        fit.train()
        finish(cfg, data, fit, run)
        acc.wait_for_everyone()  # the results are on disk before anyone reads them
    log.info(f"log: {log_file}")
    acc.end_training()  # closes the process group; without it a rank may abort at exit
    return run


SAME_AGAIN = "its state is saved; the same command continues it"  # of commands that find their runs by their options


def go_on(cfg: Config) -> str:
    return f"its state is saved; continue with the same command and --run_name={cfg[RunOptions].run_name} --resume=auto"


def accelerator(cfg: Config, trackers: list[str] | None = None) -> Accelerator:
    """The process group, with trackers by name; Problem when it is not of the size that was asked for."""
    gpu, _ = torch.cuda.is_available(), shards.asked()  # before accelerate looks
    if cfg[TrainOptions].mixed_precision == "fp16" and not gpu:
        raise Problem("mixed_precision: fp16 needs a GPU; use bf16 or no")
    AcceleratorState._reset_state()  # a table trains runs of unlike precision in one process
    # every process computes its buffers alike: broadcasting them each step would only cost time
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # the option is renamed in a torch that is not everywhere yet
    warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
    acc = Accelerator(
        mixed_precision=cfg[TrainOptions].mixed_precision, cpu=not gpu, kwargs_handlers=[ddp],
        log_with=trackers or None, project_config=ProjectConfiguration(logging_dir=cfg[RunOptions].log_dir),
    )  # fmt: skip
    asked = int(os.environ.get("DIGER_PROCESSES", acc.num_processes))
    if acc.num_processes != asked:
        raise Problem(
            f"{asked} processes were asked for, {acc.num_processes} started; launch with "
            "accelerate_multi_gpu.yaml or accelerate_multi_cpu.yaml"
        )
    return acc


def with_run_name(cfg: Config) -> Config:
    """Give the run a name, the same on every process."""
    if cfg[RunOptions].run_name is not None:
        return cfg
    name = [f"{parts.folder_name(cfg)}-{now()}"]
    return configure.change(cfg, run_name=broadcast_object_list(name)[0])


def portable(cfg: Config, data: Dataset, tokenizer: Any = None, model: Any = None) -> dict[str, Any]:
    """What a checkpoint carries beside the model so that it can be used alone.

    tokenizer: the frozen one behind the model's SIDs, where it is not part of the model. Of one that is, as it was
    pre-trained, the weights are told: what it measures of the data differs by machine.
    """
    names = {"items": data.catalogue.ids, "titles": data.catalogue.titles}
    frozen = {} if tokenizer is None else {"tokenizer": tokenizer.state_dict()}
    files, own = build.named_files(cfg), getattr(model, "tokenizer", None)
    given = [files["sid_path"]] if "sid_path" in files else []
    origin = digest(fingerprint(frozen.get("tokenizer", {})), *given)
    begun: dict[str, str] = {k: files[k]["hash"] for k in ("sft_from", "start_from", "lm_path") if k in files}
    if own is not None:
        begun["tokenizer"] = fingerprint(dict(own.named_parameters()))
    kept = {**names, **frozen, "files": files, "origin": origin, "begun_from": begun}
    return {"format": 2, "config": settings.flat(cfg), "split": data.split_hash, **kept}


def finish(cfg: Config, data: Dataset, fit: Trainer, run: RunFolder) -> None:
    """Load the checkpoint that validation chose, look at the test set once, write the results.

    The look comes last, after all else that can fail, and only its own figures are written after it: an end that
    failed is repeated by resuming, without a second look.
    """
    acc, model = fit.acc, fit.raw
    acc.wait_for_everyone()
    with guard.fail_together(acc):
        best = run.read_best()
        if best["epoch"] != fit.progress.best_epoch:
            raise run.wrong_best(best["epoch"], fit.progress.best_epoch)
    with guard.fail_together(acc):
        try:
            fit.shards.load(best["model"])
        except RuntimeError as e:
            raise Problem(f"{run.best}: does not fit its run ({one_line(e)}); put its own file back") from None
    baselines, figures, looks = baseline_figures(cfg, data, acc), model.figures(), 0
    with guard.fail_together(acc):
        if acc.is_main_process:
            write_index(run, cfg, model)
            run.save_json(run.baselines.name, baselines)
            looks = run.look_once(fingerprint(best["model"]))
    found = evaluate(model, data.test, cfg[EvalOptions], cfg[DataOptions], acc, "test")
    results = {
        "method": parts.label(cfg), "dataset": cfg[DataOptions].dataset, "seed": cfg[DataOptions].seed,
        "best_epoch": best["epoch"], "epochs_trained": fit.progress.epoch, **found.figures, "valid": best["valid"],
        **figures, "test_evaluations": looks, "data": data.hash,
        "split": {"kind": cfg[DataOptions].split, **data.facts}, **content_of(data),
        "files": fit.extras["files"],
    }  # fmt: skip
    with guard.fail_together(acc):
        if acc.is_main_process:
            save_ranks(run, "test", found, data.test.users())
            run.save_results(results)
            page.write(run)


def content_of(data: Dataset) -> dict[str, Any]:
    """Name and hash of the content embeddings, where there are any."""
    path, stamp = data.embedding_path, data.embedding_stamp
    return {} if path is None or stamp is None else {"content": {"file": path.name, "hash": stamp.digest}}


def write_index(run: RunFolder, cfg: Config, model: Model) -> None:
    """<dataset>.index.json, for a model that has SIDs."""
    if isinstance(model, GenerativeModel):
        run.save_json(f"{cfg[DataOptions].dataset}.index.json", to_index(model.sids))


def baseline_figures(cfg: Config, data: Dataset, acc: Accelerator) -> dict[str, dict[str, float]]:
    """Test figures of the baselines. One that can no longer be had costs its own row, not the run's results: its
    embeddings have changed or gone, or do not fit as float64.
    """
    figures = {}
    for name in build.baselines_of(data):
        try:
            with room_for(f"the baseline {name!r}", "the others go on"):
                baseline = parts.BASELINES[name](data).to(acc.device)
            figures[name] = evaluate(baseline, data.test, cfg[EvalOptions], cfg[DataOptions], acc, name).figures
        except Problem as e:  # met by all processes alike
            log.warning(f"{e}; the baseline {name!r} is left out")
    return figures


# ---------------------------------------------------------------- from a checkpoint


def command_evaluate(argv: list[str]) -> None:
    """`main.py evaluate --checkpoint FILE [--split test|valid] [--key=value ...]`: the figures of a checkpoint on a
    split; those of the test set are counted as a look at it.
    """
    given, overrides = settings.split_off(argv, ["checkpoint", "split"])
    if "checkpoint" not in given:
        raise Problem("evaluate: needs --checkpoint myckpt/.../best_model.pth")
    path, split = given["checkpoint"], given.get("split", "test")
    if split not in ("valid", "test"):
        raise Problem(f"--split: expected valid or test, got {quoted(split)}")
    loaded = load(path, overrides)
    cfg, acc = loaded.cfg, accelerator(loaded.cfg)
    log_to(None, main=acc.is_main_process)
    data = read_dataset(cfg[DataOptions])
    if (more := len(loaded.items) - len(data.catalogue.ids)) > 0 and loaded.items[:-more] == data.catalogue.ids:
        raise Problem(f"{path}: holds {more} items more than the data, as scripts/add_items.py makes it; evaluate the "
                      "checkpoint that it was made from")  # fmt: skip
    if data.catalogue.ids != loaded.items:
        where = f"{cfg[DataOptions].dataset!r} in {cfg[DataOptions].data_path}"
        raise Problem(f"{path}: was trained on another catalogue than {where}; name its own by --dataset, --data_path")
    if loaded.split_hash not in (None, data.split_hash):
        raise Problem(
            f"{path}: was trained on other interactions or another split; what is the {split} part now may "
            "have been learned from; use the data and the split options of its config.yaml"
        )
    run = RunFolder(folder_of(path))
    if split == "test" and acc.is_main_process:
        count_look(run)
    found = evaluate(loaded.model.to(acc.device), data.split(split), cfg[EvalOptions], cfg[DataOptions], acc, split)
    if acc.is_main_process:  # printed, not logged: an output that cannot be written is an error here
        for name, value in found.figures.items():
            print(f"{split}/{name} {value:.6g}")
        print(f"run folder: {run.path}")
    acc.end_training()


def count_look(run: RunFolder) -> None:
    """Count a look at the test set; where the folder cannot be written, the figures are shown all the same."""
    try:
        run.look_at_test()
    except Unwritable:
        log.warning(f"{run.path}: cannot be written, so this test evaluation is not counted there")


def command_recommend(argv: list[str]) -> None:
    """`main.py recommend --checkpoint FILE --history itemA,itemB [--k 10] [--key=value ...]`: the best items for a
    history, with titles where they are known; with --users FILE.inter --output FILE those of every user, into a file.

    --allow FILE restricts them to the items of a file, one id a line (what is in stock, a category); --deny FILE leaves
    out others. --key=value: options of training that may differ from it, as --num_beams=50.
    """
    given, overrides = settings.split_off(argv, ["checkpoint", "history", "users", "output", "k", "allow", "deny"])
    if "checkpoint" not in given or ("history" in given) == ("users" in given):
        raise Problem("recommend: needs --checkpoint FILE and --history itemA,itemB, or --users FILE.inter")
    if ("users" in given) != ("output" in given):
        raise Problem("recommend: --users FILE.inter and --output FILE (.parquet, .csv, .jsonl) go together")
    k = whole_number(given.get("k", "10"))
    if not k:
        raise Problem(f"--k: expected a whole number from 1, got {quoted(given['k'])}")
    loaded = load(given["checkpoint"], overrides)
    lists = {name: trimmed(read_lines(given[name]), loaded.number, f"--{name} {given[name]}")
             for name in ("allow", "deny") if name in given}  # fmt: skip
    allow, deny = lists.get("allow"), lists.get("deny", [])
    if "users" in given:
        recommend_users(loaded, given, k, allow, deny)
        return
    history = trimmed(ids_of(given["history"], loaded.number), loaded.number, "--history")
    hits = loaded.recommend([history], k, allow=allow, deny=deny)[0]
    if not hits:
        raise Problem(f"recommend: {why_nothing(loaded, history, allow, deny)}")
    report.show_items(hits)


def recommend_users(loaded: Loaded, given: dict[str, str], k: int, allow: list[str] | None, deny: list[str]) -> None:
    """The lists of all users of a file, into a file."""
    from serve import bulk

    acc = accelerator(loaded.cfg)
    log_to(None, main=acc.is_main_process)
    bulk.check_output(Path(given["output"]))
    acc.wait_for_everyone()  # nobody has written it yet
    begin = time.perf_counter()
    allowed = None if allow is None else [loaded.number[token] for token in allow]
    offer = loaded.offer(allowed, [loaded.number[token] for token in deny])
    if not offer.size:
        raise Problem("--allow, --deny: they leave no item to recommend")
    histories = bulk.read_histories(Path(given["users"]), loaded.number)
    rows = bulk.recommend_all(loaded, histories, Path(given["output"]), k, offer)
    seconds = time.perf_counter() - begin
    log.info(f"{given['output']}: {rows} recommendations for {len(histories)} users in {seconds:.0f} s")
    acc.end_training()


def why_nothing(loaded: Loaded, history: list[str], allow: list[str] | None, deny: list[str]) -> str:
    """Why there is nothing to recommend: nothing may come, or the search has not found what may."""
    left = set(loaded.items if allow is None else allow) - set(deny)
    left -= set(history if loaded.cfg[EvalOptions].mask_seen else [])
    if not left:
        return "nothing is left, all items that were asked for are denied or in the history (mask_seen)"
    return (
        f"the search found none of the {len(left)} items that may come, only semantic IDs that no item has "
        "(constrained: false); set --constrained=true, or raise --num_beams"
    )


def trimmed(tokens: list[str], number: dict[str, int], source: str) -> list[str]:
    """Ids without the white space around them, where it is not part of the id; empty ones are left out."""
    found = [t if t in number else t.strip() for t in tokens if t.strip()]
    if not found:
        raise Problem(f"{source}: needs at least one item")
    numbers(found, number, source)
    return found


def ids_of(text: str, number: dict[str, int]) -> list[str]:
    """Ids separated by commas or line ends; one that holds a comma stands alone or in double quotes."""
    if text in number:
        return [text]
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        return [token for row in csv.reader(io.StringIO(text, newline=None), skipinitialspace=True) for token in row]
    except csv.Error as e:
        raise Problem(f"--history: not readable as ids separated by commas ({e})") from None


def read_lines(path: str) -> list[str]:
    try:
        text = regular_file(path, "not readable, no such file").read_text(encoding="utf-8-sig")
        return text.split("\n")  # text mode has turned \r\n into \n
    except (OSError, UnicodeDecodeError) as e:
        raise Problem(f"{path}: not readable as text ({e})") from None


COMMANDS = {"evaluate": command_evaluate, "recommend": command_recommend}


def main(argv: list[str]) -> None:
    if argv and argv[0] in COMMANDS:
        command = COMMANDS[argv[0]]
        if {"--help", "-h"} & set(argv):
            print(inspect.cleandoc(command.__doc__ or ""))
            raise SystemExit(0)
        command(argv[1:])
        return
    run = train(cli.configuration(argv, __doc__, check_training))
    if "DIGER_PROCESSES" not in os.environ:  # else the run script says it, once
        report.log_results(run)
        log.info(f"run folder: {run.path}")


if __name__ == "__main__":
    guard.command(main)
