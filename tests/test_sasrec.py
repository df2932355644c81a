"""SASRec and what it shares with its diffusion twin: the loss against torch's, attention against its definition."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ring, tiny_at, tiny_overrides, words, write_tiny
from helpers import evaluated
from hypothesis import given
from hypothesis import strategies as st

import main
from compose import build, configure
from data import make_batch
from recommenders import baselines, items
from recommenders.items import best_items, softmax_loss
from recommenders.sasrec import absent_items
from utils import Problem, read_json


def sasrec(n_items=30, **options):
    torch.manual_seed(0)
    small = {"method": "sasrec", "hidden_units": 16, "num_heads": 2, "max_his_len": 12, **options}
    return build.empty_model(configure.build(small), n_items).double()


HISTORY = torch.tensor([[0, 0, 3, 9, 4, 9, 21], [5, 6, 7, 8, 1, 2, 30]])


# ---------------------------------------------------------------- the network


def test_a_position_sees_nothing_after_it():
    model, other = sasrec().eval(), HISTORY.clone()
    other[:, 4] = 11
    before, after = model.encoder(HISTORY), model.encoder(other)
    assert torch.equal(before[:, :4][HISTORY[:, :4] > 0], after[:, :4][HISTORY[:, :4] > 0])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal):
    """Neither its amount nor its embedding."""
    model = sasrec().eval()
    model.encoder.causal = causal
    scores = model.encoder(HISTORY)[HISTORY > 0]
    wide = F.pad(HISTORY, (4, 0))
    assert torch.allclose(model.encoder(wide)[wide > 0], scores, atol=1e-12)
    with torch.no_grad():
        model.encoder.items.weight[0] = 7.0
    assert torch.allclose(model.encoder(HISTORY)[HISTORY > 0], scores, atol=1e-12)


@pytest.mark.parametrize("loss", ["ce_all", "bce", "ce_last"])
def test_the_row_of_padding_never_moves(loss):
    model = sasrec(sasrec_loss=loss)
    batch = make_batch(ring(20), np.arange(20), 12)
    model(batch)[0].backward()
    assert torch.equal(model.encoder.items.weight.grad[0], torch.zeros(16))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- the losses


@pytest.mark.parametrize("scores", [1, 40, 1 << 24])
def test_the_loss_in_chunks_equals_the_whole(scores, monkeypatch):
    monkeypatch.setattr(items, "LOGITS", scores)
    torch.manual_seed(1)
    h, table = (torch.randn(n, 5, dtype=torch.double, requires_grad=True) for n in (9, 13))
    target, weight = torch.randint(0, 13, (9,)), torch.rand(9, dtype=torch.double)
    whole = (F.cross_entropy(h @ table.T, target, reduction="none") * weight).sum()
    found = softmax_loss(h, table, target, weight)
    assert found.item() == pytest.approx(whole.item(), rel=1e-12)
    for a, b in zip(*(torch.autograd.grad(3 * x, [h, table]) for x in (found, whole)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("loss", ["ce_all", "ce_last"])
def test_the_loss_is_the_mean_over_its_targets(loss, monkeypatch):
    """Against a loop over positions, each scored from its own prefix. Of a large catalogue a sample comes near it."""
    model = sasrec(sasrec_loss=loss).eval()
    split = ring(6)
    batch = make_batch(split, np.arange(6), 12)
    terms = []
    for history, target in zip(batch.history_BS, batch.target_B, strict=True):
        row = [i for i in [*history.tolist(), int(target)] if i]
        h_Sd = model.encoder(torch.tensor([row[:-1]]))[0]
        score_SN = h_Sd @ model.encoder.items.weight[1:].T
        each = F.cross_entropy(score_SN, torch.tensor(row[1:]) - 1, reduction="none")
        terms.append(each if loss == "ce_all" else each[-1:])
    assert model(batch)[0].item() == pytest.approx(float(torch.cat(terms).mean()))
    monkeypatch.setattr(items, "EXACT", 0)
    monkeypatch.setattr(items, "SAMPLED", 100_000)
    assert 0 < abs(model(batch)[0].item() / float(torch.cat(terms).mean()) - 1) < 0.01


def test_bce_starts_at_twice_the_log_of_two():
    model = sasrec(sasrec_loss="bce")
    torch.nn.init.zeros_(model.encoder.items.weight)
    assert model(make_batch(ring(20), np.arange(20), 12))[0].item() == pytest.approx(2 * np.log(2))


@given(st.lists(st.lists(st.integers(0, 8), min_size=4, max_size=4), min_size=1, max_size=5))
def test_negatives_are_any_item_that_the_row_lacks(rows):
    """Each of the others comes up, none of the row's."""
    torch.manual_seed(0)
    drawn = absent_items(torch.tensor(rows), 400, 8)
    for row, found in zip(rows, drawn.tolist(), strict=True):
        assert set(found) == set(range(1, 9)) - set(row)


def test_negatives_when_nothing_is_left():
    assert absent_items(torch.tensor([[1, 2, 3]]), 5, 3).max() <= 3


# ---------------------------------------------------------------- recommending


def test_the_best_items_are_those_of_the_scores():
    score = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    assert best_items(score, 3).item_BW.tolist() == [[2, 3, 4]]
    assert best_items(score, 9, torch.tensor([[0, 2]])).item_BW.tolist() == [[3, 4, 1, 0]]


@pytest.mark.parametrize("excluded", [None, [[0, 3, 3], [7, 1, 2]]])
@pytest.mark.parametrize("among", [None, [3, 5, 8, 2]])
def test_the_popular_items_are_those_of_the_counts(excluded, among):
    """Against a sort of all counts, equal ones in catalogue order."""
    count, history = np.random.default_rng(0).integers(0, 3, 9), torch.ones(2, 1, dtype=torch.long)
    excluded, among = (None if x is None else torch.tensor(x) for x in (excluded, among))
    for k in (1, 4, 8):
        found, rows = baselines.Popularity(count).recommend(history, k, excluded, among), []
        for user in range(2):
            out = set() if excluded is None else set(excluded[user].tolist())
            left = [i for i in range(1, 9) if i not in out and (among is None or i in among)]
            rows.append(sorted(left, key=lambda i: (-count[i], i))[:k])
        assert [[i for i in row if i] for row in found.item_BW.tolist()] == rows
        assert torch.equal(found.score_BW == -torch.inf, found.item_BW == 0)
        assert all(float(s) == count[i] for i, s in zip(found.item_BW[0], found.score_BW[0], strict=True) if i)


def test_recommending_needs_no_batch_mates(monkeypatch):
    model = sasrec().eval()
    together = model.recommend(HISTORY, 30).item_BW
    alone = torch.cat([model.recommend(row[row > 0][None], 30).item_BW for row in HISTORY])
    assert torch.equal(together, alone)
    monkeypatch.setattr(items, "SCORES", 1)  # as of a large catalogue
    assert torch.equal(model.recommend(HISTORY, 30).item_BW, alone)
    assert together.sort(1).values.tolist() == [list(range(1, 31))] * 2


def test_some_items_alone_come_in_the_order_of_the_whole():
    model, some = sasrec().eval(), [2, 9, 11, 29]
    whole = model.recommend(HISTORY, 30).item_BW.tolist()
    among = torch.tensor(some)
    assert model.recommend(HISTORY, 4, candidates_M=among).item_BW.tolist() == [
        [i for i in row if i in some] for row in whole
    ]
    barred = model.recommend(HISTORY, 4, HISTORY, among).item_BW
    for row, order, seen in zip(barred.tolist(), whole, HISTORY.tolist(), strict=True):
        assert [i for i in row if i] == [i for i in order if i in some and i not in seen]
    assert model.recommend(HISTORY, 30).item_BW.tolist() == whole


def test_from_the_command_line_to_recommendations(tmp_path, capsys):
    """Trains without embeddings, evaluates to the same figures from the checkpoint, recommends."""
    folder = write_tiny(tmp_path / "dataset" / "tiny")
    (folder / "tiny.emb-test.npy").unlink()
    options = tiny_overrides(tmp_path) | {"method": "sasrec", "hidden_units": 16, "run_name": "r", "mask_seen": True}
    main.main(words(options))
    run = tmp_path / "out" / "tiny" / "r"
    results = read_json(run / "test.json")
    assert results["method"] == "sasrec" and set(read_json(run / "baselines.json")) == {"popularity"}
    capsys.readouterr()
    main.main(["evaluate", "--checkpoint", str(run / "best_model.pth")])
    assert f"test/ndcg@10 {results['ndcg@10']:.6g}\n" in capsys.readouterr().out
    main.main(["recommend", "--checkpoint", str(run / "best_model.pth"), "--history=i3,i4", "--k=5"])
    shown = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert len(set(shown)) == 5 and not {"i3", "i4"} & set(shown)
    (tmp_path / "stock.txt").write_text("i3\ni7\ni30\n")
    stock = f"--allow={tmp_path / 'stock.txt'}"
    main.main(["recommend", f"--checkpoint={run / 'best_model.pth'}", "--history=i3,i4", stock])
    assert {line.split()[2] for line in capsys.readouterr().out.splitlines()} == {"i7", "i30"}  # i3 was seen


def test_embeddings_that_nobody_needs_stop_nobody(tmp_path, capsys):
    folder = write_tiny(tmp_path / "dataset" / "tiny")
    np.save(folder / "tiny.emb-test.npy", np.full((3, 4), np.nan))
    options = tiny_overrides(tmp_path) | {"method": "sasrec", "hidden_units": 8, "run_name": "r", "epochs": 1}
    main.main(words(options))
    assert "continues without the content baseline" in capsys.readouterr().out
    run = tmp_path / "out" / "tiny" / "r"
    assert set(read_json(run / "baselines.json")) == {"popularity"} and read_json(run / "test.json")["data"]


def test_a_checkpoint_is_evaluated_as_it_was_trained(tmp_path):
    """Neither on a split that it may have learned from, nor as another network of the same sizes."""
    log = write_tiny(tmp_path / "dataset" / "tiny") / "tiny.inter"
    options = tiny_overrides(tmp_path) | {"method": "sasrec", "hidden_units": 8, "run_name": "r", "epochs": 1}
    main.main(words(options))
    asked = ["evaluate", "--checkpoint", str(tmp_path / "out" / "tiny" / "r" / "best_model.pth")]
    with pytest.raises(Problem, match=r"num_heads: .* was trained with \d, which cannot be changed now"):
        main.main([*asked, "--num_heads=1"])
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(Problem, match="was trained on other interactions or another split"):
        main.main(asked)


def test_a_table_of_the_metrics_that_were_asked_for(tmp_path, capsys):
    options = tiny_at(tmp_path) | {"method": "sasrec", "hidden_units": 8, "run_name": "r", "epochs": 1}
    options |= {"metrics": "[hr@10, mrr@10, coverage@10]", "valid_metric": "mrr@10"}
    main.main(words(options))
    assert re.search(r"method \(test\) +hr@10 +mrr@10 +coverage@10 ", capsys.readouterr().out)


# ---------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "metric", "least"), [("ce_all", "recall@1", 0.98), ("bce", "recall@10", 0.8)])
def test_learns_the_ring(train_ring, loss, metric, least):
    """One uniform negative a position hardly tells neighbours apart, hence the coarser metric for bce."""
    fit = train_ring({"method": "sasrec", "sasrec_loss": loss, "epochs": 15})
    found = evaluated(fit.raw, fit.data.test, fit.cfg, fit.acc, "test").figures
    assert found[metric] >= least
