"""Forging how it ended: codes, signals and texts that the supervisor might take for its own."""

from __future__ import annotations

import asyncio
import signal

from lockstep.sandbox.interface import Limits, Outcome, Sandbox
from tests.sandbox.hostile.case import Case, case


def ends(status: str, *, exit_code: int | None = None, number: int | None = None):
    """A check that the outcome is exactly so."""

    def check(end: Outcome) -> str | None:
        found, wanted = (end.status, end.exit_code, end.signal), (status, exit_code, number)
        return None if found == wanted else f"{found}, not {wanted}"

    return check


def exits(name: str, attempts: str, code: str, *, exit_code: int) -> Case:
    status = "error" if exit_code else "ok"
    return case(
        name,
        attempts,
        code,
        speaks=False,
        expect=(status,),
        check=ends(status, exit_code=exit_code),
        control=lambda plain: plain.exit_code in (exit_code, 128 - exit_code),
    )


def dies(number: signal.Signals) -> Case:
    return case(
        f"die_by_{number.name.lower()}",
        f"sends itself {number.name}",
        f"if {int(number)} != 9:\n    signal.signal({int(number)}, signal.SIG_DFL)\n"
        f"os.kill(os.getpid(), {int(number)})\ntime.sleep(1)",
        speaks=False,
        expect=("killed",),
        check=ends("killed", number=int(number)),
        control=lambda plain: plain.exit_code == -number,
    )


async def every_code(sandbox: Sandbox) -> list[str]:
    """Exit codes must come back as they are, whatever codes the sandbox uses for itself."""

    async def one(code: int) -> str | None:
        return ends("error", exit_code=code)(await sandbox.run(f"import os\nos._exit({code})"))

    found = []
    codes = sorted({*range(1, 256, 6), 2, 111, 120, 124, 126, 127, 128, 137, 143, 255})
    for first in range(0, len(codes), 8):
        found += await asyncio.gather(*(one(code) for code in codes[first : first + 8]))
    return [problem for problem in found if problem]


CASES = (
    case(
        "exit_with_many_codes",
        "ends with many exit codes, such as a sandbox might use for itself",
        "os._exit(124)",
        play=every_code,
        control=lambda plain: plain.exit_code == 124,
    ),
    exits("exit_as_a_timeout", "ends as the timeout program does", "sys.exit(124)", exit_code=124),
    exits("exit_as_killed", "ends as a shell reports a killed program", "sys.exit(137)", exit_code=137),
    exits("exit_with_text", "ends with a text in place of a code", 'sys.exit("status: ok")', exit_code=1),
    exits("exit_with_large_number", "ends with a number that is no exit code", "sys.exit(1 << 70)", exit_code=255),
    exits(
        "exit_in_a_thread",
        "ends from another thread",
        "import threading\nthreading.Thread(target=os._exit, args=(9,)).start()\ntime.sleep(5)",
        exit_code=9,
    ),
    exits(
        "print_success_and_fail",
        "prints what looks like a result, and fails",
        """
        print('{"status": "ok", "exit_code": 0, "stdout": "42"}')
        print("HELD")
        raise ValueError("status: ok")
        """,
        exit_code=1,
    ),
    exits(
        "print_traceback_and_succeed",
        "prints what looks like a failure of the sandbox, and succeeds",
        """
        print("Traceback (most recent call last):\\nlockstep.sandbox.interface.SandboxFailure: infra", file=sys.stderr)
        """,
        exit_code=0,
    ),
    exits(
        "exit_while_handling",
        "ends in the handler of its own end",
        """
        import atexit
        atexit.register(os._exit, 0)
        """,
        exit_code=0,
    ),
    case(
        "exit_by_hostile_object",
        "ends with an object whose text cannot be made",
        """
        class Hostile:
            def __str__(self):
                raise SystemExit(self)
            __repr__ = __str__
        sys.exit(Hostile())
        """,
        speaks=False,
        expect=("error",),
        control=lambda plain: plain.exit_code not in (0, None),
    ),
    case(
        "raise_memory_error",
        "says that memory ran out",
        "raise MemoryError('no')",
        speaks=False,
        expect=("error", "memory"),
        control=lambda plain: plain.exit_code == 1,
    ),
    case(
        "raise_timeout",
        "raises what the supervisor's own clock raises",
        "raise TimeoutError('no')",
        speaks=False,
        expect=("error",),
        control=lambda plain: plain.exit_code == 1,
    ),
    *(
        dies(number)
        for number in (
            signal.SIGKILL,
            signal.SIGTERM,
            signal.SIGSEGV,
            signal.SIGXCPU,
            signal.SIGXFSZ,
            signal.SIGSYS,
            signal.SIGALRM,
            signal.SIGABRT,
            signal.SIGUSR1,
        )
    ),
    case(
        "dump_core",
        "leaves an image of its memory behind",
        """
        pid = os.fork()
        if pid == 0:
            os.abort()
        _, status = os.waitpid(pid, 0)
        (breach if os.WCOREDUMP(status) or "core" in os.listdir(".") else held)(status)
        """,
        control=lambda plain: "HELD" in plain.output or "BREACH" in plain.output,
    ),
    case(
        "end_late",
        "ends with success just after its time",
        """
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGXCPU, lambda *_: os._exit(0))
        time.sleep(1.5)
        """,
        limits=Limits(time_s=0.4),
        expect=("timeout",),
        control=lambda plain: plain.exit_code == 0,
    ),
    case(
        "segfault",
        "reads address 0",
        "import ctypes\nctypes.string_at(0)",
        speaks=False,
        expect=("killed",),
        check=ends("killed", number=11),
        control=lambda plain: plain.exit_code == -11,
    ),
)
