"""What every policy loss must do: on policy, differentiated, permuted, split, far off, in either precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from lockstep.algorithm.interface import PolicyLoss
from lockstep.algorithm.losses.cispo import CISPO
from lockstep.algorithm.losses.dppo import DPPO
from lockstep.algorithm.losses.dro import DRO
from lockstep.algorithm.losses.gmpo import GMPO
from lockstep.algorithm.losses.gspo import GSPO
from lockstep.algorithm.losses.policy_gradient import PolicyGradient
from lockstep.algorithm.losses.ppo import PPO
from lockstep.algorithm.losses.sapo import SAPO
from lockstep.algorithm.losses.supervised import supervised_loss
from lockstep.algorithm.tokens import ActionTokens, mean_by, sum_by

LOSSES: list[PolicyLoss] = [
    PolicyGradient(),
    PPO(),
    PPO(dual_clip=3.0),
    GSPO(),
    GSPO(clip_low=0.2, clip_high=0.3),
    CISPO(),
    CISPO(clip_low=0.2, clip_high=0.3),
    SAPO(),
    SAPO(temperature_positive=3.0, temperature_negative=5.0),
    GMPO(),
    DPPO(),
    DPPO(divergence="kl"),
    DRO(),
]
CUTTING = (PPO, GSPO, GMPO, DPPO)  # whose clipped tokens have no gradient
BY_SEQUENCE = (GSPO, GMPO)

few = settings(max_examples=25)  # thirteen losses take each property
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def draw(seed, lengths, *, spread=1.0, per_token=True, dtype=torch.float64):
    """Log-probs and tokens of sequences of these lengths, log-ratios of this spread, advantages each or by sequence."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    old = -torch.rand(len(sequence), generator=generator, dtype=torch.float64) * 3 - 0.01
    noise = spread * torch.randn(len(sequence), generator=generator, dtype=torch.float64)
    advantages = torch.randn(len(sequence), generator=generator, dtype=torch.float64)
    if not per_token:
        advantages = advantages[torch.tensor(lengths).cumsum(0) - 1][sequence]
    tokens = ActionTokens(
        engine_logprobs=torch.full_like(old, math.nan).to(dtype),
        old_logprobs=old.to(dtype),
        advantages=advantages.to(dtype),
        sequence=sequence,
        trajectory=sequence,
        turn=torch.zeros_like(sequence),
        num_sequences=len(lengths),
        num_trajectories=len(lengths),
    )
    return (old + noise).clamp(max=-1e-3).to(dtype), tokens


def gradient(loss, logprobs, tokens, weights=None):
    logprobs = logprobs.detach().clone().requires_grad_()
    losses = loss(logprobs, tokens).losses
    (found,) = torch.autograd.grad((losses if weights is None else losses * weights).sum(), logprobs)
    return found


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_policy_the_gradient_is_minus_advantage_and_nothing_is_clipped(loss, dtype):
    """To the last bit: exp(0) is 1, and nothing else may be in the way. SAPO's 4 / tau * tau / 4 may round."""
    _, tokens = draw(0, [3, 1, 7, 40], dtype=dtype)
    found = gradient(loss, tokens.old_logprobs, tokens)
    if isinstance(loss, SAPO):
        torch.testing.assert_close(found, -tokens.advantages, rtol=4 * torch.finfo(dtype).eps, atol=0)
    else:
        assert torch.equal(found, -tokens.advantages)
    terms = loss(tokens.old_logprobs, tokens)
    assert not terms.clipped.any()
    assert terms.losses.dtype == dtype and terms.losses.shape == terms.clipped.shape == tokens.advantages.shape


@every_loss
def test_on_policy_weights_act_on_their_own_token(loss):
    """Aggregation and rollout correction come in as weights: zero must remove a token, in GSPO and GMPO too."""
    _, tokens = draw(1, [5, 9])
    weights = torch.rand(14, generator=torch.Generator().manual_seed(2)).double()
    weights[::3] = 0
    found = gradient(loss, tokens.old_logprobs, tokens, weights)
    torch.testing.assert_close(found, -tokens.advantages * weights, rtol=1e-14, atol=0)


@every_loss
@few
@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_permuting_tokens_permutes_losses(loss, seed, lengths):
    logprobs, tokens = draw(seed, lengths)
    order = torch.randperm(len(logprobs), generator=torch.Generator().manual_seed(seed))
    terms, permuted = loss(logprobs, tokens), loss(logprobs[order], tokens.at(order))
    torch.testing.assert_close(permuted.losses, terms.losses[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(permuted.clipped, terms.clipped[order])


@every_loss
@few
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    data=st.data(),
)
def test_microbatches_of_whole_sequences_change_nothing(loss, seed, lengths, data):
    logprobs, tokens = draw(seed, lengths)
    batch = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))))
    terms, whole = loss(logprobs, tokens), gradient(loss, logprobs, tokens)
    for number in range(3):  # a microbatch may be empty
        place = (batch[tokens.sequence] == number).nonzero()[:, 0]
        part = loss(logprobs[place], tokens.at(place))
        found = gradient(loss, logprobs[place], tokens.at(place))
        assert torch.equal(part.clipped, terms.clipped[place])
        torch.testing.assert_close(part.losses, terms.losses[place], rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(found, whole[place], rtol=1e-14, atol=1e-15)


@every_loss
@few
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.01, 0.5, 3.0, 30.0]))
def test_clipped_says_what_happened_to_the_gradient(loss, seed, spread):
    """PPO, GSPO, GMPO, DPPO: no gradient exactly where clipped (or A = 0). The rest: all tokens learn."""
    logprobs, tokens = draw(seed, [1, 4, 12], spread=spread)
    tokens.advantages[::5] = 0
    clipped, found = loss(logprobs, tokens).clipped, gradient(loss, logprobs, tokens)
    assert not clipped[::5].any()
    zero = found == 0
    if isinstance(loss, CUTTING):
        assert torch.equal(zero, clipped | (tokens.advantages == 0))
    elif isinstance(loss, (PolicyGradient, DRO)):
        assert not clipped.any()
    elif isinstance(loss, CISPO):
        assert torch.equal(zero, tokens.advantages == 0)
        ratio = (logprobs - tokens.old_logprobs).exp()
        torch.testing.assert_close(found[~clipped], (-ratio * tokens.advantages)[~clipped], rtol=1e-12, atol=0)
        assert (found.abs() <= (1 + loss.clip_high) * tokens.advantages.abs()).all()
    else:
        assert isinstance(loss, SAPO)
        ratio = (logprobs - tokens.old_logprobs).exp()
        halved = found.abs() < 0.5 * ratio * tokens.advantages.abs()
        assert torch.equal(halved, clipped)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_differences_stay_finite(loss, dtype):
    """d of +-1000 and +-100, one at a time and together in a sequence, for either sign of the advantage."""
    jumps = [1e3, -1e3, 1e2, -1e2, 1e3, -1e3, 0.0, 1e3, 0.0, -1e3, 1e3, 1e3, 1e3]
    sequence = torch.tensor([0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7])
    for sign in (1.0, -1.0):
        _, tokens = draw(0, [13], dtype=dtype)
        old = torch.tensor([min(-j, 0.0) for j in jumps], dtype=dtype)
        logprobs = old + torch.tensor(jumps, dtype=dtype)
        tokens = ActionTokens(
            engine_logprobs=tokens.engine_logprobs,
            old_logprobs=old,
            advantages=torch.full_like(old, sign),
            sequence=sequence,
            trajectory=sequence,
            turn=sequence,
            num_sequences=8,
            num_trajectories=8,
        )
        terms = loss(logprobs, tokens)
        assert terms.losses.isfinite().all()
        found = gradient(loss, logprobs, tokens)
        assert found.isfinite().all()
        if isinstance(loss, CUTTING):
            assert torch.equal(found == 0, terms.clipped)


@pytest.mark.parametrize("loss", [PPO(clip_high=math.inf), SAPO(), CISPO(clip_high=math.inf), DPPO(threshold=2.0)])
def test_ratios_are_held_at_exp_20(loss):
    """Just inside, the ratio is exact and differentiated; outside it is exp(20) and, but for CISPO, a constant."""
    tokens = draw(0, [2])[1]
    tokens.old_logprobs[:] = -50.0
    tokens.advantages[:] = 1.0
    logprobs = tokens.old_logprobs + torch.tensor([19.999, 20.001], dtype=torch.float64)
    terms, found = loss(logprobs, tokens), gradient(loss, logprobs, tokens)
    assert terms.clipped[1]
    if isinstance(loss, SAPO):  # its gate is shut long before
        return
    assert not terms.clipped[0]
    assert found[0].item() == pytest.approx(-math.exp(19.999), rel=1e-12)
    if isinstance(loss, CISPO):
        assert terms.losses[1].item() == pytest.approx(-math.exp(20) * logprobs[1].item(), rel=1e-12)
        assert found[1].item() == pytest.approx(-math.exp(20), rel=1e-12)
    else:
        assert terms.losses[1].item() == pytest.approx(-math.exp(20), rel=1e-12)
        assert found[1].item() == 0


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if not isinstance(loss, (CISPO, *BY_SEQUENCE))], ids=repr)
@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_gradcheck_of_token_losses(loss, spread):
    """Every single token's loss; random points are off the kinks by far more than the 1e-6 step."""
    logprobs, tokens = draw(3, [12, 18], spread=spread)
    assert gradcheck(lambda x: loss(x, tokens).losses, logprobs.requires_grad_())


@pytest.mark.parametrize("loss", [GSPO(), GSPO(clip_low=0.2, clip_high=0.3), GMPO()], ids=repr)
@pytest.mark.parametrize("spread", [1e-4, 0.3, 2.0])
def test_gradcheck_of_sequence_losses(loss, spread):
    """A straight-through gradient is one of a sequence's sum, at one advantage a sequence; not of a single token."""
    logprobs, tokens = draw(4, [1, 12, 18, 7, 9, 5], spread=spread, per_token=False)

    def sums(x):
        return sum_by(loss(x, tokens).losses, tokens.sequence, tokens.num_sequences)

    assert gradcheck(sums, logprobs.requires_grad_(), eps=1e-8, atol=1e-6)


def test_cispo_is_the_gradient_of_a_weighted_log_likelihood():
    """With the weights frozen at this point, finite differences agree: nothing flows through the ratio."""
    logprobs, tokens = draw(5, [30])
    weights = (logprobs - tokens.old_logprobs).exp().clamp(max=5)
    expected = gradient(lambda x, _: PolicyGradient()(x, tokens), logprobs, tokens, weights)
    torch.testing.assert_close(gradient(CISPO(), logprobs, tokens), expected, rtol=1e-14, atol=0)
    assert gradcheck(lambda x: supervised_loss(x, denominator=7), logprobs.requires_grad_())


def paper_gspo(logprobs, old, advantage, low, high):
    """Equation 5 for one sequence, as the paper writes it: no token in sight."""
    ratio = ((logprobs - old).sum() / len(old)).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def paper_gmpo(logprobs, old, advantage, low, high):
    """The geometric mean of one sequence's clipped ratios, as a product, to the power of one over its length."""
    ratio = (logprobs - old).exp()
    bounded = ratio.clamp(math.exp(-low), math.exp(high))
    kept = torch.minimum(ratio, bounded) if advantage > 0 else torch.maximum(ratio, bounded)
    return kept.prod() ** (1 / len(old)) * advantage


@pytest.mark.parametrize(
    ("loss", "paper"),
    [(GSPO(clip_low=0.1, clip_high=0.2), paper_gspo), (GMPO(clip_low=0.4, clip_high=0.3), paper_gmpo)],
    ids=["gspo", "gmpo"],
)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    spread=st.sampled_from([0.05, 0.5, 1.5]),
)
def test_means_of_sequences_are_the_papers_objective(loss, paper, seed, lengths, spread):
    """Value and gradient of the mean over sequences of the mean over their tokens."""
    logprobs, tokens = draw(seed, lengths, spread=spread, per_token=False)
    logprobs.requires_grad_()
    ours = -mean_by(loss(logprobs, tokens).losses, tokens.sequence, len(lengths)).mean()
    places = [(tokens.sequence == i).nonzero()[:, 0] for i in range(len(lengths))]
    theirs = torch.stack(
        [
            paper(logprobs[p], tokens.old_logprobs[p], tokens.advantages[p[0]], loss.clip_low, loss.clip_high)
            for p in places
        ]
    ).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours, theirs = torch.autograd.grad(ours, logprobs)[0], torch.autograd.grad(theirs, logprobs)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@given(seed=st.integers(0, 10**6))
def test_ppo_is_a_lower_bound_of_the_unclipped_objective(seed):
    """loss >= -r A for every token, and with dual clip loss <= max(-c A, 0), and no more than without."""
    logprobs, tokens = draw(seed, [30], spread=2.0)
    unclipped = -(logprobs - tokens.old_logprobs).exp() * tokens.advantages
    plain, dual = PPO()(logprobs, tokens).losses, PPO(dual_clip=3.0)(logprobs, tokens).losses
    assert (plain >= unclipped - 1e-12).all() and (dual <= plain).all()
    down = tokens.advantages < 0
    assert (dual[down] <= -3 * tokens.advantages[down] + 1e-12).all() and torch.equal(dual[~down], plain[~down])


def test_anchors():
    assert {type(loss).__name__ for loss in LOSSES if loss.anchor == "engine"} == {"DPPO"}
