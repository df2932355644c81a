"""Masked diffusion: the noise by its distribution, the loss by hand, the decoder by a stub and by its rules."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ring, tiny_at, words
from helpers import evaluated
from hypothesis import given
from hypothesis import strategies as st

import main
import settings
from compose import build, configure
from data import make_batch
from readers.splits import Split
from recommenders.diffusion import DiffusionOptions, fill, lowered
from utils import Problem, read_checkpoint, read_json

SMALL = {"method": "diffsasrec", "hidden_units": 16, "num_heads": 2, "max_his_len": 12, "hidden_dropout": 0.0}


def diffusion(n_items=30, method="diffsasrec", **options):
    torch.manual_seed(0)
    return build.empty_model(configure.build(SMALL | {"method": method} | options), n_items).double()


def batch_of(users=200, longest=12):
    return make_batch(ring(users), torch.arange(users).numpy(), longest)


def sequences_of(batch):
    return torch.cat([batch.history_BS, batch.target_B[:, None]], 1)


# ---------------------------------------------------------------- forward process


def test_noise_has_one_t_a_row_and_hides_items_with_that_probability():
    model, batch = diffusion(), batch_of(3000)
    item = sequences_of(batch)
    shares, ts = [], []
    for step in range(20):
        model.step.fill_(step)
        hidden, t = model.noise(batch, item)
        assert t.shape == (3000, 1) and t.min() >= 1e-3 and t.max() <= 1
        assert not hidden[item == 0].any()
        shares.append(hidden.sum(1) / (item > 0).sum(1))
        ts.append(t[:, 0])
    share, t = torch.cat(shares), torch.cat(ts)
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    for low in torch.arange(0, 1, 0.1):
        chosen = (t >= low) & (t < low + 0.1)
        assert share[chosen].mean().item() == pytest.approx(t[chosen].mean().item(), abs=0.015)


def test_noise_is_a_function_of_seed_step_and_sample():
    """The same in any batch and with any padding; another at the next step and for another seed."""
    model, batch = diffusion(), batch_of(50)
    item = sequences_of(batch)
    whole, _ = model.noise(batch, item)
    part = make_batch(ring(50), torch.arange(20, 30).numpy(), 12)
    alone, _ = model.noise(part, sequences_of(part))
    width = alone.shape[1]
    assert torch.equal(whole[20:30, -width:], alone)
    assert torch.equal(model.noise(batch, F.pad(item, (5, 0)))[0][:, 5:], whole)
    assert not torch.equal(diffusion(seed=1).noise(batch, item)[0], whole)
    model.after_step(lambda t: t)
    assert not torch.equal(model.noise(batch, item)[0], whole)


def test_only_hidden_items_are_replaced():
    model, batch, seen = diffusion(), batch_of(50), []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    item = sequences_of(batch)
    hidden, _ = model.noise(batch, item)
    assert torch.equal(seen[0] == 31, hidden) and torch.equal(seen[0][~hidden], item[~hidden])


# ---------------------------------------------------------------- loss


def mean_loss_of_equal_scores(model, batch):
    """Over 40 draws of the noise."""
    torch.nn.init.zeros_(model.encoder.items.weight)
    losses = []
    for step in range(40):
        model.step.fill_(step)
        losses.append(model(batch)[0].item())
    return sum(losses) / 40


def test_equal_scores_cost_the_log_of_the_catalogue():
    """The weights 1 / t make the expected loss the mean cross-entropy, whatever was hidden."""
    assert mean_loss_of_equal_scores(diffusion(), batch_of(512, 29)) == pytest.approx(math.log(30), rel=0.02)


def test_a_loss_by_hand(monkeypatch):
    """Two rows of three: weights 1 / t of the hidden ones over the five real items."""
    split = Split(torch.tensor([4, 5, 6, 7, 8]).numpy(), torch.tensor([0, 3, 5]).numpy(), torch.tensor([2, 4]).numpy())
    model, batch = diffusion(), make_batch(split, torch.arange(2).numpy(), 12)
    hidden, t = torch.tensor([[True, False, True], [False, True, False]]), torch.tensor([[0.5], [0.25]])
    monkeypatch.setattr(model, "noise", lambda *_: (hidden, t))
    h = model.encoder(torch.tensor([[31, 5, 31], [0, 31, 8]]))
    log_p = (h @ model.encoder.items.weight[1:31].T).log_softmax(-1)
    want = -(2 * log_p[0, 0, 3] + 2 * log_p[0, 2, 5] + 4 * log_p[1, 1, 6]) / 5
    assert model(batch)[0].item() == pytest.approx(want.item())
    monkeypatch.setattr(model, "noise", lambda *_: (hidden & False, t))
    loss = model(batch)[0]
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_padding_changes_no_loss_and_no_gradient():
    losses = []
    for pad in (0, 5):
        model, batch = diffusion(max_his_len=20), batch_of(40)
        wide = batch._replace(history_BS=F.pad(batch.history_BS, (pad, 0)))
        losses.append(model(wide)[0])
        losses[-1].backward()
        assert torch.equal(model.encoder.items.weight.grad[0], torch.zeros(16))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)


def test_attention_goes_both_ways_and_never_to_padding():
    model = diffusion().eval()
    item = torch.tensor([[0, 0, 3, 4, 5, 6]])
    other, before = item.clone(), model.encoder(item)
    other[0, -1] = 9
    assert (model.encoder(other)[0, 2:] != before[0, 2:]).any(-1).all()
    with torch.no_grad():
        model.encoder.items.weight[0] = 5.0
    assert torch.equal(model.encoder(item)[0, 2:], before[0, 2:])


# ---------------------------------------------------------------- multi-step decoding, on a stub


def constant(*rows, users=1):
    """Scores whose softmax is these rows, one a place; missing items have probability 1e-30."""
    width = max(max(r) for r in rows)
    p = torch.full((len(rows), width), 1e-30)
    for place, row in enumerate(rows):
        for item, value in row.items():
            p[place, item - 1] = value
    return lambda filled: p.log().expand(users, -1, -1)


GOLDEN = constant({1: 0.95, 2: 0.03, 3: 0.02}, {1: 0.92, 2: 0.05, 3: 0.03}, {3: 0.5, 2: 0.4, 4: 0.1})


def nobody(users, n):
    return torch.zeros(users, n, dtype=torch.bool)


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_golden_stub(renormalise):
    """Place 2 may not repeat item 1, and waits until its threshold has fallen."""
    found = fill(GOLDEN, nobody(1, 4), 3, DiffusionOptions(), renormalise=renormalise)
    assert found.item_BK.tolist() == [[1, 2, 3]] and found.rounds == 3


def test_the_threshold_falls_just_far_enough():
    c = torch.tensor([0.9, 0.9, 0.9, 0.0])
    found = lowered(c, torch.tensor([0.5, 0.95, 0.0, 0.1]))
    assert found.tolist() == pytest.approx([0.9**7, 0.9, 0.0, 0.0])


options = st.fixed_dictionaries({}, optional={
    "decode_threshold": st.sampled_from([0.0, 0.3, 0.9, 1.0]), "decode_rounds": st.integers(1, 6),
})  # fmt: skip


@given(options, st.integers(1, 5), st.integers(0, 9), st.booleans(), st.floats(0.1, 50))
def test_a_list_holds_distinct_allowed_items_within_k_rounds(chosen, k, seed, renormalise, scale):
    torch.manual_seed(seed)
    score, taken = torch.randn(6, k, 8) * scale, torch.rand(6, 8) < 0.5
    taken[0] = True
    allowed = (~taken).sum(1)
    found = fill(lambda filled: score, taken.clone(), k, DiffusionOptions(**chosen), renormalise=renormalise)
    assert found.rounds <= k
    for user, row in enumerate(found.item_BK.tolist()):
        real = [i for i in row if i]
        assert len(set(real)) == len(real) and not any(taken[user, i - 1] for i in real)
        assert len(real) == min(k, int(allowed[user]))


@given(st.integers(1, 6), st.integers(0, 9))
def test_a_fixed_schedule_takes_its_rounds(rounds, seed):
    """Six places whose wishes never collide: remainder to the first rounds, the most certain first."""
    torch.manual_seed(seed)
    certain = torch.rand(6) * 3 + 6
    score = torch.diag_embed(certain).expand(2, 6, 6)
    filled = []

    def watch(now):
        filled.append(int((now[0] > 0).sum()))
        return score

    found = fill(watch, nobody(2, 6), 6, DiffusionOptions(decode_rounds=rounds))
    assert found.item_BK.tolist() == [[1, 2, 3, 4, 5, 6]] * 2 and found.rounds == rounds
    assert filled == [sum(6 // rounds + (r < 6 % rounds) for r in range(n)) for n in range(rounds)]


def test_scores_that_are_not_finite_stop_the_decoder():
    with pytest.raises(Problem, match="not finite"):
        fill(lambda filled: torch.full((1, 2, 4), math.nan), nobody(1, 4), 2, DiffusionOptions())


# ---------------------------------------------------------------- recommending

HISTORIES = torch.randint(1, 31, (60, 12), generator=torch.Generator().manual_seed(0))
HISTORIES[torch.arange(60)[:, None] % 12 > torch.arange(12)] = 0

MODES = {
    "single": {}, "autoregressive": {"decoding": "autoregressive"}, "multi": {"decoding": "multi"},
    "multi, confidence": {"decoding": "multi", "decode_order": "confidence"},
    "multi after single": {"decoding": "multi", "decode_order": "single_then_multi"},
    "multi, as published": {"decoding": "multi", "as_published": True},
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [True, False])
def test_lists_are_valid_and_do_not_depend_on_the_batch(mode, masked):
    """An untrained model, too, never recommends padding, MASK, an item twice, or a seen one when masked."""
    model = diffusion(hidden_dropout=0.3, **MODES[mode]).eval()
    excluded = HISTORIES if masked else None
    together = model.recommend(HISTORIES, 6, excluded).item_BW
    for row, history in zip(together.tolist(), HISTORIES.tolist(), strict=True):
        assert len(set(row)) == 6 and min(row) >= 1 and max(row) <= 30
        assert not masked or not set(row) & set(history)
    for size, users in ((1, 12), (7, 60)):  # the first twelve histories are of every length
        cut = [
            model.recommend(HISTORIES[i : i + size], 6, None if excluded is None else excluded[i : i + size]).item_BW
            for i in range(0, users, size)
        ]
        assert torch.equal(torch.cat(cut), together[:users])


def test_single_step_ranks_by_the_last_mask():
    """A thousand random histories: the best of the last MASK's scores without padding, MASK, and seen items."""
    model = diffusion().eval()
    history = torch.randint(1, 31, (1000, 12), generator=torch.Generator().manual_seed(3))
    history *= torch.arange(12) >= torch.arange(1000)[:, None] % 12  # of every length, padded on the left
    x = torch.cat([history, torch.full((1000, 1), 31)], 1)
    score = (model.encoder(x)[:, -1] @ model.encoder.items.weight.T)[:, 1:31]
    score = F.pad(score, (1, 0)).scatter(1, history, -torch.inf)[:, 1:]
    found = model.recommend(history, 5, history).item_BW
    assert torch.equal(found, score.argsort(descending=True)[:, :5] + 1)
    assert found.min() >= 1 and found.max() <= 30 and (found.sort(1).values.diff(dim=1) > 0).all()


def test_autoregressive_lists_start_as_single_ones_and_go_on_from_there():
    single, one_by_one = diffusion().eval(), diffusion(decoding="autoregressive").eval()
    found = one_by_one.recommend(HISTORIES, 3).item_BW
    assert torch.equal(found[:, :1], single.recommend(HISTORIES, 1).item_BW)
    further = torch.cat([HISTORIES, found[:, :2]], 1)[:, -12:]
    assert torch.equal(found[:, 2:], single.recommend(further, 1, found[:, :2]).item_BW)


def test_too_many_places_for_the_history():
    with pytest.raises(Problem, match="a list of 13 items is as long as max_his_len, 12"):
        diffusion(decoding="multi").recommend(HISTORIES, 13)
    with pytest.raises(Problem, match="max_his_len: 9 positions cannot hold lists of 10"):
        configure.build({"method": "diffsasrec", "decoding": "multi", "max_his_len": 9})


@pytest.mark.parametrize("order", ["position", "single_then_multi"])
def test_multi_step_scores_are_log_probabilities(order):
    found = diffusion(decoding="multi", decode_order=order).eval().recommend(HISTORIES, 6)
    assert (found.score_BW < 0).all() and (found.score_BW > -20).all()


def test_order_by_confidence_holds_the_same_items():
    by_place, by_confidence = (
        diffusion(decoding="multi", decode_order=o).eval().recommend(HISTORIES, 6) for o in ("position", "confidence")
    )
    assert torch.equal(by_place.item_BW.sort(1).values, by_confidence.item_BW.sort(1).values)
    assert (by_confidence.score_BW.diff(dim=1) <= 0).all()


# ---------------------------------------------------------------- fine-tuning


def test_fine_tuning_hides_the_last_item(monkeypatch):
    model, batch = diffusion(method="diffsasrec_sft"), batch_of(30)
    monkeypatch.setattr(model, "cut", lambda item, _: item)
    x = torch.cat([batch.history_BS, torch.full((30, 1), 31)], 1)
    score = model.encoder(x)[:, -1] @ model.encoder.items.weight[1:31].T
    assert model(batch)[0].item() == pytest.approx(F.cross_entropy(score, batch.target_B - 1).item())


def test_half_of_the_sequences_are_cut_at_any_length():
    model, batch = diffusion(method="diffsasrec_sft"), batch_of(500)
    item, cuts = sequences_of(batch), []
    for step in range(10):
        model.step.fill_(step)
        for rows in zip(model.cut(item, batch).tolist(), item.tolist(), strict=True):
            short, whole = ([i for i in row if i] for row in rows)
            assert short == whole[: len(short)] and len(short) >= 2
            cuts.append((len(whole), len(short)))
    longest = [s for w, s in cuts if w == 12]
    share = len([s for s in longest if s == 12]) / len(longest)
    assert share == pytest.approx(0.5 + 0.5 / 11, abs=0.06) and set(longest) == set(range(2, 13))


@pytest.mark.parametrize("decoding", ["single", "multi", "autoregressive"])
def test_every_decoding_keeps_to_the_items_asked_for(decoding):
    model, some = diffusion(decoding=decoding).eval(), [2, 9, 11, 29]
    found = model.recommend(batch_of(50).history_BS, 4, candidates_M=torch.tensor(some)).item_BW
    assert found.sort(1).values.tolist() == [some] * 50


def test_fine_tuning_starts_from_a_diffusion_run_only(tmp_path):
    options = tiny_at(tmp_path) | {"hidden_units": 16, "epochs": 1}

    def run(name, **changes):
        main.main(words(options | {"run_name": name} | changes))
        return tmp_path / "out" / "tiny" / name

    first = run("first", method="diffsasrec") / "best_model.pth"
    start = read_checkpoint(first)["valid"]["ndcg@10"]
    second = run("second", method="diffsasrec_sft", sft_from=first, lr_rec=1e-12)  # cannot help
    results = read_json(second / "test.json")
    assert results["best_epoch"] == -1 and results["valid"]["ndcg@10"] == start
    third = run("third", method="diffsasrec_sft", sft_from=second / "best_model.pth", decoding="multi", epochs=2)
    assert read_json(third / "test.json")["epochs_trained"] == 2
    with pytest.raises(Problem, match=r"sft_from: .* is of 'sasrec'; only a diffusion model"):
        run("fourth", method="diffsasrec_sft", sft_from=run("vanilla", method="sasrec") / "best_model.pth")
    with pytest.raises(Problem, match=r"sft_from: .* has other sizes; use its hidden_units"):
        run("fifth", method="diffsasrec_sft", sft_from=first, hidden_units=8)
    with pytest.raises(Problem, match=r"sft_from: .* was trained with num_heads 2"):
        run("heads", method="diffsasrec_sft", sft_from=first, num_heads=4)
    with pytest.raises(Problem, match=r"sft_from: .* another split; it may know the targets"):
        run("times", method="diffsasrec_sft", sft_from=first, short_users="drop")
    with pytest.raises(Problem, match=r"sft_from: name the best_model\.pth"):
        run("sixth", method="diffsasrec_sft")


def test_vanilla_knows_no_masks():
    with pytest.raises(Problem, match="decoding: multi fills masked positions"):
        configure.build(SMALL | {"method": "sasrec", "decoding": "multi"})


# ---------------------------------------------------------------- learning


@pytest.mark.slow
def test_learns_the_ring_in_both_directions(train_ring, tmp_path):
    """Next item, an item in the middle, the next five in order, and fine-tuning on the next one."""
    fit = train_ring({"method": "diffsasrec", "epochs": 150, "lr_rec": 3e-3, "batch_size": 1600})
    model, data, cfg = fit.raw.eval(), fit.data, fit.cfg

    def hit(changes):
        now = configure.change(cfg, **changes)
        model.cfg = now[DiffusionOptions]
        return evaluated(model, data.test, now, fit.acc, "test").figures["recall@1"]

    assert hit({}) >= 0.90
    rows = torch.randint(0, 100, (500, 1)) + torch.arange(15)
    middle = rows % 100 + 1
    guess = (model.encoder(middle.index_fill(1, torch.tensor([7]), 101))[:, 7] @ model.table().T).argmax(1) + 1
    assert (guess == middle[:, 7]).float().mean() >= 0.95
    model.cfg = configure.change(cfg, decoding="multi")[DiffusionOptions]
    batch = make_batch(data.test, torch.arange(500).numpy(), 20)
    found = model.recommend(batch.history_BS, 5).item_BW
    right = (batch.history_BS[:, -1:] + torch.arange(5)) % 100 + 1
    assert ((found == right).float().mean(0) >= 0.93).all()
    one = torch.cat([model.recommend(h[None], 5).item_BW for h in batch.history_BS[:100]])
    assert torch.equal(one, found[:100])

    changes = {"method": "diffsasrec_sft", "sft_from": str(fit.run.best), "epochs": 20, "lr_rec": 1e-3, "eval_step": 1}
    before = hit({})
    tuned = train_ring({**settings.flat(cfg), **changes, "run_name": "tuned"})
    after = evaluated(tuned.raw, data.test, tuned.cfg, tuned.acc, "test").figures["recall@1"]
    assert after >= max(before, 0.97)
