"""GRPO and Dr. GRPO: a trajectory's return against the mean of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lockstep.algorithm.advantages.groups import centered, sibling_counts
from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes, sum_by


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO:
    """Group-relative advantages (arXiv:2402.03300, sec. 4.1.2), the same for all tokens of a trajectory.

    A_i = (R_i - mean(R)) / (std(R) + epsilon) over the group; R = reward + token rewards (a KL penalty), as in verl.
    The std is the unbiased one, as in verl and TRL. normalize=False leaves the division out: Dr. GRPO
    (arXiv:2503.20783), whose expected gradient is exactly (n - 1) / n of the true one in a group of n; with the
    division it is that of another objective. Dr. GRPO's other half, a constant token denominator, is the loss's affair.
    Equal returns give exactly 0. A group of one raises ValueError (verl takes its raw return as the advantage).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"siblings"})

    normalize: bool = True
    """Divide by the group's std: tasks that are nearly always or never solved then weigh more. False is Dr. GRPO."""
    epsilon: float = 1e-6
    """Added to the std: groups whose returns spread less than this count for little."""

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon={self.epsilon}: must be > 0, or equal returns divide 0 by 0; 1e-6 is usual")

    def __call__(self, outcomes: Outcomes) -> Credit:
        sizes = sibling_counts(outcomes)
        advantages = centered(outcomes.returns(), outcomes.group, outcomes.num_groups)
        if self.normalize:
            squares = sum_by(advantages.square(), outcomes.group, outcomes.num_groups)
            std = (squares / (sizes - 1)).sqrt()
            advantages = advantages / (std + self.epsilon)[outcomes.group]
        return Credit(advantages=advantages[outcomes.trajectory])
