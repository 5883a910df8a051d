"""Ways to a server, as the `mcp` client's transports: a process's standard input and output, or streamable HTTP.

Both bound what a server can make this process hold: of an answer longer than MAX_ANSWER_BYTES the rest is dropped, and
the call that waits for it fails. A process is tied to this one (see tether.py), and what it last wrote to its standard
error is kept for the message that says why it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lockstep.types import UserError

try:
    import anyio
    import httpx2
    import mcp_types
    from mcp.client.stdio import get_default_environment
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared.message import SessionMessage
    from pydantic import ValidationError
except ModuleNotFoundError as error:
    raise UserError("MCP tools need the package mcp: pip install mcp==2.0.0") from error

MAX_ANSWER_BYTES = 8 << 20
MAX_EVENT_BYTES = 1_000_000  # of one in an event stream; httpx2 takes no more than 1 MiB and would not say so
GRACE_S = 2.0  # for a process to end by itself after its input was closed, and again after SIGTERM
TETHER = Path(__file__).with_name("tether.py")
_ANSWERS = re.compile(rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,15})\s*,')


class ServerFault(Exception):
    """What a server did that ends its connection; one line."""


@asynccontextmanager
async def stdio(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None,
    stderr: bytearray,
    ended: Callable[[str], None],
) -> AsyncIterator[tuple[Any, Any]]:
    """Start the command and give the streams to and from it. `ended` is told when it stops answering, `stderr` receives
    the end of what it writes there. On exit nothing of it is left."""
    tether = (sys.executable, "-I", "-S", str(TETHER), str(os.getpid())) if sys.platform == "linux" else ()
    process = await asyncio.create_subprocess_exec(
        *tether,
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=get_default_environment() | dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    to_client, for_client = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    from_client, to_server = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_read(process, to_client, ended)),
        asyncio.create_task(_write(process, to_server)),
        asyncio.create_task(_keep_end(process.stderr, stderr)),
    ]
    try:
        yield for_client, from_client
    finally:
        for_client.close()
        from_client.close()
        await _end(process)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        to_client.close()
        to_server.close()


async def _read(process: Any, to_client: Any, ended: Callable[[str], None]) -> None:
    """Hand the process's messages on until it closes its output; then say how it ended."""
    async for line in lines(process.stdout):
        if line.strip():
            with contextlib.suppress(anyio.BrokenResourceError):  # nobody listens any more: read on, so that it can end
                await to_client.send(_message(line))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await process.wait()
    code = process.returncode
    ended("closed its output" if code is None else f"ended with exit code {code}")
    to_client.close()


async def _write(process: Any, to_server: Any) -> None:
    async for message in to_server:
        process.stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        with contextlib.suppress(ConnectionError):  # the reader finds out why
            await process.stdin.drain()


async def _keep_end(stream: Any, kept: bytearray, size: int = 4096) -> None:
    while chunk := await stream.read(size):
        kept += chunk
        del kept[:-size]


async def lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines without their ends; of one longer than MAX_ANSWER_BYTES one byte more than that."""
    parts: list[bytes] = []
    room = MAX_ANSWER_BYTES + 1
    while chunk := await stream.read(1 << 16):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*parts, end[:room]])
            parts, room = [], MAX_ANSWER_BYTES + 1
        parts.append(rest[:room])
        room -= len(parts[-1])


def _message(line: bytes) -> SessionMessage | Exception:
    """A line as a message; a failure as the client's transports report it."""
    if len(line) <= MAX_ANSWER_BYTES:
        with contextlib.suppress(ValidationError, RecursionError):
            return SessionMessage(mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False))
    if (answers := _answers(line)) is None:
        return ValueError("a message is too long, or cannot be read")
    error = mcp_types.ErrorData(code=mcp_types.PARSE_ERROR, message="too long, or cannot be read")
    return SessionMessage(mcp_types.JSONRPCError(jsonrpc="2.0", id=answers, error=error))


def _answers(line: bytes) -> int | None:
    """Which request a line answers that is cut off or no message, as one with half a surrogate pair is none."""
    if match := _ANSWERS.match(line):
        return int(match[1])
    try:
        found = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    is_answer = isinstance(found, dict) and "method" not in found and type(found.get("id")) is int
    return found["id"] if is_answer else None


async def _end(process: Any) -> None:
    """Close its input and wait; then SIGTERM, which its tether answers by killing all of it; then SIGKILL."""
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL, None):
        try:
            async with asyncio.timeout(GRACE_S):
                await process.wait()
            return
        except TimeoutError:
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)


@asynccontextmanager
async def http(url: str, *, headers: Mapping[str, str], connect_timeout_s: float) -> AsyncIterator[tuple[Any, Any]]:
    """Streams to and from a streamable HTTP server. An answer that says that the server or the session is gone raises
    ServerFault out of the context."""
    client = _Client(
        headers={**headers, "accept-encoding": "identity"},
        follow_redirects=True,
        timeout=httpx2.Timeout(connect_timeout_s, read=None),  # how long a call may take is its tool's affair
        limits=httpx2.Limits(max_connections=None),
        event_hooks={"response": [_checked]},
    )
    async with client, streamable_http_client(url, http_client=client) as streams:
        yield streams


class _Client(httpx2.AsyncClient):
    async def delete(self, *given: Any, **options: Any) -> httpx2.Response:
        """The end of a session, which the server may keep to itself."""
        async with asyncio.timeout(GRACE_S):
            return await super().delete(*given, **options)


async def _checked(response: httpx2.Response) -> None:
    """Bound the answer to a POST, and fail where the server or its session is gone, or the bound would not hold."""
    request, status = response.request, response.status_code
    kind = response.headers.get("content-type", "")
    if response.has_redirect_location:
        onward = request.url.join(response.headers["location"])
        if (onward.scheme, onward.netloc) != (request.url.scheme, request.url.netloc):  # it would see the headers
            raise ServerFault(f"leads to another place, {onward.netloc.decode()}: give that url if it is right")
    if (coding := response.headers.get("content-encoding", "identity")) != "identity":
        raise ServerFault(f"answers in the encoding {coding[:40]!r}, which was not asked for: turn its compression off")
    if request.method != "POST":
        return
    if status == 404 and "mcp-session-id" in request.headers:
        raise ServerFault("no longer knows its session (HTTP 404)")
    if "json" not in kind and (status in (401, 403, 429) or status >= 500):
        raise ServerFault(f"answered with HTTP {status}")
    response.stream = _Bounded(response.stream, is_stream="event-stream" in kind)


class _Bounded(httpx2.AsyncByteStream):
    """As much of another as an answer may have; more is a StreamError, and an event stream ends in what cannot be
    read."""

    def __init__(self, stream: Any, *, is_stream: bool) -> None:
        self._stream, self._is_stream = stream, is_stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        room = MAX_EVENT_BYTES if self._is_stream else MAX_ANSWER_BYTES
        async for chunk in self._stream:
            room -= len(chunk)
            if room < 0 and self._is_stream:
                yield b"\ndata: too long\n\n"
                return
            if room < 0:
                raise httpx2.StreamError("too long")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
