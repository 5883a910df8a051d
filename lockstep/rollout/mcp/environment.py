"""Any environment with the tools of MCP servers beside its own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from lockstep.rollout.concurrency import together
from lockstep.rollout.environment import Split, Start, Step, ToolEnvironment, ToolState
from lockstep.rollout.mcp.server import McpServer
from lockstep.rollout.reward import Score
from lockstep.rollout.tool import Tool, readable
from lockstep.types import Demonstration, Message, Task, UserError


@dataclass(frozen=True, slots=True)
class _State:
    """One trajectory's. inner: the environment's own state, with the names of the tools it described. added: the
    servers' tools, with what keeps them open."""

    inner: Any
    names: tuple[str, ...]
    added: ToolState
    open: AsyncExitStack


@dataclass(frozen=True, kw_only=True)
class WithTools:
    """An environment, unchanged but for the tools of MCP servers, which its tasks are offered too.

    Calls of the servers' tools are answered here and never reach the environment's `step`; everything else does.
    """

    environment: Any  # an Environment; the command line shows the options only of what is declared as anything
    """The environment that sets the tasks and grades them."""
    servers: tuple[McpServer, ...]
    """Whose tools are added."""

    def tasks(self, split: Split) -> Sequence[Task]:
        return self.environment.tasks(split)

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        return self.environment.demonstrations(seed)

    async def start(self, task: Task) -> Start:
        """Raises UserError when two tools have one name, and what the servers or the environment raise."""
        async with AsyncExitStack() as stack:
            start = await self.environment.start(task)
            stack.push_async_callback(self.environment.close, start.state)
            tools: list[Tool] = []
            for server in self.servers:
                tools += await stack.enter_async_context(server.tools())
            described = (*start.tools, *(tool.description for tool in tools))
            names = [tool.name for tool in described]
            if twice := {name for name in names if names.count(name) > 1}:
                raise UserError(f"two tools are named {min(twice)!r}: give one server a prefix, or allow only one")
            state = _State(
                inner=start.state,
                names=tuple(names[: len(start.tools)]),
                added=ToolState(task, {tool.name: tool for tool in tools}),
                open=stack.pop_all(),
            )
            return Start(messages=start.messages, tools=described, state=state)

    async def step(self, state: _State, action: Sequence[Message]) -> Step:
        """The servers' answers and the environment's, in the order of the calls."""
        calls = [message for message in action if message.recipient is not None]
        mine = [call for call in calls if self._is_mine(state, call)]
        if not mine:
            return await self.environment.step(state.inner, action)
        steps = [self._answers(state, mine)]
        if len(mine) < len(calls):
            rest = [message for message in action if not any(message is call for call in mine)]
            steps.append(self.environment.step(state.inner, rest))
        own, *others = await together(steps)
        events = Counter(own.events)
        for other in others:
            events.update(other.events)
        messages = _in_order(calls, mine, own.messages, [message for other in others for message in other.messages])
        return Step(messages=messages, events=events, done=any(other.done for other in others))

    def _is_mine(self, state: _State, call: Message) -> bool:
        """A server's tool, or a function that nobody has: the environment could name its own alone."""
        recipient = call.recipient or ""
        name = recipient.removeprefix("functions.")
        return name in state.added.tools or (recipient != name and name not in state.names)

    async def _answers(self, state: _State, calls: Sequence[Message]) -> Step:
        step = await _BARE.step(state.added, calls)
        if not step.events.get("malformed/unknown_tool"):
            return step
        offered = ", ".join((*state.names, *state.added.tools)) or "none"
        messages = []
        for call, message in zip(calls, step.messages, strict=True):
            name = (call.recipient or "").removeprefix("functions.")
            if name not in state.added.tools:
                text = readable(f"Error: no tool {name!r}; the tools are: {offered}.")
                message = dataclasses.replace(message, content=text)
            messages.append(message)
        return dataclasses.replace(step, messages=tuple(messages))

    async def reward(self, state: _State, messages: Sequence[Message], truncated: bool) -> Mapping[str, float] | Score:
        return await self.environment.reward(state.inner, messages, truncated)

    async def close(self, state: _State) -> None:
        await state.open.aclose()


_BARE = ToolEnvironment()  # answers calls of the tools that a state has


def _in_order(
    calls: Sequence[Message], mine: Sequence[Message], own: Sequence[Message], others: Sequence[Message]
) -> tuple[Message, ...]:
    """The answers in the order of the calls, where the environment gave one for each of its own."""
    if len(others) != len(calls) - len(mine):
        return (*others, *own)
    mine_next, others_next = iter(own), iter(others)
    return tuple(next(mine_next if any(call is one for one in mine) else others_next) for call in calls)
