"""Sessions keep state on purpose: for one trajectory only, within the limits, and not beyond their end."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from lockstep.sandbox.interface import Limits, Sandbox
from tests.sandbox.hostile.case import Case, case, script
from tests.sandbox.hostile.stage import cpu_s, descendants, gone, status_of, survivors

LIMIT = Limits(time_s=3.0, memory_bytes=192 << 20, max_processes=8, output_bytes=1 << 12, files_bytes=1 << 24)
WHY = "a plain interpreter has no sessions"
GROW = """
import time
def work():
    kept = []
    time.sleep(0.1)
    while len(kept) < 60:
        kept.append(bytearray(b"x") * (10 << 20))
    time.sleep(5)
"""
FORK = """
import os, time
def work():
    for _ in range(100):
        try:
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
        except OSError:
            time.sleep(0.01)
"""
BURN = """
def work():
    while True:
        pass
"""
IN_A_THREAD = "import threading\nthreading.Thread(target=work, daemon=True).start()"


def session(name: str, attempts: str, play) -> Case:
    return case(name, attempts, "", play=play, control=None, no_control=WHY)


async def other_session(sandbox: Sandbox) -> list[str]:
    first, second = await sandbox.session(limits=LIMIT), await sandbox.session(limits=LIMIT)
    try:
        await first.run("secret = 42\nopen('left', 'w').write('x')\nimport math\nmath.pi = 3")
        there = await first.run("import os\nprint(secret, os.path.exists('left'))")
        code = "import math, os\nprint('secret' in globals(), os.path.exists('left'), math.pi == 3)"
        found = [await second.run(code), await sandbox.run(code)]
    finally:
        await first.close()
        await second.close()
    wrong = [end.stdout for end in found if end.stdout.split() != ["False"] * 3]
    return wrong if there.stdout.split() == ["42", "True"] else [f"its own state is not there: {there}"]


async def ends_with_its_children(sandbox: Sandbox) -> list[str]:
    own = await sandbox.session(limits=LIMIT)
    before = await own.run(
        script("if os.fork() == 0:\n    leave_group()\n    if os.fork() == 0:\n        linger()\n    os._exit(0)", {})
    )
    await asyncio.sleep(0.1)
    await own.close()
    wrong = [] if before.status == "ok" else [str(before)]
    return wrong if gone(survivors) else [*wrong, f"left after its end: {survivors()}"]


async def used_after_its_end(sandbox: Sandbox) -> list[str]:
    own = await sandbox.session(limits=LIMIT)
    await own.run("x = 1")
    await own.close()
    try:
        found = await own.run("print(x)")
    except Exception:
        return []
    return [f"it answered: {found}"]


def after(first: str, *, status: tuple[str, ...], lost: bool | None = None):
    """The run of `first` ends so, and the session (with its state, or without) and the sandbox go on."""

    async def play(sandbox: Sandbox) -> list[str]:
        own = await sandbox.session(limits=LIMIT)
        try:
            await own.run("x = 1")
            end = await own.run(script(first, {}), time_s=1.0)
            then = await own.run("print('x' in globals(), 6 * 7)")
        finally:
            await own.close()
        wrong = [] if end.status in status else [f"ended {end}"]
        if "42" not in then.stdout and lost is not None:
            wrong.append(f"the next run: {then}")
        if lost and not then.state_lost:
            wrong.append(f"nothing says that the state was lost: {then}")
        return wrong

    return play


async def grows_between_runs(sandbox: Sandbox) -> list[str]:
    """What a thread of an earlier run takes while nobody runs anything is held to the limits too."""
    known = descendants(os.getpid())
    own = await sandbox.session(limits=LIMIT)
    try:
        await own.run(GROW + IN_A_THREAD)
        await asyncio.sleep(1.0)
        resident = sum(int(status_of(pid).get("VmRSS", "0").split()[0]) for pid in descendants(os.getpid()) - known)
    finally:
        await own.close()
    return [f"{resident >> 10} MiB resident between its runs"] if resident > 400 << 10 else []


async def forks_between_runs(sandbox: Sandbox) -> list[str]:
    known = descendants(os.getpid())
    own = await sandbox.session(limits=LIMIT)
    try:
        await own.run(FORK + IN_A_THREAD)
        await asyncio.sleep(0.5)
        number = len(descendants(os.getpid()) - known)
    finally:
        await own.close()
    return [f"{number} processes between its runs"] if number > LIMIT.max_processes + 4 else []


async def burns_between_runs(sandbox: Sandbox) -> list[str]:
    """Processor time that a session uses while nobody runs anything in it."""
    known = descendants(os.getpid())
    own = await sandbox.session(limits=LIMIT)
    try:
        await own.run(BURN + IN_A_THREAD)
        await asyncio.sleep(0.2)
        before = [cpu_s(pid) for pid in sorted(descendants(os.getpid()) - known)]
        await asyncio.sleep(1.0)
        after = [cpu_s(pid) for pid in sorted(descendants(os.getpid()) - known)]
    finally:
        await own.close()
    used = sum(after) - sum(before)
    return [f"{used:.2f} s of processor time in 1 s between its runs"] if used > 0.05 else []


# A child that takes long to die: it was dying already when the session was stopped, and its end is told by SIGCONT.
WAKE = """
import ctypes, mmap, os
reading, writing = os.pipe()
libc = ctypes.PyDLL(None)  # which keeps the interpreter locked: the child has no other threads
libc.syscall.restype = ctypes.c_long
number = 56 if os.uname().machine == "x86_64" else 220
if libc.syscall(number, 18, 0, 0, 0, 0) == 0:
    memory = mmap.mmap(-1, 128 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for place in range(0, 128 << 20, 4096):
        memory[place] = 1
    os.write(writing, b"x")
    libc._exit(0)
os.close(writing)
os.read(reading, 1)
"""


async def woken_between_runs(sandbox: Sandbox) -> list[str]:
    own = await sandbox.session(limits=replace(LIMIT, memory_bytes=1 << 29))
    known = descendants(os.getpid())
    used = 0.0
    try:
        await own.run(BURN + IN_A_THREAD)
        for _ in range(3):
            end = await own.run(WAKE)
            if end.status not in ("ok", "timeout") or "Error" in end.stderr:
                return [str(end)]
            await asyncio.sleep(0.3)
            before = [cpu_s(pid) for pid in sorted(descendants(os.getpid()) - known)]
            await asyncio.sleep(0.5)
            after = [cpu_s(pid) for pid in sorted(descendants(os.getpid()) - known)]
            used += sum(after) - sum(before)
    finally:
        await own.close()
    return [f"{used:.2f} s of processor time in 1.5 s between its runs"] if used > 0.05 else []


async def floods_over_runs(sandbox: Sandbox) -> list[str]:
    own = await sandbox.session(limits=LIMIT)
    try:
        ends = [await own.run("try:\n    print('x' * 3000, flush=True)\nexcept OSError:\n    pass") for _ in range(4)]
        lengths = [len(end.stdout) for end in ends]
    finally:
        await own.close()
    return [f"outputs of {lengths} bytes"] if max(lengths) > LIMIT.output_bytes else []


async def runs_at_the_same_time(sandbox: Sandbox) -> list[str]:
    """Two sessions, one of which hogs: the other is served."""
    first, second = await sandbox.session(limits=LIMIT), await sandbox.session(limits=LIMIT)
    try:
        hog = asyncio.ensure_future(first.run("while True:\n    pass", time_s=1.0))
        end = await second.run("print('served')")
        late = hog.done()
        hogged = await hog
    finally:
        await first.close()
        await second.close()
    wrong = [] if end.stdout == "served\n" and hogged.status == "timeout" else [f"{end}, {hogged}"]
    return [*wrong, "it had to wait for the other"] if late else wrong


FORGE = """
for number in range(1024):
    if number not in (0, 1, 2):
        for words in (b"ok\\n", b"0\\n", b"\\0" * 8, b"done", b'{"status": "ok"}\\n'):
            try:
                os.write(number, words)
            except OSError:
                pass
time.sleep(20)
"""

CASES = (
    session("session_seen_by_another", "reads what another session left, in names, files and modules", other_session),
    session("session_children_outlive_it", "leaves a daemon that outlives its session", ends_with_its_children),
    session("session_after_its_end", "goes on after its session was closed", used_after_its_end),
    session("session_grows_unwatched", "takes memory between its runs", grows_between_runs),
    session("session_forks_unwatched", "forks between its runs", forks_between_runs),
    session("session_burns_unwatched", "uses a processor between its runs", burns_between_runs),
    session("session_is_woken", "has a dying child continue it between its runs", woken_between_runs),
    session("session_floods_by_and_by", "fills its output over several runs", floods_over_runs),
    session("session_hogs", "keeps the sandbox from serving another session", runs_at_the_same_time),
    session("session_exits", "ends its interpreter", after("os._exit(0)", status=("ok",), lost=True)),
    session(
        "session_exits_as_failure",
        "ends its interpreter with a code of its own",
        after("os._exit(111)", status=("error",), lost=True),
    ),
    session(
        "session_kills_itself",
        "kills its interpreter",
        after("os.kill(os.getpid(), 9)\ntime.sleep(1)", status=("killed",), lost=True),
    ),
    session("session_loops", "never comes back", after("while True:\n    pass", status=("timeout",), lost=True)),
    session(
        "session_forges_its_end",
        "writes the words of an end to every descriptor, and goes on",
        after(FORGE, status=("ok", "error", "timeout")),
    ),
    session(
        "session_closes_everything",
        "closes every descriptor",
        after("os.closerange(0, 4096)", status=("ok", "error", "killed")),
    ),
    session(
        "session_falls_through",
        "replaces the functions that end its runs",
        after(
            "os._exit = sys.exit = lambda *_: None\nimport builtins\n"
            "builtins.exec = builtins.compile = lambda *_: None\nraise SystemExit",
            status=("ok", "error", "killed", "timeout"),
        ),
    ),
    session(
        "session_stops_itself",
        "stops itself, and waits",
        after("os.kill(os.getpid(), 19)\ntime.sleep(5)", status=("timeout", "killed")),
    ),
    session(
        "session_ends_in_a_thread",
        "ends in a thread while nobody looks",
        after("import threading\nthreading.Timer(0.0, os._exit, [0]).start()", status=("ok", "error", "killed")),
    ),
)
