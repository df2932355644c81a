"""`method: etegrec`: the alignments by hand, who learns in which epoch, a run that goes on."""

import itertools

import numpy as np
import pytest
import torch
from helpers import assert_same_state, fit_of, joint, rows, some_batch

from joint.etegrec import TEMPERATURE, preference_semantic, sequence_item
from utils import Stopped

NETWORKS = [
    {"recommender": "rq_transformer", "legal_softmax": True, "item_loss": 0.5},
    {"recommender": "t5"},
]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


# ---------------------------------------------------------------- the alignments


def test_sequence_item_alignment_by_hand():
    """Two rows, two levels of three and two codes."""
    p = [[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.5, 0.5], [0.9, 0.1]]]
    s = [[[0.4, 0.4, 0.2], [0.1, 0.1, 0.8]], [[0.25, 0.75], [0.2, 0.8]]]
    want = 0.0
    for level, row in itertools.product(range(2), range(2)):
        for a, b in zip(p[level][row], s[level][row], strict=True):
            want += (a * np.log(a / b) + b * np.log(b / a)) / 4
    found = sequence_item([torch.tensor(x).log() for x in s], [torch.tensor(x).log() for x in p])
    assert float(found) == pytest.approx(want, rel=1e-5) and want > 0.1


def test_preference_semantic_alignment_by_hand():
    """Four rows of three targets; two rows with one target are not each other's negatives."""
    random = np.random.default_rng(0)
    preference, content, target = random.normal(size=(4, 5)), random.normal(size=(3, 5)), [0, 2, 0, 1]

    def s(r, u):
        a, b = preference[r], content[u]
        return a @ b / np.sqrt(a @ a * (b @ b)) / TEMPERATURE

    want = 0.0
    for r, u in enumerate(target):
        to_item = np.exp(s(r, u)) / sum(np.exp(s(r, other)) for other in range(3))
        rivals = [r, *(other for other in range(4) if target[other] != u)]
        to_row = np.exp(s(r, u)) / sum(np.exp(s(other, u)) for other in rivals)
        want -= (np.log(to_item) + np.log(to_row)) / 4
    found = preference_semantic(torch.tensor(preference), torch.tensor(content), torch.tensor(target))
    assert float(found) == pytest.approx(want, rel=1e-6)


def test_one_target_alone_has_no_negatives_and_a_finite_gradient():
    preference_RD = torch.randn(3, 4, requires_grad=True)
    loss = preference_semantic(preference_RD, torch.randn(1, 4), torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-5) and preference_RD.grad.isfinite().all()


def test_the_loss_of_a_batch_by_an_independent_formula():
    """Reconstruction, VQ and code distributions item by item in numpy, for both turns."""
    model = joint(method="etegrec", recommender="rq_transformer", item_dropout=0, depth_dropout=0,
                  sequence_alignment=0.3, preference_alignment=0.7)  # fmt: skip
    batch, t = some_batch(), model.tokenizer
    with torch.no_grad():
        loss, logs = model(batch)
        rec = model.sid_loss(batch, model.quantize(batch))
        seq_Rd = (t.centre_d + t.unit * model.sequence_head(rec.state_Rh)).numpy()
        preference_RD = model.preference_head(rec.state_Rh)
    books, scale = [c.detach().numpy() for c in t.rq.codebooks()], t.scale_L.tolist()
    vq = recon = sia = 0.0
    content = {}
    items = batch.item_U[rec.row_R].tolist()
    for item, seq in zip(items, seq_Rd, strict=True):
        with torch.no_grad():
            z = t.encoder(t.x_ND[item - 1 : item])[0].numpy()
        r, s, q = z.copy(), seq.copy(), 0
        for book, k in zip(books, scale, strict=True):
            p, other = (softmax(-k * ((x - book) ** 2).sum(1)) for x in (r, s))
            sia += ((p - other) * (np.log(p) - np.log(other))).sum() / len(books)
            code, theirs = (book[((x - book) ** 2).sum(1).argmin()] for x in (r, s))
            vq += (1 + t.cfg.beta) * ((r - code) ** 2).mean() / len(books)
            r, s, q = r - code, s - theirs, q + code
        with torch.no_grad():
            content[item] = t.decoder(torch.from_numpy(q)[None])[0]
        recon += float((content[item] - t.x_ND[item - 1]).square().mean())
    order = sorted(content)
    target_R = torch.tensor([order.index(i) for i in items])
    psa = float(preference_semantic(preference_RD, torch.stack([content[i] for i in order]), target_R))
    means = {"vq": vq / len(items), "recon": recon / len(items), "sia": sia / len(items), "psa": psa}
    for name, want in means.items():
        assert float(logs[f"loss/{name}"]) == pytest.approx(want, rel=2e-3), name
    aligned = 0.3 * means["sia"] + 0.7 * psa
    assert float(loss) == pytest.approx(float(rec.loss) + aligned, rel=1e-3)
    model.turn.fill_(1)
    with torch.no_grad():
        assert float(model(batch)[0]) == pytest.approx(means["recon"] + means["vq"] + aligned, rel=1e-3)


def test_gradients_go_where_the_turn_says():
    model = joint(method="etegrec", recommender="rq_transformer", sequence_alignment=0, preference_alignment=0)

    def reached():
        model.zero_grad()
        model(some_batch())[0].backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    parts = {name.partition(".")[0] for name in reached()}
    assert parts == {"recommender"}
    model.turn.fill_(1)
    assert {name.partition(".")[0] for name in reached()} == {"tokenizer"}
    assert {name.split(".")[1] for name in reached()} == {"encoder", "rq", "decoder"}


@pytest.mark.parametrize("alignment", ["sequence_alignment", "preference_alignment"])
def test_an_alignment_reaches_both_sides(alignment):
    weights = {"sequence_alignment": 0.0, "preference_alignment": 0.0, alignment: 1.0}
    model = joint(method="etegrec", recommender="rq_transformer", **weights)
    for turn, other in ((0, "tokenizer.encoder"), (1, "recommender.items"), (1, "tokenizer.encoder")):
        model.turn.fill_(turn)
        model.zero_grad()
        model(some_batch())[0].backward()
        assert any(p.grad.any() for n, p in model.named_parameters() if n.startswith(other) and p.grad is not None)


# ---------------------------------------------------------------- a run


@pytest.mark.parametrize("network", NETWORKS)
def test_they_learn_in_turn_and_the_tokenizer_rests_at_last(ground, tmp_path, network):
    options = {"method": "etegrec", "etegrec_cycle": 2, "id_last_epoch": 3, "lr_id": 1e-2, "epochs": 5, **network}
    fit, states = fit_of(ground, tmp_path, **options), []

    def look(*_):
        own = {n: p.detach().clone() for n, p in fit.raw.named_parameters()}
        states.append((own, {n: fit.optimizer.state[p]["step"].item() for n, p in fit.raw.named_parameters()
                             if p in fit.optimizer.state}))  # fmt: skip

    look()
    fit.on_epoch = look
    fit.train()
    who = []
    for (before, _), (after, _) in itertools.pairwise(states):
        moved = {n for n, p in after.items() if not torch.equal(p, before[n])}
        who.append({n.startswith("tokenizer") for n in moved})
        assert len(moved) > 10
    assert who == [{False}, {False}, {True}, {False}, {False}]
    steps = states[-1][1]
    assert {n.startswith("tokenizer"): s for n, s in steps.items()} == {
        True: fit.steps_per_epoch, False: 4 * fit.steps_per_epoch,
    }  # fmt: skip
    changed = [row["codes_changed"] > 0 for row in rows(fit)]
    assert changed == [False, False, True, False, False]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(ground, tmp_path, monkeypatch):
    options = {"method": "etegrec", "lr_id": 1e-2, "epochs": 4, "save_steps": 1, "batch_size": 64, **NETWORKS[0]}
    whole = fit_of(ground, tmp_path / "whole", **options)
    whole.train()
    cut = fit_of(ground, tmp_path / "cut", **options)
    step, calls, last = cut.step, itertools.count(), 2 * cut.steps_per_epoch + 2  # in the tokenizer's turn
    monkeypatch.setattr(cut, "step", lambda parts: (step(parts)[0], 15 if next(calls) == last else 0))
    with pytest.raises(Stopped):
        cut.train()
    again = fit_of(ground, tmp_path / "cut", resume="auto", **options)
    again.train()
    assert_same_state(whole, again)
    assert rows(whole) == rows(again)
