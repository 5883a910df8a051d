"""How a critic learns: its loss for each token, and how much of the returns it explains."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """Squared error, of which a value that moves too far in one step gets no more gradient (as in PPO's
    published code, not its paper, arXiv:1707.06347; verl's and TRL's cliprange_value).

        losses = coefficient * max((v - target)^2, (clip(v, old - c, old + c) - target)^2)

    The maximum is pessimistic: a value that has moved by more than c *towards* its target stands still, one that has
    moved away from it is pulled back. In a step's first update v = old, and nothing is clipped. coefficient is the
    only factor: 0.5 is verl's loss; TRL multiplies 0.5 and a vf_coef of 0.1.
    """

    clip: float | None = 0.2
    """How far a value may move in one step, in units of the return; None lets it. Too small for large returns makes the
    critic slow: take None for a new critic."""
    coefficient: float = 0.5
    """Weight in the loss. For a critic with an optimiser of its own, Adam undoes it but for gradient clipping."""

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip}: must be > 0, or None for no clip; 0.2 is usual")
        if not 0 < self.coefficient < float("inf"):
            raise ValueError(f"coefficient={self.coefficient}: must be > 0 and finite; 0.5 is usual")

    def __call__(
        self, values: torch.Tensor, old_values: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """losses [A] with the gradient of values [A], and clipped bool [A], the tokens whose gradient is 0 by the clip.
        old_values [A], before the step's first update, and targets [A] are constants."""
        losses = (values - targets).square()
        if self.clip is None:
            return self.coefficient * losses, torch.zeros_like(losses, dtype=torch.bool)
        near = values.clamp(old_values - self.clip, old_values + self.clip)
        bounded = (near - targets).square()
        clipped = bounded > losses  # at equality the gradient is the plain one, not maximum's half
        return self.coefficient * torch.where(clipped, bounded, losses), clipped


def explained_variance(values: torch.Tensor, targets: torch.Tensor) -> float:
    """1 - Var(targets - values) / Var(targets), over [A]: 1 is a perfect critic, 0 one that knows no more than a
    constant, below 0 a harmful one. A constant error costs nothing. NaN when the targets are all the same, or none."""
    values, targets = values.detach().double(), targets.detach().double()
    if len(targets) == 0 or targets.min() == targets.max():
        return float("nan")
    return 1 - ((targets - values).var(correction=0) / targets.var(correction=0)).item()
