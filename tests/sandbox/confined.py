"""Runs a command as a container runtime would: its default seccomp profile, capabilities, and odd file systems.

    python tests/sandbox/confined.py [options] -- command ...

The profile is in effect the default one of the common runtimes (https://docs.docker.com/engine/security/seccomp): what
needs CAP_SYS_ADMIN and its like is EPERM, clone3 is ENOSYS, and clone may make no namespace. Not a test itself: the
tests start it. It needs root, and gives it up as asked.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
AARCH64 = platform.machine() == "aarch64"
ARCH = 0xC00000B7 if AARCH64 else 0xC000003E
LANDLOCK = (444, 445, 446)
CLONE, CLONE3, SOCKET = (220, 435, 198) if AARCH64 else (56, 435, 41)
NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW* flag
AF_VSOCK = 40
LAST_KNOWN = 462
# The calls that the profile leaves out for a process without CAP_SYS_ADMIN, _MODULE, _TIME, _NICE, _PTRACE and so on;
# first the numbers that all machines share (io_uring_setup to set_mempolicy_home_node).
SHARED = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 450)
ON_AARCH64 = (18, 39, 40, 41, 42, 58, 60, 89, 97, 104, 105, 106, 112, 116, 142, 161, 162, 170, 217, 218, 219, 224, 225)
ON_AARCH64 += (235, 236, 237, 238, 239, 241, 262, 265, 268, 272, 273, 280, 282, 294)
ON_X86_64 = (103, 134, 136, 139, 153, 155, 156, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 174, 175, 176)
ON_X86_64 += (177, 178, 179, 180, 212, 227, 237, 238, 239, 246, 248, 249, 250, 256, 272, 279, 298, 300, 304, 308, 312)
ON_X86_64 += (313, 320, 321, 323)
DENIED = (*SHARED, *(ON_AARCH64 if AARCH64 else ON_X86_64))
# In order: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT,
# MKNOD, AUDIT_WRITE, SETFCAP.
CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)

LOAD, JUMP_EQUAL, JUMP_GREATER, AND, RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    checked(LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option}, {value})")


def program(denied: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Classic BPF over struct seccomp_data: number at 0, architecture at 4, arguments from 16."""
    lines = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, ARCH), (RETURN, 0, 0, ERRNO | errno.EPERM), (LOAD, 0, 0, 0)]
    for number, code in denied.items():
        lines += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | code)]
    lines += [(JUMP_GREATER, 0, 1, LAST_KNOWN), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    lines += [(JUMP_EQUAL, 0, 4, CLONE), (LOAD, 0, 0, 16), (AND, 0, 0, NEW_NAMESPACE), (JUMP_EQUAL, 4, 0, 0)]
    lines += [(RETURN, 0, 0, ERRNO | errno.EPERM)]
    lines += [(JUMP_EQUAL, 0, 2, SOCKET), (LOAD, 0, 0, 16), (JUMP_EQUAL, 1, 0, AF_VSOCK)]
    return [*lines, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | errno.EPERM)]


def filter_calls(denied: dict[int, int]) -> None:
    lines = program(denied)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    head = struct.pack("=H6xQ", len(lines), ctypes.addressof(code))
    checked(LIBC.prctl(22, 2, ctypes.create_string_buffer(head), 0, 0), "seccomp filter")


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    checked(LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, None), f"mount {target}")


def private_mounts() -> None:
    checked(LIBC.unshare(0x20000), "unshare")
    mount("none", "/", "", 0x44000)  # private, recursive


def read_only_tmp() -> None:
    mount("/tmp", "/tmp", "", 0x1000)
    mount("none", "/tmp", "", 0x1000 | 0x20 | 1)  # bind, remount, read-only


def fresh_tmp() -> None:
    """Empty /tmp and /dev/shm of its own; this very Python and checkout, where they lie below, are mounted back."""
    checkout = Path(__file__).resolve().parents[2]
    for folder in ("/tmp", "/dev/shm"):
        roots = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, checkout)}
        kept = {path: os.open(path, os.O_PATH) for path in sorted(roots) if path.is_relative_to(folder)}
        mount("tmpfs", folder, "tmpfs")
        os.chmod(folder, 0o1777)
        for path, source in kept.items():
            if not path.exists():  # it is not within one that is mounted already
                path.mkdir(parents=True)
                mount(f"/proc/self/fd/{source}", str(path), "", 0x1000 | 0x4000)  # bind, recursive
            os.close(source)


def without_shm() -> None:
    """A /dev with the usual devices and nothing else."""
    names = [name for name in ("null", "zero", "full", "random", "urandom", "tty") if os.path.exists(f"/dev/{name}")]
    kept = {name: os.open(f"/dev/{name}", os.O_PATH) for name in names}
    mount("tmpfs", "/dev", "tmpfs")
    for name, descriptor in kept.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT))
        mount(f"/proc/self/fd/{descriptor}", f"/dev/{name}", "", 0x1000)
        os.close(descriptor)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")


def open_way(folder: Path) -> None:
    """Let every user reach `folder`: the first closed folder above it is covered by an open one with nothing else."""
    closed = next((above for above in reversed(folder.parents) if not above.stat().st_mode & 1), None)
    if closed is None:
        return
    kept = os.open(folder, os.O_PATH)
    mount("tmpfs", str(closed), "tmpfs")
    closed.chmod(0o755)
    folder.mkdir(parents=True)
    mount(f"/proc/self/fd/{kept}", str(folder), "", 0x1000)
    os.close(kept)


def drop_capabilities() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in range(last + 1):
        if number not in CAPABILITIES:
            prctl(24, number)
    kept = sum(1 << number for number in CAPABILITIES)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0))
    head = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    checked(LIBC.capset(head, data), "capset")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", action="store_true", help="the default seccomp profile")
    parser.add_argument("--drop-capabilities", action="store_true", help="all but a container's default ones")
    parser.add_argument("--uid", type=int, help="user and group to become")
    parser.add_argument("--no-new-privs", action="store_true")
    parser.add_argument("--landlock", choices=("ENOSYS", "EPERM", "EOPNOTSUPP"), help="the error of Landlock's calls")
    parser.add_argument("--read-only-tmp", action="store_true")
    parser.add_argument("--fresh-tmp", action="store_true", help="an empty /tmp and /dev/shm")
    parser.add_argument("--no-shm", action="store_true")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    if chosen.fresh_tmp or chosen.read_only_tmp or chosen.no_shm or chosen.uid is not None:
        private_mounts()
    if chosen.uid is not None:
        open_way(Path(sys.base_prefix).resolve())  # often in root's home
    if chosen.fresh_tmp:
        fresh_tmp()
    if chosen.read_only_tmp:
        read_only_tmp()
    if chosen.no_shm:
        without_shm()
    if chosen.no_new_privs:
        prctl(38, 1)
    denied = {CLONE3: errno.ENOSYS} | dict.fromkeys(DENIED, errno.EPERM) if chosen.profile else {}
    if chosen.landlock:
        denied |= dict.fromkeys(LANDLOCK, getattr(errno, chosen.landlock))
    if denied:
        filter_calls(denied)
    if chosen.drop_capabilities:
        drop_capabilities()
    if chosen.uid is not None:
        os.setgroups([])
        os.setresgid(chosen.uid, chosen.uid, chosen.uid)
        os.setresuid(chosen.uid, chosen.uid, chosen.uid)
        prctl(4, 1)  # dumpable again, as after a login: or its own /proc belongs to root
    os.execvp(chosen.command[0], chosen.command)


if __name__ == "__main__":
    sys.exit(main())
