"""The life of a run: when it stops, what it may go on from, what it leaves behind when something breaks."""

import os
import pkgutil
import re
import shutil
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_at, tiny_overrides, write_tiny
from helpers import contents, fails, fit_of

import main
import scripts.run
import settings
import utils
from compose import build, configure
from evaluation import Evaluation
from main import finish
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import report
from runs.folder import RunFolder
from runs.guard import log
from runs.state import Progress
from sids.files import letters
from utils import Problem, Stopped, fingerprint, read_json, write_json

# ---------------------------------------------------------------- patience

# epochs, eval_step, early_stop, scores of the looks -> epochs of the looks (the last one ends the training)
PATIENCE = [
    (30, 20, 15, [0.1, 0.2], [19, 29]),  # patience is shorter than the way to the first look
    (30, 20, 1, [0.2, 0.1], [19, 29]),
    (60, 20, 15, [0.2, 0.1], [19, 39]),
    (60, 20, 21, [0.2, 0.1, 0.1], [19, 39, 59]),
    (5, 7, 1, [0.1], [4]),  # the last epoch is always looked at
    (12, 3, 1, [0.1, 0.1], [2, 5]),
    (20, 5, 5, [0.1, 0.2, 0.2], [4, 9, 14]),
    (40, 2, 3, [0.3, 0.2, 0.1], [1, 3, 5]),  # three epochs after the best none is looked at
    (10, 1, 2, [0.1, 0.3, 0.2, 0.3], [0, 1, 2, 3]),
    (10, 1, 3, [0.0, 0.0, 0.0, 0.0], [0, 1, 2, 3]),  # a score of nought is a score
]


def without_training(fit, monkeypatch, scores):
    """Let a run's epochs pass without a step and its looks find `scores`; returns the list of epochs looked at."""
    looks, found = [], iter(scores)

    def look(*args):
        looks.append(fit.progress.epoch)
        users = len(fit.data.valid)
        return Evaluation(np.zeros(users, np.int32), dict.fromkeys(("ndcg@5", "ndcg@10"), next(found)))

    def epoch():
        fit.progress.step += fit.steps_per_epoch
        return {"loss": 0.0}

    monkeypatch.setattr("trainer.evaluate", look)
    monkeypatch.setattr(fit, "_epoch", epoch)
    monkeypatch.setattr(fit, "on_epoch", lambda row, best: None)
    return looks


@pytest.mark.parametrize(("epochs", "eval_step", "early_stop", "scores", "looked"), PATIENCE)
def test_patience_ends_a_run_only_after_a_look(
    ground, tmp_path, monkeypatch, epochs, eval_step, early_stop, scores, looked
):
    changes = {"method": "sasrec", "hidden_units": 4, "epochs": epochs, "eval_step": eval_step}
    fit = fit_of(ground, tmp_path, **changes, early_stop=early_stop)
    looks = without_training(fit, monkeypatch, scores)
    fit.train()
    assert looks == looked and fit.progress.epoch == looked[-1] + 1 and fit.run.best.is_file()
    assert (fit.progress.best, fit.progress.best_epoch) == (max(scores), looked[scores.index(max(scores))])
    again = fit_of(ground, tmp_path, **changes, early_stop=early_stop, resume="auto")
    more = without_training(again, monkeypatch, [])
    again.train()
    assert more == [] and again.progress == fit.progress


def test_nothing_is_out_of_patience_before_the_first_look():
    assert not any(Progress(epoch=e).out_of_patience(1) for e in range(50))


# ---------------------------------------------------------------- embeddings that change during a run


def rewrite(path, change):
    np.save(path, change(np.load(path)))


def replace(path):
    """As a program does that writes aside and renames, with the times of the old file."""
    other, times = path.with_name("aside.npy"), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    np.save(other, -np.load(path))
    os.utime(other, ns=times)
    other.replace(path)


def infinite(path):
    rewrite(path, lambda x: x * np.float32(np.inf))


# what happens to the file -> is the baseline still its own?
CHANGES = {
    "nothing": (lambda path: None, True),
    "touched": (lambda path: path.touch(), True),
    "written again": (lambda path: path.write_bytes(path.read_bytes()), True),
    "copied back": (lambda path: shutil.copy2(shutil.move(path, path.with_name("old")), path), True),
    "other values": (lambda path: rewrite(path, np.negative), False),
    "one value": (lambda path: rewrite(path, lambda x: np.where(np.arange(x.size).reshape(x.shape), x, 9)), False),
    "other width": (lambda path: rewrite(path, lambda x: x[:, :-1]), False),
    "fewer rows": (lambda path: rewrite(path, lambda x: x[:-1]), False),
    "rows in another order": (lambda path: rewrite(path, lambda x: x[::-1]), False),
    "other type": (lambda path: rewrite(path, lambda x: x.astype(np.float64)), False),
    "not finite": (infinite, False),
    "replaced with old times": (replace, False),
    "deleted": (lambda path: path.unlink(), False),
    "emptied": (lambda path: path.write_bytes(b""), False),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), False),
    "a folder now": (lambda path: (path.unlink(), path.mkdir()), False),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_end_of_a_run_uses_the_embeddings_that_its_start_hashed(ground, tmp_path, monkeypatch, caplog, kind):
    change, same = CHANGES[kind]
    write_tiny(tmp_path / "dataset" / "tiny")
    options = ground[0] | {"data_path": str(tmp_path / "dataset")}
    data = read_dataset(configure.build(options)[DataOptions])
    fit = fit_of((options, data), tmp_path, method="sasrec", hidden_units=4, epochs=1)
    fit.train()
    change(data.embedding_path)
    monkeypatch.setattr(log, "propagate", True)
    finish(fit.cfg, data, fit, fit.run)
    found = read_json(fit.run.baselines)
    assert fit.run.results()["recall@10"] >= 0 and (fit.run.path / "ranks-test.npy").is_file()
    assert set(found) == ({"popularity", "content"} if same else {"popularity"})
    assert ("the baseline 'content' is left out" in caplog.text) == (not same)
    if same:
        assert np.array_equal(read_embeddings(data), np.load(data.embedding_path))
    else:
        with pytest.raises(Problem, match=r"tiny\.emb-test\.npy"):
            read_embeddings(data)


def test_the_embeddings_are_opened_once(tmp_path, monkeypatch):
    """By a run script with all its stages: tokenizer, run, baseline of the same tokenizer, baselines."""
    options = tiny_at(tmp_path) | {"run_name": "r", "epochs": 1, "with_two_stage": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    opened, inner = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **how: (opened.append(str(path)), inner(path, **how))[1])
    scripts.run.run("frqud", [f"--config={tmp_path / 'config.yaml'}"])
    assert [path for path in opened if "emb-test" in path] == [str(tmp_path / "dataset" / "tiny" / "tiny.emb-test.npy")]


# ---------------------------------------------------------------- a finished run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(options, folder) of a finished run of DIGER with two trained baselines beside it."""
    root = tmp_path_factory.mktemp("finished")
    options = tiny_at(root) | {"run_name": "r", "epochs": 1, "with_two_stage": True, "with_sasrec": True}
    (root / "config.yaml").write_text(yaml.safe_dump(options))
    scripts.run.run("frqud", [f"--config={root / 'config.yaml'}"])
    return root / "config.yaml", root / "out" / "tiny" / "r"


COMMANDS = {"main": main.main, "run": lambda argv: scripts.run.run("frqud", argv)}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("told", [[], ["--resume_with_changes=true"]], ids=["", "with changes"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--epochs=9"], "epochs: 1 -> 9"),
        (["--epochs=9", "--early_stop=3"], "early_stop: 15 -> 3"),
        (["--lr_rec=1e-4"], "lr_rec: 0.001 -> 0.0001"),
        (["--seed=3"], "seed: 2020 -> 3"),
        (["--metrics=recall@5,ndcg@10"], "metrics: .*recall@5"),
        (["--mask_seen=true"], "mask_seen: False -> True"),
        (["--num_beams=11"], "num_beams: 10 -> 11"),
    ],
    ids="".join,
)
def test_a_finished_run_is_not_trained_on(finished, capsys, command, told, changes, said):
    config, folder = finished
    before = contents(folder.parent)
    err = fails(capsys, COMMANDS[command], f"--config={config}", "--resume=auto", *changes, *told)
    assert re.search(rf"tiny/r: is finished .*other options \(.*{said}.*choose a new run_name", err)
    assert contents(folder.parent) == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("free", [[], ["--resume_with_changes=true"], ["--save_steps=3", "--log_dir=elsewhere"]])
def test_a_finished_run_is_printed_again(finished, capsys, monkeypatch, tmp_path, command, free):
    config, folder = finished
    monkeypatch.chdir(tmp_path)
    before = contents(folder.parent)
    COMMANDS[command]([f"--config={config}", "--resume=auto", *free])
    assert contents(folder.parent) == before
    assert f"{read_json(folder / 'test.json')['ndcg@10']:.4f}" in capsys.readouterr().out


def test_a_baseline_with_other_options_is_refused_with_its_remedy(finished, capsys, tmp_path):
    """The run itself is not finished, its two-stage twin is."""
    config, folder = finished
    for name in ("r", "r-two_stage", "r-sasrec"):
        shutil.copytree(folder.parent / name, tmp_path / "tiny" / name)
    (tmp_path / "tiny" / "r" / "test.json").unlink()
    argv = [
        f"--config={config}",
        "--resume=auto",
        "--resume_with_changes=true",
        f"--output_dir={tmp_path}",
        "--epochs=9",
    ]
    err = fails(capsys, COMMANDS["run"], *argv, "--dry_run")
    assert re.search(r"r-two_stage: is finished .*new run_name .*--with_two_stage=false", err)
    err = fails(capsys, COMMANDS["run"], *argv, "--dry_run", "--with_two_stage=false")
    assert re.search(r"r-sasrec: is finished .*new run_name .*--with_sasrec=false", err)
    COMMANDS["run"]([*argv, "--dry_run", "--with_two_stage=false", "--with_sasrec=false"])


def test_one_table_of_joint_two_stage_sasrec_and_the_baselines_without_training(finished):
    _, folder = finished
    rows = report.rows_of(RunFolder(folder))
    assert [row["method"] for row in rows] == ["frqud", "two_stage", "sasrec", "popularity", "content"]
    assert all(0 <= row["ndcg@10"] <= 1 for row in rows)
    sasrec = yaml.safe_load((folder.with_name("r-sasrec") / "config.yaml").read_text())
    assert (sasrec["method"], sasrec["epochs"]) == ("sasrec", 2)


def test_a_baseline_of_other_data_does_not_stand_beside(finished, capsys, tmp_path):
    """The data have changed since the run was trained; its twin would be trained on what they are now."""
    config, folder = finished
    options = yaml.safe_load(config.read_text())
    shutil.copytree(folder, tmp_path / "out" / "tiny" / "r")
    (tmp_path / "out" / "tiny" / "r" / "baselines.json").unlink()
    write_tiny(tmp_path / "dataset" / "tiny", seed=1)
    moved = options | {"data_path": str(tmp_path / "dataset"), "output_dir": str(tmp_path / "out"), "rqvae_path": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(moved))
    before = contents(tmp_path / "out")
    err = fails(capsys, COMMANDS["run"], f"--config={tmp_path / 'config.yaml'}", "--resume=auto")
    assert re.search(
        r"tiny/r: is finished, and was trained on other data than 'tiny' now holds.* another run_name", err
    )
    err = fails(capsys, COMMANDS["main"], f"--config={tmp_path / 'config.yaml'}", "--resume=auto")
    assert "was trained on other data than 'tiny' now holds" in err
    assert contents(tmp_path / "out") == before


def test_a_baseline_that_was_not_asked_for_at_first_is_trained_later(finished, capsys, tmp_path):
    config, folder = finished
    shutil.copytree(folder.parent, tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "r-two_stage")
    rows = read_json(tmp_path / "tiny" / "r" / "baselines.json")
    want = rows.pop("two_stage")
    write_json(tmp_path / "tiny" / "r" / "baselines.json", rows)
    COMMANDS["run"]([f"--config={config}", "--resume=auto", f"--output_dir={tmp_path}"])
    found = read_json(tmp_path / "tiny" / "r" / "baselines.json")["two_stage"]
    assert found["ndcg@10"] == want["ndcg@10"]


# ---------------------------------------------------------------- whose files these are

SAME = {"method": "sasrec", "hidden_units": 4, "epochs": 3}


def interrupted(ground, root, monkeypatch, **changes):
    """A run stopped in its second epoch: one look, a best model, states."""
    fit = fit_of(ground, root, **SAME, save_steps=1, **changes)
    step = fit.step

    def stops(parts):
        if fit.progress.step == fit.steps_per_epoch + 2:
            raise KeyboardInterrupt
        return step(parts)

    monkeypatch.setattr(fit, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        fit.train()
    return fit.run


def go_on(ground, root):
    fit = fit_of(ground, root, **SAME, save_steps=1, resume="auto")
    fit.train()
    finish(fit.cfg, fit.data, fit, fit.run)
    return fit


def taken_from(name):
    def move(ours, theirs):
        shutil.copytree(theirs / name, ours / name, dirs_exist_ok=True) if (theirs / name).is_dir() else shutil.copy2(
            theirs / name, ours / name
        )

    return move


def newest_state_only(ours, theirs):
    newest = max((theirs / "last").glob("*.pth"))
    shutil.copy2(newest, ours / "last" / newest.name)


def without_best(ours, theirs):
    (ours / "best_model.pth").unlink()


def older_best(ours, theirs):
    """The file of an earlier look of the same run, as a backup may hold it."""
    state = torch.load(ours / "best_model.pth", weights_only=True)
    torch.save(state | {"epoch": -1}, ours / "best_model.pth")


MIXED = {
    "its states": (taken_from("last"), r"last/step-\d+\.pth: was written by another run \('\w+'\) than"),
    "its newest state": (newest_state_only, r"last/step-\d+\.pth: was written by another run"),
    "its best model": (taken_from("best_model.pth"), r"best_model\.pth: was written by another run"),
    "its name": (taken_from("run.json"), r"last/step-\d+\.pth: was written by another run"),
    "no best model": (without_best, r"best_model\.pth: no such checkpoint"),
    "an older best model": (older_best, r"best_model\.pth: is of epoch -1, the best of this run was epoch 0"),
}


@pytest.fixture(scope="module")
def two_interrupted(ground, tmp_path_factory):
    """The folders of two runs of the same options."""
    root = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        return [interrupted(ground, root / name, patch).path for name in "ab"]


@pytest.mark.parametrize("kind", MIXED)
def test_files_of_another_run_are_refused_before_anything_is_trained(ground, two_interrupted, tmp_path, kind):
    mix, said = MIXED[kind]
    ours = shutil.copytree(two_interrupted[0], tmp_path / "tiny" / "r")
    mix(ours, two_interrupted[1])
    before = contents(ours)
    with pytest.raises(Problem, match=said):
        go_on(ground, tmp_path)
    assert contents(ours) == before


def test_a_best_model_swapped_at_the_very_end_is_refused(ground, tmp_path):
    fits = [fit_of(ground, tmp_path / n, **SAME) for n in "ab"]
    for fit in fits:
        fit.train()
    shutil.copy2(fits[1].run.best, fits[0].run.best)
    with pytest.raises(Problem, match=r"best_model\.pth: was written by another run"):
        finish(fits[0].cfg, fits[0].data, fits[0], fits[0].run)
    assert not fits[0].run.looks.exists()


@pytest.mark.parametrize(("again", "best"), [([0.3], (0.3, 2)), ([0.15], (0.15, 2))])
def test_a_best_model_newer_than_the_state_competes_with_nobody(ground, tmp_path, monkeypatch, again, best):
    """Killed after a look and before the state that tells of it: what epoch 1 had is overwritten, whatever comes."""
    fit = fit_of(ground, tmp_path, **SAME)
    without_training(fit, monkeypatch, [0.1, 0.2, 0.3])
    fit.train()
    max(fit.run.states.glob("*.pth")).unlink()
    assert fit.run.load_state()["progress"]["best_epoch"] == 1 < fit.progress.best_epoch
    resumed = fit_of(ground, tmp_path, **SAME, lr_rec=1e-4, resume="auto", resume_with_changes=True)
    without_training(resumed, monkeypatch, again)
    resumed.train()
    assert (resumed.progress.best, resumed.progress.best_epoch) == best and resumed.run.changed
    assert torch.load(resumed.run.best, weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(("change", "best"), [({"valid_metric": "ndcg@5"}, (0.05, 1)), ({"mask_seen": True}, (0.05, 1)),
                                              ({"lr_rec": 1e-4}, (0.2, 0))])  # fmt: skip
def test_a_best_score_of_another_validation_competes_with_nobody(ground, tmp_path, monkeypatch, change, best):
    """What was best by one metric is not held against figures of another."""
    fit = fit_of(ground, tmp_path, **SAME | {"epochs": 1})
    without_training(fit, monkeypatch, [0.2])
    fit.train()
    resumed = fit_of(ground, tmp_path, **SAME | {"epochs": 2} | change, resume="auto", resume_with_changes=True)
    without_training(resumed, monkeypatch, [0.05])
    resumed.train()
    assert (resumed.progress.best, resumed.progress.best_epoch) == best


def test_what_a_begun_network_cannot_change_is_refused(ground, tmp_path, monkeypatch):
    fit = fit_of(ground, tmp_path, **SAME | {"epochs": 1})
    without_training(fit, monkeypatch, [0.2])
    fit.train()
    for told in (True, False):
        with pytest.raises(Problem, match="num_heads: 2 -> 4: a network that has begun cannot change it"):
            fit_of(ground, tmp_path, **SAME | {"num_heads": 4}, resume="auto", resume_with_changes=told)


# ---------------------------------------------------------------- an end that fails


def breaking(name, fault="a fault of our own"):
    """Let one thing of the end fail in a way that nobody foresaw."""

    def arm(monkeypatch):
        def fail(*args, **kwargs):
            raise RuntimeError(fault)

        monkeypatch.setattr(name, fail)

    return arm


def full_disk(ending):
    def arm(monkeypatch):
        inner = utils.write_atomic

        def write(path, content):
            if path.name.endswith(ending):
                raise Problem(f"{path}: cannot be written (No space left on device)")
            inner(path, content)

        monkeypatch.setattr("utils.write_atomic", write)

    return arm


def evaluation_fails(title, error):
    def arm(monkeypatch):
        inner = main.evaluate

        def look(*args):
            found = inner(*args)
            if args[-1] == title:
                raise error
            return found

        monkeypatch.setattr("main.evaluate", look)

    return arm


ENDS = {
    "SIDs": breaking("main.write_index"),
    "baselines": breaking("main.baseline_figures"),
    "figures of the codes": breaking("model.GenerativeModel.figures"),
    "no room for the SIDs": full_disk("tiny.index.json"),
    "no room for the baselines": full_disk("baselines.json"),
    "no room for the count": full_disk("test_looks.json"),
    "no room for its name": full_disk("run.json"),
    "no room for the ranks": full_disk("ranks-test.npy"),
    "no room for the results": full_disk("test.json"),
    "stopped in a baseline": evaluation_fails("popularity", Stopped(15)),
    "stopped in the test": evaluation_fails("test", Stopped(15)),
    "out of memory in the test": evaluation_fails("test", Problem("out of memory on a single user")),
    "a fault in the test": evaluation_fails("test", RuntimeError("a fault")),
}


@pytest.fixture(scope="module")
def trained_through(ground, tmp_path_factory):
    """(the options, the folder) of a run of which only the end is left."""
    same = {"method": "two_stage", "epochs": 1}
    fit = fit_of(ground, tmp_path_factory.mktemp("through"), **same)
    fit.train()
    return same, fit.run.path


@pytest.mark.parametrize("kind", ENDS)
def test_an_end_that_failed_is_repeated_without_a_second_look(ground, trained_through, tmp_path, monkeypatch, kind):
    same, folder = trained_through
    shutil.copytree(folder, tmp_path / "tiny" / "r")
    fit = fit_of(ground, tmp_path, **same, resume="auto")
    fit.train()
    for _ in range(2):  # it fails again when it is resumed
        with monkeypatch.context() as patch:
            ENDS[kind](patch)
            with pytest.raises((RuntimeError, Problem, Stopped)):
                finish(fit.cfg, fit.data, fit, fit.run)
        assert not fit.run.finished
        fit = fit_of(ground, tmp_path, **same, resume="auto")
        fit.train()
    finish(fit.cfg, fit.data, fit, fit.run)
    assert fit.run.results()["test_evaluations"] == read_json(fit.run.looks) == 1
    named = {"tiny.index.json", "baselines.json", "environment.json", "ranks-test.npy", "test.json", "config.yaml"}
    assert named <= {p.name for p in fit.run.path.iterdir()}


def test_a_floor_that_runs_out_of_memory_costs_its_own_row(ground, tmp_path, monkeypatch):
    fit = fit_of(ground, tmp_path, method="two_stage", epochs=1)
    fit.train()
    breaking("recommenders.baselines.Content.__init__", RuntimeError("DefaultCPUAllocator: can't allocate memory"))(
        monkeypatch
    )
    inner, lost = main.evaluate, Problem("out of memory on a single user")
    evaluation_fails("popularity", lost)(monkeypatch)
    assert main.baseline_figures(fit.cfg, fit.data, fit.acc) == {}
    monkeypatch.setattr("main.evaluate", inner)
    assert set(main.baseline_figures(fit.cfg, fit.data, fit.acc)) == {"popularity"}


def test_runs_of_unlike_precision_in_one_process(ground):
    for precision in ("no", "bf16", "no"):
        acc = main.accelerator(configure.build({**ground[0], "mixed_precision": precision}))
        assert acc.mixed_precision == precision


def test_other_looks_and_other_results_count(ground, tmp_path):
    run = fit_of(ground, tmp_path, method="sasrec", hidden_units=4).run
    assert [run.look_once("a"), run.look_once("a"), run.look_at_test(), run.look_once("a")] == [1, 1, 2, 2]
    assert [run.look_once("b"), run.look_once("b"), run.look_at_test()] == [3, 3, 4]


def test_levels_have_names_however_many():
    names = [letters(i) for i in range(1000)]
    assert names[:3] + names[25:29] + names[701:703] == ["a", "b", "c", "z", "aa", "ab", "ac", "zz", "aaa"]
    assert len(set(names)) == 1000


@pytest.mark.parametrize("levels", [25, 26, 27, 40])
def test_the_index_of_many_levels(tmp_path, levels):
    cfg = configure.build({"num_emb_list": [2] * levels, "sk_epsilons": [0.0] * levels, "d_model": 4, "num_heads": 1,
                          "d_kv": 4, "d_ff": 4, "encoder_layers": 1, "decoder_layers": 1, "dataset": "deep",
                          "method": "two_stage"})  # fmt: skip
    model = build.empty_model(cfg, 3)
    model.set_codes(torch.arange(3)[:, None] >> torch.arange(levels) & 1)
    main.write_index(RunFolder(tmp_path), cfg, model)
    sids = read_json(tmp_path / "deep.index.json")
    assert {len(set(sid)) for sid in sids.values()} == {levels + 1}
    assert [int(x.strip("<>").split("_")[1]) for x in sids["2"]] == model.sids.token_NP[2].tolist()


def test_equal_weights_have_equal_fingerprints():
    a = {"x": torch.arange(4.0), "n": torch.tensor(3), "h": torch.ones(2, 2, dtype=torch.bfloat16)}
    b = {k: a[k].clone() for k in reversed(a)}
    assert fingerprint(a) == fingerprint(b)
    changed = [b | {"x": torch.arange(4)}, b | {"x": torch.arange(4.0).view(2, 2)}, b | {"n": torch.tensor(4)}]
    assert len({fingerprint(x) for x in [a, *changed]}) == 4


# ---------------------------------------------------------------- a folder that goes away


def emptied(folder):
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def another_run_instead(folder):
    """Removed, and begun again by somebody who knows nothing of this process."""
    options = configure.load(folder / "config.yaml")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(settings.dump(options))
    write_json(folder / "run.json", {"run": "0123456789abcdef"})


GONE = {
    "removed": shutil.rmtree,
    "removed with all runs": lambda folder: shutil.rmtree(folder.parent),
    "moved away": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "emptied": emptied,
    "a file now": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "another run's": another_run_instead,
    "without its configuration": lambda folder: (folder / "config.yaml").unlink(),
    "without its name": lambda folder: (folder / "run.json").unlink(),
}
# where in the run: the function before which it happens
WHEN = {
    "in a step": "trainer.Trainer.step",
    "before a look": "trainer.Trainer._validate",
    "before the best model": "runs.folder.RunFolder.save_best",
    "before a row": "trainer.Trainer._record",
    "before the end": "main.finish",
    "before the baselines": "main.baseline_figures",
    "before the SIDs": "main.write_index",
    "before the ranks": "main.save_ranks",
    "before the results": "runs.folder.RunFolder.save_results",
}


@pytest.mark.parametrize(("kind", "when"), [*((k, "in a step") for k in GONE), *(("emptied", w) for w in WHEN)])
def test_a_folder_that_goes_away_ends_the_run_with_one_line(tiny_data, tmp_path, monkeypatch, capsys, kind, when):
    tiny_data()
    options = tiny_overrides(tmp_path) | {"method": "sasrec", "hidden_units": 4, "run_name": "r", "epochs": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    folder = tmp_path / "out" / "tiny" / "r"
    owner, name = WHEN[when].rsplit(".", 1)
    place = pkgutil.resolve_name(owner)
    inner, left = getattr(place, name), []

    def gone(*args):
        if not left:
            GONE[kind](folder)
            left.append(contents(tmp_path / "out"))
        return inner(*args)

    monkeypatch.setattr(place, name, gone)
    err = fails(capsys, main.main, f"--config={tmp_path / 'config.yaml'}")
    assert re.search(r"tiny/r(/best_model\.pth)?: (the run folder was removed or replaced|no such checkpoint)", err), (
        err
    )
    assert contents(tmp_path / "out") == left[0]  # nothing was made again


def test_nothing_makes_a_folder_again(tmp_path):
    with pytest.raises(Problem, match=r"b/c: cannot be written, the folder .*b is not there \(any more\)"):
        utils.write_text(tmp_path / "b" / "c", "text")
    assert not list(tmp_path.iterdir())


def test_two_runs_of_one_second_have_names_of_their_own():
    names = {utils.now() for _ in range(3) if not time.sleep(0.002)}
    assert len(names) == 3 and all(re.fullmatch(r"\d{8}-\d{6}-\d{3}", name) for name in names)
