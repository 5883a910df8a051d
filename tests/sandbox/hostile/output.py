"""Flooding, forging and breaking what is read back: too much, beyond the end, not text, not there any more."""

from __future__ import annotations

import json

from lockstep.sandbox.interface import Limits, Outcome
from tests.sandbox.hostile.case import Plain, case

LIMIT = Limits(time_s=8.0, output_bytes=1 << 12)
ENDS = ("ok", "error", "output", "killed")


def short(end: Outcome) -> str | None:
    for text in (end.stdout, end.stderr):
        if len(text.encode("utf-8", "replace")) > 3 * LIMIT.output_bytes:  # an undecodable byte becomes three
            return f"{len(text)} characters were read back"
    return None


def cut(end: Outcome) -> str | None:
    return short(end) or (None if end.truncated or end.status == "output" else "nothing says that it was cut")


def text(end: Outcome) -> str | None:
    try:
        json.dumps([end.stdout, end.stderr]).encode()
        (end.stdout + end.stderr).encode()
    except UnicodeError as error:
        return f"not text: {error}"
    return short(end)


def floods(plain: Plain) -> bool:
    return len(plain.output) > 1 << 16


def harmless(plain: Plain) -> bool:
    return plain.exit_code in (0, 1, -31)


def write(name: str, attempts: str, code: str, **options):
    return case(
        name,
        attempts,
        code,
        **{"limits": LIMIT, "expect": ENDS, "speaks": False, "check": text, "control": harmless, **options},
    )


CASES = (
    write("flood_stdout", "prints 20 MiB", 'for _ in range(20000):\n    print("x" * 1000)', check=cut, control=floods),
    write(
        "flood_stderr",
        "prints 20 MiB to the other stream",
        'for _ in range(20000):\n    print("x" * 1000, file=sys.stderr)',
        check=cut,
        control=floods,
    ),
    write(
        "flood_raw",
        "writes to the descriptor until it is refused, and ignores the refusal",
        """
        for _ in range(20000):
            try:
                os.write(1, b"x" * 1000)
            except OSError:
                pass
        """,
        check=cut,
        control=floods,
    ),
    write(
        "write_far_beyond",
        "writes far beyond the end, which makes a file of 1 TiB",
        """
        try:
            os.pwrite(1, b"x", 1 << 40)
        except OSError:
            pass
        """,
    ),
    write(
        "seek_far_beyond",
        "moves far beyond the end, and writes",
        """
        try:
            os.lseek(1, 1 << 30, 0)
            os.write(1, b"x")
        except OSError:
            pass
        """,
    ),
    write(
        "seek_near_the_end",
        "leaves a hole before the last byte of what is allowed",
        """
        try:
            os.lseek(1, (1 << 12) - 1, 0)
            os.write(1, b"xyz")
        except OSError:
            pass
        """,
    ),
    case(
        "grow_output",
        "makes the file of its output larger",
        """
        refused(os.ftruncate, 1, 1 << 16)
        """,
        limits=LIMIT,
        control=None,
        no_control="a plain script's output is a pipe",
    ),
    case(
        "shrink_output",
        "empties the file of its output while it is read",
        """
        os.write(1, b"before")
        refused(os.ftruncate, 1, 0)
        """,
        limits=LIMIT,
        control=None,
        no_control="a plain script's output is a pipe",
    ),
    case(
        "seal_output",
        "seals the file of its output, so that nobody can use it again",
        """
        import fcntl
        refused(fcntl.fcntl, 1, 1033, 0x2 | 0x4)
        """,
        limits=LIMIT,
        control=None,
        no_control="a plain script's output is a pipe",
    ),
    write(
        "punch_hole",
        "punches holes into the file of its output, and allocates beyond it",
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for mode in (0, 1, 3, 8, 16, 32):
            libc.fallocate(1, mode, ctypes.c_int64(0), ctypes.c_int64(1 << 32))
        """,
    ),
    write(
        "map_output",
        "maps the file of its output and writes below the supervisor's eyes",
        """
        import mmap
        try:
            room = mmap.mmap(1, 4096)
            room[:] = b"\\xff" * 4096
        except (OSError, ValueError):
            pass
        """,
    ),
    write(
        "lock_output",
        "locks its output against the reader, and asks for a lease",
        """
        import fcntl
        for attempt in (lambda: fcntl.flock(1, fcntl.LOCK_EX), lambda: fcntl.lockf(1, fcntl.LOCK_EX),
                        lambda: fcntl.fcntl(1, fcntl.F_SETLEASE, fcntl.F_WRLCK),
                        lambda: fcntl.fcntl(1, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)):
            try:
                attempt()
            except OSError:
                pass
        """,
    ),
    write(
        "close_everything",
        "closes every descriptor, its streams included",
        "os.closerange(0, 4096)",
        expect=("ok", "error"),
        control=lambda plain: plain.exit_code in (0, 1, 120),
    ),
    write(
        "write_to_every_number",
        "writes the words of success to every descriptor",
        """
        for number in range(1024):
            if number != 1:
                for words in (b"F: setup failed", b"S" + bytes(12), b"ok\\n", b'{"status": "ok"}\\n', b"\\0" * 64):
                    try:
                        os.write(number, words)
                    except OSError:
                        pass
        sys.exit(3)
        """,
        expect=("error",),
        check=lambda end: None if end.exit_code == 3 else f"exit code {end.exit_code}",
        control=lambda plain: plain.exit_code == 3,
    ),
    write(
        "read_every_number",
        "reads from every descriptor, to take what is meant for others",
        """
        for number in range(1024):
            try:
                os.set_blocking(number, False)
                os.read(number, 1 << 16)
            except OSError:
                pass
        """,
    ),
    write(
        "replace_streams",
        "puts files of its own in the place of its streams",
        """
        number = os.open("mine", os.O_CREAT | os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(number, stream)
        print("into the file")
        """,
    ),
    write(
        "loop_streams",
        "makes its output its input",
        "os.dup2(0, 1)\nos.dup2(1, 2)\nprint('x')\n",
        control=lambda plain: plain.exit_code in (0, 1, 120),
    ),
    write(
        "every_byte",
        "prints every byte, which is not UTF-8",
        "os.write(1, bytes(range(256)) * 8)\nos.write(2, b'\\xff\\xfe\\xc3\\x28\\xed\\xa0\\x80' * 9)",
    ),
    write(
        "half_a_character",
        "fills its output up to half of a character",
        "os.write(1, 'é'.encode() * (1 << 11))\nos.write(1, b'\\xc3')",
        expect=ENDS,
    ),
    write(
        "lone_surrogates",
        "prints half a pair, which has no UTF-8 form",
        "print('\\ud800 ' * 10)",
        control=lambda plain: plain.exit_code in (0, 1),
    ),
    write(
        "terminal_escapes",
        "prints what clears screens, moves cursors and ends strings",
        "print('\\x1b[2J\\x1b]0;owned\\x07\\r\\0\\x08\\x9b')",
    ),
    write(
        "write_from_children",
        "has children print after its end",
        """
        for _ in range(5):
            if os.fork() == 0:
                time.sleep(0.02)
                for _ in range(500):
                    try:
                        os.write(1, b"late" * 100)
                    except OSError:
                        pass
                os._exit(0)
        """,
        limits=LIMIT,
    ),
    case(
        "read_own_output",
        "reads back the output of the call before it",
        """
        try:
            found = os.pread(1, 1 << 12, 0)
        except OSError as error:
            held(error)
        else:
            (breach if b"".join((b"left by ", b"the call before")) in found else held)(len(found))
        """,
        before="print('left by the call before')",
        control=None,
        no_control="a plain script's output is a pipe",
    ),
)
