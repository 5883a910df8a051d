"""Algorithm: an advantage estimator, a policy loss and what stands around them, composed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import torch

from lockstep.algorithm.advantages.grpo import GRPO
from lockstep.algorithm.aggregation import Aggregation
from lockstep.algorithm.correction import Corrected, Correction
from lockstep.algorithm.covariance import ClipCov, KLCov
from lockstep.algorithm.interface import AdvantageEstimator, PolicyLoss
from lockstep.algorithm.kl import KLPenalty
from lockstep.algorithm.losses.ppo import PPO
from lockstep.algorithm.overlong import OverlongPenalty
from lockstep.algorithm.tokens import ActionTokens

AdvantagesT = TypeVar("AdvantagesT", bound=AdvantageEstimator)
LossT = TypeVar("LossT", bound=PolicyLoss)


@dataclass(frozen=True, kw_only=True)
class Algorithm(Generic[AdvantagesT, LossT]):
    """One method: how trajectories are credited, what the policy's loss is, and how often a batch is used. The default
    is GRPO (arXiv:2402.03300) with token-mean and clip-higher, corrected for the engine's mismatch."""

    advantages: AdvantagesT = field(default_factory=GRPO)  # pyright: ignore[reportAssignmentType]
    """How trajectories' rewards become tokens' advantages."""
    loss: LossT = field(default_factory=PPO)  # pyright: ignore[reportAssignmentType]
    """The policy's loss of one token. With one update a batch every ratio is exactly 1 and nothing is clipped."""
    aggregation: Aggregation = "token-mean"
    """How the tokens' losses become one number."""
    correction: Correction = field(default_factory=Correction)
    """What is done about the engine's log-probs not being the trainer's."""
    kl: KLPenalty | None = None
    """A penalty on leaving the reference, which is the policy that reinforcement learning began with."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus: this times a token's entropy is subtracted from its loss."""
    covariance: ClipCov | KLCov | None = None
    """What is done about tokens whose log-prob and advantage vary together, which cost the most entropy."""
    overlong: OverlongPenalty | None = None
    """A penalty on trajectories near their length limit (DAPO)."""
    filter_truncated: bool = False
    """Trajectories that a limit cut short are not trained on; their rewards and lengths stay in their group's baseline
    (DAPO's overlong filtering)."""
    epochs: int = 1
    """How often each batch is used. Old log-probs and expert routes are those before the first update; later passes
    replay the routes, so that no router's flip looks like a change of the policy."""
    minibatches: int = 1
    """Updates an epoch: the step's trajectories are dealt into so many parts. Above 1 it takes a pass before the
    first update, for the old log-probs."""
    stop_kl: float | None = None
    """No more updates on a batch once the policy's KL divergence from its old log-probs is above this; 0.01 is
    usual."""
    old_logprobs: Literal["current", "recomputed"] = "current"
    """'current': in the first update the old log-probs are the current ones, detached, and the ratio is exactly 1.
    'recomputed': they come from a pass of their own, as in other trainers, with whatever differs between two passes;
    for comparison."""

    def __post_init__(self) -> None:
        for option, part in {"advantages": self.advantages, "loss": self.loss}.items():
            if isinstance(part, type):
                raise ValueError(f"algorithm.{option}={part.__name__}: is a class; write {part.__name__}()")
        for option, count in {"epochs": self.epochs, "minibatches": self.minibatches}.items():
            if count < 1:
                raise ValueError(f"algorithm.{option}={count}: must be at least 1")
        if not 0 <= self.entropy_coefficient < math.inf:
            raise ValueError(f"algorithm.entropy_coefficient={self.entropy_coefficient}: must be 0 or more, and finite")
        if self.stop_kl is not None and not (self.stop_kl > 0 and self.num_updates > 1):
            raise ValueError(
                f"algorithm.stop_kl={self.stop_kl}: stops between a batch's updates, of which there are "
                f"{self.num_updates}, at a KL above 0; raise epochs or minibatches, or set it to None"
            )
        bypass = self.correction.anchor == "bypass"
        if isinstance(self.covariance, KLCov) and self.num_updates == 1 and not bypass:
            raise ValueError(
                "algorithm.covariance=KLCov: penalises the distance to old log-probs, which is 0 with one update a "
                "batch; raise epochs or minibatches, or use ClipCov"
            )
        if self.filter_truncated and "square_norms" in self.advantages.needs:
            raise ValueError(
                f"algorithm.filter_truncated=True: {type(self.advantages).__name__} needs the tokens of all siblings "
                "for its baseline; set it to False"
            )
        if self.loss.anchor == "engine" and not bypass:
            raise ValueError(
                f"algorithm.loss={type(self.loss).__name__}: its ratio is to the engine's log-probs; set "
                "correction.anchor to bypass, without weights"
            )
        if self.old_logprobs == "recomputed" and bypass:
            raise ValueError(
                "algorithm.old_logprobs=recomputed: in bypass mode the old log-probs are the engine's; use current"
            )
        if bypass and self.correction.needs_batch and self.num_updates > 1:
            raise ValueError(
                "algorithm.correction: in bypass mode it is that of each update's own policy, but normalize and "
                f"rejected_in_denominator=False count once, and there are {self.num_updates} updates; use anchor "
                "decoupled, or one update"
            )
        corrects = self.correction.weights is not None or self.correction.can_drop
        if self.old_logprobs == "recomputed" and not (self.loss.uses_ratio or corrects or self.kl):
            raise ValueError(
                f"algorithm.old_logprobs=recomputed: {type(self.loss).__name__} takes no ratio to them, and nothing "
                "else does; use current"
            )
        self.correction.check(loss_uses_ratio=self.loss.uses_ratio)

    @property
    def num_updates(self) -> int:
        """Optimiser steps on each batch."""
        return self.epochs * self.minibatches

    @property
    def needs_first_pass(self) -> bool:
        """Whether something needs the whole step's log-probs before the first gradient."""
        return (
            self.minibatches > 1
            or self.correction.needs_batch
            or self.covariance is not None
            or (self.kl is not None and self.kl.where == "reward")
            or "square_norms" in self.advantages.needs
            or self.old_logprobs == "recomputed"
        )

    def select(self, tokens: ActionTokens, seed: int) -> torch.Tensor | None:
        """bool [A]: the tokens of a whole step that `covariance` treats; None without it."""
        if isinstance(self.covariance, ClipCov):
            return self.covariance.selected(tokens, seed)
        return None if self.covariance is None else self.covariance.selected(tokens)

    def correct(self, trainer_logprobs: torch.Tensor, tokens: ActionTokens) -> Corrected:
        """The rollout correction's weights; trainer_logprobs [A]: the old ones, or in bypass mode the current ones."""
        return self.correction(trainer_logprobs.detach(), tokens.engine_logprobs, tokens.sequence, tokens.num_sequences)

    def token_losses(
        self, logprobs: torch.Tensor, entropies: torch.Tensor, tokens: ActionTokens, kl: KLPenalty | None
    ) -> torch.Tensor:
        """[A], to be summed: of logprobs and entropies [A], with gradient. Tokens without weights of the rollout
        correction get them here. kl: the penalty with its present coefficient."""
        if tokens.weights is None or tokens.kept is None:
            bypass = self.correction.anchor == "bypass"
            found = self.correct(logprobs if bypass else tokens.old_logprobs, tokens)
            tokens = dataclasses.replace(tokens, weights=found.weights, kept=found.kept)
        assert tokens.weights is not None and tokens.kept is not None and tokens.loss_weights is not None
        losses = self.loss(logprobs, tokens).losses
        trained = self.correction.keeps(logprobs, tokens)
        if tokens.selected is not None and isinstance(self.covariance, ClipCov):
            trained = trained & ~tokens.selected
        losses = torch.where(trained, losses, 0)
        if kl is not None and kl.where == "loss" and tokens.reference_logprobs is not None:
            weighed = self.correction.anchor == "bypass" and self.correction.weights is not None  # by the whole ratio
            old_logprobs = logprobs.detach() if weighed else tokens.old_logprobs
            losses = losses + kl.losses(logprobs, old_logprobs, tokens.reference_logprobs)
        losses = losses * tokens.weights
        if tokens.selected is not None and isinstance(self.covariance, KLCov):
            losses = losses + self.covariance.penalty(logprobs, tokens.old_logprobs, tokens.selected)
        if self.entropy_coefficient:
            losses = losses - self.entropy_coefficient * entropies
        return torch.where(tokens.kept, losses, 0) * tokens.loss_weights
