"""Not ending: loops, waits, code in C that hears no signal, threads and handlers that run when the script is over."""

from __future__ import annotations

from lockstep.sandbox.interface import Limits
from tests.sandbox.hostile.case import case, outlives, survives

LIMIT = Limits(time_s=0.5)


def stay(name: str, attempts: str, code: str, **options):
    """A case that must end as a timeout; the plain run is still there after three times as long."""
    return case(
        name,
        attempts,
        code,
        **{"limits": LIMIT, "expect": ("timeout",), "control": outlives, "control_s": 1.5, **options},
    )


CASES = (
    stay("busy_loop", "loops", "while True:\n    pass"),
    stay("sleep", "sleeps", "time.sleep(60)"),
    stay(
        "ignore_signals",
        "ignores every signal that can be ignored",
        """
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
        """,
    ),
    stay(
        "block_signals",
        "blocks every signal that can be blocked",
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True:
            time.sleep(1)
        """,
    ),
    stay(
        "handle_alarm",
        "takes over the handlers and timers that a time limit may rest on",
        """
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.signal(signal.SIGXCPU, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        while True:
            try:
                time.sleep(0.01)
            except BaseException:
                pass
        """,
    ),
    stay(
        "catch_everything",
        "catches whatever is raised in it",
        """
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
        """,
    ),
    stay(
        "regular_expression",
        "matches a pattern that backtracks for years",
        """
        import re
        re.match(r"(a+)+$", "a" * 60 + "b")
        """,
    ),
    stay("large_power", "computes a power in C, with no chance for a handler", "print(len(str(7 ** (10 ** 9))))"),
    stay(
        "digits_of_a_number",
        "prints a number of millions of digits",
        """
        import sys
        sys.set_int_max_str_digits(0)
        print(len(str(1 << (1 << 25))))
        """,
    ),
    stay(
        "thread_at_exit",
        "leaves a thread that the interpreter waits for at its end",
        """
        import threading
        threading.Thread(target=time.sleep, args=(60,)).start()
        """,
    ),
    stay(
        "exit_handler",
        "sleeps in a handler that runs at exit",
        """
        import atexit
        atexit.register(time.sleep, 60)
        """,
        expect=("timeout", "ok"),
        speaks=False,
    ),
    stay(
        "destructor",
        "loops in a destructor",
        """
        class Undying:
            def __del__(self):
                while True:
                    pass
        undying = Undying()
        del undying
        """,
    ),
    stay(
        "wait_for_pipe",
        "reads a pipe that nobody writes",
        """
        reading, writing = os.pipe()
        os.read(reading, 1)
        """,
    ),
    stay(
        "wait_for_lock",
        "waits for a lock that it holds",
        """
        import threading
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
        """,
    ),
    stay("wait_for_signal", "waits for a signal", "signal.pause()"),
    stay(
        "wait_for_child",
        "waits for a child that does not end",
        """
        pid = os.fork()
        if pid == 0:
            linger()
        os.waitpid(pid, 0)
        """,
    ),
    stay(
        "wait_for_program",
        "waits for a program that does not end",
        """
        import subprocess
        subprocess.run(["/bin/sleep", "60"])
        """,
        expect=("timeout", "error"),
        speaks=False,
    ),
    case(
        "read_input_for_ever",
        "waits for more input than it was given",
        """
        os.read(0, 100)
        (held if os.read(0, 100) == b"" else breach)()
        """,
        stdin="a line\n",
        control=lambda plain: "HELD" in plain.output,
    ),
    case(
        "daemon_thread",
        "leaves a daemon thread that prints on",
        """
        import threading
        def more():
            while True:
                print("more", flush=True)
        threading.Thread(target=more, daemon=True).start()
        held()
        """,
        expect=("ok", "output"),
        limits=Limits(time_s=5.0),
        control=lambda plain: "HELD" in plain.output,
    ),
    case(
        "child_holds_the_output",
        "ends, while its child keeps the streams open",
        """
        if os.fork() == 0:
            call_itself(MARK)
            time.sleep(20)
            os._exit(0)
        time.sleep(0.1)
        held()
        """,
        limits=Limits(time_s=5.0),
        check=lambda end: f"took {end.time_s} s" if end.time_s > 4 else None,
        control=survives,
    ),
    case(
        "sleep_by_processor",
        "uses its processor time in many children at once",
        """
        for _ in range(3):
            if os.fork() == 0:
                while True:
                    pass
        while True:
            pass
        """,
        limits=LIMIT,
        expect=("timeout",),
        control=outlives,
        control_s=1.5,
    ),
)
