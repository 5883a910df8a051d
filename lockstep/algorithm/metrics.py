"""Numbers that explain a step, from the action tokens of all its microbatches. Pure functions; A = action tokens of the
step."""

from __future__ import annotations

import torch


def mismatch_metrics(logprobs: torch.Tensor, engine_logprobs: torch.Tensor) -> dict[str, float]:
    """How far the trainer's log-probs [A] are from the engine's [A] for the tokens the engine sampled.

    kl is KL(engine || trainer) by the k3 estimator, mean(exp(d) - 1 - d) with d = trainer - engine: never negative, low
    variance; max_abs the largest |d|; k1 the plain mean of -d, the estimator whose sign says who is surer.
    """
    d = (logprobs - engine_logprobs).double()
    return {
        "mismatch/kl": (torch.expm1(d) - d).mean().item(),
        "mismatch/k1": -d.mean().item(),
        "mismatch/max_abs": d.abs().max().item(),
    }


def ratio_metrics(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> dict[str, float]:
    """The importance ratio's range and the fraction of tokens whose gradient the clip removed, all over [A]."""
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ((ratio > 1 + clip_high) & (advantages > 0)) | ((ratio < 1 - clip_low) & (advantages < 0))
    return {
        "ratio/min": ratio.min().item(),
        "ratio/max": ratio.max().item(),
        "clip_fraction": clipped.float().mean().item(),
    }
