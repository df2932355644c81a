"""The completed loss: its limits, its average, and the toy in which merging pays only without it."""

import math

import pytest
import torch
from test_model import TINY, D, N, joint, some_batch

import building
import methods
from prior import PRIORS, PriorOptions, UsagePrior


def test_shares_follow_the_moving_average_of_the_targets():
    prior = UsagePrior(PriorOptions(label_prior="usage", prior_momentum=0.9), [4, 4])
    prior.observe([torch.tensor([0, 0, 1]), torch.tensor([2, 2, 2])], torch.tensor(0.75))
    prior.observe([torch.tensor([3]), torch.tensor([0])], torch.tensor(0.25))  # another part of the same step
    prior.observe([torch.tensor([2]), torch.tensor([1])], torch.tensor(0.0))  # of a process without samples
    prior.after_step(lambda t: t)
    want = [[0.9 * 0.25 + 0.1 * c / 4 for c in counts] for counts in ((2, 1, 0, 1), (1, 0, 3, 0))]
    for level in range(2):
        assert prior.get_buffer(f"share_{level}").tolist() == pytest.approx(want[level])
        assert prior.log_share(level).tolist() == pytest.approx([math.log(x) for x in want[level]])
    assert PRIORS["none"](PriorOptions(), [4]).log_share(0) is None


def gradients(model, batch):
    loss = model.recommendation_loss(batch, model.quantize(batch), ("target",))
    return [g.clone() for g in torch.autograd.grad(loss, model.tokenizer.rq.codebooks())]


def test_an_even_share_is_the_published_loss():
    """It adds one number to every code's cost, and the soft assignment sums to one."""
    batch = some_batch()
    for ours, plain in zip(gradients(joint(label_prior="usage"), batch), gradients(joint(), batch), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)


def test_an_uneven_share_moves_the_codebooks_and_no_loss():
    batch, model, plain = some_batch(), joint(label_prior="usage"), joint()
    model.prior.get_buffer("share_0").copy_(torch.tensor([0.93, *[0.01] * 7]))
    assert float(model(batch)[0]) == pytest.approx(float(plain(batch)[0]))
    assert "loss/label_prior" in model(batch)[1] and "loss/label_prior" not in plain(batch)[1]
    assert not torch.allclose(gradients(model, batch)[0], gradients(plain, batch)[0], rtol=1e-3)


def test_a_resting_tokenizer_trains_like_two_stage():
    """With no gradient wanted at the codebooks the term has nowhere to go: the recommender's gradients are the same."""
    batch = some_batch()
    model = joint(label_prior="usage", uncertainty="none", assignment_forward="cached")
    model.prior.get_buffer("share_0").copy_(torch.tensor([0.93, *[0.01] * 7]))
    frozen = building.empty_model(methods.build({**TINY, "method": "two_stage"}), N, D)
    frozen.set_codes(model.code_NT.long())
    frozen.recommender.load_state_dict(model.recommender.state_dict())
    losses = [m.recommendation_loss(batch, m.quantize(batch)) for m in (model, frozen)]
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
        share = q.detach().mean(0)  # also what the recommender predicts: it sees no history
        cost = -share.log() + (share.log() if completed else 0.0)
        optimizer.zero_grad()
        (q * cost).sum(1).mean().backward()
        optimizer.step()
    share = logits.softmax(1).detach().mean(0)
    return float(-(share * share.log()).sum())


def test_merging_pays_under_the_published_loss_and_not_under_the_completed_one():
    """H(code): the published loss is lowered by giving all items one code, the completed one is indifferent."""
    assert toy(completed=False) < 0.1
    assert toy(completed=True) == pytest.approx(math.log(4), abs=0.05)
