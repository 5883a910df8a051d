"""The Engine protocol: tokens in, tokens and their log-probs out. All that rollout knows of inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np


class EngineError(RuntimeError):
    """The engine failed at its own work (died, refused, timed out): infrastructure, never a reward."""


class PromptTooLongError(ValueError):
    """The prompt leaves no room for a single sampled token. Names the lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample one action. There is no top_p or top_k: they change the distribution that log-probs describe.

    temperature: 0 is greedy. max_tokens: at most this many sampled tokens. stop_token_ids: sampling one of them ends
    the action, and it is part of the action. seed: the action is a function of (weights, prompt, seed), not of the
    batch it was sampled in (up to floating-point differences between batch shapes).
    """

    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled action.

    logprobs: log-prob of each token under the distribution it was sampled from (after temperature; at temperature 0 the
    log-prob at temperature 1). stop_reason: 'stop' ended with a stop token, 'length' met max_tokens.
    routed_experts: uint8 [len(prompt) + len(tokens) - 1, layers, top_k] where the engine records routes: of every token
    that was fed, in order; the last sampled one never was.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    weights_version: int
    stop_reason: Literal["stop", "length"]
    routed_experts: np.ndarray | None = None


class Engine(Protocol):
    """What every engine does. Safe to call concurrently; concurrency is how it gets its batch."""

    @property
    def weights_version(self) -> int: ...

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one action after `prompt`. Raises EngineError when the engine, not the request, is at fault."""
        ...

    async def update_weights(self, version: int) -> None:
        """Serve the trainer's present weights as `version`. Every cache computed with older weights is dropped."""
        ...

    async def close(self) -> None: ...
