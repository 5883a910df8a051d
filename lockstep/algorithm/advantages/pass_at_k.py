"""PassAtK: what a trajectory adds to the best of k, instead of what it is worth alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lockstep.algorithm.advantages.timeline import running_sums
from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes, count_by


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK:
    """Policy gradient of the expected best of k samples (PKPO, arXiv:2505.15201), one value a trajectory.

    A_i = n / C(n, k) * sum over the subsets S of k of the group's n with i in S of max(R_S) - max(R_{S without i})
        = k * the mean, over the choices of k - 1 siblings, of max(0, R_i - max of the siblings).
    That is n times the paper's s^(loo-1) (eq. 33, of its unbiased estimators the one of least variance): averaged over
    the n of a group, the expected gradient is exactly that of E[max of k], of pass@k where rewards are 0 and 1.
    R = reward + token rewards (a KL penalty). Sorted ascending, A_(1) = 0 and
    A_(m) = A_(m-1) + (R_(m) - R_(m-1)) * k * C(m-1, k-1) / C(n-1, k-1): O(n log n), without cancellation. With k = n it
    is n times verl's grpo_passk without its std (arXiv:2503.19595): best minus second best for the best, 0 for the
    others. Never negative, so it only ever reinforces; arXiv:2606.06080 centres it, in O(n^2). Equal returns give
    exactly 0. k above a group's size raises ValueError.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"siblings"})

    k: int = 4
    """The best of how many counts. Higher favours rare successes; once over n - k + 1 of n succeed, all get 0."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k={self.k}: must be >= 2; for the best of one, use RLOO")

    def __call__(self, outcomes: Outcomes) -> Credit:
        sizes = count_by(outcomes.group, outcomes.num_groups)
        small = ((sizes > 0) & (sizes < self.k)).nonzero().flatten().tolist()
        if small:
            size = sizes[small[0]].item()
            raise ValueError(
                f"k={self.k}: group {small[0]} has {size} trajectories; lower k or raise rollout.group_size to >= k"
            )
        returns = outcomes.returns()
        order = torch.argsort(returns, stable=True)
        order = order[torch.argsort(outcomes.group[order], stable=True)]
        group, ascending = outcomes.group[order], returns[order]
        rank = torch.arange(1, len(group) + 1, device=group.device) - (sizes.cumsum(0) - sizes)[group]
        share = self.k * self._all_below(rank, sizes[group]).to(returns.dtype)
        gains = torch.where(rank >= self.k, (ascending - ascending.roll(1)) * share, 0)
        advantages = torch.empty_like(returns)
        advantages[order] = running_sums(gains, group)
        return Credit(advantages=advantages[outcomes.trajectory])

    def _all_below(self, rank: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """float64 [N]: C(rank-1, k-1) / C(size-1, k-1), for rank >= k: how likely k - 1 siblings all rank below."""

        def log_choices(count: torch.Tensor) -> torch.Tensor:  # of C(count-1, k-1), less the log (k-1)! that cancels
            count = count.clamp(min=self.k).double()
            return torch.lgamma(count) - torch.lgamma(count - self.k + 1)

        return torch.exp(log_choices(rank) - log_choices(size))
