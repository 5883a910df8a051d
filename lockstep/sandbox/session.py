"""Sessions on the trainer's side: interpreters that keep their state, bounded in number and in idle time.

A session has no interpreter until its first run, and may lose it between runs (a limit, or put away for another). The
run's end is one byte from the interpreter (its exit code); time, memory and death are the supervisor's word.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lockstep.sandbox import sealed
from lockstep.sandbox.interface import Limits, Outcome, SandboxFailure
from lockstep.sandbox.outcome import outcome_of

_ATTEMPTS = 2


@dataclass(slots=True, eq=False)
class Run:
    code: bytes
    time_s: float
    ended: Future[Outcome] = field(default_factory=Future)
    attempts: int = 0
    exit_code: int | None = None


@dataclass(slots=True, eq=False)
class Interpreter:
    """A live guest: its number with the supervisor, and this side's ends of what it was given."""

    number: int
    channel: socket.socket
    code: int
    stdout: int
    stderr: int
    idle_since: float = 0.0
    ending: bool = False

    def close(self) -> None:
        self.channel.close()
        for descriptor in (self.code, self.stdout, self.stderr):
            os.close(descriptor)


@dataclass(slots=True, eq=False)
class State:
    """One session. num_kept: runs whose state the interpreter holds. lost: that state went, and no run was told yet.
    broken: it went through the sandbox's own fault: every later run fails."""

    limits: Limits
    interpreter: Interpreter | None = None
    active: Run | None = None
    waiting: deque[Run] = field(default_factory=deque)
    num_kept: int = 0
    lost: bool = False
    broken: bool = False
    closed: bool = False


class Sessions:
    """All sessions of a sandbox. Every method is called with the sandbox's lock held."""

    def __init__(
        self,
        send: Callable[..., None],
        next_number: Callable[[], int],
        *,
        max_sessions: int,
        idle_s: float,
    ) -> None:
        self._send, self._next_number = send, next_number
        self._max_sessions, self._idle_s = max_sessions, idle_s
        self._paused = False
        self._live: dict[int, State] = {}
        self._hungry: deque[State] = deque()

    def channels(self) -> list[tuple[int, State]]:
        """Descriptors to hear from: answers of runs."""
        live = self._live.values()
        return [
            (s.interpreter.channel.fileno(), s) for s in live if s.interpreter and s.active and not s.interpreter.ending
        ]

    def add(self, state: State, run: Run) -> None:
        if state.closed:
            raise SandboxFailure("the session is closed; open another")
        if state.broken:
            raise SandboxFailure("the session's state was lost when its supervisor died; open another")
        state.waiting.append(run)
        self._advance(state)

    def answered(self, state: State) -> None:
        """The interpreter wrote its byte, or closed its channel."""
        interpreter, run = state.interpreter, state.active
        assert interpreter is not None and run is not None
        try:
            said = interpreter.channel.recv(1)
        except (ConnectionResetError, BlockingIOError):  # ready without a byte: it plays with its channel
            said = b""
        if said and run.exit_code is None:
            run.exit_code = said[0]
            self._send({"disarm": interpreter.number})
        else:  # it has ended, as the supervisor will say, or lives on without a channel
            interpreter.ending = True
            self._send({"abandon": interpreter.number})

    def hear(self, message: dict[str, Any]) -> None:
        """What the supervisor says of a session's interpreter: 'ran', 'end' or 'infra'."""
        number = next(message[key] for key in ("ran", "end", "infra") if key in message)
        state = self._live.get(number)
        if state is None or state.interpreter is None:
            return
        if "ran" in message:
            self._ran(state, state.interpreter, message)
            return
        interpreter, run = state.interpreter, state.active
        del self._live[number]
        state.interpreter, state.active = None, None
        if run is not None and "end" in message:
            _finish(run, _outcome(message, interpreter, state))
        elif run is not None:
            self._again(state, run, message["text"])
        state.lost, state.num_kept = state.lost or state.num_kept > 0 or "end" in message, 0
        interpreter.close()
        self._feed()  # who waits comes before who was ended for him, or nobody ever gets further
        self._advance(state)

    def _ran(self, state: State, interpreter: Interpreter, message: dict[str, Any]) -> None:
        run = state.active
        if run is None or run.exit_code is None:
            return
        state.active = None
        outcome = _outcome({**message, "status": run.exit_code << 8, "cause": ""}, interpreter, state)
        state.num_kept += 1
        interpreter.idle_since = time.monotonic()
        _finish(run, outcome)
        self._advance(state)
        self._feed()

    def _advance(self, state: State) -> None:
        """Start the session's next run, if it has one and may."""
        while state.active is None and state.waiting and not (state.interpreter and state.interpreter.ending):
            if state.waiting[0].ended.done():  # nobody awaits it: no other session is ended for it
                state.waiting.popleft()
                continue
            if self._paused or (state.interpreter is None and not self._room()):
                if state not in self._hungry:
                    self._hungry.append(state)
                return
            run = state.waiting.popleft()
            try:
                self._begin(state, run)
            except OSError as error:
                state.active = None
                _fail(run, f"a session's run could not be sent: {error.strerror or error}")

    def _room(self) -> bool:
        """May another interpreter start? Ends the longest idle one for it where there is none; then, not yet."""
        if len(self._live) < self._max_sessions:
            return True
        ending = any(state.interpreter and state.interpreter.ending for state in self._live.values())
        idle = [s for s in self._live.values() if s.interpreter and s.active is None and not s.interpreter.ending]
        if idle and not ending:
            self._end(min(idle, key=lambda state: state.interpreter.idle_since if state.interpreter else 0.0))
        return False

    def _feed(self) -> None:
        """Give the room that came free to sessions that wait for it."""
        for _ in range(len(self._hungry)):
            self._advance(self._hungry.popleft())

    def _begin(self, state: State, run: Run) -> None:
        state.active = run
        run.attempts += 1
        if state.interpreter is None:
            state.interpreter = self._start(state.limits)
            self._live[state.interpreter.number] = state
        interpreter = state.interpreter
        for descriptor in (interpreter.stdout, interpreter.stderr):
            os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(interpreter.code, 0)
        os.pwrite(interpreter.code, run.code, 0)
        self._send({"arm": interpreter.number, "time_s": run.time_s})
        try:
            interpreter.channel.sendall(len(run.code).to_bytes(8, "little"))
        except (BrokenPipeError, ConnectionResetError):  # it has died: its end is on the way
            return
        except BlockingIOError:  # it never reads what it is asked
            self._end(state)

    def _start(self, limits: Limits) -> Interpreter:
        number = self._next_number()
        message = {"call": number, "limits": asdict(limits), "stdin": False, "files": False, "session": True}
        with ExitStack() as if_it_fails, ExitStack() as when_sent:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.setblocking(False)  # a guest must not be able to make this process wait
            if_it_fails.callback(ours.close)
            when_sent.callback(theirs.close)
            code, readable = sealed.code_page()
            if_it_fails.callback(os.close, code)
            when_sent.callback(os.close, readable)
            outputs = []
            for name in ("stdout", "stderr"):
                outputs.append(sealed.output(name, limits.output_bytes))
                if_it_fails.callback(os.close, outputs[-1])
            self._send(message, [readable, *outputs, theirs.fileno()])
            if_it_fails.pop_all()
        return Interpreter(number, ours, code, *outputs)

    def _again(self, state: State, run: Run, reason: str) -> None:
        """A run that the sandbox itself lost: once more if no state was lost with it."""
        if run.attempts < _ATTEMPTS and state.num_kept == 0 and not run.ended.done():
            run.exit_code = None
            state.waiting.appendleft(run)
        else:
            _fail(run, f"the sandbox failed in a session's run: {reason}")

    def _end(self, state: State) -> None:
        if state.interpreter is not None and not state.interpreter.ending:
            state.interpreter.ending = True
            self._send({"kill": state.interpreter.number})

    def cancelled(self, state: State, run: Run) -> None:
        """Nobody awaits the run any more: a running one is killed, with the interpreter."""
        if state.active is run:
            self._end(state)

    def close(self, state: State) -> None:
        state.closed = True
        self._end(state)
        if state.active is not None:
            _fail(state.active, "the session was closed")
        _fail_waiting(state, "the session was closed")

    def expire(self) -> float | None:
        """End interpreters idle for too long. Returns the seconds until the next one is; None when none is idle."""
        idle = [s for s in self._live.values() if s.interpreter and s.active is None and not s.interpreter.ending]
        due = time.monotonic() - self._idle_s
        left = [s.interpreter.idle_since - due for s in idle if s.interpreter]
        for state, seconds in zip(idle, left, strict=True):
            if seconds <= 0:
                self._end(state)
        return min((seconds for seconds in left if seconds > 0), default=None)  # infinite where idle_s is

    def supervisor_died(self, reason: str) -> None:
        """Every interpreter is gone; nothing starts until `resume`. A session that had state is broken."""
        self._paused = True
        for state in list(self._live.values()):
            run, state.active = state.active, None
            if run is not None:
                self._again(state, run, reason)
            state.broken = state.num_kept > 0
            if state.broken:
                _fail_waiting(state, reason)
            if state.interpreter is not None:
                state.interpreter.close()
            state.interpreter, state.num_kept = None, 0
            self._hungry.append(state)
        self._live.clear()

    def resume(self) -> None:
        """There is a supervisor again."""
        self._paused = False
        self._feed()

    def fail_all(self, reason: str) -> None:
        """Nothing will run any more."""
        for state in (*self._live.values(), *self._hungry):
            if state.active is not None:
                _fail(state.active, reason)
            _fail_waiting(state, reason)
            if state.interpreter is not None:
                state.interpreter.close()
            state.interpreter = state.active = None
        self._live.clear()
        self._hungry.clear()


def _outcome(end: dict[str, Any], interpreter: Interpreter, state: State) -> Outcome:
    stdout = sealed.written(interpreter.stdout, state.limits.output_bytes)
    stderr = sealed.written(interpreter.stderr, state.limits.output_bytes)
    outcome = replace(outcome_of(end, stdout, stderr, limit_s=state.limits.time_s), state_lost=state.lost)
    state.lost = False
    return outcome


def _finish(run: Run, outcome: Outcome) -> None:
    if not run.ended.done() and run.ended.set_running_or_notify_cancel():
        run.ended.set_result(outcome)


def _fail(run: Run, text: str) -> None:
    if not run.ended.done() and run.ended.set_running_or_notify_cancel():
        run.ended.set_exception(SandboxFailure(text))


def _fail_waiting(state: State, text: str) -> None:
    for run in state.waiting:
        _fail(run, text)
    state.waiting.clear()
