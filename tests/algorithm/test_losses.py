"""Losses and corrections against numbers worked by hand, and their gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from lockstep.algorithm.correction import truncated_importance_weights
from lockstep.algorithm.losses import clipped_policy_loss, supervised_loss

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def logs(*values):
    return torch.tensor(values, dtype=torch.float64).log()


def test_clipped_loss_golden():
    """Ratios 0.5, 1, 1.5, each with advantages +1 and -1; the clip is 0.8 from below and 1.28 from above.

    A = +1: min(0.5, 0.8), min(1, 1), min(1.5, 1.28); A = -1: min(-0.5, -0.8), min(-1, -1), min(-1.5, -1.28).
    """
    ratios = logs(0.5, 1.0, 1.5, 0.5, 1.0, 1.5)
    advantages = torch.tensor([1.0, 1, 1, -1, -1, -1]).double()
    expected = [0.5, 1.0, 1.28, -0.8, -1.0, -1.5]
    for i, value in enumerate(expected):
        one = slice(i, i + 1)
        loss = clipped_policy_loss(ratios[one], torch.zeros(1), advantages[one], denominator=1, **CLIP)
        assert loss.item() == pytest.approx(-value, abs=1e-15)
    whole = clipped_policy_loss(ratios, torch.zeros(6), advantages, denominator=8, **CLIP)
    assert whole.item() == pytest.approx(-sum(expected) / 8, abs=1e-15)


def test_clipped_loss_has_no_gradient_where_the_clip_holds():
    """d loss / d logprob = -A * ratio / N where the unclipped term is the smaller, else 0."""
    logprobs = logs(0.5, 1.0, 1.5, 0.5, 1.0, 1.5).requires_grad_()
    advantages = torch.tensor([2.0, 2, 2, -2, -2, -2]).double()
    clipped_policy_loss(logprobs, torch.zeros(6), advantages, denominator=4, **CLIP).backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.25, -0.5, 0, 0, 0.5, 0.75], abs=1e-15)


def test_weights_multiply_each_tokens_term():
    logprobs, advantages = logs(1.0, 1.5), torch.tensor([1.0, -1.0]).double()
    loss = clipped_policy_loss(
        logprobs, torch.zeros(2), advantages, denominator=2, weights=torch.tensor([0.5, 2.0]).double(), **CLIP
    )
    assert loss.item() == pytest.approx(-(0.5 * 1.0 + 2.0 * -1.5) / 2, abs=1e-15)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    logprobs, old = torch.randn(2, 30, generator=generator).double()
    advantages, weights = torch.randn(30, generator=generator).double(), torch.rand(30, generator=generator).double()

    def loss(logprobs):
        return clipped_policy_loss(logprobs, old, advantages, denominator=7, weights=weights, **CLIP)

    assert gradcheck(loss, logprobs.requires_grad_())
    assert gradcheck(lambda x: supervised_loss(x, denominator=7), logprobs)


def test_on_policy_the_gradient_is_minus_advantage_times_weight_over_the_denominator():
    """To the last bit: exp(0) is 1, and nothing else may be in the way."""
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(50, generator=generator).requires_grad_()
    advantages, weights = torch.randn(50, generator=generator), torch.rand(50, generator=generator)
    loss = clipped_policy_loss(logprobs, logprobs.detach(), advantages, denominator=64, weights=weights, **CLIP)
    loss.backward()
    assert torch.equal(logprobs.grad, -(advantages * weights) / 64)


def test_microbatches_add_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 20, generator=generator).double()
    whole = clipped_policy_loss(logprobs, old, advantages, denominator=20, **CLIP)
    parts = [
        clipped_policy_loss(logprobs[part], old[part], advantages[part], denominator=20, **CLIP)
        for part in (slice(0, 3), slice(3, 3), slice(3, 20))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-14)


def test_supervised_loss_golden():
    logprobs = torch.tensor([-1.0, -2.5]).requires_grad_()
    loss = supervised_loss(logprobs, denominator=4)
    loss.backward()
    assert (loss.item(), logprobs.grad.tolist()) == (0.875, [-0.25, -0.25])


def test_importance_weights_golden():
    """Trainer over engine 0.5, 1, 1.9, 3 with a cap of 2."""
    old, engine = logs(0.1, 0.2, 0.38, 0.9).requires_grad_(), logs(0.2, 0.2, 0.2, 0.3)
    weights = truncated_importance_weights(old, engine, cap=2.0)
    assert weights.tolist() == pytest.approx([0.5, 1.0, 1.9, 2.0], abs=1e-14)
    assert not weights.requires_grad


def test_importance_weights_of_extreme_differences_are_finite():
    weights = truncated_importance_weights(torch.tensor([0.0, -1e30]), torch.tensor([-1e30, 0.0]), cap=1e30)
    assert weights.tolist() == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-6)
