"""The two seams of an algorithm: an advantage estimator and a policy loss. Frozen dataclasses whose fields are their
options; to add one, write a file of its own and name it in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch

from lockstep.algorithm.tokens import ActionTokens, Outcomes

Need = Literal["siblings", "critic", "greedy", "square_norms"]
"""What an estimator cannot do without: two or more trajectories a group, a critic's values, a greedy trajectory a task,
square norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """advantages [A] of tokens; targets [A]: what the critic's values should have been, None without a critic."""

    advantages: torch.Tensor
    targets: torch.Tensor | None = None


class AdvantageEstimator(Protocol):
    """From the outcomes of a step to its tokens' advantages."""

    needs: ClassVar[frozenset[Need]]

    def __call__(self, outcomes: Outcomes) -> Credit: ...


def smallest_group(estimator: AdvantageEstimator) -> int:
    """How many trajectories a group must have for it: its own `k` where it has one, 2 where it needs siblings."""
    return max(2 if "siblings" in estimator.needs else 1, getattr(estimator, "k", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerms:
    """losses [A]: each token's loss, to be weighted and summed, with gradient. clipped bool [A]: tokens whose gradient
    the loss took away or bounded."""

    losses: torch.Tensor
    clipped: torch.Tensor


class PolicyLoss(Protocol):
    """From log-probs [A], which carry gradient, to each token's loss. A sequence's tokens are always given together.

    anchor: 'engine' when its old log-probs must be the engine's (bypass mode); 'any' otherwise. uses_ratio: whether old
    log-probs enter at all.
    """

    anchor: ClassVar[Literal["any", "engine"]]
    uses_ratio: ClassVar[bool]

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms: ...
