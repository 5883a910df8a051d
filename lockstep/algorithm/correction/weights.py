"""Importance weights: how much a sampled token counts, given what trainer and engine think of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lockstep.algorithm.tokens import LOG_BOUND, mean_by, sum_by

Level = Literal["token", "sequence", "geometric"]
Outside = Literal["truncate", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """weights [A]: what each token's loss is multiplied by, constants, 0 where dropped. kept bool [A]: the others.

    A dropped token may have broken log-probs: leave it out by `kept`; a product of NaN and 0 is NaN.
    """

    weights: torch.Tensor
    kept: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceWeights:
    """Weights w with E_mu[w f] close to E_pi[f]. d = log pi - log mu; exponents are clamped to +-20.

    token:     w_t = exp(d_t)                    unbiased for the one token, blind to its history
    sequence:  w   = exp(sum_t d_t)              unbiased; the variance grows exponentially with the length
    geometric: w   = exp(mean_t d_t)             comparable between lengths; biased (GSPO's ratio, arXiv:2507.18071)

    truncate: w = min(max(w, lower), upper): truncated importance sampling, TIS (verl's `rollout_is`, TRL's
    `*_truncate`). drop: w outside [lower, upper] becomes 0, a weight on a bound stays: IcePop (arXiv:2510.18855) over
    tokens, MIS over sequences (verl's threshold "lower_upper", TRL's `*_mask`). A sequence's weight stands at each of
    its tokens.
    """

    level: Level = "token"
    """token: each by itself, the steadiest. sequence: unbiased, but on long sequences nearly all weights are 0 or at a
    bound. geometric: the mean token's ratio, meant for narrow bounds."""

    upper: float = 2.0
    """Largest weight; at least 1, so that a token on policy stays. Lower: less variance, more bias. inf: no bound."""

    lower: float = 0.0
    """Smallest weight, in [0, 1]: raised to it with truncate, dropped below it with drop. 0: no bound."""

    outside: Outside = "truncate"
    """truncate: weights outside the bounds are set to them, every token trains. drop: such tokens do not train."""

    normalize: bool = False
    """Divide by the mean weight of the step's kept tokens: its size no longer depends on the mismatch, and weights may
    exceed `upper`. Needs the whole step first. The mean is over kept tokens; verl's is over dropped ones too, and for
    sequences over sequences."""

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level={self.level!r}: must be one of {', '.join(get_args(Level))}")
        if self.outside not in get_args(Outside):
            raise ValueError(f"outside={self.outside!r}: must be one of {', '.join(get_args(Outside))}")
        if not self.upper >= 1:
            raise ValueError(f"upper={self.upper}: must be >= 1, the weight on policy; 2 is usual")
        if not 0 <= self.lower <= 1:
            raise ValueError(f"lower={self.lower}: must be in [0, 1]; 0 is no bound, 0.5 is IcePop's")
        if self.lower == self.upper:
            raise ValueError(f"lower={self.lower}: must be below upper={self.upper}; for weights of 1 set weights=None")
        if self.outside == "drop" and self.lower == 0 and self.upper == float("inf"):
            raise ValueError("outside='drop' drops nothing without bounds: lower upper, raise lower, or use 'truncate'")

    def __call__(self, difference: torch.Tensor, sequence: torch.Tensor, num_sequences: int) -> Corrected:
        """difference [A]: d, finite. Not yet normalised: `normalized` does that, when all is known that is dropped."""
        if self.level == "token":
            log_weights = difference
        else:
            reduce = sum_by if self.level == "sequence" else mean_by
            log_weights = reduce(difference, sequence, num_sequences)[sequence]
        weights = log_weights.clamp(-LOG_BOUND, LOG_BOUND).exp()
        if self.outside == "truncate":
            return Corrected(
                weights=weights.clamp(self.lower, self.upper), kept=torch.ones_like(weights, dtype=torch.bool)
            )
        kept = (weights >= self.lower) & (weights <= self.upper)
        return Corrected(weights=weights.where(kept, 0), kept=kept)


def normalized(corrected: Corrected) -> Corrected:
    """With mean weight 1 over the kept tokens; all zeros stay so."""
    smallest = torch.finfo(corrected.weights.dtype).tiny
    factor = corrected.kept.sum() / corrected.weights.sum().clamp(min=smallest)
    return Corrected(weights=corrected.weights * factor, kept=corrected.kept)
