"""What GPT-OSS is told of its tools: a developer section in TypeScript notation, made from JSON schemas.

In: tool descriptions. Out: text, equal to what oss-harmony 0.0.11 writes, oddities included, because models know it so:
`anyOf` and `$ref` become `any`, and a property's title and description become comments above it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.types import ToolDescription

_NAMES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def tools_section(tools: Sequence[ToolDescription]) -> str:
    """The `# Tools` section with all tools in the namespace `functions`."""
    lines = ["# Tools\n\n## functions\n\nnamespace functions {\n"]
    for tool in tools:
        lines += [f"// {line}" for line in _lines(tool.description)]
        lines.append(f"type {tool.name} = (_: {typescript(tool.parameters)}) => any;\n")
    lines.append("} // namespace functions")
    return "\n".join(lines)


def typescript(schema: Mapping[str, Any] | bool, indent: str = "") -> str:
    """A JSON schema as a TypeScript type; lines after the first are indented by `indent`."""
    if not isinstance(schema, Mapping):  # JSON schema allows a bare true, for "anything"
        return "any"
    kind, variants = schema.get("type"), schema.get("oneOf")
    if isinstance(variants, list):
        return "".join(f"\n{indent} | {_variant(v, indent)}{_trailing(v)}" for v in variants)
    if isinstance(kind, list) and (names := [name for name in kind if isinstance(name, str)]):
        return " | ".join("number" if name == "integer" else name for name in names)
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{typescript(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string" and (options := [f'"{o}"' for o in schema.get("enum") or () if isinstance(o, str)]):
        return " | ".join(options)
    return _NAMES.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: Mapping[str, Any], indent: str) -> str:
    required = schema.get("required") or ()
    properties = schema.get("properties") or {}
    described = f"{indent}// {schema['description']}\n" if isinstance(schema.get("description"), str) else ""
    body = "".join(_property(key, value, key in required, indent) for key, value in properties.items())
    return f"{described}{{\n{body}{indent}}}"


def _property(key: str, schema: Mapping[str, Any] | bool, required: bool, indent: str) -> str:
    schema = schema if isinstance(schema, Mapping) else {}
    name = f"{indent}{key}{'' if required else '?'}:"
    comments = [f"// {schema['title']}", "//"] if isinstance(schema.get("title"), str) else []
    described = isinstance(schema.get("description"), str)
    examples = [f'// - "{example}"' for example in schema.get("examples") or () if isinstance(example, str)]
    examples = ["// Examples:", *examples] if schema.get("examples") else []
    if isinstance(schema.get("oneOf"), list):
        return _union(name, schema, [*comments, *examples], indent)
    comments += [f"// {schema['description']}"] if described else []
    default = f" // default: {_default(schema)}" if "default" in schema else ""
    above = "".join(f"{indent}{comment}\n" for comment in [*comments, *examples])
    return f"{above}{name} {_nullable(schema, indent + '    ')},{default}\n"


def _union(name: str, schema: Mapping[str, Any], comments: list[str], indent: str) -> str:
    """A property that is one of several types: each on a line of its own, with its own comment after it."""
    variants, description = schema["oneOf"], schema.get("description")
    first = variants[0].get("description") if variants else None
    above = isinstance(description, str) and description != first
    comments = [*comments, f"// {description}"] if above else comments
    comments += [f"// default: {_default(schema)}"] if "default" in schema else []
    lines = [f"{indent}{comment}" for comment in comments] + [name]
    for number, variant in enumerate(variants):
        silent = (number == 0 and above) or variant.get("description") == description
        lines.append(f"{indent} | {_variant(variant, indent)}{_trailing(variant, silent, bare_enum=True)}")
    return "\n".join([*lines, f"{indent},\n"])


def _variant(schema: Mapping[str, Any], indent: str) -> str:
    return _nullable(schema, indent + "   ")


def _nullable(schema: Mapping[str, Any], indent: str) -> str:
    text = typescript(schema, indent)
    return f"{text} | null" if schema.get("nullable") is True and "null" not in text else text


def _trailing(schema: Mapping[str, Any], silent: bool = False, bare_enum: bool = False) -> str:
    description = schema.get("description")
    parts = [description] if isinstance(description, str) and not silent else []
    if "default" in schema:
        quoted = bool(schema.get("enum")) and not bare_enum
        parts.append(f"default: {_json(schema['default']) if quoted else _default(schema)}")
    return f" // {' '.join(parts)}" if parts else ""


def _default(schema: Mapping[str, Any]) -> str:
    """A default as the reference shows it: strings quoted but not escaped, members of an enum bare."""
    default = schema["default"]
    if not isinstance(default, str):
        return _json(default)
    return default if schema.get("enum") else f'"{default}"'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _lines(text: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines
