"""The Environment protocol and the one boundary where an environment's failure is caught.

An environment sees messages, never tokens. `ToolEnvironment` is the usual way to write one: give `tasks`, `tools` and
`grade`, and `open` and `release` where a trajectory owns something; calls are checked, run and answered here. Anything
else implements `Environment` itself.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from lockstep.rollout.concurrency import Late, together, within
from lockstep.rollout.reward import Ending, Score, as_number
from lockstep.rollout.tool import Tool, infrastructure_in, readable, said
from lockstep.types import Demonstration, Message, Role, Task, ToolDescription, UserError

Split = Literal["train", "heldout"]
MAX_CALLS = 128  # that are made of one action; each may take a thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a trajectory begins: the opening messages, the tools on offer, and the environment's own state for it."""

    messages: tuple[Message, ...]
    tools: tuple[ToolDescription, ...] = ()
    state: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What answers an action. messages: for the model to read next. done: the trajectory ends here.

    events: what to count, e.g. {'tool_calls': 1, 'malformed/bad_json': 1}; summed over the trajectory and shown in
    metrics.
    """

    messages: tuple[Message, ...] = ()
    done: bool = False
    events: Mapping[str, int] = field(default_factory=dict)


class Environment(Protocol):
    """A family of tasks. One object serves all trajectories, concurrently; what belongs to one lives in
    `Start.state`."""

    def tasks(self, split: Split) -> Sequence[Task]: ...

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        """Solved training tasks for a supervised cold start; empty when there are none."""
        ...

    async def start(self, task: Task) -> Start: ...

    async def step(self, state: Any, action: Sequence[Message]) -> Step: ...

    async def reward(self, state: Any, messages: Sequence[Message], truncated: bool) -> Mapping[str, float] | Score:
        """Named reward parts, summed to the reward, alone or with measures beside them. Called once at the end, also
        when a limit cut the trajectory short."""
        ...

    async def close(self, state: Any) -> None:
        """Release what `start` acquired. Called exactly once for every started trajectory, whatever happened."""
        ...


class EnvironmentFault(RuntimeError):
    """An environment's own code failed. `__cause__` is what it raised, if it did."""


class WrongResult(Exception):
    """What an environment returned cannot be used. The message goes on from the name of the method."""


async def guarded(
    what: str, call: Callable[[], Any], *, timeout_s: float, check: Callable[[Any], Any] | None = None
) -> Any:
    """Call an environment's method and await it; whatever it raises, or a missed deadline, becomes an EnvironmentFault,
    and so does a result that `check` refuses with WrongResult. InfrastructureError passes through.

    Environments are other people's code, and so are their tools and rewards: only here, in tool.py and in reward.py
    does Lockstep catch whatever is raised.
    """
    try:
        work = call()
        if not inspect.isawaitable(work):
            raise WrongResult(f"returned {type(work).__name__} and not an awaitable: make it `async def`")
        result = await within(timeout_s, work)
        return result if check is None else check(result)
    except WrongResult as wrong:
        raise EnvironmentFault(f"{what} {wrong}") from None
    except Late:
        raise EnvironmentFault(
            f"{what} did not finish within {timeout_s:g} s; raise rollout.environment_timeout_s or fix it"
        ) from None
    except (Exception, SystemExit) as error:
        if broken := infrastructure_in(error):
            raise broken from None
        raise EnvironmentFault(f"{what} raised {type(error).__name__}: {said(error)}") from error


def expect(kind: type) -> Callable[[Any], Any]:
    """A check for `guarded`: the result is a `kind`."""

    def check(result: Any) -> Any:
        if not isinstance(result, kind):
            raise WrongResult(f"returned {type(result).__name__}, not {kind.__name__}")
        return result

    return check


def checked_start(result: Any) -> Start:
    """A check for `guarded`: a Start whose messages are messages, and whose tools are described."""
    start = expect(Start)(result)
    _check_messages(start.messages)
    for each in expect(Sequence)(start.tools):
        if not isinstance(each, ToolDescription):
            raise WrongResult(f"returned {type(each).__name__} among its tools: each must be a ToolDescription")
    return start


def checked_step(result: Any) -> Step:
    """A check for `guarded`: a Step whose messages are messages, and whose events are counts."""
    step = expect(Step)(result)
    _check_messages(step.messages)
    for name, count in expect(Mapping)(step.events).items():
        if not isinstance(count, int):
            raise WrongResult(f"returned an event {name}={count!r}: a count must be a whole number")
    return step


def tasks_of(environment: Environment, split: Split) -> Sequence[Task]:
    """A split's tasks. Raises UserError for what is no list of tasks with messages."""
    return _listed(environment, "tasks", Task, split)


def demonstrations_of(environment: Environment, seed: int) -> Sequence[Demonstration]:
    """The demonstrations. Raises UserError for what is no list of demonstrations with messages."""
    return _listed(environment, "demonstrations", Demonstration, seed)


def _listed(environment: Environment, method: str, kind: type, *arguments: object) -> Sequence[Any]:
    try:
        found = expect(Sequence)(getattr(environment, method)(*arguments))
        for each in found:
            if not isinstance(each, kind):
                raise WrongResult(f"returned {type(each).__name__}: it must return a list of {kind.__name__}")
            _check_messages(each.messages)
    except WrongResult as wrong:
        raise UserError(f"{type(environment).__name__}.{method} {wrong}") from None
    return found


def _check_messages(messages: Any) -> None:
    if isinstance(messages, Message):
        raise WrongResult("returned one message where several are expected: make it a tuple, (message,)")
    listed = list(messages) if isinstance(messages, Sequence) and not isinstance(messages, str) else [messages]
    for each in listed:
        if not isinstance(each, Message):
            raise WrongResult(f"returned {type(each).__name__} among its messages: each must be a Message")
        if not isinstance(each.content, str):
            raise WrongResult(f"returned a message whose content is {type(each.content).__name__}: it must be text")
        if each.role not in get_args(Role):
            raise WrongResult(
                f"returned a message of role {each.role!r}: it must be one of {', '.join(get_args(Role))}"
            )
        for part in ("channel", "recipient", "name"):
            if not isinstance(value := getattr(each, part), str | None):
                raise WrongResult(f"returned a message whose {part} is {type(value).__name__}: it must be text or None")
        if each.role == "tool" and not each.name:
            raise WrongResult("returned a tool's message without a name: say which tool speaks, e.g. functions.search")


def checked_score(result: Any) -> Score:
    """A check for `guarded`: named parts, or a Score, each a finite number, the parts with a finite sum; as plain
    floats."""
    given = result if isinstance(result, Score) else Score(parts=expect(Mapping)(result))
    parts, measures = _numbers(given.parts), _numbers(given.measures)
    if not math.isfinite(sum(parts.values())):
        raise WrongResult("returned parts whose sum is not finite: scale the reward down")
    return Score(parts=parts, measures=measures)


def _numbers(named: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: _number(part) for name, part in named.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            shown = " ".join(reprlib.repr(named[name]).split())
            raise WrongResult(f"returned {name}={shown}: every part of a reward must be a finite number")
    return numbers


def _number(part: Any) -> float:
    """NaN for what is no number."""
    try:
        return as_number(part)
    except (TypeError, ValueError, OverflowError):
        return math.nan


@dataclass(frozen=True, slots=True)
class ToolState:
    """One trajectory's: its tools by name, and what the environment opened for it."""

    task: Task
    tools: Mapping[str, Tool]
    own: Any = None


class ToolEnvironment:
    """An environment whose steps are tool calls, ended by a message to the user. Override tasks, tools and grade; open
    and release for what each trajectory owns (a database cursor, a sandbox session)."""

    def tasks(self, split: Split) -> Sequence[Task]:
        raise NotImplementedError(f"{type(self).__name__} has no tasks: define them")

    async def open(self, task: Task) -> Any:
        """What one trajectory owns; handed to tools, grade (as ending.state) and release."""
        return None

    def tools(self, task: Task, state: Any) -> Sequence[Tool]:
        """The tools of one trajectory, asked for once, after `open`."""
        return ()

    async def grade(self, ending: Ending) -> Mapping[str, float] | Score:
        """Named reward parts."""
        raise NotImplementedError(f"{type(self).__name__} has no grade: define one")

    async def release(self, state: Any) -> None:
        """Give back what `open` gave. Called exactly once for each, whatever happened."""

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        return ()

    async def start(self, task: Task) -> Start:
        own = await self.open(task)
        try:
            offered = self.tools(task, own)
            for each in offered:
                if not isinstance(each, Tool):
                    raise TypeError(f"tools() gave {each!r:.80}, which is no Tool: put @tool above the function")
            tools = {tool.name: tool for tool in offered}
            if len(tools) < len(offered):
                raise ValueError(f"two tools have one name among {[tool.name for tool in offered]}; rename one")
        except BaseException:
            await self.release(own)
            raise
        return Start(
            messages=task.messages,
            tools=tuple(tool.description for tool in tools.values()),
            state=ToolState(task, tools, own),
        )

    async def step(self, state: ToolState, action: Sequence[Message]) -> Step:
        """Answer every call of the action; an action without a call ends the trajectory."""
        calls = [message for message in action if message.recipient is not None]
        if not calls:
            return Step(done=True)
        events: Counter[str] = Counter()
        answers = await together(self._answer(state, call, events) for call in calls[:MAX_CALLS])
        answers += [self._too_many(call, events) for call in calls[MAX_CALLS:]]
        return Step(messages=tuple(answers), events=events)

    def _too_many(self, call: Message, events: Counter[str]) -> Message:
        """The answer to a call that is not made: thousands in one action would take a thread each."""
        events.update({"tool_calls": 1, "malformed/too_many_calls": 1})
        text = f"Error: not called; one action may make {MAX_CALLS} calls."
        return Message(role="tool", name=call.recipient, content=text)

    async def _answer(self, state: ToolState, call: Message, events: Counter[str]) -> Message:
        assert call.recipient is not None
        name = call.recipient.removeprefix("functions.")
        events["tool_calls"] += 1
        tool = state.tools.get(name)
        if tool is None:
            events["malformed/unknown_tool"] += 1
            offered = ", ".join(state.tools) or "none"
            text = readable(f"Error: no tool {name!r}; the tools are: {offered}.")
            return Message(role="tool", name=call.recipient, content=text)
        result = await tool.call(call.content)
        if result.fault is not None:
            events[result.fault] += 1
        return Message(role="tool", name=f"functions.{name}", content=result.text)

    async def reward(
        self, state: ToolState, messages: Sequence[Message], truncated: bool
    ) -> Mapping[str, float] | Score:
        last = messages[-1] if messages else None
        said = last is not None and last.role == "assistant" and last.recipient is None and last.channel != "analysis"
        answer = last.content if last is not None and said and not truncated else None
        return await self.grade(
            Ending(task=state.task, answer=answer, messages=messages, state=state.own, truncated=truncated)
        )

    async def close(self, state: ToolState) -> None:
        await self.release(state.own)
