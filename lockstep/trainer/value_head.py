"""The value head: what a critic makes of a hidden state."""

from __future__ import annotations

import torch
from torch import nn


class ValueHead(nn.Module):
    """One linear unit in float32. It begins at 0, so that untrained values are a baseline of 0 and not noise."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [A, H] of any float dtype to values [A], float32."""
        return nn.functional.linear(hidden.float(), self.weight, self.bias)[:, 0]
