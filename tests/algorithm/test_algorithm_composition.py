"""Algorithm: what may not be combined is an error of one line, what may be combined has an effect."""

import dataclasses

import numpy as np
import pytest
import torch

from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.advantages.opo import OPO
from lockstep.algorithm.advantages.optimal_token_baseline import OptimalTokenBaseline
from lockstep.algorithm.advantages.pass_at_k import PassAtK
from lockstep.algorithm.advantages.reinforce_plus_plus import ReinforcePlusPlus
from lockstep.algorithm.advantages.remax import ReMax
from lockstep.algorithm.advantages.rloo import RLOO
from lockstep.algorithm.aggregation import token_weights
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction import Correction, DivergenceMask, ImportanceWeights, Rejection, Veto, preset
from lockstep.algorithm.covariance import ClipCov, KLCov
from lockstep.algorithm.kl import KLPenalty
from lockstep.algorithm.losses.dppo import DPPO
from lockstep.algorithm.losses.gspo import GSPO
from lockstep.algorithm.losses.policy_gradient import PolicyGradient
from lockstep.algorithm.losses.ppo import PPO
from lockstep.algorithm.named import ALGORITHMS, named
from lockstep.algorithm.overlong import OverlongPenalty
from lockstep.algorithm.tokens import ActionTokens
from lockstep.learner.experience import experience
from lockstep.types import Group
from tests.learner.made import TASK, trajectory

BYPASS = Correction(weights=None, anchor="bypass")
REJECTING = Rejection(statistic="k3", over="sequence_mean", upper=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, r"algorithm\.epochs=0: must be at least 1"),
        ({"minibatches": -1}, r"algorithm\.minibatches=-1: must be at least 1"),
        ({"entropy_coefficient": -0.1}, r"algorithm\.entropy_coefficient=-0.1: must be 0 or more"),
        ({"stop_kl": 0.01}, r"algorithm\.stop_kl=0.01: stops between a batch's updates, of which there are 1"),
        ({"stop_kl": 0.0, "epochs": 2}, r"algorithm\.stop_kl=0.0: .*at a KL above 0"),
        ({"stop_kl": -1.0, "minibatches": 2}, r"algorithm\.stop_kl=-1.0"),
        ({"covariance": KLCov()}, r"algorithm\.covariance=KLCov: .*is 0 with one update"),
        ({"loss": DPPO()}, r"algorithm\.loss=DPPO: its ratio is to the engine's log-probs; set correction\.anchor"),
        ({"correction": BYPASS, "old_logprobs": "recomputed"}, r"algorithm\.old_logprobs=recomputed: in bypass mode"),
        ({"correction": Correction(anchor="bypass")}, "ratio is the weight already; set weights=None"),
        ({"loss": PolicyGradient(), "correction": BYPASS}, "without ratio corrects nothing: set weights"),
    ],
)
def test_options_without_effect_or_against_each_other_are_an_error_of_one_line(options, words):
    with pytest.raises(ValueError, match=words) as raised:
        Algorithm(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"stop_kl": 0.01, "epochs": 2},
        {"stop_kl": 0.01, "minibatches": 2},
        {"covariance": KLCov(), "epochs": 2},
        {"covariance": KLCov(), "minibatches": 2},
        {"covariance": ClipCov()},
        {"loss": DPPO(), "correction": BYPASS},
        {"correction": BYPASS},
        {"loss": PolicyGradient(), "correction": preset("bypass-token-tis")},
        {"loss": PolicyGradient(), "correction": dataclasses.replace(BYPASS, rejection=REJECTING)},
        {"old_logprobs": "recomputed"},
        {"entropy_coefficient": 0.0},
    ],
)
def test_the_nearest_combinations_are_none(options):
    Algorithm(**options)


def test_updates_a_batch():
    assert Algorithm().num_updates == 1
    assert Algorithm(epochs=2, minibatches=3).num_updates == 6


NEEDS_FIRST_PASS = [
    ({}, False),
    ({"epochs": 4}, False),
    ({"minibatches": 2}, True),
    ({"correction": Correction(rejection=REJECTING)}, False),
    ({"correction": Correction(rejection=REJECTING, rejected_in_denominator=False)}, True),
    ({"correction": Correction(weights=ImportanceWeights(normalize=True))}, True),
    ({"correction": BYPASS}, False),
    ({"correction": dataclasses.replace(BYPASS, rejection=REJECTING, rejected_in_denominator=False)}, True),
    ({"covariance": ClipCov()}, True),
    ({"covariance": KLCov(), "epochs": 2}, True),
    ({"kl": KLPenalty(where="loss")}, False),
    ({"kl": KLPenalty(where="reward")}, True),
    ({"advantages": GAE()}, False),
    ({"advantages": ReMax()}, False),
    ({"advantages": OptimalTokenBaseline()}, True),
    ({"old_logprobs": "recomputed"}, True),
    ({"entropy_coefficient": 0.1, "overlong": OverlongPenalty(max_tokens=9, buffer_tokens=3)}, False),
    ({"filter_truncated": True, "aggregation": "constant"}, False),
    ({"stop_kl": 0.1, "epochs": 2}, False),
]


@pytest.mark.parametrize(("options", "needed"), NEEDS_FIRST_PASS)
def test_what_needs_a_pass_before_the_first_gradient(options, needed):
    assert Algorithm(**options).needs_first_pass is needed


def test_names():
    assert named("grpo") == Algorithm()
    for name, algorithm in ALGORITHMS.items():
        assert named(name) is algorithm
        assert algorithm.num_updates == 1
    with pytest.raises(ValueError, match=r"no algorithm 'gsop'; did you mean gspo\?; there are grpo, dr-grpo"):
        named("gsop")
    with pytest.raises(ValueError, match="no algorithm 'zzzz'; there are"):
        named("zzzz")


def test_no_two_names_are_one_algorithm():
    assert len(set(map(repr, ALGORITHMS.values()))) == len(ALGORITHMS)


# Every allowed option changes something

LOGPROBS = torch.tensor([-1.0, -0.4, -2.0, -0.9, -1.5, -0.2, -3.0, -0.7]).double()
OLD = LOGPROBS + torch.tensor([0.3, -0.3, 0.1, 0.0, -0.5, 0.2, -0.6, 0.05]).double()
ENGINE = OLD + torch.tensor([0.4, -0.9, 0.02, 0.9, 0.0, 0.01, 0.0, 3.0]).double()
TRAJECTORY = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
KL = KLPenalty(coefficient=0.1)


def outcome(algorithm, *, logprobs=LOGPROBS, kl=None):
    """losses [A] and d losses / d logprobs [A] on a fixture of three trajectories, off policy and off the engine's; the
    third trajectory has two sequences."""
    logprobs = logprobs.clone().requires_grad_()
    entropies = -0.5 * logprobs
    tokens = ActionTokens(
        engine_logprobs=ENGINE,
        old_logprobs=ENGINE if algorithm.correction.anchor == "bypass" else OLD,
        advantages=torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, 0.5, 0.5, 0.5]).double(),
        sequence=torch.tensor([0, 0, 0, 1, 1, 2, 2, 3]),
        trajectory=TRAJECTORY,
        turn=torch.zeros(8, dtype=torch.int64),
        num_sequences=4,
        num_trajectories=3,
        reference_logprobs=OLD - 0.4,
    )
    if algorithm.correction.needs_batch:
        found = algorithm.correct(logprobs.detach() if algorithm.correction.anchor == "bypass" else OLD, tokens)
        tokens = dataclasses.replace(tokens, weights=found.weights, kept=found.kept)
    weights = token_weights(
        algorithm.aggregation,
        TRAJECTORY,
        3,
        counted=None if algorithm.correction.rejected_in_denominator else tokens.kept,
        max_tokens=11 if algorithm.aggregation == "constant" else None,
    )
    tokens = dataclasses.replace(tokens, loss_weights=weights, selected=algorithm.select(tokens, 0))
    losses = algorithm.token_losses(logprobs, entropies, tokens, kl if kl is not None else algorithm.kl)
    losses.sum().backward()
    return torch.stack([losses.detach(), logprobs.grad])


PLAIN = Algorithm()
CHANGES = {
    "loss": {"loss": GSPO()},
    "loss without ratio": {"loss": PolicyGradient()},
    "loss with another clip": {"loss": PPO(clip_high=0.1)},
    "sequence-mean-token-mean": {"aggregation": "sequence-mean-token-mean"},
    "sequence-mean-token-sum": {"aggregation": "sequence-mean-token-sum"},
    "constant": {"aggregation": "constant"},
    "no weights": {"correction": Correction(weights=None)},
    "rejection": {"correction": Correction(rejection=REJECTING)},
    "veto": {"correction": Correction(veto=Veto(threshold=0.1))},
    "divergence mask": {"correction": Correction(divergence_mask=DivergenceMask(threshold=0.1))},
    "bypass": {"correction": BYPASS},
    "normalised": {"correction": Correction(weights=ImportanceWeights(normalize=True))},
    "KL in the loss": {"kl": KL},
    "entropy": {"entropy_coefficient": 0.1},
    "ClipCov": {"covariance": ClipCov(fraction=0.2, lower=-9, upper=9)},
    "KLCov": {"covariance": KLCov(fraction=0.2), "epochs": 2},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_of_the_loss_changes_it(name):
    expected, found = outcome(PLAIN), outcome(Algorithm(**CHANGES[name]))
    assert found.isfinite().all()
    assert (found - expected).abs().max() > 1e-3


def test_rejected_ones_in_the_denominator_or_not():
    """Of 8 tokens 2 are in a sequence with a mean k3 up to 0.01: each counts 1/8 or 1/2."""
    inside = outcome(Algorithm(correction=Correction(weights=None, rejection=REJECTING)))
    outside = outcome(
        Algorithm(correction=Correction(weights=None, rejection=REJECTING, rejected_in_denominator=False))
    )
    kept = (inside[1] != 0) | (inside[0] != 0)
    assert kept.tolist() == [False] * 5 + [True] * 2 + [False]
    assert torch.allclose(outside[:, kept], inside[:, kept] * 8 / 2, atol=1e-7)


def test_a_penalty_in_the_reward_is_none_in_the_loss():
    assert torch.equal(outcome(Algorithm(kl=KLPenalty(where="reward"))), outcome(PLAIN))


def test_the_coefficient_that_is_passed_counts():
    """It may be adapted, which the algorithm's own is not."""
    plain, algorithm = outcome(PLAIN), Algorithm(kl=KL)
    once, twice = (outcome(algorithm, kl=KLPenalty(coefficient=c)) - plain for c in (0.1, 0.2))
    assert torch.allclose(twice, 2 * once, atol=1e-7)
    assert once.abs().max() > 1e-4


def test_entropy_is_subtracted_where_tokens_are_kept():
    """Entropies -0.5 * logprob of weight 0.1: each kept token's loss falls by 0.1 * entropy / 8, unweighted."""
    found = outcome(Algorithm(entropy_coefficient=0.1)) - outcome(PLAIN)
    assert torch.allclose(found[0], 0.1 * 0.5 * LOGPROBS / 8, atol=1e-7)
    assert torch.allclose(found[1], torch.full((8,), 0.1 * 0.5 / 8).double(), atol=1e-7)
    rejecting = Correction(rejection=REJECTING)
    found = outcome(Algorithm(entropy_coefficient=0.1, correction=rejecting)) - outcome(Algorithm(correction=rejecting))
    assert found[1].bool().tolist() == [False] * 5 + [True] * 2 + [False]


def test_a_masked_token_keeps_its_kl_and_a_clip_cov_token_too():
    """The divergence mask and Clip-Cov take the policy's loss away, not the penalty: of a token it is the same."""
    mask = Correction(weights=None, divergence_mask=DivergenceMask(threshold=0.1))
    for options in ({"correction": mask}, {"covariance": ClipCov(fraction=1.0, lower=-99, upper=99)}):
        without = outcome(Algorithm(**options))
        assert (without[1] == 0).any()
        penalised = outcome(Algorithm(**options, kl=KL))
        assert (penalised[1] != 0).all()


def test_kl_cov_is_added_whatever_the_weights_are():
    """Its tokens pay |logprob - old|, coefficient 1, once: not times the importance weight."""
    algorithm = Algorithm(covariance=KLCov(fraction=1.0), epochs=2)
    found = outcome(algorithm) - outcome(PLAIN)
    assert torch.allclose(found[0], (LOGPROBS - OLD).abs() / 8, atol=1e-7)


def test_importance_weights_multiply_the_policys_loss_and_the_penalty():
    """Token weights exp(old - engine), at most 2."""
    weights = (OLD - ENGINE).exp().clamp(max=2.0)
    for options in ({}, {"kl": KL}):
        plain = outcome(Algorithm(correction=Correction(weights=None), **options))
        assert torch.allclose(outcome(Algorithm(**options)), plain * weights, atol=1e-7)


def test_in_bypass_mode_rejection_sees_the_current_policy():
    """The same tokens are kept as by hand from logprobs - engine; decoupled, from old - engine."""
    rejection = Rejection(statistic="k1", over="token", upper=0.5)
    bypass = outcome(Algorithm(correction=dataclasses.replace(BYPASS, rejection=rejection)))
    assert (bypass[0] != 0).tolist() == (ENGINE - LOGPROBS <= 0.5).tolist()
    decoupled = outcome(Algorithm(correction=Correction(rejection=rejection)))
    assert (decoupled[0] != 0).tolist() == (ENGINE - OLD <= 0.5).tolist()
    assert (ENGINE - LOGPROBS <= 0.5).tolist() != (ENGINE - OLD <= 0.5).tolist()


def test_broken_log_probs_of_a_dropped_sequence_leak_nowhere():
    """The engine's: the sequence is dropped whole, the others are as they were."""
    expected = outcome(PLAIN)
    broken = ENGINE.clone()
    broken[3] = float("nan")
    logprobs = LOGPROBS.clone().requires_grad_()
    tokens = ActionTokens(
        engine_logprobs=broken,
        old_logprobs=OLD,
        advantages=torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, 0.5, 0.5, 0.5]).double(),
        sequence=torch.tensor([0, 0, 0, 1, 1, 2, 2, 3]),
        trajectory=TRAJECTORY,
        turn=torch.zeros(8, dtype=torch.int64),
        num_sequences=4,
        num_trajectories=3,
        loss_weights=torch.full((8,), 1 / 8).double(),
    )
    losses = PLAIN.token_losses(logprobs, logprobs, tokens, None)
    losses.sum().backward()
    assert losses[3:5].tolist() == [0, 0]
    others = torch.tensor([0, 1, 2, 5, 6, 7])
    assert torch.allclose(torch.stack([losses.detach(), logprobs.grad])[:, others], expected[:, others], atol=1e-7)
    assert logprobs.grad[3:5].tolist() == [0, 0]


def found_in(algorithm):
    generator = np.random.default_rng(0)
    shapes, rewards = [[(2, n, False)] for n in (3, 6, 9)], [1.0, 0.0, 0.5]
    stops = ["done", "done", "length"]
    kept = [
        trajectory(str(i), shape, reward, generator, stop_reason=stop)
        for i, (shape, reward, stop) in enumerate(zip(shapes, rewards, stops, strict=True))
    ]
    baseline = trajectory("greedy", shapes[0], 0.25, generator)
    return experience(algorithm, [Group(task=TASK, trajectories=tuple(kept), baseline=baseline)])


def test_options_of_the_experience_change_it():
    plain = found_in(PLAIN)
    assert (plain.rewards.tolist(), plain.sample_trajectory, plain.greedy_rewards) == ([1.0, 0.0, 0.5], [0, 1, 2], None)
    filtered = found_in(Algorithm(filter_truncated=True))
    assert (filtered.rewards.tolist(), filtered.sample_trajectory) == ([1.0, 0.0, 0.5], [0, 1])
    overlong = found_in(Algorithm(overlong=OverlongPenalty(max_tokens=9, buffer_tokens=6)))
    assert overlong.rewards.tolist() == [1.0, -0.5, -0.5]
    assert found_in(Algorithm(advantages=ReMax())).greedy_rewards.tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("advantages", "smallest"),
    [(RLOO(), 2), (OPO(), 2), (ReinforcePlusPlus(), 1), (ReinforcePlusPlus(group_baseline=True), 2), (PassAtK(k=3), 3)],
)
def test_groups_too_small_for_the_advantages_are_left_out(advantages, smallest):
    """A masked trajectory does not count."""
    generator = np.random.default_rng(0)
    for size in (1, 2, 3):
        kept = [trajectory(str(i), [(2, 3, False)], 1.0, generator) for i in range(size)]
        masked = dataclasses.replace(kept[0], id="masked", error="down")
        found = experience(Algorithm(advantages=advantages), [Group(task=TASK, trajectories=(masked, *kept))])
        assert len(found.trajectories) == (size if size >= smallest else 0)
        assert found.num_groups == (size >= smallest)
