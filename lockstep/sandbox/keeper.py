"""Keepers of the namespaces tier: process 1 of a process-id namespace, into which guests are forked one after another.

A keeper outlives a call because its own fork costs as much as a guest's. After a guest's end it kills and reaps
whatever the guest left there; only an empty namespace is used again, and not for ever. A call that is killed takes its
keeper with it, which ends all its processes at once. Nothing but the numbers of processes can be told of earlier calls.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from lockstep.sandbox import guest, native, watch

IDLE_S = 1.0  # a keeper without a guest for longer is ended
_MOST_GUESTS = 100
_STOP, _GO, _SWEEP = b"s", b"g", b"e"
_SWEPT = struct.Struct("=d")  # processor seconds of the orphans that were reaped


@dataclass(slots=True, kw_only=True, eq=False)
class Keeper:
    """As the supervisor sees it. pid: in the supervisor's numbers; outer_pid: in those of /proc. line: commands and
    answers. pids: descriptor of its namespace."""

    pid: int
    outer_pid: int
    line: int
    pids: int
    num_guests: int = 0
    idle_since: float = 0.0
    killed: bool = False

    def fork(self, home: int) -> int:
        """os.fork, the child being in the keeper's namespace. home: descriptor of the supervisor's own."""
        self.num_guests += 1
        native.setns(self.pids, native.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
            return pid
        finally:
            if pid != 0:
                native.setns(home, native.CLONE_NEWPID)

    def set_stopped(self, stopped: bool) -> None:
        """Stop all processes of the guest, or let them go on."""
        with suppress(BrokenPipeError, ConnectionResetError):  # reset: it died with something unread
            os.write(self.line, _STOP if stopped else _GO)

    def sweep(self) -> None:
        """Have all that is left killed and reaped; the line becomes readable when that is done, or at its death."""
        with suppress(BrokenPipeError, ConnectionResetError):  # reset: it died with something unread
            os.write(self.line, _SWEEP)

    def swept(self) -> float | None:
        """Processor seconds of what was left, or None when the keeper is dead or has served enough, and now reaped."""
        try:
            said = os.read(self.line, _SWEPT.size)
        except ConnectionResetError:
            said = b""
        self.idle_since = time.monotonic()
        if self.killed or len(said) != _SWEPT.size or self.num_guests >= _MOST_GUESTS:
            self.end()
        return _SWEPT.unpack(said)[0] if len(said) == _SWEPT.size else None

    def kill(self) -> None:
        """The kernel kills everything in its namespace."""
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        os.waitpid(self.pid, 0)
        os.close(self.line)
        os.close(self.pids)


def start(home: int, proc: int) -> Keeper:
    """A new keeper, a child of the supervisor. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        native.unshare(native.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                _keep(theirs.fileno())
            pids = guest.high(os.open("self/ns/pid_for_children", os.O_RDONLY, dir_fd=proc))
        finally:
            native.setns(home, native.CLONE_NEWPID)
        pidfd = os.pidfd_open(pid)
        outer_pid = watch.outer_pid(proc, pidfd)
        os.close(pidfd)
        return Keeper(pid=pid, outer_pid=outer_pid, line=guest.high(os.dup(ours.fileno())), pids=pids)


def _keep(line: int) -> NoReturn:
    """The keeper itself. No signal from inside its namespace reaches process 1."""
    try:
        if os.getpid() != 1:  # kill(-1) would be for the whole machine
            os._exit(1)
        os.dup2(line, 0)
        native.close_from(1)
        signal.signal(signal.SIGCHLD, lambda *_: _reap(os.WNOHANG))
        before = 0.0
        while said := os.read(0, 1):
            if said != _SWEEP:
                _signal_all(signal.SIGSTOP if said == _STOP else signal.SIGCONT)
                continue
            _signal_all(signal.SIGKILL)
            _reap(0)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            now = used.ru_utime + used.ru_stime
            os.write(0, _SWEPT.pack(now - before))
            before = now
    finally:
        os._exit(0)


def _signal_all(number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(-1, number)  # from process 1: all of its namespace, and nobody else


def _reap(options: int) -> None:
    """Wait for children: for those that have ended, or (0) for all."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass
