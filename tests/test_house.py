"""The structure: imports run one way, the trainer knows no SIDs, functions are short, parts are where they belong."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import settings
from compose import parts
from joint.prior import PRIORS, PriorOptions
from joint.uncertainty import DECAYS, UncertaintyOptions
from readers.files import INTERACTIONS
from readers.layouts import LAYOUTS
from readers.splits import DataOptions

ROOT = Path(settings.__file__).parent
PACKAGES = ("readers", "sids", "recommenders", "joint", "compose", "runs", "serve")
FILES = sorted([*ROOT.glob("*.py"), *(p for d in PACKAGES for p in (ROOT / d).rglob("*.py"))])
# who may be imported by whom: a file imports from its own row and from those above it, within a row without a circle
ROWS = [
    ["utils", "settings", "layers", "compose.retired", "runs.early"],
    ["metrics", "readers", "data", "runs.guard"],
    ["recommenders"],
    [
        "joint.uncertainty",
        "joint.prior",
        "runs.exported",
        "runs.folder",
        "runs.report",
        "runs.charts",
        "runs.page",
        "runs.paired",
        "runs.table",
        "runs.shards",
        "runs.state",
        "runs.tracking",
    ],
    ["sids", "vq"],
    ["evaluation"],
    ["model"],
    ["trainer"],
    ["joint"],
    ["compose"],
    ["serve"],
    ["main"],
]


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(p) for p in FILES}


def imports(path):
    """Modules of the project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{a.name}" for a in node.names} & NAMES
            found |= inner or {node.module}
    return found & NAMES


def row_of(name):
    return next(i for i, row in enumerate(ROWS) for known in row if name == known or name.startswith(known + "."))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_runs_upward(path):
    upward = [other for other in imports(path) if row_of(other) > row_of(name_of(path))]
    assert upward == []


def test_no_import_circle():
    left = {name_of(p): imports(p) - {name_of(p)} for p in FILES}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_the_trainer_knows_no_semantic_ids():
    text = (ROOT / "trainer.py").read_text()
    words = (
        r"\b(codes?|codebooks?|SIDs?|sids?|beams?|num_beams|tau|prefix|suffix|quantiz\w*|tokenizer|group_N?\b(?=/))\b"
    )
    assert re.findall(words, text) == []


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "scripts").rglob("*.py"))], ids=lambda p: p.name)
def test_functions_are_short(path):
    functions = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef))
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 60] == []


def test_the_core_knows_nothing_of_the_program():
    """Importing the model loads neither what trains and composes it nor what is on disk."""
    command = "import sys, model; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"trainer", "compose", "runs", "accelerate", "joint", "main"} & set(loaded.stdout.split())
    assert {"model", "sids", "recommenders"} <= set(loaded.stdout.split())


COMMANDS = [ROOT / "main.py", *sorted(p for p in (ROOT / "scripts").glob("*.py") if "__main__" in p.read_text())]
INTERRUPTS = """
import os, signal, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name in ("numpy", "torch", "accelerate"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda p: p.name)
def test_an_interrupt_amid_the_imports_is_one_line(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, command], env=environment, capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a job of a script
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (130, "stopped by SIGINT; the same command begins again\n")


def test_ten_files_stand_at_the_root():
    assert {p.stem for p in ROOT.glob("*.py")} == {
        "main", "vq", "trainer", "model", "data", "metrics", "layers", "utils", "settings", "evaluation",
    }  # fmt: skip


def test_no_option_has_two_owners_in_one_run():
    for method in parts.METHODS:
        for tokenizer in parts.TOKENIZERS if method in parts.FROZEN else ["rqvae"]:
            chosen = {"method": method}
            if method in parts.GENERATIVE:
                chosen |= {"tokenizer": tokenizer}
            kinds = parts.sections(parts.composition({}, chosen)).values()
            names = [name for kind in kinds for name in settings.fields_of(kind)]
            assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("options", "key", "names"),
    [
        (UncertaintyOptions, "uncertainty", DECAYS),
        (PriorOptions, "label_prior", PRIORS),
        (DataOptions, "data_format", ["auto", *LAYOUTS]),
        (DataOptions, "data_format", ["auto", *INTERACTIONS]),
    ],
)
def test_an_option_offers_what_is_registered(options, key, names):
    assert set(get_args(settings.hints(options)[key])) == set(names)
