"""The zygote: one fork a call from a warm interpreter, timers, limits across a call's processes, and the end of each.

It never reads code, input or output, which pass through it as descriptors only. How a call ended is what the kernel
says (wait status, rusage) and this process's own clock; "setup failed" comes through a pipe that is closed before the
guest's code runs.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lockstep.sandbox import guest, keeper, namespaces, script, watch, wire
from lockstep.sandbox.interface import Limits
from lockstep.sandbox.looks import Looks
from lockstep.sandbox.running import Running, close_all, kill_group, reap, reap_group, set_stopped
from lockstep.sandbox.scratch import make_folder, remove_folder

_WATCH_EVERY_S, _WATCH_IDLE_EVERY_S = 0.05, 1.0
_WATCH_SHARE = 20  # of so much processor time a call's looks take one part, but at least one is taken a second
_ALL_WATCH_SHARE = 4  # and those of all calls together one part of this
_NPROC_SLACK = 64  # for a user's other processes, where RLIMIT_NPROC counts those too
_COUNT_USER_EVERY_S = 1.0
_LAST_CHANCE_S = 1.0


class BecomeGuest(BaseException):
    """Unwinds a forked child out of the supervisor, so that the guest's code runs on an empty stack."""

    def __init__(self, search: Sequence[str], hidden: Sequence[tuple[str, str]], session: bool) -> None:
        super().__init__()
        self.search, self.hidden, self.session = search, hidden, session

    def run(self) -> None:
        names = script.prepare(self.search, self.hidden)
        if self.session:
            script.run_session(guest.CODE, guest.CHANNEL, guest.REPORT, names)
        with open(guest.CODE, "rb") as file:
            file.seek(0)
            code = file.read()
        os.close(guest.REPORT)
        script.finish(script.run(code, names))


class Supervisor:
    """One loop over the control socket, a process descriptor for each call, and the earliest deadline."""

    def __init__(
        self,
        *,
        control: socket.socket,
        ends: Sequence[int],
        proc: int,
        cell: guest.Cell,
        first_user: int | None,
        max_guests: int,
        folder: str,
        search: Sequence[str],
        hidden: Sequence[tuple[str, str]],
    ) -> None:
        self._ends, self._proc, self._cell = ends, proc, cell
        self._first_user, self._folder = first_user, folder
        self._search, self._hidden = search, hidden
        self._namespaces = not cell.landlock_abi
        self._home = guest.high(os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)) if self._namespaces else -1
        self._counts_by_namespace = watch.kernel() >= (5, 14)
        self._max_guests, self._slots = max_guests, list(range(max_guests))
        self._waiting: deque[tuple[dict[str, Any], list[int]]] = deque()
        self._running: dict[int, Running] = {}
        self._looks = Looks(proc, self._running)
        self._armed: dict[int, float] = {}
        self._by_pidfd: dict[int, Running] = {}
        self._by_line: dict[int, Running] = {}  # ended, and what they left is being killed
        self._idle_keepers: list[keeper.Keeper] = []
        self._user_tasks, self._counted = 0, -1e9
        self._poll = select.poll()
        self._line = wire.Line(control, self._poll)
        for descriptor in ends:
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> None:
        """Until the trainer (or the launcher) is gone. Raises BecomeGuest in every forked guest."""
        while True:
            for descriptor, _ in self._poll.poll(self._patience_ms()):
                if descriptor == self._line.descriptor:
                    if not self._listen():
                        return self._end_all()
                elif descriptor in self._ends:
                    return self._end_all()
                elif (ended := self._by_pidfd.get(descriptor)) is not None:
                    self._finish(ended)
                elif (swept := self._by_line.get(descriptor)) is not None:
                    self._swept(swept)
            self._line.flush()
            self._enforce(time.monotonic())
            if self._waiting and self._slots:  # one, so that the trainer is heard in between
                self._start(*self._waiting.popleft())

    def _patience_ms(self) -> float | None:
        """Until the next start, deadline, look, or end of an idle keeper; None when nothing is due."""
        if self._waiting and self._slots:
            return 0
        due = [min(call.deadline, call.look_again) for call in self._running.values()]
        due += [idle.idle_since + keeper.IDLE_S for idle in self._idle_keepers[:1]]
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

    def _listen(self) -> bool:
        """All that the trainer has said; False when it is gone."""
        for message, descriptors in self._line.heard():
            if message is None:
                return False
            self._obey(message, descriptors)
        return True

    def _obey(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message:
            case {"call": _}:
                self._waiting.append((message, descriptors))
            case {"abandon": number}:
                if (call := self._running.get(number)) is not None:
                    call.deadline, call.if_late = time.monotonic() + _LAST_CHANCE_S, "asked"
            case {"kill": number}:
                self._forget(number)
            case {"arm": number, "time_s": time_s}:
                self._armed[number] = time_s
                if (call := self._running.get(number)) is not None:
                    self._arm(call)
            case {"disarm": number}:
                if (call := self._running.get(number)) is not None and not call.cause:
                    self._disarm(call)

    def _arm(self, session: Running) -> None:
        """A run of a session begins: its clock starts."""
        session.run_started = time.monotonic()
        session.run_cpu_s = self._looks.cpu_s(session)
        session.deadline = session.run_started + self._armed.pop(session.number)
        session.look_again = session.run_started + _WATCH_EVERY_S
        set_stopped(session, False)

    def _disarm(self, session: Running) -> None:
        """A run of a session has ended."""
        set_stopped(session, True)
        session.deadline = float("inf")
        time_s = time.monotonic() - session.run_started
        cpu_s = max(0.0, self._looks.cpu_s(session) - session.run_cpu_s)
        self._line.tell({"ran": session.number, "time_s": time_s, "cpu_s": cpu_s})

    def _forget(self, number: int) -> None:
        """Kill a call that nobody awaits any more, or take it out of the queue."""
        if (call := self._running.get(number)) is not None:
            self._kill(call, "asked")
            return
        for place, (message, descriptors) in enumerate(self._waiting):
            if message["call"] == number:
                del self._waiting[place]
                close_all(descriptors)
                self._line.tell({"infra": number, "text": "killed before it began"})
                return

    def _start(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Fork a guest, or tell the trainer why that could not be done. Raises BecomeGuest in the guest."""
        number, limits, slot = message["call"], Limits(**message["limits"]), self._slots.pop()
        user = None if self._first_user is None else self._first_user + slot
        scratch = namespaces.SCRATCH if self._namespaces else f"{self._folder}/{number}"
        report, told = os.pipe2(os.O_CLOEXEC)
        started = time.monotonic()
        kept = None
        try:
            tasks = self._nproc(limits)
            if self._namespaces:
                kept = self._idle_keepers.pop() if self._idle_keepers else keeper.start(self._home, self._proc)
                pid = kept.fork(self._home)
            else:
                make_folder(scratch, user)
                pid = os.fork()
        except OSError as error:
            close_all([report, told, *descriptors])
            if kept is not None:
                kept.end()
            if not self._namespaces:
                remove_folder(scratch)
            self._slots.append(slot)
            self._line.tell({"infra": number, "text": f"a call could not be started: {error}"})
            return
        if pid == 0:
            # of those that wait for their start too: or no number below this one's limit is free
            close_all([report, *(one for _, others in self._waiting for one in others)])
            given = self._given(message, descriptors, told)
            self._enter(given, limits, scratch, user, tasks, message["session"])
            raise BecomeGuest(self._search, self._hidden, message["session"])
        close_all([told, *descriptors])
        if not self._namespaces:
            with suppress(PermissionError):  # the child does it as well, and may even have run another program since
                os.setpgid(pid, pid)
        call = Running(
            number=number,
            pid=pid,
            pidfd=guest.high(os.pidfd_open(pid)),
            keeper=kept,
            report=guest.high(report),
            limits=limits,
            slot=slot,
            scratch=scratch,
            session=message["session"],
            started=started,
            deadline=float("inf") if message["session"] else started + limits.time_s,
            look_again=started + _WATCH_EVERY_S,
        )
        self._running[number] = self._by_pidfd[call.pidfd] = call
        if number in self._armed:
            self._arm(call)
        self._poll.register(call.pidfd, select.POLLIN)

    def _given(self, message: dict[str, Any], descriptors: list[int], told: int) -> guest.Descriptors:
        code, stdout, stderr, *others = descriptors
        optional = {name: others.pop(0) for name in ("stdin", "files", "session") if message[name]}
        return guest.Descriptors(
            code=code,
            # opened for this guest alone: flags and locks of a shared one would outlive it
            stdin=optional["stdin"] if message["stdin"] else os.open("/dev/null", os.O_RDONLY),
            stdout=stdout,
            stderr=stderr,
            files=optional.get("files"),
            channel=optional.get("session"),
            report=told,
        )

    def _enter(
        self, given: guest.Descriptors, limits: Limits, scratch: str, user: int | None, tasks: int, session: bool
    ) -> None:
        """In the forked child: become the guest, or say why not and end."""
        try:
            if self._namespaces:
                namespaces.mount_scratch(limits.files_bytes, limits.max_files)
            guest.enter(
                given, self._cell, limits, proc=self._proc, scratch=scratch, user=user, tasks=tasks, session=session
            )
        except BaseException as error:  # a forked child must never go on as its parent
            guest.tell_failure(given.report, error)

    def _nproc(self, limits: Limits) -> int:
        """RLIMIT_NPROC: exact where the guest's user is its own, loose where it is shared (then looks are exact)."""
        if self._first_user is not None or (self._namespaces and self._counts_by_namespace):
            return limits.max_processes
        if time.monotonic() - self._counted > _COUNT_USER_EVERY_S:
            self._user_tasks = watch.tasks_of_user(self._proc, os.getuid())
            self._counted = time.monotonic()
        return self._user_tasks + limits.max_processes * self._max_guests + _NPROC_SLACK

    def _enforce(self, now: float) -> None:
        for call in list(self._running.values()):
            if call.deadline <= now:
                self._kill(call, call.if_late)
            elif call.look_again <= now:
                before = time.process_time()
                if excess := self._looks.excess(call):
                    self._kill(call, excess)
                took_s = time.process_time() - before
                idle = call.deadline == float("inf")  # a session between runs
                every_s = _WATCH_IDLE_EVERY_S if idle else max(_WATCH_EVERY_S, _WATCH_SHARE * took_s)
                for_all_s = _ALL_WATCH_SHARE * took_s * len(self._running)
                call.look_again = now + max(for_all_s, min(every_s, _WATCH_IDLE_EVERY_S))
        while self._idle_keepers and self._idle_keepers[0].idle_since + keeper.IDLE_S <= now:
            self._idle_keepers.pop(0).end()

    def _kill(self, call: Running, cause: wire.Cause) -> None:
        """End all its processes: the keeper's end ends its namespace; seccomp keeps a Landlock guest's in its group."""
        call.cause = call.cause or cause
        call.deadline = float("inf")
        if call.keeper is not None:  # the kernel does not count what dies with its namespace
            call.killed_cpu_s = self._looks.cpu_s(call)
            call.keeper.kill()
            return
        os.kill(call.pid, signal.SIGKILL)
        kill_group(call.pid)

    def _finish(self, call: Running) -> None:
        """Its first process has ended: nothing of it may stay."""
        self._poll.unregister(call.pidfd)
        call.time_s = time.monotonic() - (call.run_started if call.session else call.started)
        del self._running[call.number], self._by_pidfd[call.pidfd]
        os.close(call.pidfd)
        if call.keeper is not None:
            call.status, call.cpu_s = reap(call.pid)
            call.keeper.sweep()
            self._by_line[call.keeper.line] = call
            self._poll.register(call.keeper.line, select.POLLIN)
            return
        kill_group(call.pid)
        call.status, cpu_s = reap_group(call.pid)
        call.cpu_s += cpu_s
        remove_folder(call.scratch)
        self._tell_end(call)

    def _swept(self, call: Running) -> None:
        """Nothing of a call is left in its keeper's namespace, or the keeper is dead and so is everything there."""
        kept = call.keeper
        assert kept is not None
        del self._by_line[kept.line]
        self._poll.unregister(kept.line)
        call.cpu_s += kept.swept() or 0.0
        if not kept.killed:
            self._idle_keepers.append(kept)
        self._tell_end(call)

    def _tell_end(self, call: Running) -> None:
        told = os.read(call.report, 4096)
        os.close(call.report)
        self._slots.append(call.slot)
        if told.startswith(b"F"):
            text = told[1:].partition(b"\0")[0].decode("utf-8", "replace")
            self._line.tell({"infra": call.number, "text": f"setup failed: {text}"})
            return
        cpu_s = max(call.cpu_s, call.killed_cpu_s) - (call.run_cpu_s if call.session else 0.0)
        killed = os.WIFSIGNALED(call.status) and os.WTERMSIG(call.status) == signal.SIGKILL
        end = {"end": call.number, "status": call.status, "cause": call.cause if killed else ""}  # or it was faster
        self._line.tell(end | {"time_s": call.time_s, "cpu_s": max(0.0, cpu_s)})

    def _end_all(self) -> None:
        for call in self._running.values():
            self._kill(call, "asked")
        for call in self._running.values():
            if not self._namespaces:
                reap_group(call.pid)
