"""A taskset of `verifiers` 0.4 and the agent that plays it, as its package is installed.

The package's own code runs each episode (see episode.py), in an event loop of its own: code that blocks it holds up
other episodes, and nothing of Lockstep's. What verifiers holds for all of them, its interception server on 127.0.0.1
and the tool servers that they share, is brought up with the first episode and taken down at exit. An agent that says
nothing of its runtime runs as a process of this machine, in verifiers' subprocess runtime; verifiers itself would rent
a sandbox (see taskset_loading.py, which also says what is refused).

What verifiers 0.4 does, it does here too: a reward function that raises fails the trajectory, and Lockstep masks it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from lockstep.environments.verifiers_adapter.common import counted, held_out, last_said
from lockstep.environments.verifiers_adapter.messages import read_messages
from lockstep.environments.verifiers_adapter.taskset_loading import in_line, loaded, unmet
from lockstep.rollout.background import Background
from lockstep.rollout.environment import Split, Start, Step
from lockstep.rollout.reward import Score
from lockstep.rollout.tool import InfrastructureError
from lockstep.types import Message, Task, UserError

if TYPE_CHECKING:
    from lockstep.environments.verifiers_adapter.episode import Conversation, Seat


@cache
def _home_of(process: int) -> Background:
    return Background()


def home() -> Background:
    """This process's event loop for episodes."""
    return _home_of(os.getpid())


class Serving:
    """What verifiers holds for all episodes of one environment, in one event loop. A task of its own enters and leaves
    verifiers' context, which wants both in one."""

    def __init__(self, environment: Any, held_in: Background) -> None:
        self.environment, self.held_in = environment, held_in
        self._ready: asyncio.Future[Seat] | None = None
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def seat(self) -> Seat:
        """The client that stands in for a model. Raises what verifiers raises when it cannot come up; the next call
        tries again."""
        if self._ready is None or (self._ready.done() and self._ready.exception() is not None):
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._serve(self._ready))
            self.held_in.closers.add(self.close)
        return await asyncio.shield(self._ready)

    async def _serve(self, ready: asyncio.Future[Seat]) -> None:
        from lockstep.environments.verifiers_adapter.episode import CLIENT, INFRASTRUCTURE, Seat

        try:
            async with self.environment.serving():
                seat = Seat()
                # Where verifiers would make the client that CLIENT describes; it knows one by its config.
                self.environment._interception.clients[CLIENT.model_dump_json()] = seat
                ready.set_result(seat)
                await self._over.wait()
        except Exception as error:  # the environment boundary: a package's own start and stop
            if ready.done():
                raise
            broken = type(error).__name__ in INFRASTRUCTURE
            kind = InfrastructureError if broken else RuntimeError
            ready.set_exception(kind(f"what the environment serves its agents with cannot come up: {in_line(error)}"))

    async def close(self) -> None:
        self._over.set()
        if self._task is not None:
            await asyncio.wait({self._task})


@dataclass(frozen=True, kw_only=True)
class TasksetEnvironment:
    """A taskset as one of Lockstep's environments; see VerifiersEnvironment, whose options these are. args: JSON.
    Loaded at its first use, which raises UserError, in one line, when it cannot be."""

    id: str
    args: str
    num_heldout: int | None
    num_tasks: int | None
    allow_unsafe: bool
    _serving: dict[Background, Serving] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def environment(self) -> Any:
        """verifiers' own."""
        environment = loaded(self.id, self.args)
        if needs := unmet(environment, self.allow_unsafe):
            raise UserError(f"environment.id={self.id!r} with environment.args={self.args}: {needs}")
        return environment

    @cached_property
    def _own_tasks(self) -> Sequence[Any]:
        taskset = self.environment.taskset
        if self.num_tasks is None and not taskset.bounded:
            raise UserError(
                f"environment.id={self.id!r} has tasks without end: add environment.num_tasks, how many to take"
            )
        try:
            found = list(itertools.islice(taskset, self.num_tasks))
        except Exception as error:  # the environment boundary: a package's own code reads its data
            raise UserError(f"environment.id={self.id!r}: its tasks cannot be read: {in_line(error)}") from error
        for task in found:
            if task.data.image is not None:
                raise UserError(
                    f"environment.id={self.id!r}: task {task.data.idx} needs the container image {task.data.image!r}, "
                    "and Lockstep runs agents as processes of this machine; use another taskset"
                )
        return found

    def tasks(self, split: Split) -> Sequence[Task]:
        """A task for each of the taskset's. Raises UserError for one whose prompt Lockstep cannot show a model."""
        own = self._own_tasks
        numbers = held_out(range(len(own)), self.num_heldout, f"environment {self.id!r} has {len(own)} tasks")[split]
        found = []
        for number in numbers:
            try:
                messages = read_messages(opening_of(own[number].data), {})
            except ValueError as error:
                raise UserError(f"environment {self.id!r}, task {number}: {in_line(error)}") from error
            data = {"number": number, "row": own[number].data.model_dump(mode="json", exclude_none=True)}
            found.append(Task(id=f"{split}-{number}", messages=messages, data=data))
        return found

    async def start(self, task: Task) -> Start:
        from lockstep.environments.verifiers_adapter.episode import Conversation

        here, environment, own = home(), self.environment, self._own_tasks[task.data["number"]]
        conversations: list[Conversation] = []

        async def begin() -> Start:
            if here not in self._serving:
                self._serving[here] = Serving(environment, here)
            seat = await self._serving[here].seat()
            conversations.append(conversation := Conversation(environment, own, seat))
            here.closers.add(conversation.close)
            try:
                opening = await conversation.asks()
                if opening is None:
                    conversation.result()
                    raise RuntimeError("the environment ended before it asked for an action")
            except BaseException:
                await conversation.close()  # nobody else may know of it: the caller was cancelled a moment ago
                raise
            return Start(messages=opening, tools=conversation.tools or (), state=conversation)

        try:
            return await here.run(begin())
        except BaseException:
            for conversation in conversations:
                await self.close(conversation)
            raise

    async def step(self, state: Conversation, action: Sequence[Message]) -> Step:
        async def go_on() -> tuple[Any, tuple[Message, ...] | None]:
            reply = state.answer(action)
            answers = await state.asks()
            if answers is None:
                state.result()
            return reply, answers

        reply, answers = await home().run(go_on())
        events = counted(reply.calls, state.tools or ())
        return Step(done=True, events=events) if answers is None else Step(messages=answers, events=events)

    async def reward(self, state: Conversation, messages: Sequence[Message], truncated: bool) -> Score:
        """The trace's reward: a part for each of its rewards with a weight, its score times the weight. Those of weight
        0, and the metrics, are measures."""

        async def ended() -> Any:
            if truncated:
                await state.cut(last_said(messages))
            return state.result()

        return score_of(await home().run(ended()))

    async def close(self, state: Conversation) -> None:
        here = home()
        try:
            await here.run(state.close())
        finally:
            here.closers.discard(state.close)


def score_of(trace: Any) -> Score:
    """A trace's rewards and metrics; what verifiers left without a value is left out."""
    rewards = {name: reward for name, reward in trace.rewards.items() if reward is not None}
    metrics = {name: float(value) for name, value in trace.metrics.items() if value is not None}
    return Score(
        parts={name: float(reward.value) for name, reward in rewards.items() if reward.weight},
        measures=metrics | {name: float(reward.score) for name, reward in rewards.items() if not reward.weight},
    )


def opening_of(data: Any) -> list[Any]:
    """A task's first messages as verifiers': its system prompt and its prompt. What an agent shows its model, which may
    be more, is known once it asks."""
    from verifiers.v1 import SystemMessage, UserMessage  # pyright: ignore[reportMissingImports]

    system = [] if data.system_prompt is None else [SystemMessage(content=data.system_prompt)]
    prompt = [UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else list(data.prompt or ())
    return [*system, *prompt]
