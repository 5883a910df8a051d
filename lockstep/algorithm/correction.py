"""Rollout correction: importance weights for sampling with one engine and training with another."""

from __future__ import annotations

import torch

LOG_BOUND = 20.0  # exp of more than this is no number to train with


def truncated_importance_weights(
    old_logprobs: torch.Tensor, engine_logprobs: torch.Tensor, *, cap: float
) -> torch.Tensor:
    """Token-level truncated importance sampling: min(exp(old_logprobs - engine_logprobs), cap), constants [A].

    The engine sampled, the trainer differentiates; E_engine[exp(old - engine)] = 1, and the cap bounds the variance.
    """
    difference = (old_logprobs - engine_logprobs).clamp(-LOG_BOUND, LOG_BOUND)
    return torch.exp(difference).clamp(max=cap).detach()
