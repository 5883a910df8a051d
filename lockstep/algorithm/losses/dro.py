"""DRO: a squared penalty on the log-ratio in place of a clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.tokens import ActionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DRO:
    """Direct reward optimisation (arXiv:2405.19107), in tinker's token form: for data of any policy, even offline.

    d = logprob - old_logprob; loss = -A * logprob + beta / 2 * d^2. Gradient: -(A - beta * d): a token learns until its
    log-ratio is A / beta, then turns back.

    The paper's loss (r - V - tau * D)^2 / 2, and Kimi k1.5's (arXiv:2501.12599), have the log-ratio D of a whole
    sequence: gradient -(A - tau * D) on each of its tokens, up to the factor tau. Here each token has its own d, which
    does not grow with length; beta is then about length * tau for the same pull. The advantage should be of r - V, not
    divided by a deviation. Nothing is clipped, and d is not held in bounds: far away is where the pull is needed.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "any"
    uses_ratio: ClassVar[bool] = True

    beta: float = 0.05
    """Strength of the pull back to the old policy: a token's log-ratio comes to rest at advantage / beta."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta={self.beta}: must be above 0 and finite; 0.05 is usual")

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        penalty = self.beta / 2 * (logprobs - tokens.old_logprobs).square()
        return PolicyTerms(
            losses=penalty - tokens.advantages * logprobs, clipped=torch.zeros_like(logprobs, dtype=torch.bool)
        )
