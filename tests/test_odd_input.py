"""Odd text, odd streams, odd embeddings, odd checkpoints: one line, no traceback, no wrong result."""

import io
import os
import subprocess
import sys
from pathlib import Path

import killed
import numpy as np
import pytest
import torch
from conftest import tiny_overrides, words, write_tiny

import main
from compose import build, configure, restore
from main import ids_of
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from recommenders.protocol import Recommendation
from runs import guard, report
from utils import Problem, log, log_to, printable, problems_exit_2

ROOT = Path(main.__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A two-stage run and its checkpoint's content."""
    root = tmp_path_factory.mktemp("odd")
    write_tiny(root / "dataset" / "tiny")
    main.main(words(tiny_overrides(root) | {"run_name": "r", "epochs": 1, "method": "sasrec", "hidden_units": 8}))
    cfg = configure.build(tiny_overrides(root))
    build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    main.main(words(tiny_overrides(root) | {"run_name": "s", "epochs": 1, "method": "two_stage"}))
    return root / "out" / "tiny" / "s" / "best_model.pth", root / "out" / "tiny" / "r" / "best_model.pth"


# ---------------------------------------------------------------- text

LONG = "x" * 200_000


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("i1,i2", ["i1", "i2"]),
        ("i1\ni2", ["i1", "i2"]),
        ("i1\r\ni2", ["i1", "i2"]),
        ("i1\ri2", ["i1", "i2"]),
        ("i1,\n i2", ["i1", "", "i2"]),
        (LONG, [LONG]),
        (f"i1,{LONG}", ["i1", LONG]),
        ('"a,b",c', ["a,b", "c"]),
        ('"a\nb"', ["a\nb"]),
        ("", []),
        ("\0", ["\0"]),
    ],
)
def test_ids_of_a_history(text, want):
    assert ids_of(text, {}) == want


@pytest.mark.parametrize("text", ["i1\nnope", LONG, "\x1b[2J", "\udcff", "i1,\u202ei2"])
def test_a_history_of_unknown_ids_is_one_line(trained, capsys, text):
    with pytest.raises(SystemExit) as stop, problems_exit_2():
        main.main(["recommend", f"--checkpoint={trained[1]}", f"--history={text}"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "is not in the catalogue" in err
    assert err.rstrip("\n").isprintable() and len(err) < 1000


OBEYED = [
    "\x1b[2J",
    "\x07",
    "\b",
    "\r",
    "\n",
    "\x9b31m",
    "\x7f",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\x85",
    "\udcff",
    "\0",
]


@pytest.mark.parametrize("odd", OBEYED)
def test_what_a_terminal_would_obey_is_escaped(capsys, odd):
    report.show_items([Recommendation(f"a{odd}b", f"Titel ä 日本 {odd}", -1.0)])
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.rstrip("\n").isprintable() and "Titel ä 日本" in out
    log_to(None, main=True)
    log.info(f"x{odd}y")
    shown = capsys.readouterr().out
    assert odd == "\n" or shown.rstrip("\n").isprintable()
    assert printable("plain ä 日本") == "plain ä 日本"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_character_is_too_much_for_a_stream(monkeypatch, encoding, tmp_path):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with problems_exit_2():
        report.show_items([Recommendation("i1", "日本 \udc80 ä", 0.0)])
        log_to(tmp_path / "x.log", main=True)
        log.info("日本 \udc80")
        print("日本 \udc80")
    assert b"i1" in raw.getvalue() and "\\udc80" in (tmp_path / "x.log").read_text(encoding="utf-8")


# ---------------------------------------------------------------- streams


def test_output_that_cannot_be_delivered(trained, tmp_path):
    """A reader that goes away, a full device, closed streams."""
    write_tiny(tmp_path / "dataset" / "tiny")
    ask = ["recommend", f"--checkpoint={trained[1]}", "--history=i3", "--k=30"]
    train = words(tiny_overrides(tmp_path) | {"method": "sasrec", "hidden_units": 4, "epochs": 2})
    cases = {
        "gone": (ask, "gone", "file"), "full": (ask, "full", "file"), "no stderr": (ask, "file", "closed"),
        "no stdout": (ask, "closed", "file"), "help": (["--help"], "gone", "file"), "none": (ask, "closed", "closed"),
        "train without": ([*train, "--run_name=a"], "closed", "closed"),
        "train unread": ([*train, "--run_name=b"], "gone", "file"),
        "train full": ([*train, "--run_name=c"], "full", "file"),
    }  # fmt: skip
    found = dict(zip(cases, killed.delivered(tmp_path, cases.values()), strict=True))
    assert found["gone"] == (128 + 13, "") and found["help"] == (128 + 13, "")
    status, said = found["full"]
    assert status == 2 and said.startswith("error: the output cannot be written (No space left")
    assert said.count("\n") == 1
    assert [found[name] for name in ("no stderr", "no stdout", "none", "train without")] == [(0, "")] * 4
    assert not any("Traceback" in said for _, said in found.values())
    for name in "abc":  # what cannot be said is no reason to stop
        assert (tmp_path / "out" / "tiny" / name / "test.json").is_file(), name


@pytest.mark.slow
def test_output_that_a_shell_cannot_deliver(trained):
    """The same through a real shell."""
    ask = f"{sys.executable} main.py recommend --checkpoint={trained[1]} --history=i3 --k=30"

    def run(shell):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(["bash", "-c", shell], check=False, cwd=ROOT, env=env, capture_output=True, text=True)

    gone = run(f"{ask} | true; echo ${{PIPESTATUS[0]}}")
    assert gone.stdout.strip() == "141" and gone.stderr == ""
    full = run(f"{ask} > /dev/full")
    assert full.returncode == 2 and full.stderr.count("\n") == 1
    look = f"{sys.executable} main.py evaluate --checkpoint={trained[1]} --split=valid"
    full = run(f"{look} > /dev/full")
    assert full.returncode == 2 and "No space left" in full.stderr
    assert run(f"{ask} 2>&-").returncode == 0 and run(f"{ask} >&-").returncode == 0
    helped = run(f"{sys.executable} main.py --help | head -1; echo ${{PIPESTATUS[0]}}")
    assert helped.stderr == "" and helped.stdout.splitlines()[-1] in ("0", "141")


@pytest.mark.parametrize("step", ["truncate", "write", "flush"])
def test_a_lock_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch, step):
    inner = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def fileno(self):
            return self.file.fileno()

        def __getattr__(self, name):
            if name == step:
                raise OSError(28, "No space left on device")
            return getattr(self.file, name)

    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Full(inner(path, *a, **k)))
    (tmp_path / "run").mkdir()
    with pytest.raises(Problem, match="run: cannot be written"):
        guard.lock(tmp_path / "run")


# ---------------------------------------------------------------- embeddings


def folder_of(path):
    path.mkdir()


def loop_of(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [folder_of, loop_of, lambda p: p.symlink_to("nowhere")])
@pytest.mark.parametrize("named", [True, False])
def test_embeddings_that_are_no_file(tiny_data, tiny_options, make, named):
    path = tiny_data() / "tiny.emb-test.npy"
    path.unlink()
    make(path)
    given = tiny_options | ({"semantic_emb_path": str(path)} if named else {})
    with pytest.raises(
        Problem,
        match=r"emb-test\.npy: (a link that leads nowhere|no such file|not readable)|no content embeddings beside",
    ):
        read_embeddings(read_dataset(configure.build(given)[DataOptions]))


@pytest.mark.parametrize("value", [1e300, -1e300, 1e39, 1e25, -1e16, np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_that_float32_cannot_square(tiny_data, tiny_options, value, dtype):
    folder = tiny_data()
    x = np.load(folder / "tiny.emb-test.npy").astype(dtype)
    with np.errstate(over="ignore"):
        x[7, 3] = value
    np.save(folder / "tiny.emb-test.npy", x)
    with pytest.raises(Problem, match=r"row 7 \(item 'i7'\) holds"):
        read_embeddings(read_dataset(configure.build(tiny_options)[DataOptions]))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e14])
def test_embeddings_that_are_all_alike(tiny_data, tiny_options, value):
    folder = tiny_data()
    np.save(folder / "tiny.emb-test.npy", np.full((40, 12), value, np.float32))
    cfg = configure.build(tiny_options | {"standardize_embeddings": True})
    with pytest.raises(Problem, match="standardize_embeddings: all embeddings are equal"):
        build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))


# ---------------------------------------------------------------- checkpoints


def changed_code(value, place=0, item=3):
    def change(state):
        state["model"]["code_NT"][item, place] = value

    return change


def same_sid(state):
    for name in ("code_NT", "end_N"):
        state["model"][name][5] = state["model"][name][4]


def with_value(name, value):
    def change(state):
        state["model"][name].view(-1)[0] = value

    return change


ODD = {
    "code too large": (changed_code(8), "the SID of item 4 is out of range"),
    "code -1": (changed_code(-1), "the SID of item 4 is out of range"),
    "code -1 at the end": (changed_code(-1, 2), "the SID of item 4 is out of range"),
    "code far out": (changed_code(2**31 - 1, 1, 0), "the SID of item 1 is out of range"),
    "dedup token": (lambda s: s["model"]["end_N"].__setitem__(0, 8), "the SID of item 1 is out of range"),
    "dedup token -1": (lambda s: s["model"]["end_N"].__setitem__(39, -1), "the SID of item 40 is out of range"),
    "SID twice": (same_sid, "two items have one SID"),
    "NaN weight": (with_value("recommender.tables.1", float("nan")), "NaN or infinity"),
    "infinite weight": (with_value("recommender.start", float("-inf")), "NaN or infinity"),
    "names twice": (lambda s: s["items"].__setitem__(1, s["items"][0]), "names an item twice"),
    "no name": (lambda s: s["items"].__setitem__(1, None), "not a list of names"),
    "codes missing": (lambda s: s["model"].pop("code_NT"), "does not fit its configuration"),
    "fewer codes": (lambda s: s["model"].update(code_NT=s["model"]["code_NT"][:-1]), "fit|has 39 items"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_checkpoint_that_is_odd_is_refused_in_one_line(trained, tmp_path, kind):
    change, message = ODD[kind]
    state = torch.load(trained[0], weights_only=True)
    change(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(Problem, match=message) as problem:
        restore.restore(tmp_path / "odd.pth")
    assert "odd.pth" in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_emb_list": [256] * 8, "sk_epsilons": [0.0] * 8},
        {"tokenizer": "rq_kmeans", "num_emb_list": [8192] * 5},
    ],
    ids=str,
)
def test_semantic_ids_of_more_than_63_bits_are_refused_before_anything_is_trained(trained, change):
    with pytest.raises(Problem, match="do not fit into 63 bits"):
        main.check_data(configure.build(tiny_overrides(trained[0].parents[3]) | {"method": "two_stage"} | change))
