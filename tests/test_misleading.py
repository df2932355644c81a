"""What misled and what was absurd: each class of such input ends in a true line, or works."""

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from conftest import HEADER, tiny_at
from helpers import fails, fit_of, one_line, write_file

import main
import utils
from compose import build, configure, restore
from readers.layouts import read_dataset
from readers.splits import DataOptions
from readers.tables import read_rows
from recommenders.protocol import TopK
from runs import report
from runs.folder import RunFolder
from sids.checkpoint import load_state
from trainer import TrainOptions, learning_rate, rate_sum
from utils import Problem, read_checkpoint, read_json, regular_file

ROOT = Path(main.__file__).parent


# ---------------------------------------------------------------- the proof


CUTS = [
    {"batch_size": 1}, {"token_budget": 1}, {"gradient_accumulation_steps": 1000}, {"batch_size": 10**9},
    {"batch_size": 2, "gradient_accumulation_steps": 3}, 
]  # fmt: skip


@pytest.mark.parametrize("uncertainty", ["frqud", "none"])
def test_the_proof_is_the_same_however_the_batch_is_cut(ground, tmp_path, uncertainty):
    found = [fit_of(ground, tmp_path / str(i), uncertainty=uncertainty, **cut)._probe() for i, cut in enumerate(CUTS)]
    assert found[0] and min(found[0].values()) > 0 and all(f == found[0] for f in found)


@pytest.mark.parametrize("cut", [c for c in CUTS if c.get("batch_size", 32) > 2], ids=str)
def test_any_cut_trains(ground, tmp_path, cut):
    """Of the network with the cheapest step: how a batch is cut is the trainer's business."""
    fit_of(ground, tmp_path, epochs=1, method="sasrec", hidden_units=4, **cut).train()


def test_a_severed_road_is_refused_whatever_the_batch_and_a_handful_of_samples_only_warned_of(
    ground, tmp_path, caplog, monkeypatch
):
    fit = fit_of(ground, tmp_path, batch_size=1)
    fit.raw.tokenizer.scale_L.fill_(1e30)
    with pytest.raises(Problem, match="check logit_scale"):
        fit._probe()
    monkeypatch.setattr("data.PROBED", 5)
    assert fit._probe() == {} and "only 5 training samples" in caplog.text


@pytest.mark.parametrize("warm", [0, 1, 7, 500])
def test_the_schedules_sum_of_a_long_run_is_taken_from_some_of_its_steps(warm):
    t = configure.build({"warmup_steps": warm})[TrainOptions]
    for steps, first, end, near in ((8, 3, 6, 1e-9), (700, 0, 700, 1e-9), (50_003, 20_000, 40_000, 1e-3)):
        factor = learning_rate(t, steps, 1, range(first, end).__contains__)
        assert rate_sum(factor, steps) == pytest.approx(sum(map(factor, range(steps))), rel=near), (steps, first, end)


def test_a_run_of_countless_epochs_begins_at_once(ground, tmp_path):
    assert fit_of(ground, tmp_path, epochs=10**9).reachable["id"] > 0


# ---------------------------------------------------------------- what is said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("misleading")
    options = tiny_at(root) | {"run_name": "r", "epochs": 1}
    cfg = configure.build(options)
    build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    return main.train(cfg)


NOTHING = [
    (["--constrained=false"], "search found none of the 40 items"),
    (["--constrained=false", "--mask_seen=true"], "search found none of the 38 items"),
]


@pytest.mark.parametrize(("words", "message"), NOTHING)
def test_why_nothing_is_recommended(trained, capsys, monkeypatch, words, message):
    nothing = TopK(torch.zeros(1, 10, dtype=torch.long), torch.full((1, 10), -1.0))
    monkeypatch.setattr("model.beam_search", lambda *args, **kwargs: nothing)
    err = fails(capsys, main.main, "recommend", f"--checkpoint={trained.best}", "--history=i1,i2", *words)
    assert message in err and "mask_seen" not in err


def test_nothing_is_left(trained, capsys, tmp_path):
    (tmp_path / "some").write_text("i1\ni2\n")
    words = ["--history=i1,i2", f"--allow={tmp_path / 'some'}", "--mask_seen=true"]
    assert "nothing is left" in fails(capsys, main.main, "recommend", f"--checkpoint={trained.best}", *words)


@pytest.mark.parametrize(("rows", "enough"), [([3], False), ([3, 3, 3], False), ([4], True), ([3, 4], True)])
def test_how_many_interactions_a_user_needs(tmp_path, rows, enough):
    lines = [f"u{u}\ti{t}\t{t}" for u, n in enumerate(rows) for t in range(n)]
    (tmp_path / "t.inter").write_text("\n".join([HEADER, *lines]) + "\n")
    cfg = configure.build({"data_path": str(tmp_path), "dataset": "t", "method": "sasrec"})[DataOptions]
    if enough:
        assert len(read_dataset(cfg).train) == 1
    else:
        with pytest.raises(Problem, match=r"the train part .* at least 4 interactions"):
            read_dataset(cfg)


@pytest.mark.parametrize("number", [30, 28, 13])  # read-only, full, forbidden
def test_a_look_that_cannot_be_counted_is_a_look(trained, capsys, monkeypatch, number):
    before = read_json(trained.looks)

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    inner = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: refuse() if "w" in mode else inner(self, mode, *a, **k)
    )
    main.main(["evaluate", f"--checkpoint={trained.best}"])
    said = capsys.readouterr().out
    assert "test/recall@10" in said and "not counted" in said and read_json(trained.looks) == before


LONG = "x" * 2_000_000
QUOTES = [
    lambda d: configure.parse_overrides([LONG]),
    lambda d: configure.parse_overrides([f"--epochs=[{LONG}"]),
    lambda d: configure.build({"epochs": LONG}),
    lambda d: configure.build({LONG: 1}),
    lambda d: configure.build({"metrics": [LONG]}),
    lambda d: configure.build({"metrics": LONG}),
    lambda d: configure.build({"valid_metric": LONG}),
    lambda d: configure.build({"run_name": LONG}),
    lambda d: configure.build({"method": LONG}),
    lambda d: main.numbers([LONG], {"a": 1}, "--history"),
    lambda d: main.read_lines(LONG),
    lambda d: read_checkpoint(LONG),
    lambda d: read_rows(write_file(d, f"{HEADER}\nu\ti\t{LONG}\n")),
    lambda d: read_rows(write_file(d, f"{HEADER}\nu\t{LONG}\n")),
    lambda d: _inter(d, f"u\t{LONG}\t1\n"),
    lambda d: _items(d, f'{{"item_id": "{LONG}"}}\n' * 2),
]


def _inter(folder, rows):
    (folder / "t.inter").write_text(f"{HEADER}\n{rows}")
    (folder / "t.items.jsonl").write_text('{"item_id": "a"}\n')
    return read_dataset(configure.build({"data_path": str(folder), "dataset": "t"})[DataOptions])


def _items(folder, lines):
    (folder / "t.inter").write_text(f"{HEADER}\nu\ta\t1\n")
    (folder / "t.items.jsonl").write_text(lines)
    return read_dataset(configure.build({"data_path": str(folder), "dataset": "t"})[DataOptions])


@pytest.mark.parametrize("work", QUOTES, ids=range(len(QUOTES)))
def test_what_is_quoted_is_short(tmp_path, work):
    with pytest.raises(Problem) as problem:
        work(tmp_path)
    assert len(one_line(problem)) < 1500


# ---------------------------------------------------------------- absurd values


VALUES = [
    "!!python/object:os.system x", "!unknown x", "2001-01-01", "2001-02-31", "? [1]", "{[1]: 2}", "<<: 1", "=", "*a",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: v[:12])
@pytest.mark.parametrize("key", ["epochs", "num_emb_list", "lr_rec", "mask_seen", "uncertainty"])
def test_a_value_of_the_wrong_kind_is_one_line(tmp_path, key, value):
    for work in (
        lambda: configure.build({}, configure.parse_overrides([f"--{key}={value}"])),
        lambda: configure.load(write_file(tmp_path, f"{key}: {value}\n")),
    ):
        with pytest.raises(Problem) as problem:
            work()
        one_line(problem)


@pytest.mark.parametrize("text", ["[" * 100000, "\0", "{"])
def test_json_that_python_cannot_hold(tmp_path, text):
    with pytest.raises(Problem, match="not readable as JSON") as problem:
        read_json(write_file(tmp_path, text))
    one_line(problem)


BAD = ["a" * 300, "é" * 128, "a/" * 3000]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_name_that_no_file_can_have(bad):
    for work in (read_checkpoint, regular_file, main.read_lines, lambda p: main.settings.read_yaml(Path(p))):
        with pytest.raises(Problem, match="not readable"):
            work(bad)


def special(folder):
    """Things that are no regular files, by name."""
    os.mkfifo(folder / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "broken").symlink_to(folder / "nothing")
    (folder / "folder").mkdir()
    return server


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    server = special(Path())
    names = ["pipe", "socket", "zero", "loop", "broken", "folder", "/dev/zero", "/dev/stdin", "/dev/null", "nothing"]
    readers = [
        read_json, read_checkpoint, utils.digest, main.read_lines, main.settings.read_yaml, read_rows,
        lambda p: load_state(p, torch.nn.Linear(1, 1), "rqvae"),
    ]  # fmt: skip
    for name in names:
        for read in readers:
            found = []

            def work(read=read, name=name, found=found):
                try:
                    read(Path(name))
                except Problem as e:
                    found.append(str(e))

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(20)
            assert found and "\n" not in found[0], (name, read)
    server.close()


SIZES = [
    {"metrics": ["recall@1000000000", "ndcg@10"]}, {"num_beams": 10**8}, {"num_beams": 41},
    {"num_beams": 10**8, "constrained": False}, {"num_beams": 50, "metrics": ["recall@41", "ndcg@10"]},
    {"encoder_layers": 100_000}, {"max_his_len": 10**9},
    {"method": "sasrec", "num_blocks": 100_000}, {"method": "sasrec", "metrics": ["recall@41", "ndcg@10"]},
    {"recommender": "rq_transformer", "item_blocks": 10**6},
]  # fmt: skip


@pytest.mark.parametrize("changes", SIZES, ids=lambda c: str(c)[:60])
def test_what_exceeds_the_catalogue_or_every_use_is_refused_before_anything_is_made(ground, changes):
    options, _ = ground
    with pytest.raises(Problem) as problem:
        main.check_data(configure.build({**options, **changes}))
    assert any(key in one_line(problem) for key in changes)


def test_what_is_only_large_is_not(ground):
    options, _ = ground
    for changes in ({"num_beams": 40}, {"eval_batch_size": 10**9}, {"batch_size": 10**9}, {"max_his_len": 10**6}):
        main.check_data(configure.build({**options, **changes}))


# ---------------------------------------------------------------- damaged by hand


DAMAGED = [(file, text) for file in ("test.json", "baselines.json") for text in ("[]", "null", '"x"', "{", "")]
GOOD = '{"method": "m", "dataset": "t", "recall@10": 1, "ndcg@10": 0.5}'


@pytest.mark.parametrize(("file", "text"), DAMAGED)
def test_results_damaged_by_hand(tmp_path, file, text):
    (tmp_path / "test.json").write_text(GOOD)
    (tmp_path / file).write_text(text)
    with pytest.raises(Problem, match=file.replace(".", r"\.")) as problem:
        report.log_results(RunFolder(tmp_path))
    one_line(problem)


@pytest.mark.parametrize("text", ['"x"', "[]", "", '{"step": '])
def test_a_count_of_looks_damaged_by_hand(tmp_path, text):
    (tmp_path / "test_looks.json").write_text(text)
    with pytest.raises(Problem, match=r"test_looks\.json"):
        RunFolder(tmp_path).look_at_test()


CLAIMS = [
    {"encoder_layers": 100_000}, {"encoder_layers": 150}, {"d_ff": 64}, {"layers": [16] * 60}, {"e_dim": 9},
    {"num_emb_list": [8, 8]}, {"num_beams": 10**8}, {"method": "sasrec"},
    {"recommender": "rq_transformer"},
]  # fmt: skip


@pytest.mark.parametrize("claims", CLAIMS, ids=lambda c: str(c)[:40])
def test_a_configuration_that_its_own_tensors_contradict(trained, tmp_path, claims):
    state = torch.load(trained.best, weights_only=True)
    state["config"] |= claims
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(Problem, match=r"x\.pth|num_beams") as problem:
        restore.restore(tmp_path / "x.pth")
    one_line(problem)


# ---------------------------------------------------------------- threads of the run scripts


THREADS = [  # load, steal before and after, a person's choice -> threads
    ("99.5", (0, 0), "", "1"), ("0.0", (0, 0), "", "free"), ("99.5", (0, 0), "3", "3"), (None, None, "", "free"),
    ("0.0", None, "", "free"),
]  # fmt: skip


@pytest.mark.skipif(os.cpu_count() == 1, reason="nothing to choose")
@pytest.mark.parametrize(("load", "steal", "chosen", "want"), THREADS)
def test_busy_cores_are_noticed(tmp_path, load, steal, chosen, want):
    if load is not None:
        (tmp_path / "load").write_text(f"{load} 1 1 1/2 3\n")
    if steal is not None:
        (tmp_path / "stat").write_text(f"cpu 1 2 3 4 5 6 7 {steal[0]} 0 0\n")
    env = os.environ | {"OMP_NUM_THREADS": chosen}
    env |= {"DIGER_LOADAVG": str(tmp_path / "load"), "DIGER_STAT": str(tmp_path / "stat")}
    script = 'setup() { :; }; source <(sed "s/^setup .*//" scripts/setup.sh) run; echo "${OMP_NUM_THREADS:-free}"'
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == f"{want}\n" and done.stderr.count("\n") == (want == "1")
