"""The trainer: log-probs, gradients and optimiser steps of one model in one process. It never sees a message."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from lockstep.model.forward import checkpoint_layers, square_norms, token_logprobs
from lockstep.model.precision import Precision
from lockstep.model.routing import agreement, check_alignment, check_routes, has_mixtures, routers, routing
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.packed import action_hidden
from lockstep.trainer.updater import Updater
from lockstep.trainer.value_head import ValueHead
from lockstep.types import Microbatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a loss is made of, all [A] with gradient: log-probs and entropies of action tokens, and the value head's
    values of the states before them, None without one."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    values: torch.Tensor | None = None


Loss = Callable[[Outputs, Microbatch], torch.Tensor]
"""(outputs, microbatch) -> this microbatch's scalar share of the step's loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass over a microbatch found. logprobs, entropies [A]; values [A] with a value head; square_norms [A]
    where asked for; routes uint8 [T, layers, top_k], the experts every token went to, and route_agreement, the share of
    replayed choices that the router made too; both None without experts or when they are not recorded, the second also
    without a replay. loss: None for a pass without one."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    values: torch.Tensor | None = None
    square_norms: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    routes: torch.Tensor | None = None
    route_agreement: float | None = None


class Trainer:
    """model: a causal LM as `load_model` gives it, with Lockstep's attention and experts. optimizer: None for a model
    that is only read, as the reference is. temperature: the one the engine samples at; log-probs are taken at it.
    replay_routes: record every pass's routes, and replay those that a microbatch has. gradient_checkpointing: keep one
    activation a layer for the backward and compute the rest again. value_head: also judge states, on the same hidden
    states.

    A step is `forward_backward` once for each microbatch, then one `optim_step`. `close` it before another trainer
    takes the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: Optimizer | None,
        *,
        temperature: float = 1.0,
        precision: Precision | None = None,
        replay_routes: bool = True,
        gradient_checkpointing: bool = False,
        value_head: ValueHead | None = None,
    ) -> None:
        self.model, self.temperature, self.value_head = model, temperature, value_head
        self.precision = precision or Precision()
        _check_implementations(model)
        self.precision.check(model.dtype)
        self.routers = routers(model) if replay_routes else []
        head = [] if value_head is None else [(f"value_head.{name}", p) for name, p in value_head.named_parameters()]
        self._updater = None if optimizer is None else Updater([*model.named_parameters(), *head], optimizer)
        self._checkpointed = checkpoint_layers(model) if gradient_checkpointing else []

    @property
    def updater(self) -> Updater:
        """Raises ValueError for a trainer that only reads."""
        if self._updater is None:
            raise ValueError("this trainer has no optimizer: it only reads its model; give it one")
        return self._updater

    def close(self) -> None:
        """Give the model back: gradients stay with its own parameters again."""
        if self._updater is not None:
            self._updater.close()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside the model's weights."""
        head = {} if self.value_head is None else {"value_head": self.value_head.state_dict()}
        return self.updater.state_dict() | head

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.value_head is not None:
            self.value_head.load_state_dict(state["value_head"])
        self.updater.load_state_dict(state)

    @torch.no_grad()
    def logprobs(self, microbatch: Microbatch, *, with_square_norms: bool = False) -> Pass:
        """The microbatch's action tokens under the present weights, bit for bit as `forward_backward` sees them."""
        return self._pass(microbatch, None, with_square_norms)

    def forward_backward(self, microbatch: Microbatch, loss: Loss) -> Pass:
        """Add the microbatch's gradient."""
        return self._pass(microbatch, loss)

    def _pass(self, microbatch: Microbatch, loss: Loss | None, with_square_norms: bool = False) -> Pass:
        replay = microbatch.routed_experts if self.routers else None
        if replay is not None:
            check_routes(replay, len(microbatch.tokens), self.routers)
        with routing(len(self.routers), replay) if self.routers else nullcontext() as routes:
            hidden = action_hidden(self.model, microbatch, self.precision, self._checkpointed)
        agreed = None
        if replay is not None and routes is not None:
            if not microbatch.own_routes:  # our own cannot be misaligned, and may be those of other weights
                check_alignment(replay, routes.live, self.routers[0].num_experts)
            agreed = agreement(replay, routes.live)
        outputs = self._outputs(hidden, microbatch)
        value = None
        if loss is not None:
            value = loss(outputs, microbatch)
            value.backward()
        return Pass(
            logprobs=outputs.logprobs.detach(),
            entropies=outputs.entropies.detach(),
            values=None if outputs.values is None else outputs.values.detach(),
            square_norms=square_norms(self.model, hidden, outputs.logprobs, self.temperature, self.precision)
            if with_square_norms
            else None,
            loss=None if value is None else value.detach(),
            routes=None if routes is None else routes.used,
            route_agreement=agreed,
        )

    def _outputs(self, hidden: torch.Tensor, microbatch: Microbatch) -> Outputs:
        targets = microbatch.tokens[microbatch.action_index]
        logprobs, entropies = token_logprobs(self.model, hidden, targets, self.temperature, self.precision)
        values = None if self.value_head is None else self.value_head(hidden)
        return Outputs(logprobs=logprobs, entropies=entropies, values=values)

    def optim_step(self, learning_rate: float) -> float:
        """See `Updater.step`."""
        return self.updater.step(learning_rate)


def _check_implementations(model: PreTrainedModel) -> None:
    """Other implementations lose the sinks' gradient, leak across a pack, or run every expert on every token."""
    attention = model.config._attn_implementation
    experts = getattr(model.config, "_experts_implementation", None)
    if attention != "lockstep" or (has_mixtures(model) and experts != "lockstep"):
        raise ValueError(
            f"attn_implementation={attention!r}, experts_implementation={experts!r}: a model is trained with "
            "'lockstep' for both; load it with lockstep.model.loading.load_model"
        )
