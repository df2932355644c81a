"""`method: em`: the assignment against enumeration, the likelihoods against teacher forcing, a run that goes on."""

import itertools

import numpy as np
import pytest
import torch
from helpers import N, assert_same_state, fit_of, joint, rows

from data import make_batch
from joint import em
from sids.search import sid_key
from sids.tokenizer import Quantized
from utils import Stopped

SIZES, ALL = (3, 8), 24  # codes of each level, code tuples
EM = {"method": "em", "num_emb_list": list(SIZES), "sk_epsilons": [0.0, 0.0], "em_every": 1, "em_candidates": ALL,
      "num_beams": ALL}  # fmt: skip
NETWORKS = [{"recommender": "rq_transformer"}, {"recommender": "rq_transformer", "legal_softmax": True}, {}]


def model_of(**changes):
    """A model whose network has an opinion."""
    model = joint(**EM, **changes)
    with torch.no_grad():
        for table in model.recommender.tables:
            table.normal_(0, 0.7)
    return model.eval()


def worth(score_NM, tuple_NM, count_N, choice_N, alpha):
    """J by its definition, item by item."""
    mass = {}
    for v, m in enumerate(choice_N):
        mass[tuple_NM[v, m]] = mass.get(tuple_NM[v, m], 0) + count_N[v]
    shared = sum(m * np.log(m) for m in mass.values() if m)
    return sum(score_NM[v, m] for v, m in enumerate(choice_N)) - alpha * shared


# ---------------------------------------------------------------- the assignment


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_it_finds_the_best_assignment_that_enumeration_knows(alpha):
    """Five items, four tuples: where two items want one tuple, the penalty says who goes."""
    count_N = np.array([1, 6, 3, 2, 4])
    want_NM = np.array([[5, 0, 0, 0], [9, 7, 0, 0], [4, 4, 1, 0], [0, 0, 5, 4.5], [0, 1, 9, 2]])
    score_NM = count_N[:, None] * np.log((want_NM + 0.5) / (want_NM + 0.5).sum(1, keepdims=True))
    score_NM = score_NM + np.random.default_rng(0).normal(0, 0.1, score_NM.shape)  # no ties
    key_NM = np.stack([np.roll(np.arange(4), -i) for i in (3, 3, 0, 1, 1)])
    score_NM = np.take_along_axis(score_NM, key_NM, 1)
    found = em.maximise(key_NM, score_NM, count_N, alpha, 99)
    every = list(itertools.product(range(4), repeat=5))
    best = max(every, key=lambda choice: worth(score_NM, key_NM, count_N, choice, alpha))
    assert found.choice_N.tolist() == list(best)
    assert found.objective[-1] == pytest.approx(worth(score_NM, key_NM, count_N, best, alpha))
    assert found.objective[0] == pytest.approx(worth(score_NM, key_NM, count_N, [0] * 5, alpha)) != found.objective[-1]


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_never_falls_and_ends_where_no_item_gains_alone(seed):
    random = np.random.default_rng(seed)
    key_NM, count_N = random.integers(0, 40, (200, 6)), random.integers(0, 9, 200)
    score_NM = -random.exponential(3.0, (200, 6)) * count_N[:, None]
    found = em.maximise(key_NM, score_NM, count_N, 1.0, 999)
    assert len(found.objective) > 2 and (np.diff(found.objective) >= -1e-9).all()
    end = worth(score_NM, key_NM, count_N, found.choice_N, 1.0)
    assert end == pytest.approx(found.objective[-1])
    gains = []
    for v, m in itertools.product(range(200), range(6)):
        other = found.choice_N.copy()
        other[v] = m
        gains.append(worth(score_NM, key_NM, count_N, other, 1.0) - end)
    assert np.mean(np.array(gains) > 1e-9) < 6 * em.FEW  # the last sweep moved hardly anybody


def test_a_tuple_holds_no_more_items_than_there_are_dedup_tokens():
    key_NM = np.stack([np.arange(6), np.full(6, 7)], 1)
    score_NM = np.stack([np.full(6, -9.0), np.arange(6) / 10], 1)
    found = em.maximise(key_NM, score_NM, np.ones(6, int), 0.0, 4)
    assert found.choice_N.sum() == 4


def test_an_item_without_a_context_keeps_its_codes():
    found = em.maximise(np.array([[0, 1], [0, 1]]), np.array([[-5.0, 0.0], [-5.0, 0.0]]), np.array([0, 1]), 1.0, 9)
    assert found.choice_N.tolist() == [0, 1]


def test_candidates_are_the_tuples_of_most_weight_together():
    found = em.best_keys(
        np.array([1, 1, 1, 0, 1, 1]), np.array([5, 3, 5, 3, 8, 9]), np.array([0.3, 0.4, 0.3, 1.0, 0.1, 0.9]),
        np.array([3, 9, 4]), 2,
    )  # fmt: skip
    assert found.tolist() == [[3, 3, 3], [9, 5, 3], [4, 4, 4]]


# ---------------------------------------------------------------- what the network thinks


def told(model, batch_history, code_XL):
    """log p(codes | history) by a pass that is forced along the codes, its softmax over the tokens that are legal or
    asked about; the whole softmax behind a prefix that nobody has.
    """
    own, legal = model.code_NT.tolist(), model.search.legal_softmax
    score, found = model.recommender.scorer(lambda item: model.sids.tokens(item).token, batch_history), []
    for code_L in code_XL.tolist():
        sum_1, token, parent = 0.0, None, None
        for level, code in enumerate(code_L):
            logits_V = score(level, token, parent)[0]
            among = {c[level] for c in own if c[:level] == code_L[:level]} if legal else set()
            among = sorted(among | {code}) if among else range(len(logits_V))
            sum_1 += float(logits_V[code] - logits_V[list(among)].logsumexp(0))
            token, parent = torch.tensor([code]), torch.tensor([0])
        found.append(sum_1)
    return found


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_likelihoods_are_sums_over_an_items_contexts(network):
    model = model_of(**network)
    split = model.contexts
    key_NM = np.tile(np.arange(ALL), (N, 1))
    found_NM = model.likelihoods(key_NM)
    want_NM = np.zeros((N, ALL))
    every_XL = em.tuple_of(torch.arange(ALL), SIZES)
    for end in split.position:
        begin = max(o for o in split.offsets if o <= end)
        history = torch.from_numpy(split.items[begin:end].astype(np.int64))[None]
        want_NM[split.items[end] - 1] += told(model, history, every_XL)
    np.testing.assert_allclose(found_NM, want_NM, rtol=1e-4, atol=1e-4)
    assert len(np.unique(found_NM.round(3))) > 20


@torch.no_grad()
def test_the_likelihood_of_the_present_codes_is_what_the_loss_says():
    """Teacher forcing, all items' own codes: L_rec over the code positions."""
    model = model_of(recommender="t5")
    own_N1 = sid_key(model.code_NT, list(SIZES)).numpy()[:, None]
    batch = make_batch(model.contexts, np.arange(len(model.contexts)), 50)
    label = Quantized(list(model.code_NT[batch.item_U - 1].long().unbind(1)))
    rec, token_UP = model.recommender, model.sids.tokens(batch.item_U).token
    embedded = rec.embed(label, token_UP)
    logits = list(rec(embedded, batch, embedded).logits)[:2]
    goal = [index[batch.target_row_B][:, None] for index in label.index]
    logp = sum(a.log_softmax(-1).gather(1, i).sum() for a, i in zip(logits, goal, strict=True))
    assert float(model.likelihoods(own_N1).sum()) == pytest.approx(float(logp), rel=1e-5)


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("network", NETWORKS)
def test_the_codes_become_the_best_that_enumeration_finds_for_one_item(network):
    """All tuples are candidates: no item gains by any move, as the objective says."""
    model = model_of(**network)
    key_NM, count_N = np.tile(np.arange(ALL), (N, 1)), np.bincount(model.contexts.targets - 1, minlength=N)
    score_NM = model.likelihoods(key_NM)
    before = sid_key(model.code_NT, list(SIZES)).numpy()
    assert model.refresh()["codes_changed"] == 0  # after the first epoch it rests
    figures = model.refresh()
    now = sid_key(model.code_NT, list(SIZES)).numpy()
    assert (now != before).mean() == pytest.approx(figures["codes_changed"]) and figures["codes_changed"] > 0.1
    end = worth(score_NM, key_NM, count_N, now, 1.0)
    start = worth(score_NM, key_NM, count_N, before, 1.0)
    assert figures["em/objective_before"] == pytest.approx(start / count_N.sum())
    assert figures["em/objective"] == pytest.approx(end / count_N.sum(), abs=1e-5)
    assert np.bincount(now, minlength=ALL).max() <= 8  # dedup tokens
    for v in np.flatnonzero(count_N):
        for key in range(ALL):
            if key != now[v] and (now == key).sum() < 8:
                other = now.copy()
                other[v] = key
                assert worth(score_NM, key_NM, count_N, other, 1.0) <= end + 1e-4


def test_the_tokenizer_rests(ground, tmp_path):
    fit = fit_of(ground, tmp_path, method="em", recommender="rq_transformer", em_every=1, epochs=3)
    before = {k: v.clone() for k, v in fit.raw.tokenizer.state_dict().items()}
    codes = fit.raw.code_NT.clone()
    fit.train()
    assert all(torch.equal(v, before[k]) for k, v in fit.raw.tokenizer.state_dict().items())
    moved = [row["codes_changed"] > 0 for row in rows(fit)]
    assert moved[0] is False and any(moved[1:]) and not torch.equal(codes, fit.raw.code_NT)


@pytest.mark.parametrize("network", [{"recommender": "rq_transformer", "legal_softmax": True}, {"recommender": "t5"}])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(ground, tmp_path, network, monkeypatch):
    options = {"method": "em", "em_every": 1, "epochs": 3, "save_steps": 1, "batch_size": 64, **network}
    whole = fit_of(ground, tmp_path / "whole", **options)
    whole.train()
    cut = fit_of(ground, tmp_path / "cut", **options)
    step, calls = cut.step, itertools.count()
    last = 2 * cut.steps_per_epoch
    monkeypatch.setattr(cut, "step", lambda parts: (step(parts)[0], 15 if next(calls) == last else 0))
    with pytest.raises(Stopped):
        cut.train()
    again = fit_of(ground, tmp_path / "cut", resume="auto", **options)
    again.train()
    assert_same_state(whole, again)
    assert rows(whole) == rows(again) and not torch.equal(whole.raw.first_NP, whole.raw.sids.token_NP)
