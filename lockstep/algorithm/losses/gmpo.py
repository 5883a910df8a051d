"""GMPO: the geometric mean of a sequence's clipped ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.losses.ratio import bounded_exp, pessimistic_clip, sequence_log_ratio
from lockstep.algorithm.tokens import ActionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GMPO:
    """Geometric-mean policy optimisation (arXiv:2507.20673): the clip is per token, the ratio per sequence.

    d = logprob - old_logprob; c = min(d, clip_high) for A > 0, max(d, -clip_low) for A < 0; G = exp(mean of c over the
    sequence); loss_t = -A_t * sg(G) * exp(c_t - sg(c_t)). Every token has the value -A * G, so where the advantages of
    a sequence are equal and each sequence's mean is taken, value and gradient are the paper's. The straight-through
    form is ours: a token's weight then acts on that token's gradient (zero removes it), and advantages may differ.

    Clipped tokens have no gradient but stay in G. mean(c) beyond +-20 is held there and its tokens count as clipped.
    With unequal bounds clip_low holds for A < 0, as in verl and TRL, both of which take one mean advantage a sequence.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "any"
    uses_ratio: ClassVar[bool] = True

    clip_low: float = 0.4
    """Bound of a token's log-ratio for A < 0: -clip_low. In logs, so 0.4 is a ratio of 0.67."""
    clip_high: float = 0.4
    """Bound of a token's log-ratio for A > 0. In logs, so 0.4 is a ratio of 1.49; wide, as the mean tames outliers."""

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name}={value}: must be at least 0; 0.4 is usual")

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        advantages = tokens.advantages
        log_ratio = logprobs - tokens.old_logprobs
        log_ratio, past = pessimistic_clip(log_ratio, advantages, low=-self.clip_low, high=self.clip_high)
        ratio, held = bounded_exp(sequence_log_ratio(log_ratio, tokens))
        return PolicyTerms(losses=-advantages * ratio, clipped=past | (held & (advantages != 0)))
