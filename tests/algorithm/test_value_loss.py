"""The critic's loss and explained variance: golden numbers, gradients on both sides of each kink."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.algorithm.value_loss import ValueLoss, explained_variance

F64 = torch.float64
# Old value 0, clip 0.2. Towards the target beyond the clip; the same downwards; away from it; within the clip; past the
# target by more than the clip leaves.
VALUES = [0.5, -0.5, -0.5, 0.1, 0.5]
TARGETS = [1.0, -1.0, 1.0, 1.0, 0.2]


def test_golden():
    """clip(v) = .2, -.2, -.2, .1, .2; max of squares: (.25, .64), (.25, .64), (2.25, 1.44), (.81, .81), (.09, 0); half:
    .32, .32, 1.125, .405, .045. Gradients v - target where not clipped: 0, 0, -1.5, -.9, .3."""
    values = torch.tensor(VALUES, dtype=F64, requires_grad=True)
    losses, clipped = ValueLoss()(values, torch.zeros(5, dtype=F64), torch.tensor(TARGETS, dtype=F64))
    assert losses.tolist() == pytest.approx([0.32, 0.32, 1.125, 0.405, 0.045])
    assert clipped.tolist() == [True, True, False, False, False]
    (slopes,) = torch.autograd.grad(losses.sum(), values)
    assert slopes.tolist() == pytest.approx([0, 0, -1.5, -0.9, 0.3])


def test_golden_around_another_old_value():
    """Old 2, clip .5, coefficient 1, value 3, target 4: clip(v) = 2.5; max((3-4)^2, (2.5-4)^2) = 2.25."""
    losses, clipped = ValueLoss(clip=0.5, coefficient=1.0)(
        torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([4.0])
    )
    assert losses.tolist() == [2.25] and clipped.tolist() == [True]


def test_without_clip():
    values = torch.tensor(VALUES, dtype=F64, requires_grad=True)
    targets = torch.tensor(TARGETS, dtype=F64)
    losses, clipped = ValueLoss(clip=None, coefficient=0.1)(values, torch.zeros(5, dtype=F64), targets)
    assert losses.tolist() == pytest.approx([0.025, 0.025, 0.225, 0.081, 0.009])
    assert clipped.dtype == torch.bool and not clipped.any()
    (slopes,) = torch.autograd.grad(losses.sum(), values)
    torch.testing.assert_close(slopes, 0.2 * (values - targets).detach())


@pytest.mark.parametrize("clip", [0.2, None])
def test_gradcheck(clip):
    values = torch.tensor(VALUES, dtype=F64, requires_grad=True)
    targets = torch.tensor(TARGETS, dtype=F64)
    torch.autograd.gradcheck(lambda v: ValueLoss(clip=clip)(v, torch.zeros(5, dtype=F64), targets)[0], values)


def test_kinks():
    """At the clip's edge the gradient is the plain one; and where the squares are equal with v and clip(v) on two sides
    of the target: v = .5, clip(v) = .25, target .375, slope .5 * 2 * .125. A little less v is clipped, slope 0."""
    loss = ValueLoss(clip=0.25)
    values = torch.tensor([0.25, 0.5, 0.4375], dtype=F64, requires_grad=True)
    targets = torch.tensor([1.0, 0.375, 0.375], dtype=F64)
    losses, clipped = loss(values, torch.zeros(3, dtype=F64), targets)
    assert clipped.tolist() == [False, False, True]
    (slopes,) = torch.autograd.grad(losses.sum(), values)
    assert slopes.tolist() == [-0.75, 0.125, 0.0]


@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=1, max_size=10), st.floats(0.01, 3))
def test_clip_is_pessimistic_and_clipped_means_no_gradient(rows, clip):
    table = torch.tensor(rows, dtype=F64)
    values = table[:, 0].clone().requires_grad_()
    losses, clipped = ValueLoss(clip=clip)(values, table[:, 1], table[:, 2])
    plain, _ = ValueLoss(clip=None)(values, table[:, 1], table[:, 2])
    assert (losses >= plain).all() and torch.equal(losses > plain, clipped)
    (slopes,) = torch.autograd.grad(losses.sum(), values)
    torch.testing.assert_close(slopes, torch.where(clipped, 0, table[:, 0] - table[:, 2]))
    assert not clipped[(table[:, 0] - table[:, 1]).abs() <= clip * (1 - 1e-9)].any()


def test_first_update_is_the_plain_loss():
    values = torch.tensor(VALUES, requires_grad=True)
    losses, clipped = ValueLoss()(values, values.detach(), torch.tensor(TARGETS))
    assert losses.dtype == torch.float32 and not clipped.any()
    torch.testing.assert_close(losses, 0.5 * (values - torch.tensor(TARGETS)).square())


def test_explained_variance_golden():
    """Targets 1, 2, 3, variance 2/3. Exact, or off by a constant: 1. The mean: 0. Values 1, 2, 2: errors 0, 0, 1,
    variance 2/9: 1 - 1/3. Values 3, 2, 1: errors -2, 0, 2, variance 8/3: 1 - 4 = -3."""
    targets = torch.tensor([1.0, 2.0, 3.0])
    for values, expected in (
        ([1.0, 2.0, 3.0], 1.0),
        ([11.0, 12.0, 13.0], 1.0),
        ([2.0, 2.0, 2.0], 0.0),
        ([1.0, 2.0, 2.0], 2 / 3),
        ([3.0, 2.0, 1.0], -3.0),
    ):
        found = explained_variance(torch.tensor(values, requires_grad=True), targets)
        assert isinstance(found, float) and found == pytest.approx(expected)


def test_explained_variance_of_targets_that_are_all_the_same():
    """The mean of 999 times 0.1 is not exactly 0.1, nor the variance exactly 0."""
    assert math.isnan(explained_variance(torch.arange(999.0), torch.full((999,), 0.1, dtype=F64)))
    assert math.isnan(explained_variance(torch.zeros(1), torch.ones(1)))
    assert math.isnan(explained_variance(torch.zeros(0), torch.zeros(0)))


def test_explained_variance_is_computed_in_float64():
    """Targets 2^24 and 2^24 + 2, variance 1; errors 1.5 apart, variance 9/16, of which float32 would make 1 and 1/4."""
    targets = torch.tensor([16777216.0, 16777218.0])
    assert explained_variance(torch.tensor([0.75, 1.25]), targets) == pytest.approx(1 - 9 / 16)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip": -0.2}, "clip=-0.2"),
        ({"clip": math.nan}, "clip=nan"),
        ({"coefficient": 0.0}, "coefficient=0.0"),
        ({"coefficient": math.inf}, "coefficient=inf"),
    ],
)
def test_wrong_options_are_one_line(options, named):
    with pytest.raises(ValueError) as error:
        ValueLoss(**options)
    assert str(error.value).startswith(f"{named}: ") and "\n" not in str(error.value)
