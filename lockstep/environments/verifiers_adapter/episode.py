"""One episode of a `verifiers` environment (0.4), run by its own code, with Lockstep in the model's seat.

An agent is a program that calls a model over HTTP: verifiers' interception server takes its requests, keeps the
conversation's record and asks a client of its own for each answer. `Seat` is such a client; it hands the request out
and waits, so the program stands still while Lockstep samples. All the rest is verifiers' and the package's own code:
the server, the program, the tools, the stop conditions, the scoring. Everything here runs in one event loop, that of
rollout/background.py, because servers outlive the loops of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verifiers.v1 import (  # pyright: ignore[reportMissingImports]
    Client,
    EvalClientConfig,
    ModelContext,
    ProviderError,
)
from verifiers.v1.clients.client import RelayReply  # pyright: ignore[reportMissingImports]
from verifiers.v1.dialects import AnthropicDialect, ChatDialect, ResponsesDialect  # pyright: ignore[reportMissingImports]
from verifiers.v1.graph import message_hash  # pyright: ignore[reportMissingImports]

from lockstep.environments.verifiers_adapter.messages import Reply, read_messages, read_tools, reply_of
from lockstep.environments.verifiers_adapter.wires import ANTHROPIC, CHAT, MODEL, RESPONSES, Wire, unheard_of
from lockstep.rollout.concurrency import cancelled
from lockstep.rollout.tool import InfrastructureError
from lockstep.types import Message, ToolDescription

# Nobody connects to it: the client of this config is put in by hand. Port 9 is the discard service's.
CLIENT = EvalClientConfig(base_url="http://127.0.0.1:9/v1", api_key_var="LOCKSTEP_HAS_NO_KEY")
CONTEXT = ModelContext(model=MODEL, client=CLIENT)
WIRES: Mapping[type, Wire] = {ChatDialect: CHAT, ResponsesDialect: RESPONSES, AnthropicDialect: ANTHROPIC}
INFRASTRUCTURE = {"SandboxError", "InterceptionError", "TunnelError", "ProviderError"}  # verifiers' names for it
CUT = "max_total_tokens"  # what verifiers calls a rollout that a limit ended
CLEANUP_S = 1.0  # for an episode to end in order, before its processes are ended from here
MAX_CHARACTERS = 600  # of a program's last words in an error


class Seat(Client):
    """The client that verifiers asks: gives each request to the conversation that it belongs to, by its trace."""

    def __init__(self) -> None:
        self.conversations: dict[str, Conversation] = {}

    async def get_response(
        self, dialect: Any, body: dict[str, Any], sampling: Any, session_id: str | None = None, **kwargs: Any
    ) -> Any:
        raw = await self._answered(dialect, body, session_id)
        response = dialect.parse_response(dialect.validate_response(raw))
        response.raw = raw
        return response

    async def relay(
        self, dialect: Any, body: dict[str, Any], session_id: str | None = None, headers: Any = None
    ) -> Any:
        raw = await self._answered(dialect, body, session_id)

        async def chunks() -> AsyncIterator[bytes]:
            for event in WIRES[type(dialect)].events(raw):
                yield event

        return RelayReply(content_type="text/event-stream", chunks=chunks(), close=self.close)

    async def _answered(self, dialect: Any, body: dict[str, Any], session_id: str | None) -> dict[str, Any]:
        if session_id is None or session_id not in self.conversations:
            raise ProviderError("no trajectory of Lockstep's is waiting for this request", status_code=400)
        return await self.conversations[session_id].respond(dialect, body, session_id)

    async def close(self) -> None:
        return None


class Conversation:
    """An episode in progress, in the event loop that it is made in; end it with `close`."""

    def __init__(self, environment: Any, task: Any, seat: Seat) -> None:
        self.tools: tuple[ToolDescription, ...] | None = None
        self._seat = seat
        self._traces: dict[str, Any] = {}
        self._policy: str | None = None  # the trace whose conversation this is: the first that asks
        self._asked: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[tuple[Reply, bool]] | None = None
        self._fault: ValueError | None = None
        self._left = False
        self._history: list[str] = []  # a hash for each message so far
        self._names: dict[str, str] = {}
        self._ids = itertools.count()
        self._episode = asyncio.create_task(environment.run_episode(task, CONTEXT, on_trace=self._began))

    def _began(self, trace: Any) -> None:
        self._traces[trace.id] = trace
        self._seat.conversations[trace.id] = self

    async def respond(self, dialect: Any, body: dict[str, Any], trace_id: str) -> dict[str, Any]:
        """What the model says to a request, as its format's JSON. Raises ProviderError, which the program is told, when
        it will say no more, or the request does not go on with the conversation."""
        if self._left:
            self._traces[trace_id].stop(CUT)
            raise ProviderError("a limit of the rollout ended the trajectory", status_code=400)
        request = dialect.parse_request(body)
        try:
            if demand := unheard_of(body):
                raise ValueError(f"an agent asks its model for {demand}, which Lockstep's cannot promise; turn it off")
            new = self._new(request)
        except ValueError as fault:
            self._refuse(fault)
            raise ProviderError(str(fault), status_code=400) from fault
        self._policy = trace_id
        self._answer = asyncio.get_running_loop().create_future()
        self._asked.set_result(new)
        reply, truncated = await self._answer
        raw = WIRES[type(dialect)].whole(reply, len(self._history), truncated)
        said = dialect.parse_response(dialect.validate_response(raw)).message
        self._history = [*map(_hashed, request.messages), _hashed(said)]
        return raw

    def _new(self, request: Any) -> Sequence[Any]:
        """The messages that a request adds. Raises ValueError when it does anything else."""
        if self._asked.done():
            raise ValueError(
                "an agent asked its model again before it had an answer: Lockstep answers one request at a time, those "
                "of the conversation; use an agent that does one thing at a time"
            )
        num_known = len(self._history)
        if list(map(_hashed, request.messages[:num_known])) != self._history:
            raise ValueError(
                "an agent asked its model to go on with another conversation than the one so far: Lockstep only "
                "extends a conversation; turn off what rewrites or summarises it, or begins others"
            )
        new = request.messages[num_known:]
        if self._history and (not new or any(message.role == "assistant" for message in new)):
            raise ValueError(
                "an agent answered an action with "
                + ("a message of the assistant's" if new else "no message")
                + ": it must add what a user or a tool says"
            )
        self._offer(request.tools or ())
        return new

    def _offer(self, tools: Sequence[Any]) -> None:
        for tool in tools:
            if tool.type != "function" or tool.namespace:
                raise ValueError(
                    f"an agent offers the tool {tool.name!r} of type {tool.type!r}: Lockstep shows its model functions "
                    "alone, in no namespace; take it away from the agent"
                )
        offered = read_tools(tools)
        if self.tools is None:
            self.tools = offered
        elif self.tools != offered:
            raise ValueError(
                f"an agent changed its tools from {[tool.name for tool in self.tools]} to "
                f"{[tool.name for tool in offered]} in the middle: Lockstep shows the model its tools once, "
                "at the start"
            )

    def _refuse(self, fault: ValueError) -> None:
        if self._asked.done():
            self._fault = self._fault or fault
        else:
            self._asked.set_exception(fault)

    async def asks(self) -> tuple[Message, ...] | None:
        """What was said since the last answer; None when the episode has ended, see `result`. Raises ValueError when
        the model is asked anything but to go on with the same conversation."""
        await asyncio.wait({self._episode, self._asked}, return_when=asyncio.FIRST_COMPLETED)
        if self._fault is not None:
            raise self._fault
        if not self._asked.done():
            return None
        return read_messages(self._asked.result(), self._names)

    def answer(self, action: Sequence[Message]) -> Reply:
        """Answer the program with an action; what it says in verifiers' terms."""
        reply = reply_of(action, self._ids)
        self._names |= {call.id: call.name for call in reply.calls}
        if waiting := self._take():
            waiting.set_result((reply, False))
        return reply

    async def cut(self, action: Sequence[Message]) -> None:
        """End an episode that Lockstep's limits cut, in order. action: what was sampled and never answered; its calls
        are not made, because a call that was cut is no call."""
        reply = reply_of([message for message in action if message.recipient is None], self._ids)
        self._left = True
        if waiting := self._take():
            if reply.content or reply.reasoning:
                waiting.set_result((reply, True))
            else:
                self._traces[self._policy or ""].stop(CUT)
                waiting.set_exception(ProviderError("a limit of the rollout ended the trajectory", status_code=400))
        await asyncio.wait({self._episode})

    def _take(self) -> asyncio.Future[tuple[Reply, bool]] | None:
        """The request that waits for an answer, if one still does: a program past its own time limit no longer does."""
        waiting, self._answer = self._answer, None
        if self._asked.done():
            self._asked = asyncio.get_running_loop().create_future()
        return None if waiting is None or waiting.done() else waiting

    def result(self) -> Any:
        """The trace at the end of an episode that has ended: of the agent that Lockstep's model was.

        Raises InfrastructureError when what verifiers relies on failed, and RuntimeError when anything else did, a
        reward function included, or a stage before or after the conversation was late; a conversation that was over
        when its time was is judged. Raises ValueError as `asks` does.
        """
        if self._fault is not None:
            raise self._fault
        episode = self._episode.result()
        trace = self._traces.get(self._policy or "")
        ended = [trace] if trace is not None else []
        errors = [*episode.errors, *(error for each in (*episode.traces, *ended) for error in each.errors)]
        said = ", ".join(f"{error.type}: {_short(error.message)}" for error in _unique(errors))
        if not episode.ok and any(error.type in INFRASTRUCTURE for error in errors):
            raise InfrastructureError(f"the environment's infrastructure failed: {said}")
        if not episode.ok:
            raise RuntimeError(f"the environment stopped: {said or 'it gave no reason'}")
        for each in episode.traces:
            if each.is_timeout and each.stop_condition != "agent_timeout":
                raise RuntimeError(
                    f"the environment was late ({each.stop_condition}); raise its own timeout, or fix it"
                )
        if trace is None:
            stops = [each.stop_condition for each in episode.traces]
            raise RuntimeError(f"the environment ended before it asked for an action (stop condition {stops})")
        return trace

    async def close(self) -> None:
        """End the episode, which runs the environment's own cleanup, and every process of its programs.

        verifiers ends the process group of a program that runs, and not one that it is just starting, whose cleanup
        then waits for the children; nor those that left the group.
        """
        if not self._episode.done():
            self._episode.cancel()
            await asyncio.wait({self._episode}, timeout=CLEANUP_S)
            for trace in self._traces.values():
                if trace.agent.runtime is not None and trace.agent.runtime.id is not None:
                    end_processes_in(trace.agent.runtime.id)
        await cancelled([self._episode])
        for trace_id in self._traces:
            self._seat.conversations.pop(trace_id, None)
        if self._asked.done() and not self._asked.cancelled():
            self._asked.exception()  # nobody else may look at it
        if self._answer is not None:
            self._answer.cancel()


def end_processes_in(folder: str) -> None:
    """Kill the processes that work in a folder, or in one inside it (on Linux; elsewhere nothing happens)."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            where = os.readlink(link).removesuffix(" (deleted)")
            if Path(where).is_relative_to(folder):
                os.kill(int(link.parent.name), signal.SIGKILL)


def _hashed(message: Any) -> str:
    """verifiers' hash of a message, without an assistant's thoughts: programs need not repeat them, and what becomes of
    earlier ones is for the model's format to say."""
    if message.role == "assistant":
        message = message.model_copy(update={"reasoning_content": None, "provider_state": None})
    return message_hash(message)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else f"... {line[-MAX_CHARACTERS:]}"


def _unique(errors: Iterable[Any]) -> list[Any]:
    return list({(error.type, error.message): error for error in errors}.values())
