"""The JSON schema of a server's tool: as the model is shown it, and as the check of what the model writes.

The check is of the schema as the server gave it. What the model is shown says the same in the features that the
formats can render: references are written out, alternatives are oneOf, and titles, which repeat the names, are gone.

The check runs on the event loop, so its time is bounded by the length of the arguments: what is long is refused, and
patterns, whose matching may take for ever, are the server's to check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lockstep.rollout.tool import BadArguments
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
MAX_PARTS = 2000  # of a schema that is shown; the rest is shown as anything
DROPPED = ("title", "$schema", "$id", "$defs", "definitions", "$comment", "$ref", "anyOf", "allOf")
VALUES = ("enum", "const", "default", "examples", "required")  # keywords that hold no schema


def shown(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema for the model to read. What refers to itself is shown as anything where it does."""
    return {"type": "object", "properties": {}} | _Reading(schema).shown(schema, ())


class _Reading:
    """One schema being read. root: what references start from."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root, self.room = root, MAX_PARTS

    def shown(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> dict[str, Any]:
        """within: the references that led here."""
        self.room -= 1
        if self.room < 0:
            return {}
        schema, within = self.plain(schema, within)
        told: dict[str, Any] = {}
        for key, value in schema.items():
            if key in ("properties", "patternProperties") and isinstance(value, Mapping):
                told[key] = {name: self.part(part, within) for name, part in value.items()}
            elif key in VALUES:
                told[key] = value
            elif key not in DROPPED:
                told[key] = self.part(value, within)
        if isinstance(told.get("const"), str):
            told = {"type": "string", "enum": [told.pop("const")]} | told
        return told

    def part(self, value: Any, within: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            return self.shown(value, within)
        return [self.part(one, within) for one in value] if isinstance(value, list) else value

    def plain(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """A schema whose references and combinations are written out at its top."""
        if isinstance(reference := schema.get("$ref"), str):
            target = {} if reference in within else self.target(reference)
            return self.plain(_both(target, _without(schema, "$ref")), (*within, reference))
        if isinstance(parts := schema.get("allOf"), list):
            merged = _without(schema, "allOf")
            for part in parts:
                if isinstance(part, Mapping):
                    part, within = self.plain(part, within)
                    merged = _both(part, merged)
            return self.plain(merged, within)
        if not isinstance(variants := schema.get("anyOf"), list):
            return schema, within
        kinds = [variant for variant in variants if variant != {"type": "null"}]
        rest = _without(schema, "anyOf") | ({"nullable": True} if len(kinds) < len(variants) else {})
        if len(kinds) == 1 and isinstance(kinds[0], Mapping):
            return self.plain(_both(kinds[0], rest), within)
        return {**rest, "oneOf": variants}, within

    def target(self, reference: str) -> Mapping[str, Any]:
        """What a reference points at within the schema; nothing when it points elsewhere."""
        found: Any = self.root if reference == "#" or reference.startswith("#/") else {}
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}


def _without(schema: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != keyword}


def _both(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two schemas as one; where they differ the upper one is right."""
    both = {**below, **above}
    if isinstance(below.get("properties"), Mapping) and isinstance(above.get("properties"), Mapping):
        both["properties"] = {**below["properties"], **above["properties"]}
    if isinstance(below.get("required"), list) and isinstance(above.get("required"), list):
        both["required"] = list(dict.fromkeys([*below["required"], *above["required"]]))
    return both


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
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        raise ValueError(_line(error.message)) from error
    bounded: Any = extend(kind, {"pattern": _unchecked, "uniqueItems": _unique})
    validator = bounded(_undeclared(dict(schema)), registry=referencing.Registry())

    def check(values: Mapping[str, Any]) -> Mapping[str, Any]:
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
