"""KL estimators and penalties: golden values, and gradients by exact enumeration of small softmax policies."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.algorithm.kl import Estimator, KLPenalty, adapted_coefficient, kl_estimate

REFERENCE = torch.log_softmax(torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.float64), 0)
OLD = torch.log_softmax(torch.tensor([-0.4, 0.2, 0.5, 0.9], dtype=torch.float64), 0)  # another policy that sampled


def logits():
    return torch.tensor([0.9, 0.1, -0.6, 0.4], dtype=torch.float64, requires_grad=True)


def gradient(loss, parameters):
    return torch.autograd.grad(loss, parameters)[0]


def reverse_kl_gradient():
    """Of KL(policy || reference), the sum written out."""
    parameters = logits()
    logprobs = torch.log_softmax(parameters, 0)
    return gradient((logprobs.exp() * (logprobs - REFERENCE)).sum(), parameters)


def forward_kl_gradient():
    """Of KL(reference || policy)."""
    parameters = logits()
    return gradient((REFERENCE.exp() * (REFERENCE - torch.log_softmax(parameters, 0))).sum(), parameters)


def expected_loss_gradient(penalty, sampler=None):
    """Of the penalty's loss per unit of coefficient, over tokens drawn from `sampler` (None: the policy itself)."""
    parameters = logits()
    logprobs = torch.log_softmax(parameters, 0)
    sampler = logprobs.detach() if sampler is None else sampler
    losses = penalty.losses(logprobs, sampler, REFERENCE)
    return gradient((sampler.exp() * losses).sum() / penalty.coefficient, parameters)


def expected_reward_gradient(penalty):
    """Of REINFORCE's loss -E[reward * logprob], per unit of coefficient."""
    parameters = logits()
    logprobs = torch.log_softmax(parameters, 0)
    rewards = penalty.token_rewards(logprobs, REFERENCE)
    assert not rewards.requires_grad
    return gradient(-(logprobs.detach().exp() * rewards * logprobs).sum() / penalty.coefficient, parameters)


def test_golden():
    """d = log 2: k1 = .693147, k2 = .240227, k3 = 1/2 - 1 + .693147 = .193147.
    d = -log 2: k1 = -.693147, k2 = .240227, k3 = 2 - 1 - .693147 = .306853."""
    logprobs = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    reference = torch.tensor([0.25, 0.5], dtype=torch.float64).log()
    expected: dict[Estimator, list[float]]
    expected = {"k1": [0.69314718, -0.69314718], "k2": [0.24022651, 0.24022651], "k3": [0.19314718, 0.30685282]}
    for estimator, values in expected.items():
        found = kl_estimate(logprobs, reference, estimator)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-8)


def test_estimators_are_unbiased_but_k2():
    logprobs = torch.log_softmax(logits(), 0).detach()
    kl = (logprobs.exp() * (logprobs - REFERENCE)).sum().item()
    means = {k: (logprobs.exp() * kl_estimate(logprobs, REFERENCE, k)).sum().item() for k in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(kl, abs=1e-12)
    assert means["k3"] == pytest.approx(kl, abs=1e-12)
    assert abs(means["k2"] - kl) > 1e-2


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimate_gradcheck(estimator):
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(9, generator=generator, dtype=torch.float64, requires_grad=True) * 4
    reference = -torch.rand(9, generator=generator, dtype=torch.float64) * 4
    torch.autograd.gradcheck(lambda x: kl_estimate(x, reference, estimator), logprobs)


def test_k3_is_precise_near_zero_in_float32():
    """d = 1e-4: k3 = d^2/2 - d^3/6 + ... = 5e-9. The last bit of exp(-d) is 6e-8, so exp(-d) - 1 + d would be noise."""
    found = kl_estimate(torch.tensor([1e-4]), torch.tensor([0.0]), "k3")
    assert found.item() == pytest.approx(5e-9, rel=1e-2)


def test_k3_on_both_sides_of_its_bound():
    """Above d = -20 the gradient is 1 - exp(-d); below it is 0 and the value stays at exp(20) - 21. Far above there is
    no bound: the value is d - 1, the gradient 1."""
    logprobs = torch.tensor([-19.0, -21.0, -500.0, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.0, 0.0, -500.0], dtype=torch.float64)
    found = kl_estimate(logprobs, reference, "k3")
    top = math.exp(20) - 21
    torch.testing.assert_close(found, torch.tensor([math.exp(19) - 20, top, top, 499.0], dtype=torch.float64))
    (slopes,) = torch.autograd.grad(found.sum(), logprobs)
    torch.testing.assert_close(slopes, torch.tensor([1 - math.exp(19), 0, 0, 1], dtype=torch.float64))
    for far in (-1e4, 1e4):
        assert torch.isfinite(kl_estimate(torch.tensor([far]), torch.tensor([0.0]), "k3")).all()


def test_k2_and_k1_have_no_bound():
    logprobs = torch.tensor([-500.0, 500.0], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(kl_estimate(logprobs, torch.zeros(2, dtype=torch.float64), "k2").sum(), logprobs)
    assert slopes.tolist() == [-500.0, 500.0]
    assert kl_estimate(logprobs, torch.zeros(2, dtype=torch.float64), "k1").tolist() == [-500.0, 500.0]


@pytest.mark.parametrize("estimator", [None, "k1", "k2", "k3"])
def test_unbiased_loss_has_the_gradient_of_the_reverse_kl_on_policy(estimator):
    torch.testing.assert_close(expected_loss_gradient(KLPenalty(estimator=estimator)), reverse_kl_gradient())


@pytest.mark.parametrize("estimator", [None, "k1", "k2", "k3"])
def test_unbiased_loss_has_the_gradient_of_the_reverse_kl_off_policy(estimator):
    penalty = KLPenalty(estimator=estimator, gradient="unbiased")
    torch.testing.assert_close(expected_loss_gradient(penalty, OLD), reverse_kl_gradient())


def test_unbiased_loss_estimates_the_reverse_kl_off_policy():
    logprobs = torch.log_softmax(logits(), 0).detach()
    kl = (logprobs.exp() * (logprobs - REFERENCE)).sum()
    for estimator in (None, "k1", "k3"):
        losses = KLPenalty(estimator=estimator, coefficient=0.5).losses(logprobs, OLD, REFERENCE)
        torch.testing.assert_close((OLD.exp() * losses).sum(), 0.5 * kl)


def test_unbiased_is_sample_by_sample_deepseeks_undetached_ratio_times_k3():
    logprobs = torch.log_softmax(logits(), 0).detach().requires_grad_()
    theirs = torch.exp(logprobs - OLD) * kl_estimate(logprobs, REFERENCE, "k3")
    ours = KLPenalty(coefficient=1.0).losses(logprobs, OLD, REFERENCE)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours.sum(), logprobs), gradient(theirs.sum(), logprobs))


def test_unbiased_gradient_in_closed_form():
    """coefficient * (p / p_old) * d for each token: p = (1/2, 1/4), p_old = (1/4, 1/2), reference (1/8, 1/2):
    0.1 * 2 * log 4 = 0.277259 and 0.1 * (1/2) * -log 2 = -0.034657."""
    logprobs = torch.tensor([0.5, 0.25], dtype=torch.float64).log().requires_grad_()
    old = torch.tensor([0.25, 0.5], dtype=torch.float64).log()
    reference = torch.tensor([0.125, 0.5], dtype=torch.float64).log()
    losses = KLPenalty(coefficient=0.1).losses(logprobs, old, reference)
    expected = torch.tensor([0.27725887, -0.03465736], dtype=torch.float64)
    torch.testing.assert_close(gradient(losses.sum(), logprobs), expected, rtol=0, atol=1e-8)
    # Values: 0.1 * 2 * (1/4 - 1 + log 4) = 0.127259; 0.1 * (1/2) * (2 - 1 - log 2) = 0.015343.
    expected = torch.tensor([0.12725887, 0.01534264], dtype=torch.float64)
    torch.testing.assert_close(losses.detach(), expected, rtol=0, atol=1e-8)


def test_k2_direct_has_the_gradient_of_the_reverse_kl_on_policy_only():
    penalty = KLPenalty(estimator="k2", gradient="direct")
    torch.testing.assert_close(expected_loss_gradient(penalty), reverse_kl_gradient())
    assert (expected_loss_gradient(penalty, OLD) - reverse_kl_gradient()).abs().max() > 1e-2


def test_k3_direct_has_the_gradient_of_the_forward_kl():
    found = expected_loss_gradient(KLPenalty(estimator="k3", gradient="direct"))
    torch.testing.assert_close(found, forward_kl_gradient())
    assert (found - reverse_kl_gradient()).abs().max() > 1e-2


def test_k1_direct_has_no_gradient_and_is_refused():
    parameters = logits()
    logprobs = torch.log_softmax(parameters, 0)
    expected = gradient((logprobs.detach().exp() * kl_estimate(logprobs, REFERENCE, "k1")).sum(), parameters)
    assert expected.abs().max() < 1e-15
    with pytest.raises(ValueError, match=r"^gradient='direct': that of k1"):
        KLPenalty(estimator="k1", gradient="direct")


def test_rewards_have_the_gradient_of_the_reverse_kl_with_k1():
    for penalty in (KLPenalty(where="reward"), KLPenalty(where="reward", estimator="k1", coefficient=0.3)):
        torch.testing.assert_close(expected_reward_gradient(penalty), reverse_kl_gradient())


def test_rewards_with_k3_have_the_reverse_minus_the_forward_gradient():
    found = expected_reward_gradient(KLPenalty(where="reward", estimator="k3"))
    torch.testing.assert_close(found, reverse_kl_gradient() - forward_kl_gradient())


def test_rewards_golden():
    """p = 1/2, q = 1/4, coefficient 0.1: -0.1 log 2, constants."""
    logprobs = torch.tensor([0.5]).log().requires_grad_()
    rewards = KLPenalty(where="reward", coefficient=0.1).token_rewards(logprobs, torch.tensor([0.25]).log())
    assert rewards.item() == pytest.approx(-0.069314718)
    assert not rewards.requires_grad


class TwoTokens:
    """A policy of two tokens out of three: logits of the first [3], and of the second after each first [3, 3]."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.parameters = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
        self.reference = torch.log_softmax(torch.randn(4, 3, generator=generator, dtype=torch.float64), 1)
        self.logprobs = torch.log_softmax(self.parameters, 1)

    def tokens(self, table):
        """[9, 2]: log-probs of both tokens of all nine trajectories, from a table [4, 3]."""
        return torch.stack([table[0].repeat_interleave(3), table[1:].reshape(9)], 1)


def test_reward_credits_earlier_tokens_and_the_loss_does_not():
    """Returns-to-go of k1 rewards give the gradient of the whole trajectory's KL; the loss gives each state's, with the
    states as they were visited. They differ by what the first token does to the KL of the second."""
    policy = TwoTokens()
    logprobs, reference = policy.tokens(policy.logprobs), policy.tokens(policy.reference)
    probability = logprobs.sum(1).exp()
    whole = gradient((probability * (logprobs - reference).sum(1)).sum(), policy.parameters)

    policy = TwoTokens()
    logprobs = policy.tokens(policy.logprobs)
    rewards = KLPenalty(where="reward", coefficient=1.0).token_rewards(logprobs, reference)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    visits = probability.detach()
    reinforce = gradient(-(visits[:, None] * to_go * logprobs).sum(), policy.parameters)
    torch.testing.assert_close(reinforce, whole)

    policy = TwoTokens()
    state_kl = (policy.logprobs.exp() * (policy.logprobs - policy.reference)).sum(1)
    visited = torch.cat([torch.ones(1, dtype=torch.float64), policy.logprobs[0].exp()]).detach()
    held = gradient((visited * state_kl).sum(), policy.parameters)

    policy = TwoTokens()
    logprobs = policy.tokens(policy.logprobs)
    losses = KLPenalty(coefficient=1.0).losses(logprobs, logprobs.detach(), reference)
    found = gradient((visits[:, None] * losses).sum(), policy.parameters)
    torch.testing.assert_close(found, held)
    assert (found - whole).abs().max() > 1e-2


def test_direct_loss_gradcheck_and_ignores_old():
    logprobs = torch.log_softmax(logits(), 0).detach().requires_grad_()
    for estimator in ("k2", "k3", None):
        penalty = KLPenalty(estimator=estimator, gradient="direct", coefficient=0.7)
        torch.autograd.gradcheck(lambda x, p=penalty: p.losses(x, OLD, REFERENCE), logprobs)
        expected = 0.7 * kl_estimate(logprobs, REFERENCE, estimator or "k3")
        torch.testing.assert_close(penalty.losses(logprobs, OLD, REFERENCE), expected)


def test_ratio_is_bounded():
    logprobs = torch.tensor([0.0], requires_grad=True)
    losses = KLPenalty(coefficient=1.0).losses(logprobs, torch.tensor([-500.0]), torch.tensor([-1.0]))
    assert torch.isfinite(losses).all()
    assert gradient(losses.sum(), logprobs).item() == pytest.approx(math.exp(20), rel=1e-5)
    small = KLPenalty(coefficient=1.0).losses(torch.tensor([-30.0]), torch.tensor([0.0]), torch.tensor([-31.0]))
    assert small.item() == pytest.approx(math.exp(-30) * math.exp(-1), rel=1e-4)


@given(st.lists(st.tuples(*[st.floats(-30, 0)] * 3), min_size=1, max_size=8), st.sampled_from(["k1", "k2", "k3"]))
def test_losses_are_finite_and_tokenwise_in_float32(rows, estimator):
    table = torch.tensor(rows, dtype=torch.float32)
    logprobs = table[:, 0].clone().requires_grad_()
    losses = KLPenalty(estimator=estimator).losses(logprobs, table[:, 1], table[:, 2])
    assert losses.dtype == torch.float32 and torch.isfinite(losses).all()
    assert torch.isfinite(gradient(losses.sum(), logprobs)).all()
    one = KLPenalty(estimator=estimator).losses(logprobs[:1], table[:1, 1], table[:1, 2])
    torch.testing.assert_close(one, losses[:1])
    if estimator != "k1":
        assert (losses >= 0).all()


def test_no_distance_costs_nothing():
    logprobs = torch.log_softmax(logits(), 0).detach().requires_grad_()
    for penalty in (KLPenalty(), KLPenalty(gradient="direct"), KLPenalty(estimator="k2", gradient="direct")):
        losses = penalty.losses(logprobs, OLD, logprobs.detach())
        assert losses.abs().max() == 0
        assert gradient(losses.sum(), logprobs).abs().max() == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"coefficient": 0.0}, "coefficient=0.0"),
        ({"coefficient": -1.0}, "coefficient=-1.0"),
        ({"coefficient": math.nan}, "coefficient=nan"),
        ({"coefficient": math.inf}, "coefficient=inf"),
        ({"where": "both"}, "where='both'"),
        ({"estimator": "k4"}, "estimator='k4'"),
        ({"gradient": "none"}, "gradient='none'"),
        ({"where": "reward", "gradient": "unbiased"}, "gradient='unbiased'"),
        ({"where": "reward", "gradient": "direct"}, "gradient='direct'"),
        ({"target": 0.0}, "target=0.0"),
        ({"target": math.nan}, "target=nan"),
        ({"target": math.inf}, "target=inf"),
        ({"horizon": 100}, "horizon=100"),
        ({"target": 1.0, "horizon": 0}, "horizon=0"),
    ],
)
def test_wrong_options_are_one_line(options, named):
    with pytest.raises(ValueError) as error:
        KLPenalty(**options)
    assert str(error.value).startswith(f"{named}: ") and "\n" not in str(error.value)


def test_wrong_calls_are_one_line():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match=r"^where='loss': "):
        KLPenalty().token_rewards(x, x)
    with pytest.raises(ValueError, match=r"^where='reward': "):
        KLPenalty(where="reward").losses(x, x, x)
    with pytest.raises(ValueError, match=r"^estimator='k4': "):
        kl_estimate(x, x, "k4")  # pyright: ignore[reportArgumentType]


def test_adapted_coefficient_golden():
    """Target 6, horizon 10000, 500 trajectories: at 6.6 the error is 0.1, so 0.2 becomes 0.2 * (1 + 0.1 * 0.05) =
    0.201; at 60 the error is clipped to 0.2: 0.202; at 0 to -0.2: 0.198; at 5.4 it is -0.1: 0.199; at 6 it is 0."""
    expected = {6.6: 0.201, 60.0: 0.202, 0.0: 0.198, -3.0: 0.198, 5.4: 0.199, 6.0: 0.2}
    for observed, coefficient in expected.items():
        found = adapted_coefficient(0.2, observed, target=6.0, horizon=10_000, num_samples=500)
        assert found == pytest.approx(coefficient, rel=1e-12)


def test_adapted_coefficient_refuses_what_could_turn_it_negative():
    """0.2 * 500 = 100 = horizon: the factor could be 1 - 0.2 * 5 = 0."""
    with pytest.raises(ValueError, match=r"^horizon=100: "):
        adapted_coefficient(0.2, 6.0, target=6.0, horizon=100, num_samples=500)
    assert adapted_coefficient(0.2, 0.0, target=6.0, horizon=101, num_samples=500) > 0
    for observed in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^observed_kl="):
            adapted_coefficient(0.2, observed, target=6.0, horizon=1000, num_samples=5)


@given(st.floats(1e-6, 10), st.floats(-5, 50), st.floats(0.01, 20), st.integers(1, 4999))
def test_adapted_coefficient_moves_towards_the_target_and_stays_positive(coefficient, observed, target, num_samples):
    found = adapted_coefficient(coefficient, observed, target=target, horizon=1000, num_samples=num_samples)
    assert found > 0
    assert (found > coefficient) <= (observed > target) and (found < coefficient) <= (observed < target)
    assert abs(found / coefficient - 1) <= 0.2 * num_samples / 1000 + 1e-12


def test_adapted_penalty():
    fixed = KLPenalty(coefficient=0.2)
    assert fixed.adapted(99.0, 5) is fixed
    moved = KLPenalty(coefficient=0.2, target=6.0, horizon=1000, estimator="k2").adapted(60.0, 50)
    assert moved.coefficient == pytest.approx(0.2 * 1.01)
    assert (moved.target, moved.horizon, moved.estimator) == (6.0, 1000, "k2")
    assert KLPenalty(coefficient=0.2, target=6.0).adapted(60.0, 500).coefficient == pytest.approx(0.202)
