"""GAE: advantages from a critic's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lockstep.algorithm.advantages.timeline import dated_rewards, ends, sums_to_go
from lockstep.algorithm.advantages.whitening import whiten
from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class GAE:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16), one value a token; computed in float64.

    delta_t = r_t + gamma * V_{t+1} - V_t
    A_t = sum_{u >= t} (gamma * lambda)^(u - t) * delta_u;  target_t = A_t + V_t
    r = token rewards (a KL penalty) + the reward at the last token. Time is a trajectory's sampled tokens, over all its
    turns and sequences; tools' tokens are no steps (verl skips them too). Nothing follows the last token, V = 0, also
    where a limit cut the trajectory. gamma = lambda = 1: return-to-go minus value, unbiased before whitening whatever
    the critic says. Raises ValueError without values.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"critic"})

    gamma: float = 1.0
    """Discount a sampled token: below 1, a reward 1 / (1 - gamma) tokens later hardly counts."""
    gae_lambda: float = 1.0
    """1 trusts the sampled return (no bias, high variance), 0 the critic's next value (the reverse)."""
    whiten: bool = True
    """Bring the step's advantages to mean 0 and variance 1, as PPO trainers do; targets are taken before."""

    def __post_init__(self) -> None:
        for option in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, option) <= 1:
                raise ValueError(f"{option}={getattr(self, option)}: must be in [0, 1]; 1 is usual")

    def __call__(self, outcomes: Outcomes) -> Credit:
        if outcomes.values is None:
            raise ValueError("values=None: GAE needs a critic's values; train one, or use RLOO")
        trajectory, values = outcomes.trajectory, outcomes.values.double()
        following = torch.where(ends(trajectory), 0, values.roll(-1))
        deltas = dated_rewards(outcomes) + self.gamma * following - values
        advantages = sums_to_go(deltas, trajectory, self.gamma * self.gae_lambda)
        targets = advantages + values
        dtype = outcomes.rewards.dtype
        advantages = whiten(advantages) if self.whiten else advantages
        return Credit(advantages=advantages.to(dtype), targets=targets.to(dtype))
