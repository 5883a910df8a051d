"""Float32 master weights for a model in bfloat16: the optimiser works on them, the model gets them rounded.

A step of 1e-6 times a weight is below bfloat16's 3 digits and would be lost; gradients of many microbatches would lose
their sum's lower digits likewise. Gradients therefore move to the masters, in float32, as soon as the backward has
them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lockstep.types import InvariantError


class MasterWeights:
    """The trainable ones of some named parameters, each in float32: itself where it is float32 already, otherwise a
    copy."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self._rounded: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._hooks = []
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            master = parameter
            if parameter.dtype in (torch.bfloat16, torch.float16):
                master = nn.Parameter(parameter.detach().float())
                self._rounded.append((parameter, master))
                self._hooks.append(parameter.register_post_accumulate_grad_hook(_mover(master)))
            self.parameters[name] = master

    def copies(self) -> list[torch.Tensor]:
        """The float32 copies, in order; what a checkpoint keeps beside the rounded weights."""
        return [master.detach() for _, master in self._rounded]

    def restore(self, copies: Iterable[torch.Tensor]) -> None:
        for (_, master), saved in zip(self._rounded, copies, strict=True):
            master.data.copy_(saved)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for parameter, master in self._rounded:
            parameter.copy_(master)

    def close(self) -> None:
        """Leave the model's gradients to it."""
        for hook in self._hooks:
            hook.remove()


def _mover(master: nn.Parameter):
    def move(parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            raise InvariantError("a gradient went to another trainer's master weights: close that trainer first")
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)

    return move
