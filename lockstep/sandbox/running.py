"""A call between its fork and its end, and how processes and process groups are ended and waited for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.sandbox import wire
from lockstep.sandbox.interface import Limits
from lockstep.sandbox.keeper import Keeper

_MOST_TO_DIE_S = 10.0


@dataclass(slots=True, kw_only=True)
class Running:
    """A call, or a session, between its fork and its end. pid: of the guest. keeper: None in the Landlock tier. status,
    cpu_s: of the guest, once it is reaped."""

    number: int
    pid: int
    pidfd: int
    keeper: Keeper | None
    report: int
    limits: Limits
    slot: int
    scratch: str
    session: bool
    started: float
    deadline: float
    look_again: float
    if_late: wire.Cause = "timeout"
    cause: wire.Cause = ""
    outer_pid: int = 0
    run_started: float = 0.0
    run_cpu_s: float = 0.0
    killed_cpu_s: float = 0.0
    stopped: bool = False
    status: int = 0
    cpu_s: float = 0.0
    time_s: float = 0.0


def reap(pid: int) -> tuple[int, float]:
    _, status, used = os.wait4(pid, 0)
    return status, used.ru_utime + used.ru_stime


def reap_group(leader: int) -> tuple[int, float]:
    """Wait for all of a killed process group: orphans are handed to this process as their subreaper."""
    status, cpu_s = 0, 0.0
    until = time.monotonic() + _MOST_TO_DIE_S
    while True:
        try:
            pid, this, used = os.wait4(-leader, 0)
        except ChildProcessError:
            if not kill_group(leader):
                return status, cpu_s
            if time.monotonic() > until:
                raise OSError(f"killed processes are still there after {_MOST_TO_DIE_S:g} s") from None
            time.sleep(0.0005)  # a dying parent has not handed them over yet
            continue
        status = this if pid == leader else status
        cpu_s += used.ru_utime + used.ru_stime


def kill_group(leader: int) -> bool:
    """Kill a process group; False when it has nobody."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def set_stopped(session: Running, stopped: bool) -> None:
    """Stop all processes of a session between its runs, or let them go on: nothing else bounds their time then."""
    if session.stopped == stopped:
        return
    session.stopped = stopped
    if session.keeper is not None:
        if stopped:
            # the keeper is late: who then already forks for the next run has a child that misses the order to go on
            os.kill(session.pid, signal.SIGSTOP)
        session.keeper.set_stopped(stopped)
    else:
        os.killpg(session.pid, signal.SIGSTOP if stopped else signal.SIGCONT)


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
