"""The life of a run: when it stops, what it may go on from, what it leaves behind when something breaks."""

import numpy as np
import pytest
from test_trainer import fit_of

from trainer import Evaluation, Progress

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
        return Evaluation(np.zeros(users, np.int32), {"ndcg@10": next(found)})

    monkeypatch.setattr("trainer.evaluate", look)
    monkeypatch.setattr(fit, "_epoch", lambda: {"loss": 0.0})
    monkeypatch.setattr(fit, "say", lambda row, best: None)
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
    again = fit_of(ground, tmp_path, **changes, early_stop=early_stop, resume="auto")
    more = without_training(again, monkeypatch, [])
    again.train()
    assert more == [] and again.progress == fit.progress


def test_a_state_without_a_note_of_its_looks_stays_stopped(ground, tmp_path, monkeypatch):
    changes = {"method": "sasrec", "hidden_units": 4, "epochs": 12, "eval_step": 3, "early_stop": 1}
    fit = fit_of(ground, tmp_path, **changes)
    without_training(fit, monkeypatch, [0.1, 0.1])
    fit.train()
    state = fit.run.load_state()
    del state["progress"]["looked"]
    fit.run.save_state(state, fit.progress.step)
    again = fit_of(ground, tmp_path, **changes, resume="auto")
    more = without_training(again, monkeypatch, [])
    again.train()
    assert more == [] and again.progress.epoch == 6


def test_nothing_is_out_of_patience_before_the_first_look():
    assert not any(Progress(epoch=e).out_of_patience(1) for e in range(50))
