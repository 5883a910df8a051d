"""One trajectory: the turn loop between the engine and an environment, its limits and its stop reasons."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lockstep.engine.engine import Completion, Engine, EngineError, Sampling
from lockstep.rollout.environment import Environment, EnvironmentFault, Start, guarded
from lockstep.rollout.renderer import Renderer
from lockstep.types import Message, StopReason, Task, Trajectory, Turn

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How trajectories are sampled."""

    num_prompts: int = 16
    """Tasks a step."""
    group_size: int = 8
    """Trajectories a task."""
    temperature: float = 1.0
    """Sampling temperature in training; log-probs are taken at the same one."""
    max_turns: int = 8
    """Actions a trajectory may take."""
    max_tokens: int = 1024
    """Tokens a trajectory may have, prompt and answers of tools included."""
    max_action_tokens: int = 256
    """Tokens one action may have."""
    environment_timeout_s: float = 120.0
    """Seconds the environment has for a start, a step or a reward."""
    max_lag: int = 0
    """How many versions the sampling weights may be older than the trainer's; 0 is on policy."""
    engine_retries: int = 1
    """How often a failed generation is tried again before the trajectory is masked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What acts: an engine, the format it speaks, and how it is sampled."""

    engine: Engine
    renderer: Renderer
    settings: Rollout
    temperature: float


def seed_of(*parts: object) -> int:
    """A 64-bit seed that is a function of its parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def turn_routes(completion: Completion, num_context: int, *, first: bool) -> np.ndarray | None:
    """The routes of the tokens fed for this action and not for an earlier one; see Turn."""
    routes = completion.routed_experts
    if routes is None:
        return None
    return routes if first else routes[-(num_context + len(completion.tokens)) :]


class Attempt:
    """A trajectory in the making: what has been said, in messages and in tokens."""

    def __init__(self, policy: Policy, environment: Environment, task: Task, trajectory_id: str, seed: int) -> None:
        self.policy, self.environment, self.task, self.id, self.seed = policy, environment, task, trajectory_id, seed
        self.history: list[int] = []  # the prompt of the next action, and the actions before it
        self.turns: list[Turn] = []
        self.messages: list[Message] = []
        self.events: Counter[str] = Counter()

    async def run(self) -> Trajectory:
        """Never raises for what the environment or the engine did; see StopReason."""
        try:
            start = await self._guard("start", self.environment.start(self.task))
        except EnvironmentFault as fault:
            return self._trajectory("environment_error", {}, str(fault))
        parts: Mapping[str, float] = {}
        error = None
        try:
            stop_reason = await self._play(start)
            reward = self.environment.reward(start.state, self.messages, stop_reason != "done")
            parts = await self._guard("reward", reward)
        except EnvironmentFault as fault:
            stop_reason, error = "environment_error", str(fault)
        except EngineError as fault:
            stop_reason, error = "engine_error", str(fault)
        finally:
            await self._close(start)
        return self._trajectory(stop_reason, parts, error)

    async def _close(self, start: Start) -> None:
        """Release what the environment holds; a failure to is counted, and takes no finished trajectory along."""
        try:
            await self._guard("close", self.environment.close(start.state))
        except EnvironmentFault:
            self.events["close_failed"] += 1

    async def _play(self, start: Start) -> StopReason:
        policy, limits = self.policy, self.policy.settings
        self.messages += start.messages
        context = policy.renderer.start(start.messages, start.tools)
        restarts = False
        for _ in range(limits.max_turns):
            self.history = list(context) if restarts else [*self.history, *context]
            room = limits.max_tokens - len(self.history)
            if room < 1:
                return "length"
            completion = await self._generate(min(room, limits.max_action_tokens))
            self.history += completion.tokens
            self.turns.append(
                Turn(
                    context=tuple(context),
                    action=completion.tokens,
                    engine_logprobs=completion.logprobs,
                    weights_version=completion.weights_version,
                    routed_experts=turn_routes(completion, len(context), first=restarts or not self.turns),
                    restarts=restarts,
                )
            )
            parsed = policy.renderer.parse(completion.tokens)
            self.messages += parsed.messages
            if completion.stop_reason == "length":
                return "length"
            if parsed.malformed is not None:
                self.events[f"malformed/{parsed.malformed}"] += 1
                answers = (Message(role="tool", name="functions.parser", content=f"Error: {parsed.explanation}"),)
            else:
                step = await self._guard("step", self.environment.step(start.state, parsed.messages))
                self.events.update(step.events)
                if step.done:
                    return "done"
                answers = step.messages
            extension = policy.renderer.extend(self.messages, answers, start.tools, last_action=completion.tokens)
            self.messages += answers
            context, restarts = extension.tokens, extension.restarts
        return "max_turns"

    async def _generate(self, max_tokens: int) -> Completion:
        policy = self.policy
        sampling = Sampling(
            temperature=policy.temperature,
            max_tokens=max_tokens,
            stop_token_ids=policy.renderer.stop_token_ids,
            seed=seed_of(self.seed, len(self.turns)),
        )
        for attempt in range(policy.settings.engine_retries + 1):
            try:
                return await policy.engine.generate(self.history, sampling)
            except EngineError:
                self.events["engine_retries"] += 1
                if attempt == policy.settings.engine_retries:
                    raise
        raise AssertionError("unreachable")

    async def _guard(self, what: str, awaitable: Any) -> Any:
        return await guarded(
            f"{type(self.environment).__name__}.{what}", awaitable, timeout_s=self.policy.settings.environment_timeout_s
        )

    def _trajectory(self, stop_reason: StopReason, parts: Mapping[str, float], error: str | None) -> Trajectory:
        return Trajectory(
            id=self.id,
            task=self.task,
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            reward=float(sum(parts.values())),
            reward_parts=dict(parts),
            stop_reason=stop_reason,
            events=dict(self.events),
            error=error,
        )
