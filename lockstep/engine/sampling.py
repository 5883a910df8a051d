"""Drawing tokens from logits, by numbers that are a function of a request's seed and of the token's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from lockstep.engine.engine import Sampling


class Drawing(Protocol):
    """An action in the making: how it is sampled, and the tokens drawn so far."""

    @property
    def sampling(self) -> Sampling: ...

    @property
    def tokens(self) -> Sequence[int]: ...


def sample_tokens(logits: torch.Tensor, requests: Sequence[Drawing]) -> tuple[list[int], list[float]]:
    """One token and its log-prob for each row of float32 logits [B, V], by inverting the cumulative distribution.
    Overwrites the logits.

    The uniform number of a draw is a hash of the request's seed and the place of the token in its action, so an action
    does not depend on what else was in the batch.
    """
    temperatures = torch.tensor([request.sampling.temperature for request in requests])
    greedy = temperatures == 0
    logits /= torch.where(greedy, 1.0, temperatures)[:, None]
    logprobs = torch.log_softmax(logits, dim=-1)
    cumulative = logprobs.double().exp_().cumsum_(-1)
    seeds = np.array([request.sampling.seed for request in requests], dtype=np.uint64)
    draws = torch.from_numpy(uniform(seeds, np.array([len(request.tokens) for request in requests], dtype=np.uint64)))
    tokens = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True).squeeze(1)
    tokens = torch.where(greedy, logits.argmax(-1), tokens.clamp_(max=logits.shape[1] - 1))
    return tokens.tolist(), logprobs.gather(1, tokens[:, None]).squeeze(1).tolist()


def uniform(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) for each (uint64 seed, uint64 counter): the SplitMix64 generator's output function."""
    with np.errstate(over="ignore"):
        z = seeds + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
