"""The precision a run computes in: three switches, each named for what it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lockstep.types import UserError


class PrecisionError(UserError):
    """Switches that contradict each other, or that have no effect together. One line, with the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What the trainer and the embedded engine compute in; both always use the same."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations. 'bfloat16' halves the model's memory; the optimiser then keeps float32 master
    weights, and gradients are summed in float32."""
    fp32_head: bool = True
    """Logits, log-probs and entropies in float32 whatever the dtype; False computes the logits in bfloat16, as some
    engines do, and log-probs are then good to two digits only."""
    deterministic: bool = False
    """A token's log-prob is one and the same bits packed, alone, or sampled by the embedded engine, so that the
    mismatch KL is exactly 0. One thread, several times slower; the CPU only."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise PrecisionError(f"precision.dtype={self.dtype!r}: must be float32 or bfloat16")
        if self.dtype == "float32" and not self.fp32_head:
            raise PrecisionError(
                "precision.fp32_head=False: has no effect with dtype float32; set precision.dtype=bfloat16"
            )

    def check(self, dtype: torch.dtype) -> None:
        """Raise PrecisionError unless a model of this dtype computes in this precision."""
        if dtype in (torch.float32, torch.bfloat16) and dtype != self.torch_dtype:
            raise PrecisionError(f"precision.dtype={self.dtype}: the model is in {dtype}; load it in that dtype")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)
