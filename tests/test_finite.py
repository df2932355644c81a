"""Numbers that are not finite: never ranked first, never saved to be gone on from, never printed as a result."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import Fixed, evaluated, fails, fit_of

import main
from compose import build, configure, parts
from evaluation import NotFinite
from recommenders.protocol import TopK, unsound
from utils import Problem, check_weights, not_finite

NAN, INF = math.nan, math.inf

# ---------------------------------------------------------------- scores

SCORES = [  # a user's list, sound where nothing was excluded, sound where something was
    ([0.0, -1.0, -2.0], True, True),
    ([-1.0, -INF, -INF], True, True),  # beams that found no item
    ([-INF, -INF, -INF], False, True),
    ([NAN, 0.0, -1.0], False, False),
    ([0.0, -1.0, NAN], False, False),
    ([INF, 0.0, -1.0], False, False),
    ([INF, -INF, -INF], False, False),
    ([NAN, NAN, NAN], False, False),
    ([3e38, -3e38, -3.4e38], True, True),
]


@pytest.mark.parametrize(("scores", "free", "excluded"), SCORES)
def test_which_lists_mean_something(scores, free, excluded):
    x = torch.tensor([[0.0, -1.0, -2.0], scores])
    assert unsound(x, excluded=False).tolist() == [False, not free]
    assert unsound(x, excluded=True).tolist() == [False, not excluded]


@pytest.mark.parametrize("scores", [s for s, free, _ in SCORES if not free])
def test_an_evaluation_with_one_such_user_is_no_result(ground, scores):
    options, data = ground
    cfg = configure.build(options | {"metrics": ["recall@3"], "valid_metric": "recall@3"})

    class Model(Fixed):
        free_length = 3

        def recommend(self, history, k, excluded=None, among=None):
            found = super().recommend(history, k)
            score = torch.zeros(len(history), k)
            if (history == data.test.items[0]).any():
                score[0] = torch.tensor(scores)
            return TopK(found.item_BW, score)

    with pytest.raises(NotFinite, match=r"^test: the scores of \d+ of 60 users are not finite: .*lower the learning"):
        evaluated(Model(), data.test, cfg, Accelerator(cpu=True), "test")


# ---------------------------------------------------------------- training

DIVERGES = [
    {"method": "sasrec", "lr_rec": 1e20},
    {"method": "sasrec", "lr_rec": 1e38},
    {"method": "diffsasrec", "lr_rec": 1e38},
    {"method": "diffsasrec", "lr_rec": 1e20},
    {"method": "two_stage", "lr_rec": 1e20},
    {"method": "two_stage", "lr_rec": 1e38},
    {"method": "diger", "lr_rec": 1e38},
    {"method": "diger", "lr_rec": 1e20},
    {"method": "diger", "lr_id": 1e38},
    {"method": "diger", "lr_id": 1e38, "freeze_id_encoder": False},
    {"method": "diger", "uncertainty": "sdud", "lr_sigma": 1e38},
]


@pytest.mark.parametrize("steps", ["one step an epoch", "several"])
@pytest.mark.parametrize("changes", DIVERGES, ids=str)
def test_a_run_that_diverges_ends_with_a_problem_and_leaves_nothing_broken(ground, tmp_path, changes, steps):
    """Whether the last update of an epoch breaks the weights or the scores, or an earlier one does."""
    size = {"batch_size": 4096} if steps == "one step an epoch" else {}
    same = {"hidden_units": 8, "warmup_steps": 0, "weight_decay": 0.0, "epochs": 3, **size}
    fit = fit_of(ground, tmp_path, **same, **changes)
    try:
        fit.train()
    except Problem as e:
        text = str(e)
        assert "\n" not in text and any(words in text for words in ("not finite", " is nan", " is inf"))
    else:  # Adam's steps may leave a codebook far away and whole
        assert not not_finite(fit.raw.state_dict())
    for path in [*fit.run.states.glob("*.pth"), *fit.run.path.glob("best_model.pth")]:
        assert not not_finite(torch.load(path, weights_only=True)["model"])


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_a_run_that_diverged_goes_on_with_lower_rates(ground, tmp_path, lr):
    same = {"method": "sasrec", "hidden_units": 8, "warmup_steps": 0, "epochs": 2, "batch_size": 4096}
    broken = fit_of(ground, tmp_path, **same, lr_rec=lr)
    want = (
        rf"epoch 0, after step 1: .*not finite.*lr_rec {lr:g}\).*--run_name=r --resume=auto --resume_with_changes=true"
    )
    with pytest.raises(Problem, match=want.replace("+", r"\+")):
        broken.train()
    assert not broken.run.best.exists()
    again = fit_of(ground, tmp_path, **same, lr_rec=1e-3, resume="auto", resume_with_changes=True)
    again.train()
    whole = fit_of(ground, tmp_path / "whole", **same, lr_rec=1e-3)
    whole.train()
    assert again.progress == whole.progress


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_weight_that_breaks_late_costs_only_its_epoch(ground, tmp_path, monkeypatch, value):
    """The best model and the state of the epoch before stay, and are gone on from."""
    same = {"method": "sasrec", "hidden_units": 4, "epochs": 3}
    whole = fit_of(ground, tmp_path / "whole", **same)
    whole.train()
    broken = fit_of(ground, tmp_path / "broken", **same)
    last, step = 2 * broken.steps_per_epoch, broken.step

    def breaks(parts):
        found = step(parts)
        if broken.progress.step == last - 1:
            with torch.no_grad():
                broken.raw.encoder.norm.bias[0] = value
        return found

    monkeypatch.setattr(broken, "step", breaks)
    with pytest.raises(Problem, match=rf"epoch 1, after step {last}: encoder\.norm\.bias is not finite; nothing of it"):
        broken.train()
    assert torch.load(broken.run.best, weights_only=True)["epoch"] == 0
    again = fit_of(ground, tmp_path / "broken", **same, resume="auto")
    again.train()
    assert again.progress == whole.progress


@pytest.mark.parametrize("damage", ["not finite", "torn"])
def test_a_broken_state_is_passed_over(ground, tmp_path, damage):
    fit = fit_of(ground, tmp_path, method="sasrec", hidden_units=8)
    fit.train()
    newest = max(fit.run.states.glob("*.pth"))
    if damage == "torn":
        newest.write_bytes(newest.read_bytes()[:1000])
    else:
        state = torch.load(newest, weights_only=True)
        state["model"]["encoder.norm.bias"][0] = NAN
        torch.save(state, newest)
    assert fit.run.load_state()["progress"]["epoch"] == fit.progress.epoch - 1


# ---------------------------------------------------------------- checkpoints


def break_weights(name, value):
    def change(state):
        state["model"][name].view(-1)[-1] = value

    return change


def too_large(state):
    """Every weight is finite, no score is."""
    for tensor in state["model"].values():
        if tensor.is_floating_point():
            tensor.fill_(3e38)


BROKEN = {
    "nan": break_weights("encoder.items.weight", NAN),
    "inf": break_weights("encoder.norm.weight", INF),
    "-inf": break_weights("encoder.blocks.0.qkv.bias", -INF),
    "too large": too_large,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from conftest import tiny_overrides, write_tiny

    root = tmp_path_factory.mktemp("finite")
    write_tiny(root / "dataset" / "tiny")
    options = tiny_overrides(root) | {"method": "sasrec", "hidden_units": 8, "run_name": "r", "epochs": 1}
    return main.train(configure.build(options)).best


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("command", [["evaluate"], ["evaluate", "--split=valid"], ["recommend", "--history=i1,i2"]])
def test_a_broken_checkpoint_is_refused_in_one_line(checkpoint, tmp_path, capsys, kind, command):
    state = torch.load(checkpoint, weights_only=True)
    BROKEN[kind](state)
    torch.save(state, tmp_path / "best_model.pth")
    err = fails(capsys, main.main, *command, f"--checkpoint={tmp_path / 'best_model.pth'}")
    assert ("not finite" if kind == "too large" else "NaN or infinity") in err and "learning rates" in err
    assert "nan " not in capsys.readouterr().out


def test_a_whole_checkpoint_is_not(checkpoint, capsys):
    main.main(["recommend", "--history=i1,i2", f"--checkpoint={checkpoint}", "--k=3"])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_second_stage_does_not_start_from_a_broken_one(ground, tmp_path):
    same = {"method": "diffsasrec", "hidden_units": 8, "epochs": 1}
    first = fit_of(ground, tmp_path / "first", **same)
    first.train()
    state = torch.load(first.run.best, weights_only=True)
    state["model"]["encoder.norm.bias"][0] = NAN
    torch.save(state, tmp_path / "broken.pth")
    second = {**same, "method": "diffsasrec_sft", "sft_from": str(tmp_path / "broken.pth")}
    fit = fit_of(ground, tmp_path / "second", **second)
    with pytest.raises(Problem, match=r"encoder\.norm\.bias is not finite; .*name another checkpoint"):
        fit.train()
    assert not fit.run.best.exists() and not list(fit.run.states.glob("*"))


def test_names_of_what_is_not_finite():
    state = {"a": torch.ones(2), "b": torch.tensor([1.0, NAN]), "c": torch.tensor([1]), "d": 3, "e": torch.tensor(INF)}
    assert not_finite(state) == ["b", "e"]
    check_weights("m.pth", {"a": state["a"], "n": torch.tensor([1.0], dtype=torch.bfloat16)})
    with pytest.raises(Problem, match=r"m\.pth: b and 1 more hold NaN or infinity"):
        check_weights("m.pth", state)


def test_floors_are_held_to_the_same(ground):
    options, data = ground
    cfg = configure.build(options)
    content = parts.BASELINES["content"](data)
    content.get_buffer("content_ND").fill_(np.nan)
    with pytest.raises(NotFinite):
        evaluated(content, data.test, cfg, Accelerator(cpu=True), "content")


def test_a_tokenizer_that_diverged_in_its_last_update_is_not_saved(ground, tmp_path):
    """Its losses were finite: they are those from before the update."""
    options = {"output_dir": str(tmp_path), "rqvae_lr": 1e38, "rqvae_epochs": 1, "rqvae_batch_size": 4096}
    cfg = configure.build(ground[0] | options | {"rqvae_warmup_epochs": 0})
    with pytest.raises(Problem, match=r"rqvae_lr: the tokenizer is not finite after epoch 0; lower it from 1e\+38"):
        build.train_tokenizer(cfg, ground[1])
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.rglob("report.json"))
