"""One rollout of a `verifiers` environment, run by its own loop, with Lockstep in the model's seat.

verifiers' loop asks a client for each response. `Seat` is a client that hands the prompt out and waits, so the loop
stands still while Lockstep samples. All the rest is the environment's own code, and none of it is done again here:
setup_state, get_prompt_messages, env_response, the tools, the stop conditions, cleanup. Needs verifiers, whose version
`verifiers.py` beside this file checks.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers.clients import Client  # pyright: ignore[reportMissingImports]
from verifiers.errors import InfraError, OverlongPromptError, ToolError  # pyright: ignore[reportMissingImports]
from verifiers.types import Response, ResponseMessage, ToolCall  # pyright: ignore[reportMissingImports]

from lockstep.environments.verifiers_adapter.messages import Reply, read_messages, read_tools, reply_of
from lockstep.rollout.concurrency import cancelled
from lockstep.rollout.tool import InfrastructureError
from lockstep.types import Message, ToolDescription

MODEL = "lockstep"  # what state["model"] says


@dataclass(frozen=True, slots=True)
class Asked:
    """What the loop asked the model: the whole conversation so far, and the tools on offer."""

    prompt: Sequence[Any]
    tools: Sequence[Any]


class Seat(Client):
    """A verifiers client that is answered by hand: `asked` is done when the loop wants a response, and `answer` gives
    it one. After `leave` every request is refused as a prompt too long for the model, at which a loop ends in order."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
        self.state: Any = None
        self._answer: asyncio.Future[Response] | None = None
        self._left = False

    async def get_response(
        self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any
    ) -> Response:
        if self._left:
            raise OverlongPromptError("a limit of the rollout ended the trajectory")
        if self.asked.done():
            raise RuntimeError(
                "the environment asked its model again before it had an answer: Lockstep answers one request at a "
                "time, those of the conversation; let other requests go to a client of the environment's own"
            )
        self.state = kwargs.get("state")
        self._answer = asyncio.get_running_loop().create_future()
        self.asked.set_result(Asked(prompt, tools or ()))
        return await self._answer

    def answer(self, response: Response) -> None:
        waiting = self._take()
        if waiting is not None:
            waiting.set_result(response)

    def leave(self, last: Response | None) -> None:
        """Answer no more; `last`, where there is one, is a last answer to what was asked."""
        self._left = True
        waiting = self._take()
        if waiting is None:
            return
        if last is None:
            waiting.set_exception(OverlongPromptError("a limit of the rollout ended the trajectory"))
        else:
            waiting.set_result(last)

    def _take(self) -> asyncio.Future[Response] | None:
        """The request that waits for an answer, if one still does: a loop past its own time limit no longer does."""
        waiting, self._answer = self._answer, None
        self.asked = asyncio.get_running_loop().create_future()
        return None if waiting is None or waiting.done() else waiting

    def setup_client(self, config: Any) -> None:
        return None

    async def to_native_tool(self, tool: Any) -> Any:
        return tool

    async def to_native_prompt(self, messages: Any) -> tuple[Any, dict[str, Any]]:
        return messages, {}

    async def get_native_response(self, *args: Any, **kwargs: Any) -> Response:
        return await self.get_response(*args, **kwargs)

    async def raise_from_native_response(self, response: Response) -> None:
        return None

    async def from_native_response(self, response: Response) -> Response:
        return response

    async def close(self) -> None:
        return None


class Conversation:
    """A rollout in progress. Make it inside an event loop; end it with `close`."""

    def __init__(self, environment: Any, row: Mapping[str, Any]) -> None:
        self.tools: tuple[ToolDescription, ...] | None = None
        self._environment = environment
        self._seat = Seat()
        self._loop = asyncio.create_task(environment.rollout(dict(row), self._seat, MODEL, {}))
        self._history: list[dict[str, Any]] = []  # what the loop and the model have said so far
        self._names: dict[str, str] = {}
        self._ids = itertools.count()

    async def asks(self) -> tuple[Message, ...] | None:
        """What was said since the last answer; None when the rollout has ended, see `result`. Raises ValueError when
        the model is asked anything but to go on with the same conversation."""
        await asyncio.wait({self._loop, self._seat.asked}, return_when=asyncio.FIRST_COMPLETED)
        if self._loop.done():
            return None
        asked = self._seat.asked.result()
        said = [message.model_dump() for message in asked.prompt]
        num_known = len(self._history)
        if said[:num_known] != self._history:
            raise ValueError(
                "the environment asked its model to go on with another conversation than the one so far: Lockstep only "
                "extends a conversation; turn off what rewrites the prompt, or asks the model for something else"
            )
        new = asked.prompt[num_known:]
        if self._history and (not new or any(message.role == "assistant" for message in new)):
            raise ValueError(
                "the environment answered an action with "
                + ("a message of the assistant's" if new else "no message")
                + ": let env_response return what a user or a tool says"
            )
        self._history = said
        self._offer(read_tools(asked.tools))
        return read_messages(new, self._names)

    def _offer(self, tools: tuple[ToolDescription, ...]) -> None:
        if self.tools is None:
            self.tools = tools
        elif self.tools != tools:
            raise ValueError(
                f"the environment changed its tools from {[tool.name for tool in self.tools]} to "
                f"{[tool.name for tool in tools]} in the middle: Lockstep shows the model its tools once, at the start"
            )

    def answer(self, action: Sequence[Message]) -> Reply:
        """Answer the loop with an action; what it says in verifiers' terms."""
        reply = reply_of(action, self._ids)
        self._names |= {call.id: call.name for call in reply.calls}
        response = _response(reply, len(self._history))
        self._history.append(_dumped(response))
        self._seat.answer(response)
        return reply

    async def cut(self, action: Sequence[Message]) -> None:
        """End a rollout that Lockstep's limits cut, in order. action: what was sampled and never answered; its calls
        are not made, because a call that was cut is no call."""
        reply = reply_of([message for message in action if message.recipient is None], self._ids)
        spoke = bool(reply.content or reply.reasoning)
        self._seat.leave(_response(reply, len(self._history), truncated=True) if spoke else None)
        await asyncio.wait({self._loop})

    def result(self) -> Any:
        """The state at the end of a rollout that has ended. Raises what the environment raised.

        An error that ended the loop is InfrastructureError when it is one of verifiers' InfraError, or was caused by
        one. A ToolError is what the environment's `stop_errors` ask for and no fault: its rubric judges. Any other is a
        RuntimeError.
        """
        state = self._loop.result()
        error = state.get("error")
        chain, cause = [], error
        while cause is not None and cause not in chain:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        said = ", caused by ".join(f"{type(each).__name__}: {each}" for each in chain)
        if any(isinstance(each, InfraError) for each in chain):
            raise InfrastructureError(f"the environment's infrastructure failed: {said}") from error
        if error is not None and not isinstance(error, ToolError):
            raise RuntimeError(f"the environment stopped: {said}") from error
        return state

    async def close(self) -> None:
        """End the rollout, which runs the environment's own cleanup, and then the rubric's; each once. Raises what a
        cleanup raises that was cut short here."""
        running = not self._loop.done()
        await cancelled([self._loop])
        failure = None if self._loop.cancelled() else self._loop.exception()
        state = self._seat.state if self._loop.cancelled() or failure else self._loop.result()
        if state is not None:
            await self._environment.rubric.cleanup(state)
        if running and failure is not None:
            raise failure


def _response(reply: Reply, number: int, *, truncated: bool = False) -> Response:
    calls = [ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in reply.calls]
    message = ResponseMessage(
        content=reply.content,
        reasoning_content=reply.reasoning,
        tool_calls=calls or None,
        finish_reason="length" if truncated else "tool_calls" if calls else "stop",
        is_truncated=truncated,
    )
    return Response(id=f"lockstep_{number}", created=0, model=MODEL, message=message)


def _dumped(response: Response) -> dict[str, Any]:
    """The message that verifiers' loop makes of a response, as it will say it in the next prompt."""
    fields = response.message.model_dump()
    return {key: value for key, value in fields.items() if key not in ("finish_reason", "is_truncated", "tokens")}
