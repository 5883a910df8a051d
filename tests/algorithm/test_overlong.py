"""DAPO's overlong punishment: golden numbers at and around both ends of the buffer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.algorithm.overlong import OverlongPenalty


def test_golden():
    """Free up to 16, then a quarter more for each token of the buffer of 4, all at 20 and beyond."""
    found = OverlongPenalty(max_tokens=20, buffer_tokens=4)(torch.tensor([0, 15, 16, 17, 18, 19, 20, 21, 900]))
    assert found.dtype == torch.float64
    assert found.tolist() == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1, -1]


def test_dapos_own_numbers():
    """20480 tokens with a buffer of 4096: half is due at 18432."""
    penalty = OverlongPenalty(max_tokens=20480, buffer_tokens=4096)
    assert penalty(torch.tensor([16384, 18432, 20480])).tolist() == [0, -0.5, -1]


def test_penalty_scales_it():
    penalty = OverlongPenalty(max_tokens=10, buffer_tokens=10, penalty=0.4)
    assert penalty(torch.tensor([0, 5, 10, 11])).tolist() == pytest.approx([0, -0.2, -0.4, -0.4])


def test_no_negative_zero():
    found = OverlongPenalty(max_tokens=10, buffer_tokens=5)(torch.tensor([0, 5]))
    assert [math.copysign(1, x) for x in found.tolist()] == [1, 1]


def test_nothing_of_nothing():
    assert OverlongPenalty(max_tokens=10, buffer_tokens=5)(torch.zeros(0, dtype=torch.int64)).shape == (0,)


@given(st.integers(1, 50), st.data())
def test_falls_by_equal_steps_from_zero_to_the_whole(max_tokens, data):
    buffer = data.draw(st.integers(1, max_tokens))
    paid = OverlongPenalty(max_tokens=max_tokens, buffer_tokens=buffer, penalty=2.0)(torch.arange(max_tokens + 2))
    assert (paid[: max_tokens - buffer + 1] == 0).all() and (paid[max_tokens:] == -2).all()
    steps = paid.diff()[max_tokens - buffer : max_tokens]
    torch.testing.assert_close(steps, torch.full((buffer,), -2 / buffer, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": 0, "buffer_tokens": 1}, "max_tokens=0"),
        ({"max_tokens": 8, "buffer_tokens": 0}, "buffer_tokens=0"),
        ({"max_tokens": 8, "buffer_tokens": 9}, "buffer_tokens=9"),
        ({"max_tokens": 8, "buffer_tokens": 2, "penalty": 0.0}, "penalty=0.0"),
        ({"max_tokens": 8, "buffer_tokens": 2, "penalty": -1.0}, "penalty=-1.0"),
        ({"max_tokens": 8, "buffer_tokens": 2, "penalty": math.inf}, "penalty=inf"),
    ],
)
def test_wrong_options_are_one_line(options, named):
    with pytest.raises(ValueError) as error:
        OverlongPenalty(**options)
    assert str(error.value).startswith(f"{named}: ") and "\n" not in str(error.value)
