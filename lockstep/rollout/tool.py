"""A tool from a typed function: its JSON schema, its arguments checked, its time, its concurrency and its text limited.

A tool's failure is data: `call` never raises for what the model wrote or what the function raised; it returns text for
the model to read and names the fault for the counters. What is broken beneath a tool (a sandbox that does not answer)
is not the model's doing: the tool raises InfrastructureError, and that alone passes through.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import docstring_parser
import pydantic

from lockstep.rollout.concurrency import Late, Limit, NoThread, in_thread, within
from lockstep.rollout.tool_schema import shown
from lockstep.types import ToolDescription

NUM_FAULTS = 5  # wrong arguments that are named
MAX_CHARACTERS = 1 << 18  # of a result, before it is cut to rollout.max_result_tokens


class ToolError(Exception):
    """Raised inside a tool to tell the model, in the exception's words, why the call failed."""


class InfrastructureError(Exception):
    """Raised inside a tool, a reward or an environment when what it relies on is broken (a sandbox, a server): masks
    the trajectory, which ends with stop reason 'infrastructure_error'. The message is one line for the user."""


class BadArguments(Exception):
    """A tool's `check` refuses the arguments; the message is one line for the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """text: what the model reads. fault: None, 'malformed/bad_json', 'malformed/bad_arguments', 'tool/error' or
    'tool/timeout'."""

    text: str
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """description: what the model is told. check: from the JSON object a model wrote to the function's keyword
    arguments; raises BadArguments. function: sync or async; what it returns is read as text.

    timeout_s: an answer later than this is a fault; it begins when the call has a place, which it awaits as long at
    most. inline: run a sync function on the event loop itself rather than in a thread; only for pure functions that
    return at once (it keeps the order of events, and so resume, exact). limit: how many calls run at once, over all
    trajectories and all tools that share it; a late one keeps its place until it has ended.
    """

    description: ToolDescription
    check: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    function: Callable[..., Any | Awaitable[Any]]
    timeout_s: float = 30.0
    inline: bool = False
    limit: Limit | None = None

    @property
    def name(self) -> str:
        return self.description.name

    async def call(self, arguments: str) -> ToolResult:
        """Run the tool on the JSON text a model wrote. Raises InfrastructureError, and nothing else."""
        try:
            values = json.loads(arguments, parse_constant=_no_json, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            return _fault(f"arguments are not valid JSON ({error}).", "malformed/bad_json")
        if not isinstance(values, dict):
            return _fault(f"arguments must be a JSON object, not {type(values).__name__}.", "malformed/bad_arguments")
        try:
            checked = self.check(values)
        except BadArguments as error:
            return _fault(f"{error}.", "malformed/bad_arguments")
        except Exception as error:  # the environment boundary: a validator is other people's code
            return _fault(f"{type(error).__name__}: {said(error)}", "malformed/bad_arguments")
        return await self._run(checked)

    async def _run(self, values: Mapping[str, Any]) -> ToolResult:
        """A call that has a place, or waits for one as long as it may run. The place is given back when the function
        has really ended."""
        try:
            ended = await self.limit.place(self.timeout_s) if self.limit else None
        except Late:
            return _fault(f"no place for this call within {self.timeout_s:g} s.", "tool/timeout")
        try:
            return ToolResult(text=await self._answer(values, ended))
        except Late:
            return _fault(f"no answer within {self.timeout_s:g} s.", "tool/timeout")
        except NoThread as error:
            raise InfrastructureError(f"tool {self.name!r}: {error}") from error
        except Exception as error:  # the environment boundary: a tool is other people's code
            if broken := infrastructure_in(error):
                raise broken from None
            kind = "" if isinstance(error, ToolError) else f"{type(error).__name__}: "
            return _fault(f"{kind}{said(error)}", "tool/error")

    async def _answer(self, values: Mapping[str, Any], ended: Callable[[], None] | None) -> str:
        if self.inline:
            try:
                return readable(str(self.function(**values)))
            except (Exception, KeyboardInterrupt):
                raise
            except BaseException as error:
                raise RuntimeError(type(error).__name__) from error
            finally:
                if ended is not None:
                    ended()
        running = 1  # the task, and the thread while there is one

        def part_ended() -> None:
            nonlocal running
            running -= 1
            if not running and ended is not None:
                ended()

        async def work() -> str:
            nonlocal running
            if inspect.iscoroutinefunction(self.function):
                return readable(str(await self.function(**values)))
            running += 1
            result = await in_thread(lambda: _text_or_awaitable(self.function(**values)), ended=part_ended)
            return result if isinstance(result, str) else readable(str(await result))

        return await within(self.timeout_s, work(), ended=part_ended)


def _text_or_awaitable(result: Any) -> str | Awaitable[Any]:
    return result if inspect.isawaitable(result) else readable(str(result))


def infrastructure_in(error: BaseException) -> InfrastructureError | None:
    """The InfrastructureError that an exception is, or that a group of them holds."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(infrastructure_in, error.exceptions)), None)
    return error if isinstance(error, InfrastructureError) else None


def readable(text: str) -> str:
    """Text for a model: a lone surrogate, which JSON can spell and UTF-8 cannot, becomes a question mark; of more than
    MAX_CHARACTERS the middle is left out."""
    return cut_middle(text, MAX_CHARACTERS).encode("utf-8", "replace").decode()


def cut_middle(text: str, max_characters: int) -> str:
    """At most max_characters of a text, from its beginning and its end, with a note of what is missing between."""
    if len(text) <= max_characters:
        return text
    head = max_characters // 2
    tail = max_characters - head
    return f"{text[:head]}{omission(len(text) - max_characters, 'characters')}{text[len(text) - tail :]}"


def omission(count: int, unit: str) -> str:
    """The note that stands where the middle of a result was."""
    return f"\n[... {count} {unit} left out ...]\n"


def _fault(what: str, fault: str) -> ToolResult:
    return ToolResult(text=readable(f"Error: {what}"), fault=fault)


def said(error: BaseException) -> str:
    """An exception's words, or none when it cannot say them."""
    try:
        return str(error)
    except (Exception, SystemExit):  # part of the environment boundary: the exception is other people's code too
        return "(no message)"


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:40]} is beyond every number a computer has")
    return value


def tool(
    function: Callable[..., Any] | None = None,
    *,
    timeout_s: float = 30.0,
    inline: bool = False,
    max_concurrency: int | Limit | None = None,
) -> Any:
    """Make a Tool of a function with annotated arguments and a docstring.

    The docstring's first paragraph is the description; arguments are described in a Google, NumPy or reST section of
    it, or by Annotated[T, pydantic.Field(description=...)]. max_concurrency: calls at once; tools made for each
    trajectory share a Limit. timeout_s: with the wait for a place, which may take as long, it must stay below
    rollout.environment_timeout_s, or a late call masks the trajectory. Raises TypeError for an argument without
    annotation, a missing docstring, arguments without a name (*args), a section that describes an argument the function
    lacks, or a function that yields.
    """

    if not timeout_s > 0:
        raise ValueError(f"tool(timeout_s={timeout_s}): must be above 0; 30 is usual")

    def make(function: Callable[..., Any]) -> Tool:
        if not hasattr(function, "__name__"):
            raise TypeError(f"{function!r:.80} has no name for the model to call: make the tool of a function")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"tool {function.__name__!r} yields: its answer would be no text; return the whole of it")
        if inline and inspect.iscoroutinefunction(function):
            raise TypeError(
                f"tool {function.__name__!r} is async and inline: only a plain function can be inline; drop one"
            )
        arguments, names = _arguments(function)
        description = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        schema = shown(arguments.model_json_schema())
        return Tool(
            description=ToolDescription(name=function.__name__, description=description, parameters=schema),
            check=lambda values: _checked(arguments, names, values),
            function=function,
            timeout_s=timeout_s,
            inline=inline,
            limit=Limit(max_concurrency) if isinstance(max_concurrency, int) else max_concurrency,
        )

    return make if function is None else make(function)


def _arguments(function: Callable[..., Any]) -> tuple[type[pydantic.BaseModel], dict[str, str]]:
    """A model of the function's arguments, as its signature and its docstring say, and the argument that each of its
    fields is. The fields have names of their own, for a model cannot have one named `_x` or `model_config`."""
    name = function.__name__
    if not function.__doc__:
        raise TypeError(f"tool {name!r} has no docstring: it is the description that the model reads; write one")
    told = {p.arg_name: p.description for p in docstring_parser.parse(function.__doc__).params if p.description}
    try:
        hints = inspect.get_annotations(function, eval_str=True)
    except NameError as error:
        raise TypeError(f"tool {name!r}: {error}, which an annotation says; define it in the module") from error
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for argument, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"tool {name!r}: argument {parameter} cannot be given by name; make it an ordinary one")
        if argument not in hints:
            raise TypeError(f"tool {name!r}: argument {argument!r} has no type annotation; add one")
        default = ... if parameter.default is parameter.empty else parameter.default
        hint, description = hints[argument], told.pop(argument, None)
        if description is not None:
            hint = Annotated[hint, pydantic.Field(description=" ".join(description.split()))]
        field = f"tool_argument_{len(names)}"
        fields[field], names[field] = (hint, default), argument
    if told:
        raise TypeError(f"tool {name!r} describes an argument {min(told)!r} that it lacks; correct the docstring")
    config = pydantic.ConfigDict(extra="forbid", alias_generator=lambda field: names.get(field, field))
    return pydantic.create_model(name, __config__=config, **fields), names


def _checked(
    arguments: type[pydantic.BaseModel], names: Mapping[str, str], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The function's arguments. Checked as JSON, for there a list is a tuple, and a text a date or a member of an
    enum, which strictly they are not in Python."""
    try:
        checked = arguments.model_validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        faults = [f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in found[:NUM_FAULTS]]
        more = [f"and {len(found) - NUM_FAULTS} more"] if len(found) > NUM_FAULTS else []
        raise BadArguments("; ".join(faults + more)) from None
    return {argument: getattr(checked, field) for field, argument in names.items()}
