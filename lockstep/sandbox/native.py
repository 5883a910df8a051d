"""The system calls that Python's `os` lacks, through ctypes. Each raises OSError with the kernel's errno.

Numbers of new system calls are the same on x86-64 and aarch64; `syscalls.py` has those that differ.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP = 1, 4, 8, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
_SYS_MOUNT_SETATTR, _SYS_CLOSE_RANGE = 442, 436
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_X86 = os.uname().machine == "x86_64"
_SYS_CAPSET = 126 if _X86 else 91
_SYS_PIVOT_ROOT = 155 if _X86 else 41
_SYS_SECCOMP = 317 if _X86 else 277
_CAPABILITY_VERSION_3 = 0x20080522


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(what: str, number: int, *arguments: int | bytes | ctypes.Array | None) -> int:
    plain = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *plain), what)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    _checked(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    named = None if kind is None else kind.encode()
    found = _libc.mount(source.encode(), target.encode(), named, ctypes.c_ulong(flags), data.encode())
    _checked(found, f"mount({source!r}, {target!r})")


def make_read_only(path: str, *, devices: bool = False) -> None:
    """Everything mounted at and below `path` becomes read-only and without set-user-id (and devices, unless kept)."""
    attributes = struct.pack("QQQQ", _ATTR_RDONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV), 0, 0, 0)
    _call("mount_setattr", _SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE, attributes, len(attributes))


def umount(path: str, flags: int = MNT_DETACH) -> None:
    _checked(_libc.umount2(path.encode(), flags), f"umount({path!r})")


def pivot_root(new: str, old: str) -> None:
    _call("pivot_root", _SYS_PIVOT_ROOT, new.encode(), old.encode())


def prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc.prctl(option, *padded), f"prctl({option})")


def close_from(lowest: int) -> None:
    """Close every descriptor from `lowest` on."""
    try:
        _call("close_range", _SYS_CLOSE_RANGE, lowest, 0x7FFFFFFF, 0)
    except OSError:  # a kernel before 5.9
        os.closerange(lowest, os.sysconf("SC_OPEN_MAX"))


def set_capabilities(kept: int) -> None:
    """Permitted, effective and inheritable become exactly the bits of `kept`; inheritable only when there are any."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    _call("capset", _SYS_CAPSET, header, struct.pack("6I", low, low, low, high, high, high))


def drop_bounding_set(kept: int) -> None:
    """No capability but those of `kept` can come back through an exec. Needs CAP_SETPCAP, without which the set stays
    (no_new_privs and an empty permitted set hold as well)."""
    for capability in range(64):
        if not kept >> capability & 1:
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError:  # beyond the last capability of this kernel, or not allowed to
                return


def load_filter(program: bytes) -> None:
    """Install a seccomp filter: `program` is packed sock_filter instructions (8 bytes each)."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _call("seccomp", _SYS_SECCOMP, 1, 0, fprog)


def landlock_abi() -> int:
    """The Landlock interface this kernel has (1, 2, ...); raises OSError where there is none."""
    return _call("landlock_create_ruleset", _SYS_LANDLOCK_CREATE_RULESET, None, 0, 1)


def landlock_ruleset(attributes: bytes) -> int:
    return _call("landlock_create_ruleset", _SYS_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)


def landlock_allow(ruleset: int, access: int, descriptor: int) -> None:
    rule = struct.pack("=Qi", access, descriptor)
    _call("landlock_add_rule", _SYS_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)


def landlock_restrict(ruleset: int) -> None:
    _call("landlock_restrict_self", _SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)


def limit_malloc_arenas(count: int) -> None:
    """Fewer malloc arenas: each reserves 64 MiB of address space, which the memory limit counts."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(-8, count)
