"""The result of an MCP tool as text for a model: texts as they are, and a short note for what is none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import mcp_types


def text_of(result: mcp_types.CallToolResult) -> str:
    """All content blocks, one below the other; the structured content only where there are none, for servers repeat
    it as text."""
    blocks: Iterable[str] = map(_text, result.content)
    if not result.content and result.structured_content is not None:
        blocks = (json.dumps(result.structured_content, ensure_ascii=False),)
    return "\n".join(blocks)


def _text(block: Any) -> str:
    match block:
        case mcp_types.TextContent():
            return block.text
        case mcp_types.ImageContent() | mcp_types.AudioContent():
            return f"[{block.mime_type}, about {len(block.data) * 3 // 4} bytes, not shown]"
        case mcp_types.ResourceLink():
            return f"[resource {block.uri}]"
        case mcp_types.EmbeddedResource(resource=mcp_types.TextResourceContents() as held):
            return f"[resource {held.uri}]\n{held.text}"
        case mcp_types.EmbeddedResource():
            return f"[resource {block.resource.uri}, not shown]"
        case _:
            return f"[{type(block).__name__}, not shown]"
