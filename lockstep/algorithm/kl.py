"""Staying near a reference policy: estimates of KL(policy || reference) from sampled tokens, as a cost in the reward or
as a term of the loss.

In: log-probs [A] of sampled tokens under the policy and under the reference. Out: the cost of each token [A].

An estimator with the right *value* need not have the right *gradient*. With d = log p(a) - log q(a), a sampled from the
policy p, q the reference, s = grad log p(a), and E[s] = 0:

    grad KL(p || q) = grad sum_a p d = E[d s] + E[s] = E[d s]

    estimator              value in expectation    differentiated in the loss   as a constant in the reward
    k1 = d                 KL(p || q)              E[s] = 0                     E[d s] = grad KL(p || q)
    k2 = d^2 / 2           not a KL, close to it   E[d s] = grad KL(p || q)     E[d^2 s] / 2: biased
    k3 = exp(-d) - 1 + d   KL(p || q)              E[(1 - exp(-d)) s]           E[(exp(-d) - 1 + d) s]
                                                   = grad KL(q || p)            = grad KL(p || q) - grad KL(q || p)

since grad KL(q || p) = -sum_a q s = -E[exp(-d) s]. (Schulman, "Approximating KL divergence", 2020, for the values;
arXiv:2510.01555 for the gradients.) All this is for one token given its history. In the loss the histories are taken as
they came: what a token does to the KL of later tokens is not in the gradient. In the reward it is, through the returns.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch

from lockstep.algorithm.tokens import LOG_BOUND

Estimator = Literal["k1", "k2", "k3"]

ERROR_BOUND = 0.2  # of the controller's relative error (arXiv:1909.08593, section 2.2)
USUAL_HORIZON = 10_000


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Schulman's estimators of KL(policy || reference), one for each token [A] that the policy sampled; differentiable.

    With d = logprobs - reference_logprobs: k1 = d, unbiased, of either sign, noisy; k2 = d^2 / 2, biased, never
    negative; k3 = exp(-d) - 1 + d, unbiased, never negative, the least noise near 0.

    k3 takes d as at least -20, so that exp stays finite; below that it has no gradient. k1 and k2 need no bound. verl
    also cuts k3's value at 10, and with it the gradient of every token that the reference thinks 14 times likelier
    than the policy does; TRL bounds nothing.
    """
    d = logprobs - reference_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        d = d.clamp(min=-LOG_BOUND)
        return torch.expm1(-d) + d
    raise ValueError(f"estimator={estimator!r}: must be 'k1', 'k2' or 'k3'")


@dataclass(frozen=True, slots=True, kw_only=True)
class KLPenalty:
    """A cost on the distance from a reference policy; see the file's docstring for what each choice differentiates.

    In the reward (`token_rewards`): -coefficient * estimate(old policy, reference), constants, to be credited like any
    reward (RLHF's PPO, arXiv:1909.08593 eq. 2, arXiv:2203.02155; verl's use_kl_in_reward).

    In the loss (`losses`): coefficient * estimate, added to each token's loss. gradient 'direct' differentiates the
    estimate as it stands, whatever policy sampled the token (GRPO, arXiv:2402.03300 eq. 4, TRL's default and verl's
    use_kl_loss: k3, thus the gradient of the *forward* KL). gradient 'unbiased' takes the estimate's value and,
    straight through, k2's gradient, both times the ratio r = p / p_old as a constant:

        value sg(r * estimate), gradient sg(r) d s, and E_old[r d s] = E_p[d s] = grad KL(p || q)

    on policy and off it. On policy r = 1 and this is verl's 'k3+'. Off policy it is, sample by sample, DeepSeek-V3.2's
    (arXiv:2512.02556 eq. 7; TRL's use_bias_correction_kl), which differentiates r * k3 through the ratio too:
    grad(r k3) = r k3 s + r (1 - exp(-d)) s = r d s. With k1 that would leave noise, r (d + 1) s, and with k2 bias; a
    detached ratio on k2's gradient is right for every estimator's value. The ratio is exp of at most 20 and otherwise
    not truncated: that would bias it.
    """

    coefficient: float = 1e-3
    """Price of one nat. Larger keeps the policy nearer to the reference and learns slower."""
    where: Literal["reward", "loss"] = "loss"
    """'loss' adds a term to each token's loss; 'reward' takes it off each token's reward, so that earlier tokens
    answer for the later ones' divergence."""
    estimator: Estimator | None = None
    """None is k3 in the loss and k1 in the reward. k2 and k3 in the reward pull along a gradient that is not the
    KL's."""
    gradient: Literal["unbiased", "direct"] | None = None
    """Only in the loss; None is 'unbiased', the gradient of KL(policy || reference). 'direct' differentiates the
    estimator, as GRPO does: with k3 that is the gradient of KL(reference || policy)."""
    target: float | None = None
    """When given, the coefficient is adapted from step to step to hold the observed KL here: the learner's is the mean
    k3, in nats a token (metric reference/kl)."""
    horizon: int | None = None
    """Only with a target: the number of trajectories over which the coefficient can change by a fifth; None is 10000.
    Smaller adapts faster."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coefficient) and self.coefficient > 0):
            raise ValueError(f"coefficient={self.coefficient}: must be > 0; without a penalty, leave it out altogether")
        if self.where not in ("reward", "loss"):
            raise ValueError(f"where={self.where!r}: must be 'reward' or 'loss'")
        if self.estimator not in (None, "k1", "k2", "k3"):
            raise ValueError(f"estimator={self.estimator!r}: must be 'k1', 'k2' or 'k3', or None")
        if self.gradient not in (None, "unbiased", "direct"):
            raise ValueError(f"gradient={self.gradient!r}: must be 'unbiased' or 'direct', or None")
        if self.where == "reward" and self.gradient is not None:
            raise ValueError(f"gradient={self.gradient!r}: a reward has none; leave it out, or use where='loss'")
        if self.estimator == "k1" and self.gradient == "direct":
            raise ValueError("gradient='direct': that of k1 is 0 in expectation; use 'unbiased', or k2 or k3")
        if self.target is not None and not (math.isfinite(self.target) and self.target > 0):
            raise ValueError(f"target={self.target}: must be > 0, or None for a fixed coefficient")
        if self.horizon is not None and self.target is None:
            raise ValueError(f"horizon={self.horizon}: does nothing without a target; give one, or leave it out")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon={self.horizon}: must be >= 1; {USUAL_HORIZON} is usual")

    def token_rewards(self, old_logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """[A], constants: what each token loses of its reward. old_logprobs [A]: under the policy that sampled."""
        if self.where != "reward":
            raise ValueError(
                f"where={self.where!r}: this penalty is a term of the loss; call losses(), not token_rewards()"
            )
        return -self.coefficient * kl_estimate(old_logprobs, reference_logprobs, self.estimator or "k1").detach()

    def losses(
        self, logprobs: torch.Tensor, old_logprobs: torch.Tensor, reference_logprobs: torch.Tensor
    ) -> torch.Tensor:
        """[A], to be added to the tokens' losses before those are weighted. logprobs [A] carry gradient, the others are
        constants. old_logprobs: under the policy that sampled; where the engine's differ, the correction's weights
        complete the ratio, as they do for the policy's loss. Gradient 'direct' has no use for them."""
        if self.where != "loss":
            raise ValueError(f"where={self.where!r}: this penalty is a reward; call token_rewards(), not losses()")
        estimator = self.estimator or "k3"
        if self.gradient == "direct":
            return self.coefficient * kl_estimate(logprobs, reference_logprobs, estimator)
        constant = logprobs.detach()
        ratio = torch.exp((constant - old_logprobs).clamp(max=LOG_BOUND))
        through = (constant - reference_logprobs) * (logprobs - constant)  # 0, with k2's gradient
        return self.coefficient * ratio * (kl_estimate(constant, reference_logprobs, estimator) + through)

    def adapted(self, observed_kl: float, num_samples: int) -> KLPenalty:
        """The penalty of the next step, after one of num_samples trajectories; the same without a target."""
        if self.target is None:
            return self
        coefficient = adapted_coefficient(
            self.coefficient,
            observed_kl,
            target=self.target,
            horizon=self.horizon or USUAL_HORIZON,
            num_samples=num_samples,
        )
        return dataclasses.replace(self, coefficient=coefficient)


def adapted_coefficient(
    coefficient: float, observed_kl: float, *, target: float, horizon: int, num_samples: int
) -> float:
    """The next coefficient by a proportional controller (arXiv:1909.08593, section 2.2).

        coefficient * (1 + clip(observed_kl / target - 1, -0.2, 0.2) * num_samples / horizon)

    num_samples: trajectories of the step. observed_kl and target are in one unit, the caller's: nats a trajectory in
    the paper and in TRL, nats a token in verl. Raises ValueError for an observed KL that is not finite, and for a step
    of five horizons or more, after which the coefficient could be negative.
    """
    if not math.isfinite(observed_kl):
        raise ValueError(f"observed_kl={observed_kl}: must be finite; the policy or the reference has broken log-probs")
    if num_samples * ERROR_BOUND >= horizon:
        raise ValueError(
            f"horizon={horizon}: too short for {num_samples} trajectories a step; {USUAL_HORIZON} is usual"
        )
    error = min(max(observed_kl / target - 1, -ERROR_BOUND), ERROR_BOUND)
    return coefficient * (1 + error * num_samples / horizon)
