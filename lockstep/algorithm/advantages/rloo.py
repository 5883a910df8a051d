"""RLOO: a trajectory's return against the mean of the others in its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lockstep.algorithm.advantages.groups import centered, sibling_counts
from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class RLOO:
    """REINFORCE with a leave-one-out baseline (arXiv:2402.14740), the same for all tokens of a trajectory.

    A_i = R_i - mean of R_j over j != i = n / (n - 1) * (R_i - mean(R)); R = reward + token rewards (a KL penalty), as
    in verl. The baseline does not depend on the trajectory it judges: the expected gradient, summed over a trajectory's
    tokens and averaged over the n of a group, is exactly that of the expected return. Equal returns give exactly 0. A
    group of one raises ValueError (verl takes its raw return, or 0 in the vectorised twin).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"siblings"})

    def __call__(self, outcomes: Outcomes) -> Credit:
        sizes = sibling_counts(outcomes)
        returns = outcomes.returns()
        to_others = (sizes.to(returns.dtype) / (sizes - 1))[outcomes.group]
        advantages = centered(returns, outcomes.group, outcomes.num_groups) * to_others
        return Credit(advantages=advantages[outcomes.trajectory])
