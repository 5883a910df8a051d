"""AdamW and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (arXiv:1711.05101) with warm-up, a plateau, and a linear decay."""

    learning_rate: float = 1e-6
    """The plateau's learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.98
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, for matrices only, not for biases."""
    gradient_clip: float = 1.0
    """The gradient's norm is scaled down to this when it is larger."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay_share: float = 0.0
    """The last share of all steps over which it falls linearly; 0 never decays."""
    final_share: float = 0.0
    """What the decay heads for, as a share of learning_rate: the value one step after the last."""

    def __post_init__(self) -> None:
        for option, value in {"beta1": self.beta1, "beta2": self.beta2}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{option}={value}: must be in [0, 1); 0.9 and 0.98 are usual")
        for option, value in {"decay_share": self.decay_share, "final_share": self.final_share}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{option}={value}: must be in [0, 1]")
        if not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip={self.gradient_clip}: must be above 0; 1 is usual")
        for option, value in {"weight_decay": self.weight_decay, "warmup_steps": self.warmup_steps}.items():
            if not value >= 0:
                raise ValueError(f"{option}={value}: must be 0 or more")

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """For step 0..num_steps-1."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_steps = self.decay_share * num_steps
        left = min(1.0, (num_steps - step) / decay_steps) if decay_steps else 1.0
        return self.learning_rate * warm * (self.final_share + (1 - self.final_share) * left)

    def build(self, parameters: Mapping[str, torch.nn.Parameter]) -> torch.optim.AdamW:
        decayed = {name for name, p in parameters.items() if p.ndim >= 2 and not name.endswith("bias")}  # of experts
        groups = [
            {"params": [p for name, p in parameters.items() if name in decayed], "weight_decay": self.weight_decay},
            {"params": [p for name, p in parameters.items() if name not in decayed], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), fused=True)
