"""The trainer's side of calls: a queue, those in flight, and one thread that hears how they end.

No event loop is blocked or remembered: a call is a `concurrent.futures.Future`, which any loop or thread can await.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from lockstep.sandbox import sealed, wire
from lockstep.sandbox.connection import Connection, StartFailed
from lockstep.sandbox.interface import Limits, Outcome, SandboxFailure
from lockstep.sandbox.outcome import outcome_of
from lockstep.sandbox.session import Run, Sessions, State

_ATTEMPTS = 2
_LONGEST_POLL_S = 3600.0  # what poll takes is bounded; `session_idle_s` is not


@dataclass(slots=True, eq=False)
class Call:
    code: bytes
    stdin: bytes
    files: bytes | None
    limits: Limits
    number: int
    ended: Future[Outcome] = field(default_factory=Future)
    attempts: int = 0
    stdout: int = -1
    stderr: int = -1


class Calls:
    """Calls of one sandbox; `add` may be called from any thread. Starts the supervisor, and again when it dies."""

    def __init__(
        self, settings: Mapping[str, Any], *, max_calls: int, max_sessions: int, session_idle_s: float
    ) -> None:
        self._settings = {**settings, "max_guests": max_calls + max_sessions}
        self._max_calls, self._opened_by = max_calls, os.getpid()
        self._lock = threading.RLock()
        self._numbers = count(1)
        self._waiting: deque[Call] = deque()
        self._running: dict[int, Call] = {}
        self._closed, self._ready, self._ended = False, True, False
        self._connection = Connection(self._settings)
        self._sessions = Sessions(
            lambda message, descriptors=(): self._connection.send(message, descriptors),
            lambda: next(self._numbers),
            max_sessions=max_sessions,
            idle_s=session_idle_s,
        )
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._listener = threading.Thread(target=self._listen_or_give_up, name="lockstep-sandbox", daemon=True)
        self._listener.start()

    def add(self, code: bytes, stdin: bytes, files: bytes | None, limits: Limits) -> Future[Outcome]:
        """A future of the outcome. Cancelling it kills the call."""
        self._check_process()
        call = Call(code, stdin, files, limits, next(self._numbers))
        call.ended.add_done_callback(lambda ended: self._cancelled(call) if ended.cancelled() else None)
        with self._lock:
            if self._closed:
                raise SandboxFailure("the sandbox is closed; open another")
            self._waiting.append(call)
            self._dispatch()
        return call.ended

    def _check_process(self) -> None:
        """A forked copy has no listener, and its calls' numbers would be those of the first process's."""
        if os.getpid() != self._opened_by:
            raise SandboxFailure(f"the sandbox belongs to process {self._opened_by}; open another in this one")

    def _dispatch(self) -> None:
        while self._ready and self._waiting and len(self._running) < self._max_calls:
            call = self._waiting.popleft()
            if call.ended.done():
                continue
            try:
                self._send(call)
            except (BrokenPipeError, ConnectionResetError):
                return  # the supervisor is dead; the listener starts another, and sends what runs again
            except OSError as error:
                if self._running.pop(call.number, None) is not None:
                    _close_output(call)
                _fail(call, f"a call could not be sent: {error.strerror or error}")

    def _send(self, call: Call) -> None:
        passed = []
        try:
            passed.append(sealed.constant("code", call.code))
            call.stdout = sealed.output("stdout", call.limits.output_bytes)
            call.stderr = sealed.output("stderr", call.limits.output_bytes)
            passed += [call.stdout, call.stderr]
            if call.stdin:
                passed.append(sealed.constant("stdin", call.stdin))
            if call.files is not None:
                passed.append(sealed.constant("files", call.files))
            message = {
                "call": call.number,
                "limits": asdict(call.limits),
                "stdin": bool(call.stdin),
                "files": call.files is not None,
                "session": False,
            }
            self._running[call.number] = call
            call.attempts += 1
            self._connection.send(message, passed)
        finally:
            for descriptor in passed:
                if descriptor not in (call.stdout, call.stderr):
                    os.close(descriptor)
            if call.number not in self._running:
                _close_output(call)

    def _cancelled(self, call: Call) -> None:
        with self._lock:
            if call.number in self._running and not self._closed:
                self._connection.send({"kill": call.number})

    def add_run(self, state: State, run: Run) -> Future[Outcome]:
        """A future of the outcome of a session's run. Cancelling it ends the session's interpreter."""
        self._check_process()
        run.ended.add_done_callback(lambda ended: self._run_cancelled(state, run) if ended.cancelled() else None)
        with self._lock:
            if self._closed:
                raise SandboxFailure("the sandbox is closed; open another")
            self._sessions.add(state, run)
            self._rouse()
        return run.ended

    def close_session(self, state: State) -> None:
        if os.getpid() != self._opened_by:
            return
        with self._lock:
            if not self._closed:
                self._sessions.close(state)

    def _run_cancelled(self, state: State, run: Run) -> None:
        with self._lock:
            if not self._closed:
                self._sessions.cancelled(state, run)

    def _rouse(self) -> None:
        """Make the listener look again at what it waits for."""
        with contextlib.suppress(BlockingIOError):  # it is roused already
            os.write(self._waker, b"x")

    def _listen_or_give_up(self) -> None:
        """Whatever ends the listener, nobody waits for it."""
        try:
            self._listen()
        except BaseException as error:
            self._give_up(f"the sandbox's listener failed ({type(error).__name__}: {error}); open another sandbox")
            raise

    def _listen(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                patience_s = self._sessions.expire()
                channels = dict(self._sessions.channels())
                control = self._connection.socket.fileno()
            poll = select.poll()
            for descriptor in (control, self._wake, *channels):
                poll.register(descriptor, select.POLLIN)
            patience_ms = None if patience_s is None else min(patience_s, _LONGEST_POLL_S) * 1000 + 1
            ready = {descriptor for descriptor, _ in poll.poll(patience_ms)}
            with self._lock:
                if self._closed:
                    return
                if self._wake in ready:
                    os.read(self._wake, 4096)
                for descriptor, state in channels.items():
                    if descriptor in ready and state.active is not None:
                        self._sessions.answered(state)
                alive = self._hear_one() if control in ready else True
                self._dispatch()
            if not alive:
                self._restart()

    def _hear_one(self) -> bool:
        """One message; False when the supervisor is dead."""
        try:
            message = wire.receive(self._connection.socket)[0]
        except ConnectionResetError:
            return False
        if message is None or "failed" in message:
            return False
        if next(iter(message.values())) in self._running:
            self._hear(message)
        else:
            self._sessions.hear(message)
        return True

    def _hear(self, message: dict[str, Any]) -> None:
        number = message["end"] if "end" in message else message["infra"]
        call = self._running.pop(number)
        if "infra" in message:
            _close_output(call)
            self._again(call, message["text"])
            return
        if not call.ended.done() and call.ended.set_running_or_notify_cancel():
            stdout = sealed.written(call.stdout, call.limits.output_bytes)
            stderr = sealed.written(call.stderr, call.limits.output_bytes)
            call.ended.set_result(outcome_of(message, stdout, stderr, limit_s=call.limits.time_s))
        _close_output(call)

    def _again(self, call: Call, reason: str) -> None:
        """A call that the sandbox itself lost: once more, ahead of the others, or not any more."""
        if call.ended.cancelled():
            return
        if call.attempts < _ATTEMPTS:
            self._waiting.appendleft(call)
        else:
            _fail(call, f"the sandbox failed twice to run a call: {reason}")

    def _restart(self) -> None:
        """A new supervisor for one that died; the lock is free meanwhile, and nothing is sent."""
        with self._lock:
            self._ready = False
            for call in reversed(self._running.values()):
                _close_output(call)
                self._again(call, "its supervisor died")
            self._running.clear()
            self._sessions.supervisor_died("its supervisor died")
        self._connection.close()
        try:
            fresh = Connection(self._settings)
        except StartFailed as error:
            self._give_up(f"the supervisor died and does not start again: {error}")
            return
        with self._lock:
            self._connection, self._ready = fresh, True
            self._sessions.resume()
            self._dispatch()

    def _give_up(self, reason: str) -> None:
        """Nothing will run any more: everything that waits fails."""
        with self._lock:
            self._closed = True
            for call in (*self._running.values(), *self._waiting):
                _close_output(call)
                _fail(call, reason)
            self._running.clear()
            self._waiting.clear()
            self._sessions.fail_all(reason)

    def close(self) -> None:
        if os.getpid() != self._opened_by:
            return  # a forked copy: nothing here is its own
        with self._lock:
            if self._ended:
                return
            self._ended = self._closed = True
            self._rouse()
        self._listener.join()
        self._connection.close()
        self._give_up("the sandbox was closed while this was running")
        os.close(self._wake)
        os.close(self._waker)


def _fail(call: Call, text: str) -> None:
    if not call.ended.done() and call.ended.set_running_or_notify_cancel():
        call.ended.set_exception(SandboxFailure(text))


def _close_output(call: Call) -> None:
    for descriptor in (call.stdout, call.stderr):
        if descriptor >= 0:
            os.close(descriptor)
    call.stdout = call.stderr = -1
