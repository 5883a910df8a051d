"""A tool `python` that runs what a model wrote in the sandbox, and what the model reads of the outcome.

One sandbox serves all trajectories of a process that use the same options: it is opened when first needed and closed at
exit. That the sandbox itself failed is never told to the model: it raises InfrastructureError.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import threading
import time
from collections.abc import Callable

from lockstep.rollout.concurrency import Late, Limit, within
from lockstep.rollout.tool import InfrastructureError, Tool, ToolError, tool
from lockstep.sandbox.interface import Limits, Outcome, Sandbox, SandboxFailure, SandboxUnavailable, Session
from lockstep.sandbox.sandbox import SandboxOptions, concurrency, open_sandbox

NUM_ERROR_LINES = 8
WAIT_S = 60.0  # for a place among the calls that run; a step must have that, the call's own time and GRACE_S
GRACE_S = 30.0  # for the sandbox, beyond the call's own time
# Control characters but for tabs and line ends, what turns the direction of text, lone surrogates, line separators.
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
FENCE = re.compile(r"\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*", re.DOTALL)

REMOTE_CALLS = 64  # at once, where the options do not say

_opened: dict[tuple[int, SandboxOptions], Sandbox | SandboxUnavailable] = {}
_opening = threading.Lock()


def shared_sandbox(options: SandboxOptions) -> Sandbox:
    """This process's sandbox with these options. Raises InfrastructureError when none can be opened."""
    key = os.getpid(), options
    with _opening:
        if key not in _opened:
            try:
                _opened[key] = open_sandbox(options)
            except SandboxUnavailable as error:
                _opened[key] = error
        found = _opened[key]
    if isinstance(found, SandboxUnavailable):
        raise InfrastructureError(f"no sandbox: {' '.join(str(found).split())}") from found
    return found


@atexit.register
def close_sandboxes() -> None:
    """Close what this process opened; a later call opens anew."""
    with _opening:
        for key in [key for key in _opened if key[0] == os.getpid()]:
            opened = _opened.pop(key)
            if not isinstance(opened, SandboxUnavailable):
                opened.close()


@functools.cache
def shared_places(options: SandboxOptions) -> Limit:
    """So many calls run at once in this process; whoever waits for a place is not yet in the sandbox."""
    remote = options.tier == "remote" and not options.max_concurrency
    return Limit(REMOTE_CALLS if remote else concurrency(options))


class Interpreter:
    """What one trajectory runs its code in: nothing between two calls, or with `sessions` an interpreter that keeps
    its state, started by the first call. Close it at the trajectory's end.

    Programs that never end make others wait. That is the policy's doing: a call without a place in WAIT_S is answered
    with an error for the model to read, and masks nothing.
    """

    def __init__(self, sandbox: Sandbox, *, limits: Limits, sessions: bool, places: Limit) -> None:
        self.sandbox, self.limits, self.sessions, self.places = sandbox, limits, sessions, places
        self._session: Session | None = None
        self._own = Limit(1)  # a session runs one at a time

    async def run(self, code: str) -> Outcome:
        """Raises ToolError when there is no place, and InfrastructureError when the sandbox fails, or gives no
        outcome in time."""
        begun = time.monotonic()
        try:
            give_back_own = await self._own.place(WAIT_S) if self.sessions else _nothing
            try:
                give_back = await self.places.place(max(0.0, begun + WAIT_S - time.monotonic()))
            except BaseException:
                give_back_own()
                raise
        except Late:
            raise ToolError(f"the interpreter had no time for this program within {WAIT_S:g} s") from None
        try:
            return await within(self.limits.time_s + GRACE_S, self._outcome(code))
        except SandboxFailure as error:
            raise InfrastructureError(f"the sandbox failed: {' '.join(str(error).split())}") from error
        except Late:
            late_s = self.limits.time_s + GRACE_S
            raise InfrastructureError(
                f"the sandbox gave no outcome within {late_s:g} s: is this machine overloaded?"
            ) from None
        finally:
            give_back()
            give_back_own()

    async def _outcome(self, code: str) -> Outcome:
        if not self.sessions:
            return await self.sandbox.run(code, limits=self.limits)
        self._session = self._session or await self.sandbox.session(limits=self.limits)
        return await self._session.run(code)

    async def close(self) -> None:
        """End the session, if a call began one."""
        if self._session is not None:
            await self._session.close()


def _nothing() -> None:
    return None


def python_tool(interpreter: Interpreter) -> Tool:
    """The tool of one trajectory."""
    keeps = " Variables are kept between calls." if interpreter.sessions else " Each call starts from nothing."

    async def python(code: str) -> str:
        return outcome_text(await interpreter.run(unfenced(code)), interpreter.limits)

    python.__doc__ = f"Run a Python program and read what it prints.{keeps}"
    make: Callable[..., Tool] = tool(timeout_s=WAIT_S + interpreter.limits.time_s + GRACE_S + 5)
    return make(python)


def unfenced(code: str) -> str:
    """Code without the Markdown fence around the whole of it, where there is one."""
    fence = FENCE.fullmatch(code)
    return fence[1] if fence else code


def outcome_text(outcome: Outcome, limits: Limits) -> str:
    """What the model reads: what was printed, the end of an error, and a line in brackets for what else happened."""
    said = [harmless(outcome.stdout).rstrip()]
    if outcome.truncated:
        said.append(f"[output cut at {limits.output_bytes} bytes]")
    errors = harmless(outcome.stderr).rstrip().split("\n")[-NUM_ERROR_LINES:]
    if outcome.status != "output":  # there the error is that of writing to a full stream
        said += errors
    notes = {
        "error": "" if any(errors) else f"[exit code {outcome.exit_code}]",
        "timeout": f"[stopped: it ran longer than {limits.time_s:g} s]",
        "memory": f"[stopped: it needs more than {limits.memory_bytes >> 20} MiB of memory]",
        "output": "[stopped: it printed too much]",
        "killed": f"[stopped by signal {outcome.signal}]",
    }
    said.append(notes.get(outcome.status, ""))
    if outcome.state_lost:
        said.append("[started anew: the variables of earlier calls are gone]")
    return "\n".join(part for part in said if part) or "[nothing was printed: print() what you want to see]"


def harmless(text: str) -> str:
    r"""Text that moves no cursor and hides nothing: a control character is shown as Python writes it, e.g. \x1b."""
    return HARMFUL.sub(_shown, text.replace("\r\n", "\n").replace("\r", "\n"))


def _shown(sign: re.Match[str]) -> str:
    code = ord(sign[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
