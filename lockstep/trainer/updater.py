"""From gradients to new weights: clip, AdamW, float32 masters, and the checks that come before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lockstep.trainer.master import MasterWeights
from lockstep.trainer.optimizer import Optimizer
from lockstep.types import InvariantError


class Updater:
    """Updates the trainable ones of `named` parameters with their accumulated gradients. `close` it before another
    updater takes them."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], settings: Optimizer) -> None:
        self.settings = settings
        self.masters = MasterWeights(named)
        self.optimizer = settings.build(self.masters.parameters)
        self.sinks = {name: p for name, p in self.masters.parameters.items() if name.endswith(".sinks")}

    def close(self) -> None:
        """Give the parameters back: gradients stay with them again."""
        self.masters.close()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside the parameters."""
        return {"optimizer": self.optimizer.state_dict(), "masters": self.masters.copies()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.masters.restore(state["masters"])

    def _is_attended(self, sink: str) -> bool:
        """Whether a gradient came through the attention of this sink, as far as its other parameters tell. None does
        in a critic's first step, whose value head is still 0."""
        attention = sink.removesuffix("sinks")
        model = {n: p for n, p in self.masters.parameters.items() if n != sink and not n.startswith("value_head.")}
        beside = [parameter for name, parameter in model.items() if name.startswith(attention)]
        return any(map(_has_gradient, beside or model.values()))

    def discard(self) -> None:
        """Forget the accumulated gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping.

        Raises InvariantError for a gradient that is not finite, and for an attention sink without one.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.masters.parameters.values(), self.settings.gradient_clip).item()
        if not norm < float("inf"):
            raise InvariantError(
                f"gradient norm is {norm}: nothing was updated; lower optimizer.learning_rate or look at the loss"
            )
        for name, sink in self.sinks.items():
            if norm > 0 and not _has_gradient(sink) and self._is_attended(name):
                raise InvariantError(f"{name} has no gradient: an attention kernel without a sink backward is in use")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.discard()
        self.masters.publish()
        return norm


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())
