"""Advantages from rewards. Pure functions; a group is one task's trajectories."""

from __future__ import annotations

import torch


def group_relative_advantages(rewards: torch.Tensor, *, normalize: bool, epsilon: float = 1e-6) -> torch.Tensor:
    """GRPO's outcome advantages (arXiv:2402.03300, eq. 4.1.2): A_i = (r_i - mean(r)) / (std(r) + epsilon).

    rewards [N] of one group; std is the unbiased one, as in TRL and verl. normalize=False leaves the division out
    (Dr. GRPO, arXiv:2503.20783). Returns [N], summing to 0. Raises ValueError for a group of one: it has no baseline.
    """
    if len(rewards) < 2:
        raise ValueError(f"group of {len(rewards)}: group-relative advantages need >= 2 trajectories of a task")
    centered = rewards - rewards.mean()
    return centered / (rewards.std() + epsilon) if normalize else centered
