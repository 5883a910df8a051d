"""The tier "remote": runs Python on a SandboxFusion server, through its HTTP call POST /run_code.

Format: https://bytedance.github.io/SandboxFusion/docs/api/run-code-run-code-post, and the server's request model, which
also has `memory_limit_MB`. In: code, stdin, files, limits. Out: an Outcome, or SandboxFailure after one retry.

How well the code is shut in is the server's affair, and the API tells less than the kernel tells a local tier: no
memory status (a process killed for memory is 'killed'), no processor time (`cpu_s` is 0), no limit on processes or
files. The server's error messages repeat the code, so that none is ever shown here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from lockstep.sandbox.interface import NO_FILES, Limits, Outcome, SandboxFailure, SandboxUnavailable, Session, Status
from lockstep.sandbox.remote_http import Address, NoAnswer, post
from lockstep.sandbox.slots import Slots

MOST_OUTPUT_BYTES = 1 << 20  # the server keeps no more of stdout, nor of stderr
NOT_CARRIED = ("max_processes", "files_bytes", "max_files")
PING = "print('lockstep', 6 * 7)"


class RemoteSandbox:
    """Runs each call on a connection of its own; bound to no event loop.

    url: the server, with or without /run_code. limits: of every call that brings none. max_connections: calls in flight
    together, over all event loops; more wait. grace_s: seconds added to a call's time_s before its answer is given up,
    for the way and for the server's own queue. `num_retries` counts the calls that needed a second attempt.

    Raises ValueError for a url or limits that the API cannot take.
    """

    tier: Literal["remote"] = "remote"

    def __init__(
        self, *, url: str, limits: Limits | None = None, max_connections: int = 64, grace_s: float = 30.0
    ) -> None:
        self._address = Address.of(url)
        self._limits = _carried(limits or Limits())
        self._grace_s = grace_s
        self._slots = Slots(max_connections)
        self._calls: dict[asyncio.Task[Outcome], asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.num_retries = 0

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, bytes] = NO_FILES, limits: Limits | None = None
    ) -> Outcome:
        """As `Sandbox.run`. The connection of a cancelled call is closed at once.

        Raises SandboxFailure when the server gave no outcome twice, or refused the request; ValueError for a file name
        that leaves the working directory, and for limits that the API does not carry.
        """
        limits = self._limits if limits is None else _carried(limits)
        body = request(code, stdin, files, limits)
        call = asyncio.ensure_future(self._call(body, limits))
        with self._lock:
            self._calls[call] = asyncio.get_running_loop()
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise self._failure("the sandbox was closed during the call", "close it after the last call") from None
            raise
        finally:
            with self._lock:
                del self._calls[call]

    async def session(self, *, limits: Limits | None = None) -> Session:
        """Raises SandboxUnavailable: the API keeps no state between calls."""
        raise SandboxUnavailable(
            f"{self._address}: SandboxFusion keeps no state between calls, so that the tier 'remote' has no sessions; "
            "use run(), or a local tier"
        )

    def close(self) -> None:
        """Calls in flight raise SandboxFailure, and so does every later one."""
        with self._lock:
            self._closed = True
            calls = list(self._calls.items())
        for call, loop in calls:
            if not loop.is_closed():
                loop.call_soon_threadsafe(call.cancel)

    async def _call(self, body: bytes, limits: Limits) -> Outcome:
        async with self._slots:
            try:
                return await self._attempt(body, limits)
            except NoAnswer as error:
                if not error.again:
                    raise self._failure(str(error), error.fix) from None
            with self._lock:
                self.num_retries += 1
            try:
                return await self._attempt(body, limits)
            except NoAnswer as error:
                raise self._failure(f"{error}, twice" if error.again else str(error), error.fix) from None

    async def _attempt(self, body: bytes, limits: Limits) -> Outcome:
        if self._closed:
            raise NoAnswer("the sandbox is closed", fix="open another one", again=False)
        began = time.monotonic()
        answer = await post(self._address, body, deadline_s=limits.time_s + self._grace_s)
        return outcome(answer, limits, time_s=time.monotonic() - began)

    def _failure(self, what: str, fix: str) -> SandboxFailure:
        return SandboxFailure(f"{self._address}: {what}; {fix}")


def open_remote(
    *, url: str | None, limits: Limits | None = None, max_connections: int = 64, grace_s: float = 30.0
) -> RemoteSandbox:
    """A RemoteSandbox whose server has run one script already. Blocks for that long.

    Raises SandboxUnavailable, with the reason and the fix, when it did not; ValueError as RemoteSandbox.
    """
    if not url:
        raise ValueError(f"sandbox url={url!r}: the tier 'remote' needs the address of a SandboxFusion server; set url")
    sandbox = RemoteSandbox(url=url, limits=limits, max_connections=max_connections, grace_s=grace_s)
    probe = replace(sandbox._limits, time_s=10.0)

    def ask() -> Outcome:
        return asyncio.run(sandbox.run(PING, limits=probe))

    try:
        with ThreadPoolExecutor(1) as other_thread:  # this one may have a running event loop
            found = other_thread.submit(ask).result()
    except SandboxFailure as error:
        raise SandboxUnavailable(f"tier 'remote': {error}") from None
    if found.status != "ok" or found.stdout.strip() != "lockstep 42":
        raise SandboxUnavailable(
            f"tier 'remote': {sandbox._address}: a script that prints one line ended {found.status!r}, exit code "
            f"{found.exit_code}, with {len(found.stdout)} characters of output; check the server's Python"
        )
    return sandbox


def request(code: str, stdin: str, files: Mapping[str, bytes], limits: Limits) -> bytes:
    """The body of POST /run_code. Lone surrogates, which have no UTF-8 form, become question marks.

    Raises ValueError for a file name that leaves the working directory.
    """
    for name in files:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"file name {name!r}: must stay inside the working directory; give a relative name")
    contents = {_encodable(name): base64.b64encode(data).decode("ascii") for name, data in files.items()}
    fields = {
        "language": "python",
        "code": _encodable(code),
        "stdin": _encodable(stdin),
        "files": contents,
        "run_timeout": limits.time_s,
        "compile_timeout": limits.time_s,
        "memory_limit_MB": math.ceil(limits.memory_bytes / (1 << 20)),
    }
    return json.dumps(fields).encode("ascii")


def outcome(answer: bytes, limits: Limits, *, time_s: float) -> Outcome:
    """The Outcome in the JSON that the server answered with. time_s: stands in for a missing execution time.

    Raises NoAnswer when there is none in it: the server's own error, or not the documented fields.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        raise _malformed("the answer is not JSON") from None
    if not isinstance(found, dict) or found.get("status") not in ("Success", "Failed", "SandboxError"):
        raise _malformed("the answer has no valid 'status'")
    result = found.get("run_result")
    if found["status"] == "SandboxError":
        raise NoAnswer("the server reports 'SandboxError'", fix="the cause is in the server's own log", again=True)
    if not isinstance(result, dict) or result.get("status") not in ("Finished", "TimeLimitExceeded"):
        raise _malformed("the answer has no valid 'run_result'")
    streams = [result.get(name) for name in ("stdout", "stderr")]
    texts = [text for text in ("" if stream is None else stream for stream in streams) if isinstance(text, str)]
    if len(texts) < 2:
        raise _malformed("stdout or stderr in the answer is not text")
    status, exit_code, ended_by = _ending(result)
    (stdout, cut_stdout), (stderr, cut_stderr) = (_cut(text, limits.output_bytes) for text in texts)
    taken = result.get("execution_time")
    if isinstance(taken, bool) or not isinstance(taken, int | float) or not 0 <= taken < 1e9:
        taken = time_s
    return Outcome(
        status=status,
        stdout=stdout,
        stderr=stderr,
        exit_code=exit_code,
        signal=ended_by,
        time_s=float(taken),
        cpu_s=0.0,
        truncated=cut_stdout or cut_stderr,
    )


def _ending(result: dict[str, Any]) -> tuple[Status, int | None, int | None]:
    """(status, exit code, signal). A return code below 0 is a signal, as in Python's subprocess."""
    if result["status"] == "TimeLimitExceeded":
        return "timeout", None, int(signal.SIGKILL)
    code = result.get("return_code")
    if not isinstance(code, int) or isinstance(code, bool):
        raise _malformed("the answer has no valid 'return_code'")
    if code < 0:
        return "killed", None, -code
    return ("error" if code else "ok"), code, None


def _cut(text: str, most_bytes: int) -> tuple[str, bool]:
    data = text.encode("utf-8", "replace")
    return data[:most_bytes].decode("utf-8", "replace"), len(data) > most_bytes


def _carried(limits: Limits) -> Limits:
    """The limits themselves. Raises ValueError when the API has no field for one that was set: it would not hold."""
    usual = Limits()
    for name in NOT_CARRIED:
        if getattr(limits, name) != getattr(usual, name):
            raise ValueError(
                f"Limits.{name}={getattr(limits, name)}: SandboxFusion's API has no such limit, so that it would not "
                f"hold; leave it at {getattr(usual, name)} and set it at the server, or use a local tier"
            )
    if limits.output_bytes > MOST_OUTPUT_BYTES:
        raise ValueError(
            f"Limits.output_bytes={limits.output_bytes}: the server cuts output at {MOST_OUTPUT_BYTES}; ask for less"
        )
    return limits


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _malformed(what: str) -> NoAnswer:
    return NoAnswer(what, fix="check that the url is that of a SandboxFusion server", again=True)
