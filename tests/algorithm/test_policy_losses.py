"""Each policy loss against numbers worked by hand: values, gradients, what counts as clipped, what is refused."""

import math

import pytest
import torch

from lockstep.algorithm.losses.cispo import CISPO
from lockstep.algorithm.losses.dppo import DPPO
from lockstep.algorithm.losses.dro import DRO
from lockstep.algorithm.losses.gmpo import GMPO
from lockstep.algorithm.losses.gspo import GSPO
from lockstep.algorithm.losses.policy_gradient import PolicyGradient
from lockstep.algorithm.losses.ppo import PPO
from lockstep.algorithm.losses.sapo import SAPO
from lockstep.algorithm.losses.supervised import supervised_loss
from lockstep.algorithm.tokens import ActionTokens

E = math.e


def float64(values):
    return torch.as_tensor(values, dtype=torch.float64)  # not .double(): that rounds to float32 before


def tokens(old, advantages, sequence=None):
    old = float64(old)
    sequence = torch.as_tensor(sequence if sequence is not None else [0] * len(old))
    return ActionTokens(
        engine_logprobs=torch.full_like(old, math.nan),  # no loss may read it
        old_logprobs=old,
        advantages=float64(advantages),
        sequence=sequence,
        trajectory=torch.full_like(sequence, -1),
        turn=torch.full_like(sequence, -1),
        num_sequences=int(sequence.max()) + 2,  # one of the step's sequences is in another microbatch
        num_trajectories=1,
    )


def check(loss, logprobs, tokens, *, losses, gradients, clipped):
    """losses, d(sum of losses)/d logprobs, and clipped, given as 0 and 1."""
    logprobs = float64(logprobs).clone().requires_grad_()
    terms = loss(logprobs, tokens)
    terms.losses.sum().backward()
    assert terms.losses.tolist() == pytest.approx(losses, abs=1e-9)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx(gradients, abs=1e-9)
    assert terms.clipped.dtype == torch.bool and not terms.clipped.requires_grad
    assert terms.clipped.tolist() == [bool(c) for c in clipped]


def check_ratios(loss, ratios, advantages, **expected):
    """The same with old probabilities of 1/4 and the given ratios to them."""
    old = float64([math.log(0.25)] * len(ratios))
    check(loss, old + float64(ratios).log(), tokens(old, advantages), **expected)


def test_policy_gradient():
    check(
        PolicyGradient(),
        [-1.0, -2.0, -3.0],
        tokens([5.0, 5.0, 5.0], [2.0, -1.0, 0.0]),
        losses=[2.0, -2.0, 0.0],
        gradients=[-2.0, 1.0, 0.0],
        clipped=[0, 0, 0],
    )


def test_ppo():
    """r A and clip(r) A with bounds 0.8 and 1.28, A = +1 then -1: the smaller one counts.

    A = +1: min(0.5, 0.8), min(1, 1), min(1.5, 1.28); A = -1: min(-0.5, -0.8), min(-1, -1), min(-1.5, -1.28). The
    gradient is -r A where r A is the smaller, else 0.
    """
    check_ratios(
        PPO(),
        [0.5, 1.0, 1.5, 0.5, 1.0, 1.5],
        [1.0, 1.0, 1.0, -1.0, -1.0, -1.0],
        losses=[-0.5, -1.0, -1.28, 0.8, 1.0, 1.5],
        gradients=[-0.5, -1.0, 0.0, 0.0, 1.0, 1.5],
        clipped=[0, 0, 1, 1, 0, 0],
    )


def test_ppo_bounds_are_each_on_their_side():
    """Bounds 0.9 and 1.3: 1.2 and 0.8 are within the other side's distance, not within their own."""
    check_ratios(
        PPO(clip_low=0.1, clip_high=0.3),
        [1.2, 0.8, 1.4, 0.95],
        [2.0, -2.0, 2.0, -2.0],
        losses=[-2.4, 1.8, -2.6, 1.9],
        gradients=[-2.4, 0.0, 0.0, 1.9],
        clipped=[0, 1, 1, 0],
    )


def test_dual_clip():
    """c = 3: for A = -2 the loss is at most 6. A > 0 and ratios to 3 are as without; A = 0 is never clipped."""
    check_ratios(
        PPO(dual_clip=3.0),
        [2.9, 3.1, 50.0, 50.0, 0.5, 50.0],
        [-2.0, -2.0, -2.0, 2.0, -2.0, 0.0],
        losses=[5.8, 6.0, 6.0, -2.56, 1.6, 0.0],
        gradients=[5.8, 0.0, 0.0, 0.0, 0.0, 0.0],
        clipped=[0, 1, 1, 1, 1, 0],
    )


def test_ppo_at_the_kinks():
    """Exactly on a bound the gradient is that of the inside: -r A. These bounds, 1 +- a distance, do not round."""
    d = float64([0.25, -0.25, 1.0])
    high, low, dual = d.exp().tolist()
    check(
        PPO(clip_low=1 - low, clip_high=high - 1, dual_clip=dual),
        d,
        tokens([0.0] * 3, [1.0, -1.0, -1.0]),
        losses=[-high, low, dual],
        gradients=[-high, low, dual],
        clipped=[0, 0, 0],
    )
    for step, advantage in ((1e-9, 1.0), (-1e-9, -1.0)):  # and just outside it is 0
        bound = PPO(clip_low=1 - low, clip_high=high - 1)
        outside = float64([0.25 * advantage + step])
        value = -advantage * (high if advantage > 0 else low)
        check(bound, outside, tokens([0.0], [advantage]), losses=[value], gradients=[0.0], clipped=[1])


def test_gspo():
    """Sequence 0: ratios 4, 1, so s = 2, above 1.5: clipped for A = 1 at 1.5, free for A = -1.
    Sequence 1: ratios 1/4, 1, so s = 1/2, below 0.8: clipped for A = -1 at 0.8, free for A = 1.
    Sequence 2: ratio 1.2 alone: free. A free token's gradient is -s A, its own ratio has no part in it.
    """
    old = [0.0] * 5
    logprobs = float64([4.0, 1.0, 0.25, 1.0, 1.2]).log()
    sequence = [0, 0, 1, 1, 2]
    loss = GSPO(clip_low=0.2, clip_high=0.5)
    check(
        loss,
        logprobs,
        tokens(old, [1.0, 1.0, -1.0, -1.0, 3.0], sequence),
        losses=[-1.5, -1.5, 0.8, 0.8, -3.6],
        gradients=[0.0, 0.0, 0.0, 0.0, -3.6],
        clipped=[1, 1, 1, 1, 0],
    )
    check(
        loss,
        logprobs,
        tokens(old, [-1.0, -1.0, 1.0, 1.0, -3.0], sequence),
        losses=[2.0, 2.0, -0.5, -0.5, 3.6],
        gradients=[2.0, 2.0, -0.5, -0.5, 3.6],
        clipped=[0, 0, 0, 0, 0],
    )


def test_gspo_defaults_clip_at_parts_of_ten_thousand():
    """mean(d) of 3.9e-4 is free, 4.1e-4 is not; -2.9e-4 is free, -3.1e-4 is not (log(1 - 3e-4) = -3.00045e-4)."""
    means = float64([3.9e-4, 4.1e-4, -2.9e-4, -3.1e-4])
    terms = GSPO()(means.repeat_interleave(2), tokens([0.0] * 8, [1.0] * 4 + [-1.0] * 4, [0, 0, 1, 1, 2, 2, 3, 3]))
    assert terms.clipped.tolist() == [False, False, True, True, False, False, True, True]


def test_gspo_gives_each_token_its_own_advantage():
    """s = 2, bound 1.5, advantages 1 and -1 in one sequence: the first is clipped, the second not."""
    check(
        GSPO(clip_low=0.2, clip_high=0.5),
        [math.log(4.0), 0.0],
        tokens([0.0, 0.0], [1.0, -1.0]),
        losses=[-1.5, 2.0],
        gradients=[0.0, 2.0],
        clipped=[1, 0],
    )


def test_cispo():
    """Weights of ratios 1/2, 1, 10 are 1/2, 1, 5; loss -w A logprob; every token learns, with gradient -w A."""
    half, one, ten = math.log(0.125), math.log(0.25), math.log(2.5)
    check_ratios(
        CISPO(),
        [0.5, 1.0, 10.0, 10.0, 10.0],
        [2.0, 2.0, 2.0, -2.0, 0.0],
        losses=[-half, -2 * one, -10 * ten, 10 * ten, 0.0],
        gradients=[-1.0, -2.0, -10.0, 10.0, 0.0],
        clipped=[0, 0, 1, 1, 0],
    )


def test_cispo_with_a_lower_bound():
    """Ratios 0.5, 0.9, 1.25 in [0.8, 1.2]: weights 0.8, 0.9, 1.2."""
    logs = [math.log(0.25 * r) for r in (0.5, 0.9, 1.25)]
    check_ratios(
        CISPO(clip_low=0.2, clip_high=0.2),
        [0.5, 0.9, 1.25],
        [-1.0, -1.0, -1.0],
        losses=[0.8 * logs[0], 0.9 * logs[1], 1.2 * logs[2]],
        gradients=[0.8, 0.9, 1.2],
        clipped=[1, 0, 1],
    )


def test_sapo():
    """Temperatures 1 and 2, ratios 1 and 2.

    r = 1: f = 4 / tau * 1/2 = 2 and 1, gradient -A. r = 2: p = sigmoid(1) = e / (1 + e), f = 4 p, gradient
    -4 p (1 - p) 2 A = -8 e / (1 + e)^2; and p = sigmoid(2), f = 2 p, gradient 8 e^2 / (1 + e^2)^2 for A = -1. The last
    one's gate, 4 e^2 / (1 + e^2)^2 = 0.42, is below 1/2; that of the one before, 0.79, is not.
    """
    check_ratios(
        SAPO(temperature_positive=1.0, temperature_negative=2.0),
        [1.0, 1.0, 2.0, 2.0, 2.0],
        [3.0, -3.0, 1.0, -1.0, 0.0],
        losses=[-6.0, 3.0, -4 * E / (1 + E), 2 * E**2 / (1 + E**2), 0.0],
        gradients=[-3.0, 3.0, -8 * E / (1 + E) ** 2, 8 * E**2 / (1 + E**2) ** 2, 0.0],
        clipped=[0, 0, 0, 1, 0],
    )


def test_sapo_defaults():
    """The gate is 1/2 at r = 1 + 2 acosh(sqrt 2) / tau = 1 + 1.762747 / tau: 2.762747 for 1, 2.678807 for 1.05."""
    ratios = float64([2.7627, 2.7628, 2.6788, 2.6789])
    terms = SAPO()(ratios.log(), tokens([0.0] * 4, [1.0, 1.0, -1.0, -1.0]))
    assert terms.clipped.tolist() == [False, True, False, True]
    one = SAPO()(float64([0.0]), tokens([0.0], [-1.0]))
    assert one.losses.item() == pytest.approx(2 / 1.05, abs=1e-15)  # float32's 1.05 is off by 5e-8


def test_gmpo():
    """Bounds +-0.4 on log-ratios.

    Sequence 0, A = 2: d = 0.7, 0 becomes 0.4, 0: G = e^0.2, the first token has no gradient.
    Sequence 1, A = -1: d = -1, 0.2 becomes -0.4, 0.2: G = e^-0.1. Sequence 2, A = 1: d = -1, 0.2 stays: G = e^-0.4.
    """
    g0, g1, g2 = E**0.2, E**-0.1, E**-0.4
    check(
        GMPO(),
        [0.7, 0.0, -1.0, 0.2, -1.0, 0.2],
        tokens([0.0] * 6, [2.0, 2.0, -1.0, -1.0, 1.0, 1.0], [0, 0, 1, 1, 2, 2]),
        losses=[-2 * g0, -2 * g0, g1, g1, -g2, -g2],
        gradients=[0.0, -2 * g0, 0.0, g1, -g2, -g2],
        clipped=[1, 0, 1, 0, 0, 0],
    )


def test_gmpo_bounds_are_each_on_their_side():
    """clip_low 0.1 for A < 0, clip_high 0.3 for A > 0, one token a sequence, d = +-0.2."""
    check(
        GMPO(clip_low=0.1, clip_high=0.3),
        [0.2, -0.2, 0.2, -0.2, 0.3, -0.1],
        tokens([0.0] * 6, [1.0, 1.0, -1.0, -1.0, 1.0, -1.0], range(6)),
        losses=[-(E**0.2), -(E**-0.2), E**0.2, E**-0.1, -(E**0.3), E**-0.1],
        gradients=[-(E**0.2), -(E**-0.2), E**0.2, 0.0, -(E**0.3), E**-0.1],
        clipped=[0, 0, 0, 1, 0, 0],
    )


def test_a_clipped_token_stays_in_the_geometric_mean():
    """d = 0.4 + 9 and d = 0.4 give the others the same G."""
    for first in (0.4, 9.4):
        terms = GMPO()(float64([first, 0.0]), tokens([0.0, 0.0], [1.0, 1.0]))
        assert terms.losses.tolist() == pytest.approx([-(E**0.2)] * 2, abs=1e-12)


def dppo_case(mu, pi, advantages, *, loss, clipped):
    """A kept token has loss -A pi / mu and the same as gradient, a masked one 0."""
    mu, pi = float64(mu), float64(pi)
    values = torch.where(float64(clipped) > 0, 0.0, -float64(advantages) * pi / mu).tolist()
    check(loss, pi.log(), tokens(mu.log(), advantages), losses=values, gradients=values, clipped=clipped)


def test_dppo_tv():
    """|pi - mu| > 0.2 and away from mu: 0.5 -> 0.75 up, 0.5 -> 0.25 down. A ratio of 5 at 0.01 stays, so does A = 0."""
    dppo_case(
        [0.5, 0.5, 0.5, 0.5, 0.01, 0.5, 0.5],
        [0.75, 0.75, 0.25, 0.25, 0.05, 0.69, 0.75],
        [1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 0.0],
        loss=DPPO(),
        clipped=[1, 0, 0, 1, 0, 0, 0],
    )
    dppo_case([0.5], [0.55], [1.0], loss=DPPO(threshold=0.04), clipped=[1])
    dppo_case([0.5, 0.5], [0.501, 0.501], [1.0, -1.0], loss=DPPO(threshold=0.0), clipped=[1, 0])  # 0 is not None


def test_dppo_at_the_threshold():
    """|0.5 - 0.25| = 0.25, all without rounding: kept; so is everything just inside, and a threshold of 0 on policy."""
    loss = DPPO(threshold=0.25)
    old = float64([0.25]).log()
    logprobs = float64([0.5]).log()
    change = (logprobs.exp() - old.exp()).item()
    assert DPPO(threshold=change)(logprobs, tokens(old, [1.0])).clipped.tolist() == [False]
    assert DPPO(threshold=math.nextafter(change, 0))(logprobs, tokens(old, [1.0])).clipped.tolist() == [True]
    assert loss(old, tokens(old, [1.0])).clipped.tolist() == [False]
    assert DPPO(threshold=0.0)(old, tokens(old, [1.0])).clipped.tolist() == [False]


def test_dppo_kl():
    """KL of (1/2, 1/2) from (0.8, 0.2) is ln(0.25 / 0.16) / 2 = 0.2231, from (0.6, 0.4) ln(0.25 / 0.24) / 2 = 0.0204.

    From mu to pi and not back: mu = 0.02, pi = 0.1 is 0.02 ln 0.2 + 0.98 ln(98 / 90) = 0.05127, and back 0.0843.
    mu = 0.8, pi = 0.6 is 0.8 ln(4/3) + 0.2 ln(1/2) = 0.0915.
    """
    dppo_case(
        [0.5, 0.5, 0.5, 0.8, 0.8],
        [0.8, 0.6, 0.8, 0.6, 0.6],
        [1.0, 1.0, -1.0, -1.0, 1.0],
        loss=DPPO(divergence="kl"),
        clipped=[1, 0, 0, 1, 0],
    )
    dppo_case([0.02], [0.1], [1.0], loss=DPPO(divergence="kl", threshold=0.0512), clipped=[1])
    dppo_case([0.02], [0.1], [1.0], loss=DPPO(divergence="kl", threshold=0.0513), clipped=[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dppo_kl_is_finite_where_a_probability_is_one(dtype):
    """pi = 1 from 1/2 masks, pi = mu = 1 keeps, mu = 1 to 1/2 masks; a log-prob rounded above 0 counts as 0."""
    old = torch.tensor([0.5, 1.0, 1.0, 0.5], dtype=dtype).log()
    logprobs = torch.tensor([1.0, 1.0, 0.5, 1.0], dtype=dtype).log() + torch.tensor([0, 0, 0, 1e-7], dtype=dtype)
    logprobs.requires_grad_()
    terms = DPPO(divergence="kl")(logprobs, tokens(old, [1.0, 1.0, -1.0, 1.0]))
    terms.losses.sum().backward()
    assert terms.clipped.tolist() == [True, False, True, True]
    assert logprobs.grad is not None and logprobs.grad.tolist() == [0.0, -1.0, 0.0, 0.0]


def test_dppo_does_not_truncate():
    """mu = 1e-6, pi = 1e-3: a ratio of 1000 in full."""
    dppo_case([1e-6, 1e-6], [1e-3, 1e-3], [1.0, -1.0], loss=DPPO(), clipped=[0, 0])


def test_dro():
    """beta 0.2, d = 1/2: -A logprob + 0.1 / 4, gradient -A + 0.1. At d = A / beta = 10 the gradient is 0."""
    check(
        DRO(beta=0.2),
        [-1.0, -1.0, -1.0],
        tokens([-1.5, -1.5, -11.0], [2.0, -2.0, 2.0]),
        losses=[2.025, -1.975, 12.0],
        gradients=[-1.9, 2.1, 0.0],
        clipped=[0, 0, 0],
    )


def test_dro_pulls_back_however_far_away():
    """d = -1000, beta 0.05: gradient -A - 50, where a clamp of d would leave -A - 1 or nothing."""
    check(
        DRO(),
        [-1000.0],
        tokens([0.0], [1.0]),
        losses=[1000.0 + 25000.0],
        gradients=[-51.0],
        clipped=[0],
    )


def test_supervised_loss_golden():
    logprobs = torch.tensor([-1.0, -2.5]).requires_grad_()
    loss = supervised_loss(logprobs, denominator=4)
    loss.backward()
    assert logprobs.grad is not None
    assert (loss.item(), logprobs.grad.tolist()) == (0.875, [-0.25, -0.25])


NAN = math.nan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO(clip_low=1.5), r"clip_low=1\.5: must be in \[0, 1\); 0\.2 is usual"),
        (lambda: PPO(clip_low=1.0), r"clip_low=1\.0: must be in \[0, 1\)"),
        (lambda: PPO(clip_low=-0.1), r"clip_low=-0\.1: must be in"),
        (lambda: PPO(clip_low=NAN), r"clip_low=nan: must be in"),
        (lambda: PPO(clip_high=-0.1), r"clip_high=-0\.1: must be at least 0; 0\.28 is usual"),
        (lambda: PPO(clip_high=NAN), r"clip_high=nan"),
        (lambda: PPO(dual_clip=1.0), r"dual_clip=1\.0: must be above 1, or None for no bound; 3 is usual"),
        (lambda: PPO(dual_clip=NAN), r"dual_clip=nan"),
        (lambda: GSPO(clip_low=1.0), r"clip_low=1\.0: must be in \[0, 1\); 3e-4 is usual"),
        (lambda: GSPO(clip_low=-1e-4), r"clip_low=-0\.0001"),
        (lambda: GSPO(clip_high=-1e-4), r"clip_high=-0\.0001: must be at least 0; 4e-4 is usual"),
        (lambda: CISPO(clip_low=1.1), r"clip_low=1\.1: must be in \[0, 1\]; 1 \(no lower bound\) is usual"),
        (lambda: CISPO(clip_low=-0.1), r"clip_low=-0\.1"),
        (lambda: CISPO(clip_high=-1.0), r"clip_high=-1\.0: must be at least 0; 4 is usual"),
        (lambda: SAPO(temperature_positive=0.0), r"temperature_positive=0\.0: must be above 0 and finite; 1 is usual"),
        (lambda: SAPO(temperature_negative=math.inf), r"temperature_negative=inf: must be above 0 and finite"),
        (lambda: GMPO(clip_low=-0.1), r"clip_low=-0\.1: must be at least 0; 0\.4 is usual"),
        (lambda: GMPO(clip_high=NAN), r"clip_high=nan: must be at least 0"),
        (lambda: DPPO(divergence="js"), r"divergence='js': must be 'tv' or 'kl'"),  # pyright: ignore[reportArgumentType]
        (lambda: DPPO(threshold=-0.1), r"threshold=-0\.1: must be at least 0; 0\.2 is usual"),
        (lambda: DPPO(divergence="kl", threshold=NAN), r"threshold=nan: must be at least 0; 0\.05 is usual"),
        (lambda: DRO(beta=0.0), r"beta=0\.0: must be above 0 and finite; 0\.05 is usual"),
        (lambda: DRO(beta=math.inf), r"beta=inf"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_options_at_the_edge_of_their_range_are_accepted():
    PPO(clip_low=0.0, clip_high=0.0, dual_clip=1.01)
    PPO(clip_high=math.inf)
    CISPO(clip_low=0.0, clip_high=math.inf)
    GSPO(clip_low=0.0, clip_high=0.0)
    GMPO(clip_low=0.0, clip_high=math.inf)
    DPPO(threshold=0.0)
