"""CISPO: the ratio is a weight, truncated, and no token stops learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.losses.ratio import bounded_exp
from lockstep.algorithm.tokens import ActionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CISPO:
    """Clipped importance sampling policy optimisation (MiniMax-M1, arXiv:2506.13585, eq. 4 and 5).

    r = exp(logprob - old_logprob); loss = -sg(clip(r, 1 - clip_low, 1 + clip_high)) * A * logprob.

    Clipped tokens (r outside the range, whatever the sign of A) still learn, with the bound as weight. The paper has no
    lower bound and does not print its upper one. Bounds are offsets here, as in the paper and verl; TRL's epsilon_high
    is the cap itself, usually 5, which is clip_high = 4. SkyRL's clip_low = 0 lifts every weight to at least 1.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "any"
    uses_ratio: ClassVar[bool] = True

    clip_low: float = 1.0
    """Weights are at least 1 - clip_low, in [0, 1]; 1 is no lower bound. Less lifts tokens the policy has left."""
    clip_high: float = 4.0
    """Weights are at most 1 + clip_high. Less is steadier and more biased; PPO's 0.28 starves rare tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low={self.clip_low}: must be in [0, 1]; 1 (no lower bound) is usual")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high={self.clip_high}: must be at least 0; 4 is usual")

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        ratio, held = bounded_exp((logprobs - tokens.old_logprobs).detach())
        weights = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        clipped = ((weights != ratio) | held) & (tokens.advantages != 0)
        return PolicyTerms(losses=-weights * tokens.advantages * logprobs, clipped=clipped)
