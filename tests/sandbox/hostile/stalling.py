"""Keeping the sandbox itself busy or the host's disk full: other calls must be served while a guest tries."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time

from lockstep.sandbox.interface import Limits, Sandbox
from tests.sandbox.hostile.case import Case, case, script

LIMIT = Limits(time_s=3.0, memory_bytes=1 << 29, files_bytes=1 << 24, max_files=1024)
MOST_S = 1.5  # that another call may wait for; a served one takes hundredths
MOST_DISK = 400 << 20


def stall(name: str, attempts: str, code: str) -> Case:
    """A case in which other calls are made while the script runs."""

    async def play(sandbox: Sandbox) -> list[str]:
        hog = asyncio.ensure_future(sandbox.run(script(code, {}), limits=LIMIT))
        longest, began = 0.0, time.monotonic()
        while not hog.done() or longest == 0.0:
            asked = time.monotonic()
            await sandbox.run("pass")
            longest = max(longest, time.monotonic() - asked)
            await asyncio.sleep(0.02)
        took = time.monotonic() - began
        wrong = [f"another call waited for {longest:.1f} s"] if longest > MOST_S else []
        return (
            [*wrong, f"its own time of {LIMIT.time_s} s became {took:.1f} s"] if took > LIMIT.time_s + MOST_S else wrong
        )

    return case(name, attempts, code, play=play, control=None, no_control="it is the sandbox that is to be kept busy")


async def reserve(sandbox: Sandbox) -> list[str]:
    """The host's free space is looked at all the while."""
    place, over, least = tempfile.gettempdir(), threading.Event(), []

    def look() -> None:
        before = free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        while not over.is_set():
            free = min(free, os.statvfs(place).f_bavail * os.statvfs(place).f_frsize)
            time.sleep(0.002)
        least.append(before - free)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        await sandbox.run(script(RESERVE, {}), limits=LIMIT)
    finally:
        over.set()
        thread.join()
    return [f"{least[0] >> 20} MiB of the host's disk were taken"] if least[0] > MOST_DISK else []


RESERVE = """
for number in range(60):
    try:
        os.posix_fallocate(os.open(str(number), os.O_CREAT | os.O_RDWR), 0, 16 << 20)
    except OSError:
        break
"""

CASES = (
    stall(
        "stall_by_depth",
        "makes folders so deep that counting them takes long",
        """
for number in range(1000):
    os.mkdir("d")
    os.chdir("d")
time.sleep(1)
""",
    ),
    stall(
        "stall_by_files",
        "makes and removes files without pause",
        """
end = time.monotonic() + 2
while time.monotonic() < end:
    for number in range(500):
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))
    for number in range(500):
        os.unlink(str(number))
""",
    ),
    stall(
        "stall_by_mappings",
        "maps a file of its own tens of thousands of times",
        """
import ctypes
number = os.open("file", os.O_CREAT | os.O_RDWR)
os.ftruncate(number, 1 << 23)
os.unlink("file")
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
for at in range(60000):
    libc.mmap(None, ctypes.c_size_t(4096), 1 + at % 2 * 2, 1, number, ctypes.c_long(at % 2000 * 4096))
time.sleep(1)
""",
    ),
    stall(
        "stall_by_descriptors",
        "holds as many descriptors as it may, in as many processes",
        """
for _ in range(14):
    try:
        if os.fork() == 0:
            break
    except OSError:
        break
for number in range(4096):
    try:
        os.open("file", os.O_CREAT | os.O_RDWR)
    except OSError:
        break
time.sleep(1.5)
""",
    ),
    stall(
        "stall_by_forks",
        "forks and ends without pause",
        """
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    except OSError:
        pass
""",
    ),
    stall(
        "stall_by_signals",
        "interrupts its parent without pause",
        """
end = time.monotonic() + 2
while time.monotonic() < end:
    for number in (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT):
        try:
            os.kill(os.getppid() or 1, number)
        except OSError:
            pass
""",
    ),
    stall(
        "stall_by_names",
        "leaves files whose names are as long as names can be, and odd",
        """
for number in range(900):
    os.close(os.open(chr(10) + chr(27) + "x" * 240 + str(number), os.O_CREAT | os.O_WRONLY))
time.sleep(0.5)
""",
    ),
    stall(
        "stall_by_long_mappings",
        "maps a file whose path is long tens of thousands of times, in six processes",
        """
import ctypes
for _ in range(15):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
number = os.open("file", os.O_CREAT | os.O_RDWR)
os.ftruncate(number, 1 << 23)
os.unlink("file")
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
for _ in range(5):
    if os.fork() == 0:
        break
for at in range(60000):
    libc.mmap(None, ctypes.c_size_t(4096), 1 + at % 2 * 2, 1, number, ctypes.c_long(at % 2000 * 4096))
time.sleep(1)
""",
    ),
    case(
        "reserve_disk",
        "reserves far more of the disk than it may, at once",
        RESERVE,
        play=reserve,
        control=None,
        no_control="the disk is the host's",
    ),
)
