"""What a trajectory pays for running into its limit of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongPenalty:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13), added to a trajectory's reward before the advantages.

        0                                                   length <= max_tokens - buffer_tokens
        -penalty * (length - (max_tokens - buffer_tokens)) / buffer_tokens      between
        -penalty                                            length >= max_tokens

    A length is the number of sampled tokens, over all turns; verl's counts tools' tokens in multi-turn runs too, and
    goes on falling beyond max_tokens. DAPO has max_tokens = 20480 and buffer_tokens = 4096, with rewards of 1 and -1.
    """

    max_tokens: int
    """The sampled tokens at which the whole penalty is due. Set it to the rollout's own limit: above that, it is never
    paid in full."""
    buffer_tokens: int
    """The last so many tokens before max_tokens cost in proportion; longer warns earlier."""
    penalty: float = 1.0
    """What the longest trajectories pay, in units of the reward. Larger than what a success brings, it teaches brevity
    first."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: must be >= 1, the rollout's limit")
        if not 1 <= self.buffer_tokens <= self.max_tokens:
            raise ValueError(
                f"buffer_tokens={self.buffer_tokens}: must be in [1, max_tokens={self.max_tokens}]; a fifth is usual"
            )
        if not 0 < self.penalty < float("inf"):
            raise ValueError(f"penalty={self.penalty}: must be > 0 and finite; 1 is usual")

    def __call__(self, lengths: torch.Tensor) -> torch.Tensor:
        """float64 [N]: what to add to the rewards, from the trajectories' int64 [N] numbers of sampled tokens."""
        left = self.max_tokens - self.buffer_tokens - lengths  # before the buffer begins
        return self.penalty * (left.double() / self.buffer_tokens).clamp(-1, 0)
