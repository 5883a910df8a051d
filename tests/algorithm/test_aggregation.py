"""Token weights: golden numbers for each aggregation, and the same sum under any split and order."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.algorithm.aggregation import Aggregation, token_weights

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
TRAJECTORY = torch.tensor([0, 0, 0, 2])  # trajectory 1 sampled nothing


def weights_of(aggregation: Aggregation, trajectory, num_trajectories, counted=None):
    max_tokens = 10 if aggregation == "constant" else None
    return token_weights(aggregation, trajectory, num_trajectories, counted=counted, max_tokens=max_tokens)


def test_golden():
    """4 tokens, 3 of one trajectory and 1 of another; N = 2, as trajectory 1 has none."""
    golden: dict[Aggregation, list[float]] = {
        "token-mean": [1 / 4] * 4,
        "sequence-mean-token-mean": [1 / 6, 1 / 6, 1 / 6, 1 / 2],
        "sequence-mean-token-sum": [1 / 2] * 4,
        "constant": [1 / 20] * 4,
    }
    for aggregation, expected in golden.items():
        found = weights_of(aggregation, TRAJECTORY, 3)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(expected))


def test_golden_with_uncounted_tokens():
    """Without token 1: 3 tokens, 2 and 1, N = 2. Without token 3: 3 tokens, N = 1."""
    golden: list[tuple[list[int], Aggregation, list[float]]] = [
        ([1, 0, 1, 1], "token-mean", [1 / 3, 0, 1 / 3, 1 / 3]),
        ([1, 0, 1, 1], "sequence-mean-token-mean", [1 / 4, 0, 1 / 4, 1 / 2]),
        ([1, 0, 1, 1], "sequence-mean-token-sum", [1 / 2, 0, 1 / 2, 1 / 2]),
        ([1, 0, 1, 1], "constant", [1 / 20, 0, 1 / 20, 1 / 20]),
        ([1, 1, 1, 0], "token-mean", [1 / 3, 1 / 3, 1 / 3, 0]),
        ([1, 1, 1, 0], "sequence-mean-token-mean", [1 / 3, 1 / 3, 1 / 3, 0]),
        ([1, 1, 1, 0], "sequence-mean-token-sum", [1, 1, 1, 0]),
        ([1, 1, 1, 0], "constant", [1 / 10, 1 / 10, 1 / 10, 0]),
    ]
    for counted, aggregation, expected in golden:
        mask = torch.tensor(counted, dtype=torch.bool)
        found = weights_of(aggregation, TRAJECTORY, 3, counted=mask)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_counted_weighs_nothing(aggregation):
    none = torch.zeros(4, dtype=torch.bool)
    assert weights_of(aggregation, TRAJECTORY, 3, counted=none).tolist() == [0.0] * 4
    empty = torch.zeros(0, dtype=torch.int64)
    assert weights_of(aggregation, empty, 0).shape == (0,)


def test_losses_are_the_textbook_ones():
    """Losses 1, 2, 3 and 10: token mean 4; mean of the means 2 and 10 is 6; mean of the sums 6 and 10 is 8; of those
    over 10 tokens 0.8."""
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
    for aggregation, expected in zip(AGGREGATIONS, (4.0, 6.0, 8.0, 0.8), strict=True):
        found = (weights_of(aggregation, TRAJECTORY, 3) * losses).sum()
        assert found.item() == pytest.approx(expected)


def tokens(draw):
    trajectory = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=1, max_size=40)))
    counted = torch.tensor(draw(st.lists(st.booleans(), min_size=len(trajectory), max_size=len(trajectory))))
    return trajectory, counted


@given(st.data(), st.sampled_from(AGGREGATIONS))
def test_permuting_tokens_permutes_weights(data, aggregation):
    trajectory, counted = tokens(data.draw)
    place = torch.tensor(data.draw(st.permutations(range(len(trajectory)))))
    weights = weights_of(aggregation, trajectory, 5, counted=counted)
    moved = weights_of(aggregation, trajectory[place], 5, counted=counted[place])
    assert torch.equal(moved, weights[place])


@given(st.data(), st.sampled_from(AGGREGATIONS))
def test_renaming_trajectories_changes_nothing(data, aggregation):
    trajectory, counted = tokens(data.draw)
    names = torch.tensor(data.draw(st.permutations(range(9))))
    weights = weights_of(aggregation, trajectory, 5, counted=counted)
    renamed = weights_of(aggregation, names[trajectory], 9, counted=counted)
    assert torch.equal(renamed, weights)


@given(st.data(), st.sampled_from(AGGREGATIONS), st.integers(1, 4))
def test_any_split_sums_to_the_whole(data, aggregation, num_parts):
    """In float64 the parts' sums differ from the whole only in their order of addition."""
    trajectory, counted = tokens(data.draw)
    losses = torch.arange(len(trajectory), dtype=torch.float64).cos()
    weighted = weights_of(aggregation, trajectory, 5, counted=counted).double() * losses
    part = torch.arange(len(trajectory)) % num_parts
    total = sum(weighted[part == k].sum() for k in range(num_parts))
    torch.testing.assert_close(total, weighted.sum())


@given(st.data())
def test_weights_sum_to_what_they_should(data):
    trajectory, counted = tokens(data.draw)
    some = float(counted.any())
    num_present = len(set(trajectory[counted].tolist()))
    totals: dict[Aggregation, float] = {
        "token-mean": some,
        "sequence-mean-token-mean": some,
        "sequence-mean-token-sum": counted.sum().item() / max(num_present, 1),
        "constant": counted.sum().item() / max(num_present, 1) / 10,
    }
    for aggregation, total in totals.items():
        weights = weights_of(aggregation, trajectory, 5, counted=counted)
        assert weights.double().sum().item() == pytest.approx(total, rel=1e-6)
        assert (weights > 0).equal(counted)


@given(st.data(), st.sampled_from(AGGREGATIONS))
def test_uncounted_is_the_same_as_absent(data, aggregation):
    trajectory, counted = tokens(data.draw)
    weights = weights_of(aggregation, trajectory, 5, counted=counted)
    without = weights_of(aggregation, trajectory[counted], 5)
    assert torch.equal(weights[counted], without)


def test_large_denominators_are_rounded_once():
    """1 / (2^24 + 1) = 2^-24 - 2^-48 to float32; 2^24 + 1 itself is no float32, and would give 2^-24. 3 * 2^31 is no
    int32."""
    one = torch.zeros(1, dtype=torch.int64)
    assert token_weights("constant", one, 1, max_tokens=2**24 + 1).item() == 2**-24 - 2**-48
    found = token_weights("constant", torch.arange(3), 3, max_tokens=2**31)
    assert found.tolist() == pytest.approx([1 / (3 * 2**31)] * 3)


@pytest.mark.parametrize(
    ("aggregation", "max_tokens", "named"),
    [
        ("mean", None, "aggregation='mean': must be one of token-mean"),
        ("constant", None, "max_tokens=None: "),
        ("constant", 0, "max_tokens=0: "),
        ("token-mean", 5, "max_tokens=5: "),
        ("sequence-mean-token-sum", 5, "max_tokens=5: "),
        ("sequence-mean-token-mean", 5, "max_tokens=5: "),
    ],
)
def test_wrong_options_are_one_line(aggregation, max_tokens, named):
    with pytest.raises(ValueError) as error:
        token_weights(aggregation, TRAJECTORY, 3, max_tokens=max_tokens)
    assert str(error.value).startswith(named) and "\n" not in str(error.value)
