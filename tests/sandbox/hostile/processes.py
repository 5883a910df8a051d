"""Bombs, survivors, and what a guest does to other processes: its parent, another call, a process of its own user."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from lockstep.sandbox.interface import Limits, Outcome, Sandbox
from tests.sandbox.hostile.case import case, outlives, script, survives
from tests.sandbox.hostile.stage import PROJECT, gone, survivors, wait_until

FORKS = """
for _ in range(4):
    if os.fork() == 0:
        if os.fork() == 0:
            linger(30)
        os._exit(0)
time.sleep(30)
"""
TRAINER = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox
sandbox = open_sandbox(SandboxOptions(tier=sys.argv[1]))
asyncio.run(sandbox.run(sys.argv[3]))
"""


async def outlives_the_trainer(sandbox: Sandbox) -> list[str]:
    """Another trainer is killed while its guest has children of every kind."""
    guest = script(
        FORKS,
        {},
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, sandbox.tier, str(PROJECT), guest], start_new_session=True
    )
    try:
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if len(survivors()) == 4:
                break
        began = len(survivors())
    finally:
        trainer.kill()
        trainer.wait()
    wrong = [] if gone(survivors, within_s=5.0) else [f"left after the trainer's death: {survivors()}"]
    return wrong if began == 4 else [*wrong, f"it had {began} children, not 4"]


def nobody_settles(end: Outcome) -> str | None:
    """A runner is in no list of processes while it runs; after that it is."""
    return "the runner came to rest" if wait_until(survivors, within_s=2.0) else None


FEW = Limits(time_s=10.0, max_processes=8)
SHORT = Limits(time_s=0.6, max_processes=8)
ENDS = ("ok", "killed", "error")

CASES = (
    case(
        "fork_bomb",
        "forks 100 children that wait",
        """
        made = 0
        for _ in range(100):
            try:
                if os.fork() == 0:
                    time.sleep(2)
                    os._exit(0)
                made += 1
            except OSError:
                break
        (breach if made >= 8 else held)(made)
        """,
        limits=FEW,
    ),
    case(
        "fork_bomb_doubling",
        "forks where every child forks on (128 at most)",
        """
        for _ in range(7):
            try:
                os.fork()
            except OSError:
                pass
        os.write(1, b".")
        time.sleep(0.3)
        """,
        limits=FEW,
        speaks=False,
        check=lambda end: f"{end.stdout.count('.')} processes" if end.stdout.count(".") > 8 else None,
        control=lambda plain: plain.output.count(".") == 128,
    ),
    case(
        "thread_bomb",
        "starts 100 threads with tiny stacks",
        """
        import threading
        threading.stack_size(32768)
        made = 0
        for _ in range(100):
            try:
                threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
                made += 1
            except (RuntimeError, OSError):
                break
        (breach if made >= 8 else held)(made)
        os._exit(0)
        """,
        limits=FEW,
    ),
    case(
        "threads_in_children",
        "starts threads in several children, each below the limit",
        """
        import threading
        reading, writing = os.pipe()
        for _ in range(4):
            try:
                if os.fork() == 0:
                    for _ in range(5):
                        try:
                            threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
                            os.write(writing, b".")
                        except (RuntimeError, OSError):
                            break
                    time.sleep(0.5)
                    os._exit(0)
                os.write(writing, b".")
            except OSError:
                break
        time.sleep(0.3)
        made = len(os.read(reading, 1000)) if os.write(writing, b"x") else 0
        (breach if made > 8 else held)(made)
        """,
        limits=FEW,
    ),
    case(
        "vfork_bomb",
        "starts 40 programs at once",
        """
        import subprocess, sys
        made = []
        for _ in range(40):
            try:
                made.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]))
            except OSError:
                break
        (breach if len(made) >= 8 else held)(len(made))
        """,
        limits=FEW,
    ),
    case(
        "daemon",
        "leaves a daemon behind: two forks and a session of its own",
        """
        if os.fork() == 0:
            leave_group()
            if os.fork() == 0:
                linger()
            os._exit(0)
        time.sleep(0.1)
        held("left it behind")
        """,
        control=survives,
    ),
    case(
        "orphan",
        "leaves a child behind",
        """
        if os.fork() == 0:
            linger()
        time.sleep(0.1)
        held("left it behind")
        """,
        control=survives,
    ),
    case(
        "child_of_the_parent",
        "makes its child a child of its parent (CLONE_PARENT), outside its own tree",
        """
        result, _ = syscall("clone", 0x8000 | signal.SIGCHLD)
        if result == 0:
            linger()
        time.sleep(0.1)
        held(result)
        """,
        control=survives,
    ),
    case(
        "untraced_clone",
        "makes a child that no tracer follows and that signals nobody",
        """
        result, _ = syscall("clone", 0x800000)
        if result == 0:
            linger()
        time.sleep(0.1)
        held(result)
        """,
        control=survives,
    ),
    case(
        "survive_timeout",
        "leaves children behind that outlast the timeout",
        """
        for _ in range(3):
            if os.fork() == 0:
                leave_group()
                linger()
        time.sleep(20)
        """,
        limits=SHORT,
        expect=("timeout",),
        control=survives,
        control_s=0.6,
    ),
    case(
        "survive_own_death",
        "kills itself when its child is ready",
        """
        if os.fork() == 0:
            leave_group()
            linger()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(5)
        """,
        limits=SHORT,
        expect=("killed", "timeout"),
        control=survives,
    ),
    case(
        "forking_runner",
        "forks at once in every generation, so that who kills by list comes late; the last one stays",
        """
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                if os.fork():
                    os._exit(0)
                leave_group()
            except OSError:
                pass
        linger()
        """,
        speaks=False,
        expect=("ok", "timeout", "killed"),
        check=nobody_settles,
        control=survives,
    ),
    case(
        "become_subreaper",
        "gathers orphans itself, so that the supervisor does not see them",
        """
        result, error = syscall("prctl", 36, 1)
        if os.fork() == 0:
            if os.fork() == 0:
                linger()
            os._exit(0)
        time.sleep(0.1)
        held(result, error)
        """,
        control=survives,
    ),
    case(
        "outlive_the_trainer",
        "leaves processes behind when the trainer is killed",
        "",
        play=outlives_the_trainer,
        control=None,
        no_control="it is the sandbox's own trainer that dies",
    ),
    case("raise_own_priority", "raises its own priority", """refused(os.setpriority, os.PRIO_PROCESS, 0, -5)"""),
    case(
        "run_in_real_time",
        "asks for real-time scheduling, which starves everyone else",
        """
        refused(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
        """,
    ),
    case(
        "raise_limits",
        "raises each of its limits",
        """
        import resource
        found = []
        for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "NOFILE", "NPROC", "STACK"):
            number = getattr(resource, "RLIMIT_" + name)
            soft, hard = resource.getrlimit(number)
            if hard == resource.RLIM_INFINITY and name in ("AS", "FSIZE", "NPROC", "CORE"):
                found.append(name + " has none")
            elif hard != resource.RLIM_INFINITY:
                try:
                    resource.setrlimit(number, (hard + 1, hard + 1))
                    found.append(name)
                except (OSError, ValueError):
                    pass
        (breach if found else held)(found)
        """,
        control=None,
        no_control="raising a hard limit needs CAP_SYS_RESOURCE, which not every root has",
    ),
    case(
        "stop_itself",
        "stops itself, and waits to be waited for",
        """
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(10)
        """,
        limits=SHORT,
        expect=("timeout", "killed"),
        control=outlives,
        control_s=1.0,
    ),
    case(
        "stop_children",
        "leaves a stopped child behind",
        """
        pid = os.fork()
        if pid == 0:
            call_itself(MARK)
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        time.sleep(0.2)
        held(pid)
        """,
        control=survives,
    ),
    case(
        "leave_a_thread_leading",
        "ends its first thread alone: a zombie that other threads keep alive",
        """
        import threading
        def stay():
            call_itself(MARK)
            time.sleep(15)
            os._exit(0)
        threading.Thread(target=stay).start()
        time.sleep(0.05)
        syscall("exit", 0)
        """,
        limits=SHORT,
        expect=("timeout", "killed"),
        control=outlives,
        control_s=1.0,
    ),
)
