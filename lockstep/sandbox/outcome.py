"""What the kernel and the supervisor say of a call's end, as an Outcome."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from lockstep.sandbox.interface import Outcome, Status


def outcome_of(
    end: Mapping[str, Any], stdout: tuple[str, bool], stderr: tuple[str, bool], *, limit_s: float
) -> Outcome:
    """end: the supervisor's 'end' message (see `wire`). stdout, stderr: text, and whether it is cut. limit_s: the run's
    own time."""
    code = os.waitstatus_to_exitcode(end["status"])
    truncated = stdout[1] or stderr[1]
    return Outcome(
        status=_status(code, end["cause"], truncated, spent=end["cpu_s"] >= limit_s),
        stdout=stdout[0],
        stderr=stderr[0],
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        time_s=end["time_s"],
        cpu_s=end["cpu_s"],
        truncated=truncated,
    )


def _status(code: int, cause: str, truncated: bool, *, spent: bool) -> Status:
    if cause in ("timeout", "memory"):
        return "timeout" if cause == "timeout" else "memory"
    if code == -signal.SIGXCPU and spent:  # anyone can send this signal to himself
        return "timeout"
    if code < 0:
        return "killed"
    if code == 0:
        return "ok"
    return "output" if truncated else "error"
