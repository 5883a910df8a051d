"""Keeping entropy up by finding the few tokens that take it away: Clip-Cov and KL-Cov (arXiv:2505.22617).

A policy-gradient step changes the entropy by about minus the covariance of log-prob and advantage: making likely
tokens that did well likelier still is what uses entropy up, and few tokens do most of it. In: a step's tokens, all of
them. Out: which of them [A] to hold back.

Selection is over the whole step with the old log-probs, once: the same tokens however the step is cut into
microbatches, in all of its updates. verl and the paper's code select in each microbatch anew, at least one token each:
with fraction=2e-4 every microbatch below 10000 tokens gives exactly one, which is a larger fraction than was asked
for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lockstep.algorithm.tokens import ActionTokens


def token_covariance(logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """float64 [A]: (logprobs - mean(logprobs)) * (advantages - mean(advantages)), whose mean is their covariance
    (arXiv:2505.22617). Constants; both [A], of a whole step."""
    x, y = logprobs.detach().double(), advantages.detach().double()
    return (x - x.mean()) * (y - y.mean())


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be in (0, 1]; 2e-4 is usual, 2e-3 for small models")


def _number(fraction: float, num_tokens: int) -> int:
    """How many tokens a fraction is: rounded down, but one at least (the paper's code)."""
    return max(1, int(fraction * num_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCov:
    """Clip-Cov (arXiv:2505.22617): a few tokens of high covariance, drawn by chance, get no gradient.

    Candidates are the tokens with lower < covariance < upper; max(1, floor(fraction * A)) of them are drawn, all when
    there are fewer, none when there is none. Their losses become 0, their place in the denominators stays. The paper's
    code and verl draw anew in each update and leave out what PPO clips in it; here tokens are drawn once, before the
    first.
    """

    fraction: float = 2e-4
    """Of the step's tokens, how many lose their gradient. More keeps more entropy and learns slower; the effect is
    strong."""
    lower: float = 1.0
    """Only tokens above this covariance, in nats times the advantages' unit: fit it to advantages that are normalised
    otherwise."""
    upper: float = 5.0
    """Only tokens below this covariance."""

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        if not self.lower < self.upper:
            raise ValueError(f"lower={self.lower}: must be below upper={self.upper}; 1 and 5 are usual")

    def selected(self, tokens: ActionTokens, seed: int) -> torch.Tensor:
        """bool [A]: the tokens of a whole step that lose their gradient; a function of tokens and seed, on any
        device."""
        covariance = token_covariance(tokens.old_logprobs, tokens.advantages)
        candidates = torch.nonzero((covariance > self.lower) & (covariance < self.upper)).flatten()
        generator = torch.Generator().manual_seed(seed)  # the CPU's: other devices draw other numbers
        order = torch.randperm(len(candidates), generator=generator).to(candidates.device)
        drawn = candidates[order[: _number(self.fraction, len(covariance))]]
        return torch.zeros_like(covariance, dtype=torch.bool).index_fill(0, drawn, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class KLCov:
    """KL-Cov (arXiv:2505.22617): the tokens of highest covariance pay for leaving the old policy.

        losses + coefficient * |logprobs - old_logprobs|

    for the max(1, floor(fraction * A)) tokens of highest covariance, whatever its sign.

    The paper writes a KL divergence, its code and verl take the absolute difference of log-probs, as here. Its
    gradient is coefficient * sign(logprobs - old_logprobs), and 0 where they are equal: **in a step's first update it
    does nothing**, so it needs several updates a step. The paper's code joins it to an unclipped ratio; it works
    beside any loss. The paper takes 2e-3 of the tokens for 7B and 2e-4 for 32B, coefficient 1 (peers that take
    percents write 0.2 for 2e-3).
    """

    fraction: float = 2e-4
    """Of the step's tokens, how many pay. More keeps more entropy and learns slower; 2e-3 for small models."""
    coefficient: float = 1.0
    """Price of a nat between the new and the old log-prob; above |ratio * advantage| it pulls a selected token all the
    way back."""

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        if not 0 < self.coefficient < float("inf"):
            raise ValueError(f"coefficient={self.coefficient}: must be > 0 and finite; 1 is usual")

    def selected(self, tokens: ActionTokens) -> torch.Tensor:
        """bool [A]: the tokens of a whole step that pay; of equal covariances the earlier tokens."""
        covariance = token_covariance(tokens.old_logprobs, tokens.advantages)
        order = torch.sort(covariance, descending=True, stable=True).indices
        drawn = order[: _number(self.fraction, len(covariance))]
        return torch.zeros_like(covariance, dtype=torch.bool).index_fill(0, drawn, True)

    def penalty(self, logprobs: torch.Tensor, old_logprobs: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
        """[A], to be added to the tokens' losses before those are weighted: 0 for all but the selected bool [A].
        logprobs [A] carry gradient, old_logprobs [A] are constants."""
        d = torch.where(selected, logprobs - old_logprobs, 0)
        return self.coefficient * d.abs()
