"""Commands in this process: what a wrong one says, what a whole run leaves behind."""

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_overrides, write_tiny
from helpers import contents, fails

import main
import scripts.pretrain
import scripts.run
import scripts.study
import settings
from compose import cli, configure, parts, restore
from joint.uncertainty import UncertaintyOptions
from readers.splits import DataOptions
from runs import guard
from runs.folder import RunOptions
from sids.tokenizer import CodeOptions
from trainer import TrainOptions
from utils import Problem

ROOT = Path(main.__file__).parent


def write_config(root, **changes):
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump({**tiny_overrides(root), **changes}))
    return f"--config={path}"


# ---------------------------------------------------------------- a whole run, once


class Finished:
    """The tiny data set, its tokenizer and one finished DIGER run."""

    def __init__(self, root):
        # steps so long that an epoch before the last is the best one
        self.root, self.config = root, write_config(root, epochs=4, lr_rec=0.3, warmup_steps=0)
        self.folder = root / "out" / "tiny" / "first"
        self.best = self.folder / "best_model.pth"

    def json(self, name):
        return json.loads((self.folder / name).read_text())

    def copy(self, root):
        """The finished run in another place, for tests that write to it."""
        shutil.copytree(self.folder, root / "copy")
        return root / "copy"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    write_tiny(root / "dataset" / "tiny")
    run = Finished(root)
    scripts.pretrain.run([run.config])
    main.main([run.config, "--run_name=first"])
    return run


def test_a_run_leaves_its_files(finished):
    assert {p.name for p in finished.folder.iterdir() if p.name != ".lock"} == {
        "best_model.pth", "config.yaml", "metrics.jsonl", "test.json", "baselines.json", "environment.json",
        "tiny.index.json", "ranks-test.npy", "ranks-valid.npy", "last", "test_looks.json", "run.json", "report.html",
    }  # fmt: skip
    assert configure.load(finished.folder / "config.yaml")[RunOptions].run_name == "first"
    assert set(finished.json("environment.json")) >= {"python", "torch", "numpy", "platform", "commit"}
    assert not list(finished.root.rglob("*.part"))
    assert len(list((finished.root / "logs" / "tiny").glob("*-first.log"))) == 1


def test_every_epoch_is_recorded(finished):
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    wanted = """loss/rec valid/recall@10 valid/ndcg@10 grad/level_1/history codes_used/level_1 perplexity/level_1
    stochastic_share sampled_differs noise_scale world_size collision_rate sid_changed samples_per_s peak_memory_gb"""
    for row in rows:
        assert [k for k in wanted.split() if not math.isfinite(row.get(k, math.nan))] == []
        assert row["grad/level_1/history"] > 0 and row["world_size"] == 1
        assert 1 <= row["perplexity/level_1"] <= row["codes_used/level_1"] <= 8


def test_results_follow_from_the_saved_ranks(finished):
    results = finished.json("test.json")
    user, rank = np.load(finished.folder / "ranks-test.npy")
    assert user.tolist() == list(range(60)) and results["num_users"] == 60
    assert results["recall@10"] == pytest.approx(np.mean([r < 10 for r in rank]))
    assert results["ndcg@10"] == pytest.approx(np.mean([1 / math.log2(r + 2) if r < 10 else 0 for r in rank]))
    assert results["test_evaluations"] == 1


def test_the_best_epoch_is_the_one_that_validation_chose(finished):
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["valid/ndcg@10"], -row["epoch"]))
    results = finished.json("test.json")
    assert results["best_epoch"] == best["epoch"] < rows[-1]["epoch"]
    assert results["valid"]["ndcg@10"] == pytest.approx(best["valid/ndcg@10"])


def test_the_popularity_floor_equals_counting(finished):
    users = {}
    for line in (finished.root / "dataset/tiny/tiny.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        users.setdefault(user, []).append(int(item[1:]))
    count = Counter(i for log in users.values() for i in log[:-2])
    ranked = sorted(range(40), key=lambda i: (-count[i], i))[:10]
    baselines = finished.json("baselines.json")
    assert baselines["popularity"]["recall@10"] == pytest.approx(np.mean([log[-1] in ranked for log in users.values()]))
    assert set(baselines) == {"popularity", "content"} and baselines["content"]["num_users"] == 60


def test_sids_are_exchanged_in_the_fields_layout(finished):
    sids = finished.json("tiny.index.json")
    assert list(sids) == [str(i) for i in range(40)]
    assert all(
        re.fullmatch(r"<a_[0-7]><b_[0-7]><c_[0-7]><d_[0-7]>", "".join(sid)) and len(sid) == 4 for sid in sids.values()
    )
    assert len({tuple(sid) for sid in sids.values()}) == 40
    used = finished.json("test.json")["codes_used/level_1"]
    assert len({sid[0] for sid in sids.values()}) == used


@pytest.mark.parametrize("split", ["test", "valid"])
def test_evaluating_the_checkpoint_gives_the_same_figures(finished, tmp_path, capsys, split):
    copy, results = finished.copy(tmp_path), finished.json("test.json")
    main.main(["evaluate", "--checkpoint", str(copy / "best_model.pth"), f"--split={split}"])
    printed = dict(re.findall(r"^(?:test|valid)/(\S+) (\S+)$", capsys.readouterr().out, re.MULTILINE))
    want = results if split == "test" else results["valid"]
    for name in ("recall@1", "recall@10", "ndcg@10", "prefix/ndcg@10", "coverage@10", "num_users"):
        assert float(printed[name]) == pytest.approx(want[name], rel=1e-5)
    again = json.loads((copy / "test.json").read_text())
    assert again.pop("test_evaluations") == (2 if split == "test" else 1)  # each look at the test set counts
    assert again == {k: v for k, v in results.items() if k != "test_evaluations"}


def test_recommending_prints_k_items_best_first(finished, capsys):
    main.main(["recommend", "--checkpoint", str(finished.best), "--history=i3, i4", "--k", "7"])
    rows = [line.split(None, 3) for line in capsys.readouterr().out.splitlines()]
    assert [int(rank) for rank, *_ in rows] == list(range(1, 8))
    assert [float(score) for _, score, *_ in rows] == sorted((float(r[1]) for r in rows), reverse=True)
    assert len({item for _, _, item, _ in rows}) == 7
    assert all(title == f"Item {item[1:]}" for _, _, item, title in rows)


def test_recommending_follows_the_end_of_the_history(finished, capsys):
    def printed(history):
        main.main(["recommend", f"--checkpoint={finished.best}", f"--history={history}", "--max_his_len=2", "--k=10"])
        return [(line.split()[2], float(line.split()[1])) for line in capsys.readouterr().out.splitlines()]

    _, model, _ = restore.restore(finished.best)
    found = model.recommend(torch.tensor([[4, 5]]), 10)  # numbers from 1: i3, i4
    assert printed("i20,i30,i3,i4") == [
        (f"i{item - 1}", pytest.approx(score, abs=6e-4))
        for item, score in zip(found.item_BW[0].tolist(), found.score_BW[0].tolist(), strict=True)
    ]
    assert printed("i20,i30") != printed("i3,i4")


def test_recommending_among_some_items(finished, capsys, tmp_path):
    (tmp_path / "stock.txt").write_text("i7\ni30\n\ni12\n")
    main.main(["recommend", f"--checkpoint={finished.best}", "--history=i3", f"--allow={tmp_path / 'stock.txt'}"])
    assert sorted(re.findall(r"\bi\d+", capsys.readouterr().out)) == ["i12", "i30", "i7"]


@pytest.mark.parametrize(
    ("text", "message"), [("i7\nnope\n", "stock.txt: item 'nope'"), ("\n", "at least one"), (None, "not readable")]
)
def test_recommending_among_a_bad_list(finished, capsys, tmp_path, text, message):
    if text is not None:
        (tmp_path / "stock.txt").write_text(text)
    args = ["recommend", f"--checkpoint={finished.best}", "--history=i3", f"--allow={tmp_path / 'stock.txt'}"]
    assert message in fails(capsys, main.main, *args)


def test_recommending_can_leave_out_the_history(finished, capsys):
    main.main(["recommend", "--checkpoint", str(finished.best), "--history=i3,i4", "--k=40", "--mask_seen=true"])
    items = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert sorted(items) == sorted(f"i{i}" for i in range(40) if i not in (3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run_name=first"], "holds a run already.*--resume=auto"),
        (["--run_name=first", "--seed=7"], "holds a run already"),
        (["--run_name=first", "--seed=7", "--resume=auto"], "other options .*seed: 2020 -> 7"),
    ],
)
@pytest.mark.parametrize("command", ["main", "run"])
def test_the_folder_of_another_run_is_refused_and_left_alone(finished, capsys, command, options, message):
    before = contents(finished.root)
    run = {"main": main.main, "run": lambda argv: scripts.run.run("frqud", argv)}[command]
    err = fails(capsys, run, finished.config, *options)
    assert re.search(r"out/tiny/first: .*" + message, err)
    assert contents(finished.root) == before


def test_the_tokenizer_of_other_embeddings_is_refused(finished, tiny_data, tmp_path, capsys):
    tokenizer = next(finished.root.glob("out/tiny/rqvae-*/best_collision_model.pth"))
    tiny_data(width=10)
    err = fails(capsys, main.main, write_config(tmp_path), f"--rqvae_path={tokenizer}", "--run_name=x")
    assert f"{tokenizer}: was trained on embeddings of width 12, yours have 10" in err


def test_another_catalogue_is_refused(finished, tiny_data, tmp_path, capsys):
    tiny_data(n_items=41)
    err = fails(capsys, main.main, "evaluate", f"--checkpoint={finished.best}", f"--data_path={tmp_path / 'dataset'}")
    assert "was trained on another catalogue" in err


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
@pytest.mark.parametrize("command", [["evaluate"], ["recommend", "--history=i1"]])
def test_a_truncated_checkpoint_is_a_clean_problem(finished, tmp_path, capsys, command, kept):
    path = tmp_path / "best_model.pth"
    path.write_bytes(finished.best.read_bytes()[:kept])
    err = fails(capsys, main.main, *command, f"--checkpoint={path}")
    assert f"{path}: not a readable checkpoint, perhaps truncated" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--history=i1,i4O"], r"item 'i4O' is not in the catalogue; did you mean 'i\d+'"),
        (["--history=i3 i4"], r"item 'i3 i4' is not in the catalogue; separate ids by commas"),
        (["--history=i39,i40"], r"item 'i40' is not in the catalogue; did you mean 'i\d+'"),
        (["--history=1,2"], r"item '1' is not in the catalogue"),
        (["--history=,"], r"--history: needs at least one item"),
        (["--history="], r"--history: needs a value"),
        (["--history=i1", "--history=i2"], r"--history: given twice"),
        (["--history=i1", "--k=0"], r"--k: expected a whole number from 1, got '0'"),
        (["--history=i1", "--k", "-3"], r"--k: .*'-3'"),
        (["--history=i1", "--k=ten"], r"--k: .*'ten'"),
        (["--history=i1", "--k=²"], r"--k: .*'²'"),
        (["--history=i1", "--kk=3"], r"unknown option 'kk'"),
        ([], r"recommend: needs .*--history"),
    ],
)
def test_a_wrong_request_for_items(finished, capsys, argv, message):
    assert re.search(message, fails(capsys, main.main, "recommend", f"--checkpoint={finished.best}", *argv))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--split=train"], r"--split: expected valid or test, got 'train'"),
        (["--split"], r"--split: needs a value"),
        (["--d_model=32"], r"best_model\.pth: does not fit its configuration"),
        (["--num_beams=3", "--metrics=recall@5"], r"num_beams: 3 is below"),
        (["--epoch=3"], r"unknown option 'epoch'.*'epochs'"),
        (["extra"], r"'extra': write options as --key=value"),
    ],
)
def test_a_wrong_evaluation(finished, capsys, argv, message):
    before = contents(finished.root)
    assert re.search(message, fails(capsys, main.main, "evaluate", f"--checkpoint={finished.best}", *argv))
    assert contents(finished.root) == before


def test_a_checkpoint_of_something_else(finished, capsys):
    tokenizer = next(finished.root.glob("out/tiny/rqvae-*/best_collision_model.pth"))
    assert "not a checkpoint of main.py" in fails(capsys, main.main, "evaluate", f"--checkpoint={tokenizer}")
    assert "no such checkpoint" in fails(capsys, main.main, "evaluate", "--checkpoint=gone.pth")
    assert "needs --checkpoint" in fails(capsys, main.main, "evaluate")


# ---------------------------------------------------------------- before anything is trained


def test_the_program_itself_ends_with_status_2(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guard, "keep_freed_memory", lambda: None)
    monkeypatch.setattr("sys.argv", ["main.py", "--epoch=3"])
    with pytest.raises(SystemExit) as stop:
        guard.command(main.main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: unknown option 'epoch'; did you mean 'epochs'?\n"
    assert list(tmp_path.iterdir()) == []


COMMANDS = {
    "main": main.main,
    "pretrain": scripts.pretrain.run,
    "run": lambda argv: scripts.run.run("sdud", argv),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=gone.yaml"], r"gone\.yaml: no such configuration"),
        (["--config", "gone.yaml"], r"gone\.yaml: no such configuration"),
        (["--config="], r"--config: needs a value"),
        (["--config=a.yaml", "--config=b.yaml"], r"--config: given twice"),
        (["--method=frqud"], r"method: frqud is an uncertainty of DIGER; set --uncertainty=frqud"),
        (["--method=tiger"], r"method: 'tiger' is not one of diger, em, etegrec, two_stage"),
        (["--num_beam=10"], r"unknown option 'num_beam'.*'num_beams'"),
        (["--data_path=nowhere", "--dataset=mine"], r"data_path: 'nowhere' is no folder"),
    ],
)
def test_every_command_checks_its_options_first(monkeypatch, tmp_path, capsys, command, argv, message):
    monkeypatch.chdir(tmp_path)
    argv = [*argv, f"--output_dir={tmp_path / 'out'}", f"--log_dir={tmp_path / 'logs'}"]
    assert re.search(message, fails(capsys, command, *argv))
    assert not list(tmp_path.rglob("*.pth"))


def test_data_that_are_not_there(tmp_path, capsys):
    (tmp_path / "dataset").mkdir()
    config = write_config(tmp_path)
    for command in COMMANDS.values():
        assert "holds files called tiny.*" in fails(capsys, command, config, "--run_name=x")
    assert not (tmp_path / "out").exists()  # the name is still free once the data are there


def test_training_without_a_tokenizer_says_how_to_get_one(tiny_data, tmp_path, capsys):
    tiny_data()
    err = fails(capsys, main.main, write_config(tmp_path), "--run_name=x")
    assert re.search(r"best_collision_model\.pth: no pre-trained tokenizer; run scripts/pretrain\.py", err)
    err = fails(capsys, main.main, write_config(tmp_path), "--run_name=y", "--rqvae_path=gone.pth")
    assert "gone.pth: no pre-trained tokenizer" in err


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_dry_run_prints_the_configuration_and_writes_nothing(tiny_data, tmp_path, capsys, monkeypatch, command):
    tiny_data()
    config = write_config(tmp_path, run_name="x")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    try:
        command([config, "--dry_run", "--epochs=7"])
    except SystemExit as stop:
        assert stop.code == 0
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()
    printed = configure.build(yaml.safe_load(capsys.readouterr().out))
    assert (printed[TrainOptions].epochs, printed[CodeOptions].num_emb_list) == (7, [8, 8, 8])


def test_a_dry_run_of_the_demo_does_not_write_its_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scripts.run.run("frqud", ["--dry_run"])
    assert list(tmp_path.iterdir()) == []
    assert configure.build(yaml.safe_load(capsys.readouterr().out))[DataOptions].data_path == "./dataset"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_dry_run_meets_the_problems_of_the_data(tiny_data, tmp_path, capsys, command):
    folder = tiny_data()
    np.save(folder / "tiny.emb-test.npy", np.zeros((39, 12), np.float32))
    assert "first item without one is 'i39'" in fails(capsys, command, write_config(tmp_path), "--dry_run")
    (folder / "tiny.emb-test.npy").unlink()
    assert "no content embeddings" in fails(capsys, command, write_config(tmp_path), "--dry_run")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_every_option(capsys, command, word):
    try:
        command(["--epochs=nonsense", word])
    except SystemExit as stop:
        assert stop.code == 0
    out = capsys.readouterr().out
    assert [n for n in settings.flat(configure.load(None)) if f"--{n}=" not in out] == []


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_of_a_sub_command(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main.main([command, "--help"])
    assert stop.value.code == 0
    assert f"main.py {command} --checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["popularity", "content"])
def test_a_floor_is_no_method_to_train(tiny_data, tmp_path, capsys, method):
    tiny_data()
    err = fails(capsys, main.main, write_config(tmp_path), f"--method={method}", "--run_name=x")
    assert f"method: '{method}' has nothing to train" in err


# ---------------------------------------------------------------- run_*.sh


@pytest.mark.parametrize("path", sorted(ROOT.glob("run_*.sh")), ids=lambda p: p.name)
def test_every_run_script_names_a_decay_that_exists(path):
    decay = re.search(r'scripts/run\.py" (\w+) "\$@"\n', path.read_text())[1]
    for config in sorted((ROOT / "config").glob("*.yaml")):
        if yaml.safe_load(config.read_text()).get("tokenizer", "rqvae") not in parts.JOINT:
            continue  # learns alone: for scripts/pretrain.py and main.py
        name = config.stem.partition("_")[0]  # <data set>_<method>
        preset = [f"--config={config}"] if name != config.stem else []
        cfg = scripts.run.configuration(decay, [name, *preset, "--epochs=1"])
        assert (cfg[UncertaintyOptions].uncertainty, cfg[DataOptions].dataset, cfg[TrainOptions].epochs) == (
            decay,
            name,
            1,
        )
        assert cfg[RunOptions].run_name.startswith(decay + "-")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mars"], r"config/mars\.yaml: no such configuration, and no .* there are .*demo"),
        (["shop", "--data_path=nowhere/shop"], r"data_path: nowhere/shop is not there; name the folder"),
        (["dataset/shop"], r"dataset/shop: is a path; write the name of the data set, shop --data_path=dataset"),
        (["demo", "scientific"], r"one data set at a time, not demo, scientific"),
        (["--epochs", "5"], r"write.* --key=value"),
        (["demo", "--epochs=many"], r"epochs: expected a whole number, got 'many'"),
    ],
)
def test_a_wrong_command_line_of_a_run_script(capsys, argv, message):
    assert re.search(message, fails(capsys, COMMANDS["run"], *argv))


@pytest.mark.parametrize("place", ["", "toys", "~"])
def test_a_preset_beside_the_data_is_found_whichever_folder_is_named(tmp_path, monkeypatch, place):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toys.yaml").write_text("dataset: toys\nepochs: 7\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = f"--data_path={'~/toys' if place == '~' else tmp_path / place}"
    cfg = scripts.run.configuration("frqud", ["toys", given])
    assert cfg[TrainOptions].epochs == 7 and not cfg[DataOptions].data_path.startswith("~")


def test_a_run_script_by_any_shell_and_through_a_link(tmp_path):
    """Of a shell that knows no pipefail bash takes over, which finds the script behind the link."""
    (tmp_path / "link.sh").symlink_to(ROOT / "run_FrqUD.sh")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["sh", tmp_path / "link.sh", "mars"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert ended.returncode == 2 and "config/mars.yaml: no such configuration" in ended.stderr


# the name that was typed, what config/toys.yaml says of the data set (None: nothing), more words
#   -> the data set that is used, or what is refused
NAMED = [
    ("toys", "dataset: toys", [], "toys"),
    ("toys", None, [], "toys"),  # the file need not repeat it
    ("toys", "dataset:", [], "toys"),
    ("toys", "dataset: toys", ["--dataset=toys"], "toys"),
    ("toys", "dataset: demo", [], r"toys\.yaml: says dataset: demo, but toys was asked for; write dataset: toys there"),
    ("toys", "dataset: Toys", [], r"says dataset: Toys, but toys was asked for"),
    ("toys", "dataset: 2014", [], r"says dataset: 2014, but toys was asked for"),
    ("toys", "dataset: demo", ["--dataset=toys"], r"says dataset: demo, but toys was asked for"),
    ("toys", "dataset: toys", ["--dataset=demo"], r"--dataset=demo: toys was asked for"),
    ("toys", None, ["--dataset=demo"], r"--dataset=demo: toys was asked for"),
    (
        "toys",
        "dataset: beauty",
        ["--config={}"],
        r"says dataset: beauty, but toys was asked for.*ask for beauty with --config",
    ),
    ("beauty", "dataset: beauty", ["--config={}"], "beauty"),  # a preset under a name of its own
    (None, "dataset: beauty", ["--config={}"], "beauty"),
    (None, "dataset: beauty", ["--config={}", "--dataset=toys"], "toys"),
    (None, None, ["--config={}", "--dataset=toys"], "toys"),
    (None, None, ["--config={}"], r"toys\.yaml: names no data set; write dataset: NAME there"),
    (None, "dataset:", ["--config={}"], r"toys\.yaml: names no data set"),
    (None, None, ["--config={}", "--data_path=shop.csv"], "shop"),
]


@pytest.mark.parametrize("command", ["run", "main", "compare"])
@pytest.mark.parametrize(("typed", "says", "more", "want"), NAMED)
def test_the_data_set_that_was_named_is_the_one_that_is_used(monkeypatch, tmp_path, command, typed, says, more, want):
    path = tmp_path / "config" / "toys.yaml"
    path.parent.mkdir()
    path.write_text("epochs: 3\n" + (f"{says}\n" if says else ""))
    monkeypatch.setattr(cli, "CONFIG", path.parent)
    words = [w.format(path) for w in more]
    configures = {
        "run": lambda: scripts.run.configuration("frqud", [*([typed] if typed else []), *words]),
        "main": lambda: cli.configuration(words, None, lambda cfg: None),
        "compare": lambda: scripts.study.recipe("sasrec", typed, configure.parse_overrides(words)),
    }
    if (command == "main" and typed) or (command == "compare" and (not typed or any("--config" in w for w in words))):
        pytest.skip("cannot be said to this command")
    if want.isalpha():
        cfg = configures[command]()
        assert (cfg[DataOptions].dataset, cfg[TrainOptions].epochs) == (want, 3)
    else:
        with pytest.raises(Problem, match=want) as problem:
            configures[command]()
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize("place", [["--data_path", "my data"], ["--data_path=my data"]])
def test_a_commands_own_options_its_words_and_those_of_the_runs(place):
    found = cli.words_and_options(["shop", "--seeds", "1,2", "--epochs=3", *place, "frqud"], ["seeds", "config"])
    assert found == ({"seeds": "1,2"}, ["shop", "frqud"], {"epochs": 3, "data_path": "my data"})
    assert scripts.run.configuration("frqud", place)[DataOptions].data_path == "my data"


@pytest.mark.parametrize("words", [["--data_path"], ["--data_path=a", "--data_path", "b"], ["-e=3"], ["--epochs", "3"]])
def test_words_that_are_not_options(words):
    with pytest.raises(Problem, match=r"needs a value|given twice|write options as --key=value"):
        cli.words_and_options(words, [])


@pytest.mark.parametrize("name", ["compare", "reproduce", "sid_study", "length_study", "cut_study"])
def test_the_help_of_a_study(monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert f"python scripts/{name}.py" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "two", "-1", ""])
def test_a_wrong_number_of_processes(tiny_data, tmp_path, monkeypatch, capsys, text):
    tiny_data()
    monkeypatch.setenv("NPROC", text)
    assert f"NPROC: expected a whole number from 1, got {text!r}" in fails(
        capsys, COMMANDS["run"], write_config(tmp_path)
    )
    assert not (tmp_path / "out").exists()



def test_the_preset_beside_the_data_goes_first(tmp_path, monkeypatch, caplog):
    """As prepare_data.py made it, split included, even where config/ has one of the same name."""
    monkeypatch.setattr(main.log, "propagate", True)
    monkeypatch.setattr(cli, "CONFIG", tmp_path / "config")
    ours, theirs = tmp_path / "config" / "shop.yaml", tmp_path / "data" / "shop" / "shop.yaml"
    for path in (ours, theirs):
        path.parent.mkdir(parents=True)
        path.write_text("dataset: shop\n")
    assert cli.presets("shop", "shop", {"data_path": str(tmp_path / "data")}) == [theirs, ours]
    assert f"{theirs} is the preset" in caplog.text and f"--config={ours}" in caplog.text
    assert cli.presets("shop", "shop", {"data_path": str(tmp_path)}) == [ours]


def test_a_report_that_a_kill_has_cost_is_made_again(finished):
    page = finished.folder / "report.html"
    page.unlink()
    main.main([finished.config, "--run_name=first", "--resume=auto"])
    assert page.is_file()
