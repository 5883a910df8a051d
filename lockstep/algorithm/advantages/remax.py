"""ReMax: a trajectory's return against what the greedy trajectory on the same task got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReMax:
    """REINFORCE with the greedy trajectory's reward as the baseline (arXiv:2310.10505), one value a trajectory.

    A_i = R_i - greedy_i; R = reward + token rewards (a KL penalty). The greedy trajectory is no sample, so the expected
    gradient is exactly that of the expected return, even for one trajectory a task. verl takes the return-to-go instead
    of R, which differs where there are token rewards; like verl's, the greedy reward holds no KL penalty. Raises
    ValueError without greedy rewards.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"greedy"})

    def __call__(self, outcomes: Outcomes) -> Credit:
        if outcomes.greedy_rewards is None:
            raise ValueError("greedy_rewards=None: ReMax needs one greedy trajectory a task; sample it, or use RLOO")
        advantages = outcomes.returns() - outcomes.greedy_rewards
        return Credit(advantages=advantages[outcomes.trajectory])
