"""A supervisor as its trainer sees it: started, spoken to, ended. One object a process; a new one after its death."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.sandbox import wire

_START_S = 120.0
_END_S = 10.0
_KEPT = ("LD_LIBRARY_PATH",)  # what some interpreters need to start at all


class StartFailed(RuntimeError):
    """The supervisor did not come up; the text says why, in one line."""


def environment() -> Mapping[str, str]:
    """All that a guest inherits of the environment."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    fixed = {"LANG": "C.UTF-8", "HOME": "/", "PATH": "", **dict.fromkeys(threads, "1")}
    return fixed | {name: os.environ[name] for name in _KEPT if name in os.environ}


def _make_scratch() -> str:
    """A folder for the scratches of the Landlock tier: its path as the kernel names files in it, without links."""
    try:
        folder = os.path.realpath(tempfile.mkdtemp(prefix="lockstep-sandbox-"))
        os.chmod(folder, 0o711)
    except OSError as error:
        raise StartFailed(f"no folder can be made for the guests' files: {error}; set TMPDIR to one") from None
    return folder


class Connection:
    """Starts the launcher and its supervisor in `tier` and waits until it is warm. Raises StartFailed."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._scratch = _make_scratch() if settings["tier"] == "landlock" else ""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = os.memfd_create("supervisor-stderr", os.MFD_CLOEXEC)
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        start = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
        arguments = json.dumps({**settings, "scratch": self._scratch})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", start, str(theirs.fileno()), arguments],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self.close()
            raise StartFailed(f"{sys.executable} cannot be started: {error}") from None
        finally:
            theirs.close()
        self._await_ready()

    def _await_ready(self) -> None:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        ready = poll.poll(_START_S * 1000)
        message = wire.receive(self.socket)[0] if ready else {"failed": f"not ready after {_START_S:g} s"}
        if message is not None and "ready" in message:
            return
        last = os.pread(self._errors, 1 << 16, 0).decode("utf-8", "replace").strip().rpartition("\n")[2]
        self.close()
        raise StartFailed(f"the supervisor ended at once: {last}" if message is None else message["failed"])

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Nothing when the supervisor is dead: the end of its connection tells."""
        if self._closed:
            return
        try:
            wire.send(self.socket, message, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return

    def close(self) -> None:
        """End the supervisor and all guests, and wait until they are gone. Nothing the second time."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # a forked copy of this process may hold the socket open
        self.socket.close()
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        os.close(self._errors)
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
