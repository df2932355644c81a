"""Speed and memory of the product beside a plain one, on the same data, in one run.

  python scripts/benchmark.py [train search recommender catalogue scale lm compiled] [--dataset=NAME ...]
                              [--key=value ...]
      --quick             smaller sizes and fewer rounds; for the demo
      --beams 20,50,80    widths of the search
      --json FILE         {section: {figure: {"ours": x, "baseline": y, "ratio": ours / baseline}}}

The data set is a file in config/ (demo when none is named), all its options apply. Ratios compare two sides that
took turns; they hold for the machine named above the table.
"""

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import torch

import main
import settings
from compose import configure
from readers.splits import DataOptions
from scripts.bench import catalogue, lm, recommender, scale, search, train
from scripts.bench.common import Figures, Job, job
from scripts.make_demo import build_demo
from settings import Config
from sids.search import SearchOptions
from trainer import TrainOptions
from utils import Problem, as_command, is_file, keep_freed_memory, log_to, whole_number, write_json

SECTIONS: dict[str, Callable[[Job], Figures]] = {
    s.__name__.rpartition(".")[2]: s.measure for s in (train, search, recommender, catalogue, scale, lm)
} | {"compiled": train.compiled}


def run(argv: list[str]) -> None:
    """Measure the sections that the command line names and print them; Problem when it is not understood."""
    given, words = settings.split_off([a for a in argv if a != "--quick"], ["json", "beams"])
    wanted = [w for w in words if not w.startswith("--")]
    if unknown := [w for w in wanted if w not in SECTIONS]:
        raise Problem(f"{unknown[0]!r}: no such section; there are {', '.join(SECTIONS)}")
    log_to(None, main=True)
    cfg = configuration([w for w in words if w.startswith("--")])
    with TemporaryDirectory() as folder:
        what = job(cfg, Path(folder), "--quick" in argv, _widths(given.get("beams", str(cfg[SearchOptions].num_beams))))
        print(machine(cfg), flush=True)
        found: dict[str, Figures] = {}
        for name in wanted or [s for s in SECTIONS if s != "compiled"]:
            found[name] = SECTIONS[name](what)
            show(name, found[name])
    if "json" in given:
        write_json(Path(given["json"]), {"machine": machine(cfg), **found})


def configuration(overrides: list[str]) -> Config:
    """The data set's preset with the overrides, by the SID alone as the plain side has it; a missing demo is built."""
    given = configure.parse_overrides(overrides)
    name = str(given.get("dataset", "demo"))
    path = ROOT / "config" / f"{name}.yaml"
    raw = settings.read_yaml(path) if is_file(path) else {}
    fixed = {
        "recommender": "t5",
        "legal_softmax": False,
        "collision": "suffix",
        "item_loss": 0,
        "item_embedding": False,
    }
    cfg = configure.build({**raw, **fixed, "dataset": name, **given})
    if name == "demo":
        build_demo(Path(cfg[DataOptions].data_path) / "demo")
    main.check_data(cfg)
    return cfg


def _widths(text: str) -> tuple[int, ...]:
    widths = text.split(",")
    if not all(map(whole_number, widths)):
        raise Problem(f"--beams: expected numbers such as 20,50,80, got {text!r}")
    return tuple(map(int, widths))


def machine(cfg: Config) -> str:
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        where = f"{_processor()}, {torch.get_num_threads()} threads"
    precision = cfg[TrainOptions].mixed_precision
    return f"{cfg[DataOptions].dataset} | {where} | torch {torch.__version__} | precision {precision}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(section: str, figures: Figures) -> None:
    print(f"\n{section:32} {'ours':>12} {'baseline':>12} {'ratio':>9}   ours from - to")
    for name, f in figures.items():
        baseline, ratio = (f"{f[k]:12.4g}" if k in f else " " * 12 for k in ("baseline", "ratio"))
        spread = "" if f["ours_spread"] is None else "{:.4g} - {:.4g}".format(*f["ours_spread"])
        print(f"  {name:30} {f['ours']:12.4g} {baseline} {ratio[3:]}   {spread}", flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    as_command(__doc__, run)
