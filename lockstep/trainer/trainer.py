"""The trainer: log-probs, gradients and optimiser steps of one model in one process. It never sees a message."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from lockstep.model.logprobs import selected_logprobs
from lockstep.trainer.optimizer import Optimizer
from lockstep.types import InvariantError, Microbatch

Loss = Callable[[torch.Tensor, Microbatch], torch.Tensor]
"""(logprobs [A] with gradient, microbatch) -> this microbatch's scalar share of the step's loss."""


class Trainer:
    """model: a causal LM with Lockstep's attention. temperature: the one the engine samples at; log-probs are taken at
    it.

    A step is `forward_backward` once for each microbatch, then one `optim_step`.
    """

    def __init__(self, model: PreTrainedModel, optimizer: Optimizer, *, temperature: float = 1.0) -> None:
        self.model, self.settings, self.temperature = model, optimizer, temperature
        self.optimizer = optimizer.build(model)
        self.sinks = {name: p for name, p in model.named_parameters() if name.endswith(".sinks") and p.requires_grad}

    def logprobs(self, microbatch: Microbatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies [A] of the microbatch's action tokens under the present weights."""
        hidden = self.model.get_decoder()(
            input_ids=microbatch.tokens[None],
            position_ids=microbatch.positions[None],
            cu_seq_lens_q=microbatch.cu_seqlens,
            cu_seq_lens_k=microbatch.cu_seqlens,
            use_cache=False,
        ).last_hidden_state[0]
        before = hidden[microbatch.action_index - 1]  # the position that predicts the token
        head = self.model.get_output_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess]
        return selected_logprobs(before, head, microbatch.tokens[microbatch.action_index], temperature=self.temperature)

    def forward_backward(self, microbatch: Microbatch, loss: Loss) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add the microbatch's gradient. Returns (loss, logprobs [A], entropies [A]), detached."""
        logprobs, entropies = self.logprobs(microbatch)
        value = loss(logprobs, microbatch)
        value.backward()
        return value.detach(), logprobs.detach(), entropies.detach()

    def optim_step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping.

        Raises InvariantError for a gradient that is not finite, and for an attention sink without one.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip).item()
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
        return norm
