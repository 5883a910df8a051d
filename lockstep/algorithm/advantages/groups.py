"""What a trajectory is compared with: the others of its group.

From values [X] and the group each belongs to; to the group sizes, and the values less their group's (weighted) mean.
"""

from __future__ import annotations

import torch

from lockstep.algorithm.tokens import Outcomes, count_by, sum_by


def sibling_counts(outcomes: Outcomes) -> torch.Tensor:
    """int64 [num_groups]: trajectories a group; none is no fault. Raises ValueError where one stands alone."""
    sizes = count_by(outcomes.group, outcomes.num_groups)
    alone = (sizes == 1).nonzero().flatten().tolist()
    if alone:
        raise ValueError(
            f"group {alone[0]} has 1 trajectory: its baseline needs >= 2; drop it or raise rollout.group_size"
        )
    return sizes


def centered(
    values: torch.Tensor, group: torch.Tensor, num_groups: int, *, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """[X]: values [X] - sum(w * values) / sum(w) over their group; weights [X] >= 0, all 1 when None.

    Values that are all equal give exactly 0. NaN stays inside its group.
    """
    # Measured from the lowest: the mean of eight 0.1 is not 0.1, but the mean of eight 0 is 0.
    lowest = values.new_full((num_groups,), torch.inf).scatter_reduce(0, group, values, "amin")
    above = values - lowest[group]
    weights = torch.ones_like(values) if weights is None else weights
    mean = sum_by(weights * above, group, num_groups) / sum_by(weights, group, num_groups)
    return above - mean[group]
