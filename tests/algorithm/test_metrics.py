"""A step's metrics: numbers worked by hand, what holds for any tokens, and what happens at the edges."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lockstep.algorithm.metrics import (
    advantage_metrics,
    correction_metrics,
    entropy_metrics,
    mismatch_metrics,
    mismatch_shares,
    ratio_metrics,
    staleness_metrics,
    turn_metrics,
    value_metrics,
)

NONE = torch.zeros(0)
NO_INDEX = torch.zeros(0, dtype=torch.long)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def logs(*weights):
    return doubles(*weights).log()


def index(*values):
    return torch.tensor(values, dtype=torch.long)


def test_mismatch_by_hand():
    """w = 2, 1/2, 4, 1 (d = log w), in sequences 0, 0, 1, 2, so that W = 1, 4, 1.

    k3 = w - 1 - log w: 1 - L, -1/2 + L, 3 - 2L, 0 with L = log 2: mean (3.5 - 2L)/4. k1 = -(L - L + 2L)/4 = -L/2.
    mean w = 7.5/4 = 1.875, mean w^2 = (4 + 1/4 + 16 + 1)/4 = 5.3125, var = 5.3125 - 1.875^2 = 1.796875.
    ess = 1.875^2 / 5.3125. Sequences: mean W^2 = 18/3 = 6, mean W = 2, ess 4/6. |d| > 1: of the third token
    alone (2L = 1.39), so of sequence 1. w is rounded here, so whether 1/2 is below a half is the next test's.
    Engine's log-probs -1, -2, -3, -4: mean -2.5; the trainer's mean is L/2 more.
    """
    engine = doubles(-1, -2, -3, -4)
    L = math.log(2)
    found = mismatch_metrics(engine + logs(2, 0.5, 4, 1), engine, index(0, 0, 1, 2), 3)
    del found["mismatch/weight_above_2"], found["mismatch/weight_below_half"]
    assert found == pytest.approx(
        {
            "mismatch/kl": (3.5 - 2 * L) / 4,
            "mismatch/k1": -L / 2,
            "mismatch/max_abs": 2 * L,
            "mismatch/perplexity_trainer": math.exp(2.5 - L / 2),
            "mismatch/perplexity_engine": math.exp(2.5),
            "mismatch/perplexity_ratio": math.exp(-L / 2),
            "mismatch/chi2_token": 4.3125,
            "mismatch/chi2_sequence": 5.0,
            "mismatch/weight_mean": 1.875,
            "mismatch/weight_std": math.sqrt(1.796875),
            "mismatch/weight_min": 0.5,
            "mismatch/weight_max": 4.0,
            "mismatch/ess_token": 1.875**2 / 5.3125,
            "mismatch/ess_sequence": 2 / 3,
            "mismatch/sequences_apart": 1 / 3,
        },
        abs=1e-12,
    )


def test_the_shares_beyond_2_and_a_half_leave_the_bounds_themselves_out():
    d = logs(2, 2.001, 0.5, 0.499, 1)
    found = mismatch_metrics(d, torch.zeros(5), index(0, 0, 0, 0, 0), 1)
    assert found["mismatch/weight_above_2"] == found["mismatch/weight_below_half"] == 0.2
    gap = torch.tensor([1.0, -1.5, 0.5])
    apart = mismatch_metrics(gap, torch.zeros(3), index(0, 1, 2), 3)["mismatch/sequences_apart"]
    assert apart == pytest.approx(1 / 3)


def test_kl_keeps_its_digits_where_engine_and_trainer_nearly_agree():
    """d = +-1e-9: k3 is d^2/2 = 5e-19, which exp(d) - 1 - d would lose whole; then floats of one bit apart."""
    engine = doubles(-0.3, -2.0)
    found = mismatch_metrics(engine + doubles(1e-9, -1e-9), engine, index(0, 1), 2)
    assert found["mismatch/kl"] == pytest.approx(5e-19, rel=1e-3, abs=0)
    engine = torch.tensor([-0.3, -2.0])
    trainer = torch.nextafter(engine, torch.zeros(2))
    found = mismatch_metrics(trainer, engine, index(0, 1), 2)
    half_squares = (trainer.double() - engine.double()).square().mean().item() / 2
    assert found["mismatch/kl"] == pytest.approx(half_squares, rel=1e-3, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agreement_is_exact(dtype):
    logprobs = torch.tensor([-0.1, -3.7, -11.0], dtype=dtype)
    found = mismatch_metrics(logprobs, logprobs.clone(), index(0, 0, 1), 2)
    zeros = {"kl", "k1", "max_abs", "chi2_token", "chi2_sequence", "weight_std", "sequences_apart"}
    zeros |= {"weight_above_2", "weight_below_half"}
    assert {name for name, value in found.items() if value == 0} == {f"mismatch/{name}" for name in zeros}
    assert {found[f"mismatch/{name}"] for name in ("weight_min", "weight_max", "ess_token", "ess_sequence")} == {1.0}
    assert found["mismatch/perplexity_ratio"] == 1.0


def test_sequences_without_a_token_do_not_count():
    """A rank's share, or a filtered batch: ids stay those of the step."""
    trainer, engine = doubles(-1, -1, -3), doubles(-1, -2.5, -3)
    few, many = (mismatch_metrics(trainer, engine, i, n) for i, n in ((index(0, 0, 1), 2), (index(4, 4, 7), 9)))
    assert few == many
    assert few["mismatch/sequences_apart"] == 0.5


def test_the_sign_of_k1_says_who_is_surer():
    surer_engine = mismatch_metrics(doubles(-2), doubles(-1), index(0), 1)
    assert surer_engine["mismatch/k1"] == 1.0
    assert surer_engine["mismatch/perplexity_ratio"] == pytest.approx(math.e)
    assert surer_engine["mismatch/perplexity_trainer"] == pytest.approx(math.e**2)


def test_log_ratios_are_bounded():
    """A token that the engine found impossible: d = 1000. exp(20) stands for it, and for sums below -20 exp(-20)."""
    found = mismatch_metrics(torch.tensor([-1.0, -500.0]), torch.tensor([-1001.0, -1.0]), index(0, 1), 2)
    assert found["mismatch/weight_max"] == pytest.approx(math.exp(20))
    assert found["mismatch/weight_min"] == pytest.approx(math.exp(-20))
    assert found["mismatch/kl"] == pytest.approx((math.exp(20) - 1 - 20 + 499 - 1) / 2)
    assert found["mismatch/max_abs"] == 1000.0
    falling = mismatch_metrics(doubles(-500), doubles(-1), index(0), 1)
    assert falling["mismatch/kl"] == 498.0  # only its rising side is bounded
    assert found["mismatch/chi2_sequence"] == pytest.approx(math.exp(40) / 2)
    assert found["mismatch/ess_token"] == pytest.approx(0.5)


def test_a_log_prob_that_is_no_number_shows():
    trainer = doubles(-1, math.nan)
    assert math.isnan(mismatch_metrics(trainer, doubles(-1, -1), index(0, 1), 2)["mismatch/kl"])
    found = ratio_metrics(trainer, trainer, doubles(1, 1), torch.tensor([False, False]))
    assert not found["ratio/min"] == found["ratio/max"] == 1.0
    assert math.isnan(value_metrics(doubles(1, 2), trainer)["critic/error"])


def test_shares_of_trajectories_sum_to_the_kl():
    """d = log 2 and log 4 in trajectory 0, 0 in 2, none in 1: (3 - 2L + 1 - L) / 3 falls to trajectory 0."""
    trainer, L = logs(2, 1, 4), math.log(2)
    shares = mismatch_shares(trainer, torch.zeros(3), index(0, 2, 0), 4)
    assert shares.tolist() == pytest.approx([(4 - 3 * L) / 3, 0, 0, 0])
    kl = mismatch_metrics(trainer, torch.zeros(3), index(0, 1, 0), 2)["mismatch/kl"]
    assert shares.sum().item() == pytest.approx(kl)


def test_correction_by_hand():
    """Weights 1, 2, 2, 0.5 kept, 7 and 9 rejected; sequence 2 loses its only token, sequence 0 one of three.

    mean 5.5/4 = 1.375; mean w^2 9.25/4 = 2.3125, var 2.3125 - 1.890625 = 0.421875; ess over six: 5.5^2 / (6 * 9.25).
    """
    weights = doubles(1, 2, 7, 2, 0.5, 9)
    kept = torch.tensor([True, True, False, True, True, False])
    found = correction_metrics(weights, kept, index(0, 0, 0, 1, 1, 2), 3, upper=2.0)
    assert found == pytest.approx(
        {
            "correction/weight_mean": 1.375,
            "correction/weight_std": math.sqrt(0.421875),
            "correction/weight_min": 0.5,
            "correction/weight_max": 2.0,
            "correction/at_upper": 0.5,
            "correction/ess": 5.5**2 / (6 * 9.25),
            "correction/rejected_tokens": 1 / 3,
            "correction/rejected_sequences": 1 / 3,
        }
    )
    assert "correction/at_upper" not in correction_metrics(weights, kept, index(0, 0, 0, 1, 1, 2), 3)


def test_sequences_without_a_token_were_not_rejected():
    kept = torch.tensor([True, False])
    found = correction_metrics(doubles(1, 1), kept, index(1, 4), 6)
    assert found["correction/rejected_sequences"] == 0.5


def test_an_effective_share_is_never_above_1():
    """For 1 and its lower neighbour the quotient rounds to 1 + 2^-52."""
    weights = doubles(math.nextafter(1, 0), 1)
    found = correction_metrics(weights, torch.ones(2, dtype=torch.bool), index(0, 0), 1)
    assert found["correction/ess"] == 1.0


def test_nothing_kept():
    found = correction_metrics(doubles(1, 2), torch.zeros(2, dtype=torch.bool), index(3, 3), 5, upper=2.0)
    assert found == {"correction/ess": 0.0, "correction/rejected_tokens": 1.0, "correction/rejected_sequences": 1.0}


def test_what_a_rejected_token_weighs_is_never_looked_at():
    kept = torch.tensor([True, True, False])
    found = [
        correction_metrics(doubles(1, 0.5, odd), kept, index(0, 1, 1), 2, upper=1.0)
        for odd in (1.0, math.inf, math.nan)
    ]
    assert found[0] == found[1] == found[2]


def test_a_weight_at_the_bound_is_at_it_in_its_own_precision():
    """float32(0.7) is less than 0.7."""
    weights = torch.tensor([3.0, 0.1]).clamp(max=0.7)
    found = correction_metrics(weights, torch.ones(2, dtype=torch.bool), index(0, 0), 1, upper=0.7)
    assert found["correction/at_upper"] == 0.5


def test_tiny_weights_have_an_effective_size_too():
    weights = torch.full((4,), 1e-38)
    assert correction_metrics(weights, torch.ones(4, dtype=torch.bool), index(0, 0, 1, 1), 2)["correction/ess"] == 1.0
    weights = doubles(1e-200, 1e-200, 0, 0)
    assert correction_metrics(weights, weights > 0, index(0, 0, 1, 1), 2)["correction/ess"] == 0.5


def test_ratio_by_hand():
    """ratio 2, 1/2, 1, 1; k3 sums to 1 - L - 1/2 + L = 1/2, k1 to 0; of three positive one is clipped, the only
    negative one is."""
    old = doubles(-1, -2, -3, -1)
    clipped = torch.tensor([True, True, False, False])
    found = ratio_metrics(old + logs(2, 0.5, 1, 1), old, doubles(1, -1, 2, 0.5), clipped)
    assert found == pytest.approx(
        {
            "ratio/min": 0.5,
            "ratio/max": 2.0,
            "ratio/mean": 1.125,
            "update/kl": 0.125,
            "update/k1": 0.0,
            "clip_fraction": 0.5,
            "clip_fraction/positive": 1 / 3,
            "clip_fraction/negative": 1.0,
        },
        abs=1e-12,
    )


def test_the_direction_of_the_update():
    """A policy that became surer: d = 1, so k1 = -1 and KL(old || current) by k3 = e - 2."""
    found = ratio_metrics(doubles(-1), doubles(-2), doubles(1), torch.tensor([False]))
    assert found["update/k1"] == -1.0 and found["ratio/mean"] == pytest.approx(math.e)
    assert found["update/kl"] == pytest.approx(math.e - 2)


def test_signs_without_a_token_have_no_clip_fraction():
    found = ratio_metrics(doubles(-1, -1), doubles(-1, -1), doubles(0, 1), torch.tensor([True, False]))
    assert found["clip_fraction/positive"] == 0.0
    assert "clip_fraction/negative" not in found


@given(st.lists(st.floats(-30, 0, width=32), min_size=1))
def test_on_policy_the_ratio_is_exactly_1(values):
    logprobs = torch.tensor(values)
    found = ratio_metrics(logprobs, logprobs.clone(), torch.ones(len(values)), torch.zeros(len(values)) > 0)
    assert found["ratio/min"] == found["ratio/max"] == found["ratio/mean"] == 1.0
    assert found["update/kl"] == 0.0 and found["update/k1"] == 0.0


def test_advantages_by_hand():
    """-1, 0, 0, 3 of trajectories 0, 0, 3, 4: mean 1/2, mean square 10/4, var 2.5 - 0.25; trajectory 3 is all 0."""
    found = advantage_metrics(doubles(-1, 0, 0, 3), index(0, 0, 3, 4), 6)
    assert found == pytest.approx(
        {
            "advantages/mean": 0.5,
            "advantages/std": 1.5,
            "advantages/min": -1.0,
            "advantages/max": 3.0,
            "advantages/positive": 0.25,
            "advantages/zero": 0.5,
            "advantages/trajectories_zero": 1 / 3,
        }
    )


def test_entropy_by_hand():
    found = entropy_metrics(doubles(1, 3))
    assert found == {"entropy": 2.0, "entropy/std": 1.0, "entropy/min": 1.0, "entropy/max": 3.0}


def test_turns_by_hand():
    """Turns 4 and 9 share a row, turn 2 is missing. k3 of w = 2: 1 - L; of 4: 3 - 2L; of 1: 0."""
    L = math.log(2)
    found = turn_metrics(index(0, 1, 1, 3, 4, 9), logs(2, 2, 1, 1, 4, 1), torch.zeros(6), doubles(1, 2, 4, 8, 16, 32))
    assert found == pytest.approx(
        {
            "turns/0/kl": 1 - L,
            "turns/0/entropy": 1.0,
            "turns/1/kl": (1 - L) / 2,
            "turns/1/entropy": 3.0,
            "turns/3/kl": 0.0,
            "turns/3/entropy": 8.0,
            "turns/4+/kl": (3 - 2 * L) / 2,
            "turns/4+/entropy": 24.0,
        },
        abs=1e-12,
    )


def test_values_by_hand():
    """Targets 0, 2, 4 (var 8/3), values 1, 2, 3: residuals -1, 0, 1 (var 2/3): explained 3/4, error 2/3."""
    found = value_metrics(doubles(1, 2, 3), doubles(0, 2, 4))
    assert found == pytest.approx(
        {
            "critic/value_mean": 2.0,
            "critic/target_mean": 2.0,
            "critic/error": 2 / 3,
            "critic/explained_variance": 0.75,
        }
    )
    shifted = value_metrics(doubles(11, 12, 13), doubles(0, 2, 4))
    assert shifted["critic/explained_variance"] == pytest.approx(0.75)
    assert shifted["critic/error"] == pytest.approx(10.0)
    assert shifted["critic/value_mean"] == 12.0
    worse = value_metrics(doubles(4, 2, 0), doubles(0, 2, 4))
    assert worse["critic/explained_variance"] == pytest.approx(1 - 32 / 8)


def test_equal_targets_leave_nothing_to_explain():
    """The computed variance of three times 0.1 is not 0."""
    targets = torch.full((3,), 0.1, dtype=torch.float64)
    assert "critic/explained_variance" not in value_metrics(doubles(0, 1, 2), targets)


def test_staleness_by_hand():
    found = staleness_metrics(index(0, 0, 1, 3))
    assert found == {"staleness/mean": 1.0, "staleness/max": 3.0, "staleness/share": 0.5}


def test_of_nothing_there_is_no_number():
    no = NONE.bool()
    assert mismatch_metrics(NONE, NONE, NO_INDEX, 3) == {}
    assert mismatch_shares(NONE, NONE, NO_INDEX, 2).tolist() == [0, 0]
    assert correction_metrics(NONE, no, NO_INDEX, 3, upper=2.0) == {}
    assert ratio_metrics(NONE, NONE, NONE, no) == {}
    assert advantage_metrics(NONE, NO_INDEX, 0) == {}
    assert entropy_metrics(NONE) == {}
    assert turn_metrics(NO_INDEX, NONE, NONE, NONE) == {}
    assert value_metrics(NONE, NONE) == {}
    assert staleness_metrics(NO_INDEX) == {}


SINGLE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(st.tuples(SINGLE, SINGLE, SINGLE, st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_finite_numbers_give_finite_numbers(tokens):
    a, b, c, kept, place = (torch.tensor(column) for column in zip(*tokens, strict=True))
    found = (
        mismatch_metrics(a, b, place, 4)
        | correction_metrics(a.abs(), kept, place, 4, upper=2.0)
        | ratio_metrics(a, b, c, kept)
        | advantage_metrics(c, place, 4)
        | entropy_metrics(a)
        | turn_metrics(place * 2, a, b, c)
        | value_metrics(a, b)
        | staleness_metrics(place)
    )
    assert {name: value for name, value in found.items() if not math.isfinite(value)} == {}
    assert all(type(value) is float for value in found.values())
    assert found["mismatch/kl"] >= 0 and found["update/kl"] >= 0
    for name in ("mismatch/ess_token", "mismatch/ess_sequence"):
        assert 0 < found[name] <= 1
    assert 0 <= found["correction/ess"] <= 1


TOKEN = st.tuples(st.floats(-5, 0), st.floats(-5, 0), st.floats(-2, 2), st.booleans(), st.integers(0, 3))


@given(st.lists(TOKEN, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_tokens_does_not_matter(tokens, random):
    def metrics(tokens):
        a, b, c, kept, place = zip(*tokens, strict=True)
        a, b, c, kept, place = doubles(*a), doubles(*b), doubles(*c), torch.tensor(kept), index(*place)
        return (
            mismatch_metrics(a, b, place, 4)
            | correction_metrics(a.exp(), kept, place, 4)
            | ratio_metrics(a, b, c, kept)
            | advantage_metrics(c, place, 4)
            | turn_metrics(place * 2, a, b, c)
        )

    mixed = list(tokens)
    random.shuffle(mixed)
    assert metrics(mixed) == pytest.approx(metrics(tokens), rel=1e-9, abs=1e-9)
