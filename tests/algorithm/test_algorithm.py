"""Advantages, metrics and GRPO as a whole: by hand, by property, and the invariant that stops a run."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.algorithm.advantages import group_relative_advantages
from lockstep.algorithm.algorithm import GRPO
from lockstep.algorithm.metrics import mismatch_metrics, ratio_metrics
from lockstep.types import InvariantError

REWARDS = st.lists(st.floats(-100, 100), min_size=2, max_size=16)


def test_advantages_golden():
    """Rewards 1, 0, 0, 1: mean 0.5, unbiased variance 4 * 0.25 / 3."""
    found = GRPO().advantages([1.0, 0.0, 0.0, 1.0])
    value = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert found == pytest.approx([value, -value, -value, value], abs=1e-15)
    assert GRPO(normalize=False).advantages([3.0, 0.0, 0.0]) == [2.0, -1.0, -1.0]


@given(REWARDS, st.booleans())
def test_advantages_of_a_group_sum_to_zero_and_keep_its_order(rewards, normalize):
    found = GRPO(normalize=normalize).advantages(rewards)
    assert abs(sum(found)) <= 1e-9 * max(1, *map(abs, found))
    by_reward = [advantage for _, advantage in sorted(zip(rewards, found, strict=True))]
    assert by_reward == sorted(by_reward)


@given(REWARDS, st.floats(-50, 50))
def test_advantages_do_not_depend_on_a_constant_reward(rewards, constant):
    found = GRPO(normalize=False).advantages(rewards)
    assert GRPO(normalize=False).advantages([r + constant for r in rewards]) == pytest.approx(found, abs=1e-9)


def test_equal_rewards_teach_nothing():
    assert GRPO().advantages([0.75] * 8) == [0.0] * 8


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_a_group_without_siblings_is_refused(rewards):
    with pytest.raises(ValueError, match=">= 2"):
        group_relative_advantages(torch.tensor(rewards), normalize=True)


def test_mismatch_golden():
    """Trainer over engine 0.5 and 2: k3 = (0.5 - 1 + log 2 + 2 - 1 - log 2) / 2, k1 = 0."""
    found = mismatch_metrics(torch.tensor([0.1, 0.4]).log(), torch.tensor([0.2, 0.2]).log())
    assert found["mismatch/kl"] == pytest.approx(0.25, abs=1e-6)
    assert found["mismatch/k1"] == pytest.approx(0.0, abs=1e-6)
    assert found["mismatch/max_abs"] == pytest.approx(math.log(2), abs=1e-6)
    surer = mismatch_metrics(torch.tensor([-2.0]), torch.tensor([-1.0]))
    assert surer["mismatch/k1"] == 1.0
    assert surer["mismatch/kl"] == pytest.approx(math.exp(-1), abs=1e-12)


def test_mismatch_sees_the_smallest_differences():
    """d = 1e-6: k3 is d^2 / 2 = 5e-13, which exp(d) - 1 - d in float32 would lose."""
    engine = torch.tensor([-1.0, -1.0]).double()
    found = mismatch_metrics(engine + torch.tensor([1e-6, -1e-6]).double(), engine)
    assert found["mismatch/kl"] == pytest.approx(5e-13, rel=1e-3)


def test_ratio_golden():
    """Removed by the clip: 1.5 with A > 0 and 0.5 with A < 0; the other two keep their gradient."""
    logprobs = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.0]).double().log()
    advantages = torch.tensor([1.0, -1, 1, -1, 1])
    found = ratio_metrics(logprobs, torch.zeros(5).double(), advantages, 0.2, 0.28)
    assert found == pytest.approx({"ratio/min": 0.5, "ratio/max": 1.5, "clip_fraction": 0.4}, abs=1e-7)


def test_the_loss_of_a_batch_golden():
    """Trainer 0.5, 0.4, 0.3 over engine 0.5, 0.2, 0.1: weights 1, 2, 2 (3 is cut); 4 tokens in all."""
    logprobs = torch.tensor([0.5, 0.4, 0.3]).double().log().requires_grad_()
    engine = torch.tensor([0.5, 0.2, 0.1]).double().log()
    loss = GRPO().loss(logprobs, None, engine, torch.tensor([1.0, -1.0, 2.0]).double(), denominator=4)
    loss.backward()
    assert loss.item() == pytest.approx(-(1 - 2 + 4) / 4, abs=1e-14)
    assert logprobs.grad.tolist() == pytest.approx([-0.25, 0.5, -1.0], abs=1e-14)
    advantages = torch.tensor([1.0, -1.0, 2.0]).double()
    uncorrected = GRPO(importance_cap=0).loss(logprobs, None, engine, advantages, denominator=4)
    assert uncorrected.item() == pytest.approx(-0.5, abs=1e-14)


def test_the_loss_of_a_later_update_golden():
    """Old 0.4, 0.5, 0.2 under new 0.5, 0.4, 0.3: ratios 1.25, 0.8, 1.5; A = 1, -1, 2. The last is clipped to 1.28; the
    correction weighs old against engine, 0.8 and 2.5 (cut at 2) and 2."""
    logprobs = torch.tensor([0.5, 0.4, 0.3]).double().log().requires_grad_()
    old, engine = (torch.tensor(p).double().log() for p in ([0.4, 0.5, 0.2], [0.5, 0.2, 0.1]))
    loss = GRPO().loss(logprobs, old, engine, torch.tensor([1.0, -1.0, 2.0]).double(), denominator=4)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.8 * 1.25 - 2 * 0.8 + 2 * 2 * 1.28) / 4, abs=1e-7)
    assert logprobs.grad.tolist() == pytest.approx([-0.25, 0.4, 0.0], abs=1e-7)


def test_metrics_of_the_last_epoch():
    found = GRPO().later_metrics(torch.tensor([0.5, 0.4]).log(), torch.tensor([0.4, 0.5]).log(), torch.tensor([1, -1]))
    assert found == pytest.approx(
        {"last_epoch/ratio/min": 0.8, "last_epoch/ratio/max": 1.25, "last_epoch/clip_fraction": 0.0}
    )


def test_metrics_on_policy():
    logprobs = torch.tensor([-1.0, -2.0])
    found = GRPO().metrics(logprobs, torch.tensor([-1.0, -3.5]), torch.tensor([1.0, -1.0]))
    assert (found["ratio/min"], found["ratio/max"], found["clip_fraction"]) == (1.0, 1.0, 0.0)
    assert (found["correction/weight_min"], found["correction/weight_max"]) == (1.0, 2.0)
    assert "correction/weight_max" not in GRPO(importance_cap=0).metrics(logprobs, logprobs, logprobs)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
def test_a_log_prob_that_is_no_number_stops_the_run_with_the_evidence(value):
    logprobs = torch.tensor([-1.0, -1.0, value])
    with pytest.raises(InvariantError, match=r"1 of 3 log-probs are not finite \(first at action token \[2\]\)"):
        GRPO().metrics(logprobs, torch.full((3,), -1.0), torch.ones(3))
