"""Between the fork and the guest's first byte of code: every protection is put on; "setup failed" can still be told.

Each protection is one statement, so that a test can take any of them away and see what gets through.
"""

from __future__ import annotations

import fcntl
import gc
import json
import math
import os
import resource
import signal
import stat
import tempfile
from dataclasses import dataclass
from typing import NoReturn

from lockstep.sandbox import landlock, native, seccomp
from lockstep.sandbox.interface import Limits

CODE, REPORT, CHANNEL, FILES = 3, 4, 5, 6  # descriptors of a guest besides its three streams
_LONG_LIVED = 200
_ABOVE_PLACES = 10
_OPEN_FILES = 128
_STACK_BYTES = 8 << 20
_SESSION_CPU_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """As received: the code, the streams, the files to unpack (None: none), a session's channel (None: a call), and
    the pipe for "setup failed"."""

    code: int
    stdin: int
    stdout: int
    stderr: int
    files: int | None
    channel: int | None
    report: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is the same for every guest of a supervisor.

    landlock_abi: 0 in the namespaces tier. kept_capability: a bit mask, only to reach a runtime whose parent folders an
    ordinary user may not enter. base_bytes: address space of the warm interpreter.
    """

    program: bytes
    landlock_abi: int
    grants: landlock.Grants | None
    kept_capability: int
    base_bytes: int


def place_descriptors(given: Descriptors) -> None:
    """Streams at 0-2, the others at their fixed numbers; `close_others` follows."""
    wanted = (given.stdin, given.stdout, given.stderr, given.code, given.report, given.channel, given.files)
    high = [None if source is None else fcntl.fcntl(source, fcntl.F_DUPFD, _ABOVE_PLACES) for source in wanted]
    for place, source in enumerate(high):
        if source is not None:
            os.dup2(source, place, inheritable=place <= 2)


def close_others(session: bool) -> None:
    """Nothing that the supervisor had open stays open here."""
    native.close_from(CHANNEL + 1 if session else CHANNEL)


def unpack(archive: int, folder: str) -> None:
    """Write the files of an archive: a line of JSON [[name, size], ...], then their bytes."""
    with open(archive, "rb", closefd=False) as file:
        file.seek(0)
        for name, size in json.loads(file.readline()):
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as target:
                target.write(file.read(size))


def limit(limits: Limits, *, base_bytes: int, tasks: int, session: bool) -> None:
    """The kernel's limits for each process. tasks: for RLIMIT_NPROC, which counts all of the user."""
    cpu_s = _SESSION_CPU_S if session else math.ceil(limits.time_s) + 1
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_FSIZE, *[max(limits.files_bytes, limits.output_bytes + resource.getpagesize())] * 2),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        (resource.RLIMIT_NPROC, tasks, tasks),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_STACK, _STACK_BYTES, _STACK_BYTES),
        (resource.RLIMIT_AS, base_bytes + limits.memory_bytes, base_bytes + limits.memory_bytes),
    ):
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def own_group(proc: int) -> None:
    """A process group that seccomp lets no descendant leave, and the first to be killed when memory is short."""
    os.setpgid(0, 0)
    native.prctl(native.PR_SET_PDEATHSIG, signal.SIGKILL)
    score = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=proc)
    os.write(score, b"1000")
    os.close(score)


def become_nobody() -> None:
    """In the namespaces tier: a user namespace in which this user has no name and no capability."""
    native.unshare(native.CLONE_NEWUSER)
    native.drop_bounding_set(0)
    native.set_capabilities(0)
    native.prctl(native.PR_SET_DUMPABLE, 0)  # a limit of 0 does not keep a crash from a program that collects cores


def become_user(uid: int | None, kept_capability: int) -> None:
    """In the Landlock tier: `uid` with no groups where the supervisor is root (None: stay), with no capability."""
    if uid is not None:
        native.drop_bounding_set(kept_capability)
        native.prctl(native.PR_SET_KEEPCAPS, 1 if kept_capability else 0)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        native.prctl(native.PR_SET_PDEATHSIG, signal.SIGKILL)  # a changed uid cleared it
    native.set_capabilities(kept_capability)
    for bit in range(64):
        if kept_capability >> bit & 1:
            native.prctl(native.PR_CAP_AMBIENT, native.PR_CAP_AMBIENT_RAISE, bit)


def shut(cell: Cell, scratch: str, session: bool) -> None:
    """The last doors: files (in the Landlock tier), descriptors and system calls. Cannot be undone."""
    native.prctl(native.PR_SET_NO_NEW_PRIVS, 1)
    if cell.landlock_abi and cell.grants is not None:
        here = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
        landlock.confine(cell.landlock_abi, cell.grants, here)
    close_others(session)
    native.load_filter(seccomp.for_process(cell.program, os.getpid()))


def enter(
    given: Descriptors,
    cell: Cell,
    limits: Limits,
    *,
    proc: int,
    scratch: str,
    user: int | None,
    tasks: int,
    session: bool,
) -> None:
    """All of it, in order. user: the guest's id where the supervisor is root in the Landlock tier. Raises OSError."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    gc.freeze()  # what was made since the supervisor's own start is not this guest's garbage
    gc.enable()
    own_group(proc)
    place_descriptors(given)
    os.chdir(scratch)
    os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    tempfile.tempdir = None
    os.umask(0o077)
    if cell.landlock_abi:
        become_user(user, cell.kept_capability)
    else:
        become_nobody()
    if given.files is not None:
        unpack(FILES, scratch)
    limit(limits, base_bytes=cell.base_bytes, tasks=tasks, session=session)
    shut(cell, scratch, session)


def tell_failure(report: int, error: BaseException) -> NoReturn:
    """Say through the pipe why this is no guest, and end. The pipe may already stand at its fixed number."""
    text = b"F" + f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:2048] + b"\0"
    for descriptor in (report, REPORT):
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, text)
                break
        except OSError:
            continue
    os._exit(1)


def high(descriptor: int) -> int:
    """The descriptor moved above all that a guest can have: its limit of open files keeps it below."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LONG_LIVED)
    os.close(descriptor)
    return moved
