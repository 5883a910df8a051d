"""Connections to MCP servers, each owned by one task of the background loop.

The `mcp` client must be left by the task that entered it, and a connection outlives the event loops of its callers;
`open`, `call` and `close` may be awaited from any task of any loop. At exit all connections are closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from lockstep.rollout.background import background
from lockstep.rollout.concurrency import cancelled
from lockstep.rollout.mcp.transport import ServerFault
from lockstep.rollout.tool import InfrastructureError, ToolError
from lockstep.types import UserError

try:
    import mcp_types
    from mcp.client import Client
    from mcp.shared.exceptions import MCPError
except ModuleNotFoundError as error:
    raise UserError("MCP tools need the package mcp: pip install mcp==2.0.0") from error

MAX_PAGES = 100  # of a server's list of tools

for _name in ("mcp", "client", "httpx2"):  # the client's own logging: what matters is raised
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Gone(Exception):
    """The connection ended before an answer came. The message says why, in one line."""


class Connection:
    """One session with one server, from `open` to `close`.

    streams: makes the transport; it is given what to call with a reason when the server stops answering. name: for
    messages. fix: what a user may do about a server that cannot be reached. handshake: begin a session as older servers
    know it; over HTTP only such a session has a state.
    """

    def __init__(
        self,
        streams: Callable[[Callable[[str], None]], AbstractAsyncContextManager[tuple[Any, Any]]],
        *,
        name: str,
        fix: str,
        handshake: bool,
        connect_timeout_s: float,
        last_words: Callable[[], str],
    ) -> None:
        self.name, self.reason, self._fix = name, "", fix
        self._streams, self._handshake, self._last_words = streams, handshake, last_words
        self._connect_timeout_s = connect_timeout_s
        self._client: Client | None = None
        self._background = background()
        self._owner: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Sequence[mcp_types.Tool]] = self._background.loop.create_future()
        self._leave = asyncio.Event()

    @property
    def over(self) -> bool:
        """It has ended, or is ending, whatever the reason."""
        return self._leave.is_set() or (self._owner is not None and self._owner.done())

    async def open(self) -> Sequence[mcp_types.Tool]:
        """Connect, the first time, and list the server's tools. Raises InfrastructureError when it cannot."""
        return await self._background.run(self._open())

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> mcp_types.CallToolResult:
        """The server's result. Raises Gone, or ToolError for what the server refuses."""
        return await self._background.run(self._call(tool, arguments))

    async def close(self) -> None:
        """End it, and wait until nothing of it is left; closing again changes nothing."""
        await self._background.run(self._close())

    async def _open(self) -> Sequence[mcp_types.Tool]:
        if self._owner is None:
            self._background.closers.add(self._close)
            self._owner = asyncio.create_task(self._own())
        return await asyncio.shield(self._ready)

    async def _own(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._connect_timeout_s):
                    transport = self._streams(self._ended)
                    mode = "legacy" if self._handshake else "auto"
                    client = Client(transport, mode=mode, cache=None)  # pyright: ignore[reportArgumentType]
                    self._client = await stack.enter_async_context(client)
                    self._client.session.validate_tool_result = _as_it_is
                    tools = await _listed(self._client)
                if not self._leave.is_set():
                    self._ready.set_result(tools)
                await self._leave.wait()
        except Exception as error:  # the environment boundary: a server is other people's code
            self.reason = self.reason or _why(error, self._connect_timeout_s)
        finally:
            self._leave.set()
            self._background.closers.discard(self._close)
            if not self._ready.done():
                self._ready.set_exception(InfrastructureError(f"{self.failure()}; {self._fix}"))
                self._ready.exception()  # it is not lost when nobody asks

    def _ended(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._leave.set()

    def failure(self) -> str:
        """What to tell the user of a connection that is over."""
        words = f"; it last said: {words}" if (words := self._last_words()) else ""
        return f"MCP server {self.name}: {self.reason or 'ended before it answered'}{words}"

    async def _call(self, tool: str, arguments: Mapping[str, Any]) -> mcp_types.CallToolResult:
        if self.over or self._client is None or self._owner is None:
            raise Gone(self.failure())
        left = asyncio.create_task(self._leave.wait())
        call = asyncio.create_task(self._client.call_tool(tool, dict(arguments)))
        try:
            await asyncio.wait((call, left, self._owner), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise Gone(self.failure())
            return call.result()
        except MCPError as error:
            if error.code == mcp_types.CONNECTION_CLOSED:
                await self._close()  # then the reason is known
                raise Gone(self.failure()) from error
            if error.code == mcp_types.PARSE_ERROR:
                raise ToolError("the answer is too long, or cannot be read.") from error
            raise ToolError(error.message) from error
        finally:
            await cancelled([call, left])

    async def _close(self) -> None:
        self._leave.set()
        if self._owner is not None:
            await asyncio.wait([self._owner])


async def _as_it_is(name: str, result: mcp_types.CallToolResult) -> None:
    """In place of the client's check of a result by the schema that its own server gave for it: a pattern in one can
    keep this process busy for ever, and a result that breaks the promise is still what the server said."""


async def _listed(client: Client) -> Sequence[mcp_types.Tool]:
    """All the server's tools, page after page."""
    tools: list[mcp_types.Tool] = []
    cursor = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise ServerFault(f"lists its tools on more than {MAX_PAGES} pages")


def _why(error: BaseException, connect_timeout_s: float) -> str:
    """What ended a connection, in one line: the first cause that a group of exceptions holds."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ServerFault):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"did not answer within {connect_timeout_s:g} s"
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
