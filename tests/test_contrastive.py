"""FORGE's tokenizer and the upkeep of codebooks: worked examples, where gradients go, resuming, what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_at

import main
from compose import build, configure, restore
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import guard
from sids import codebooks
from sids.codebooks import CodebookEMA, CodebookOptions
from sids.contrastive import Adjacency, ContrastiveOptions, ContrastiveRQVAE, Step, contrast, contrastive_loss, excluded
from sids.pairs import Pairs
from sids.tokenizer import Source
from utils import Problem, Stopped, read_checkpoint, read_json
from vq import RQVAE, RQVAEOptions

A, B = torch.tensor([[1.0, 0], [0, 2], [3, 4]]), torch.tensor([[2.0, 0], [1, 1], [0, 5]])
X, Y = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0, 1], [0.6, 0.8]])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("contrastive")
    options = tiny_at(root) | {
        "method": "two_stage", "recommender": "rq_transformer", "epochs": 1, "tokenizer": "contrastive",
        "rqvae_batch_size": 16,
    }  # fmt: skip
    return options, read_dataset(configure.build(options)[DataOptions])


def model_of(data, **changes):
    """A contrastive tokenizer that holds its data, and its first epoch's steps."""
    chosen = {"num_emb_list": [8, 8, 8], "layers": [16], "e_dim": 8, **changes}
    source = Source.of(data)
    model = ContrastiveRQVAE(ContrastiveOptions(**chosen), source.content_ND.shape[1])
    model.begin(source, 16, 0, fresh=True)
    return model, model.batches(source, 16, 0, 0)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    ("scale", "factor", "want"),
    [
        (1.0, 1, {"self": 0.965729, "ori": 0.941594, "cl": 0.938819, "total": 0.948714}),
        (1 / 0.07, 1, {"self": 2.331202, "ori": 1.265004, "cl": 1.305427, "total": 1.633878}),
        (1 / 0.07, 3, {"ori": 1.265004, "cl": 1.305427, "total": 1.633878}),
    ],
)
def test_contrastive_loss_by_hand(scale, factor, want):
    """The published example; embeddings three times as long change nothing."""
    found = contrastive_loss((A, B), (X * factor, Y * factor), torch.full((3,), scale), None)
    got = {name: float(t) for name, t in found.terms.items()} | {"total": float(found.loss)}
    assert {k: got[k] for k in want} == pytest.approx(want, abs=1e-5)
    assert float(found.accuracy) == pytest.approx(0.5)


def test_repeated_items_are_no_negatives():
    no = excluded(torch.tensor([[10, 20], [11, 20], [12, 22]]), None)
    a, b, one = F.normalize(A, dim=1), F.normalize(B, dim=1), torch.tensor(1.0)
    assert float(contrast(a, b, one, None)[0]) == pytest.approx(0.965972, abs=1e-5)
    assert float(contrast(a, b, one, no.left_right)[0]) == pytest.approx(0.757139, abs=1e-5)


def test_known_partners_are_no_negatives():
    """0 - 1, 1 - 2 and 3 - 4 are pairs: 0 and 1, both on the left, are none for each other; 2 is one for 0."""
    adjacency = Adjacency(Pairs(np.array([[0, 1], [1, 2], [3, 4]]), np.ones(3, np.int64)), 5)
    no = excluded(torch.tensor([[0, 1], [3, 4], [1, 2]]), adjacency)
    assert no.left_right.tolist() == [[False, False, False], [False, False, False], [True, False, False]]
    assert no.right_left.tolist() == [[False, False, True], [False, False, False], [False, False, False]]
    assert no.left_left.tolist() == [[False, False, True], [False] * 3, [True, False, False]]


def test_a_batch_of_one_pair_costs_nothing():
    no = excluded(torch.tensor([[0, 1]]), None)
    assert float(contrastive_loss((A[:1], B[:1]), (X[:1], Y[:1]), torch.full((3,), 14.0), no).loss) == 0


def test_vq_loss_of_sums_by_hand():
    """d = 2, two levels of two codes: loss .125, its gradients at the latent and at one code alone."""
    cfg = RQVAEOptions(num_emb_list=[2, 2], sk_epsilons=[0.0, 0.0], e_dim=2, layers=[2], beta=1.0)
    model = RQVAE(cfg, 2)
    model.cumulative = True
    books = model.rq.codebooks()
    with torch.no_grad():
        books[0].copy_(torch.tensor([[1.0, 0], [0, 1]]))
        books[1].copy_(torch.tensor([[0.0, 0], [0, 1]]))
    z = torch.tensor([[1.0, 0], [0, 2]], requires_grad=True)
    out, vq, codes = model.straight_through(z, "argmin")
    assert codes.tolist() == [[0, 0], [1, 1]] and torch.equal(out, z)
    loss = 0.5 * vq
    assert float(loss.detach()) == pytest.approx(0.125, abs=1e-5)
    grads = torch.autograd.grad(loss, [z, *books])
    assert torch.allclose(grads[0], torch.tensor([[0, 0], [0, 0.125]]), atol=1e-5)
    assert torch.allclose(grads[1], torch.tensor([[0, 0], [0, -0.125]]), atol=1e-5)
    assert not grads[2].any()


def test_the_contrast_reaches_encoder_and_decoder_and_no_codebook(place):
    model, steps = model_of(place[1])
    pair = next(s.pair_B2 for s in steps if s.pair_B2 is not None)
    found, _ = model.contrast(pair)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(found.loss, list(named.values()), allow_unused=True)
    reached = {name for name, g in zip(named, grads, strict=True) if g is not None and bool(g.any())}
    assert {"theta", "encoder.mlp_layers.1.weight", "decoder.mlp_layers.1.weight"} <= reached
    assert not any(name.startswith("rq.") for name in reached)


def test_temperatures_stay_within_their_bound(place):
    model, steps = model_of(place[1])
    model.loss(steps[0], 0)
    with torch.no_grad():
        model.theta.add_(torch.tensor([9.0, -9.0, 0.0]))
    model.after_step(torch.optim.AdamW(model.parameters()))
    assert model.theta.exp().tolist() == pytest.approx([100, 1, 1 / 0.07], rel=1e-5)


# ---------------------------------------------------------------- steps


def test_an_epoch_shows_every_item_and_every_pair_once(place):
    model, steps = model_of(place[1])
    pairs = model.pairs(Source.of(place[1]))
    rows = torch.cat([s.rows for s in steps if s.rows is not None])
    seen = torch.cat([s.pair_B2 for s in steps if s.pair_B2 is not None])
    assert sorted(rows.tolist()) == list(range(40))
    assert sorted(map(sorted, seen.tolist())) == sorted(pairs.item_P2.tolist())
    assert (seen[:, 0] > seen[:, 1]).any() and (seen[:, 0] < seen[:, 1]).any()
    assert all((s.rows is None) != (s.pair_B2 is None) for s in steps)


@pytest.mark.parametrize(
    ("changes", "rows", "pairs"),
    [
        ({"task": "reconstruction"}, True, False),
        ({"task": "contrastive"}, False, True),
        ({"mixing": "sum"}, True, True),
    ],
)
def test_the_task_decides_what_a_step_holds(place, changes, rows, pairs):
    model, steps = model_of(place[1], **changes)
    assert all((s.rows is not None, s.pair_B2 is not None) == (rows, pairs) for s in steps)
    loss, parts = model.loss(steps[0], 0)
    loss.backward()
    assert ("recon" in parts, "contrast" in parts) == (rows, pairs) and torch.isfinite(loss)


def test_a_sum_is_the_sum_of_both_losses(place):
    model, steps = model_of(place[1], mixing="sum")
    whole, _ = model.loss(steps[0], 0)
    both = [model.loss(Step(steps[0].rows, None), 0)[0], model.loss(Step(None, steps[0].pair_B2), 0)[0]]
    assert float(whole) == pytest.approx(float(sum(both)), rel=1e-5)


# ---------------------------------------------------------------- codebooks


def test_moving_averages_by_hand(monkeypatch):
    """Two codes, two rows, decay .5: counts 1 -> 1.5 and .5, sums likewise; Laplace's term is too small to see."""
    monkeypatch.setattr(codebooks, "DECAY", 0.5)
    upkeep = CodebookEMA(CodebookOptions(codebook_learning="ema"), [2], 2)
    book = torch.nn.Parameter(torch.tensor([[1.0, 0], [0, 1]]))
    upkeep.begin()
    upkeep.observe(0, torch.tensor([[3.0, 0], [0, 3.0]]), torch.tensor([0, 0]))
    assert upkeep.step([book], torch.optim.AdamW([book])) == {}
    assert torch.allclose(book, torch.tensor([[2 / 1.5, 1.5 / 1.5], [0, 1.0]]), atol=1e-4)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.parametrize("codes", [4, 32, 512])
def test_the_first_step_leaves_a_good_start_alone(learning, codes):
    """Every code has its share of 1,024 rows: none is dead, and an average moves by a hundredth of the way."""
    upkeep = CodebookEMA(CodebookOptions(codebook_learning=learning, dead_code_ratio=0.1), [codes], 1)
    book = torch.nn.Parameter(torch.arange(float(codes))[:, None])
    upkeep.begin()
    code = torch.arange(codes).repeat(1024 // codes)
    upkeep.observe(0, code[:, None] + 1.0, code)
    assert float(upkeep.step([book], torch.optim.AdamW([book]))["restarted"]) == 0
    moved = 0.01 if learning == "ema" else 0.0
    assert book[:, 0].tolist() == pytest.approx([c + moved for c in range(codes)], abs=1e-3)


def test_a_dead_code_moves_to_a_row_of_the_batch_and_forgets_its_moments(monkeypatch):
    monkeypatch.setattr(codebooks, "DECAY", 0.01)
    upkeep = CodebookEMA(CodebookOptions(dead_code_ratio=0.5), [2], 2)
    book = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([book])
    book.grad = torch.ones(2, 2)
    optimizer.step()
    upkeep.begin()
    row = torch.tensor([[5.0, 5.0]] * 4)
    upkeep.observe(0, row, torch.zeros(4, dtype=torch.long))
    assert float(upkeep.step([book], optimizer)["restarted"]) == 0.5
    assert torch.allclose(book[1], row[0]) and not torch.allclose(book[0], row[0])
    moment = optimizer.state[book]["exp_avg"]
    assert moment[0].all() and not moment[1].any()
    upkeep.observe(0, row, torch.tensor([0, 0, 1, 1]))
    assert float(upkeep.step([book], optimizer)["restarted"]) == 0


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_the_plain_tokenizer_has_the_upkeep_too(place, learning):
    options, data = place
    chosen = {"tokenizer": "rqvae", "codebook_learning": learning, "dead_code_ratio": 0.1}
    cfg = configure.build(options | chosen)
    path = build.train_tokenizer(cfg, data)
    assert len(read_json(path.with_name("report.json"))["disagreement"]) == 3
    assert ("upkeep.sum_0" in read_checkpoint(path)["state_dict"]) == (learning == "ema")
    joint = configure.build(options | chosen | {"method": "diger"})
    assert all(c.requires_grad for c in build.tokenizer_of(joint, data).rq.codebooks())


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("changes", [{}, {"task": "contrastive"}, {"codebook_learning": "ema"}])
def test_stopped_and_resumed_gives_the_same_bits(place, monkeypatch, changes):
    options, data = place
    cfg = configure.build(options | {"seed": 7, "rqvae_epochs": 4} | changes)
    whole = read_checkpoint(build.train_tokenizer(cfg, data))["state_dict"]
    folder = build.tokenizer_path(cfg, data).parent
    for file in folder.iterdir():
        file.unlink()
    epochs = iter([0, 0, 15])
    monkeypatch.setattr(guard, "asked", lambda: next(epochs, 0))
    with pytest.raises(Stopped):
        build.train_tokenizer(cfg, data)
    again = read_checkpoint(build.train_tokenizer(cfg, data))["state_dict"]
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)


def test_joint_training_starts_from_it(place):
    """By its options or by rqvae_path; the joint model carries neither temperatures nor counts."""
    options, data = place
    path = build.train_tokenizer(configure.build(options), data)
    codes = build.tokenizer_of(configure.build(options), data).encode(read_embeddings(data))
    cfg = configure.build(options | {"method": "diger", "rqvae_path": str(path), "run_name": "joint"})
    joint = build.tokenizer_of(cfg, data)
    assert torch.equal(joint.encode(read_embeddings(data)), codes)
    assert not [k for k in joint.state_dict() if k.startswith(("theta", "upkeep"))]
    assert restore.restore(main.train(cfg).best).model.tokenizer.cfg.task == "both"


def test_a_sum_of_one_task_is_refused():
    with pytest.raises(Problem, match="mixing: sum needs task: both"):
        configure.build({"tokenizer": "contrastive", "method": "two_stage", "mixing": "sum", "task": "contrastive"})


@pytest.mark.parametrize("changes", [{"restart_unused_codes": True}, {"batch_loss_weight": 0.75}])
def test_what_had_no_effect_is_left_out_with_a_warning(changes, caplog):
    plain = {"tokenizer": "contrastive", "method": "two_stage"}
    assert configure.build(plain | changes) == configure.build(plain)
    assert caplog.messages[0].startswith(f"without effect here, left out: {next(iter(changes))}")


def test_no_pairs_is_one_line(place):
    options, data = place
    with pytest.raises(Problem, match="the training part holds no pair of items"):
        build.train_tokenizer(configure.build(options | {"pair_min_count": 1000}), data)
