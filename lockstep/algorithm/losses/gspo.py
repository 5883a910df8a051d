"""GSPO: one ratio and one clip for a whole sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.losses.ratio import bounded_exp, pessimistic_clip, sequence_log_ratio
from lockstep.algorithm.tokens import ActionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GSPO:
    """Group sequence policy optimisation (arXiv:2507.18071), in its token form GSPO-token (eq. 13 and 14).

    d = logprob - old_logprob; s = exp(mean of d over the sequence); s_t = sg(s) * exp(d_t - sg(d_t));
    loss_t = -min(s_t * A_t, clip(s_t, 1 - clip_low, 1 + clip_high) * A_t). Where the advantages of a sequence are equal
    and each sequence's mean is taken, value and gradient are those of GSPO (eq. 5). Another aggregation keeps the
    gradient's direction per sequence but lets long ones count more.

    A clipped sequence has no gradient in any token whose advantage has the clipped sign. mean(d) beyond +-20 is held
    there and counts as clipped. verl takes this form; TRL has one loss a sequence unless told `sequence_token`.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "any"
    uses_ratio: ClassVar[bool] = True

    clip_low: float = 3e-4
    """How far below 1 a sequence's ratio may fall for A < 0; in [0, 1). Ratios are means: far smaller than PPO's."""
    clip_high: float = 4e-4
    """How far above 1 a sequence's ratio may rise for A > 0. PPO's 0.2 here would never clip."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1:
            raise ValueError(f"clip_low={self.clip_low}: must be in [0, 1); 3e-4 is usual")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high={self.clip_high}: must be at least 0; 4e-4 is usual")

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        advantages = tokens.advantages
        ratio, held = bounded_exp(sequence_log_ratio(logprobs - tokens.old_logprobs, tokens))
        ratio, past = pessimistic_clip(ratio, advantages, low=1 - self.clip_low, high=1 + self.clip_high)
        return PolicyTerms(losses=-advantages * ratio, clipped=past | (held & (advantages != 0)))
