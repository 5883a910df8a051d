"""The scripted engine, for tests of all that stands above an engine: it says what it was told to say, in order.

In: prompts, which it records. Out: the script's actions, whose log-probs are a function of token and place alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from lockstep.engine.engine import Completion, Sampling


class ScriptedEngine:
    """script: for each `generate`, in the order of the calls, the tokens of the action, or an exception to raise.

    An action longer than `max_tokens` is cut there and ends with stop reason 'length'; any other ends with 'stop'.
    `prompts` and `samplings` are what it was called with. A used-up script raises AssertionError.
    """

    def __init__(self, script: Iterable[Sequence[int] | Exception], *, weights_version: int = 0) -> None:
        self._script = iter(script)
        self._version = weights_version
        self.prompts: list[tuple[int, ...]] = []
        self.samplings: list[Sampling] = []

    @property
    def weights_version(self) -> int:
        return self._version

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        self.prompts.append(tuple(prompt))
        self.samplings.append(sampling)
        answer = next(self._script, None)
        if answer is None:
            raise AssertionError(
                f"the script ended before generate call {len(self.prompts)}, whose prompt is {list(prompt)}"
            )
        await asyncio.sleep(0)  # an engine lets others run
        if isinstance(answer, Exception):
            raise answer
        tokens = tuple(answer[: sampling.max_tokens])
        return Completion(
            tokens=tokens,
            logprobs=tuple(scripted_logprob(token, place) for place, token in enumerate(tokens)),
            weights_version=self._version,
            stop_reason="stop" if len(tokens) == len(answer) else "length",
        )

    async def update_weights(self, version: int) -> None:
        self._version = version

    async def close(self) -> None:
        return None


def scripted_logprob(token: int, place: int) -> float:
    """The log-prob of a token at a place of its action; exact in float32."""
    return -(1 + token % 8) / 8 - place / 1024
