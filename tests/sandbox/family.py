"""Whose processes are left, how many descriptors and mounts, which files: what the tests of leftovers count. Linux."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import tree

PR_SET_CHILD_SUBREAPER = 36
SHARED = (Path("/tmp"), Path("/dev/shm"))


def adopt_orphans() -> None:
    """From now on orphaned descendants of this process become its children: none gets out of sight."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0):
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER)")


def descendants() -> set[int]:
    """Children, their children and so on that still live."""
    return {pid for pid, process in tree().items() if process.state not in "ZX"} - {os.getpid()}


def not_reaped() -> set[int]:
    """Ended descendants whose own parent, another than this process, has not waited for them."""
    found = tree()
    return {pid for pid, process in found.items() if process.state in "ZX" and process.parent != os.getpid()}


def num_descriptors(pid: int) -> int:
    """0 for a process that has ended meanwhile."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def num_mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def files() -> list[str]:
    """Everything in the folders in which a sandbox could leave something."""
    found = []
    for folder in SHARED:
        for path, folders, names in os.walk(folder, onerror=None):
            folders[:] = [name for name in folders if not os.path.ismount(os.path.join(path, name))]
            found += [os.path.join(path, name) for name in (*folders, *names)]
    return sorted(found)


def comes_true(condition: Callable[[], bool], *, deadline_s: float = 20.0) -> bool:
    """Poll until it is true; False when that never came."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
