"""The joint model: the three gradient paths to the codebooks, one-hot forward, what trains and what rests."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, D, N, joint, some_batch

from compose import build, configure, parts
from data import make_batch
from joint.gradient import idle_paths
from model import PATHS
from readers.splits import Split
from recommenders import items
from sids import tokenizer
from utils import Problem

KINDS = ["none", "gumbel", "frqud", "sdud", "frqud_sdud", "gaussian", "tau_annealing"]


def options(**changes):
    return configure.build({**TINY, **changes})


def codebook_grads(model, loss):
    books = model.tokenizer.rq.codebooks()
    found = torch.autograd.grad(loss, books, allow_unused=True, retain_graph=True)
    return [0.0 if g is None else float(g.norm()) for g in found]


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("forward", ["sampled", "cached", "soft", "history"])
@pytest.mark.parametrize("network", parts.NETWORKS)
def test_the_recommendation_gradient_reaches_every_codebook_on_each_path(path, forward, network):
    model, batch = joint(assignment_forward=forward, recommender=network), some_batch()
    loss = model.sid_loss(batch, model.quantize(batch), (path,)).loss
    assert all(norm > 0 for norm in codebook_grads(model, loss))


def test_the_paths_add_up_to_the_whole_gradient():
    model, batch = joint(), some_batch()
    books = model.tokenizer.rq.codebooks()

    def gradient(paths):
        return torch.autograd.grad(model.sid_loss(batch, model.quantize(batch), paths).loss, books)

    whole, parts = gradient(PATHS), [gradient((path,)) for path in PATHS]
    for level in range(3):
        assert torch.allclose(whole[level], sum(p[level] for p in parts), atol=1e-6)


def test_detached_cuts_every_path_and_changes_no_loss():
    live, dead, batch = joint(), joint(gradient="detached"), some_batch()
    losses = [m.sid_loss(batch, m.quantize(batch), m.paths).loss for m in (live, dead)]
    assert torch.equal(*losses)
    assert codebook_grads(dead, losses[1]) == [0.0, 0.0, 0.0]
    assert set(dead.check_gradient(batch).values()) == {0.0}


def test_the_probe_agrees_with_autograd_and_leaves_no_gradient_behind():
    model, batch = joint(), some_batch()
    figures = model.check_gradient(batch)
    loss = model.sid_loss(batch, model.quantize(batch), ("target",)).loss
    assert [figures[f"grad/level_{i}/target"] for i in (1, 2, 3)] == pytest.approx(codebook_grads(model, loss))
    assert all(p.grad is None for p in model.parameters())


def test_a_severed_path_stops_the_run():
    model, batch = joint(), some_batch()
    model.tokenizer.scale_L.fill_(1e30)  # a saturated softmax has no gradient
    with pytest.raises(Problem, match=r"grad/level_1/\w+ is (0.0|nan)"):
        model.check_gradient(batch)


def test_a_teacher_without_a_choice_behind_it_is_no_cut_path():
    """Decoder: a history's own tokens spell all but the last target; only items 3 and 4 share their codes here."""
    model = joint(recommender="decoder", legal_softmax=True, assignment_forward="history", collision="suffix")
    codes = torch.cartesian_prod(*[torch.arange(4)] * 3)[:N].clone()
    codes[3] = codes[2]
    model.set_codes(codes)
    split = Split(np.array([1, 3, 5, 7], np.int32), np.array([0, 4]), np.array([3]))
    batch = make_batch(split, np.array([0]), 50)
    assert idle_paths(model, batch) == {"grad/level_3/teacher"}
    assert model.check_gradient(batch)["grad/level_3/teacher"] == 0
    last = make_batch(Split(np.array([1, 5, 7, 3], np.int32), split.offsets, split.position), np.array([0]), 50)
    assert "grad/level_3/teacher" not in idle_paths(model, last)
    assert model.check_gradient(last)["grad/level_3/teacher"] > 0


def test_codebooks_move_in_one_step_on_the_recommendation_loss_alone():
    model, batch = joint(recon_loss_weight=0, vq_loss_weight=0), some_batch()
    before = [c.detach().clone() for c in model.tokenizer.rq.codebooks()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(batch)[0].backward()
    optimizer.step()
    for old, new in zip(before, model.tokenizer.rq.codebooks(), strict=True):
        assert not torch.equal(old, new)


def test_target_gradient_weighs_that_path_only():
    whole, half, batch = joint(), joint(target_gradient=0.5), some_batch()
    for path, factor in (("target", 0.5), ("history", 1.0), ("teacher", 1.0)):
        want = codebook_grads(whole, whole.sid_loss(batch, whole.quantize(batch), (path,)).loss)
        got = codebook_grads(half, half.sid_loss(batch, half.quantize(batch), (path,)).loss)
        assert got == pytest.approx([factor * w for w in want], rel=1e-5)


def test_hard_update_moves_only_selected_codes():
    model, batch = joint(codebook_update="hard", uncertainty="none"), some_batch()
    q = model.quantize(batch)
    loss = model.sid_loss(batch, q, ("target",)).loss
    first = torch.autograd.grad(loss, model.tokenizer.rq.codebooks())[0]
    moved = set(first.abs().sum(1).nonzero().flatten().tolist())
    assert moved and moved <= set(q.index[0].tolist())


# ---------------------------------------------------------------- the forward pass


@pytest.mark.parametrize("kind", KINDS)
def test_forward_tokens_are_those_of_the_drawn_codes(kind):
    model, batch = joint(uncertainty=kind), some_batch()
    q = model.quantize(batch)
    tokens = model.recommender.embed(q, model.sids.tokens(batch.item_U).token)
    for level in range(3):
        assert torch.equal(tokens[:, level], model.recommender.tables[level][q.index[level]])


def test_without_noise_the_drawn_codes_are_the_catalogues():
    model, batch = joint(uncertainty="none"), some_batch()
    q = model.quantize(batch)
    assert torch.equal(torch.stack(q.index, 1), model.code_NT[batch.item_U - 1].long())
    _, logs = model(batch)
    assert logs["sid_agreement"] == 1 and logs["sampled_differs"] == 0 and logs["stochastic_share"] == 0


def test_sampled_codes_follow_gumbels_theorem():
    """Over many steps the share of drawn codes that are the nearest is what the softmax says."""
    model = joint(uncertainty="gumbel")
    everything = torch.arange(1, N + 1)
    batch = some_batch()._replace(item_U=everything)
    differs = []
    for step in range(300):
        model.step.fill_(step)
        q = model.quantize(batch)
        differs.append((q.index[0] != q.nearest[0]).float().mean().item())
    assert 1 - np.mean(differs) == pytest.approx(model.tokenizer.levels[0].keep, abs=0.02)


def test_auto_scale_keeps_most_items_and_the_published_scale_is_one():
    assert all(0.6 < s.keep < 0.95 for s in joint().tokenizer.levels)
    assert joint(logit_scale=1.0).tokenizer.scale_L.tolist() == [1, 1, 1]


def test_loss_terms_by_an_independent_formula():
    """L_rec, recon and L_vq of one batch recomputed densely, repeated targets with multiplicity."""
    model, batch = joint(uncertainty="none"), some_batch()
    batch = batch._replace(
        target_row_B=batch.target_row_B[[0, 0, 1, 2, 3, 4]], target_B=batch.target_B[[0, 0, 1, 2, 3, 4]]
    )
    _, logs = model(batch)
    z = torch.cat([*model.tokenizer.latents()])[batch.target_B - 1]
    books = [c.detach() for c in model.tokenizer.rq.codebooks()]
    r, total, vq = z, torch.zeros_like(z), 0.0
    for book in books:
        q = book[((r[:, None] - book[None]) ** 2).sum(2).argmin(1)]
        vq += 1.25 * ((r - q) ** 2).mean(1)  # forward value: beta = 0.25
        r, total = r - q, total + q
    assert float(logs["loss/vq"]) == pytest.approx(float((vq / 3).mean()), rel=1e-5)
    assert float(logs["loss/recon"]) == pytest.approx(float(((total - z) ** 2).mean()), rel=1e-5)

    rec, sid = model.recommender, model.sids.token_NP
    target = sid[batch.target_B - 1]
    tokens = torch.stack([rec.tables[i][sid[batch.item_U - 1, i]] for i in range(4)], 1)
    logp = [x.log_softmax(-1) for x in rec(tokens, batch, tokens).logits]
    want = -sum(lp.gather(1, target[:, [i]]).mean() for i, lp in enumerate(logp)) / 4
    assert float(logs["loss/rec"]) == pytest.approx(float(want), rel=1e-5)


def test_padding_changes_nothing():
    model, batch = joint(uncertainty="none"), some_batch(slice(0, 1))
    wide = batch._replace(
        history_BS=torch.nn.functional.pad(batch.history_BS, (5, 0)),
        history_row_BS=torch.nn.functional.pad(batch.history_row_BS, (5, 0)),
    )
    assert model(batch)[0].item() == pytest.approx(model(wide)[0].item(), rel=1e-5)
    a, b = model.recommend(batch.history_BS, 10), model.recommend(wide.history_BS, 10)
    assert torch.equal(a.item_BW, b.item_BW)


# ---------------------------------------------------------------- parameters, SIDs, recommending


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("network", parts.NETWORKS)
def test_every_trainable_parameter_is_in_one_group_and_gets_a_gradient(kind, frozen, network):
    model = joint(uncertainty=kind, freeze_id_encoder=frozen, recommender=network)
    grouped = [p for g in model.param_groups() for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    for usage in (b for n, b in model.named_buffers() if "usage" in n):
        usage.fill_(0.9)  # everything hot, so that every sigma is asked for
    model(some_batch())[0].backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("frozen", "learning"), [(True, []), (False, [1, 4])])
def test_the_encoder_is_frozen_or_learns(frozen, learning):
    model = joint(freeze_id_encoder=frozen)
    names = {n for n, p in model.tokenizer.encoder.named_parameters() if p.requires_grad}
    assert names == {f"mlp_layers.{i}.{w}" for i in learning for w in ("weight", "bias")}
    assert torch.allclose(
        torch.cat([*model.tokenizer.latents()]),
        model.tokenizer.encoder(torch.from_numpy(np.random.default_rng(0).normal(size=(N, D)).astype(np.float32))),
        atol=1e-6,
    )


ON_DISK = {
    "frozen": {},
    "learned": {"freeze_id_encoder": False},
    "offsets": {"lr_offset": 0.1, "latent_loss": 1.0, "offset_prior": 1.0},
    "etegrec": {"method": "etegrec"},
    "standardized": {"standardize_embeddings": True, "catalogue_assignment": "sinkhorn"},
}


@pytest.mark.parametrize("case", ON_DISK)
def test_a_catalogue_that_stays_on_disk_trains_to_the_same_bit(tmp_path, monkeypatch, case):
    """Its latents are one file, which the next run maps; a cut one is made anew, another encoder's replaces it."""
    monkeypatch.setattr(tokenizer, "ROWS", 7)

    def outcome():
        model = joint(place=tmp_path / ".arrays", **ON_DISK[case])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            loss, logs = model(some_batch())
            loss.backward()
            optimizer.step()
            model.after_step(lambda x: x)
        return [model.refresh(), model.tokenizer.levels, logs, loss, *model.state_dict().values(), model.tokenizer.unit]

    held = outcome()
    assert not (tmp_path / ".arrays").exists()
    monkeypatch.setattr(tokenizer, "HELD", 0)
    assert same(outcome(), held)
    files = [*tmp_path.rglob("rows-*.npy")]
    assert len(files) == (case not in ("learned", "etegrec"))
    for path in files:
        before = path.stat()
        assert same(outcome(), held) and path.stat() == before
        path.write_bytes(path.read_bytes()[:-4])
        assert same(outcome(), held) and path.stat().st_size == before.st_size
        joint(place=tmp_path / ".arrays", layers=[9])
        assert not path.exists() and len([*tmp_path.rglob("rows-*.npy")]) == 1


def same(ours, theirs):
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else (
        all(map(same, ours, theirs)) if isinstance(ours, list) else str(ours) == str(theirs))


def test_latents_without_room_on_disk_are_held(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tokenizer, "HELD", 0)
    monkeypatch.setattr("utils.log.propagate", True)
    (tmp_path / "file").touch()
    model = joint(place=tmp_path / "file")
    assert "held in memory" in caplog.text and float(model(some_batch())[0]) == float(joint()(some_batch())[0])


def test_state_keys_hold_each_tensor_once():
    state = joint().state_dict()
    pointers = [t.data_ptr() for t in state.values()]
    assert len(pointers) == len(set(pointers))


def test_refresh_follows_the_codebooks_and_reports_the_change():
    model = joint()
    assert model.refresh()["sid_changed"] == 0
    with torch.no_grad():
        book = model.tokenizer.rq.codebooks()[0]
        book.copy_(book.roll(1, 0))
    figures = model.refresh()
    assert figures["sid_changed"] == 1 and figures["sid_changed_since_start"] == 1
    assert torch.equal(model.code_NT[:, 0], (model.first_NP[:, 0] + 1) % 8)


def test_too_many_items_in_one_group_are_refused():
    model = build.empty_model(options(method="two_stage"), N)
    with pytest.raises(Problem, match="30 items share one code, dedup tokens tell 8 apart"):
        model.set_codes(torch.zeros(N, 3, dtype=torch.long))


def test_a_collapse_keeps_the_semantic_ids_of_before(caplog):
    """The run goes on, and takes new SIDs as soon as the codes fit again; with tokens of their own items always do."""
    for rule in ("suffix", "item"):
        fit = {"legal_softmax": True, "assignment_forward": "history"} if rule == "item" else {}
        model, batch = joint(collision=rule, **fit), some_batch()
        before, books = model.sids.token_NP.clone(), [c.detach().clone() for c in model.tokenizer.rq.codebooks()]
        with torch.no_grad():
            for book in model.tokenizer.rq.codebooks():
                book.copy_(book[:1].expand_as(book))
        figures = model.refresh()
        assert (figures["sid_changed"] == 0) == (rule == "suffix")
        assert ("The catalogue keeps the semantic IDs it had" in caplog.text) == (rule == "suffix")
        loss, _ = model(batch)
        assert torch.isfinite(loss)
        with torch.no_grad():
            for book, old in zip(model.tokenizer.rq.codebooks(), books, strict=True):
                book.copy_(old.flip(0))
        model.refresh()
        assert not torch.equal(model.sids.token_NP, before)
        caplog.clear()


def test_recommend_equals_scoring_every_item():
    """A beam as wide as the catalogue against teacher-forced log-probabilities of every SID."""
    model = joint(num_beams=N, metrics=["recall@10", "ndcg@10"]).eval()
    batch = some_batch()
    found = model.recommend(batch.history_BS, N)
    sid, rec = model.sids.token_NP, model.recommender
    for b in range(3):
        history = batch.history_BS[[b]].expand(N, -1)
        every = batch._replace(
            history_BS=history, history_row_BS=history.clamp(min=1) - 1, target_row_B=torch.arange(N)
        )
        tokens = torch.stack([rec.tables[i][sid[:, i]] for i in range(4)], 1)
        logits = rec(tokens, every, tokens).logits
        want = sum(x.log_softmax(-1).gather(1, sid[:, [i]])[:, 0] for i, x in enumerate(logits))
        assert torch.allclose(found.score_BW[b], want.sort(descending=True).values, atol=1e-4)
        assert torch.allclose(want[found.item_BW[b] - 1], found.score_BW[b], atol=1e-4)


@pytest.mark.parametrize("kind", ["rq_transformer", "t5"])
@pytest.mark.parametrize("variable_length", [True, False])
@pytest.mark.parametrize("legal", [True, False])
def test_items_are_ranked_by_semantic_id_and_as_wholes(legal, variable_length, kind, monkeypatch):
    """However few the beams, what the network likes as a whole item is in the list with its exact sum; all items by
    a search for all of them, and the item's own logits. Of a large catalogue the same of what a search finds.
    """
    torch.manual_seed(0)
    chosen = {"recommender": kind, "item_loss": 1.0, "item_embedding": True, "legal_softmax": legal}
    cfg = options(method="two_stage", **chosen, **({"target_length": 2.0} if variable_length else {}))
    code_NT = torch.randint(0, 8, (N, 3)).int()
    if variable_length:
        code_NT[::2, 2] = -1
    model = build.empty_model(cfg, N, code_NT=code_NT).eval()
    model.set_codes(code_NT)
    with torch.no_grad():  # scores that differ
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    history, excluded = some_batch().history_BS, torch.tensor([[3, 5]])
    model.recommender.item_loss = 0.0
    alone = model.recommend(history, N)
    sid_BN = torch.zeros(len(history), N + 1).scatter_(1, alone.item_BW, alone.score_BW)[:, 1:]
    model.recommender.item_loss = 1.0
    item_BN = item_scores(model, history).log_softmax(1)
    want_BN = (sid_BN + item_BN).index_fill(1, torch.tensor([2, 4]), -torch.inf)
    model.search = dataclasses.replace(model.search, num_beams=3)
    for k in (3, N):
        got = model.recommend(history, k, excluded.expand(len(history), 2))
        keep = got.item_BW > 0
        torch.testing.assert_close(got.score_BW[keep], want_BN.gather(1, (got.item_BW - 1).clamp(min=0))[keep])
        best = item_BN.index_fill(1, torch.tensor([2, 4]), -torch.inf).argmax(1, keepdim=True)
        at_least = want_BN.gather(1, best)[:, 0]
        assert (got.score_BW[:, 0] >= at_least - 1e-4).all()
    assert torch.equal(got.item_BW[:, : N - 2], want_BN.argsort(dim=1, descending=True, stable=True)[:, : N - 2] + 1)

    monkeypatch.setattr(items, "RANKED", 0)
    monkeypatch.setattr(items, "SAMPLED", N)  # so that the sample is the catalogue
    got = model.recommend(history, 3)
    torch.testing.assert_close(got.score_BW, (sid_BN + item_BN).gather(1, got.item_BW - 1))
    model.recommender.item_loss = 0.0
    assert torch.equal(got.item_BW.sort(1).values, model.recommend(history, 3).item_BW.sort(1).values)


@torch.no_grad()
def item_scores(model, history):
    """Logits of all items as wholes, [B, N]."""
    score = model.recommender.scorer(lambda item: model.sids.tokens(item).token, history)
    return score(len(model.sids.vocabulary), None, None) @ model._item_table(torch.arange(N)).T


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ["rq_transformer", "t5"])
def test_the_item_loss_is_the_cross_entropy_of_the_next_item(kind, own):
    """Histories of one item: the mean over users, by the search's own scores."""
    model, batch = joint(recommender=kind, item_loss=2.0, item_embedding=own).eval(), some_batch()
    batch = batch._replace(history_BS=batch.history_BS[:, -1:], history_row_BS=batch.history_row_BS[:, -1:])
    with torch.no_grad():
        got = model.item_loss(batch, model.sid_loss(batch, model.quantize(batch)))
        logged = model(batch)[1]["loss/item"]
    want = F.cross_entropy(item_scores(model, batch.history_BS), batch.target_B - 1)
    assert float(got) == float(logged) == pytest.approx(float(want), rel=1e-4) and model.weights["item"] == 2.0


@pytest.mark.parametrize("term", ["item", "latent"])
def test_a_sample_of_a_large_catalogue_stands_for_all_of_it(term, monkeypatch):
    """With many draws the sampled loss and its gradients come to the exact ones; each draw weighs N / M."""
    options = {"item_loss": 1.0, "item_embedding": True} if term == "item" else {"latent_loss": 1.0}
    model, batch = joint(recommender="rq_transformer", assignment_forward="history", **options).eval(), some_batch()

    def measured():
        model.zero_grad()
        rec = model.sid_loss(batch, model.quantize(batch))
        loss = next(extra for extra in model.extras if extra.name == term)(model, batch, rec)
        loss.backward()
        return float(loss), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    loss, grads = measured()
    monkeypatch.setattr(items, "EXACT", 0)
    monkeypatch.setattr(items, "SAMPLED", 300_000)
    torch.manual_seed(0)
    other, others = measured()
    assert other == pytest.approx(loss, rel=2e-3) and grads.keys() == others.keys()
    for name, grad in grads.items():
        assert float((grad - others[name]).norm()) < 0.03 * float(grad.norm()) + 1e-5, name
    monkeypatch.setattr(items, "SAMPLED", 5)  # few draws: another number each time, the mean partition function right
    h, table, goal = torch.randn(1, 4), torch.randn(9, 4), torch.tensor([3])
    exact = (h @ table.T).logsumexp(1) - (h @ table.T)[:, 3]
    found = torch.stack([items.sampled_loss(h, lambda rows: table[rows], goal, 9) for _ in range(4000)])
    assert float(found.exp().mean()) == pytest.approx(float(exact.exp()), rel=0.05) and float(found.std()) > 0


def test_a_decay_scales_the_loss_of_sids_and_follows_it_alone():
    """SDUD beside a loss of whole items: L_rec / (2 t^2) + log t + L_item, and the gradient of sigma knows no item."""
    model, batch = joint(uncertainty="sdud", item_loss=2.0, recon_loss_weight=0, vq_loss_weight=0).train(), some_batch()
    loss, logs = model(batch)
    t = torch.tensor(model.decay.scales()).mean() + model.decay.cfg.sigma_lambda
    assert float(logs["loss/item"]) > 0
    want = logs["loss/rec"] / (2 * t**2) + t.log() + 2 * logs["loss/item"]
    assert float(loss) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("kind", ["rq_transformer", "t5"])
def test_an_own_vector_is_read_where_its_item_is_and_foretold_as_that_item(kind):
    """Another vector of an item moves the SIDs' scores of those who had it alone, and for all others that item's score
    as a whole alone (before the softmax).
    """
    model, history = joint(recommender=kind, item_loss=1.0, item_embedding=True).eval(), torch.tensor([[4, 7], [5, 6]])
    net, tokens = model.recommender, lambda item: model.sids.tokens(item).token

    def scores():
        with torch.no_grad():
            return net.scorer(tokens, history)(0, None, None), item_scores(model, history).log_softmax(1)

    (sid_BV, item_BN), _ = scores(), net.own.weight.data[7].add_(1.0)
    new_sid_BV, new_item_BN = scores()
    assert not torch.allclose(new_sid_BV[0], sid_BV[0]) and torch.equal(new_sid_BV[1], sid_BV[1])
    odds_N = (new_item_BN - item_BN)[1]
    rest = torch.arange(N) != 6
    assert float(odds_N[rest].max() - odds_N[rest].min()) < 1e-5 < abs(float(odds_N[6] - odds_N[0]))


def test_a_state_restores_the_same_recommendations():
    model, batch = joint().eval(), some_batch()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.refresh()
    want = model.recommend(batch.history_BS, 10)
    other = build.empty_model(options(), N, D).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    got = other.recommend(batch.history_BS, 10)
    assert torch.equal(got.item_BW, want.item_BW) and torch.equal(got.score_BW, want.score_BW)


def test_offsets_move_items_not_their_content():
    """One step on L_rec alone moves the offsets of the batch's items and no other; recon is the content's own."""
    model, batch = joint(lr_offset=0.1, uncertainty="none", assignment_forward="history"), some_batch()
    before = model.quantize(batch).recon
    groups = {group["name"]: group for group in model.param_groups()}
    assert groups["offset"]["lr"] == 0.1 and not any(p is model.tokenizer.offset_Nd for p in groups["id"]["params"])
    loss = model.sid_loss(batch, model.quantize(batch)).loss
    grad_Nd = torch.autograd.grad(loss, model.tokenizer.offset_Nd)[0]
    touched = set((grad_Nd.abs().sum(1) > 0).nonzero()[:, 0].add(1).tolist())
    assert touched and touched <= set(batch.item_U.tolist())
    with torch.no_grad():
        model.tokenizer.offset_Nd += 1e-4  # too little for another code
    torch.testing.assert_close(model.quantize(batch).recon, before)
    model.refresh()
    other = build.empty_model(options(lr_offset=0.1, uncertainty="none", assignment_forward="history"), N, D)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.tokenizer.offset_Nd, model.tokenizer.offset_Nd)


def test_the_prior_of_offsets_is_that_of_a_gaussian():
    """Its size from its definition; its gradient alone pulls every item back in proportion to how far it went, whatever
    the batch.
    """
    changes = {"uncertainty": "none", "assignment_forward": "history"}
    free, held = (joint(lr_offset=0.1, offset_prior=w, **changes) for w in (0.0, 2.0))
    move_Nd = torch.randn_like(torch.cat([*free.tokenizer.latents()])) * 0.01
    losses = []
    for model in (free, held):
        start_Nd = torch.cat([*model.tokenizer.latents()])
        with torch.no_grad():
            model.tokenizer.offset_Nd += move_Nd
        losses.append(model(some_batch()))
    unit = (start_Nd - start_Nd.mean(0)).square().mean().sqrt()
    want = float((move_Nd / unit).square().sum(1).mean() / 2)
    assert float(losses[1][1]["loss/offset"]) == pytest.approx(want, rel=1e-5) and "loss/offset" not in losses[0][1]
    grads = [
        torch.autograd.grad(loss, model.tokenizer.offset_Nd)[0]
        for (loss, _), model in zip(losses, (free, held), strict=True)
    ]
    torch.testing.assert_close(grads[1] - grads[0], 2 * move_Nd / unit**2 / N, rtol=1e-3, atol=1e-7)


def test_prefix_groups_are_items_with_equal_codes():
    model = build.empty_model(options(method="two_stage"), 4)
    model.set_codes(torch.tensor([[0, 1, 2], [3, 3, 3], [0, 1, 2], [0, 1, 3]]))
    groups = model.groups()["prefix"].tolist()
    assert groups[0] == -1 and groups[1] == groups[3] and len(set(groups)) == 4


def test_mixed_precision_leaves_the_assignment_alone():
    model, batch = joint(), some_batch()
    plain = model.quantize(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.quantize(batch)
        loss, _ = model(batch)
    assert all(torch.equal(a, b) for a, b in zip(plain.soft, mixed.soft, strict=True))
    assert loss.dtype == torch.float32


def test_golden_loss():
    """A change here is a change of the method: it goes to CHANGELOG under "Changes results"."""
    model = joint(uncertainty="frqud")
    _, logs = model(some_batch())
    got = {k: float(v) for k, v in logs.items() if k.startswith("loss")}
    want = {"loss": 2.1491, "loss/rec": 2.0956, "loss/recon": 0.0094, "loss/vq": 0.0440}
    assert got == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("kind", parts.NETWORKS)
def test_the_latent_loss_is_the_cross_entropy_over_the_latents_of_all_items(kind):
    """Written out from its definition; it moves every item's latent, and by the history's path the codebooks."""
    model, batch = joint(recommender=kind, latent_loss=2.0, lr_offset=0.1).eval(), some_batch()
    t, head = model.tokenizer, model.latent_head
    with torch.no_grad():
        t.offset_Nd += torch.randn_like(t.offset_Nd) * 0.05
    start_Nd = torch.cat([*t.latents()]) - t.offset_Nd.detach()
    centred_Nd = start_Nd - start_Nd.mean(0)
    z_Nd = (centred_Nd + t.offset_Nd) / (centred_Nd**2).mean().sqrt()
    rec = model.sid_loss(batch, model.quantize(batch))
    item_R = batch.item_U[batch.goals(model.targets)]
    score_RN = F.linear(rec.state_Rh, head.weight, head.bias) @ z_Nd.T
    want = -score_RN.log_softmax(1).gather(1, item_R[:, None] - 1).mean()
    _, logs = model(batch)
    assert float(logs["loss/latent"]) == pytest.approx(float(want.detach()), rel=1e-5)
    assert float(logs["loss"] - logs["loss/rec"] - logs["loss/recon"] - logs["loss/vq"]) == pytest.approx(
        2 * float(want.detach()), rel=1e-4
    )
    asked = [t.offset_Nd, *head.parameters(), *t.rq.codebooks()]
    found = torch.autograd.grad(want, asked, retain_graph=True)
    got = torch.autograd.grad(head(model, batch, rec), asked)
    for mine, theirs in zip(got, found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert mine.abs().sum() > 0
    assert (got[0].abs().sum(1) > 0).all()
    dead = joint(recommender=kind, latent_loss=2.0, lr_offset=0.1, gradient="detached")
    loss = dead.latent_head(dead, batch, dead.sid_loss(batch, dead.quantize(batch), dead.paths))
    assert codebook_grads(dead, loss) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", parts.NETWORKS)
def test_a_state_has_not_seen_its_target(kind):
    """Other tokens for the last target of each user leave the states that foretell it as they were."""
    model, batch = joint(recommender=kind).eval(), some_batch()
    last_U = ~torch.isin(batch.item_U, batch.history_BS)  # items that are targets alone
    token_UP = model.sids.tokens(batch.item_U).token
    token_UPh = model.recommender.embed(model.quantize(batch), token_UP)
    other_UPh = token_UPh + torch.randn_like(token_UPh) * last_U[:, None, None]
    assert last_U.any()
    want, got = (model.recommender(token_UPh, batch, x).state_Rh for x in (token_UPh, other_UPh))
    assert want.shape == (len(batch.goals(model.targets)), 16) and torch.equal(got, want)


def test_no_latent_loss_no_head():
    assert joint().latent_head is None and not [k for k in joint().state_dict() if "latent_head" in k]


@pytest.mark.parametrize("item_loss", [0.0, 1.0])
def test_lists_are_full_while_items_are_left(item_loss):
    """Banned items take beams until their last token; what is left still fills the list, alone or in a batch."""
    short = {"num_beams": 4, "metrics": ["ndcg@4"], "valid_metric": "ndcg@4"}
    model = joint(recommender="rq_transformer", item_loss=item_loss, **short).eval()
    history_BS = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for excluded_BS in (
        torch.tensor([[*range(1, 23)], [*range(9, 31)]]),
        torch.tensor([[*range(1, 21), 0, 0], [5] * 22]),
    ):
        found = model.recommend(history_BS, 8, excluded_BS)
        for row, excluded in enumerate(excluded_BS.tolist()):
            items = found.item_BW[row].tolist()
            assert len({*items} - {0, *excluded}) == min(8, N - len({*excluded} - {0}))
            assert (found.score_BW[row].diff() <= 0).all()
            alone = model.recommend(history_BS[row, None], 8, torch.tensor([excluded]))
            assert alone.item_BW[0].tolist() == items
