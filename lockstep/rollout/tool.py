"""A tool from a typed function: its JSON schema, its arguments checked, its time limited.

A tool's failure is data: `call` never raises for what the model wrote or what the function raised; it returns text for
the model to read and names the fault for the counters.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pydantic

from lockstep.types import ToolDescription


class ToolError(Exception):
    """Raised inside a tool to tell the model, in the exception's words, why the call failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """text: what the model reads. fault: None, 'malformed/bad_json', 'malformed/bad_arguments', 'tool/error' or
    'tool/timeout'."""

    text: str
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """name, description, arguments: what the model is told. function: sync or async, keyword arguments, returns text.

    timeout_s: an answer later than this is a fault. inline: run a sync function on the event loop itself rather than in
    a thread; only for pure functions that return at once (it keeps the order of events, and so resume, exact).
    """

    description: ToolDescription
    arguments: type[pydantic.BaseModel]
    function: Callable[..., str | Awaitable[str]]
    timeout_s: float = 30.0
    inline: bool = False

    @property
    def name(self) -> str:
        return self.description.name

    async def call(self, arguments: str) -> ToolResult:
        """Run the tool on the JSON text a model wrote."""
        try:
            values = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return ToolResult(text=f"Error: arguments are not valid JSON ({error}).", fault="malformed/bad_json")
        if not isinstance(values, dict):
            text = f"Error: arguments must be a JSON object, not {type(values).__name__}."
            return ToolResult(text=text, fault="malformed/bad_arguments")
        try:
            checked = self.arguments.model_validate(values, strict=True)
        except pydantic.ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors())
            return ToolResult(text=f"Error: {faults}.", fault="malformed/bad_arguments")
        return await self._run({name: getattr(checked, name) for name in self.arguments.model_fields})

    async def _run(self, values: dict[str, Any]) -> ToolResult:
        deadline = asyncio.timeout(self.timeout_s)
        try:
            if self.inline:
                result = self.function(**values)
            else:
                async with deadline:
                    if inspect.iscoroutinefunction(self.function):
                        result = await self.function(**values)
                    else:
                        result = await asyncio.to_thread(self.function, **values)
        except ToolError as error:
            return ToolResult(text=_encodable(f"Error: {error}"), fault="tool/error")
        except Exception as error:  # the environment boundary: a tool is other people's code
            if deadline.expired():
                return ToolResult(text=f"Error: no answer within {self.timeout_s:g} s.", fault="tool/timeout")
            return ToolResult(text=_encodable(f"Error: {type(error).__name__}: {error}"), fault="tool/error")
        return ToolResult(text=_encodable(str(result)))


def _encodable(text: str) -> str:
    """Text that has a UTF-8 form: a lone surrogate, which JSON can spell, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _plain(schema: Any) -> Any:
    """A JSON schema without what only repeats the names: titles go, and an optional X becomes a nullable X."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kinds = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if len(kinds) == 1 and len(schema["anyOf"]) == 2:
        schema = {**{key: value for key, value in schema.items() if key != "anyOf"}, **kinds[0], "nullable": True}
    properties = {name: _plain(part) for name, part in schema.get("properties", {}).items()}
    plain = {key: _plain(value) for key, value in schema.items() if key not in ("title", "properties")}
    return plain | ({"properties": properties} if "properties" in schema else {})


def tool(function: Callable[..., Any] | None = None, *, timeout_s: float = 30.0, inline: bool = False) -> Any:
    """Make a Tool of a function with annotated arguments and a docstring (its first paragraph is the description).

    Raises TypeError for an argument without annotation, or a missing docstring: both are what the model is told.
    """

    def make(function: Callable[..., Any]) -> Tool:
        if not function.__doc__:
            raise TypeError(
                f"tool {function.__name__!r} has no docstring: it is the description that the model reads; write one"
            )
        if inline and inspect.iscoroutinefunction(function):
            raise TypeError(
                f"tool {function.__name__!r} is async and inline: only a plain function can be inline; drop one"
            )
        fields: dict[str, Any] = {}
        hints = inspect.get_annotations(function, eval_str=True)
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in hints:
                raise TypeError(f"tool {function.__name__!r}: argument {name!r} has no type annotation; add one")
            fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        config = pydantic.ConfigDict(extra="forbid")
        arguments = pydantic.create_model(function.__name__, __config__=config, **fields)
        description = inspect.cleandoc(function.__doc__).split("\n\n")[0].replace("\n", " ")
        schema = _plain(arguments.model_json_schema())
        return Tool(
            description=ToolDescription(name=function.__name__, description=description, parameters=schema),
            arguments=arguments,
            function=function,
            timeout_s=timeout_s,
            inline=inline,
        )

    return make if function is None else make(function)
