"""Correction: weights, rejection, veto and mask of one run, composed, and what may not be combined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from lockstep.algorithm.correction.divergence import DivergenceMask
from lockstep.algorithm.correction.rejection import Rejection, Veto, free_of
from lockstep.algorithm.correction.weights import Corrected, ImportanceWeights, normalized
from lockstep.algorithm.tokens import ActionTokens

Anchor = Literal["decoupled", "bypass"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What is done about an engine that samples with other probabilities (mu) than the trainer differentiates (pi).

    decoupled: three policies (arXiv:2110.00641). Ratios are pi / pi_old and carry the clip; weights and rejection see
    d = log pi_old - log mu. bypass: two. The engine's log-probs are the old ones; a ratio pi / mu in the loss is the
    correction, and rejection (with a loss without ratio: weights too) sees the current policy, d = log pi - log mu.
    The order is verl's `rollout_correction`: weights and rejection see the same d, neither sees the other's result.

    A sequence with a log-prob that is not finite is dropped whole by every correction, so that it spoils no other; that
    it happened is an error of the engine, for the caller to find and to raise.
    """

    weights: ImportanceWeights | None = field(default_factory=ImportanceWeights)
    """What kept tokens count. None: all the same; what is sampled too often is then learned too much."""

    rejection: Rejection | None = None
    """Drops tokens or sequences by a divergence statistic. None: none."""

    veto: Veto | None = None
    """Drops sequences with a catastrophic token. None: none."""

    divergence_mask: DivergenceMask | None = None
    """Masks bad sequences that the current policy has left behind, at every update anew. None: none."""

    anchor: Anchor = "decoupled"
    """decoupled: old log-probs are computed by the trainer, a forward pass more unless a step has one update. bypass:
    they are the engine's; cheaper, but mismatch and updates share one clip."""

    rejected_in_denominator: bool = True
    """True: dropped tokens count in the loss's denominator, so that a step with many of them is smaller (verl). False:
    the kept tokens share the whole step; it needs all tokens first. What `divergence_mask` masks always counts."""

    def __post_init__(self) -> None:
        if self.anchor not in get_args(Anchor):
            raise ValueError(f"anchor={self.anchor!r}: must be one of {', '.join(get_args(Anchor))}")
        if not self.rejected_in_denominator and not self.can_drop:
            raise ValueError("rejected_in_denominator=False: nothing is rejected; set rejection or veto, or True")

    @property
    def can_drop(self) -> bool:
        """Whether an option drops tokens; without one, only broken sequences are."""
        dropping = self.weights is not None and self.weights.outside == "drop"
        return dropping or self.rejection is not None or self.veto is not None

    @property
    def needs_batch(self) -> bool:
        """Whether it must see the whole step's tokens, of all ranks, before the first gradient."""
        return not self.rejected_in_denominator or (self.weights is not None and self.weights.normalize)

    def check(self, loss_uses_ratio: bool) -> None:
        """Raise ValueError where it does not go with a loss that takes ratios to old log-probs, or that takes none."""
        if self.anchor != "bypass":
            return
        if loss_uses_ratio and self.weights is not None:
            raise ValueError(
                "anchor='bypass': the loss's ratio is the weight already; set weights=None (preset bypass) or "
                "decouple (preset token-tis)"
            )
        if not loss_uses_ratio and self.weights is None and not self.can_drop:
            raise ValueError("anchor='bypass' with a loss without ratio corrects nothing: set weights, or decouple")

    def __call__(
        self,
        trainer_logprobs: torch.Tensor,
        engine_logprobs: torch.Tensor,
        sequence: torch.Tensor,
        num_sequences: int,
    ) -> Corrected:
        """trainer_logprobs [A]: decoupled: the old ones; bypass: the current ones. engine_logprobs [A].

        sequence int64 [A]: each token's, in 0..num_sequences-1; sequences are whole, some may be absent. Where
        `needs_batch`, the tokens are those of the whole step. Computed in float64; weights in trainer_logprobs' dtype.
        """
        difference = trainer_logprobs.detach().double() - engine_logprobs.detach().double()
        finite = difference.isfinite()
        difference = difference.where(finite, 0)
        kept = free_of(~finite, sequence, num_sequences)
        weights = torch.ones_like(difference)
        if self.weights is not None:
            weighed = self.weights(difference, sequence, num_sequences)
            weights, kept = weighed.weights, kept & weighed.kept
        for rejects in (self.rejection, self.veto):
            if rejects is not None:
                kept = kept & rejects(difference, sequence, num_sequences)
        corrected = Corrected(weights=weights.where(kept, 0), kept=kept)
        if self.weights is not None and self.weights.normalize:
            corrected = normalized(corrected)
        return Corrected(weights=corrected.weights.to(trainer_logprobs.dtype), kept=kept)

    def keeps(self, current_logprobs: torch.Tensor, tokens: ActionTokens) -> torch.Tensor:
        """bool [A]: the tokens that `divergence_mask` keeps, given the current log-probs [A]; all without one."""
        if self.divergence_mask is None:
            return torch.ones_like(tokens.sequence, dtype=torch.bool)
        return self.divergence_mask(current_logprobs, tokens)
