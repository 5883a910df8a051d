"""An update does not depend on how its tokens are cut, packed or ordered, and masked trajectories are not there."""

import dataclasses
import math

import pytest
import torch

from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.advantages.grpo import GRPO
from lockstep.algorithm.advantages.opo import OPO
from lockstep.algorithm.advantages.optimal_token_baseline import OptimalTokenBaseline
from lockstep.algorithm.advantages.rloo import RLOO
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction import PRESETS, Correction, ImportanceWeights, Rejection
from lockstep.algorithm.covariance import KLCov
from lockstep.algorithm.kl import KLPenalty
from lockstep.algorithm.losses.cispo import CISPO
from lockstep.algorithm.losses.dppo import DPPO
from lockstep.algorithm.losses.dro import DRO
from lockstep.algorithm.losses.gmpo import GMPO
from lockstep.algorithm.losses.gspo import GSPO
from lockstep.algorithm.losses.policy_gradient import PolicyGradient
from lockstep.algorithm.losses.ppo import PPO
from lockstep.algorithm.losses.sapo import SAPO
from lockstep.algorithm.named import ALGORITHMS
from lockstep.trainer.critic import OwnCritic, SharedCritic
from lockstep.types import Group, InvariantError
from tests.learner.made import LONG, ONE, REWRITTEN, Probe, made_groups

RATE = 0.05  # of the plain gradient steps: ratios of the second update are off 1 by a few per cent
LOSSES = [PPO(), PolicyGradient(), GSPO(clip_low=0.1, clip_high=0.15), CISPO(), SAPO(), GMPO(), DPPO(), DRO()]
AGGREGATIONS = ["token-mean", "sequence-mean-token-mean", "sequence-mean-token-sum", "constant"]
LEAVING = Correction(
    rejection=Rejection(statistic="k3", over="sequence_mean", upper=0.01), rejected_in_denominator=False
)
DISTINCT = [
    *("none", "token-tis", "token-tis-normalized", "token-tis-veto", "token-icepop", "sequence-tis", "geometric-mis"),
    *("k3-rejection-token-tis", "divergence-mask", "bypass", "bypass-k3-rejection", "bypass-token-tis"),
    "bypass-sequence-tis",
]
CORRECTIONS = {name: PRESETS[name] for name in DISTINCT} | {
    "rejected ones leave the denominator": LEAVING,
    "and the rest is normalised": dataclasses.replace(LEAVING, weights=ImportanceWeights(normalize=True)),
}


def combinations():
    """Every loss with every correction that goes with it; the aggregation changes from one to the next, so that every
    loss and every correction meets each."""
    for i, loss in enumerate(LOSSES):
        for j, (name, correction) in enumerate(CORRECTIONS.items()):
            aggregation = AGGREGATIONS[(i + j) % len(AGGREGATIONS)]
            try:
                algorithm = Algorithm(loss=loss, correction=correction, aggregation=aggregation, epochs=2)
            except ValueError:
                continue
            yield pytest.param(algorithm, id=f"{type(loss).__name__}, {name}, {aggregation}")


def assert_same(found, expected):
    """Gradients of the same updates, to 1e-5 of the largest; an update may be clipped or rejected whole, not the
    first."""
    assert len(found) == len(expected)
    for update, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        largest = max(gradient.abs().max().item() for gradient in theirs.values())
        assert largest > 0 or update
        assert max((ours[name] - gradient).abs().max().item() for name, gradient in theirs.items()) <= 1e-5 * largest


def assert_same_report(found, expected):
    assert found.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-4, abs=2e-6), name
    assert found.scores.keys() == expected.scores.keys()
    for kind, scores in expected.scores.items():
        assert found.scores[kind] == pytest.approx(scores, rel=1e-4, abs=2e-6)


def probed(model, algorithm, groups, **options):
    probe = Probe(model, algorithm, plain_rate=RATE, **options)
    return probe, probe.update(groups)


def reordered(groups):
    """The same trajectories in another order."""
    turned = [dataclasses.replace(g, trajectories=g.trajectories[2:] + g.trajectories[1::-1]) for g in groups]
    return turned[::-1]


@pytest.mark.parametrize("algorithm", combinations())
def test_gradients_and_metrics_do_not_depend_on_the_cut_or_the_order(small, groups, algorithm):
    """One microbatch in the given order; several in another order."""
    whole, report = probed(small, algorithm, groups)
    cut, again = probed(small, algorithm, reordered(groups), microbatch_tokens=20)
    assert len(whole.gradients) == 2
    assert_same(cut.gradients, whole.gradients)
    assert_same_report(again, report)


RICH = {
    "OwnCritic": (Algorithm(advantages=GAE(gae_lambda=0.9), epochs=2), {"critic": OwnCritic()}),
    "SharedCritic": (Algorithm(advantages=GAE(gae_lambda=0.9), epochs=2), {"critic": SharedCritic()}),
    "OPO": (Algorithm(advantages=OPO(), epochs=2), {}),
    "OTB": (Algorithm(advantages=OptimalTokenBaseline(), epochs=2), {}),
    "KL in the reward": (Algorithm(advantages=RLOO(), kl=KLPenalty(coefficient=0.3, where="reward"), epochs=2), {}),
    "KL in the loss": (Algorithm(kl=KLPenalty(coefficient=0.3), epochs=2), {}),
    "direct KL": (Algorithm(kl=KLPenalty(coefficient=0.3, gradient="direct"), epochs=2), {}),
    "entropy": (Algorithm(entropy_coefficient=0.1, epochs=2), {}),
    "KLCov": (Algorithm(covariance=KLCov(fraction=0.2), epochs=2), {}),
    "recomputed": (Algorithm(old_logprobs="recomputed", epochs=2), {}),
}


@pytest.mark.parametrize("name", RICH)
def test_what_needs_more_than_the_policy_does_not_depend_on_the_cut_or_the_order(small, groups, name):
    algorithm, options = RICH[name]
    whole, report = probed(small, algorithm, groups, **options)
    cut, again = probed(small, algorithm, reordered(groups), microbatch_tokens=20, **options)
    assert_same(cut.gradients, whole.gradients)
    if whole.critic is not None:
        assert_same(cut.critic_gradients, whole.critic_gradients)
    assert_same_report(again, report)


@pytest.mark.parametrize("microbatch_tokens", [1, 17])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_minibatches_do_not_depend_on_the_cut(small, groups, aggregation, microbatch_tokens):
    """Their parts are dealt by trajectories, so the cut changes none; two epochs of two."""
    algorithm = Algorithm(aggregation=aggregation, correction=LEAVING, epochs=2, minibatches=2)
    whole, report = probed(small, algorithm, groups)
    cut, again = probed(small, algorithm, groups, microbatch_tokens=microbatch_tokens)
    assert len(whole.gradients) == 4
    assert_same(cut.gradients, whole.gradients)
    assert_same_report(again, report)


def test_the_fixture_is_one_where_it_matters(small, groups):
    """Some sequences are rejected, some weights cut; the second ratios are not 1."""
    algorithm = Algorithm(correction=LEAVING, epochs=2)
    _, report = probed(small, algorithm, groups, microbatch_tokens=20)
    assert 0.1 < report.metrics["correction/rejected_tokens"] < 0.9
    assert report.metrics["correction/weight_max"] != report.metrics["correction/weight_min"]
    assert report.metrics["ratio/max"] > 1.02 > 0.98 > report.metrics["ratio/min"]
    _, report = probed(small, Algorithm(loss=LOSSES[2], epochs=2), groups)
    assert 0 < report.metrics["clip_fraction"] < 1


# A trajectory of several samples


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_rewritten_history_counts_once(small, aggregation):
    """Three trajectories of 6, 3 and 9 tokens, the first in two samples; rewards 2, 1, 0, so advantages 1, 0, -1. Each
    token's loss has the gradient -A * weight, the first trajectory's as if it were one of 6 tokens."""
    groups = made_groups(small, shapes=[[REWRITTEN, ONE, LONG]], rewards=[[2.0, 1.0, 0.0]], mismatch=None)
    algorithm = Algorithm(advantages=GRPO(normalize=False), aggregation=aggregation)
    probe = Probe(small, algorithm)
    report = probe.update(groups)
    weights = {
        "token-mean": [1 / 18] * 3,
        "sequence-mean-token-mean": [1 / 3 / 6, 0, 1 / 3 / 9],
        "sequence-mean-token-sum": [1 / 3] * 3,
        "constant": [1 / 3 / 40] * 3,
    }[aggregation]
    expected = [-weights[0]] * 6 + [0.0] * 3 + [weights[2]] * 9
    assert [probe.tokens[0][place] for place in range(18)] == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert report.metrics["advantages/trajectories_zero"] == pytest.approx(1 / 3)
    assert {name.rpartition("/")[2] for name in report.scores["surprise"]} == {"0", "1", "2"}


def test_the_advantages_of_a_group_do_not_know_its_samples(small):
    """The same history, once as one sample and once rewritten at its second turn: a sibling's gradient is the same."""
    whole = [[(3, 4, False), (5, 2, False)], ONE, LONG]
    rewritten = [REWRITTEN, ONE, LONG]
    found = []
    for shapes in (whole, rewritten):
        groups = made_groups(small, shapes=[shapes], rewards=[[1.0, 0.25, -2.0]], mismatch=None)
        probe = Probe(small, Algorithm(aggregation="sequence-mean-token-mean"))
        probe.update(groups)
        found.append([probe.tokens[0][place] for place in range(18)])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-12)


# Masked trajectories, and broken ones


def masked(trajectory):
    """As the collector leaves one whose environment failed."""
    return dataclasses.replace(trajectory, reward=math.nan, error="down", stop_reason="environment_error")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_masked_trajectories_change_nothing(small, groups, name):
    """Not a bit, beside others in their groups or with a group to themselves, nor does a baseline's failure."""
    algorithm = ALGORITHMS[name]
    critic = OwnCritic() if name == "ppo" else None
    lost = [masked(t) for group in groups for t in group.trajectories]
    with_masked = [
        dataclasses.replace(groups[0], trajectories=(lost[0], *groups[0].trajectories, lost[1])),
        Group(task=groups[0].task, trajectories=tuple(lost[:3]), baseline=groups[0].baseline),
        dataclasses.replace(groups[1], trajectories=(*groups[1].trajectories, lost[5])),
    ]
    expected, found = Probe(small, algorithm, critic=critic), Probe(small, algorithm, critic=critic)
    reports = expected.update(groups), found.update(with_masked)
    assert reports[0].metrics == reports[1].metrics
    assert reports[0].scores == reports[1].scores
    assert all(torch.equal(g, found.gradients[0][n]) for n, g in expected.gradients[0].items())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_reward_that_is_no_number_stops_the_run_before_anything_changes(small, groups, name):
    probe = Probe(small, ALGORITHMS[name], critic=OwnCritic() if name == "ppo" else None)
    before = probe.weights()
    first = dataclasses.replace(groups[0].trajectories[0], reward=math.nan)
    broken = dataclasses.replace(groups[0], trajectories=(first, *groups[0].trajectories[1:]))
    with pytest.raises(InvariantError):
        probe.update([broken, groups[1]])
    assert all(torch.equal(p, before[name]) for name, p in probe.weights().items())


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("name", ["grpo", "dppo-tv", "reinforce"])
def test_an_engine_log_prob_that_is_no_number_names_its_trajectory(small, groups, name, value):
    probe = Probe(small, ALGORITHMS[name])
    before = probe.weights()
    trajectory = groups[0].trajectories[2]
    turn = dataclasses.replace(trajectory.turns[1], engine_logprobs=(-1.0, value))
    trajectory = dataclasses.replace(trajectory, turns=(trajectory.turns[0], turn))
    kept = (*groups[0].trajectories[:2], trajectory, groups[0].trajectories[3])
    with pytest.raises(InvariantError, match="trajectory 0/0/2: the engine returned a log-prob that is not finite"):
        probe.update([dataclasses.replace(groups[0], trajectories=kept), groups[1]])
    assert all(torch.equal(p, before[name]) for name, p in probe.weights().items())


def test_a_trainer_whose_log_probs_are_no_numbers_says_so(small, groups):
    probe = Probe(small, Algorithm())
    with torch.no_grad():
        probe.model.lm_head.weight[3] = math.nan
    with pytest.raises(InvariantError, match=r"log-probs are not finite \(first at action token 0 of the step\)"):
        probe.update(groups)
