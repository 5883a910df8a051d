"""DPPO: a trust region in probability, not in ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lockstep.algorithm.interface import PolicyTerms
from lockstep.algorithm.losses.ratio import bounded_exp
from lockstep.algorithm.tokens import ActionTokens

USUAL_THRESHOLDS = {"tv": 0.2, "kl": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class DPPO:
    """Divergence PPO (arXiv:2602.04879), its binary forms (eq. 12 to 14): only the sampled token against all others.

    pi, mu: its probability now and in the engine; r = pi / mu. divergence: |pi - mu| (tv), or
    mu * log(mu / pi) + (1 - mu) * log((1 - mu) / (1 - pi)) (kl). loss = -r * A, but 0 where divergence > threshold and
    the token moves away: r > 1 with A > 0, r < 1 with A < 0.

    Clipped tokens have loss and gradient 0; exactly on the threshold a token is kept. Kept ratios are not truncated, as
    in prime-rl (verl caps them at 20; the paper finds that truncation hurts rare tokens), but held within exp(+-20)
    without gradient. The engine's log-probs must be the old ones: the paper's trust region is around what sampled, and
    around a recomputed policy it fails. Rollout weights on top would correct twice.
    """

    anchor: ClassVar[Literal["any", "engine"]] = "engine"
    uses_ratio: ClassVar[bool] = True

    divergence: Literal["tv", "kl"] = "tv"
    """What is bounded: tv, the change in probability, or kl, which allows less near probabilities 0 and 1."""
    threshold: float | None = None
    """Divergence past which a token that moves away stops learning; None takes the usual: 0.2 for tv, 0.05 for kl."""

    def __post_init__(self) -> None:
        if self.divergence not in USUAL_THRESHOLDS:
            raise ValueError(f"divergence={self.divergence!r}: must be 'tv' or 'kl'")
        if self.threshold is not None and not self.threshold >= 0:
            usual = USUAL_THRESHOLDS[self.divergence]
            raise ValueError(f"threshold={self.threshold}: must be at least 0; {usual} is usual")

    def __call__(self, logprobs: torch.Tensor, tokens: ActionTokens) -> PolicyTerms:
        advantages, old_logprobs = tokens.advantages, tokens.old_logprobs
        difference = (logprobs - old_logprobs).detach()
        away = ((advantages > 0) & (difference > 0)) | ((advantages < 0) & (difference < 0))
        divergence = (binary_tv if self.divergence == "tv" else binary_kl)(logprobs.detach(), old_logprobs)
        threshold = USUAL_THRESHOLDS[self.divergence] if self.threshold is None else self.threshold
        masked = away & (divergence > threshold)
        ratio, held = bounded_exp(logprobs - old_logprobs)
        losses = (-advantages * ratio).masked_fill(masked, 0)
        return PolicyTerms(losses=losses, clipped=masked | (held & (advantages != 0)))


def binary_tv(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """[A]: total variation between the two Bernoulli distributions 'this token or another'."""
    return (logprobs.exp() - old_logprobs.exp()).abs()


def binary_kl(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """[A]: KL(old || current) of the same; a probability of 1 counts as 1 - eps, so that it stays finite."""
    ceiling = -torch.finfo(logprobs.dtype).eps
    current, old = logprobs.clamp(max=ceiling), old_logprobs.clamp(max=ceiling)
    current_rest, old_rest = -torch.expm1(current), -torch.expm1(old)
    return old.exp() * (old - current) + old_rest * (old_rest.log() - current_rest.log())
