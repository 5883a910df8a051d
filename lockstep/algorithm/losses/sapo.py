"""SAPO: a smooth gate in place of the clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.losses.ratio import bounded_exp
from lockstep.algorithm.tokens import ActionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SAPO:
    """Soft adaptive policy optimisation (arXiv:2511.20347).

    r = exp(logprob - old_logprob); tau = temperature_positive for A > 0, else temperature_negative;
    loss = -f(r) * A with f(r) = 4 / tau * sigmoid(tau * (r - 1)). Gradient: -w * r * A, where the gate
    w = 4 * p * (1 - p), p = sigmoid(tau * (r - 1)), is 1 at r = 1 and falls smoothly on both sides.

    No token is cut off; `clipped` marks those whose gate is below 1/2, which is |r - 1| > 1.763 / tau (the peers report
    0 here). A ratio beyond exp(+-20) is held there. verl and TRL average each sequence first, then sequences.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "any"
    uses_ratio: ClassVar[bool] = True

    temperature_positive: float = 1.0
    """Sharpness of the gate for A > 0: more is closer to a narrow clip."""
    temperature_negative: float = 1.05
    """Sharpness for A <= 0; above the positive one, since pushing a token down lifts all others a little, unstably."""

    def __post_init__(self) -> None:
        for name in ("temperature_positive", "temperature_negative"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be above 0 and finite; 1 is usual")

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        advantages = tokens.advantages
        ratio, held = bounded_exp(logprobs - tokens.old_logprobs)
        # not torch.where of two floats: that is float32 whatever the tensors are
        tau = torch.full_like(ratio, self.temperature_negative).masked_fill(advantages > 0, self.temperature_positive)
        opening = torch.sigmoid(tau * (ratio - 1))
        gate = (4 * opening * (1 - opening)).detach()
        clipped = ((gate < 0.5) | held) & (advantages != 0)
        return PolicyTerms(losses=-4 / tau * opening * advantages, clipped=clipped)
