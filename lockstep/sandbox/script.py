"""Inside a guest, after every protection is on: run the script as Python would, and end with its exit code.

The interpreter is not torn down (that costs more than most scripts): non-daemon threads are joined, exit functions run,
streams are flushed, and the process exits.
"""

from __future__ import annotations

import atexit
import builtins
import io
import itertools
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

NAME = "<script>"
_FLUSH_FAILED = 120  # Python's own exit code when a standard stream cannot be flushed


def forget_supervisor() -> None:
    """Take the sandbox's own modules out of sys.modules, once before the first fork: to look through the names in each
    guest copies the pages of hundreds of them (1 ms of processor time a call)."""
    for name in [name for name in sys.modules if name == "lockstep" or name.startswith("lockstep.")]:
        del sys.modules[name]


def prepare(search: Sequence[str], hidden: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Make this interpreter look freshly started in an empty folder; the names of its `__main__`.

    hidden: path prefixes and what to print in their place in tracebacks.
    """
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8", errors="replace")
    sys.stdout = _stream(1, "strict")
    sys.stderr = _stream(2, "backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv, sys.orig_argv = [NAME], [NAME]
    sys.path[:] = [os.getcwd(), *search]
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    if (random := sys.modules.get("numpy.random")) is not None:
        # or every call would draw the same numbers; a number from here is three times as fast as none
        random.seed(int.from_bytes(os.urandom(4), "little"))
    if (random := sys.modules.get("sympy.core.random")) is not None:
        random.rng.seed()

    def show(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        for prefix, shown in hidden:
            text = text.replace(prefix, shown)
        sys.stderr.write(text)

    def show_in_thread(failed: Any) -> None:
        if failed.exc_type is not SystemExit:
            sys.stderr.write(f"Exception in thread {failed.thread and failed.thread.name}:\n")
            show(failed.exc_type, failed.exc_value, failed.exc_traceback)

    sys.excepthook = show
    threading.excepthook = show_in_thread
    return main.__dict__


def _stream(descriptor: int, errors: str) -> io.TextIOWrapper:
    """A line-buffered text stream: what was printed before a kill is not lost."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=True)


def run(code: bytes, names: dict[str, Any], name: str = NAME) -> int:
    """Run a script; its exit code, as Python's: 0, 1 after an uncaught exception, or what SystemExit carries.

    name: what tracebacks call it."""
    try:
        text = code.decode("utf-8", "replace")
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(code, name, "exec", dont_inherit=True), names)
    except SystemExit as ended:
        return _exit_code(ended.code)
    except BaseException as error:
        # the broad except of any interpreter's top level
        trace = error.__traceback__
        sys.excepthook(type(error), error, trace and trace.tb_next)
        return 1
    return 0


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -sys.maxsize <= code <= sys.maxsize else 0xFF  # as Python: what no C long holds is -1
    print(code, file=sys.stderr)
    return 1


def finish(exit_code: int) -> NoReturn:
    """End the process as Python's own end would, short of freeing its memory."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        exit_code = exit_code or 1
    os._exit(exit_code if flush() else exit_code or _FLUSH_FAILED)


def flush() -> bool:
    """Flush the standard streams; False when one cannot be."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            done = False
    return done


def run_session(code: int, channel: int, report: int, names: dict[str, Any]) -> NoReturn:
    """Run what the trainer writes into `code` whenever it says how many bytes; answer with the exit code, one byte.

    The answer is this interpreter's word, as any exit code is; time, memory and death are the supervisor's.
    """
    os.close(report)
    for number in itertools.count(1):
        asked = os.read(channel, 8)
        if not asked:
            break
        exit_code = run(os.pread(code, int.from_bytes(asked, "little"), 0), names, f"<run {number}>")
        if not flush():  # a full stream would keep what it could not write for the next run
            sys.stdout, sys.stderr = _stream(1, "strict"), _stream(2, "backslashreplace")
            exit_code = exit_code or _FLUSH_FAILED
        os.write(channel, bytes([exit_code]))
    os._exit(0)
