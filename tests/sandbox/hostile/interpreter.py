"""Escapes through Python itself: what the warm interpreter still holds, and falling through the end of the script.

A guest is forked from an interpreter that waits for the next call: code that gets past the end of its own script, by an
exit that was replaced or an exception that nobody expected, would answer the next call.
"""

from __future__ import annotations

from lockstep.sandbox.interface import Limits
from tests.sandbox.hostile.case import Plain, case

ENDS = ("ok", "error", "killed", "timeout")


def ended(plain: Plain) -> bool:
    return "armed" in plain.output


def fall(name: str, attempts: str, code: str, **options):
    """A case that must end, however, and leave no process that has its name."""
    return case(
        name,
        attempts,
        "call_itself(MARK)\nprint('armed', flush=True)\n" + __import__("textwrap").dedent(code),
        **{
            "limits": Limits(time_s=2.0),
            "speaks": False,
            "expect": ENDS,
            "check": lambda end: None if "armed" in end.stdout or "armed" in end.stderr else "it did not begin",
            "control": ended,
            **options,
        },
    )


CASES = (
    case(
        "walk_frames",
        "walks the frames that called it for sockets, descriptors and other calls' code",
        """
        frame, found = sys._getframe(), []
        while frame := frame.f_back:
            for name, value in {**frame.f_globals, **frame.f_locals}.items():
                if isinstance(value, int) and not isinstance(value, bool) and 2 < value < 4096:
                    try:
                        os.fstat(value)
                        found.append((frame.f_code.co_name, name, value))
                    except OSError:
                        pass
                elif hasattr(value, "fileno"):
                    try:
                        if value.fileno() > 2 and os.fstat(value.fileno()):
                            found.append((frame.f_code.co_name, name))
                    except (OSError, ValueError, TypeError):
                        pass
        (breach if found else held)(found)
        """,
        control=None,
        no_control="a plain script has no caller; see walk_heap",
    ),
    case(
        "walk_heap",
        "walks all objects for open sockets and files",
        """
        import gc, io, socket
        if HOST.get("plain"):
            kept = socket.socketpair()
        found = []
        for each in gc.get_objects():
            if isinstance(each, (socket.socket, io.IOBase)):
                try:
                    number = each.fileno()
                    os.fstat(number)
                except (OSError, ValueError):
                    continue
                if number > 2:
                    found.append(repr(each)[:80])
        (breach if found else held)(found)
        """,
    ),
    case(
        "call_the_supervisor",
        "finds the sandbox's own modules in memory and asks them for another call",
        """
        found = []
        for name, module in list(sys.modules.items()):
            if name.startswith("lockstep") and getattr(module, "open_sandbox", None):
                found.append(name)
        if HOST.get("plain"):
            sys.path.insert(0, HOST["project"])
            import lockstep.sandbox.interface as found
        (breach if found else held)(found)
        """,
    ),
    case(
        "import_the_trainer",
        "imports the trainer's code, and with it what it knows",
        """
        sys.path.insert(0, HOST["project"])
        try:
            import lockstep.rollout
        except (ImportError, OSError) as error:
            held(error)
        else:
            breach(lockstep.rollout.__file__)
        """,
    ),
    fall(
        "replace_exit",
        "replaces the exit that ends it",
        """
        os._exit = sys.exit = lambda *_: None
        os.kill = os.abort = lambda *_: None
        raise SystemExit
        """,
    ),
    fall(
        "raise_base_exception",
        "raises what only `except BaseException` catches",
        """
        class Odd(BaseException):
            def __str__(self):
                raise self
            __repr__ = __str__
        raise Odd
        """,
    ),
    fall(
        "raise_at_the_report",
        "breaks while it is reported",
        """
        class Odd(BaseException):
            pass
        def hook(*_):
            raise Odd
        sys.excepthook = hook
        sys.unraisablehook = hook
        raise ValueError
        """,
    ),
    fall("raise_keyboard_interrupt", "raises what interrupts a program", "raise KeyboardInterrupt"),
    fall("raise_generator_exit", "raises what closes a generator", "raise GeneratorExit"),
    fall(
        "raise_blocking_error",
        "raises what the supervisor's own reading and writing raise",
        "raise ConnectionResetError(104, 'gone')",
    ),
    fall(
        "replace_streams_by_hostile",
        "puts an object in the place of its streams that fails when flushed",
        """
        class Hostile:
            def write(self, text):
                raise BaseException("no")
            def flush(self):
                raise BaseException("no")
            def __getattr__(self, name):
                raise BaseException("no")
        sys.stdout = sys.stderr = Hostile()
        """,
    ),
    fall(
        "replace_streams_by_endless",
        "puts an object in the place of its streams that never comes back",
        """
        class Hostile:
            def flush(self):
                while True:
                    pass
        sys.stdout = Hostile()
        """,
    ),
    fall(
        "remove_streams",
        "removes its streams",
        "sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None\n1 / 0",
    ),
    fall(
        "remove_builtins",
        "removes what every line of Python needs",
        """
        import builtins
        for name in list(vars(builtins)):
            if name not in ("__build_class__",):
                delattr(builtins, name)
        """,
    ),
    fall(
        "remove_modules",
        "empties the table of modules",
        "sys.modules.clear()\nsys.path.clear()\nsys.meta_path.clear()\nraise ValueError",
    ),
    fall(
        "replace_modules",
        "replaces the functions that the sandbox's end may use",
        """
        import gc, types
        def endless(*_, **__):
            return 0
        for module in (os, signal, time, sys):
            for name in list(vars(module)):
                if not name.startswith("__") and callable(getattr(module, name)):
                    try:
                        setattr(module, name, endless)
                    except (AttributeError, TypeError):
                        pass
        """,
    ),
    fall(
        "audit_everything",
        "refuses every audited step after it",
        """
        def hook(*_):
            raise RuntimeError("no")
        sys.addaudithook(hook)
        """,
    ),
    fall(
        "trace_everything",
        "is called at every line after it, and raises",
        """
        armed = []
        def trace(*_):
            raise RuntimeError("no")
        sys.settrace(trace)
        sys.setprofile(trace)
        frame = sys._getframe()
        while frame:
            frame.f_trace = trace
            frame = frame.f_back
        """,
    ),
    fall(
        "jump_frames",
        "moves the line at which its caller goes on",
        """
        frame = sys._getframe().f_back
        while frame:
            def trace(frame, event, argument):
                try:
                    frame.f_lineno = frame.f_code.co_firstlineno + 1
                except ValueError:
                    pass
                return trace
            frame.f_trace = trace
            frame = frame.f_back
        sys.settrace(lambda *_: None)
        """,
    ),
    fall(
        "replace_code_of_callers",
        "replaces the code of the functions that called it",
        """
        import gc, types
        def nothing(*_, **__):
            return None
        frame = sys._getframe()
        codes = set()
        while frame := frame.f_back:
            codes.add(frame.f_code)
        for each in gc.get_objects():
            if isinstance(each, types.FunctionType) and each.__module__ not in ("builtins",) and each is not nothing:
                try:
                    each.__code__ = nothing.__code__
                except (ValueError, AttributeError, TypeError):
                    pass
        """,
    ),
    fall(
        "unwind_by_recursion",
        "ends at the bottom of the stack",
        """
        def deeper():
            try:
                deeper()
            finally:
                deeper()
        sys.setrecursionlimit(150)
        import threading
        sys.stdout.flush()
        def bounded(depth=0):
            if depth < 140:
                bounded(depth + 1)
            raise RecursionError
        bounded()
        """,
    ),
    fall(
        "exit_handlers",
        "registers handlers that fork, raise and exit",
        """
        import atexit, threading
        atexit.register(os.fork)
        atexit.register(lambda: 1 / 0)
        atexit.register(sys.exit, 7)
        threading._register_atexit(os.fork) if hasattr(threading, "_register_atexit") else None
        """,
    ),
    fall("fork_and_return", "returns from its script in two processes", "os.fork()"),
    fall(
        "fork_and_raise",
        "raises in the child of its script only",
        "if os.fork() == 0:\n    raise BaseException('in the child')",
    ),
    fall("finalize", "ends the interpreter by its C functions", "import ctypes\nctypes.pythonapi.Py_Finalize()"),
    fall(
        "exit_thread_only",
        "ends its thread by the C library, not its process",
        "import ctypes\nctypes.CDLL(None).pthread_exit(0)",
    ),
    fall(
        "long_jump",
        "unloads the C library's way home: closes, then returns from a handler",
        """
        import ctypes
        signal.signal(signal.SIGSEGV, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        ctypes.string_at(0)
        """,
    ),
    fall(
        "run_program",
        "becomes another program",
        """
        os.execv("/bin/sh", ["sh", "-c", "sleep 0; exit 3"])
        """,
    ),
)
