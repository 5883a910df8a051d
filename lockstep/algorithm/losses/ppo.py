"""PPO's clipped surrogate, with DAPO's two bounds and the dual clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.losses.ratio import bounded_exp, pessimistic_clip
from lockstep.algorithm.tokens import ActionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """PPO (arXiv:1707.06347, eq. 7) with the asymmetric clip of DAPO (arXiv:2503.14476, eq. 8).

    r = exp(logprob - old_logprob); loss = -min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A).
    With dual_clip c (arXiv:1912.09729), for A < 0: loss = min(that, -c * A).

    Clipped tokens have no gradient; they are counted where the bound is in force, as verl does, and not wherever the
    ratio is out of range. Exactly on a bound the gradient is that of the inside. A ratio beyond exp(+-20) is held there
    and counts as clipped. verl has dual clip on by default (c = 3), TRL off.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "any"
    uses_ratio: ClassVar[bool] = True

    clip_low: float = 0.2
    """How far below 1 a ratio may fall for A < 0 before its token stops learning; in [0, 1)."""
    clip_high: float = 0.28
    """How far above 1 a ratio may rise for A > 0; above clip_low, rare tokens may grow and entropy lasts longer."""
    dual_clip: float | None = None
    """Ratio past which a token of A < 0 stops learning, 3 is usual; None leaves its push down without bound."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1:
            raise ValueError(f"clip_low={self.clip_low}: must be in [0, 1); 0.2 is usual")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high={self.clip_high}: must be at least 0; 0.28 is usual")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip={self.dual_clip}: must be above 1, or None for no bound; 3 is usual")

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        advantages = tokens.advantages
        ratio, held = bounded_exp(logprobs - tokens.old_logprobs)
        clipped = held & (advantages != 0)
        if self.dual_clip is not None:
            over = (advantages < 0) & (ratio > self.dual_clip)
            ratio, clipped = torch.where(over, ratio.clamp(max=self.dual_clip), ratio), clipped | over
        ratio, past = pessimistic_clip(ratio, advantages, low=1 - self.clip_low, high=1 + self.clip_high)
        return PolicyTerms(losses=-advantages * ratio, clipped=clipped | past)
