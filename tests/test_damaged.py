"""States, checkpoints and numbers damaged by hand: refused in one line, never trained on, never a traceback."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fit_of, one_line
from safetensors.torch import save_file

import main
import settings
from compose import build, configure
from layers import kmeans
from runs import guard
from sids import fit as pretraining
from sids.checkpoint import load_state
from utils import Problem, read_checkpoint

NAN, INF = math.nan, math.inf

# ---------------------------------------------------------------- k-means


LENGTHS = [1e-45, 1e-20, 1.0, 1e14, 1e17, 3e18, 1e19, 1e20, 1e25, 3e38, 1e39, 1e300, INF, -INF, NAN, -1e20, -1e300]


@pytest.mark.parametrize("value", LENGTHS)
def test_k_means_gives_finite_centres_or_says_why_not(value):
    """faiss ends the process where a distance leaves float32. One long row, or all; more points than codes, or fewer;
    a long row of many small numbers."""
    x = np.random.default_rng(0).normal(size=(90, 64))
    one, all_alike = x.copy(), np.broadcast_to(np.float64(value), x.shape)
    one[7, 2] = value
    for points in (one, all_alike, x * value):
        with np.errstate(over="ignore"):
            longest = np.linalg.norm(np.nan_to_num(points / 1e18, nan=9.0), axis=1).max()
        for n_codes in (5, 100):
            with np.errstate(over="ignore"):
                points_32 = points.astype(np.float32)
            try:
                assert np.isfinite(kmeans(points_32, n_codes, 2, 0)).all() and longest < 1
            except Problem as e:
                assert longest >= 1 and "embeddings" in str(e) and "normalise" in str(e) and "\n" not in str(e)


@pytest.mark.parametrize("key", ["run_name", "dataset"])
@pytest.mark.parametrize("value", [2014, 0, 1.5])
def test_a_data_set_may_be_called_2014(key, value):
    assert settings.flat(configure.build({key: value}))[key] == str(value)


def test_a_history_longer_than_any_memory_is_refused():
    with pytest.raises(Problem, match="max_his_len: must be at most") as problem:
        configure.build({"max_his_len": 10**6 + 1})
    one_line(problem)


# ---------------------------------------------------------------- the state of a training


@pytest.fixture(scope="module")
def stopped(ground, tmp_path_factory):
    """method -> (its options, its state in the middle of the second of three epochs)."""
    found = {}
    for method in ("sasrec", "two_stage", "diger"):
        small = {"hidden_units": 4} if method == "sasrec" else {}
        same = {"method": method, "epochs": 3, **small}
        fit = fit_of(ground, tmp_path_factory.mktemp(method), **same)
        step = fit.step
        fit.step = lambda parts, fit=fit, step=step: (step(parts)[0], 15 if fit.progress.step == 11 else 0)
        with pytest.raises(Exception, match="15"):
            fit.train()
        found[method] = same, fit.run.load_state(), fit.run
    return found


def put(place, value):
    """A damage: `value` (of what stands there, when it is a function) at a place of the state."""

    def change(state):
        *way, last = place
        for key in way:
            state = state[key]
        state[last] = value(state[last]) if callable(value) else value

    return change


def drop(*place):
    def change(state):
        *way, last = place
        for key in way:
            state = state[key]
        del state[last]

    return change


DAMAGES = {
    "no optimizer": drop("optimizer", "state"),
    "of another version": put(["progress", "more"], 1),
    "weights missing": drop("model", "encoder.norm.weight"),
    "weights a number": put(["model", "encoder.norm.weight"], 1.0),
    "weights of another size": put(["model", "encoder.norm.weight"], torch.ones(5)),
    **{f"{key} {value}": put([key], value) for key in ("progress", "model", "optimizer", "totals")
       for value in (None, "x", {0: 1})},
}  # fmt: skip


def refused(ground, tmp_path, same, state, **more):
    again = fit_of(ground, tmp_path, **same, resume="auto", **more)
    again.run.load_state = lambda: state
    with pytest.raises(Problem, match=r"the state does not fit .*remove it") as problem:
        again.state.resume(3)
    one_line(problem)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_state_damaged_by_hand(ground, stopped, tmp_path, damage):
    same, state, _ = stopped["sasrec"]
    state = copy.deepcopy(state)
    damage(state)
    refused(ground, tmp_path, same, state)


@pytest.mark.parametrize("method", ["sasrec", "two_stage", "diger"])
def test_a_whole_state_is_gone_on_from(ground, stopped, tmp_path, method):
    """As it was, and by a run of fewer epochs."""
    same, state, run = stopped[method]
    for more in ({}, {"epochs": 1, "resume_with_changes": True}):
        again = fit_of(ground, tmp_path / str(len(more)), **{**same, **more}, resume="auto")
        again.run.load_state, again.run.read_best = lambda: copy.deepcopy(state), run.read_best
        again.state.resume(3)
        assert again.progress.step == 12


CODES = {
    "out of range": put(["model", "code_NT"], lambda x: x + 8),
    "one for all": put(["model", "code_NT"], lambda x: x * 0),
}


@pytest.mark.parametrize("damage", CODES.values(), ids=CODES)
@pytest.mark.parametrize("method", ["two_stage", "diger"])
def test_a_state_with_semantic_ids_that_are_none(ground, stopped, tmp_path, method, damage):
    same, state, _ = stopped[method]
    state = copy.deepcopy(state)
    damage(state)
    refused(ground, tmp_path, same, state)


# ---------------------------------------------------------------- checkpoints


BESTS = {
    "missing": lambda m: m.pop("encoder.norm.bias"),
    "more": lambda m: m.update({"more": torch.zeros(1)}),
    "by number": lambda m: m.update({7: torch.zeros(1)}),
    "of another size": lambda m: m.update({"encoder.norm.bias": torch.zeros(5)}),
    "no tensor": lambda m: m.update({"encoder.norm.bias": "x"}),
}


@pytest.mark.parametrize("damage", BESTS.values(), ids=BESTS)
def test_the_best_model_is_checked_again_before_the_test(ground, tmp_path, damage):
    fit = fit_of(ground, tmp_path, method="sasrec", hidden_units=4, epochs=1)
    fit.train()
    best = torch.load(fit.run.best, weights_only=True)
    damage(best["model"])
    torch.save(best, fit.run.best)
    with pytest.raises(Problem, match=r"best_model\.pth: does not fit its run") as problem:
        main.finish(fit.cfg, ground[1], fit, fit.run)
    one_line(problem)
    assert not fit.run.looks.exists()


FIRST_STAGES = [{}, {"config": 1}, {"config": {}}, {"config": {"method": "sasrec"}}, {"items": None}, {"model": [1]}]


@pytest.mark.parametrize("damage", FIRST_STAGES, ids=str)
def test_a_second_stage_reads_its_first_with_the_same_care(ground, tmp_path, damage):
    cfg = configure.build(ground[0] | {"method": "diffsasrec", "hidden_units": 8})
    state = main.portable(cfg, ground[1]) | {"model": build.build_model(cfg, ground[1]).model.state_dict()}
    state = state | damage if damage else {}
    torch.save(state, tmp_path / "first.pth")
    second = {"method": "diffsasrec_sft", "hidden_units": 8, "sft_from": str(tmp_path / "first.pth")}
    with pytest.raises(Problem, match=r"first\.pth") as problem:
        build.build_model(configure.build(ground[0] | second), ground[1])
    one_line(problem)


# ---------------------------------------------------------------- other files and other processes


OTHER_FILES = {
    "pathlib": (lambda p: torch.save({"args": {"path": Path("x")}}, p), r"holds a pathlib\.\w+, which is code that"),
    "numpy": (lambda p: torch.save({"x": np.float64(1)}, p), r"holds a numpy\.\w.*, which is code that"),
    "a text": (lambda p: p.write_text("# DIGER\n"), "no checkpoint but another file; name a file of torch.save"),
    "safetensors": (lambda p: save_file({"x": torch.ones(2)}, p), "no checkpoint but a safetensors file"),
    "a pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "but a pointer of Git LFS"),
    "a page": (lambda p: p.write_text("<!doctype html>"), "no checkpoint but a web page"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_FILES)
def test_a_file_that_is_no_checkpoint_says_what_it_is(case, tmp_path):
    write, message = OTHER_FILES[case]
    write(tmp_path / "x.pth")
    with pytest.raises(Problem, match=r"x\.pth: .*" + message) as problem:
        read_checkpoint(tmp_path / "x.pth")
    assert "torch.load" not in one_line(problem)


def test_a_tokenizer_that_was_saved_in_its_wrapper_is_read(ground, tmp_path):
    """DistributedDataParallel puts `module.` before every name."""
    path = Path(ground[0]["rqvae_path"])
    state = torch.load(path, weights_only=True)
    wrapped = state | {"state_dict": {f"module.{k}": v for k, v in state["state_dict"].items()}}
    torch.save(wrapped, tmp_path / "x.pth")
    cfg = configure.build(ground[0])
    for p in (path, tmp_path / "x.pth"):
        model = build.empty_tokenizer(cfg, ground[1].content_ND.shape[1])
        load_state(p, model, "rqvae")
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in state["state_dict"].items())


@pytest.mark.parametrize(("begun", "message"), [
    ({"processes": 2, "global_batch": 32}, r"2 processes \(now 1\); .* or add --resume_with_changes=true"),
    ({"processes": 2, "global_batch": 64}, r"64 samples a step \(now 32\); .* --batch_size=64 --resume_with"),
    ({"processes": 1, "global_batch": 32, "data": "x"}, "was begun with other data or files; resume it with the same"),
])  # fmt: skip
def test_a_run_that_was_begun_on_other_processes_says_how_it_goes_on(ground, tmp_path, begun, message):
    state = fit_of(ground, tmp_path).state
    state._check_world(dict(state.world))
    with pytest.raises(Problem, match=message):
        state._check_world(state.world | begun)


# ---------------------------------------------------------------- the state of a pre-training


@pytest.fixture(scope="module")
def begun(ground, tmp_path_factory):
    """(configuration, path of the tokenizer, its state) of a pre-training that was stopped after 3 of 6 epochs."""
    root = tmp_path_factory.mktemp("begun")
    cfg = configure.build({k: v for k, v in ground[0].items() if k != "rqvae_path"} | {"output_dir": str(root)})
    inner = pretraining.Pretrainer._epoch

    def stop(loop, epoch):
        if epoch == 2:
            guard._asked.append(15)
        return inner(loop, epoch)

    pretraining.Pretrainer._epoch = stop
    with pytest.raises(Exception, match="15"):
        build.train_tokenizer(cfg, ground[1])
    pretraining.Pretrainer._epoch = inner
    (last,) = root.rglob("last.pth")
    return cfg, last, torch.load(last, weights_only=True)


PRETRAINED = {
    "no model": put(["model"], None),
    "no optimizer": put(["optimizer"], {}),
    "of another version": put(["best", "more"], 1),
    "weights nan": put(["model", "encoder.mlp_layers.1.bias"], lambda x: x + NAN),
    "weights missing": drop("model", "encoder.mlp_layers.1.bias"),
}


@pytest.mark.parametrize("damage", PRETRAINED.values(), ids=PRETRAINED)
def test_a_pre_training_damaged_by_hand(ground, begun, damage):
    cfg, last, state = begun
    changed = copy.deepcopy(state)
    damage(changed)
    torch.save(changed, last)
    with pytest.raises(Problem, match=r"last\.pth: not a state of this pre-training .*delete it") as problem:
        build.train_tokenizer(cfg, ground[1])
    one_line(problem)


def test_a_whole_pre_training_goes_on_and_groups_are_the_configurations(ground, begun):
    """What the saved optimizer says of rates does not count; a best tokenizer that is gone is missed."""
    cfg, last, state = begun
    changed = copy.deepcopy(state)
    changed["optimizer"]["param_groups"] = "x"
    torch.save(changed, last)
    best = last.with_name("best_collision_model.pth")
    content = best.read_bytes()
    best.unlink()
    with pytest.raises(Problem, match=r"best_collision_model\.pth: is missing"):
        build.train_tokenizer(cfg, ground[1])
    best.write_bytes(content)
    path = build.train_tokenizer(cfg, ground[1])
    ours, theirs = (torch.load(p, weights_only=True)["state_dict"] for p in (path, ground[0]["rqvae_path"]))
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
