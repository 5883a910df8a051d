"""What a sandbox is to its users: limits go in, an outcome comes out, whatever tier runs the code.

An outcome is about the guest's code and is data for the model. Whatever is about the sandbox itself is raised:
`SandboxUnavailable` when none can be opened, `SandboxFailure` when a call got no answer; neither is text for a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]
Tier = Literal["namespaces", "landlock", "remote", "none"]
LocalTier = Literal["namespaces", "landlock"]
LOCAL_TIERS: tuple[LocalTier, ...] = ("namespaces", "landlock")  # the strongest first

NO_FILES: Mapping[str, bytes] = MappingProxyType({})


_SHORTEST_S, _LONGEST_S = 0.001, 1e6
_LEAST = {"memory_bytes": 1 << 24, "max_processes": 1, "output_bytes": 1, "files_bytes": 1 << 12, "max_files": 1}


class SandboxUnavailable(RuntimeError):
    """No sandbox can be opened here. The text lists each failed probe with its fix."""


class SandboxFailure(RuntimeError):
    """The sandbox itself failed twice to run a call: infrastructure, never the doing of the guest's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call, or one session, may use.

    time_s: wall clock of a run, from the fork. memory_bytes: the address space that a process may add to the warm
    interpreter's, and the resident memory of all processes of the call together. max_processes: processes and threads
    together, the first included. output_bytes: each of stdout and stderr. files_bytes, max_files: all that scratch may
    hold, the files given included.
    """

    time_s: float = 10.0
    memory_bytes: int = 1 << 30
    max_processes: int = 16
    output_bytes: int = 1 << 16
    files_bytes: int = 1 << 26
    max_files: int = 1024

    def __post_init__(self) -> None:
        if not isinstance(self.time_s, int | float) or not _SHORTEST_S <= self.time_s <= _LONGEST_S:
            raise ValueError(
                f"Limits.time_s={self.time_s!r}: must be an int or float between {_SHORTEST_S:g} and {_LONGEST_S:g}"
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value < 1 << 62:
                raise ValueError(f"Limits.{name}={value!r}: must be an int of at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. The status comes from the kernel and the supervisor's clock, never from the guest's bytes.

    status: 'ok' exit code 0; 'error' any other exit code (1 after an uncaught exception, a MemoryError too); 'timeout'
    killed because its time ran out; 'memory' killed because its processes together held too much; 'output' it ended
    with another exit code than 0 after stdout or stderr was full (writes to a full stream fail); 'killed' a signal
    ended it: its own doing, or too many processes or files where the kernel cannot refuse them.
    stdout, stderr: what was written, undecodable bytes replaced. truncated: either was cut at `Limits.output_bytes`,
    whatever the status (a script that catches the error of a full stream ends 'ok').
    exit_code: None when a signal ended it. signal: None when it exited. time_s: wall clock; cpu_s: user and system time
    of all its processes.
    state_lost: only in sessions: this run began with an empty state because an earlier one was ended by a limit or the
    session was put away as idle.
    """

    status: Status
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    time_s: float
    cpu_s: float
    truncated: bool
    state_lost: bool = False


class Session(Protocol):
    """An interpreter that keeps its state between the runs of one trajectory; one run at a time.

    Between runs all its processes are stopped: a thread that a run left goes on with the next run.
    """

    async def run(self, code: str, *, time_s: float | None = None) -> Outcome:
        """Run `code` with the names that earlier runs left. time_s: this run's own limit. Raises SandboxFailure."""
        ...

    async def close(self) -> None:
        """End the interpreter and all its processes. Closing twice is allowed."""
        ...


class Sandbox(Protocol):
    """Runs Python. One object serves many calls at once, several event loops one after another, and threads."""

    @property
    def tier(self) -> Tier: ...

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, bytes] = NO_FILES, limits: Limits | None = None
    ) -> Outcome:
        """Run a script from nothing. files: relative names to contents, put into the working directory before it
        starts. limits: this call's own in place of the sandbox's. A cancelled call is killed.

        Raises SandboxFailure when the sandbox gave no outcome twice, ValueError for a file name that leaves scratch.
        """
        ...

    async def session(self, *, limits: Limits | None = None) -> Session:
        """A new interpreter that keeps its state. Where `max_sessions` others live, its runs wait for an idle one."""
        ...

    def close(self) -> None:
        """End everything. Calls in flight raise SandboxFailure."""
        ...
