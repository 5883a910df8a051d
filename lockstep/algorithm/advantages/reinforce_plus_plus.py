"""REINFORCE++: discounted returns-to-go, whitened over the whole step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from lockstep.algorithm.advantages.groups import centered, sibling_counts
from lockstep.algorithm.advantages.timeline import dated_rewards, sums_to_go
from lockstep.algorithm.advantages.whitening import whiten
from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcePlusPlus:
    """Returns-to-go normalised by the mean and std of the step's tokens (arXiv:2501.03262), one value a token.

    G_t = sum_{u >= t} gamma^(u - t) * r_u,  r = token rewards (a KL penalty) + the reward at the last token
    A_t = (G_t - mean(G)) / sqrt(var(G) + 1e-8) over all tokens of all trajectories of the step
    Time is sampled tokens: the reward reaches every turn (verl's loop restarts at each token of a tool, so only the
    last turn sees it).
    group_baseline=True is REINFORCE++-baseline: the reward less its group's mean reward first, the std still the whole
    step's. The mean over tokens, not 0 where lengths differ, is subtracted there too, as in OpenRLHF and verl. This is
    OpenRLHF's variant (per-token returns with gamma; the group's mean is of rewards without token rewards); verl's
    reinforce_plus_plus_baseline hands one whole return to all tokens, without gamma, and takes the group's mean of
    returns. Both agree for gamma = 1 and no token rewards. A group of one raises ValueError with group_baseline.
    """

    # A property: the Protocol's class variable cannot depend on an option.
    needs: ClassVar[frozenset[Need]] = property(  # pyright: ignore[reportAssignmentType]
        lambda self: frozenset({"siblings"}) if self.group_baseline else frozenset()
    )

    group_baseline: bool = False
    """Subtract the mean reward of the task's trajectories first: takes out its difficulty; needs >= 2 of them."""
    gamma: float = 1.0
    """Discount a sampled token: below 1, early tokens of long trajectories get little of the final reward."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma}: must be in [0, 1]; 1 is usual")

    def __call__(self, outcomes: Outcomes) -> Credit:
        if self.group_baseline:
            sibling_counts(outcomes)
            rewards = centered(outcomes.rewards, outcomes.group, outcomes.num_groups)
            outcomes = dataclasses.replace(outcomes, rewards=rewards)
        returns = sums_to_go(dated_rewards(outcomes), outcomes.trajectory, self.gamma)
        return Credit(advantages=whiten(returns).to(outcomes.rewards.dtype))
