"""What a tree of processes has used: processor time and memory, from /proc. Linux, standard library only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
BURN = "while True: pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One line of the kernel's table. cpu_s: its own time and that of its children that were waited for."""

    parent: int
    state: str
    cpu_s: float


def every_process() -> dict[int, Process]:
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):  # it ended meanwhile
                fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
                ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
                found[int(entry)] = Process(parent=int(fields[1]), state=fields[0], cpu_s=ticks / TICKS)
    return found


def tree(pid: int | None = None, *, without: frozenset[int] = frozenset()) -> dict[int, Process]:
    """The process (this one by default) and everything below it, except what is below `without`."""
    every = every_process()
    root = os.getpid() if pid is None else pid
    found, frontier = {}, {root} & every.keys()
    while frontier:
        found |= {child: every[child] for child in frontier}
        frontier = {child for child, process in every.items() if process.parent in frontier} - found.keys() - without
    return found


def cpu_s(*, without: frozenset[int] = frozenset()) -> float:
    """Processor time that this process's tree has used so far, in whole ticks of the kernel's clock.

    What a process uses counts as long as it lives, or once its parent has waited for it.
    """
    return sum(process.cpu_s for process in tree(without=without).values())


def memory_bytes() -> int:
    """Memory of this process's tree: shared pages are divided among those that share them (the kernel's PSS)."""
    total = 0
    for pid in tree():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return total


def available_bytes() -> int:
    """Memory that the whole machine could still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@contextmanager
def busy_cores(number: int) -> Iterator[frozenset[int]]:
    """`number` processes that take all they get while the block runs. Yields their ids."""
    burners = [subprocess.Popen([sys.executable, "-I", "-S", "-c", BURN]) for _ in range(number)]
    try:
        yield frozenset(burner.pid for burner in burners)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
