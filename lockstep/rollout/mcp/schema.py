"""The JSON schema of a server's tool as the check of what the model writes: the schema as the server gave it.

The check runs on the event loop, so its time is bounded: long arguments are refused, and so are those that take a
schema too many steps; patterns, whose matching may take for ever, are the server's to check.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lockstep.rollout.tool import BadArguments
from lockstep.rollout.tool_schema import VALUES
from lockstep.types import UserError

try:
    import jsonschema
    import referencing
    import referencing.exceptions
    from jsonschema.validators import extend, validator_for
except ModuleNotFoundError as error:
    raise UserError("MCP tools need the package mcp: pip install mcp==2.0.0") from error

MAX_FAULTS, MAX_FAULT_CHARACTERS = 5, 200
MAX_BYTES, MAX_ITEMS = 1 << 16, 500  # of all arguments as JSON; of one array in them
MAX_STEPS = 20_000  # keywords of a schema that one check applies; references can make a small one take billions
UNCHECKED = ("pattern", "unevaluatedItems", "unevaluatedProperties")  # their time is not bounded


def _unchecked(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    yield from ()


def _unique(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """uniqueItems in one pass; 1 and 1.0, which are equal, are left to the server."""
    items = [json.dumps(item, sort_keys=True) for item in instance] if value and isinstance(instance, list) else []
    if len(set(items)) < len(items):
        yield jsonschema.ValidationError("has an item twice")


def _undeclared(part: Any) -> Any:
    """A schema without $schema, which would bring the checks of patterns back, and without what only patterns tell
    apart."""
    if isinstance(part, list):
        return [_undeclared(one) for one in part]
    if not isinstance(part, dict):
        return part
    dropped = {"$schema"} if isinstance(part.get("$schema"), str) else set()
    if isinstance(part.get("patternProperties"), dict):
        dropped |= {"patternProperties", "additionalProperties", "unevaluatedProperties"}
    return {key: value if key in VALUES else _undeclared(value) for key, value in part.items() if key not in dropped}


def _has_long_array(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_long_array, value.values()))
    return isinstance(value, list) and (len(value) > MAX_ITEMS or any(map(_has_long_array, value)))


def checker(schema: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """A check for Tool: the arguments as they are, or BadArguments that says which are wrong. References out of the
    schema are not fetched. Raises ValueError when the schema is none."""
    return _checker(json.dumps(schema))


@functools.lru_cache(maxsize=4096)  # to read a schema takes milliseconds, and each trajectory asks for all its tools
def _checker(text: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    schema = json.loads(text)
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(_line(error.message)) from error
    steps = iter(())

    def counted(keyword: Any) -> Any:
        def apply(*given: Any) -> Any:
            if next(steps, None) is None:
                raise BadArguments(f"arguments: the schema takes more than {MAX_STEPS} steps to check them")
            return keyword(*given)

        return apply

    applied = {**kind.VALIDATORS, "uniqueItems": _unique, **dict.fromkeys(UNCHECKED, _unchecked)}
    bounded: Any = extend(kind, {name: counted(keyword) for name, keyword in applied.items()})
    validator = bounded(_undeclared(schema), registry=referencing.Registry())

    def check(values: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal steps
        steps = iter(range(MAX_STEPS))
        try:
            if len(json.dumps(values, ensure_ascii=False, allow_nan=False).encode()) > MAX_BYTES:
                raise BadArguments(f"arguments: longer than {MAX_BYTES} bytes")
            if _has_long_array(values):
                raise BadArguments(f"arguments: an array of more than {MAX_ITEMS} items")
            faults = list(_first(validator.iter_errors(values), MAX_FAULTS))
        except UnicodeEncodeError:
            raise BadArguments("arguments: a text has half a surrogate pair, which is no character") from None
        except ValueError:
            raise BadArguments("arguments: a number is too large") from None
        except RecursionError:
            raise BadArguments("arguments: nested too deeply") from None
        except referencing.exceptions.Unresolvable as error:
            raise BadArguments(f"arguments: cannot be checked, for the schema points at {error.ref!r}") from None
        if faults:
            raise BadArguments("; ".join(map(_said, faults)))
        return values

    return check


def _first(found: Any, count: int) -> Sequence[Any]:
    return [fault for fault, _ in zip(found, range(count), strict=False)]


def _said(fault: jsonschema.ValidationError) -> str:
    where = ".".join(map(str, fault.absolute_path)) or "arguments"
    return f"{_line(where)}: {_line(fault.message)}"


def _line(text: str) -> str:
    """A text on one line and not much longer than that."""
    line = " ".join(text[: 4 * MAX_FAULT_CHARACTERS].split())
    return line if len(line) <= MAX_FAULT_CHARACTERS else f"{line[:MAX_FAULT_CHARACTERS]}..."
