"""OPO: a trajectory's return against the length-weighted mean of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lockstep.algorithm.advantages.groups import centered, sibling_counts
from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes, count_by


@dataclass(frozen=True, slots=True, kw_only=True)
class OPO:
    """On-policy optimisation with the variance-optimal baseline (arXiv:2505.23585), one value a trajectory.

    A_i = R_i - sum_j(l_j * R_j) / sum_j(l_j) over the group; l = sampled tokens of a trajectory, which stand for the
    squared norm of its gradient (tokens' gradients of like size and nearly orthogonal); R = reward + token rewards (a
    KL penalty). The formula of the paper and of verl. The baseline holds the trajectory's own return: with equal
    lengths the expected gradient is (n - 1) / n of the true one; where length goes with reward it is bent by O(1 / n).
    Meant for exactly on-policy steps. A group of one raises ValueError (verl takes its raw return).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"siblings"})

    def __call__(self, outcomes: Outcomes) -> Credit:
        sibling_counts(outcomes)
        returns = outcomes.returns()
        lengths = outcomes.lengths
        if lengths is None:
            lengths = count_by(outcomes.trajectory, outcomes.num_trajectories)
        advantages = centered(returns, outcomes.group, outcomes.num_groups, weights=lengths.to(returns.dtype))
        return Credit(advantages=advantages[outcomes.trajectory])
