"""The decays: usage averages and sigma's equilibrium by hand, randomness by Gumbel's theorem."""

import dataclasses
import math

import pytest
import torch

import layers
from joint.uncertainty import DECAYS, SDUD, FrqUD, UncertaintyOptions
from utils import Problem


def options(**changes):
    return dataclasses.replace(UncertaintyOptions(), **changes)


def same(t):
    return t


def test_frqud_usage_follows_its_moving_average():
    decay = FrqUD(options(usage_momentum=0.9), [4, 4])
    codes = torch.tensor([0, 0, 0, 1])
    decay.observe([codes, torch.tensor([2, 2, 3, 3])], torch.ones(4, dtype=torch.bool), torch.tensor(0.0))
    decay.observe([torch.tensor([0, 3]), torch.tensor([0, 0])], torch.tensor([False, True]), torch.tensor(0.0))
    decay.after_step(same)
    # five items were new: codes 0 0 0 1 3 on level 1, 2 2 3 3 0 on level 2
    want_1 = [0.9 * 0.25 + 0.1 * c / 5 for c in (3, 1, 0, 1)]
    want_2 = [0.9 * 0.25 + 0.1 * c / 5 for c in (1, 0, 2, 2)]
    assert decay.usage(0).tolist() == pytest.approx(want_1)
    assert decay.usage(1).tolist() == pytest.approx(want_2)
    decay.after_step(same)  # nothing pending is counted twice
    assert decay.usage(0)[0] == pytest.approx(0.9 * want_1[0])


def test_nothing_is_hot_at_the_start_and_then_only_what_is_over_used():
    decay = FrqUD(options(hot_threshold_ratio=1.5, usage_momentum=0.0), [4])
    codes = torch.tensor([0, 1, 2, 3])
    assert decay.noise_scale([codes]).flatten().tolist() == [0, 0, 0, 0]
    decay.observe([torch.tensor([0, 0, 1, 2])], torch.ones(4, dtype=torch.bool), torch.tensor(0.0))
    decay.after_step(same)  # shares .5 .25 .25 0 against the threshold .375
    assert decay.noise_scale([codes]).flatten().tolist() == [1, 0, 0, 0]


def test_granularity_decides_on_the_first_level_or_on_each():
    first, second = torch.tensor([0, 1]), torch.tensor([1, 0])
    for granularity, want in (("item", [1, 0]), ("level", [0, 1])):
        decay = FrqUD(options(hot_granularity=granularity), [4, 4])
        for level in range(2):
            decay.usage(level)[0] = 0.9
        assert decay.noise_scale([first, second]).flatten().tolist() == want


@pytest.mark.parametrize(("loss", "bias"), [(9.0, 1.7), (4.0, 1.0), (2.0, 1.7)])
def test_sigma_settles_where_the_paper_says(loss, bias):
    decay = SDUD(options(initial_std=1.0, sigma_lambda=bias), [8, 8, 8])
    optimizer = torch.optim.SGD(decay.parameters(), 0.5)
    for _ in range(600):
        optimizer.zero_grad()
        decay.task_loss(torch.tensor(loss)).backward()
        optimizer.step()
    assert decay.sigma.abs().mean().item() == pytest.approx(max(0.0, math.sqrt(loss) - bias), abs=0.02)


def test_sdud_loss_by_hand_and_raw():
    decay = SDUD(options(initial_std=2.0, sigma_lambda=1.7), [8])
    assert decay.task_loss(torch.tensor(5.0)).item() == pytest.approx(5 / (2 * 3.7**2) + math.log(3.7))
    raw = SDUD(options(sdud_loss="raw"), [8])
    assert raw.task_loss(torch.tensor(5.0)).item() == 5.0


def test_adaptive_lambda_follows_the_loss_and_learnable_is_clamped():
    decay = SDUD(options(auto_lambda_mode="adaptive"), [8])
    assert decay.lambda_().item() == pytest.approx(math.sqrt(5.0))
    decay.observe([], torch.ones(0), torch.tensor(0.25))
    decay.observe([], torch.ones(0), torch.tensor(0.75))  # two parts of one step
    decay.after_step(same)
    assert decay.lambda_().item() == pytest.approx(math.sqrt(0.99 * 5 + 0.01 * 1.0))
    learned = SDUD(options(auto_lambda_mode="learnable", sigma_lambda=2.9), [8])
    assert {n for n, _ in learned.named_parameters()} == {"sigma", "bias"}
    learned.bias.data += 1.0  # as a step may leave it
    learned.after_step(same)
    assert learned.lambda_().item() == learned.bias.item() == 3.0
    learned.lambda_().backward()
    assert learned.bias.grad.item() == 1.0  # it can come back
    with pytest.raises(Problem, match=r"sigma_lambda: 9.0 lies outside 0.5 to 3.0"):
        options(auto_lambda_mode="learnable", sigma_lambda=9.0)


def test_both_is_the_product_of_mask_and_scale():
    decay = DECAYS["frqud_sdud"](options(initial_std=0.5), [4])
    decay.frequency.usage(0)[2] = 0.9
    scale = decay.noise_scale([torch.tensor([1, 2])])
    assert scale.flatten().tolist() == [0, 0.5]


@pytest.mark.parametrize("name", ["gumbel", "gaussian"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_share_of_drawn_codes_that_are_the_nearest(name, scale):
    """What a strategy says of its noise against the noise itself, drawn 400 times."""
    torch.manual_seed(0)
    logits, decay = torch.randn(50, 16), DECAYS[name](options(), [16])
    want = decay.keep_probability(logits, scale).mean().item()
    items, same_code = torch.arange(1, 51), []
    for step in range(400):
        noise = decay.noise(layers.counter_uniform(0, torch.tensor(step), items, 0, 16))
        same_code.append(((logits + scale * noise).argmax(1) == logits.argmax(1)).float().mean().item())
    assert sum(same_code) / 400 == pytest.approx(want, abs=0.015)


def test_temperature_falls_only_when_asked():
    step = torch.tensor(1000)
    assert DECAYS["frqud"](options(gumbel_tau=1.5), [4]).tau(step) == 1.5
    falling = options(uncertainty="tau_annealing", gumbel_tau=2.0, tau_anneal_rate=1e-3, tau_anneal_min=0.5)
    assert float(DECAYS["tau_annealing"](falling, [4]).tau(step)) == pytest.approx(2 * math.exp(-1))
    assert float(DECAYS["tau_annealing"](falling, [4]).tau(step * 10)) == 0.5
    with pytest.raises(Problem, match=r"tau_anneal_min: 3\.0 exceeds gumbel_tau 2\.0"):
        options(uncertainty="tau_annealing", tau_anneal_min=3.0)
