"""Algorithm: the advantages, the correction and the loss of one method, composed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lockstep.algorithm.advantages import group_relative_advantages
from lockstep.algorithm.correction import truncated_importance_weights
from lockstep.algorithm.losses import clipped_policy_loss
from lockstep.algorithm.metrics import mismatch_metrics, ratio_metrics
from lockstep.types import InvariantError


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Group relative policy optimisation (arXiv:2402.03300), token-mean."""

    normalize: bool = True
    """Divide a group's advantages by their standard deviation; False is Dr. GRPO's choice."""
    clip_low: float = 0.2
    """The ratio's clip below 1. With one update a batch the ratio is exactly 1 and nothing is clipped."""
    clip_high: float = 0.28
    """The ratio's clip above 1 (DAPO's clip-higher)."""
    epochs: int = 1
    """Updates on each batch. Old log-probs and expert routes are those of the first update's own pass; the others
    replay the routes, so that no router's flip looks like a change of the policy."""
    importance_cap: float = 2.0
    """Each token is weighted by the trainer's over the engine's probability, truncated at this; 0 turns correction
    off."""

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """One advantage for each trajectory of a group."""
        values = torch.tensor(rewards, dtype=torch.float64)
        return group_relative_advantages(values, normalize=self.normalize).tolist()

    def loss(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor | None,
        engine_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        *,
        denominator: float,
    ) -> torch.Tensor:
        """This microbatch's share of the loss. old_logprobs None: on policy, they are the current ones, detached, and
        the ratio is 1."""
        old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs
        weights = None
        if self.importance_cap:
            weights = truncated_importance_weights(old_logprobs, engine_logprobs, cap=self.importance_cap)
        return clipped_policy_loss(
            logprobs,
            old_logprobs,
            advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            denominator=denominator,
            weights=weights,
        )

    def metrics(
        self, logprobs: torch.Tensor, engine_logprobs: torch.Tensor, advantages: torch.Tensor
    ) -> dict[str, float]:
        """Of the action tokens [A] of a batch's first update, all detached. Raises InvariantError when the on-policy
        ratio is not exactly 1."""
        found = ratio_metrics(logprobs, logprobs, advantages, self.clip_low, self.clip_high)
        if not found["ratio/min"] == found["ratio/max"] == 1.0:
            bad = torch.nonzero(~torch.isfinite(logprobs)).flatten()
            raise InvariantError(
                "on policy the importance ratio must be exactly 1 for every token, but it spans "
                f"{found['ratio/min']}..{found['ratio/max']}; {len(bad)} of {len(logprobs)} log-probs are not finite "
                f"(first at action token {bad[:1].tolist()}): lower the learning rate or check the model"
            )
        if self.importance_cap:
            weights = truncated_importance_weights(logprobs, engine_logprobs, cap=self.importance_cap)
            found["correction/weight_min"], found["correction/weight_max"] = weights.min().item(), weights.max().item()
        return found | mismatch_metrics(logprobs, engine_logprobs)

    def later_metrics(
        self, logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor
    ) -> dict[str, float]:
        """Of the action tokens [A] of a batch's last update, when it is not the first."""
        found = ratio_metrics(logprobs, old_logprobs, advantages, self.clip_low, self.clip_high)
        return {f"last_epoch/{name}": value for name, value in found.items()}
