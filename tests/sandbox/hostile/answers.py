"""A session's own ends of what it shares with the trainer: its channel, its code, and the time between its runs."""

from __future__ import annotations

import asyncio
import os

from lockstep.sandbox.interface import Limits, Sandbox
from tests.sandbox.hostile.case import script
from tests.sandbox.hostile.sessions import BURN, IN_A_THREAD, session
from tests.sandbox.hostile.stage import cpu_s, descendants

LIMIT = Limits(time_s=3.0, memory_bytes=192 << 20, max_processes=8, files_bytes=1 << 24)
MANY_RUNS = 400  # their requests are more than the channel takes unread

# A timer of the kernel's that sends SIGCONT to its maker every 20 ms: who is stopped goes on.
WAKE = """
import ctypes, struct
which = (222, 223) if os.uname().machine == "x86_64" else (107, 110)
event = ctypes.create_string_buffer(struct.pack("=Qii", 0, signal.SIGCONT, 0), 64)
timer = ctypes.c_int()
made, error = syscall(which[0], 1, event, ctypes.byref(timer))
every = ctypes.create_string_buffer(struct.pack("=4q", 0, 20_000_000, 0, 20_000_000))
if made == 0:
    made, error = syscall(which[1], timer.value, 0, every)
print("timer", made, error)
"""

# With MSG_OOB the other side is woken for a byte that an ordinary read then waits for.
OUT_OF_BAND = """
import socket
channel = socket.socket(fileno=5)
try:
    channel.send(b"x", socket.MSG_OOB)
except OSError:
    pass
time.sleep(60)
"""
# One byte a run, whenever it is let go on for the next; a second one would end it.
UNREAD = """
answer = lambda *_: os.write(5, b"\\0")
signal.signal(signal.SIGCONT, answer)
answer()
while True:
    signal.pause()
"""

WRITE_CODE = """
for number in (3, 5):
    for folder in ("/proc/self/fd", "/dev/fd", f"/proc/{os.getpid()}/fd", f"/proc/{os.getppid()}/fd"):
        for how in (os.O_WRONLY, os.O_RDWR):
            try:
                os.open(f"{folder}/{number}", how)
                breach("opened", folder, number)
            except OSError:
                pass
held()
"""


async def wakes_itself(sandbox: Sandbox) -> list[str]:
    """Processor time that a session uses while nobody runs anything in it."""
    known = descendants(os.getpid())
    own = await sandbox.session(limits=LIMIT)
    try:
        said = await own.run(script(BURN + IN_A_THREAD + WAKE, {}))
        await asyncio.sleep(0.2)
        pids = sorted(descendants(os.getpid()) - known)
        before = sum(map(cpu_s, pids))
        await asyncio.sleep(0.7)
        used = sum(map(cpu_s, pids)) - before
    finally:
        await own.close()
    wrong = [] if "timer" in said.stdout else [f"it did not come so far: {said}"]
    return [*wrong, f"{used:.2f} s of processor time in 0.7 s between its runs"] if used > 0.05 else wrong


async def sends_out_of_band(sandbox: Sandbox) -> list[str]:
    """Another call is served while the run goes on."""
    own = await sandbox.session(limits=LIMIT)
    try:
        await own.run("pass")
        hog = asyncio.ensure_future(own.run(script(OUT_OF_BAND, {}), time_s=1.5))
        await asyncio.sleep(0.3)
        served = await sandbox.run("print('served')")
        late = hog.done()
        await hog
    finally:
        await own.close()
    wrong = [] if served.stdout == "served\n" else [str(served)]
    return [*wrong, "another call had to wait for the run's end"] if late else wrong


async def answers_beforehand(sandbox: Sandbox) -> list[str]:
    """What is asked of it piles up unread. The run that does not fit ends it at once, and not by the clock."""
    own = await sandbox.session(limits=LIMIT)
    try:
        ends = [await own.run(script(UNREAD, {}), time_s=1.5)]
        while len(ends) < MANY_RUNS and ends[-1].status == "ok":
            ends.append(await own.run("print('run')", time_s=1.5))
        after = await own.run("print('fresh')")
    finally:
        await own.close()
    if len(ends) < 3 or any("run" in end.stdout for end in ends):
        return [f"it did not answer beforehand: {ends[-1]}"]
    wrong = [] if ends[-1].status == "killed" else [f"run {len(ends)} ended {ends[-1]}"]
    return wrong if (after.stdout, after.state_lost) == ("fresh\n", True) else [*wrong, f"the next run: {after}"]


async def writes_its_code(sandbox: Sandbox) -> list[str]:
    own = await sandbox.session(limits=LIMIT)
    try:
        ends = [await own.run(script(WRITE_CODE, {})), await own.run("print('next')")]
    finally:
        await own.close()
    wrong = [] if "HELD" in ends[0].stdout and ends[1].stdout == "next\n" else [str(ends)]
    return [*wrong, ends[0].stdout] if "BREACH" in ends[0].stdout else wrong


CASES = (
    session("session_wakes_itself", "has the kernel wake it between its runs", wakes_itself),
    session("session_sends_out_of_band", "wakes the trainer for a byte that is not there", sends_out_of_band),
    session("session_answers_beforehand", "answers runs that it never reads", answers_beforehand),
    session("session_writes_its_code", "opens the file of its code again, for writing", writes_its_code),
)
