"""A step under way: what the learner knows of it so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lockstep.algorithm.correction import Corrected
from lockstep.algorithm.tokens import ActionTokens
from lockstep.learner.experience import Experience
from lockstep.trainer.trainer import Pass
from lockstep.types import Batch, Microbatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The passes of one epoch's updates: logprobs [A'] at int64 place [A'] of the step's tokens, all of them unless the
    epoch was stopped; the pass that stopped it included. loss: the mean of its updates'."""

    place: torch.Tensor
    logprobs: torch.Tensor
    loss: float


@dataclass(slots=True, kw_only=True)
class Step:
    """Its minibatches, its tokens (A in all) as far as they are known, and what was seen.

    old_known: whether the tokens' old log-probs are. corrected: the rollout correction of the weights before the step.
    first: the passes over all microbatches with the
    weights before the step. epochs: of the policy's updates. metrics: of the updates themselves.
    """

    found: Experience
    batches: list[Batch]
    tokens: ActionTokens
    old_known: bool = False
    corrected: Corrected | None = None
    first: list[Pass] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def microbatches(self) -> list[Microbatch]:
        return [microbatch for batch in self.batches for microbatch in batch.microbatches]

    def flat(self, passes: Sequence[Any], of: Callable[[Any], torch.Tensor | None]) -> torch.Tensor:
        """[A] of what passes over all microbatches found, in the tokens' order."""
        found = torch.zeros(len(self.tokens.engine_logprobs))
        for microbatch, each in zip(self.microbatches, passes, strict=True):
            values = of(each)
            assert values is not None
            found[microbatch.action_place] = values.to(found.dtype)
        return found

    def replay(self, passes: Sequence[Pass]) -> None:
        """Later passes take the routes that `passes` over all microbatches took."""
        left = iter(passes)
        self.batches = [
            dataclasses.replace(batch, microbatches=[_replaying(m, next(left)) for m in batch.microbatches])
            for batch in self.batches
        ]

    def trust_routes(self) -> None:
        """Later passes keep the engine's routes, which were checked once: weights that moved no longer choose them."""
        self.batches = [
            dataclasses.replace(
                batch, microbatches=[dataclasses.replace(m, own_routes=True) for m in batch.microbatches]
            )
            for batch in self.batches
        ]


def _replaying(microbatch: Microbatch, found: Pass) -> Microbatch:
    if found.routes is None:
        return microbatch
    return dataclasses.replace(microbatch, routed_experts=found.routes, own_routes=True)
