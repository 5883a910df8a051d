"""The trainer: log-probs, gradients and optimiser steps of one model in one process. It never sees a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from lockstep.model.forward import checkpoint_layers, decoder_hidden, token_logprobs
from lockstep.model.precision import Precision
from lockstep.model.routing import agreement, check_alignment, check_routes, has_mixtures, routers, routing
from lockstep.trainer.master import MasterWeights
from lockstep.trainer.optimizer import Optimizer
from lockstep.types import InvariantError, Microbatch

Loss = Callable[[torch.Tensor, Microbatch], torch.Tensor]
"""(logprobs [A] with gradient, microbatch) -> this microbatch's scalar share of the step's loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass over a microbatch found. logprobs, entropies [A]; routes uint8 [T, layers, top_k], the experts
    every token went to, and route_agreement, the share of replayed choices that the router made too; both None without
    experts or when they are not recorded, the second also without a replay. loss: None for a pass without one."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    loss: torch.Tensor | None = None
    routes: torch.Tensor | None = None
    route_agreement: float | None = None


class Trainer:
    """model: a causal LM as `load_model` gives it, with Lockstep's attention and experts. temperature: the one the
    engine samples at; log-probs are taken at it. replay_routes: record every pass's routes, and replay those that a
    microbatch has. gradient_checkpointing: keep one activation a layer for the backward and compute the rest again.

    A step is `forward_backward` once for each microbatch, then one `optim_step`. `close` it before another trainer
    takes the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: Optimizer,
        *,
        temperature: float = 1.0,
        precision: Precision | None = None,
        replay_routes: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.model, self.settings, self.temperature = model, optimizer, temperature
        self.precision = precision or Precision()
        _check_implementations(model)
        self.precision.check(model.dtype)
        self.routers = routers(model) if replay_routes else []
        self.masters = MasterWeights(model)
        self.optimizer = optimizer.build(self.masters.parameters)
        self.sinks = {name: p for name, p in self.masters.parameters.items() if name.endswith(".sinks")}
        self._checkpointed = checkpoint_layers(model) if gradient_checkpointing else []

    def close(self) -> None:
        """Give the model back: gradients stay with its own parameters again."""
        self.masters.close()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside the model's weights."""
        return {"optimizer": self.optimizer.state_dict(), "masters": self.masters.copies()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.masters.restore(state["masters"])

    @torch.no_grad()
    def logprobs(self, microbatch: Microbatch) -> Pass:
        """The microbatch's action tokens under the present weights, bit for bit as `forward_backward` sees them."""
        return self._pass(microbatch, None)

    def forward_backward(self, microbatch: Microbatch, loss: Loss) -> Pass:
        """Add the microbatch's gradient."""
        return self._pass(microbatch, loss)

    def _pass(self, microbatch: Microbatch, loss: Loss | None) -> Pass:
        replay = microbatch.routed_experts if self.routers else None
        if replay is not None:
            check_routes(replay, len(microbatch.tokens), self.routers)
        with routing(len(self.routers), replay) if self.routers else nullcontext() as routes:
            logprobs, entropies = self._forward(microbatch)
        agreed = None
        if replay is not None and routes is not None:
            if microbatch.old_logprobs is None:  # else the routes are our own, of weights before an update
                check_alignment(replay, routes.live, self.routers[0].num_experts)
            agreed = agreement(replay, routes.live)
        value = None
        if loss is not None:
            value = loss(logprobs, microbatch)
            value.backward()
        return Pass(
            logprobs=logprobs.detach(),
            entropies=entropies.detach(),
            loss=None if value is None else value.detach(),
            routes=None if routes is None else routes.used,
            route_agreement=agreed,
        )

    def _forward(self, microbatch: Microbatch) -> tuple[torch.Tensor, torch.Tensor]:
        with self._checkpointing():
            hidden = decoder_hidden(
                self.model,
                microbatch.tokens[None],
                microbatch.positions[None],
                self.precision,
                cu_seq_lens_q=microbatch.cu_seqlens,
                cu_seq_lens_k=microbatch.cu_seqlens,
            )[0]
        before = hidden[microbatch.action_index - 1]  # the position that predicts the token
        targets = microbatch.tokens[microbatch.action_index]
        return token_logprobs(self.model, before, targets, self.temperature, self.precision)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """transformers checkpoints layers in training mode only; their submodules stay in evaluation mode."""
        for layer in self._checkpointed:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    def optim_step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping.

        Raises InvariantError for a gradient that is not finite, and for an attention sink without one.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.masters.parameters.values(), self.settings.gradient_clip).item()
        if not norm < float("inf"):
            raise InvariantError(
                f"gradient norm is {norm}: nothing was updated; lower optimizer.learning_rate or look at the loss"
            )
        for name, sink in self.sinks.items():
            if norm > 0 and (sink.grad is None or not sink.grad.any()):
                raise InvariantError(f"{name} has no gradient: an attention kernel without a sink backward is in use")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        return norm


def _check_implementations(model: PreTrainedModel) -> None:
    """Other implementations lose the sinks' gradient, leak across a pack, or run every expert on every token."""
    attention = model.config._attn_implementation
    experts = getattr(model.config, "_experts_implementation", None)
    if attention != "lockstep" or (has_mixtures(model) and experts != "lockstep"):
        raise ValueError(
            f"attn_implementation={attention!r}, experts_implementation={experts!r}: a model is trained with "
            "'lockstep' for both; load it with lockstep.model.loading.load_model"
        )
