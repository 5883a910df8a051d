"""What is left of a sandbox after many calls of every kind, and after kill -9. Prints JSON. Not a test itself.

python tests/sandbox/leftovers.py many TIER NUMBER     calls of every kind; what is there before and after
python tests/sandbox/leftovers.py killed TIER DELAY_S  kill -9 a trainer with calls in flight (or after a delay)
python tests/sandbox/leftovers.py supervisor TIER      kill -9 the supervisor during a call
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(1, str(Path(__file__).parent))

from family import adopt_orphans, comes_true, descendants, files, not_reaped, num_descriptors, num_mounts
from smoke import FORKS, MEMORIES

from benchmarks.processes import tree
from lockstep.sandbox.interface import Limits, Outcome, Sandbox, SandboxFailure
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox

IN_FLIGHT = 16
TINY = Limits(time_s=0.05)
SMALL = Limits(memory_bytes=1 << 26)
SLEEP = "import time; time.sleep(1000)"
THREADS = (
    "import threading, time\nfor _ in range(4): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
)
LITTER = "import os, tempfile\nfor n in range(9): open(f'f{n}', 'w').write('x' * 9999)\nos.makedirs('a/b/c'); "
LITTER += "tempfile.mkstemp(); tempfile.mkdtemp()"
SCRIPTS: dict[str, tuple[str, str, dict[str, object]]] = {  # kind: script, expected status, further arguments
    "ok": ("print(input())", "ok", {"stdin": "x"}),
    "error": ("1 / 0", "error", {}),
    "exit": ("import os; os._exit(7)", "error", {}),
    "loop": ("while True: pass", "timeout", {"limits": TINY}),
    "sleep": (SLEEP, "timeout", {"limits": TINY}),
    "memory": ("x = bytearray(1 << 29)", "error", {"limits": SMALL}),
    "memories": (MEMORIES, "memory", {"limits": SMALL}),
    "killed": ("import os; os.kill(os.getpid(), 9)", "killed", {}),
    "forks": (FORKS, "ok", {}),
    "threads": (THREADS, "ok", {}),
    "litter": (LITTER, "ok", {"files": {"in/a": b"x" * 1000, "b": b""}}),
}


# --- many calls ---


async def one(sandbox: Sandbox, kind: str, moment: float) -> str:
    """One call of a kind; what came of it in a word."""
    if kind == "cancelled":
        call = asyncio.create_task(sandbox.run(SLEEP if moment < 0.5 else FORKS + SLEEP))
        await asyncio.sleep(moment * 0.05)  # before it began, during its start, in the middle
        call.cancel()
        try:
            return (await call).status
        except asyncio.CancelledError:
            return "cancelled"
    if kind == "session":
        session = await sandbox.session()
        await session.run(f"x = {moment}; import os; open('s', 'w').write('x')")
        found = await session.run(f"assert x == {moment}\n" + FORKS)
        if moment < 0.5:
            await session.run(SLEEP, time_s=0.05)
        await session.close()
        return found.status
    script, _, kwargs = SCRIPTS[kind]
    return (await sandbox.run(script, **kwargs)).status


async def mixture(sandbox: Sandbox, number: int, seed: int) -> dict[str, dict[str, int]]:
    """`number` calls of all kinds, some in flight together: statuses counted by kind."""
    drawn = random.Random(seed)
    kinds = [*SCRIPTS, "cancelled", "session"]
    work = [(kinds[n % len(kinds)], drawn.random()) for n in range(number)]
    drawn.shuffle(work)
    found = {kind: Counter() for kind in kinds}

    async def worker() -> None:
        while work:
            kind, moment = work.pop()
            found[kind][await one(sandbox, kind, moment)] += 1

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return {kind: dict(counts) for kind, counts in found.items()}


def standing() -> dict[str, object]:
    """What there is now. Descriptors by process, without the processes' ids."""
    processes = descendants()
    return {
        "processes": len(processes),
        "not_reaped": len(not_reaped()),
        "descriptors": num_descriptors(os.getpid()),
        "theirs": sorted(num_descriptors(pid) for pid in processes),
        "mounts": num_mounts(),
        "files": files(),
    }


def settled(like: dict[str, object]) -> dict[str, object]:
    """What there is once it is like `like`, or after a while: guests end after their call's answer."""
    return like if comes_true(lambda: standing() == like, deadline_s=10.0) else standing()


def many(tier: str, number: str) -> dict[str, object]:
    adopt_orphans()
    asyncio.run(asyncio.sleep(0))  # what asyncio opens once
    closed = standing()
    sandbox = open_sandbox(SandboxOptions(tier=tier, max_concurrency=IN_FLIGHT))
    asyncio.run(mixture(sandbox, 24, seed=0))  # what is made at first use and kept
    comes_true(lambda: len(descendants()) == 2)  # a launcher and a supervisor: keepers that idle have ended
    before = standing()
    statuses = asyncio.run(mixture(sandbox, int(number), seed=1))
    after = settled(before)
    sandbox.close()
    return {"statuses": statuses, "before": before, "after": after, "closed": closed, "at_the_end": settled(closed)}


# --- kill -9 of the trainer ---


def end_all() -> int:
    """How many processes are left; they are killed, lest a failing test leave them to the machine."""
    left = descendants()
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def trainer(tier: str) -> None:
    """Calls of every kind that does not end by itself, until it is killed."""
    sandbox = open_sandbox(SandboxOptions(tier=tier, max_concurrency=IN_FLIGHT))
    print("open", flush=True)

    async def main() -> None:
        busy, idle = await sandbox.session(), await sandbox.session()
        await idle.run("x = 1")
        scripts = (SLEEP, FORKS + SLEEP, LITTER + "\n" + SLEEP, THREADS + "\n" + SLEEP, FORKS + "while True: pass")
        calls = [sandbox.run(script) for script in scripts]
        await asyncio.gather(*calls, busy.run(FORKS + SLEEP))

    asyncio.run(main())


def killed(tier: str, delay_s: str) -> dict[str, object]:
    """delay_s: when to kill; "-" waits until all the calls' processes are there."""
    adopt_orphans()
    before = files()
    process = subprocess.Popen([sys.executable, __file__, "trainer", tier], stdout=subprocess.PIPE, text=True)
    if delay_s == "-":
        assert process.stdout is not None
        if process.stdout.readline() != "open\n":
            return {"error": "the trainer did not open its sandbox"}
        # trainer, launcher and supervisor; 5 calls and 2 sessions; 3 daemons each for 3 of them
        expected = 3 + 7 * (2 if tier == "namespaces" else 1) + 9
        if not comes_true(lambda: len(descendants()) >= expected):
            return {"error": f"only {len(descendants())} of {expected} processes", "in_flight": 0}
    else:
        time.sleep(float(delay_s))
    in_flight = len(descendants())
    process.kill()
    process.wait()
    comes_true(lambda: not descendants())
    comes_true(lambda: files() == before, deadline_s=5.0)
    return {
        "in_flight": in_flight,
        "left": end_all(),
        "files": sorted(set(files()) - set(before)),
        "mounts": num_mounts(),
    }


# --- kill -9 of the sandbox's own processes ---


def below(pid: int) -> list[int]:
    """Living children."""
    return [child for child, process in tree(pid).items() if process.parent == pid and process.state not in "ZX"]


def own_processes() -> tuple[int, int, list[int]]:
    """(launcher, supervisor, the guests' first processes); -1 for one that is not there."""
    launcher = max(below(os.getpid()), default=-1)  # the newest: an adopted orphan is older than a new launcher
    supervisor = max(below(launcher), default=-1)
    return launcher, supervisor, below(supervisor)


async def kill_during(call: Awaitable[Outcome], victim: str, times: int) -> str:
    """kill -9 the launcher or the supervisor `times` times, each time with a guest in flight; how the call ended."""
    task = asyncio.ensure_future(call)
    killed: set[int] = set()
    while len(killed) < times and not task.done():
        launcher, supervisor, guests = own_processes()
        pid = launcher if victim == "launcher" else supervisor
        if guests and pid not in killed:
            await asyncio.sleep(0.1)  # the guest's code has begun
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        await asyncio.sleep(0.02)
    try:
        return (await task).stdout
    except SandboxFailure as error:
        return f"SandboxFailure: {error}"


def supervisor(tier: str, victim: str) -> dict[str, object]:
    adopt_orphans()
    sandbox = open_sandbox(SandboxOptions(tier=tier))
    asyncio.run(sandbox.run("pass"))
    slow = FORKS + "time.sleep(0.5)"
    found: dict[str, object] = {
        "once": asyncio.run(kill_during(sandbox.run(slow), victim, 1)),
        "twice": asyncio.run(kill_during(sandbox.run(slow), victim, 2)),
        "after": asyncio.run(sandbox.run("print(1)")).stdout,
    }
    at_rest = 2  # a launcher and a supervisor, and nothing of the killed ones
    comes_true(lambda: len(descendants()) <= at_rest, deadline_s=5.0)
    found["survivors"] = len(descendants()) - at_rest
    sandbox.close()
    comes_true(lambda: not descendants(), deadline_s=5.0)
    return found | {"left": end_all()}


def unstartable(tier: str) -> dict[str, object]:
    """The supervisor dies in mid-call and cannot be started again."""
    adopt_orphans()
    asyncio.run(asyncio.sleep(0))
    before = standing()
    sandbox = open_sandbox(SandboxOptions(tier=tier))
    sys.executable = "/bin/false"
    during = asyncio.run(kill_during(sandbox.run(SLEEP), "supervisor", 1))
    try:
        after = asyncio.run(sandbox.run("print(1)")).stdout
    except SandboxFailure as error:
        after = f"SandboxFailure: {error}"
    sandbox.close()
    return {"during": during, "after": after, "same": settled(before) == before, "left": end_all()}


def full(tier: str) -> dict[str, object]:
    """64 calls and 64 sessions that all run at once: each waits until it is told to go on, and none is."""
    adopt_orphans()
    sandbox = open_sandbox(SandboxOptions(tier=tier, max_concurrency=64, max_sessions=64))

    async def main() -> int:
        sessions = [await sandbox.session() for _ in range(64)]
        answers = await asyncio.gather(*(session.run("print(1)") for session in sessions))
        at_rest = len(descendants())
        calls = [asyncio.create_task(sandbox.run(SLEEP, limits=Limits(time_s=900.0))) for _ in range(64)]
        while len(descendants()) < at_rest + 64 and not any(call.done() for call in calls):
            await asyncio.sleep(0.05)
        failed = [call for call in calls if call.done()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return sum(answer.stdout == "1\n" for answer in answers) - len(failed)

    together = asyncio.run(main())
    sandbox.close()
    return {"together": together, "left": end_all()}


def crowded(tier: str) -> dict[str, object]:
    """In a trainer with more open descriptors than select() can take."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    sandbox = open_sandbox(SandboxOptions(tier=tier))
    found = asyncio.run(asyncio.wait_for(sandbox.run("print(1)"), 20)).stdout
    sandbox.close()
    return {"stdout": found, "descriptors": len(kept)}


if __name__ == "__main__":
    actions: dict[str, Callable[..., dict[str, object] | None]] = {
        "many": many,
        "killed": killed,
        "trainer": trainer,
        "supervisor": supervisor,
        "unstartable": unstartable,
        "crowded": crowded,
        "full": full,
    }
    print(json.dumps(actions[sys.argv[1]](*sys.argv[2:])))
