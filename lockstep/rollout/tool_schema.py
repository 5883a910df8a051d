"""The JSON schema of a tool's arguments as the model is shown it, in the features that the formats can render:
references are written out, alternatives are oneOf, an optional X is a nullable X, and titles, which repeat the names,
are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        return {**rest, "oneOf": kinds or variants}, within

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
