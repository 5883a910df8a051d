"""Advantage estimators that look at groups: against numbers worked by hand, their definitions, and the true gradient.

GAE has a file of its own. The estimators' inputs are constants, so nothing here is differentiated but the bandit.
"""

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.advantages.grpo import GRPO
from lockstep.algorithm.advantages.opo import OPO
from lockstep.algorithm.advantages.optimal_token_baseline import OptimalTokenBaseline
from lockstep.algorithm.advantages.pass_at_k import PassAtK
from lockstep.algorithm.advantages.reinforce_plus_plus import ReinforcePlusPlus
from lockstep.algorithm.advantages.remax import ReMax
from lockstep.algorithm.advantages.rloo import RLOO
from lockstep.algorithm.advantages.whitening import whiten
from lockstep.algorithm.interface import AdvantageEstimator
from lockstep.algorithm.tokens import Outcomes, mean_by, sum_by

GROUP_ONLY: list[AdvantageEstimator] = [  # a trajectory's advantage depends on its group and on nothing else
    GRPO(),
    GRPO(normalize=False),
    RLOO(),
    OPO(),
    PassAtK(k=2),
    OptimalTokenBaseline(),
    OptimalTokenBaseline(zero_tail=True),
]
WHITENED: list[AdvantageEstimator] = [
    ReinforcePlusPlus(),
    ReinforcePlusPlus(gamma=0.9),
    ReinforcePlusPlus(group_baseline=True),
    ReinforcePlusPlus(group_baseline=True, gamma=0.5),
]
CRITIC: list[AdvantageEstimator] = [GAE(), GAE(gamma=0.9, gae_lambda=0.7, whiten=False)]
ALL: list[AdvantageEstimator] = [*GROUP_ONLY, *WHITENED, *CRITIC, ReMax()]

INDICES = ("group", "trajectory")
FEW = settings(max_examples=20)  # of each estimator


def outcomes(
    rewards,
    *,
    group=None,
    lengths=None,
    token_rewards=None,
    weights=None,
    greedy=None,
    values=None,
    square_norms=None,
    dtype=torch.float64,
):
    """Outcomes of plain lists: one group and one token a trajectory unless said."""

    def tensor(numbers) -> Any:
        return None if numbers is None else torch.as_tensor(numbers, dtype=dtype)

    group = torch.as_tensor([0] * len(rewards) if group is None else group)
    trajectory = torch.arange(len(rewards)).repeat_interleave(torch.tensor(lengths or [1] * len(rewards)))
    return Outcomes(
        rewards=tensor(rewards),
        group=group,
        num_groups=int(group.max()) + 1,
        trajectory=trajectory,
        token_rewards=tensor([0] * len(trajectory) if token_rewards is None else token_rewards),
        weights=tensor([1] * len(trajectory) if weights is None else weights),
        greedy_rewards=tensor(greedy),
        values=tensor(values),
        square_norms=tensor(square_norms),
    )


def close(actual, expected, tolerance=1e-12):
    assert actual.tolist() == pytest.approx(list(expected), abs=tolerance, rel=tolerance)


@st.composite
def steps(draw, *, min_group=2, tokenless=False):
    """A step of one to three groups, their trajectories interleaved, with everything that an estimator may look at."""
    sizes = draw(st.lists(st.integers(min_group, min_group + 3), min_size=1, max_size=3))
    group = draw(st.permutations([g for g, size in enumerate(sizes) for _ in range(size)]))
    lengths = draw(st.lists(st.integers(0 if tokenless else 1, 6), min_size=len(group), max_size=len(group)))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)

    def noise(size, scale=1.0):
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).tolist()

    coarse = draw(st.booleans())  # ties
    rewards = [round(r) if coarse else r for r in noise(len(group), 3.0)]
    return outcomes(
        rewards,
        group=group,
        lengths=lengths,
        token_rewards=noise(sum(lengths), draw(st.sampled_from([0.0, 0.3]))),
        weights=torch.rand(sum(lengths), generator=generator).tolist(),
        greedy=noise(len(group)),
        values=noise(sum(lengths)),
        square_norms=torch.rand(sum(lengths), generator=generator).tolist(),
    )


def per_trajectory(step, advantages):
    """[N] from [A], of trajectories with one advantage each."""
    values = mean_by(advantages, step.trajectory, step.num_trajectories)
    assert torch.allclose(values[step.trajectory], advantages, rtol=1e-12, atol=1e-12)
    return values


# Numbers worked by hand.


def test_grpo_golden():
    """Group 0: returns 1, 0, 0, 1, mean 1/2, std sqrt(4 * 1/4 / 3). Group 1: 2, 4, mean 3, std sqrt(2)."""
    step = outcomes([1, 0, 2, 0, 4, 1], group=[0, 0, 1, 0, 1, 0], lengths=[2, 1, 1, 3, 2, 1])
    half, one = 0.5 / (math.sqrt(1 / 3) + 1e-6), 1 / (math.sqrt(2) + 1e-6)
    close(GRPO()(step).advantages, [half, half, -half, -one, -half, -half, -half, one, one, half])
    close(GRPO(normalize=False)(step).advantages, [0.5, 0.5, -0.5, -1, -0.5, -0.5, -0.5, 1, 1, 0.5])
    close(GRPO(epsilon=1.0)(outcomes([2, 4])).advantages, [-1 / (math.sqrt(2) + 1), 1 / (math.sqrt(2) + 1)])


def test_rloo_golden():
    """3 - (0 + 1)/2, 0 - (3 + 1)/2, 1 - (3 + 0)/2; and 5 - 1, 1 - 5."""
    step = outcomes([3, 0, 5, 1, 1], group=[0, 0, 1, 0, 1])
    close(RLOO()(step).advantages, [2.5, -2, 4, -0.5, -4])


def test_remax_golden():
    close(ReMax()(outcomes([3, 0, 5], lengths=[1, 2, 1], greedy=[1, 1, 7])).advantages, [2, -1, -1, -2])


def test_opo_golden():
    """Baseline (3 * 1 + 1 * 0) / 4 = 3/4; in the other group (1 * 2 + 1 * 6) / 2 = 4."""
    step = outcomes([1, 0, 2, 6], group=[0, 0, 1, 1], lengths=[3, 1, 1, 1])
    close(OPO()(step).advantages, [0.25, 0.25, 0.25, -0.75, -2, 2])


def test_pass_at_k_golden():
    """n = 3, k = 2, n / C(3, 2) = 1. Reward 1: {0, 1} gains 1, {1, 3} nothing. Reward 3: {0, 3} gains 3, {1, 3} 2."""
    close(PassAtK(k=2)(outcomes([3, 0, 1], lengths=[1, 2, 1])).advantages, [5, 0, 0, 1])


def test_reinforce_plus_plus_golden():
    """gamma = 1/2: returns-to-go 0.5, 1 and -1.5, mean 0, variance (0.25 + 1 + 2.25) / 3."""
    std = math.sqrt(3.5 / 3 + 1e-8)
    close(
        ReinforcePlusPlus(gamma=0.5)(outcomes([1, -1.5], lengths=[2, 1])).advantages, [0.5 / std, 1 / std, -1.5 / std]
    )


def test_reinforce_plus_plus_dates_token_rewards():
    """gamma = 1/2, token rewards 4 and -2, reward 1: the last token has -1, the first 4 - 0.5. Mean 1.25, std 2.25."""
    step = outcomes([1], lengths=[2], token_rewards=[4, -2])
    std = math.sqrt(2.25**2 + 1e-8)
    close(ReinforcePlusPlus(gamma=0.5)(step).advantages, [2.25 / std, -2.25 / std])


def test_reinforce_plus_plus_with_a_group_baseline_golden():
    """Rewards 3, 1 less their mean: 1, 1 and -1 on the tokens; mean 1/3, variance (4 + 4 + 16) / 9 / 3 = 8/9."""
    std = math.sqrt(8 / 9 + 1e-8)
    step = outcomes([3, 1], lengths=[2, 1])
    close(ReinforcePlusPlus(group_baseline=True)(step).advantages, [2 / 3 / std, 2 / 3 / std, -4 / 3 / std])


def test_the_group_baseline_is_of_rewards_without_token_rewards():
    """Rewards 3, 1 less 2; then token rewards -1, 0: returns 0 and -1, mean -1/2, std 1/2."""
    step = outcomes([3, 1], token_rewards=[-1, 0])
    std = math.sqrt(0.25 + 1e-8)
    close(ReinforcePlusPlus(group_baseline=True)(step).advantages, [0.5 / std, -0.5 / std])


def test_optimal_token_baseline_golden():
    """Returns 2 and 0, square norms 1, 3, 5 and 1, 1: energies 1, 4, 9 and 1, 2.

    Baselines (1 * 2) / 2 = 1, (4 * 2) / 6 = 4/3, and at the third token 2, the only trajectory's own, or 0.
    """
    step = outcomes([2, 0], lengths=[3, 2], square_norms=[1, 3, 5, 1, 1])
    close(OptimalTokenBaseline()(step).advantages, [1, 2 / 3, 0, -1, -4 / 3])
    close(OptimalTokenBaseline(zero_tail=True)(step).advantages, [1, 2 / 3, 2, -1, -4 / 3])


def test_optimal_token_baseline_squares_the_weights_inside_the_sum():
    """Weights 2, 1 and 1, 1: energies 4, 4 + 3 = 7 and 1, 2. Baselines 8/5 and 14/9."""
    step = outcomes([2, 0], lengths=[2, 2], square_norms=[1, 3, 1, 1], weights=[2, 1, 1, 1])
    close(OptimalTokenBaseline()(step).advantages, [2 / 5, 4 / 9, -8 / 5, -14 / 9])


def test_optimal_token_baseline_takes_returns_to_go():
    """Token rewards 1, 2: returns-to-go 2 + 3 and 2 + 2. Square norms 1 everywhere, so plain means: 2.5 and 2."""
    step = outcomes([2, 0], lengths=[2, 2], token_rewards=[1, 2, 0, 0], square_norms=[1, 1, 1, 1])
    close(OptimalTokenBaseline()(step).advantages, [2.5, 2, -2.5, -2])


def test_optimal_token_baseline_of_sure_tokens_is_the_plain_mean():
    """Square norms of 0, or, by rounding, below."""
    step = outcomes([2, 0], lengths=[2, 2], square_norms=[0, 1, -1e-7, 0])
    close(OptimalTokenBaseline()(step).advantages, [1, 0, -1, -2])


@pytest.mark.parametrize("estimator", [GRPO(normalize=False), RLOO(), OPO(), PassAtK(k=2), ReMax()], ids=repr)
def test_token_rewards_count(estimator):
    """A return is the reward and all token rewards of the trajectory: 1 - 0.1 - 0.2 and 0.5 + 0.4."""
    step = outcomes([1, 0.5, 0], lengths=[2, 1, 2], token_rewards=[-0.1, -0.2, 0.4, 0, 0], greedy=[0, 0, 0])
    plain = outcomes([0.7, 0.9, 0], lengths=[2, 1, 2], greedy=[0, 0, 0])
    close(estimator(step).advantages, estimator(plain).advantages.tolist())


def test_a_trajectory_without_tokens_counts_in_the_baseline():
    step = outcomes([3, 0, 0], lengths=[1, 0, 2])
    close(GRPO(normalize=False)(step).advantages, [2, -1, -1])
    close(RLOO()(step).advantages, [3, -1.5, -1.5])
    close(OPO()(step).advantages, [2, -1, -1])  # except in OPO's, which goes by tokens
    close(PassAtK(k=2)(step).advantages, [6, 0, 0])


# Definitions.


def best_of_k_by_enumeration(rewards, k):
    """n times s^(loo-1): every subset of k, in exact fractions."""
    n = len(rewards)
    rewards = [Fraction(r) for r in rewards]
    subsets = list(itertools.combinations(range(n), k))

    def gain(subset, i):
        return max(rewards[j] for j in subset) - max(rewards[j] for j in subset if j != i)

    return [float(Fraction(n, len(subsets)) * sum(gain(s, i) for s in subsets if i in s)) for i in range(n)]


@given(data=st.data())
def test_pass_at_k_is_its_definition(data):
    """Two groups of their own sizes, ties among the rewards."""
    k = data.draw(st.integers(2, 6))
    numbers = st.one_of(st.integers(-2, 2).map(float), st.floats(-10, 10))
    groups = [data.draw(st.lists(numbers, min_size=k, max_size=7)) for _ in range(2)]
    order = data.draw(st.permutations([(g, i) for g, rewards in enumerate(groups) for i in range(len(rewards))]))
    step = outcomes([groups[g][i] for g, i in order], group=[g for g, _ in order])
    expected = [best_of_k_by_enumeration(rewards, k) for rewards in groups]
    close(PassAtK(k=k)(step).advantages, [expected[g][i] for g, i in order])


def test_pass_at_all_of_the_group_is_best_minus_second_best():
    """verl's grpo_passk, times n."""
    close(PassAtK(k=4)(outcomes([1, 7, 4, 2])).advantages, [0, 12, 0, 0])
    close(PassAtK(k=4)(outcomes([1, 7, 7, 2])).advantages, [0, 0, 0, 0])


@pytest.mark.parametrize("k", [2, 50, 500, 999, 1000])
def test_pass_at_k_of_a_large_group(k):
    """Rewards 0 and 1: a success gets k * C(failures, k - 1) / C(n - 1, k - 1), which overflows if taken apart."""
    n, successes = 1000, 3
    advantages = PassAtK(k=k)(outcomes([1.0] * successes + [0.0] * (n - successes))).advantages
    share = float(k * Fraction(math.comb(n - successes, k - 1), math.comb(n - 1, k - 1)))
    close(advantages, [share] * successes + [0.0] * (n - successes), 1e-11)
    assert (advantages[successes:] == 0).all()


def token_baseline_by_loops(step):
    """Token by token, straight from the formula."""
    lengths = torch.bincount(step.trajectory, minlength=step.num_trajectories).tolist()
    starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def to_go(i, t):
        rest = step.token_rewards[starts[i] + t : starts[i] + lengths[i]].sum().item()
        return step.rewards[i].item() + rest

    def energy(i, t):
        tokens = slice(starts[i], starts[i] + t + 1)
        return (step.weights[tokens] ** 2 * step.square_norms[tokens]).sum().item()

    advantages = []
    for i, length in enumerate(lengths):
        for t in range(length):
            alive = [j for j in range(len(lengths)) if step.group[j] == step.group[i] and lengths[j] > t]
            total = sum(energy(j, t) for j in alive)
            advantages.append(to_go(i, t) - sum(energy(j, t) * to_go(j, t) for j in alive) / total)
    return advantages


@given(step=steps(tokenless=True))
def test_optimal_token_baseline_is_its_definition(step):
    close(OptimalTokenBaseline()(step).advantages, token_baseline_by_loops(step), 1e-9)


@given(step=steps())
def test_optimal_token_baseline_of_equal_energies_and_lengths_is_the_group_mean(step):
    n = step.num_trajectories
    step = outcomes(step.rewards, group=step.group, lengths=[3] * n, square_norms=[0.25, 0.5, 0.1] * n)
    close(OptimalTokenBaseline()(step).advantages, GRPO(normalize=False)(step).advantages.tolist(), 1e-10)


@given(step=steps())
def test_grpo_is_its_definition(step):
    returns = step.returns()
    means = torch.stack([returns[step.group == g].mean() for g in range(step.num_groups)])
    stds = torch.stack([returns[step.group == g].std() for g in range(step.num_groups)])
    expected = ((returns - means[step.group]) / (stds + 1e-6)[step.group])[step.trajectory]
    close(GRPO()(step).advantages, expected.tolist(), 1e-9)


# Sums, shifts, scales, permutations, isolation.


@given(step=steps())
def test_advantages_of_a_group_sum_to_0(step):
    for estimator in (GRPO(), GRPO(normalize=False), RLOO()):
        sums = sum_by(per_trajectory(step, estimator(step).advantages), step.group, step.num_groups)
        close(sums, [0] * step.num_groups, 1e-10)


@given(step=steps(tokenless=True))
def test_opo_sums_to_0_over_tokens(step):
    sums = sum_by(OPO()(step).advantages, step.group[step.trajectory], step.num_groups)
    close(sums, [0] * step.num_groups, 1e-10)


@given(step=steps())
def test_pass_at_k_reinforces_only_the_better(step):
    """Never negative, 0 for the k - 1 worst, and in the order of the returns."""
    for k in (2, min(3, int(torch.bincount(step.group).min()))):
        advantages, returns = per_trajectory(step, PassAtK(k=k)(step).advantages), step.returns()
        for g in range(step.num_groups):
            ascending = advantages[step.group == g][returns[step.group == g].argsort()]
            assert (ascending[: k - 1] == 0).all()
            assert (ascending.diff() >= -1e-12).all()


@pytest.mark.parametrize("estimator", WHITENED, ids=repr)
@FEW
@given(step=steps())
def test_whitened_advantages_have_mean_0_and_variance_1(estimator, step):
    advantages = estimator(step).advantages
    assert abs(advantages.mean().item()) < 1e-9
    spread = advantages.var(correction=0).item()
    assert spread == pytest.approx(1, abs=1e-3) or spread < 1e-3  # or nothing to spread


@pytest.mark.parametrize(
    "estimator",
    [e for e in GROUP_ONLY if e != OptimalTokenBaseline(zero_tail=True)] + [ReinforcePlusPlus(group_baseline=True)],
    ids=repr,
)
@FEW
@given(step=steps(), shifts=st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_constant_on_a_groups_rewards_changes_nothing(estimator, step, shifts):
    shifted = dataclasses.replace(step, rewards=step.rewards + torch.tensor(shifts).double()[step.group])
    close(estimator(shifted).advantages, estimator(step).advantages.tolist(), 1e-7)


@given(step=steps(), shift=st.floats(-5, 5))
def test_a_constant_on_all_rewards_changes_nothing(step, shift):
    shifted = dataclasses.replace(step, rewards=step.rewards + shift, greedy_rewards=step.greedy_rewards + shift)
    for estimator in (ReinforcePlusPlus(), ReMax()):
        close(estimator(shifted).advantages, estimator(step).advantages.tolist(), 1e-7)


@pytest.mark.parametrize("estimator", [*GROUP_ONLY, CRITIC[1], ReMax()], ids=repr)
@FEW
@given(step=steps(), scale=st.sampled_from([0.25, 2.0, 1024.0]))
def test_advantages_scale_with_the_rewards(estimator, step, scale):
    """Exactly, by a power of two; GRPO with its division not at all, once epsilon scales too."""
    scaled = dataclasses.replace(
        step,
        rewards=step.rewards * scale,
        token_rewards=step.token_rewards * scale,
        greedy_rewards=step.greedy_rewards * scale,
        values=step.values * scale,
    )
    if estimator == GRPO():
        close(GRPO(epsilon=1e-6 * scale)(scaled).advantages, estimator(step).advantages.tolist())
    else:
        assert torch.equal(estimator(scaled).advantages, estimator(step).advantages * scale)


def permuted(step, order):
    """The step with its trajectories, and their tokens, in another order; and where each token came from."""
    source = torch.cat([(step.trajectory == i).nonzero().flatten() for i in order])
    renamed = torch.empty(len(order), dtype=torch.int64)
    renamed[torch.tensor(order)] = torch.arange(len(order))
    moved = {}
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if isinstance(value, torch.Tensor):
            per_step = field.name in ("rewards", "group", "greedy_rewards")
            moved[field.name] = value[torch.tensor(order)] if per_step else value[source]
    moved["trajectory"] = renamed[moved["trajectory"]]
    return dataclasses.replace(step, **moved), source


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@FEW
@given(data=st.data(), step=steps())
def test_permuting_trajectories_permutes_advantages(estimator, data, step):
    moved, source = permuted(step, data.draw(st.permutations(range(step.num_trajectories))))
    before, after = estimator(step), estimator(moved)
    close(after.advantages, before.advantages[source].tolist(), 1e-9)
    if before.targets is not None:
        assert torch.equal(after.targets, before.targets[source])


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@FEW
@given(step=steps())
def test_groups_may_be_empty_and_named_at_will(estimator, step):
    renamed = dataclasses.replace(step, group=2 * (step.num_groups - step.group), num_groups=2 * step.num_groups + 3)
    close(estimator(renamed).advantages, estimator(step).advantages.tolist(), 1e-12)


@pytest.mark.parametrize("estimator", [*GROUP_ONLY, CRITIC[1], ReMax()], ids=repr)
@pytest.mark.parametrize("poison", [torch.nan, 1e30], ids=str)
@FEW
@given(step=steps())
def test_groups_do_not_influence_each_other(estimator, poison, step):
    """Whatever group 0 holds, NaN included, the others keep every bit."""
    other = step.group != 0
    tokens = other[step.trajectory]
    poisoned = dataclasses.replace(
        step,
        rewards=torch.where(other, step.rewards, poison),
        greedy_rewards=torch.where(other, step.greedy_rewards, poison),
        token_rewards=torch.where(tokens, step.token_rewards, poison),
        values=torch.where(tokens, step.values, poison),
        square_norms=torch.where(tokens, step.square_norms, poison),
        weights=torch.where(tokens, step.weights, poison),
    )
    assert torch.equal(estimator(poisoned).advantages[tokens], estimator(step).advantages[tokens])


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@FEW
@given(step=steps())
def test_what_an_estimator_does_not_need_it_does_not_read(estimator, step):
    nothing = {
        "critic": {"values": None},
        "greedy": {"greedy_rewards": None},
        "square_norms": {"square_norms": None, "weights": step.weights * torch.nan},
    }
    unread = {k: v for need, fields in nothing.items() if need not in estimator.needs for k, v in fields.items()}
    assert torch.equal(estimator(dataclasses.replace(step, **unread)).advantages, estimator(step).advantages)


@pytest.mark.parametrize("size", [2, 3, 7, 8, 10])
@pytest.mark.parametrize("reward", [0.1, 0.3, 1 / 3, -7.7, 1e6 + 0.1])
def test_equal_rewards_give_exactly_0(reward, size):
    """The mean of eight 0.1 is not 0.1 in binary: a plain subtraction leaves 1e-17, over epsilon 1e-11."""
    step = outcomes([reward] * size, lengths=[1, 3, *[2] * (size - 2)], square_norms=[0.3] * (2 * size))
    for estimator in [*GROUP_ONLY[:-1], ReinforcePlusPlus(), ReinforcePlusPlus(group_baseline=True, gamma=0.9)]:
        advantages = estimator(step).advantages
        assert (advantages == 0).all(), estimator


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@FEW
@given(step=steps())
def test_float32_in_float32_out(estimator, step):
    single = {
        f.name: getattr(step, f.name).float()
        for f in dataclasses.fields(step)
        if isinstance(getattr(step, f.name), torch.Tensor) and getattr(step, f.name).is_floating_point()
    }
    single = dataclasses.replace(step, **single)
    before, after = estimator(step), estimator(single)
    assert after.advantages.dtype == torch.float32
    assert after.advantages.shape == step.trajectory.shape
    if estimator != GRPO() and estimator not in [*WHITENED, GAE()]:  # those blow rounding up where all are nearly equal
        close(after.advantages, before.advantages.tolist(), 1e-4)
    assert (after.targets is None) == (before.targets is None)
    assert after.targets is None or after.targets.dtype == torch.float32


@pytest.mark.parametrize("estimator", [*WHITENED, *CRITIC, OptimalTokenBaseline()], ids=repr)
@FEW
@given(step=steps())
def test_sums_over_time_are_taken_in_float64(estimator, step):
    """Of float32 token rewards, values, norms and weights nothing is rounded on the way."""
    kept = ("rewards", "greedy_rewards")
    tokens = {
        f.name: getattr(step, f.name).float()
        for f in dataclasses.fields(step)
        if f.name not in kept and isinstance(getattr(step, f.name), torch.Tensor) and f.name not in INDICES
    }
    exact = {name: values.double() for name, values in tokens.items()}
    single, double = dataclasses.replace(step, **tokens), dataclasses.replace(step, **exact)
    assert torch.equal(estimator(single).advantages, estimator(double).advantages)


@pytest.mark.parametrize("estimator", [*GROUP_ONLY, *WHITENED, *CRITIC, ReMax()], ids=repr)
def test_a_step_without_tokens_has_no_advantages(estimator):
    step = outcomes([1, 0], lengths=[0, 0], greedy=[0, 0], values=[], square_norms=[])
    assert estimator(step).advantages.shape == (0,)


# Unbiasedness, by enumeration of all that can be sampled.

ARMS = torch.tensor([1.0, 0.25, -2.0]).double()
THETA = torch.tensor([0.3, -0.4, 0.6]).double()


def expected_gradient(estimator, *, n, arm_lengths=(1, 1, 1)):
    """[3]: E of mean_i A_i * grad log p(arm_i) over all 3^n draws of n arms, each draw a group of one step.

    Only a trajectory's first token is drawn; the others are sure and have no gradient.
    """
    p = THETA.softmax(0)
    draws = torch.tensor(list(itertools.product(range(3), repeat=n)))
    arms = draws.flatten()
    lengths = torch.tensor(arm_lengths)[arms]
    first = lengths.cumsum(0) - lengths
    norms = torch.zeros(int(lengths.sum())).double()
    norms[first] = (1 - 2 * p + p.square().sum())[arms]
    step = outcomes(
        ARMS[arms],
        group=torch.arange(len(draws)).repeat_interleave(n),
        lengths=lengths.tolist(),
        greedy=ARMS[p.argmax()].expand(len(arms)),
        square_norms=norms,
    )
    advantages = estimator(step).advantages[first]
    scores = torch.nn.functional.one_hot(arms, 3).double() - p
    weighted = (advantages[:, None] * scores).view(len(draws), n, 3).mean(1)
    return (p[draws].prod(1)[:, None] * weighted).sum(0)


def true_gradient(k=1):
    """[3]: of E[max of k arms], by autograd through the sum over all draws of k."""
    theta = THETA.clone().requires_grad_()
    draws = torch.tensor(list(itertools.product(range(3), repeat=k)))
    best = (theta.softmax(0)[draws].prod(1) * ARMS[draws].amax(1)).sum()
    return torch.autograd.grad(best, theta)[0]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("arm_lengths", [(1, 1, 1), (1, 3, 2)], ids=str)
def test_rloo_and_remax_are_unbiased(n, arm_lengths):
    for estimator in (RLOO(), ReMax()):
        close(expected_gradient(estimator, n=n, arm_lengths=arm_lengths), true_gradient().tolist(), 1e-13)


@pytest.mark.parametrize(("n", "k"), [(2, 2), (3, 2), (3, 3), (5, 3)])
def test_pass_at_k_is_unbiased_for_the_best_of_k(n, k):
    close(expected_gradient(PassAtK(k=k), n=n), true_gradient(k).tolist(), 1e-13)
    assert not torch.allclose(true_gradient(k), true_gradient(), atol=1e-2)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_group_mean_shrinks_the_gradient_by_exactly_n_minus_1_over_n(n):
    """Dr. GRPO, and OPO while all lengths are equal."""
    for estimator in (GRPO(normalize=False), OPO()):
        close(expected_gradient(estimator, n=n), (true_gradient() * (n - 1) / n).tolist(), 1e-13)


@pytest.mark.parametrize("estimator", [OPO(), OptimalTokenBaseline()], ids=repr)
def test_weighted_baselines_are_biased_by_the_own_share_only(estimator):
    """Where weights go with rewards the direction bends too, and the bias falls as 1 / n."""
    errors = []
    for n in (2, 4, 8):
        gradient = expected_gradient(estimator, n=n, arm_lengths=(1, 3, 2))
        errors.append(((gradient - true_gradient()).norm() / true_gradient().norm()).item())
        assert torch.nn.functional.cosine_similarity(gradient, true_gradient(), dim=0) > 0.98
    assert errors[0] > 0.3
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.25)
    assert errors[2] == pytest.approx(errors[1] / 2, rel=0.25)


def test_dividing_by_the_std_changes_the_objective():
    """Not even the direction stays."""
    gradient = expected_gradient(GRPO(), n=3)
    assert torch.nn.functional.cosine_similarity(gradient, true_gradient(), dim=0) < 0.999


# Faults.


@pytest.mark.parametrize(
    "estimator", [*(e for e in GROUP_ONLY if "k=" not in repr(e)), ReinforcePlusPlus(group_baseline=True)], ids=repr
)
def test_a_lonely_trajectory_raises(estimator):
    step = outcomes([1, 0, 1], group=[0, 0, 1], square_norms=[1, 1, 1])
    with pytest.raises(ValueError, match=r"^group 1 has 1 trajectory: .* >= 2; .*rollout\.group_size$"):
        estimator(step)


@pytest.mark.parametrize("estimator", [ReinforcePlusPlus(), GAE(whiten=False), ReMax()], ids=repr)
def test_a_lonely_trajectory_is_fine_without_siblings(estimator):
    assert estimator(outcomes([2.0], lengths=[1], values=[0.5], greedy=[1.0])).advantages.isfinite().all()


def test_k_above_a_groups_size_raises():
    with pytest.raises(ValueError, match=r"^k=3: group 1 has 2 trajectories; lower k or raise rollout\.group_size"):
        PassAtK(k=3)(outcomes([1, 0, 1, 0, 0], group=[0, 0, 1, 1, 0]))


@pytest.mark.parametrize(
    ("estimator", "field"),
    [(GAE(), "values"), (ReMax(), "greedy_rewards"), (OptimalTokenBaseline(), "square_norms")],
    ids=repr,
)
def test_what_is_missing_is_named(estimator, field):
    with pytest.raises(ValueError, match=f"^{field}=None: .*; "):
        estimator(outcomes([1, 0]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GRPO(epsilon=0.0), "epsilon=0.0: must be > 0"),
        (lambda: GRPO(epsilon=math.nan), "epsilon=nan: must be > 0"),
        (lambda: ReinforcePlusPlus(gamma=1.5), r"gamma=1.5: must be in \[0, 1\]"),
        (lambda: ReinforcePlusPlus(gamma=-0.1), r"gamma=-0.1: must be in \[0, 1\]"),
        (lambda: GAE(gamma=1.01), r"gamma=1.01: must be in \[0, 1\]"),
        (lambda: GAE(gae_lambda=-1.0), r"gae_lambda=-1.0: must be in \[0, 1\]"),
        (lambda: GAE(gae_lambda=math.nan), r"gae_lambda=nan: must be in \[0, 1\]"),
        (lambda: PassAtK(k=1), "k=1: must be >= 2; .*RLOO"),
    ],
)
def test_options_out_of_range_raise(build, message):
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        build()
    assert "\n" not in str(raised.value)


def test_needs():
    needs = {
        GRPO(): {"siblings"},
        RLOO(): {"siblings"},
        OPO(): {"siblings"},
        PassAtK(): {"siblings"},
        ReMax(): {"greedy"},
        GAE(): {"critic"},
        OptimalTokenBaseline(): {"siblings", "square_norms"},
        ReinforcePlusPlus(): set(),
        ReinforcePlusPlus(group_baseline=True): {"siblings"},
    }
    for estimator, expected in needs.items():
        assert estimator.needs == expected, estimator


def test_only_a_critic_gets_targets():
    step = outcomes([1, 0], greedy=[0, 0], values=[0, 0], square_norms=[1, 1])
    for estimator in ALL:
        assert (estimator(step).targets is not None) == ("critic" in estimator.needs)


def test_whitening_of_one_and_of_none():
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert whiten(torch.tensor([])).tolist() == []
