"""An MCP server as a source of tools: how it is reached, which of its tools are offered, how often at once.

    docs = McpServer(command=("uvx", "some-docs-server"), allow=("search_*",))
    run = Run(environment=WithTools(environment=GSM8K(...), servers=(docs,)), ...)

or, in an environment of your own, `async with docs.tools() as tools:`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import re
import shlex
import string
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lockstep.rollout.concurrency import Limit
from lockstep.rollout.mcp import schema, transport
from lockstep.rollout.mcp.connection import Connection, Gone
from lockstep.rollout.mcp.result import text_of
from lockstep.rollout.tool import InfrastructureError, Tool, ToolError
from lockstep.rollout.tool_schema import shown
from lockstep.types import ToolDescription, UserError


@dataclass(frozen=True, kw_only=True)
class McpServer:
    """A server of the Model Context Protocol, and which of its tools are offered. Give `command` or `url`.

    The server is started or connected to when its tools are first asked for, and closed when the process exits. One
    that is gone is started anew once, and the call that found it gone is repeated there; after that the trajectory is
    masked. `per_trajectory` changes both: the server ends with the trajectory, and one that is gone masks it at once.
    """

    command: tuple[str, ...] = ()
    """Program and arguments of a server that speaks over its standard input and output."""
    url: str = ""
    """Address of a server that speaks streamable HTTP."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the command, beside PATH, HOME, SHELL, TERM, USER and LOGNAME, which it always has.
    $NAME in a value is replaced by this process's variable, so that no secret stands in a recipe."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """HTTP headers for the url; $NAME as in env."""
    cwd: Path | None = None
    """The command's working directory; None is this process's."""
    prefix: str = ""
    """Put before the names of the tools, to keep those of several servers apart."""
    allow: tuple[str, ...] = ("*",)
    """Which tools are offered: patterns of the server's own names, with * and ?."""
    per_trajectory: bool = False
    """A process or session for each trajectory, for servers that keep a state. Over HTTP only servers that know
    sessions keep states apart."""
    timeout_s: float = 30.0
    """Seconds a call may take; the model reads of a later one that there was no answer."""
    connect_timeout_s: float = 30.0
    """Seconds until a server must have started and listed its tools."""
    max_concurrency: int = 64
    """Calls at once, over all trajectories."""

    def __post_init__(self) -> None:
        if isinstance(self.command, str) and self.command:
            raise UserError(f"McpServer(command={self.command!r}): write {tuple(shlex.split(self.command))!r}")
        if isinstance(self.allow, str):
            raise UserError(f"McpServer(allow={self.allow!r}): write {(self.allow,)!r}")
        if bool(self.command) == bool(self.url):
            raise UserError(f"McpServer(command={self.command!r}, url={self.url!r}): give one of the two")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"McpServer(url={self.url!r}): must begin with http:// or https://")
        if not re.fullmatch(r"[A-Za-z0-9_-]*", self.prefix):
            raise UserError(f"McpServer(prefix={self.prefix!r}): take letters, digits, _ and - alone")
        for name, unused in (("headers", self.command), ("env", self.url), ("cwd", self.url)):
            if unused and getattr(self, name):
                given = "command" if self.command else "url"
                raise UserError(f"McpServer({name}=...) has no effect with {given}; leave it out")
        for name in ("timeout_s", "connect_timeout_s", "max_concurrency"):
            if not getattr(self, name) > 0:
                raise UserError(f"McpServer({name}={getattr(self, name)}): must be above 0")

    @property
    def name(self) -> str:
        """For messages: the program with its first argument, or the address; further arguments may be secret."""
        return " ".join(self.command[:2]) or self.url.partition("?")[0].rpartition("@")[2]

    @asynccontextmanager
    async def tools(self) -> AsyncIterator[Sequence[Tool]]:
        """The tools that are offered, for one trajectory; leaving releases what belongs to it alone. May be entered
        and left in any task and any event loop.

        Raises UserError for a variable that is not set or patterns that allow nothing, and InfrastructureError when
        the server cannot be reached.
        """
        if not self.per_trajectory:
            line = self._shared
            yield self._offered(await line.open(), line.call)
            return
        connection = self._connect()
        try:
            yield self._offered(await connection.open(), functools.partial(_call_own, connection))
        finally:
            await connection.close()

    @functools.cached_property
    def _shared(self) -> _Shared:
        return _Shared(self._connect, restart_s=min(self.connect_timeout_s, self.timeout_s / 2))

    @functools.cached_property
    def _limit(self) -> Limit:
        return Limit(self.max_concurrency)

    def _connect(self) -> Connection:
        """A connection that is not open yet."""
        stderr = bytearray()
        if self.command:
            env = _with_variables(self.env, "env")

            def streams(ended: Callable[[str], None]) -> AbstractAsyncContextManager[tuple[Any, Any]]:
                return transport.stdio(self.command, env=env, cwd=self.cwd, stderr=stderr, ended=ended)
        else:
            headers = _with_variables(self.headers, "headers")

            def streams(ended: Callable[[str], None]) -> AbstractAsyncContextManager[tuple[Any, Any]]:
                return transport.http(self.url, headers=headers, connect_timeout_s=self.connect_timeout_s)

        return Connection(
            streams,
            name=self.name,
            fix="correct its command, env or cwd" if self.command else "start it, or correct its url or headers",
            handshake=self.per_trajectory and bool(self.url),
            connect_timeout_s=self.connect_timeout_s,
            last_words=lambda: _last_line(stderr),
        )

    def _offered(self, listed: Sequence[Any], call: Callable[..., Any]) -> Sequence[Tool]:
        chosen = [tool for tool in listed if any(fnmatchcase(tool.name, pattern) for pattern in self.allow)]
        if not chosen:
            names = ", ".join(tool.name for tool in listed) or "none"
            raise UserError(
                f"MCP server {self.name}: allow={self.allow!r} allows none of its tools, which are: {names}"
            )
        tools = [self._tool(tool, call) for tool in chosen]
        names = [tool.name for tool in tools]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"MCP server {self.name}: two of its tools are named {min(twice)!r}; allow only one of them"
            )
        return tools

    def _tool(self, listed: Any, call: Callable[..., Any]) -> Tool:
        async def function(**arguments: Any) -> str:
            result = await call(listed.name, arguments)
            if result.is_error:
                raise ToolError(text_of(result))
            return text_of(result)

        try:
            check = schema.checker(listed.input_schema)
        except ValueError as error:
            raise UserError(
                f"MCP server {self.name}: the schema of its tool {listed.name!r} is none ({error}); name in `allow` "
                "the tools without it"
            ) from error
        description = ToolDescription(
            name=self.prefix + re.sub(r"[^A-Za-z0-9_-]", "_", listed.name),
            description=inspect.cleandoc(listed.description or listed.title or listed.name),
            parameters=shown(listed.input_schema),
        )
        return Tool(
            description=description, check=check, function=function, timeout_s=self.timeout_s, limit=self._limit
        )


class _Shared:
    """One connection for all trajectories, made anew when it is gone. restart_s: how long a call waits for that."""

    def __init__(self, connect: Callable[[], Connection], *, restart_s: float) -> None:
        self._connect, self._restart_s = connect, restart_s
        self._connection: Connection | None = None

    def _current(self) -> Connection:
        if self._connection is None or self._connection.over:
            self._connection = self._connect()
        return self._connection

    async def open(self) -> Sequence[Any]:
        return await self._current().open()

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """The result, if need be of a second try on a new connection. Raises InfrastructureError when that fails."""
        try:
            return await self._current().call(tool, arguments)
        except Gone:
            connection = self._current()
        try:
            async with asyncio.timeout(self._restart_s):
                await connection.open()
        except TimeoutError as error:
            raise InfrastructureError(
                f"MCP server {connection.name} was gone and is not back within {self._restart_s:g} s"
            ) from error
        return await _call_own(connection, tool, arguments)


async def _call_own(connection: Connection, tool: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return await connection.call(tool, arguments)
    except Gone as gone:
        raise InfrastructureError(str(gone)) from gone


def _with_variables(values: Mapping[str, str], where: str) -> dict[str, str]:
    """The values with $NAME replaced. Raises UserError, which never shows a value."""
    try:
        return {name: string.Template(value).substitute(os.environ) for name, value in values.items()}
    except KeyError as error:
        raise UserError(f"McpServer({where}=...) needs the environment variable {error.args[0]}; set it") from None
    except ValueError:
        raise UserError(f"McpServer({where}=...) has a $ that begins no name; write $$ for a dollar sign") from None


def _last_line(stderr: bytearray) -> str:
    """The last line that a process wrote, for a message."""
    written = bytes(stderr).decode("utf-8", "replace").split("\n")
    return " ".join(next((line for line in reversed(written) if line.strip()), "").split())[:300]
