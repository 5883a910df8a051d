"""The loss of supervised learning."""

from __future__ import annotations

import torch


def supervised_loss(logprobs: torch.Tensor, *, denominator: float) -> torch.Tensor:
    """Negative log-likelihood of demonstrated tokens, summed and divided by the step's number of them."""
    return -logprobs.sum() / denominator
