"""What all the processes of a call have together: the kernel holds memory, processes and, under Landlock, files for
each of them alone, or not at all. The supervisor looks from time to time."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lockstep.sandbox import watch, wire
from lockstep.sandbox.running import Running, group_of


class Looks:
    """proc: descriptor of the host's /proc. running: the supervisor's calls, by number."""

    def __init__(self, proc: int, running: Mapping[int, Running]) -> None:
        self._proc, self._running = proc, running
        self._base_private = watch.private_bytes_of_self(proc)

    def excess(self, call: Running) -> wire.Cause:
        """The limit that a call's processes together are over; empty when there is none."""
        pids = self._pids(call)
        private = sum(max(0, watch.private_bytes(self._proc, pid) - self._base_private) for pid in pids)
        if private > call.limits.memory_bytes:
            return "memory"
        if watch.num_tasks(self._proc, pids) > call.limits.max_processes:
            return "processes"
        if call.keeper is None:
            held, files = watch.held_in(self._proc, call.scratch, pids, call.limits.max_files)
            if held > call.limits.files_bytes or files > call.limits.max_files:
                return "files"
        return ""

    def cpu_s(self, call: Running) -> float:
        """Processor time of its processes so far, the reaped ones included."""
        living = watch.cpu_s(self._proc, self._pids(call))  # first, it reaps
        return living + call.cpu_s

    def _pids(self, call: Running) -> list[int]:
        """All processes of a call, in the numbers of /proc."""
        if call.keeper is not None:
            call.outer_pid = call.outer_pid or watch.outer_pid(self._proc, call.pidfd)
            own = watch.descendants(self._proc, call.outer_pid)
            return own + watch.descendants(self._proc, call.keeper.outer_pid)[1:]
        leaders = {each.pid for each in self._running.values()}  # to ask for the group of each would take long
        others = (pid for pid in watch.children_of_self(self._proc) if pid not in leaders)
        orphans = [pid for pid in others if group_of(pid) == call.pid and not _reaped(call, pid)]
        return [pid for root in (call.pid, *orphans) for pid in watch.descendants(self._proc, root)]


def _reaped(call: Running, orphan: int) -> bool:
    """Has it ended? Until somebody waits for it, the kernel counts it among the call's processes."""
    reaped, _, used = os.wait4(orphan, os.WNOHANG)
    if reaped:
        call.cpu_s += used.ru_utime + used.ru_stime
    return bool(reaped)
