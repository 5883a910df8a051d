"""The critic: values of the states before action tokens, for GAE. On a trunk of its own, or on the policy's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from lockstep.algorithm.value_loss import ValueLoss
from lockstep.model.forward import checkpoint_layers
from lockstep.model.precision import Precision
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.packed import action_hidden
from lockstep.trainer.updater import Updater
from lockstep.trainer.value_head import ValueHead
from lockstep.types import Microbatch


@dataclass(frozen=True, kw_only=True)
class OwnCritic:
    """A critic that is a second model: it begins as a copy of the policy, and its memory and time are a second
    policy's."""

    loss: ValueLoss = field(default_factory=ValueLoss)
    """What the values are trained with."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=2e-6))
    """The critic's own optimiser; usually a few times the policy's learning rate."""
    warmup_steps: int = 0
    """First steps in which only the critic is trained, so that the policy is not led by values that mean nothing."""


@dataclass(frozen=True, kw_only=True)
class SharedCritic:
    """A value head on the policy's hidden states: nearly free, but the value loss also pulls at the policy's trunk."""

    loss: ValueLoss = field(default_factory=ValueLoss)
    """What the values are trained with; its coefficient weighs it against the policy's loss."""


CriticOptions = OwnCritic | SharedCritic


class Critic:
    """A model of its own with a value head. model: a causal LM as `load_model` gives it, taken over; its output head is
    dropped. Routes are not replayed: the critic's router is its own."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: OwnCritic,
        *,
        precision: Precision,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.model, self.settings, self.precision = model, settings, precision
        self.head = ValueHead(model.config.hidden_size)
        self._checkpointed = checkpoint_layers(model) if gradient_checkpointing else []
        self._decoder = model.get_decoder()
        model.set_output_embeddings(torch.nn.Identity())
        trunk = ((f"trunk.{name}", parameter) for name, parameter in self._decoder.named_parameters())
        head = ((f"value_head.{name}", parameter) for name, parameter in self.head.named_parameters())
        self.updater = Updater([*trunk, *head], settings.optimizer)

    @torch.no_grad()
    def values(self, microbatch: Microbatch) -> torch.Tensor:
        """[A], float32: of the states before the microbatch's action tokens."""
        return self._values(microbatch)

    def forward_backward(self, microbatch: Microbatch, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Add the gradient of loss(values [A]); returns the values."""
        values = self._values(microbatch)
        loss(values).backward()
        return values.detach()

    def _values(self, microbatch: Microbatch) -> torch.Tensor:
        return self.head(action_hidden(self.model, microbatch, self.precision, self._checkpointed))

    def state_dict(self) -> dict[str, Any]:
        """The whole critic: weights and optimiser."""
        return {
            "trunk": self._decoder.state_dict(),
            "head": self.head.state_dict(),
            "updater": self.updater.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._decoder.load_state_dict(state["trunk"])
        self.head.load_state_dict(state["head"])
        self.updater.load_state_dict(state["updater"])
