"""Runs a command so that nothing of it outlives the process that started it: python tether.py PARENT COMMAND...

Linux only, standard library only, started by its path. Standard input and output belong to the command alone; this
process waits beside it. When the command ends, or SIGTERM comes, or the parent dies however it dies, every process
that came of the command is killed. Exits with the command's own code.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def children() -> list[int]:
    """The processes whose parent is this one, by what /proc says."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


def kill_all() -> None:
    """Kill every descendant: the orphans of those killed come to this process, which is their subreaper."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def reap(command: int) -> int | None:
    """Collect who has ended; the command's exit code if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == command:
            code = os.waitstatus_to_exitcode(status)


def bind(prctl, parent: int, number: int) -> None:
    """Get a signal when the parent dies; end at once if it is dead already."""
    prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(parent: int, command: list[str]) -> int:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    bind(prctl, parent, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own = os.getpid()
    pid = os.fork()
    if pid == 0:
        bind(prctl, own, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
            os._exit(127)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    while True:
        received = signal.sigwait(SIGNALS)
        code = reap(pid) if received == signal.SIGCHLD else 128 + received
        if code is not None:
            kill_all()
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
