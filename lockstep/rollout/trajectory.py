"""One trajectory: the turn loop between the engine and an environment, its limits and its stop reasons."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lockstep.engine.engine import Completion, Engine, EngineError, Sampling
from lockstep.rollout.environment import (
    Environment,
    EnvironmentFault,
    Start,
    Step,
    checked_score,
    checked_start,
    checked_step,
    guarded,
)
from lockstep.rollout.renderer import FormatError, Renderer
from lockstep.rollout.reward import Score
from lockstep.rollout.tool import InfrastructureError
from lockstep.types import Message, StopReason, Task, Trajectory, Turn, UserError

if TYPE_CHECKING:
    import numpy as np


NO_SCORE = Score(parts={})


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
    """Tokens of a trajectory's history, prompt and answers of tools included. Where a turn rewrites the history
    (turns/restarts), each counts by itself."""
    max_action_tokens: int = 256
    """Tokens one action may have."""
    max_result_tokens: int = 1024
    """Tokens of one tool's answer that the model reads; of a longer one the middle is left out, with a note."""
    environment_timeout_s: float = 120.0
    """Seconds the environment has for a start, a step or a reward."""
    max_lag: int = 0
    """How many versions the sampling weights may be older than the trainer's; 0 is on policy."""
    engine_retries: int = 1
    """How often a failed generation is tried again before the trajectory is masked."""
    engine_timeout_s: float = 600.0
    """Seconds one generation may take, its wait for a place in the batch included; a later one counts as failed."""
    max_refills: int = 0
    """Replace groups whose rewards are all equal, which teach group-relative methods nothing, by groups on further
    tasks (dynamic sampling): at most so many further rounds a step, each of as many tasks as are missing. 0 takes
    groups as they come."""

    def __post_init__(self) -> None:
        if not self.engine_timeout_s > 0:
            raise UserError(f"rollout.engine_timeout_s={self.engine_timeout_s}: must be above 0; 600 is usual")
        if not self.environment_timeout_s > 0:
            raise UserError(
                f"rollout.environment_timeout_s={self.environment_timeout_s}: must be above 0; 120 is usual"
            )
        if self.max_result_tokens < 16:
            raise UserError(
                f"rollout.max_result_tokens={self.max_result_tokens}: a shortened answer and its note need 16; raise it"
            )
        if self.max_refills < 0:
            raise UserError(f"rollout.max_refills={self.max_refills}: must be at least 0; 0 takes groups as they come")


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
            start = await self._start()
        except EnvironmentFault as fault:
            return self._trajectory("environment_error", NO_SCORE, str(fault))
        except InfrastructureError as fault:
            return self._trajectory("infrastructure_error", NO_SCORE, str(fault))
        score, error = NO_SCORE, None
        try:
            stop_reason = await self._play(start)
            score = await self._reward(start, truncated=stop_reason != "done")
        except EnvironmentFault as fault:
            stop_reason, error = "environment_error", str(fault)
        except InfrastructureError as fault:
            stop_reason, error = "infrastructure_error", str(fault)
        except EngineError as fault:
            stop_reason, error = "engine_error", str(fault)
        finally:
            await self._close(start)
        return self._trajectory(stop_reason, score, error)

    async def _start(self) -> Start:
        """What the environment began with. Where nobody can use it, because it is late, wrong or no longer wanted, it
        is closed here."""
        begun: list[Start] = []
        wanted = True

        async def kept(work: Awaitable[Start]) -> Start:
            start = await work
            if isinstance(start, Start):
                begun.append(start)
                if not wanted:
                    await self._close(start)
            return start

        def begin() -> Any:
            work = self.environment.start(self.task)
            return kept(work) if inspect.isawaitable(work) else work

        try:
            return await self._guard("start", begin, checked_start)
        except BaseException:
            wanted = False
            if begun:
                await self._close(begun[0])
            raise

    async def _close(self, start: Start) -> None:
        """Release what the environment holds, to the end even when cancelled meanwhile; a failure to is counted, and
        takes no finished trajectory along."""
        closing = asyncio.create_task(self._guard("close", lambda: self.environment.close(start.state)))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait({closing})
            if closing.done() and not closing.cancelled():
                closing.exception()  # asked for, or asyncio writes a traceback of it over the user's screen
            raise
        except (EnvironmentFault, InfrastructureError):
            self.events["close_failed"] += 1

    async def _step(self, start: Start, action: Sequence[Message]) -> Step:
        return await self._guard("step", lambda: self.environment.step(start.state, action), checked_step)

    async def _reward(self, start: Start, *, truncated: bool) -> Score:
        return await self._guard(
            "reward", lambda: self.environment.reward(start.state, self.messages, truncated), checked_score
        )

    async def _play(self, start: Start) -> StopReason:
        policy, limits = self.policy, self.policy.settings
        self.messages += start.messages
        context = self._rendered(lambda: policy.renderer.start(start.messages, start.tools))
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
                step = await self._step(start, parsed.messages)
                self.events.update(step.events)
                if step.done:
                    return "done"
                answers = tuple(self._fitting(message) for message in step.messages)
            said, last = self.messages, completion.tokens
            extension = self._rendered(
                lambda: policy.renderer.extend(said, answers, start.tools, last_action=last)  # noqa: B023
            )
            self.messages += answers
            context, restarts = extension.tokens, extension.restarts
        return "max_turns"

    def _rendered(self, render: Callable[[], Any]) -> Any:
        """What an environment says must be sayable in the format of the model."""
        try:
            return render()
        except FormatError as error:
            name = type(self.environment).__name__
            raise EnvironmentFault(f"{name} has messages that cannot be rendered: {error}") from error

    def _fitting(self, message: Message) -> Message:
        """A tool's answer within its tokens; anything else as it is."""
        room = self.policy.settings.max_result_tokens
        if message.role != "tool" or len(message.content) * 4 <= room:  # no character has more than 4 tokens
            return message
        content = self.policy.renderer.shorten(message.content, room)
        if content == message.content:
            return message
        self.events["tool/shortened"] += 1
        return dataclasses.replace(message, content=content)

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
                return await self._ask(sampling)
            except EngineError:
                self.events["engine_retries"] += 1
                if attempt == policy.settings.engine_retries:
                    raise
        raise AssertionError("unreachable")

    async def _ask(self, sampling: Sampling) -> Completion:
        """One generation. Raises EngineError when it fails, or misses its deadline and is cancelled."""
        engine, timeout_s = self.policy.engine, self.policy.settings.engine_timeout_s
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await engine.generate(self.history, sampling)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise EngineError(
                f"{type(engine).__name__}.generate did not finish within {timeout_s:g} s (trajectory {self.id}, turn "
                f"{len(self.turns)}: prompt of {len(self.history)} tokens, up to {sampling.max_tokens} sampled); "
                "raise rollout.engine_timeout_s or lower rollout.max_action_tokens"
            ) from error

    async def _guard(self, what: str, call: Callable[[], Any], check: Callable[[Any], Any] | None = None) -> Any:
        name = f"{type(self.environment).__name__}.{what}"
        return await guarded(name, call, timeout_s=self.policy.settings.environment_timeout_s, check=check)

    def _trajectory(self, stop_reason: StopReason, score: Score, error: str | None) -> Trajectory:
        return Trajectory(
            id=self.id,
            task=self.task,
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            reward=float(sum(score.parts.values())),
            reward_parts=dict(score.parts),
            stop_reason=stop_reason,
            events=dict(self.events),
            measures=dict(score.measures),
            error=error,
        )
