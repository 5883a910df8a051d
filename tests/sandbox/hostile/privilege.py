"""Becoming more than it is, and what the host's own kernel says that it is."""

from __future__ import annotations

import os
from pathlib import Path

from lockstep.sandbox.interface import Sandbox
from tests.sandbox.hostile.case import Case, case
from tests.sandbox.hostile.stage import status_of
from tests.sandbox.hostile.trial import running


def seen(name: str, attempts: str, wrong) -> Case:
    """A case in which the host reads /proc/<pid>/status of a guest's processes; wrong: of its fields, what is wrong."""

    async def play(sandbox: Sandbox) -> list[str]:
        async with running(sandbox) as pids:
            text = wrong(status_of(pids[-1]))  # the guest; a keeper before it is the sandbox's own
            return [] if text is None else [f"process {pids[-1]}: {text}"]

    return case(name, attempts, "", play=play, control=None, no_control="it is the host that looks")


def seen_file(name: str, attempts: str, file: str, least: int) -> Case:
    async def play(sandbox: Sandbox) -> list[str]:
        async with running(sandbox) as pids:
            found = int(Path("/proc", str(pids[-1]), file).read_text())
            return [] if found >= least else [f"{file} is {found}"]

    return case(name, attempts, "", play=play, control=None, no_control="it is the host that looks")


def is_root(status: dict[str, str]) -> str | None:
    users = {*status["Uid"].split(), *status["Gid"].split()}
    return f"users and groups {sorted(users)}" if "0" in users and os.getuid() == 0 else None


def has_groups(status: dict[str, str]) -> str | None:
    return (
        f"groups {status['Groups']}"
        if set(status["Groups"].split()) - {status["Gid"].split()[0]} and os.getuid() == 0
        else None
    )


def has_capabilities(status: dict[str, str]) -> str | None:
    """None but those to read past permissions, which Landlock bounds, where the interpreter is in a closed home."""
    kept = int(status["CapEff"], 16) | int(status["CapPrm"], 16)
    return f"{kept:#x}" if kept & ~0b110 else None


CASES = (
    seen("seen_as_root", "runs as the host's root", is_root),
    seen("seen_with_groups", "keeps the groups of the trainer", has_groups),
    seen("seen_with_capabilities", "holds capabilities", has_capabilities),
    seen(
        "seen_able_to_gain",
        "could gain privileges by a program",
        lambda status: None if status["NoNewPrivs"] == "1" else "no_new_privs is off",
    ),
    seen(
        "seen_unfiltered",
        "has no filter of system calls",
        lambda status: None if status["Seccomp"] == "2" else "no filter",
    ),
    seen_file("seen_spared_when_short", "is spared where the machine's memory runs out", "oom_score_adj", 1000),
    case("set_user", "becomes root", "refused(os.setuid, 0)"),
    case("set_group", "joins root's group", "refused(os.setgid, 0)"),
    case("set_all_users", "becomes root in all three senses", "refused(os.setresuid, 0, 0, 0)"),
    case("set_groups", "joins groups", "refused(os.setgroups, [0, 4, 6, 24])"),
    case(
        "set_capabilities",
        "gives itself every capability",
        """
        import ctypes
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.capget(header, data)
        effective = data[0]
        for at in (0, 1, 3, 4):
            data[at] |= 1 << 21  # CAP_SYS_ADMIN
        result, error = syscall("capset", header, data)
        (breach if result == 0 and data[0] else held)(result, error, effective)
        """,
    ),
    case(
        "raise_ambient",
        "hands capabilities to the programs that it starts",
        """
        import ctypes
        result, error = syscall("prctl", 47, 2, 21, 0, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, data)
        (breach if (data[0] | data[1]) & 1 << 21 else held)(result, error, data[0], data[1])
        """,
    ),
    case(
        "run_setuid_program",
        "starts the machine's programs that run as root",
        """
        import ctypes
        allowed = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)
        (held if allowed == 1 else breach)("no_new_privs", allowed)
        """,
    ),
    case(
        "run_su",
        "asks su to become root",
        """
        import subprocess
        try:
            done = subprocess.run(["/bin/su", "-c", "id -u"], stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
        except (OSError, subprocess.SubprocessError) as error:
            held(error)
        else:
            (breach if done.stdout.strip() == b"0" else held)(done.returncode)
        """,
    ),
    case(
        "make_setuid_file",
        "makes a file of its own that runs as its owner",
        """
        def attack():
            with open("program", "w") as file:
                file.write("#!/bin/sh\\n")
            os.chmod("program", 0o6755)
            if not os.stat("program").st_mode & 0o4000 or os.getuid():
                raise OSError(errno.EPERM, "its own user only")
        refused(attack)
        """,
    ),
)
