"""The loop: learns, gives the same result however a batch is cut, goes on after a stop."""

import functools
import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_overrides
from helpers import LM, Fixed, assert_same_state, evaluated, fit_of, rows

from compose import build, configure, parts
from evaluation import save_ranks
from metrics import recall
from readers.dataset import Catalogue, Dataset
from readers.splits import leave_one_out
from runs import report
from runs.folder import RunFolder
from runs.report import epoch_line
from trainer import TrainOptions, learning_rate

# ---------------------------------------------------------------- the same result

RQ = {
    "recommender": "rq_transformer", "item_dropout": 0, "depth_dropout": 0, "legal_softmax": True,
    "assignment_forward": "history", "label_prior": "usage",
}  # fmt: skip
LATENT = {"label_prior": "prefix", "latent_loss": 1.0, "lr_offset": 1e-3, "offset_prior": 0.1}
SPLIT = {"frqud": {}, "sdud": {"auto_lambda_mode": "adaptive"}, "frqud_sdud": {}, "gumbel": RQ, "none": RQ | LATENT,
         **{name: {"recommender": name, "uncertainty": "frqud", **lm} for name, lm in LM.items()}}  # fmt: skip


@pytest.mark.parametrize("kind", SPLIT)
def test_a_batch_cut_into_parts_gives_the_same_training(ground, tmp_path, kind):
    """Accumulated parts and token-budget parts against the whole batch, in float64, noise on."""
    same = {"uncertainty": kind, "dropout_rate": 0, "lr_id": 1e-3, "epochs": 2, "eval_step": 2}
    same |= {"hot_threshold_ratio": 1.0, "batch_size": 64, **SPLIT[kind]}
    cuts = {"whole": {}, "parts": {"batch_size": 32, "gradient_accumulation_steps": 2}, "budget": {"token_budget": 500}}
    whole, *others = (fit_of(ground, tmp_path / name, **same | cut) for name, cut in cuts.items())
    for fit in (whole, *others):
        fit.raw.double()
        fit.train()
    for fit in others:
        assert whole.steps_per_epoch == fit.steps_per_epoch
        assert_same_state(whole, fit, atol=1e-9)
        assert [r["loss/rec"] for r in rows(whole)] == pytest.approx([r["loss/rec"] for r in rows(fit)], abs=1e-6)


@pytest.mark.parametrize("kind", [{"sasrec_loss": "ce_all"}, {"sasrec_loss": "ce_last"}, {"method": "diffsasrec"}])
@pytest.mark.parametrize("cut", [{"batch_size": 16, "gradient_accumulation_steps": 2}, {"token_budget": 40}])
def test_sequences_cut_into_parts_give_the_same_training(ground, tmp_path, kind, cut):
    same = {"method": "sasrec", **kind, "hidden_dropout": 0, "hidden_units": 16, "batch_size": 32}
    fits = [fit_of(ground, tmp_path / n, **{**same, **c}) for n, c in (("a", {}), ("b", cut))]
    for fit in fits:
        fit.raw.double()
        fit.train()
    assert_same_state(*fits, atol=1e-9)


@pytest.mark.parametrize("kind", [{}, RQ | {"item_dropout": 0.2}, {"method": "sasrec"}, {"method": "diffsasrec"}])
def test_two_runs_are_identical_and_another_seed_differs(ground, tmp_path, kind):
    fits = [fit_of(ground, tmp_path / n, seed=s, batch_size=64, **kind) for n, s in (("a", 1), ("b", 1), ("c", 2))]
    for fit in fits:
        fit.train()
    assert rows(fits[0]) == rows(fits[1])
    assert_same_state(fits[0], fits[1])
    assert rows(fits[0]) != rows(fits[2])


@pytest.fixture(scope="module")
def whole_runs(ground, tmp_path_factory):
    """whole_runs(method) -> (the options of a run of four steps an epoch, the run that nobody stopped)."""

    @functools.cache
    def made(method):
        changes = {"uncertainty": "frqud_sdud", "save_steps": 2, "epochs": 3, "lr_id": 1e-3, "batch_size": 64}
        changes |= {"recommender": method, **LM[method]} if method in LM else {"method": method}
        fit = fit_of(ground, tmp_path_factory.mktemp("whole"), **changes)
        fit.train()
        return changes, fit

    return made


@pytest.mark.parametrize(
    ("method", "stop_at"),
    [("diger", 3), ("diger", 7), ("diger", 8), ("sasrec", 4), ("diffsasrec", 4), ("diffsasrec", 7),
     ("causal_lm", 7), ("seq2seq_lm", 7)],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(ground, tmp_path, whole_runs, method, stop_at, monkeypatch):
    """Stopped in a step of the first or second epoch, or before the third; states are saved every two steps."""
    changes, whole = whole_runs(method)
    assert whole.steps_per_epoch == 4
    broken = fit_of(ground, tmp_path, **changes)
    step = broken.step

    def stops(parts):
        if broken.progress.step == stop_at:
            raise KeyboardInterrupt
        return step(parts)

    monkeypatch.setattr(broken, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = fit_of(ground, tmp_path, **changes, resume="auto")
    resumed.train()
    assert resumed.progress == whole.progress
    assert_same_state(resumed, whole)
    assert rows(resumed) == rows(whole)


# ---------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize("method", ["two_stage", "diger", "sasrec"])
def test_learns_a_chain(tmp_path, method):
    """Item i is always followed by item i + 1: a correct pipeline puts it first."""
    n, random = 24, np.random.default_rng(0)
    lengths = random.integers(4, 12, 150)
    offsets = np.concatenate([[0], lengths.cumsum()])
    items = np.concatenate([(random.integers(n) + np.arange(x)) % n + 1 for x in lengths]).astype(np.int32)
    parts = leave_one_out(items, offsets, [""] * 150, "refuse", tmp_path)
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32))
    data = Dataset(
        "chain", Catalogue([str(i) for i in range(n)], [""] * n), parts.train, parts.valid, parts.test, np.ones(n + 1),
        tmp_path / "e.npy", "h", "h",
    )  # fmt: skip
    options = tiny_overrides(tmp_path) | {
        "dataset": "chain", "method": method, "epochs": 40, "lr_rec": 5e-3, "lr_id": 1e-4, "eval_step": 40,
        "dropout_rate": 0, "d_model": 32, "rqvae_epochs": 20, "hidden_dropout": 0,
    }  # fmt: skip
    cfg = configure.build(options)
    fit = fit_of((options | {"rqvae_path": str(build.train_tokenizer(cfg, data))}, data), tmp_path / "out")
    fit.train()
    assert evaluated(fit.raw, data.test, fit.cfg, fit.acc, "test").figures["recall@1"] > 0.85


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
def test_every_user_is_counted_once_whatever_the_batch(ground, tmp_path, size):
    options, data = ground
    cfg = configure.build(options | {"eval_batch_size": size, "metrics": ["recall@10", "ndcg@10", "coverage@10"]})
    found = evaluated(Fixed(), data.test, cfg, Accelerator(cpu=True), "test")
    target = data.test.items[data.test.position]
    assert found.rank.tolist() == np.where(target <= 10, target - 1, 10).tolist()
    assert found.figures["recall@10"] == pytest.approx((target <= 10).mean())
    assert found.figures["coverage@10"] == 10 / 40
    assert found.figures["num_users"] == 60


@pytest.mark.parametrize("k", [127, 128, 32_767, 32_768, 40_000, 65_535, 65_536, 70_000])
def test_a_miss_stays_a_miss_at_any_cut_off(ground, tmp_path, k):
    """Ranks keep their value in memory and on disk, whatever the length of the list."""
    options, data = ground
    cfg = configure.build(options | {"num_beams": k, "metrics": [f"recall@{k}"], "valid_metric": f"recall@{k}"})

    class Ten(Fixed):
        def recommend(self, history, k, excluded=None, among=None):
            return super().recommend(history, 10)

    found = evaluated(Ten(), data.test, cfg, Accelerator(cpu=True), "test")
    target = data.test.items[data.test.position]
    run = RunFolder(tmp_path)
    save_ranks(run, "test", found, data.test.users())
    saved = np.load(tmp_path / "ranks-test.npy")[1]
    assert found.rank.tolist() == saved.tolist() == np.where(target <= 10, target - 1, k).tolist()
    assert float(recall(torch.from_numpy(saved), k).mean()) == found.figures[f"recall@{k}"] < 1


def test_floors_recommend_what_they_say(ground):
    _, data = ground
    history = torch.tensor([[0, 0, 3, 7], [1, 2, 3, 4]])
    popular = parts.BASELINES["popularity"](data).recommend(history, 40).item_BW[0]
    counts = np.zeros(41)
    for u in range(len(data.test.offsets) - 1):  # all but a user's last two
        np.add.at(counts, data.test.items[data.test.offsets[u] : data.test.offsets[u + 1] - 2], 1)
    assert counts[popular].tolist() == sorted(counts[1:], reverse=True)

    x = np.load(data.embedding_path)
    query = x[[2, 6]].mean(0)
    cosine = x @ query / np.linalg.norm(x, axis=1)
    content = parts.BASELINES["content"](data)
    assert content.recommend(history, 5).item_BW[0].tolist() == (np.argsort(-cosine)[:5] + 1).tolist()
    excluded = torch.tensor([[3, 7], [1, 2]])
    assert not set(content.recommend(history, 38, excluded).item_BW[0].tolist()) & {3, 7}


# ---------------------------------------------------------------- small parts


def test_learning_rate_by_hand():
    t = configure.build({"warmup_steps": 4})[TrainOptions]
    factor = learning_rate(t, 24, 24, range(1).__contains__)
    assert [factor(s) for s in (0, 1, 3)] == pytest.approx([0.2, 0.4, 0.8])
    assert factor(14) == pytest.approx(0.5)  # half way down the cosine
    assert factor(24) == 0.0
    rests = learning_rate(t, 24, 2, range(3, 5).__contains__)
    assert [rests(s) > 0 for s in (5, 6, 9, 10)] == [False, True, True, False]


def test_reachable_movement_is_rate_times_the_schedules_sum(ground, tmp_path):
    fit = fit_of(ground, tmp_path, lr_id=1e-3, warmup_steps=0, epochs=4, id_first_epoch=1)
    done = np.arange(fit.steps_per_epoch, 4 * fit.steps_per_epoch) / (4 * fit.steps_per_epoch)  # it rests in epoch 0
    assert fit.reachable["id"] == pytest.approx(1e-3 * ((1 + np.cos(np.pi * done)) / 2).sum())


def test_the_epoch_line_is_one_line():
    row = {"epoch": 1, "loss": 1.0, "loss/rec": 0.5, "valid/ndcg@10": 0.1, "samples_per_s": 10.0, "seconds": 2.0}
    assert "\n" not in epoch_line(row, best=True) and "N@10 0.1000*" in epoch_line(row, best=True)


def test_the_epoch_line_fits_a_screen():
    """All that a joint run of three levels of 256 codes has to say, late in a long run; and of eight levels."""
    row = {"epoch": 119, "loss": 2.34567, "loss/rec": 2.3456, "valid/recall@10": 0.1, "valid/ndcg@10": 0.1,
           "collision_rate": 0.1, "noise_scale": 1.0, "stochastic_share": 0.2, "sid_changed": 0.1,
           "samples_per_s": 123456.0, "seconds": 123.0}  # fmt: skip
    for levels in (3, 8):
        codes = {f"codes_used/level_{i}": 256 for i in range(1, levels + 1)}
        line = epoch_line(row | codes | {k.replace("codes_used", "perplexity"): 255.0 for k in codes}, best=True)
        assert len(line) <= 120 and "changed" in line and "N@10 0.1000*" in line
        assert ("codes 256" in line) == (levels == 3)


def test_the_proof_is_said_at_the_start_and_when_it_changes(caplog):
    say, row = report.EpochLog(), {"epoch": 0, "loss": 1.0, "loss/rec": 1.0, "samples_per_s": 1.0, "seconds": 1.0}
    logger = logging.getLogger("diger")
    caplog.set_level(logging.INFO)
    logger.propagate, logger.level = True, logging.INFO
    told = []
    for history, target in ((0.1, 0.2), (0.5, 0.9), (0.02, 0.2), (0.001, 0.2), (0.001, 0.0), (0.001, 0.0)):
        caplog.clear()
        say(row | {"grad/level_1/history": history, "grad/level_1/target": target}, False)
        told.append("level 1: history" in caplog.text)
    assert told == [True, False, False, True, True, False]


def test_a_miss_stays_a_miss_when_the_list_is_short(ground, tmp_path):
    """Fewer candidates than the cut-off: the rest of the list is empty, not a hit."""
    options, data = ground
    cfg = configure.build(options | {"num_beams": 10})

    class Three(Fixed):
        def recommend(self, history, k, excluded=None, among=None):
            return super().recommend(history, 3)

    target = data.test.items[data.test.position]
    found = evaluated(Three(), data.test, cfg, Accelerator(cpu=True), "test").figures
    assert found["recall@10"] == pytest.approx((target <= 3).mean())
