"""Losses: pure functions of tensors. The denominator is passed in, so that microbatches and ranks simply add.

Everywhere: A action tokens; logprobs [A] carry gradient; old_logprobs, advantages, weights [A] are constants.
"""

from __future__ import annotations

import torch


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    denominator: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """PPO's surrogate (arXiv:1707.06347, eq. 7) with the asymmetric clip of DAPO (arXiv:2503.14476).

    ratio = exp(logprobs - old_logprobs); loss = -sum(w * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A))
    / denominator. denominator: trained tokens of the whole step over all ranks; weights: importance weights of the
    rollout correction, constants, 1 when None. Returns this microbatch's scalar share.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    return -(surrogate if weights is None else surrogate * weights).sum() / denominator


def supervised_loss(logprobs: torch.Tensor, *, denominator: float) -> torch.Tensor:
    """Negative log-likelihood of demonstrated tokens, summed and divided by the step's number of them."""
    return -logprobs.sum() / denominator
