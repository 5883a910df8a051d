"""What a call's processes use together, read from /proc by the supervisor: the kernel's own limits are per process.

`/proc` is a descriptor of a procfs that shows the processes: its numbers may differ from the supervisor's own.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator

_DEEPEST = 64  # folders below scratch
_TOO_MANY = 1 << 62
_MOST_MAPS_BYTES = 1 << 20


def kernel() -> tuple[int, int]:
    """Version and patch level of the running kernel."""
    version, level, *_ = os.uname().release.split(".")
    return int(version), int("".join(itertools.takewhile(str.isdigit, level)) or 0)


def outer_pid(proc: int, pidfd: int) -> int:
    """The process's number in that procfs; -1 when it is gone or not to be seen."""
    for line in _text(proc, f"self/fdinfo/{pidfd}").split("\n"):
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1


def descendants(proc: int, pid: int) -> list[int]:
    """`pid` and all processes below it, in that procfs's numbers."""
    found, left = [], [pid]
    while left:
        parent = left.pop()
        found.append(parent)
        for task in _tasks(proc, parent):
            left += map(int, _text(proc, f"{parent}/task/{task}/children").split())
    return found


def num_tasks(proc: int, pids: list[int]) -> int:
    """Processes and threads."""
    return sum(len(_tasks(proc, pid)) for pid in pids)


def private_bytes(proc: int, pid: int) -> int:
    """Anonymous, shared and swapped-out memory of one process; not its file pages, which the kernel can drop."""
    if (found := _held_bytes(proc, f"{pid}/status")) is not None:
        return found
    threads = (_held_bytes(proc, f"{pid}/task/{task}/status") for task in _tasks(proc, pid))
    return next((found for found in threads if found is not None), 0)  # its first thread has ended, and says nothing


def _held_bytes(proc: int, path: str) -> int | None:
    lines = _text(proc, path).split("\n")
    said = [line.split()[1] for line in lines if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:"))]
    return sum(map(int, said)) << 10 if said else None


def cpu_s(proc: int, pids: list[int]) -> float:
    """Processor seconds of processes and of the children that they have waited for."""
    ticks = 0
    for pid in pids:
        fields = _text(proc, f"{pid}/stat").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def private_bytes_of_self(proc: int) -> int:
    return private_bytes(proc, int(os.readlink("self", dir_fd=proc)))


def children_of_self(proc: int) -> list[int]:
    """The calling process's children; it has one thread."""
    own = os.readlink("self", dir_fd=proc)
    return [int(pid) for pid in _text(proc, f"{own}/task/{own}/children").split()]


def address_bytes(proc: int) -> int:
    """The address space of the calling process."""
    return int(_text(proc, "self/statm").split()[0]) * os.sysconf("SC_PAGE_SIZE")


def tasks_of_user(proc: int, uid: int) -> int:
    """All processes and threads of a user: what RLIMIT_NPROC counts."""
    count = 0
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                if os.stat(name, dir_fd=proc).st_uid == uid:
                    count += len(_tasks(proc, int(name)))
            except OSError:
                continue
    return count


def held_in(proc: int, folder: str, pids: list[int], most_files: int) -> tuple[int, int]:
    """Bytes and files that a scratch folder holds, and what its processes hold of it after removing it. A tree too deep
    to look at counts as more files than any limit; with more files than `most_files`, the others are not looked at."""
    size = count = 0
    left = [(folder, 0)]
    while left:
        path, depth = left.pop()
        if depth > _DEEPEST:
            return size, _TOO_MANY
        for found, inner in _entries(path, most_files + 1):
            count += 1
            if count > most_files:  # or a folder swapped for a link to / would have this walk over the whole machine
                return size, count
            size += found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else 0
            if stat.S_ISDIR(found.st_mode):
                left.append((inner, depth + 1))
    removed = {key: held for pid in pids for key, held in _removed(proc, pid, folder)}
    return size + sum(removed.values()), count + len(removed)


def _removed(proc: int, pid: int, folder: str) -> Iterator[tuple[str, int]]:
    """Files without a name any more that a process has open or mapped: (what tells them apart, bytes)."""
    for thread in (f"{pid}/task/{task}" for task in _tasks(proc, pid)):  # one that has ended shows nothing
        for name in _listed(proc, f"{thread}/fd"):
            try:
                path = f"{thread}/fd/{name}"
                if os.readlink(path, dir_fd=proc).startswith(folder):
                    found = os.stat(path, dir_fd=proc)
                    if found.st_nlink == 0:
                        yield str(found.st_ino), found.st_blocks * 512
            except OSError:
                continue
        if maps := _text(proc, f"{thread}/maps", _MOST_MAPS_BYTES):
            break
    else:
        return
    if len(maps) >= _MOST_MAPS_BYTES:  # made to take seconds to read
        yield f"mappings of {pid}", _TOO_MANY
        return
    if " (deleted)" not in maps:
        return
    for line in maps.split("\n"):
        if line.endswith(" (deleted)") and folder in line:
            addresses, _, _, _, inode, _ = line.split(maxsplit=5)
            first, _, end = addresses.partition("-")
            yield f"mapped {inode} {first}", int(end, 16) - int(first, 16)


def _entries(folder: str, most: int) -> Iterator[tuple[os.stat_result, str]]:
    """What is in a folder that its owner may be changing, `most` entries at most."""
    try:
        with os.scandir(folder) as found:
            entries = list(itertools.islice(found, most))
    except OSError:
        return
    for entry in entries:
        try:
            yield entry.stat(follow_symlinks=False), entry.path
        except OSError:
            continue


def _tasks(proc: int, pid: int) -> list[str]:
    return _listed(proc, f"{pid}/task")


def _listed(proc: int, path: str) -> list[str]:
    """The names in a folder of /proc; none when the process is gone."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return []
    try:
        return os.listdir(folder)
    except OSError:
        return []
    finally:
        os.close(folder)


def _text(proc: int, path: str, most: int = -1) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return ""
    try:
        with open(descriptor, errors="surrogateescape") as file:
            return file.read(most)
    except OSError:
        return ""
