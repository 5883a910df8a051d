"""Clip-Cov and KL-Cov: which tokens are selected, over a whole step, and what the selected ones pay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.algorithm.covariance import ClipCov, KLCov, token_covariance
from lockstep.algorithm.tokens import ActionTokens


def action_tokens(old_logprobs, advantages):
    old_logprobs = torch.as_tensor(old_logprobs, dtype=torch.float64)
    index = torch.zeros(len(old_logprobs), dtype=torch.int64)
    return ActionTokens(
        engine_logprobs=torch.full_like(old_logprobs, torch.nan),  # selection must not look at them
        old_logprobs=old_logprobs,
        advantages=torch.as_tensor(advantages, dtype=torch.float64),
        sequence=index,
        trajectory=index,
        turn=index,
        num_sequences=1,
        num_trajectories=1,
    )


def random_tokens(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, number, generator=generator, dtype=torch.float64)
    return action_tokens(-3 * draw[0].abs(), draw[1])


def test_covariance_golden():
    """log-probs -1, -2, -6, mean -3: 2, 1, -3. Advantages 2, -1, -1, mean 0: products 4, -1, 3; their mean, 2, is the
    covariance."""
    found = token_covariance(torch.tensor([-1.0, -2.0, -6.0]), torch.tensor([2.0, -1.0, -1.0]))
    assert found.dtype == torch.float64
    assert found.tolist() == [4.0, -1.0, 3.0]


def test_covariance_is_centred_and_constant():
    """Shifting either by a constant changes nothing: log-probs above with advantages 12, 9, 9."""
    logprobs = torch.tensor([-1.0, -2.0, -6.0], requires_grad=True)
    found = token_covariance(logprobs, torch.tensor([12.0, 9.0, 9.0]))
    assert not found.requires_grad
    assert found.tolist() == [4.0, -1.0, 3.0]


def test_clip_cov_takes_only_the_band_without_its_bounds():
    """Covariances 4, -1, 3: bounds 3 and 4.5 leave only the first, 2.5 and 4 only the third; fraction 1 takes all."""
    tokens = action_tokens([-1.0, -2.0, -6.0], [2.0, -1.0, -1.0])
    for bounds, expected in (((3.0, 4.5), [True, False, False]), ((2.5, 4.0), [False, False, True])):
        clip = ClipCov(fraction=1.0, lower=bounds[0], upper=bounds[1])
        assert clip.selected(tokens, 0).tolist() == expected
    assert ClipCov(fraction=1.0, lower=-2.0, upper=5.0).selected(tokens, 0).all()
    assert not ClipCov(fraction=1.0, lower=10.0, upper=11.0).selected(tokens, 0).any()


def test_clip_cov_counts_a_fraction_of_all_tokens_rounded_down_but_one():
    """1000 tokens: 0.0025 of them is 2, 2e-4 is one at least; of 'all', the candidates."""
    tokens = random_tokens(1000)
    covariance = token_covariance(tokens.old_logprobs, tokens.advantages)
    candidates = (covariance > 1) & (covariance < 5)
    assert 50 < candidates.sum() < 300
    for fraction, number in ((0.0025, 2), (0.03, 30), (2e-4, 1), (1.0, int(candidates.sum()))):
        selected = ClipCov(fraction=fraction).selected(tokens, 7)
        assert selected.dtype == torch.bool and selected.sum() == number
        assert not (selected & ~candidates).any()


def test_clip_cov_is_a_function_of_the_seed_and_of_nothing_else():
    tokens = random_tokens(1000)
    clip = ClipCov(fraction=0.02)
    first = clip.selected(tokens, 5)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(clip.selected(tokens, 5), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(clip.selected(tokens, 6), first)


def test_clip_cov_draws_every_candidate_alike():
    """4 candidates, one drawn: over 400 seeds each about 100 times; a standard deviation is 8.7."""
    tokens = action_tokens([-1.0, -1.0, -1.0, -1.0, -6.0, -6.0], [1.0, 1.0, 1.0, 1.0, -2.0, -2.0])
    clip = ClipCov(fraction=1e-3, lower=1.0, upper=5.5)
    assert token_covariance(tokens.old_logprobs, tokens.advantages)[:5].tolist() == pytest.approx(
        [5 / 3] * 4 + [20 / 3]
    )
    counts = torch.stack([clip.selected(tokens, seed) for seed in range(400)]).sum(0)
    assert counts[4:].tolist() == [0, 0] and counts.sum() == 400
    assert (counts[:4] > 60).all()


def test_kl_cov_takes_the_highest():
    """Covariances 4, -1, 3: the first of one, the first and third of two; fractions of 3 tokens."""
    tokens = action_tokens([-1.0, -2.0, -6.0], [2.0, -1.0, -1.0])
    for fraction, expected in (
        (2e-4, [True, False, False]),
        (0.67, [True, False, True]),
        (0.66, [True, False, False]),
        (1.0, [True, True, True]),
    ):
        assert KLCov(fraction=fraction).selected(tokens).tolist() == expected


def test_kl_cov_breaks_ties_by_place():
    tokens = action_tokens([-1.0] * 40, [0.5] * 40)
    assert torch.nonzero(KLCov(fraction=0.1).selected(tokens)).flatten().tolist() == [0, 1, 2, 3]


def test_selection_uses_the_covariance_and_not_its_size():
    """-9 is the largest in size but not high: log-probs -1, -7 and advantages -1.5, 1.5 give (3)(-1.5) twice."""
    tokens = action_tokens([-1.0, -7.0, -3.9, -4.1], [-1.5, 1.5, 0.1, -0.1])
    assert token_covariance(tokens.old_logprobs, tokens.advantages).tolist() == pytest.approx([-4.5, -4.5, 0.01, 0.01])
    assert not KLCov(fraction=0.5).selected(tokens)[:2].any()


def test_nothing_of_nothing():
    tokens = action_tokens([], [])
    assert ClipCov().selected(tokens, 0).shape == KLCov().selected(tokens).shape == (0,)


@given(st.integers(1, 300), st.floats(1e-4, 1), st.integers(0, 5))
def test_kl_cov_selected_are_never_below_the_others(number, fraction, seed):
    tokens = random_tokens(number, seed)
    covariance = token_covariance(tokens.old_logprobs, tokens.advantages)
    selected = KLCov(fraction=fraction).selected(tokens)
    assert selected.sum() == max(1, int(fraction * number))
    if not selected.all():
        assert covariance[selected].min() >= covariance[~selected].max()


@given(st.permutations(range(50)))
def test_kl_cov_does_not_depend_on_the_order(permutation):
    tokens = random_tokens(50)
    place = torch.tensor(permutation)
    assert torch.equal(KLCov(fraction=0.1).selected(tokens.at(place)), KLCov(fraction=0.1).selected(tokens)[place])


def test_penalty_golden():
    """coefficient 2: |-1 + 1.5| * 2 = 1 and |-3 + 2| * 2 = 2 where selected, gradients 2 and -2; 0 and 0 elsewhere."""
    logprobs = torch.tensor([-1.0, -3.0, -3.0, -2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.5, -2.0, -2.0, -2.0], dtype=torch.float64)
    selected = torch.tensor([True, True, False, True])
    penalty = KLCov(coefficient=2.0).penalty(logprobs, old, selected)
    assert penalty.tolist() == [1.0, 2.0, 0.0, 0.0]
    (slopes,) = torch.autograd.grad(penalty.sum(), logprobs)
    assert slopes.tolist() == [2.0, -2.0, 0.0, 0.0]  # 0 at the kink, so nothing in a step's first update


def test_penalty_gradcheck():
    logprobs = torch.tensor([-1.0, -3.0, -0.4], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.5, -2.0, -0.2], dtype=torch.float64)
    selected = torch.tensor([True, False, True])
    torch.autograd.gradcheck(lambda x: KLCov(coefficient=0.3).penalty(x, old, selected), logprobs)


@pytest.mark.parametrize("broken", [float("nan"), -float("inf")])
def test_penalty_keeps_broken_tokens_out(broken):
    logprobs = torch.tensor([-1.0, broken], requires_grad=True)
    penalty = KLCov().penalty(logprobs, torch.tensor([-1.5, broken]), torch.tensor([True, False]))
    assert penalty.tolist() == [0.5, 0.0]
    (slopes,) = torch.autograd.grad(penalty.sum(), logprobs)
    assert slopes.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (ClipCov, {"fraction": 0.0}, "fraction=0.0"),
        (ClipCov, {"fraction": 1.5}, "fraction=1.5"),
        (ClipCov, {"lower": 5.0}, "lower=5.0"),
        (ClipCov, {"lower": 6.0}, "lower=6.0"),
        (KLCov, {"fraction": -0.1}, "fraction=-0.1"),
        (KLCov, {"fraction": 1.01}, "fraction=1.01"),
        (KLCov, {"fraction": float("nan")}, "fraction=nan"),
        (KLCov, {"coefficient": 0.0}, "coefficient=0.0"),
        (KLCov, {"coefficient": float("inf")}, "coefficient=inf"),
    ],
)
def test_wrong_options_are_one_line(make, options, named):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert str(error.value).startswith(f"{named}: ") and "\n" not in str(error.value)


def test_defaults_are_the_papers():
    assert (ClipCov().fraction, ClipCov().lower, ClipCov().upper) == (2e-4, 1.0, 5.0)
    assert (KLCov().fraction, KLCov().coefficient) == (2e-4, 1.0)
