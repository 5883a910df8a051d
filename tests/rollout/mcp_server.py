"""A live MCP server for the tests: python mcp_server.py stdio, or: python mcp_server.py http PORT."""

import asyncio
import os
import sys
from typing import Literal

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp_types import CallToolResult, EmbeddedResource, ResourceLink, TextContent, TextResourceContents
from pydantic import BaseModel

server = MCPServer("test", log_level="CRITICAL")
counts: dict[str, int] = {}


class Place(BaseModel):
    """Somewhere."""

    city: str
    street: str | None = None
    near: list["Place"] = []


@server.tool()
def add(a: int, b: int) -> int:
    """Add two integers.

    Both are whole."""
    return a + b


@server.tool(structured_output=False)
def echo(text: str) -> str:
    """Say it again."""
    return text


@server.tool(structured_output=False)
def fail(why: str = "no reason") -> str:
    """Fail."""
    raise ValueError(why)


@server.tool(structured_output=False)
async def hang() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return ""


@server.tool(structured_output=False)
def flood(characters: int) -> str:
    """Say very much."""
    return "ab" * (characters // 2)


@server.tool(structured_output=False)
def crash() -> str:
    """End the server."""
    print("it went wrong here", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool(structured_output=False)
def image() -> Image:
    """Show a picture."""
    return Image(data=b"\x89PNG" * 30, format="png")


@server.tool(structured_output=False)
def resources() -> CallToolResult:
    """Show all kinds of content."""
    return CallToolResult(
        content=[
            TextContent(type="text", text="see"),
            ResourceLink(type="resource_link", uri="file:///notes.txt", name="notes"),
            EmbeddedResource(type="resource", resource=TextResourceContents(uri="file:///a.txt", text="inside")),
        ]
    )


@server.tool(structured_output=False)
def structured() -> CallToolResult:
    """Give data alone."""
    return CallToolResult(content=[], structured_content={"is": ["é", 1]})


@server.tool(structured_output=False)
def count(context: Context) -> str:
    """Count the calls of a session."""
    request = getattr(context.request_context, "request", None)
    session = request.headers.get("mcp-session-id", "") if request is not None else ""
    counts[session] = counts.get(session, 0) + 1
    return f"{counts[session]} in {os.getpid()}"


@server.tool(structured_output=False)
def session(context: Context) -> str:
    """The session's id."""
    request = getattr(context.request_context, "request", None)
    return request.headers.get("mcp-session-id", "") if request is not None else ""


@server.tool(structured_output=False)
def visit(place: Place, how: Literal["foot", "train"], days: int | None = None) -> str:
    """Go somewhere."""
    return f"{place.city} by {how}"


@server.tool("odd.name/x", structured_output=False)
def odd() -> str:
    """Has a name that no format can write."""
    return "odd"


@server.tool(structured_output=False)
def secret(name: str) -> str:
    """An environment variable."""
    return os.environ.get(name, "is not set")


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", port=int(sys.argv[2]))
