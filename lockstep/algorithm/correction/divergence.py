"""Off-policy sequence masking: bad attempts that the current policy would hardly make are not worth unlearning."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lockstep.algorithm.correction.rejection import free_of
from lockstep.algorithm.tokens import ActionTokens, mean_by


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceMask:
    """DeepSeek-V3.2 (arXiv:2512.02556, section 3.1, off-policy sequence masking).

    M_t = 0 where A_t < 0 and mean over the token's sequence of log(mu / pi_current) > threshold, else 1.

    mu is the engine's, as in the paper and TRL (`off_policy_mask_threshold`); slime (`--use-opsm`) takes the trainer's
    old probabilities, and so sees updates but no mismatch. The advantage is the token's own, as in all three: with one
    advantage a trajectory, sequences go whole; with a critic, a diverged sequence keeps its good tokens.
    """

    threshold: float = 0.5
    """Mean nats a token by which the engine's log-prob may exceed the current policy's, > 0. Lower: more bad attempts
    are ignored. The paper names none; TRL suggests 0.5, slime 1e-4, which is below the noise between two engines."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < float("inf"):
            raise ValueError(f"threshold={self.threshold}: must be finite and > 0, in nats a token; 0.5 is usual")

    def __call__(self, current_logprobs: torch.Tensor, tokens: ActionTokens) -> torch.Tensor:
        """bool [A]: the tokens kept. current_logprobs [A]; a sequence with one that is not finite is masked whole."""
        sequence, size = tokens.sequence, tokens.num_sequences
        lost = tokens.engine_logprobs.double() - current_logprobs.detach().double()
        near = mean_by(lost, sequence, size)[sequence] <= self.threshold
        return (near | (tokens.advantages >= 0)) & free_of(~lost.isfinite(), sequence, size)
