"""The usage-corrected loss: its limits, its average, and the toy in which merging pays only without it."""

import math

import pytest
import torch
from helpers import TINY, D, N, joint, some_batch

from compose import build, configure
from joint.prior import PRIORS, PrefixPrior, PriorOptions, UsagePrior
from layers import soft_label_loss

ITEM_R = torch.tensor([1, 1, 1])  # targets; the shares of whole levels do not ask for them
NO_CODES = torch.zeros(0, 2)


def test_shares_follow_the_moving_average_of_the_targets(monkeypatch):
    monkeypatch.setattr(UsagePrior, "MOMENTUM", 0.9)
    prior = UsagePrior(PriorOptions(label_prior="usage"), [4, 4], 5)
    prior.observe(ITEM_R, [torch.tensor([0, 0, 1]), torch.tensor([2, 2, 2])], torch.tensor(0.75))
    prior.observe(ITEM_R, [torch.tensor([3]), torch.tensor([0])], torch.tensor(0.25))  # another part of the same step
    prior.observe(ITEM_R, [torch.tensor([2]), torch.tensor([1])], torch.tensor(0.0))  # of a process without samples
    prior.after_step(lambda t: t)
    want = [[0.9 * 0.25 + 0.1 * c / 4 for c in counts] for counts in ((2, 1, 0, 1), (1, 0, 3, 0))]
    for level in range(2):
        assert prior.get_buffer(f"share_{level}").tolist() == pytest.approx(want[level])
        assert prior.log_share(level, ITEM_R, NO_CODES).tolist() == pytest.approx([math.log(x) for x in want[level]])
    assert PRIORS["none"](PriorOptions(), [4], 5).log_share(0, ITEM_R, NO_CODES) is None


def test_shares_among_the_items_of_a_prefix_against_their_definition():
    """Thirty items, few codes, so that prefixes and whole codes are shared; weights change when the codes are taken."""
    torch.manual_seed(0)
    sizes, code_NL = [3, 4, 5], torch.stack([torch.randint(k, (30,)) for k in (3, 4, 5)], 1)
    prior = PrefixPrior(PriorOptions(label_prior="prefix"), sizes, 30)
    item_U = torch.tensor([30, 4, 4, 11])
    even = prior.log_share(1, item_U, code_NL)
    prior.observe(torch.tensor([4, 4, 11, 7, 30, 30, 30]), [], torch.tensor(0.5))
    prior.observe(torch.tensor([1, 1]), [], torch.tensor(0.0))  # of a process without samples
    prior.after_step(lambda t: t)
    assert torch.equal(prior.log_share(1, item_U, code_NL), even)
    prior.renew()
    weight = torch.ones(30)
    weight[[3, 10, 6, 29]] += torch.tensor([2.0, 1, 1, 3])
    for level, k in enumerate(sizes):
        found = prior.log_share(level, item_U, code_NL).exp()
        for row, v in zip(found, (item_U - 1).tolist(), strict=True):
            mates = [w for w in range(30) if torch.equal(code_NL[w, :level], code_NL[v, :level])]
            for code in range(k):
                mass = weight[v] + sum(weight[w] for w in mates if w != v and code_NL[w, level] == code)
                assert float(row[code]) == pytest.approx(float(mass / weight[mates].sum()), rel=1e-5)
    again = PrefixPrior(PriorOptions(label_prior="prefix"), sizes, 30)
    again.load_state_dict(prior.state_dict())
    assert torch.equal(again.log_share(2, item_U, code_NL), prior.log_share(2, item_U, code_NL))


def test_items_alone_behind_their_prefixes_move_as_under_the_published_loss():
    """Where no two items share a first code, the second and third levels have nothing to charge."""
    prior = PrefixPrior(PriorOptions(label_prior="prefix"), [8, 4, 4], 8)
    codes = torch.stack([torch.arange(8), torch.arange(8) % 4, torch.arange(8) % 3], 1)
    for level in (1, 2):
        assert not prior.log_share(level, torch.arange(1, 9), codes).any()


def gradients(model, batch):
    """Of the recommendation loss alone, as a training step has them."""
    model.weights |= {"recon": 0.0, "vq": 0.0}
    loss = model(batch)[0]
    return [g.clone() for g in torch.autograd.grad(loss, model.tokenizer.rq.codebooks())]


def test_an_even_share_is_the_published_loss():
    """It adds one number to every code's cost, and the soft assignment sums to one."""
    batch = some_batch()
    for ours, plain in zip(gradients(joint(label_prior="usage"), batch), gradients(joint(), batch), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)


def test_an_uneven_share_moves_the_codebooks_and_no_loss():
    batch, model, plain = some_batch(), joint(label_prior="usage"), joint()
    model.prior.get_buffer("share_0").copy_(torch.tensor([0.93, *[0.01] * 7]))
    assert float(model(batch)[0].detach()) == pytest.approx(float(plain(batch)[0].detach()))
    assert "loss/label_prior" in model(batch)[1] and "loss/label_prior" not in plain(batch)[1]
    assert not torch.allclose(gradients(model, batch)[0], gradients(plain, batch)[0], rtol=1e-3)


def test_weights_and_prefixes_are_taken_with_the_catalogues_codes():
    """After an epoch; a state read into a model that has asked already gives the same shares."""
    batch, model = some_batch(), joint(label_prior="prefix").train()
    target_R = batch.item_U[batch.goals(model.targets)]
    want = 1 + (target_R - 1).bincount(minlength=N)
    before = model.log_usage(batch.item_U)
    model(batch)
    model.after_step(lambda t: t)
    assert all(torch.equal(*pair) for pair in zip(model.log_usage(batch.item_U), before, strict=True))
    with torch.no_grad():
        model.tokenizer.rq.codebooks()[0].mul_(-1)
    model.refresh()
    assert torch.equal(model.prior.get_buffer("weight_N"), want.float())
    fresh = PrefixPrior(model.prior.cfg, [8, 8, 8], N)
    fresh.get_buffer("weight_N").copy_(want)
    again = joint(label_prior="prefix")
    again.log_usage(batch.item_U)
    again.load_state_dict(model.state_dict())
    for level, share in enumerate(model.log_usage(batch.item_U)):
        assert torch.equal(share, fresh.log_share(level, batch.item_U, model.code_NT))
        assert torch.equal(share, again.log_usage(batch.item_U)[level])


def test_an_uneven_prefix_changes_what_a_step_does():
    batch = some_batch()
    ours, plain = gradients(joint(label_prior="prefix"), batch), gradients(joint(), batch)
    assert not torch.allclose(ours[0], plain[0], rtol=1e-3)


def test_an_item_is_pushed_from_the_codes_of_others():
    """Two items of one whole code: it has the largest share for both; the term is in no loss's value."""
    batch, model, plain = some_batch(), joint(label_prior="prefix"), joint()
    assert float(model(batch)[0].detach()) == pytest.approx(float(plain(batch)[0].detach()))
    model.code_NT[:2] = model.code_NT[0]
    model.prior.renew()
    share = model.log_usage(torch.tensor([1, 2]))[2]
    own = int(model.code_NT[0, 2])
    assert (share[:, own] == share.max(1).values).all() and (share[:, own] > share.min(1).values).all()
    assert model(batch)[1]["loss/label_prior"] < 0


def test_a_resting_tokenizer_trains_like_two_stage():
    """With no gradient wanted at the codebooks the term has nowhere to go: the recommender's gradients are the same."""
    batch = some_batch()
    model = joint(label_prior="usage", uncertainty="none", assignment_forward="cached")
    model.prior.get_buffer("share_0").copy_(torch.tensor([0.93, *[0.01] * 7]))
    frozen = build.empty_model(configure.build({**TINY, "method": "two_stage"}), N, D)
    frozen.set_codes(model.code_NT.long())
    frozen.recommender.load_state_dict(model.recommender.state_dict())
    losses = [m.sid_loss(batch, m.quantize(batch)).loss for m in (model, frozen)]
    assert torch.equal(*losses)
    ours, theirs = (
        torch.autograd.grad(loss, list(m.recommender.parameters()))
        for loss, m in zip(losses, (model, frozen), strict=True)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def toy(completed, steps=400):
    """Four equally frequent items, four codes, a recommender that knows nothing and fits the codes' shares at once.

    Returns the entropy of the codes' shares at the end.
    """
    torch.manual_seed(0)
    logits = torch.randn(4, 4).mul(0.3).add(2 * torch.eye(4)).requires_grad_()
    optimizer = torch.optim.SGD([logits], 1.0)
    for _ in range(steps):
        q = logits.softmax(1)
        said = q.detach().mean(0).log()  # the codes' shares, and what the recommender predicts: it sees no history
        optimizer.zero_grad()
        prior = said if completed else None
        soft_label_loss(said.expand(4, 4), q.argmax(1), q, torch.arange(4), log_prior=prior).backward()
        optimizer.step()
    share = logits.softmax(1).detach().mean(0)
    return float(-(share * share.log()).sum())


def test_merging_pays_under_the_published_loss_and_not_under_the_completed_one():
    """H(code): the published loss is lowered by giving all items one code, the completed one is indifferent."""
    assert toy(completed=False) < 0.1
    assert toy(completed=True) == pytest.approx(math.log(4), abs=0.05)
