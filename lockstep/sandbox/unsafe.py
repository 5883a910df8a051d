"""Tier "none": code as a plain subprocess with resource limits and a deadline, with all the rights of this user.

For machines where no tier works and the code is trusted. It can read and write what the user can, use the network, and
leave processes behind that have left their process group. Only `allow_unsafe=True` leads here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lockstep.sandbox.interface import NO_FILES, Limits, Outcome, SandboxFailure, Session, Tier
from lockstep.sandbox.outcome import outcome_of
from lockstep.sandbox.sealed import archive

_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT")
# Runs in the new interpreter, before the script: limits, then the script as __main__ from standard input's file.
_START = """
import resource, runpy, sys
cpu_s, memory_bytes, files_bytes = map(int, sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (files_bytes, files_bytes))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
path = sys.argv[4]
sys.argv = [path]
sys.path.insert(0, "")
runpy.run_path(path, run_name="__main__")
"""
_INTERPRETER_BYTES = 1 << 29  # what an interpreter with a few libraries maps before it does anything


@dataclass(slots=True, eq=False)
class _Started:
    process: subprocess.Popen[bytes] | None = None
    cancelled: bool = False


class UnsafeSandbox:
    """See `Sandbox`. Sessions are refused: nothing would end what they leave behind."""

    tier: Tier = "none"

    def __init__(self, limits: Limits, max_concurrency: int) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(max_concurrency, "lockstep-unsafe")
        self._started: set[_Started] = set()

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, bytes] = NO_FILES, limits: Limits | None = None
    ) -> Outcome:
        limits = limits or self._limits
        archive(files, limits)  # refuses names that leave the folder
        started = _Started()
        try:
            waiting = self._threads.submit(_run, started, code, stdin, files, limits)
        except RuntimeError:
            raise SandboxFailure("the sandbox is closed; open another") from None
        self._started.add(started)
        try:
            return await asyncio.wrap_future(waiting)
        except asyncio.CancelledError:
            _cancel(started)
            raise
        finally:
            self._started.discard(started)

    async def session(self, *, limits: Limits | None = None) -> Session:
        raise SandboxFailure("sandbox.tier='none' has no sessions; use a tier that isolates, or stateless calls")

    def close(self) -> None:
        for started in list(self._started):
            _cancel(started)
        self._threads.shutdown(cancel_futures=True)


def _run(started: _Started, code: str, stdin: str, files: Mapping[str, bytes], limits: Limits) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="lockstep-unsafe-") as folder, tempfile.TemporaryDirectory() as ours:
        for name, content in {**files}.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        script = os.path.join(ours, "script.py")
        with open(script, "wb") as file:
            file.write(code.encode("utf-8", "surrogatepass"))
        with open(os.path.join(ours, "out"), "w+b") as out, open(os.path.join(ours, "err"), "w+b") as err:
            end = _wait(started, script, stdin, folder, limits, out.fileno(), err.fileno())
            stdout, stderr = _read(out.fileno(), limits), _read(err.fileno(), limits)
            return outcome_of(end, stdout, stderr, limit_s=limits.time_s)


def _wait(
    started: _Started, script: str, stdin: str, folder: str, limits: Limits, out: int, err: int
) -> dict[str, object]:
    cpu_s = int(limits.time_s) + 1
    numbers = (cpu_s, limits.memory_bytes + _INTERPRETER_BYTES, max(limits.files_bytes, limits.output_bytes + 1))
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {"HOME": folder, "TMPDIR": folder}
    began = time.monotonic()
    with tempfile.TemporaryFile() as given:
        given.write(stdin.encode("utf-8", "surrogatepass"))
        given.seek(0)
        process = started.process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", _START, *map(str, numbers), script],
            stdin=given,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    if started.cancelled:
        _kill(process)
    late = threading.Event()
    timer = threading.Timer(limits.time_s, lambda: (late.set(), _kill(process)))
    timer.start()
    _, status, used = os.wait4(process.pid, 0)
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    _kill(process)  # what it left in its process group
    cause = "timeout" if late.is_set() and process.returncode < 0 else ""
    time_s, cpu_s = time.monotonic() - began, used.ru_utime + used.ru_stime
    return {"status": status, "cause": cause, "time_s": time_s, "cpu_s": cpu_s}


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _cancel(started: _Started) -> None:
    started.cancelled = True
    if started.process is not None and started.process.returncode is None:
        _kill(started.process)


def _read(descriptor: int, limits: Limits) -> tuple[str, bool]:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, limits.output_bytes, 0).decode("utf-8", "replace"), size > limits.output_bytes
