"""A step's updates: how many, on what, against which old policy, when they stop, and what is left for a resume."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.advantages.grpo import GRPO
from lockstep.algorithm.advantages.opo import OPO
from lockstep.algorithm.advantages.optimal_token_baseline import OptimalTokenBaseline
from lockstep.algorithm.advantages.remax import ReMax
from lockstep.algorithm.advantages.rloo import RLOO
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction import Correction, DivergenceMask, ImportanceWeights, Rejection
from lockstep.algorithm.covariance import ClipCov
from lockstep.algorithm.kl import KLPenalty
from lockstep.algorithm.losses.gspo import GSPO
from lockstep.algorithm.losses.policy_gradient import PolicyGradient
from lockstep.algorithm.losses.ppo import PPO
from lockstep.algorithm.overlong import OverlongPenalty
from lockstep.algorithm.value_loss import ValueLoss
from lockstep.data.packing import pack
from lockstep.data.samples import to_samples
from lockstep.learner.experience import Experience, experience
from lockstep.learner.learner import Learner
from lockstep.trainer.critic import OwnCritic, SharedCritic
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import Group, InvariantError, UserError
from tests.learner.made import LONG, ONE, REWRITTEN, Probe, made_groups

UNCORRECTED = Correction(weights=None)
FAR = 0.3  # a learning rate after whose update the policy is another one


def tokens_of(groups):
    return experience(Algorithm(), groups).tokens()


def same_weights(one, other):
    return all(torch.equal(p, other[name]) for name, p in one.items())


def offset(probe, amount, monkeypatch):
    """Passes without gradient say something else than those with, the log-probs are off by an amount, and the check
    that would find it is off too."""
    monkeypatch.setattr("lockstep.learner.learner._check_first_pass", lambda *logprobs: None)
    logprobs = probe.trainer.logprobs

    def changed(*arguments, **options):
        found = logprobs(*arguments, **options)
        return dataclasses.replace(found, logprobs=found.logprobs + amount)

    probe.trainer.logprobs = changed


# The first update


@pytest.mark.parametrize("loss", [PPO(), GSPO(), PolicyGradient()])
@pytest.mark.parametrize("correction", [UNCORRECTED, Correction(weights=ImportanceWeights(normalize=True))])
def test_on_policy_the_gradient_is_minus_the_advantage_over_the_tokens(small, on_policy, loss, correction):
    """Of d loss / d log-prob, through the whole learner; without and with a first pass."""
    probe = Probe(small, Algorithm(loss=loss, correction=correction))
    report = probe.update(on_policy)
    tokens = tokens_of(on_policy)
    rewards = torch.tensor([[t.reward for t in group.trajectories] for group in on_policy]).double()
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    expected = -advantages.flatten()[tokens.trajectory] / len(tokens.trajectory)
    assert list(probe.tokens[0]) == list(range(len(expected)))
    assert list(probe.tokens[0].values()) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)
    assert report.metrics["loss"] == pytest.approx(
        -(advantages.flatten()[tokens.trajectory] * (tokens.old_logprobs if type(loss) is PolicyGradient else 1))
        .mean()
        .item(),
        rel=1e-4,
        abs=1e-7,
    )


@pytest.mark.parametrize("correction", [Correction(), Correction(weights=ImportanceWeights(normalize=True))])
def test_the_first_ratio_is_exactly_one(small, groups, correction):
    """Whatever the engine says, and with a first pass too."""
    metrics = Probe(small, Algorithm(correction=correction)).update(groups).metrics
    assert (metrics["ratio/min"], metrics["ratio/max"], metrics["ratio/mean"]) == (1, 1, 1)
    assert (metrics["update/kl"], metrics["clip_fraction"]) == (0, 0)
    assert metrics["mismatch/max_abs"] > 0.1


@pytest.mark.parametrize(("old", "ratio"), [("current", 1.0), ("recomputed", math.exp(-0.1))])
def test_recomputed_log_probs_are_those_of_the_pass_before(small, on_policy, old, ratio, monkeypatch):
    """The pass without gradient is made to say 0.1 more. Its ratio is in the gradient of the first update, or is not;
    the correction sees the pass in both cases, and weighs by exp(0.1)."""
    weights = ImportanceWeights(normalize=True) if old == "current" else ImportanceWeights()
    scale = 1.0 if old == "current" else math.exp(0.1)
    exact = Probe(small, Algorithm(correction=UNCORRECTED))
    exact.update(on_policy)
    probe = Probe(small, Algorithm(correction=Correction(weights=weights), old_logprobs=old))
    offset(probe, 0.1, monkeypatch)
    probe.update(on_policy)
    found = [probe.tokens[0][i] for i in range(len(probe.tokens[0]))]
    expected = [ratio * scale * exact.tokens[0][i] for i in range(len(found))]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_the_second_minibatch_and_epoch_are_measured_from_the_first_pass(small, on_policy, monkeypatch):
    """Without a learning rate the policy stays, so ratios are 1 but for an offset of the pass: in all updates but the
    first."""
    algorithm = Algorithm(correction=UNCORRECTED, epochs=2, minibatches=2, loss=PPO(clip_low=0.5, clip_high=0.5))
    plain, probe = Probe(small, algorithm, learning_rate=0.0), Probe(small, algorithm, learning_rate=0.0)
    offset(probe, 0.2, monkeypatch)
    plain.update(on_policy)
    probe.update(on_policy)
    for update, ratio in enumerate([1.0] + [math.exp(-0.2)] * 3):
        expected = {place: ratio * gradient for place, gradient in plain.tokens[update].items()}
        assert probe.tokens[update] == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_with_bypass_the_ratio_is_to_the_engine(small, groups):
    """d loss / d log-prob is -A r / N with r = trainer / engine, bounds far away."""
    loss = PPO(clip_low=0.99, clip_high=99)
    probe = Probe(small, Algorithm(loss=loss, correction=Correction(weights=None, anchor="bypass")))
    exact = Probe(small, Algorithm(loss=loss, correction=UNCORRECTED))
    report = probe.update(groups)
    exact.update(groups)
    engine = tokens_of(groups).engine_logprobs
    (microbatch,) = packed(groups)
    ratio = torch.zeros(len(engine))
    ratio[microbatch.action_place] = Trainer(small, None).logprobs(microbatch).logprobs
    ratio = (ratio - engine).exp().tolist()
    expected = [exact.tokens[0][i] * ratio[i] for i in range(len(ratio))]
    assert [probe.tokens[0][i] for i in range(len(ratio))] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert report.metrics["ratio/max"] == pytest.approx(max(ratio), rel=1e-4)


def packed(groups):
    return pack(experience(Algorithm(), groups).samples, max_tokens=10**6).microbatches


# Epochs and minibatches


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 1), (1, 2), (2, 3), (3, 2)])
def test_every_epoch_trains_on_every_token_once(small, groups, epochs, minibatches):
    probe = Probe(small, Algorithm(epochs=epochs, minibatches=minibatches), microbatch_tokens=12)
    report = probe.update(groups)
    assert len(probe.gradients) == epochs * minibatches
    everything = list(range(len(tokens_of(groups).trajectory)))
    owner = tokens_of(groups).trajectory.tolist()
    for epoch in range(epochs):
        parts = probe.tokens[epoch * minibatches :][:minibatches]
        assert sorted(place for part in parts for place in part) == everything
        owners = [{owner[place] for place in part} for part in parts]
        assert sum(map(len, owners)) == len(set(owner))  # whole trajectories, their several samples too
        assert [set(part) for part in parts] == [set(part) for part in probe.tokens[:minibatches]]
    assert report.metrics["update/epochs_done"] == epochs
    assert ("first_epoch/ratio/max" in report.metrics) is (epochs > 1)


def dealt(owners):
    return Experience(
        trajectories=(),
        rewards=torch.zeros(0),
        group=torch.zeros(0),
        num_groups=0,
        greedy_rewards=None,
        samples=(),
        sample_trajectory=owners,
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20).map(sorted), st.integers(1, 6), st.integers(0, 99))
def test_dealing_parts_whole_trajectories_evenly_by_the_seed(owners, num_parts, seed):
    parts = dealt(owners).deal(num_parts, seed=seed)
    assert parts == dealt(owners).deal(num_parts, seed=seed)
    assert len(parts) == min(num_parts, len(set(owners)))
    assert sorted(s for part in parts for s in part) == list(range(len(owners)))
    assert all(part == sorted(part) for part in parts)
    of_parts = [{owners[s] for s in part} for part in parts]
    assert sum(map(len, of_parts)) == len(set(owners))
    assert max(map(len, of_parts)) - min(map(len, of_parts)) <= 1


def test_dealing_differs_from_step_to_step(small, groups):
    found = dealt(list(range(8)))
    assert found.deal(1, seed=0) == [list(range(8))]
    assert len({str(found.deal(2, seed=seed)) for seed in range(8)}) > 4
    parts = []
    for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        probe = Probe(small, Algorithm(minibatches=2), seed=seed)
        probe.update(groups, step=step)
        parts.append([sorted(part) for part in probe.tokens])
    assert parts[0] == parts[1]
    assert parts[2] != parts[0] != parts[3]


def test_each_minibatch_has_denominators_of_its_own(small, on_policy):
    """Each token-mean is over its own tokens; the loss that is reported is the updates' mean."""
    algorithm = Algorithm(advantages=GRPO(normalize=False), correction=UNCORRECTED, minibatches=2)
    probe = Probe(small, algorithm, learning_rate=0.0)
    report = probe.update(on_policy)
    owner = tokens_of(on_policy).trajectory
    rewards = torch.tensor([[t.reward for t in group.trajectories] for group in on_policy]).double()
    advantages = (rewards - rewards.mean(1, keepdim=True)).flatten()
    losses = []
    for part in probe.tokens:
        expected = {place: -advantages[owner[place]].item() / len(part) for place in part}
        assert part == pytest.approx(expected, rel=1e-3, abs=1e-9)
        losses.append(sum(expected.values()))
    assert report.metrics["loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)


@pytest.mark.parametrize("inside", [True, False])
def test_rejected_tokens_are_in_a_minibatchs_denominator_or_not(small, on_policy, inside):
    """The first trajectory's engine was wrong by a nat a token: its 3 tokens are dropped, and the gradients of the
    other tokens in its minibatch are over all of its tokens, or over 3 less."""
    first = on_policy[0].trajectories[0]
    turn = dataclasses.replace(first.turns[0], engine_logprobs=tuple(x - 1 for x in first.turns[0].engine_logprobs))
    kept = (dataclasses.replace(first, turns=(turn,)), *on_policy[0].trajectories[1:])
    broken = [dataclasses.replace(on_policy[0], trajectories=kept), on_policy[1]]
    rejection = Rejection(statistic="k3", over="sequence_mean", upper=0.01)
    correction = Correction(weights=None, rejection=rejection, rejected_in_denominator=inside)
    plain = Probe(small, Algorithm(correction=UNCORRECTED, minibatches=2), learning_rate=0.0)
    probe = Probe(small, Algorithm(correction=correction, minibatches=2), learning_rate=0.0)
    plain.update(broken)
    probe.update(broken)
    for before, after in zip(plain.tokens, probe.tokens, strict=True):
        counted = len(before) - (0 in before and not inside) * 3
        scale = {place: 0 if place < 3 else len(before) / counted for place in before}
        assert after == pytest.approx({p: g * scale[p] for p, g in before.items()}, rel=1e-3, abs=1e-9)


def test_gradients_and_rates_that_are_reported(small, groups):
    """grad_norm: the largest of the updates'."""
    probe = Probe(small, Algorithm(epochs=3))
    report = probe.update(groups, step=2)
    norms = [sum(g.double().square().sum() for g in found.values()).sqrt().item() for found in probe.gradients]
    assert report.metrics["grad_norm"] == pytest.approx(max(norms), rel=1e-5)
    assert report.metrics["lr"] == 1e-2


# Stopping


@pytest.mark.parametrize("options", [{"epochs": 3}, {"minibatches": 3}])
def test_stop_kl_discards_the_update_that_it_forbids(small, groups, options):
    """The first update is let through whatever it does; the second is not made, and the rest neither."""
    probe = Probe(small, Algorithm(stop_kl=1e-3, **options), learning_rate=FAR)
    alone = Probe(small, Algorithm(stop_kl=1e9, **options), learning_rate=FAR)
    stepped = []
    step = alone.trainer.updater.step
    alone.trainer.updater.step = lambda rate: (step(rate), stepped.append(alone.weights()))[0]
    report, free = probe.update(groups), alone.update(groups)
    assert len(probe.gradients) == 1
    assert same_weights(probe.weights(), stepped[0])
    assert all(p.grad is None for p in probe.model.parameters())
    assert report.metrics["update/stopped_early"] == 1
    assert report.metrics["update/epochs_done"] == pytest.approx(1 / options.get("minibatches", 1))
    assert report.metrics["update/kl"] > 1e-3
    assert len(alone.gradients) == 3
    assert free.metrics["update/stopped_early"] == 0
    again = probe.update(groups, step=1)  # the next step begins anew
    assert len(probe.gradients) == 2
    assert again.metrics["update/stopped_early"] == 1


def test_the_kl_that_stops_is_that_of_the_old_policy_to_the_new(small, on_policy, monkeypatch):
    """Every pass without gradient is 0.2 too high, so d = -0.2 after updates of no size: exp(d) - 1 - d = 0.01873."""
    kl = math.exp(-0.2) - 1 + 0.2
    for stop_kl, updates in ((kl - 1e-4, 1), (kl + 1e-4, 2)):
        probe = Probe(small, Algorithm(minibatches=2, stop_kl=stop_kl), learning_rate=0.0)
        offset(probe, 0.2, monkeypatch)
        report = probe.update(on_policy)
        assert report.metrics["update/kl"] == pytest.approx(kl, rel=1e-3)
        assert len(probe.gradients) == updates


def test_a_critic_goes_on_when_the_policy_has_stopped(small, groups):
    probe = Probe(small, Algorithm(advantages=GAE(), epochs=3, stop_kl=1e-3), learning_rate=FAR, critic=OwnCritic())
    probe.update(groups)
    assert (len(probe.gradients), len(probe.critic_gradients)) == (1, 3)


# Critics


def test_while_the_critic_warms_up_the_policy_does_not_change(small, groups):
    critic = OwnCritic(warmup_steps=2, optimizer=Optimizer(learning_rate=1e-2))
    probe = Probe(small, Algorithm(advantages=GAE(), epochs=2, minibatches=2), critic=critic)
    reports = [probe.update(groups, step=step) for step in range(2)]
    assert same_weights(probe.weights(), dict(small.named_parameters()))
    assert len(probe.critic_gradients) == 8
    assert reports[1].metrics["critic/error"] < reports[0].metrics["critic/error"]
    assert [report.metrics["update/epochs_done"] for report in reports] == [0, 0]
    assert "ratio/max" not in reports[0].metrics
    reports.append(probe.update(groups, step=2))
    assert not same_weights(probe.weights(), dict(small.named_parameters()))
    assert reports[2].metrics["update/epochs_done"] == 2


def test_values_are_those_before_the_step_and_targets_the_returns(small, groups):
    """A critic begins at 0, where lambda 1 gives every token its trajectory's reward: loss 0.5 * mean r^2."""
    probe = Probe(small, Algorithm(advantages=GAE()), critic=OwnCritic())
    metrics = probe.update(groups).metrics
    owner = tokens_of(groups).trajectory
    rewards = torch.tensor([t.reward for group in groups for t in group.trajectories])[owner]
    assert metrics["critic/value_mean"] == 0
    assert metrics["critic/target_mean"] == pytest.approx(rewards.mean().item(), abs=1e-6)
    assert metrics["critic/error"] == pytest.approx(rewards.abs().mean().item(), abs=1e-6)
    assert probe.critic_gradients[0]["value_head.bias"].item() == pytest.approx(-rewards.mean().item(), abs=1e-6)


def test_a_shared_critics_loss_is_added_to_the_policys(small, groups):
    """The trunk's gradient of both is the sum of each; the head of 0 has no pull at the trunk in its first update, so
    the second is compared."""
    algorithm = Algorithm(advantages=GAE())
    probe = Probe(small, algorithm, critic=SharedCritic())
    before = torch.zeros(1, 32)
    probe.update(groups)
    assert not torch.equal(probe.trainer.value_head.weight, before)
    rewards = torch.tensor([t.reward for g in groups for t in g.trajectories])[tokens_of(groups).trajectory]
    assert probe.gradients[0]["value_head.bias"].item() == pytest.approx(-rewards.mean().item(), abs=1e-6)
    cut = Probe(small, dataclasses.replace(algorithm, minibatches=2), critic=SharedCritic())
    cut.update(groups)
    for update, part in enumerate(cut.tokens[:1]):
        expected = -torch.stack([rewards[place] for place in part]).mean().item()
        assert cut.gradients[update]["value_head.bias"].item() == pytest.approx(expected, abs=1e-6)


def test_what_an_algorithm_needs_must_be_given(small):
    trainer = Trainer(small, Optimizer())
    options = {"microbatch_tokens": 99, "max_tokens": 40, "num_steps": 4}
    with pytest.raises(ValueError, match="GAE needs values: give the learner a critic"):
        Learner(Algorithm(advantages=GAE()), trainer, **options)
    with pytest.raises(ValueError, match=r"algorithm\.kl: needs a reference"):
        Learner(Algorithm(kl=KLPenalty()), trainer, **options)


# KL to the reference


@pytest.mark.parametrize("where", ["loss", "reward"])
@pytest.mark.parametrize(("target", "rises"), [(1e-6, True), (1e6, False)])
def test_the_coefficient_follows_the_target_and_is_kept(small, groups, where, target, rises):
    """8 trajectories over a horizon of 80: by 0.2 * 8 / 80 a step."""
    algorithm = Algorithm(kl=KLPenalty(coefficient=0.5, where=where, target=target, horizon=80))
    probe = Probe(small, algorithm)
    first, second = probe.update(groups), probe.update(groups, step=1)
    factor = 1.02 if rises else 0.98
    assert first.metrics["reference/coefficient"] == 0.5
    assert second.metrics["reference/coefficient"] == pytest.approx(0.5 * factor)
    state = probe.learner.state_dict()
    assert state["kl_coefficient"] == pytest.approx(0.5 * factor**2)
    other = Probe(small, algorithm)
    other.learner.load_state_dict(state)
    assert other.update(groups, step=2).metrics["reference/coefficient"] == state["kl_coefficient"]


def test_the_adapted_coefficient_is_the_one_that_acts(small, groups):
    """Tenfold, and the penalty's part of the gradient is tenfold: both in the loss and in the reward."""
    for where in ("loss", "reward"):
        gradients = {}
        for coefficient in (0.0, 0.1, 1.0):
            probe = Probe(small, Algorithm(advantages=RLOO(), kl=KLPenalty(coefficient=0.3, where=where)))
            if coefficient:
                probe.learner.load_state_dict(probe.learner.state_dict() | {"kl_coefficient": coefficient})
            else:
                probe = Probe(small, Algorithm(advantages=RLOO()))
            probe.update(groups)
            gradients[coefficient] = torch.tensor([probe.tokens[0][i] for i in range(len(probe.tokens[0]))])
        small_part, large_part = (gradients[c] - gradients[0.0] for c in (0.1, 1.0))
        assert large_part.abs().max() > 1e-4
        assert torch.allclose(large_part, 10 * small_part, rtol=1e-3, atol=1e-6)


def test_the_observed_kl_is_of_the_policy_before_the_step(small, on_policy):
    """The engine agrees with the policy, so k3 of the engine's log-probs and the reference's."""
    probe = Probe(small, Algorithm(kl=KLPenalty(coefficient=0.5), epochs=2), learning_rate=FAR)
    report = probe.update(on_policy)
    (microbatch,) = packed(on_policy)
    d = tokens_of(on_policy).engine_logprobs[microbatch.action_place]
    d = d - probe.learner.reference.logprobs(microbatch).logprobs
    assert report.metrics["reference/kl"] == pytest.approx(((-d).exp() - 1 + d).mean().item(), rel=1e-3)


# Resume


RESUMED = {
    "no critic": (Algorithm(epochs=2, kl=KLPenalty(coefficient=0.3, target=0.01, horizon=80)), None),
    "OwnCritic": (
        Algorithm(advantages=GAE(), epochs=2, minibatches=2),
        OwnCritic(optimizer=Optimizer(learning_rate=1e-2, warmup_steps=3), warmup_steps=1),
    ),
    "SharedCritic": (Algorithm(advantages=GAE(), minibatches=2), SharedCritic()),
}


@pytest.mark.parametrize("name", RESUMED)
def test_two_steps_a_resume_and_two_steps_are_four_to_the_bit(small, groups, name):
    algorithm, critic = RESUMED[name]
    through = Probe(small, algorithm, critic=critic)
    expected = [through.update(groups, step=step) for step in range(4)]
    first = Probe(small, algorithm, critic=critic)
    for step in range(2):
        first.update(groups, step=step)
    state, weights = copy.deepcopy(first.learner.state_dict()), first.weights()
    second = Probe(small, algorithm, critic=critic)
    second.model.load_state_dict(weights)
    second.learner.load_state_dict(state)
    for step in (2, 3):
        found = second.update(groups, step=step)
        assert found.metrics == expected[step].metrics
        assert found.scores == expected[step].scores
    assert same_weights(second.weights(), through.weights())


# Which trajectories


def truncated(trajectory):
    return dataclasses.replace(trajectory, stop_reason="length")


def test_truncated_trajectories_stay_in_the_baseline(small, on_policy):
    """Rewards 1, 0, 0.5, 0 of a group, the first and last cut short: the others' advantages are as before."""
    group = on_policy[0]
    kept = (truncated(group.trajectories[0]), *group.trajectories[1:3], truncated(group.trajectories[3]))
    algorithm = Algorithm(advantages=GRPO(normalize=False), correction=UNCORRECTED, filter_truncated=True)
    probe = Probe(small, algorithm)
    probe.update([dataclasses.replace(group, trajectories=kept)])
    tokens = [-gradient * 12 for gradient in probe.tokens[0].values()]
    assert tokens == pytest.approx([-0.375] * 6 + [0.125] * 6, rel=1e-4)
    everything = Probe(small, dataclasses.replace(algorithm, filter_truncated=False))
    everything.update([dataclasses.replace(group, trajectories=kept)])
    assert len(everything.tokens[0]) == 24


def test_truncated_trajectories_keep_their_length_in_the_baseline(small, on_policy):
    """OPO: rewards 1, 0, 0.5, 0 and lengths 3, 6, 6, 9 give the baseline (3 + 3) / 24 = 0.25, whoever is trained on."""
    group = on_policy[0]
    lengths = [t.num_action_tokens for t in group.trajectories]
    rewards = [t.reward for t in group.trajectories]
    baseline = sum(n * r for n, r in zip(lengths, rewards, strict=True)) / sum(lengths)
    kept = (truncated(group.trajectories[0]), *group.trajectories[1:])
    algorithm = Algorithm(advantages=OPO(), correction=UNCORRECTED, filter_truncated=True)
    probe = Probe(small, algorithm)
    probe.update([dataclasses.replace(group, trajectories=kept)])
    num_trained = sum(lengths[1:])
    expected = [-(r - baseline) for r, n in zip(rewards[1:], lengths[1:], strict=True) for _ in range(n)]
    assert [g * num_trained for g in probe.tokens[0].values()] == pytest.approx(expected, rel=1e-4)


def test_in_bypass_mode_each_update_is_weighed_by_its_own_policy(small, groups):
    """A loss without ratio: a token's gradient is -A w / N with w = pi / mu of the policy at that update."""
    weights = ImportanceWeights(upper=math.inf)
    algorithm = Algorithm(
        loss=PolicyGradient(), correction=Correction(anchor="bypass", weights=weights), epochs=2, entropy_coefficient=0
    )
    probe = Probe(small, algorithm, learning_rate=FAR)
    seen = []
    forward_backward = probe.trainer.forward_backward

    def keeping(microbatch, loss):
        found = forward_backward(microbatch, loss)
        seen.append(dict(zip(microbatch.action_place.tolist(), found.logprobs.tolist(), strict=True)))
        return found

    probe.trainer.forward_backward = keeping
    probe.update(groups)
    engine = tokens_of(groups).engine_logprobs.tolist()
    for place, first in probe.tokens[0].items():
        ratio = math.exp(seen[1][place] - seen[0][place])
        assert probe.tokens[1][place] == pytest.approx(first * ratio, rel=1e-3, abs=1e-9)
        assert seen[0][place] != engine[place] or ratio != 1


def test_the_kl_coefficient_stands_still_while_only_the_critic_learns(small, groups):
    kl = KLPenalty(coefficient=0.1, where="reward", target=1.0, horizon=10)
    critic = OwnCritic(warmup_steps=1, optimizer=Optimizer(learning_rate=1e-2))
    probe = Probe(small, Algorithm(advantages=GAE(), kl=kl), critic=critic)
    coefficients = []
    for step in range(2):
        probe.update(groups, step=step)
        coefficients.append(probe.learner.state_dict()["kl_coefficient"])
    assert coefficients[0] == 0.1
    assert coefficients[1] != 0.1


def test_nothing_left_to_train_on_is_a_report_without_an_update(small, on_policy):
    algorithm = Algorithm(filter_truncated=True)
    probe = Probe(small, algorithm)
    all_cut = [dataclasses.replace(g, trajectories=tuple(map(truncated, g.trajectories))) for g in on_policy]
    report = probe.update(all_cut)
    assert report.metrics == {"update/epochs_done": 0.0, "update/stopped_early": 0.0}
    assert dict(report.scores) == {}
    assert dict(report.scores_for("mismatch/kl")) == {}
    assert same_weights(probe.weights(), dict(small.named_parameters()))
    assert probe.gradients == []


def only(group, *places):
    return dataclasses.replace(group, trajectories=tuple(group.trajectories[i] for i in places))


def test_a_group_of_one_is_left_out_where_siblings_are_needed(small, on_policy):
    alone, whole = only(on_policy[1], 0), on_policy[0]
    probe, expected = Probe(small, Algorithm()), Probe(small, Algorithm())
    probe.update([alone, whole])
    expected.update([whole])
    assert probe.tokens == expected.tokens
    with_greedy = Probe(small, Algorithm(advantages=ReMax(), loss=PolicyGradient()))
    with_greedy.update([alone, whole])
    assert len(with_greedy.tokens[0]) == 24 + 9
    nothing = Probe(small, Algorithm()).update([alone, only(whole, 2)])
    assert nothing.metrics["update/epochs_done"] == 0


@pytest.mark.parametrize("how", ["missing", "masked"])
def test_a_group_without_a_greedy_baseline_is_left_out_where_one_is_needed(small, on_policy, how):
    lost = dataclasses.replace(on_policy[0].baseline, error="down", reward=math.nan) if how == "masked" else None
    without = dataclasses.replace(on_policy[0], baseline=lost)
    algorithm = Algorithm(advantages=ReMax(), loss=PolicyGradient(), correction=UNCORRECTED)
    probe = Probe(small, algorithm)
    probe.update([without, on_policy[1]])
    owner = tokens_of([on_policy[1]]).trajectory
    advantages = torch.tensor([t.reward for t in on_policy[1].trajectories])[owner] - on_policy[1].baseline.reward
    found = [probe.tokens[0][i] for i in range(len(owner))]
    assert found == pytest.approx((-advantages / len(owner)).tolist(), rel=1e-4)
    assert len(probe.tokens[0]) == len(owner)
    other = Probe(small, Algorithm())  # who needs none takes the group
    other.update([without])
    assert len(other.tokens[0]) == 24


def test_a_step_whose_trajectories_are_all_masked_stops_the_run(small, on_policy):
    masked = [dataclasses.replace(t, error="out of order") for t in on_policy[0].trajectories]
    group = dataclasses.replace(on_policy[0], trajectories=tuple(masked))
    with pytest.raises(UserError, match=r"all 8 trajectories are masked; .* --resume: out of order"):
        Probe(small, Algorithm()).update([group, group])


def test_lengths_are_paid_for_before_the_baseline(small, on_policy):
    """Actions of 3, 6, 6 and 9 tokens; a limit of 9 of which the last 6 cost: 0, -0.5, -0.5, -1 on equal rewards."""
    trajectories = tuple(dataclasses.replace(t, reward=0.0) for t in on_policy[0].trajectories)
    group = Group(task=on_policy[0].task, trajectories=trajectories)
    algorithm = Algorithm(
        advantages=GRPO(normalize=False),
        correction=UNCORRECTED,
        overlong=OverlongPenalty(max_tokens=9, buffer_tokens=6),
    )
    probe = Probe(small, algorithm)
    probe.update([group])
    expected = [0.5] * 3 + [0.0] * 12 + [-0.5] * 9
    assert [-24 * probe.tokens[0][i] for i in range(24)] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    greedy = experience(
        dataclasses.replace(algorithm, advantages=ReMax(), loss=PolicyGradient()),
        [dataclasses.replace(group, baseline=dataclasses.replace(on_policy[0].trajectories[3], reward=0.0))],
    )
    assert greedy.greedy_rewards.tolist() == [-1.0] * 4


def test_clip_cov_draws_anew_each_step_and_the_same_in_each_run(small, groups):
    """The covariance's tokens are drawn by the step's seed."""
    algorithm = Algorithm(covariance=ClipCov(fraction=0.1, lower=-9, upper=9), correction=UNCORRECTED)
    silent = []
    for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        probe = Probe(small, algorithm, seed=seed)
        probe.update(groups, step=step)
        silent.append({place for place, gradient in probe.tokens[0].items() if gradient == 0})
    plain = Probe(small, Algorithm(correction=UNCORRECTED))
    plain.update(groups)
    assert len(silent[0]) == 4  # a tenth of 43, none of which has advantage 0
    assert 0 not in plain.tokens[0].values()
    assert silent[0] == silent[1]
    assert silent[2] != silent[0] != silent[3]


# Routes


def test_later_epochs_replay_the_first_pass(small, groups):
    """The engine said nothing of routes: the first pass's are replayed, though the router would choose others."""
    probe = Probe(small, Algorithm(epochs=2), learning_rate=FAR)
    passes = []
    forward_backward = probe.trainer.forward_backward
    probe.trainer.forward_backward = lambda *arguments: passes.append(forward_backward(*arguments)) or passes[-1]
    report = probe.update(groups)
    assert torch.equal(passes[0].routes, passes[1].routes)
    assert passes[0].route_agreement is None
    assert passes[1].route_agreement < 1
    assert "routes/agreement" not in report.metrics


def test_recomputed_epochs_do_not_take_the_engines_routes_for_their_own(small):
    """The engine's routes are those of the weights that sampled. After a large update the router chooses others, which
    is no misalignment."""
    groups = with_routes(small, made_groups(small, mismatch=None))
    Probe(small, Algorithm(epochs=2, old_logprobs="recomputed"), learning_rate=FAR).update(groups)


def test_current_epochs_do_not_either(small):
    groups = with_routes(small, made_groups(small, mismatch=None))
    probe = Probe(small, Algorithm(epochs=2), learning_rate=FAR)
    assert probe.update(groups).metrics["routes/agreement"] == 1


def with_routes(model, groups):
    """The trajectories with the routes that an engine with these weights records."""

    def of(trajectory):
        turns, trainer = list(trajectory.turns), Trainer(model, None)
        starts = [i for i, turn in enumerate(turns) if turn.restarts or i == 0] + [len(turns)]
        for sample, first, last in zip(to_samples(trajectory), starts[:-1], starts[1:], strict=True):
            (microbatch,) = pack([sample], max_tokens=10**6).microbatches
            routes, place = trainer.logprobs(microbatch).routes.numpy(), 0
            for i in range(first, last):
                end = place + turns[i].num_tokens - (i == first)
                turns[i] = dataclasses.replace(turns[i], routed_experts=routes[place:end])
                place = end
        return dataclasses.replace(trajectory, turns=tuple(turns))

    return [dataclasses.replace(g, trajectories=tuple(map(of, g.trajectories))) for g in groups]


# What the report says


def test_staleness_is_counted_from_the_step(small, groups):
    metrics = Probe(small, Algorithm()).update(groups, step=3).metrics
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (3, 3)


def test_scores_name_who_made_the_mismatch(small, groups):
    """The third of the second group is off by 0.8, by far the most."""
    report = Probe(small, Algorithm(epochs=2)).update(groups)
    scores = report.scores_for("mismatch/kl")
    assert max(scores, key=lambda name: scores[name]) == "0/1/2"
    assert sum(scores.values()) == pytest.approx(report.metrics["mismatch/kl"], rel=1e-4)
    assert report.scores_for("ratio/max") is report.scores["ratio"]
    assert report.scores_for("entropy/min") is report.scores["entropy"]
    assert report.scores_for("grad_norm") is report.scores["surprise"]
    assert report.scores_for("routes/agreement") is report.scores["mismatch"]


def test_mismatch_is_of_the_weights_before_the_step(small, on_policy):
    report = Probe(small, Algorithm(epochs=3), learning_rate=FAR).update(on_policy)
    assert report.metrics["mismatch/max_abs"] < 1e-5
    assert report.metrics["ratio/max"] > 1.1
    assert report.metrics["first_epoch/ratio/max"] == 1


def test_shapes_of_the_fixture(on_policy):
    """On which the numbers above depend."""
    counts = [[t.num_action_tokens for t in group.trajectories] for group in on_policy]
    assert counts == [[3, 6, 6, 9], [9, 3, 1, 6]]
    assert len(experience(Algorithm(), on_policy).samples) == 9
    assert (len(ONE), len(LONG), len(REWRITTEN)) == (1, 1, 2)


# What a review found


def passes_of(probe):
    """[(microbatch, Pass)] of the policy's updates, filled as they are made."""
    seen, forward_backward = [], probe.trainer.forward_backward

    def keeping(microbatch, loss):
        seen.append((microbatch, forward_backward(microbatch, loss)))
        return seen[-1][1]

    probe.trainer.forward_backward = keeping
    return seen


@pytest.mark.parametrize(
    "options", [{"minibatches": 2}, {"correction": Correction(weights=ImportanceWeights(normalize=True))}]
)
def test_a_first_update_that_does_not_see_what_the_pass_before_saw_stops_the_run(small, on_policy, options):
    """With the same weights, packing and routes the two are one computation, to the last bit."""
    probe = Probe(small, Algorithm(**options))
    nudged(probe)
    with pytest.raises(InvariantError, match=r"differ by up to .*e-0[67] .*the pass before it.* to recomputed"):
        probe.update(on_policy)
    assert probe.gradients == []
    bypass = Probe(small, Algorithm(correction=Correction(weights=None, anchor="bypass"), minibatches=2))
    nudged(bypass)  # the old log-probs are the engine's
    bypass.update(on_policy)
    recomputed = Probe(small, Algorithm(old_logprobs="recomputed", **options))
    nudged(recomputed)  # as in other trainers
    recomputed.update(on_policy)


def nudged(probe):
    """Passes without gradient are off by a bit or two."""
    logprobs = probe.trainer.logprobs

    def changed(*arguments, **options):
        found = logprobs(*arguments, **options)
        return dataclasses.replace(found, logprobs=found.logprobs + 1e-6)

    probe.trainer.logprobs = changed


def test_the_second_epoch_takes_ratios_to_the_first(small, on_policy):
    """-A r / N with r of a policy that has moved, bounds far away."""
    algorithm = Algorithm(correction=UNCORRECTED, epochs=2, loss=PPO(clip_low=0.99, clip_high=99))
    probe = Probe(small, algorithm, learning_rate=0.03)
    seen = passes_of(probe)
    probe.update(on_policy)
    (place, first), (_, second) = ((m.action_place, found.logprobs) for m, found in seen)
    ratio = dict(zip(place.tolist(), (second - first).exp().tolist(), strict=True))
    assert max(ratio.values()) > 1.1
    expected = {i: ratio[i] * gradient for i, gradient in probe.tokens[0].items()}
    assert probe.tokens[1] == pytest.approx(expected, rel=1e-3, abs=1e-9)


def first_logprobs(model, groups):
    """[A], in the tokens' order: the model's."""
    (microbatch,) = packed(groups)
    found = torch.zeros(len(microbatch.action_place))
    found[microbatch.action_place] = Trainer(model, None).logprobs(microbatch).logprobs
    return found


def test_in_bypass_mode_the_kl_penalty_is_weighed_once(small, groups):
    """Without a reward, of a loss without ratio: a token's gradient is c w (logprob - reference) / N, w = pi / mu."""
    flat = [
        dataclasses.replace(g, trajectories=tuple(dataclasses.replace(t, reward=0.0) for t in g.trajectories))
        for g in groups
    ]
    weights = ImportanceWeights(upper=math.inf)
    algorithm = Algorithm(
        loss=PolicyGradient(),
        correction=Correction(anchor="bypass", weights=weights),
        kl=KLPenalty(coefficient=0.5),
    )
    probe = Probe(small, algorithm)
    probe.update(flat)
    logprobs = first_logprobs(small, groups)
    weight = (logprobs - tokens_of(groups).engine_logprobs).exp()
    expected = 0.5 * weight * (logprobs - first_logprobs(probe.learner.reference.model, groups)) / len(logprobs)
    found = [probe.tokens[0][i] for i in range(len(logprobs))]
    assert found == pytest.approx(expected.tolist(), rel=2e-3, abs=1e-7)
    assert weight.max() > 1.5  # twice, it would be another number


def test_importance_weights_reach_the_advantages_in_bypass_mode_too(small, groups):
    """The optimal token baseline weighs by them."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watched(OptimalTokenBaseline):
        def __call__(self, outcomes):
            seen.append(outcomes.weights)
            return OptimalTokenBaseline()(outcomes)

    weights = ImportanceWeights(upper=math.inf)
    for anchor in ("decoupled", "bypass"):
        correction = Correction(anchor=anchor, weights=weights)
        Probe(small, Algorithm(advantages=Watched(), loss=PolicyGradient(), correction=correction)).update(groups)
    expected = (first_logprobs(small, groups) - tokens_of(groups).engine_logprobs).exp().tolist()
    assert seen[0].tolist() == pytest.approx(expected, rel=1e-3)
    assert seen[1].tolist() == pytest.approx(expected, rel=1e-3)


def test_an_epoch_that_was_stopped_is_reported(small, on_policy):
    """The second of four minibatches is too far: KL, ratios, loss and scores are of both, whose first has KL 0."""
    kl = KLPenalty(coefficient=0.1, target=1e6, horizon=80)
    probe = Probe(small, Algorithm(minibatches=4, stop_kl=1e-3, kl=kl), learning_rate=FAR)
    seen = passes_of(probe)
    report = probe.update(on_policy)
    assert (len(probe.gradients), len(seen)) == (1, 2)
    assert (report.metrics["update/epochs_done"], report.metrics["update/stopped_early"]) == (0.25, 1)
    place = torch.cat([m.action_place for m, _ in seen])
    d = torch.cat([found.logprobs for _, found in seen]) - first_logprobs(small, on_policy)[place]
    assert report.metrics["update/kl"] == pytest.approx((d.exp() - 1 - d).mean().item(), rel=1e-3)
    assert report.metrics["ratio/max"] == pytest.approx(d.max().exp().item(), rel=1e-3)
    assert report.metrics["loss"] == pytest.approx(sum(found.loss.item() for _, found in seen) / 2, rel=1e-5)
    owner = tokens_of(on_policy).trajectory
    ids = [t.id for g in on_policy for t in g.trajectories]
    far = {ids[i] for i in owner[seen[1][0].action_place].tolist()}
    assert {id_ for id_, score in report.scores["ratio"].items() if score} == far
    assert probe.learner.state_dict()["kl_coefficient"] == pytest.approx(0.1 * 0.98)  # it moved, so this adapts


def test_a_second_epoch_that_is_stopped_at_once_is_reported(small, on_policy):
    """What stopped it is in update/kl, not the first epoch's 0."""
    probe = Probe(small, Algorithm(epochs=3, stop_kl=1e-3), learning_rate=FAR)
    seen = passes_of(probe)
    report = probe.update(on_policy)
    (_, first), (_, second) = seen
    d = second.logprobs - first.logprobs
    assert report.metrics["update/kl"] == pytest.approx((d.exp() - 1 - d).mean().item(), rel=1e-4)
    assert report.metrics["loss"] == pytest.approx(second.loss.item())
    assert report.metrics["first_epoch/loss"] == pytest.approx(first.loss.item())
    assert report.metrics["first_epoch/ratio/max"] == 1


@pytest.mark.parametrize("critic", [OwnCritic(), SharedCritic()])
@pytest.mark.parametrize("options", [{}, {"epochs": 2, "minibatches": 3}])
def test_a_critics_numbers_are_of_the_last_epochs_passes(small, groups, critic, options):
    """Its values are 0 before the step: from there values are clipped, and the targets are the rewards."""
    loss = ValueLoss(clip=1e-3)
    rate = Optimizer(learning_rate=1e-2)
    critic = dataclasses.replace(critic, loss=loss, **({"optimizer": rate} if type(critic) is OwnCritic else {}))
    probe = Probe(small, Algorithm(advantages=GAE(), **options), critic=critic)
    seen = passes_of(probe)
    if probe.critic is not None:
        seen, forward_backward = [], probe.critic.forward_backward
        probe.critic.forward_backward = lambda m, of: seen.append((m, forward_backward(m, of))) or seen[-1][1]
    metrics = probe.update(groups).metrics
    last = seen[-options.get("minibatches", 1) :]
    values = torch.cat([found if torch.is_tensor(found) else found.values for _, found in last])
    rewards = torch.tensor([t.reward for g in groups for t in g.trajectories])[tokens_of(groups).trajectory]
    targets = rewards[torch.cat([m.action_place for m, _ in last])]
    losses, clipped = loss(values, torch.zeros_like(values), targets)
    assert len(values) == len(rewards)
    assert metrics["critic/loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert metrics["critic/clip_fraction"] == pytest.approx(clipped.float().mean().item())
    assert (metrics["critic/clip_fraction"] > 0) is bool(options)


def test_a_critics_largest_gradient_is_reported(small, groups):
    critic = OwnCritic(optimizer=Optimizer(learning_rate=1e-2, gradient_clip=1e9))
    probe = Probe(small, Algorithm(advantages=GAE(), epochs=3, minibatches=2), critic=critic)
    metrics = probe.update(groups).metrics
    norms = [sum(g.double().square().sum() for g in found.values()).sqrt().item() for found in probe.critic_gradients]
    assert metrics["critic/grad_norm"] == pytest.approx(max(norms), rel=1e-4)
    assert norms[-1] < max(norms)


def test_what_masks_and_covariances_take_is_reported(small, on_policy):
    """The engine was surer by a nat of all of the first group, of whose trajectories (3, 6, 6 and 9 tokens) the second
    and the last are worse than the mean."""
    surer = tuple(
        dataclasses.replace(
            t,
            turns=tuple(
                dataclasses.replace(turn, engine_logprobs=tuple(x + 1 for x in turn.engine_logprobs))
                for turn in t.turns
            ),
        )
        for t in on_policy[0].trajectories
    )
    groups = [dataclasses.replace(on_policy[0], trajectories=surer), on_policy[1]]
    algorithm = Algorithm(correction=Correction(weights=None, divergence_mask=DivergenceMask()))
    metrics = Probe(small, algorithm).update(groups).metrics
    assert metrics["correction/masked_tokens"] == pytest.approx((6 + 9) / 43)
    assert "covariance/selected" not in metrics
    drawn = Algorithm(covariance=ClipCov(fraction=0.1, lower=-9, upper=9), correction=UNCORRECTED)
    metrics = Probe(small, drawn).update(on_policy).metrics
    assert metrics["covariance/selected"] == pytest.approx(4 / 43)
    assert "correction/masked_tokens" not in metrics


def test_a_step_without_any_greedy_baseline_stops_the_run(small, on_policy):
    lost = [dataclasses.replace(g, baseline=dataclasses.replace(g.baseline, error="down")) for g in on_policy]
    probe = Probe(small, Algorithm(advantages=ReMax(), loss=PolicyGradient()))
    with pytest.raises(UserError, match=r"nothing to train on in this step.* --resume: down"):
        probe.update(lost)
    Probe(small, Algorithm()).update(lost)  # who needs none


def test_agreement_of_routes_is_over_tokens(small, groups):
    """Microbatches of several lengths, of which the first is said to agree in all routes and the rest in none."""
    probe = Probe(small, Algorithm(), microbatch_tokens=16)
    lengths, forward_backward = [], probe.trainer.forward_backward

    def judged(microbatch, loss):
        lengths.append(len(microbatch.tokens))
        return dataclasses.replace(forward_backward(microbatch, loss), route_agreement=float(len(lengths) == 1))

    probe.trainer.forward_backward = judged
    share = probe.update(groups).metrics["routes/agreement"]
    assert share == pytest.approx(lengths[0] / sum(lengths))
    assert share != pytest.approx(1 / len(lengths))
