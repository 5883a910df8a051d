"""The plain policy gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.tokens import ActionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient:
    """REINFORCE (Williams 1992): loss = -A * logprob.

    No ratio, no clip: right for one update a batch, where what the engine and the trainer disagree on is left to the
    rollout correction's weights. Old log-probs are not read. Nothing is ever clipped. verl calls it gpg.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "any"
    uses_ratio: ClassVar[bool] = False

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        return PolicyTerms(losses=-tokens.advantages * logprobs, clipped=torch.zeros_like(logprobs, dtype=torch.bool))
