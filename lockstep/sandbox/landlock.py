"""Landlock: what a guest may do with files where no mount namespace can be had. Needs Linux 5.13.

Known gaps of the kernel's interface, closed elsewhere or documented: stat() and chdir() of outside files are not
restricted (existence, size and owner leak); chmod, chown, utime and xattr are not either (`seccomp.py` refuses or
swallows them).
Source of the numbers: the kernel's uapi header linux/landlock.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.sandbox import native

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

_SCRATCH = (
    WRITE_FILE | READ_FILE | READ_DIR | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
)
_RUNTIME_FOLDER = READ_FILE | READ_DIR
_RUNTIME_FILE = READ_FILE
_PROGRAM = READ_FILE | EXECUTE
_DEVICE = READ_FILE | WRITE_FILE

SIGNALS_SCOPED = 6  # the first ABI that keeps signals and abstract sockets inside
TRUNCATE_HANDLED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """Open descriptors (O_PATH) of what a guest may use besides its scratch."""

    folders: Sequence[int]
    files: Sequence[int]
    programs: Sequence[int]
    devices: Sequence[int]


def handled(abi: int) -> int:
    """The file rights that this ABI can take away: all of them."""
    bits = 13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16
    return (1 << bits) - 1


def attributes(abi: int) -> bytes:
    """The ruleset: files always, TCP from ABI 4, abstract sockets and signals from ABI 6."""
    files = struct.pack("Q", handled(abi))
    network = struct.pack("Q", 0b11)
    scopes = struct.pack("Q", 0b11)
    if abi >= SIGNALS_SCOPED:
        return files + network + scopes
    return files + network if abi >= 4 else files


def confine(abi: int, grants: Grants, scratch: int) -> None:
    """From here on this process, and all it starts, has what `grants` and `scratch` (a descriptor) give. Needs
    no_new_privs."""
    everything = handled(abi)
    ruleset = native.landlock_ruleset(attributes(abi))
    native.landlock_allow(ruleset, _SCRATCH & everything, scratch)
    for access, descriptors in (
        (_RUNTIME_FOLDER, grants.folders),
        (_RUNTIME_FILE, grants.files),
        (_PROGRAM, grants.programs),
        (_DEVICE, grants.devices),
    ):
        for descriptor in descriptors:
            native.landlock_allow(ruleset, access & everything, descriptor)
    native.landlock_restrict(ruleset)
