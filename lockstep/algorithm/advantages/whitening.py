"""Advantages of a whole step brought to mean 0 and variance 1."""

from __future__ import annotations

import torch


def whiten(values: torch.Tensor) -> torch.Tensor:
    """[A]: (values - mean) / sqrt(variance + 1e-8) over all A tokens; exactly 0 where all are equal.

    The variance is the population's, as in OpenRLHF; verl corrects it by A / (A - 1), which fails on one token. The
    floor is verl's too: a spread below 1e-4 counts for little. One NaN makes every element NaN.
    """
    if not len(values):
        return values
    above = values - values.min()
    centered = above - above.mean()
    return centered * torch.rsqrt(centered.square().mean() + 1e-8)
