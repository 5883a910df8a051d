"""Ratios of the current policy to the old one: held in bounds, clipped as PPO clips, taken over whole sequences."""

from __future__ import annotations

import torch

from lockstep.algorithm.tokens import LOG_BOUND, ActionTokens, mean_by


def bounded_exp(log_ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(log_ratio) [A], and bool [A]: where it was held at exp(+-LOG_BOUND) and so is a constant without gradient."""
    return log_ratio.clamp(-LOG_BOUND, LOG_BOUND).exp(), log_ratio.detach().abs() > LOG_BOUND


def pessimistic_clip(
    values: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The v that attains min(v * A, clip(v, low, high) * A) for values [A], and bool [A]: where that is a bound.

    A bound holds only on the side to which the advantage pushes: high for A > 0, low for A < 0. Exactly on a bound the
    value is still free, so its gradient is that of the inside. Values are ratios, or, with bounds to match, their logs.
    """
    past = ((advantages > 0) & (values > high)) | ((advantages < 0) & (values < low))
    return torch.where(past, values.clamp(low, high), values), past


def sequence_log_ratio(log_ratio: torch.Tensor, tokens: ActionTokens) -> torch.Tensor:
    """[A]: in value the mean log_ratio of each token's sequence, in gradient the token's own (straight-through).

    So a loss summed over a sequence of one advantage has the gradient of length * loss(mean), and a weight on a token
    weighs the gradient of that token and of no other.
    """
    means = mean_by(log_ratio.detach(), tokens.sequence, tokens.num_sequences)
    return means[tokens.sequence] + (log_ratio - log_ratio.detach())
