"""A step's tokens as time: when rewards fall due, and sums forwards and backwards along each trajectory.

A *run* is a stretch of consecutive elements with the same id, such as a trajectory's tokens. Tools' tokens are not
among them and so take no time, and a trajectory's second sequence goes on where its first ended.
"""

from __future__ import annotations

import torch

from lockstep.algorithm.tokens import Outcomes


def dated_rewards(outcomes: Outcomes) -> torch.Tensor:
    """float64 [A]: what each token earns: its token reward and, at the last of a trajectory, that one's reward."""
    due = torch.where(ends(outcomes.trajectory), outcomes.rewards[outcomes.trajectory], 0)
    return outcomes.token_rewards + due.double()


def ends(run: torch.Tensor) -> torch.Tensor:
    """bool [X]: whether an element is the last of its run."""
    last = torch.ones_like(run, dtype=torch.bool)
    last[:-1] = run[1:] != run[:-1]
    return last


def places(run: torch.Tensor) -> torch.Tensor:
    """int64 [X]: an element's place in its run, from 0."""
    index = torch.arange(len(run), device=run.device)
    starts = torch.where(ends(run).roll(1), index, 0)
    return index - starts.cummax(0).values


def sums_to_go(values: torch.Tensor, run: torch.Tensor, discount: float = 1.0) -> torch.Tensor:
    """[X]: sum_{j >= i} discount^(j - i) * values_j over the run of i.

    By doubling: sums over 2^n elements are joined to sums over 2^(n+1), so log2(longest run) passes over [X] do what a
    loop over time would, without padding. NaN stays inside its run.
    """
    sums, reach = values, 1
    while reach < len(values):
        same = run[reach:] == run[:-reach]
        if not same.any():
            break
        ahead = torch.where(same, sums[reach:], 0)
        sums = torch.cat([sums[:-reach] + discount**reach * ahead, sums[-reach:]])
        reach *= 2
    return sums


def running_sums(values: torch.Tensor, run: torch.Tensor) -> torch.Tensor:
    """[X]: sum_{j <= i} values_j over the run of i."""
    return sums_to_go(values.flip(0), run.flip(0)).flip(0)
