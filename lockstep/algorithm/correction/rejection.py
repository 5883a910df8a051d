"""Rejection: which tokens and sequences are too far from the trainer's policy to learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lockstep.algorithm.tokens import LOG_BOUND, mean_by, sum_by

Statistic = Literal["k1", "k2", "k3"]
Over = Literal["token", "sequence_sum", "sequence_mean", "sequence_max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Drops what a divergence statistic finds outside [lower, upper], bounds included. d = log pi - log mu.

    k1 = -d               positive where the engine gave the token more than the trainer does; E_mu[k1] = KL(mu || pi)
    k2 = d^2 / 2          never negative
    k3 = exp(d) - 1 - d   never negative, E_mu[k3] = KL(mu || pi); d clamped to +-20

    (joschu.net/blog/kl-approx.html.) Bounds are in nats for all three. verl states those of its `*_k1` as ratios, and
    they hold for 1/r = mu/pi, not for r: its "a_b" is lower=log(a), upper=log(b) here, and keeps r in [1/b, 1/a].
    """

    statistic: Statistic
    """k1: signed, so that both signs cancel over a sequence; two bounds. k2: symmetric. k3: exponential where the
    trainer finds a token likelier, linear where the engine does."""

    over: Over
    """token: drops single tokens. sequence_mean: whole sequences, whatever their length. sequence_sum: whole sequences,
    long ones first. sequence_max: whole sequences with one token outside."""

    upper: float
    """Largest statistic kept, in nats, > 0: sequence_mean of k3 0.01, of k1 0.001 are usual."""

    lower: float | None = None
    """Smallest k1 kept, in nats, < 0: drops where the trainer's probability is above the engine's. None: no bound."""

    def __post_init__(self) -> None:
        if self.statistic not in get_args(Statistic):
            raise ValueError(f"statistic={self.statistic!r}: must be one of {', '.join(get_args(Statistic))}")
        if self.over not in get_args(Over):
            raise ValueError(f"over={self.over!r}: must be one of {', '.join(get_args(Over))}")
        if not self.upper > 0:
            raise ValueError(f"upper={self.upper}: must be > 0, in nats of {self.statistic}; 0 is on policy")
        if self.lower is not None and self.statistic != "k1":
            raise ValueError(f"lower={self.lower}: {self.statistic} is never negative; leave it out, or use k1")
        if self.lower is not None and not self.lower < 0:
            raise ValueError(f"lower={self.lower}: must be < 0, in nats of k1; log(0.999) = -0.001 is usual")
        if self.statistic == "k1" and self.over == "sequence_max":
            raise ValueError("over='sequence_max' sees one side of k1 only: use Veto for that side, or k2 or k3")
        if self.upper == math.inf and self.lower in (None, -math.inf):
            raise ValueError("upper=inf drops nothing: lower it, or leave the rejection out")

    def __call__(self, difference: torch.Tensor, sequence: torch.Tensor, num_sequences: int) -> torch.Tensor:
        """bool [A]: the tokens kept. difference [A]: d, finite; sequences whole."""
        value = self._of_tokens(difference)
        if self.over == "sequence_max":
            smallest = value.new_zeros(num_sequences)  # k2 and k3 are never negative
            value = smallest.scatter_reduce(0, sequence, value, "amax")[sequence]
        elif self.over != "token":
            reduce = sum_by if self.over == "sequence_sum" else mean_by
            value = reduce(value, sequence, num_sequences)[sequence]
        kept = value <= self.upper
        return kept if self.lower is None else kept & (value >= self.lower)

    def _of_tokens(self, difference: torch.Tensor) -> torch.Tensor:
        if self.statistic == "k1":
            return -difference
        if self.statistic == "k2":
            return difference.square() / 2
        bounded = difference.clamp(-LOG_BOUND, LOG_BOUND)
        return bounded.expm1() - bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Veto:
    """Drops a whole sequence when any of its tokens has r = pi / mu < threshold.

    One such token says that engine and trainer saw different things (another route, another cache), and so did the
    tokens after it. Earlier verl's `rollout_token_veto_threshold`.
    """

    threshold: float = 1e-4
    """Smallest ratio of a sound token, in (0, 1). Higher: more sequences go, long ones first."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: must be in (0, 1), a ratio; 1e-4 is usual")

    def __call__(self, difference: torch.Tensor, sequence: torch.Tensor, num_sequences: int) -> torch.Tensor:
        """bool [A]: the tokens kept. difference [A]: d, finite; sequences whole."""
        return free_of(difference < math.log(self.threshold), sequence, num_sequences)


def free_of(flags: torch.Tensor, sequence: torch.Tensor, num_sequences: int) -> torch.Tensor:
    """bool [A]: tokens of sequences without a single flag; flags bool [A]."""
    return (sum_by(flags.long(), sequence, num_sequences) == 0)[sequence]
