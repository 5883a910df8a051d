"""GAE against a textbook loop and by hand, and the sums along trajectories it stands on."""

import dataclasses
import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.advantages.timeline import dated_rewards, ends, places, running_sums, sums_to_go
from lockstep.algorithm.advantages.whitening import whiten
from lockstep.algorithm.tokens import Outcomes

UNIT = st.sampled_from([0.0, 0.3, 0.95, 1.0])


def noise(size, generator):
    return torch.randn(size, generator=generator, dtype=torch.float64)


def outcomes(rewards, lengths, *, values, token_rewards=None):
    """Trajectories on a task each, their tokens in order."""
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    size = sum(lengths)
    token_rewards = torch.zeros(size) if token_rewards is None else token_rewards
    return Outcomes(
        rewards=rewards,
        group=torch.arange(len(rewards)),
        num_groups=len(rewards),
        trajectory=torch.arange(len(rewards)).repeat_interleave(torch.tensor(lengths)),
        token_rewards=torch.as_tensor(token_rewards, dtype=torch.float64),
        weights=torch.ones(size).double(),
        values=torch.as_tensor(values, dtype=torch.float64),
    )


def drawn(data) -> Any:
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    rewards, tokens = noise(len(lengths), generator), noise((2, sum(lengths)), generator)
    return outcomes(rewards, lengths, values=tokens[0], token_rewards=tokens[1])


def close(actual, expected, tolerance=1e-12):
    assert actual.tolist() == pytest.approx(list(expected), abs=tolerance, rel=tolerance)


def test_golden():
    """gamma = lambda = 1/2, values 1, 2, 3, token reward -1/2 at first, reward 4.

    deltas -1/2 + 2/2 - 1 = -1/2, 3/2 - 2 = -1/2, 4 - 3 = 1; advantages 1, -1/2 + 1/4, -1/2 - 1/16.
    """
    step = outcomes([4], [3], values=[1, 2, 3], token_rewards=[-0.5, 0, 0])
    credit = GAE(gamma=0.5, gae_lambda=0.5, whiten=False)(step)
    close(credit.advantages, [-0.5625, -0.25, 1])
    assert credit.targets is not None
    close(credit.targets, [0.4375, 1.75, 4])


def test_whitening_golden():
    """Advantages -1, 1, 3: mean 1, variance 8/3. The targets stay unwhitened."""
    credit = GAE(gamma=0.0)(outcomes([1, 1, 1], [1, 1, 1], values=[2, 0, -2]))
    std = (8 / 3 + 1e-8) ** 0.5
    close(credit.advantages, [-2 / std, 0, 2 / std])
    assert credit.targets is not None
    close(credit.targets, [1, 1, 1])


def by_loop(rewards, values, gamma, gae_lambda):
    """The recursion of one trajectory as textbooks have it, from its last token to its first."""
    advantages, advantage, following = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        advantage = reward + gamma * following - value + gamma * gae_lambda * advantage
        following = value
        advantages.insert(0, advantage)
    return advantages


@given(data=st.data(), gamma=UNIT, gae_lambda=UNIT)
def test_is_the_textbook_loop(data, gamma, gae_lambda):
    step = drawn(data)
    credit = GAE(gamma=gamma, gae_lambda=gae_lambda, whiten=False)(step)
    rewards, expected = dated_rewards(step), []
    for i in range(step.num_trajectories):
        tokens = step.trajectory == i
        expected += by_loop(rewards[tokens].tolist(), step.values[tokens].tolist(), gamma, gae_lambda)
    close(credit.advantages, expected)
    close(credit.targets, (torch.tensor(expected, dtype=torch.float64) + step.values).tolist())
    close(GAE(gamma=gamma, gae_lambda=gae_lambda)(step).advantages, whiten(credit.advantages).tolist())


@given(data=st.data())
def test_without_discounts_it_is_return_to_go_minus_value(data):
    step = drawn(data)
    returns = torch.zeros(len(step.trajectory)).double()
    for i in range(len(returns)):
        rest = (step.trajectory == step.trajectory[i]) & (torch.arange(len(returns)) >= i)
        returns[i] = step.rewards[step.trajectory[i]] + step.token_rewards[rest].sum()
    credit = GAE(whiten=False)(step)
    close(credit.advantages, (returns - step.values).tolist(), 1e-11)
    close(credit.targets, returns.tolist(), 1e-11)


@given(data=st.data())
def test_lambda_0_is_one_step_and_targets_bootstrap(data):
    step = drawn(data)
    following = torch.where(ends(step.trajectory), 0, step.values.roll(-1))
    close(GAE(gamma=0.9, gae_lambda=0.0, whiten=False)(step).targets, (dated_rewards(step) + 0.9 * following).tolist())


def by_masked_loop(tokens, reward, gamma, gae_lambda):
    """A whole history, (sampled, token reward, value) each; what tools wrote carries state across and gets nothing."""
    advantages, advantage, following = [], 0.0, 0.0
    due = reward
    for sampled, token_reward, value in reversed(tokens):
        if not sampled:
            continue
        advantage = token_reward + due + gamma * following - value + gamma * gae_lambda * advantage
        following, due = value, 0.0
        advantages.insert(0, advantage)
    return advantages


@given(data=st.data(), gamma=UNIT, gae_lambda=UNIT)
def test_interleaved_tools_tokens_change_nothing(data, gamma, gae_lambda):
    """Histories with tools' tokens anywhere, of any value, NaN too; only the sampled ones reach the estimator."""
    token = st.tuples(st.booleans(), st.floats(-2, 2), st.floats(-2, 2))
    histories = data.draw(st.lists(st.lists(token, max_size=12), min_size=1, max_size=3))
    histories = [[t if t[0] else (False, torch.nan, torch.nan) for t in history] for history in histories]
    sampled = [[t for t in history if t[0]] for history in histories]
    rewards = [1.0 + i for i in range(len(histories))]
    step = outcomes(
        rewards,
        [len(tokens) for tokens in sampled],
        values=[t[2] for tokens in sampled for t in tokens],
        token_rewards=[t[1] for tokens in sampled for t in tokens],
    )
    expected = [
        a for history, r in zip(histories, rewards, strict=True) for a in by_masked_loop(history, r, gamma, gae_lambda)
    ]
    close(GAE(gamma=gamma, gae_lambda=gae_lambda, whiten=False)(step).advantages, expected)


@given(data=st.data())
def test_nan_and_order_stay_in_their_trajectory(data):
    """Other trajectories, whatever they hold, change no bit."""
    step = drawn(data)
    bad = data.draw(st.integers(0, step.num_trajectories - 1))
    good = step.trajectory != bad
    poisoned = dataclasses.replace(
        step,
        rewards=torch.where(torch.arange(step.num_trajectories) == bad, torch.nan, step.rewards),
        values=torch.where(good, step.values, torch.inf),
        token_rewards=torch.where(good, step.token_rewards, torch.nan),
    )
    estimator = GAE(gamma=0.9, gae_lambda=0.9, whiten=False)
    before, after = estimator(step), estimator(poisoned)
    assert torch.equal(after.advantages[good], before.advantages[good])
    assert after.targets is not None and before.targets is not None
    assert torch.equal(after.targets[good], before.targets[good])
    assert not after.advantages[~good].isfinite().any()


def test_float64_inside():
    """2^24 + 1 is no float32: a loop in float32 would lose the token rewards of 1."""
    size = 1000
    step = outcomes([2.0**24], [size], values=[0] * size, token_rewards=[1] * size)
    single = {
        f.name: getattr(step, f.name).float()
        for f in dataclasses.fields(step)
        if isinstance(getattr(step, f.name), torch.Tensor) and getattr(step, f.name).is_floating_point()
    }
    targets = GAE(whiten=False)(dataclasses.replace(step, **single)).targets
    assert targets is not None
    assert targets.dtype == torch.float32
    assert torch.equal(targets, (2.0**24 + torch.arange(size, 0, -1).double()).float())


def test_long_trajectories_lose_nothing():
    """Seventy thousand tokens, one reward at the end."""
    size, gamma = 70_000, 0.9999
    credit = GAE(gamma=gamma, whiten=False)(outcomes([1, 5], [size, 3], values=[0.0] * (size + 3)))
    ages = torch.arange(size - 1, -1, -1).double()
    assert torch.allclose(credit.advantages[:size], gamma**ages, rtol=1e-10, atol=0)
    close(credit.advantages[size:], [5 * gamma**2, 5 * gamma, 5])


def two_step_gradient(estimator, *, values):
    """Expected gradient over all four trajectories of two binary choices, and the true one; [4] logits.

    logits 0:2 choose the first token, 2:4 the second; the reward depends on both, the first token earns its own.
    """
    theta = torch.tensor([0.2, -0.5, 0.7, 0.1]).double().requires_grad_()
    table, earned = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double(), torch.tensor([0.3, -0.6]).double()
    paths = torch.tensor(list(itertools.product(range(2), repeat=2)))
    logprobs = torch.stack([theta[:2].log_softmax(0)[paths[:, 0]], theta[2:].log_softmax(0)[paths[:, 1]]], 1)
    p = logprobs.sum(1).exp()
    true = torch.autograd.grad(
        (p * (table[paths[:, 0], paths[:, 1]] + earned[paths[:, 0]])).sum(), theta, retain_graph=True
    )
    step = outcomes(
        table[paths[:, 0], paths[:, 1]],
        [2] * 4,
        values=values(paths, theta.detach(), table, earned).flatten(),
        token_rewards=torch.stack([earned[paths[:, 0]], torch.zeros(4)], 1).flatten(),
    )
    advantages = estimator(step).advantages.view(4, 2)
    return torch.autograd.grad((p.detach() * (advantages * logprobs).sum(1)).sum(), theta)[0], true[0]


def arbitrary(paths, theta, table, earned):
    """Of the state before each token: a number, and one that knows the first choice."""
    return torch.stack([torch.full((4,), 5.0).double(), torch.tensor([-3.0, 0.4]).double()[paths[:, 0]]], 1)


def exact(paths, theta, table, earned):
    first, second = theta[:2].softmax(0), theta[2:].softmax(0)
    later = table @ second
    return torch.stack([(first @ (later + earned)).expand(4), later[paths[:, 0]]], 1)


def test_lambda_1_is_unbiased_whatever_the_critic_says():
    gradient, true = two_step_gradient(GAE(whiten=False), values=arbitrary)
    close(gradient, true.tolist())


@pytest.mark.parametrize("gae_lambda", [0.0, 0.4])
def test_a_smaller_lambda_is_unbiased_with_an_exact_critic_only(gae_lambda):
    gradient, true = two_step_gradient(GAE(gae_lambda=gae_lambda, whiten=False), values=exact)
    close(gradient, true.tolist())
    gradient, true = two_step_gradient(GAE(gae_lambda=gae_lambda, whiten=False), values=arbitrary)
    assert not torch.allclose(gradient, true, atol=0.1)


# Sums along runs.


@given(lengths=st.lists(st.integers(1, 20), max_size=5), discount=UNIT, seed=st.integers(0, 99))
def test_sums_are_those_of_a_loop(lengths, discount, seed):
    run = torch.tensor([i for i, length in enumerate(lengths) for _ in range(length)], dtype=torch.int64) * 3 % 7
    values = noise(len(run), torch.Generator().manual_seed(seed))
    to_go, so_far, at, last = [], [], [], []
    for length, part in zip(lengths, values.split(lengths) if lengths else [], strict=True):
        to_go += [sum(discount**j * part[i + j].item() for j in range(length - i)) for i in range(length)]
        so_far += [part[: i + 1].sum().item() for i in range(length)]
        at += range(length)
        last += [False] * (length - 1) + [True]
    close(sums_to_go(values, run, discount), to_go)
    close(running_sums(values, run), so_far)
    assert places(run).tolist() == at
    assert ends(run).tolist() == last


def test_sums_differentiate():
    run = torch.tensor([0, 0, 0, 4, 4, 1])
    values = noise(6, torch.Generator().manual_seed(0)).requires_grad_()
    assert gradcheck(lambda x: sums_to_go(x, run, 0.7), values)
    assert gradcheck(lambda x: running_sums(x, run), values)


def test_rewards_fall_due_at_the_last_token():
    """A reward of a trajectory without tokens falls nowhere."""
    step = outcomes([1, 7, 2], [2, 0, 1], values=[0] * 3, token_rewards=[0.5, 0.25, 0])
    close(dated_rewards(step), [0.5, 1.25, 2])
