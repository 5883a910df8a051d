"""Memory files that carry code in and output out: sealed, so that neither side can change what the other relies on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping

from lockstep.sandbox.interface import Limits

_NOEXEC_SEAL = 8  # Linux 6.3; ignored with an error before
_ADD_SEALS = 1033
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SEAL, _SHRINK, _GROW, _WRITE = 1, 2, 4, 8
_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes


def _create(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _NOEXEC_SEAL)
    except OSError:
        return os.memfd_create(name, flags)


def constant(name: str, content: bytes) -> int:
    """A descriptor of a file whose content can never change."""
    descriptor = _create(name)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, _ADD_SEALS, _SEAL | _SHRINK | _GROW | _WRITE)
    return descriptor


def output(name: str, most_bytes: int) -> int:
    """A descriptor of a file that cannot grow and takes a little more than `most_bytes`, which shows an overflow.

    Whole pages: the kernel refuses the part of a write that would leave the file page by page."""
    descriptor = _create(name)
    os.ftruncate(descriptor, (most_bytes // _PAGE + 1) * _PAGE)
    fcntl.fcntl(descriptor, _ADD_SEALS, _SEAL | _SHRINK | _GROW)
    return descriptor


def written(descriptor: int, most_bytes: int) -> tuple[str, bool]:
    """What was written to an output, decoded, and whether it is cut. The length is the descriptor's own offset."""
    length = max(0, os.lseek(descriptor, 0, os.SEEK_CUR))
    data = os.pread(descriptor, min(length, most_bytes), 0)
    return data.decode("utf-8", "replace"), length > most_bytes


def code_page() -> tuple[int, int]:
    """A file that the trainer rewrites before each run of a session, and a read-only descriptor of it for the guest."""
    descriptor = _create("code")
    readable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    os.fchmod(descriptor, 0)  # or a Landlock guest opens it again for writing by its link in /proc
    return descriptor, readable


def _name_bytes(name: str) -> int:
    """Its length in a file system; more than any for a lone surrogate, which no file's name can hold."""
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return 1 << 30


def archive(files: Mapping[str, bytes], limits: Limits) -> bytes:
    """The files as `guest.unpack` reads them. Raises ValueError for a name that leaves scratch or for too much."""
    folders = {name[:place] for name in files for place, sign in enumerate(name) if sign == "/"}
    for name in files:
        parts = name.split("/")
        if "\0" in name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"files: {name!r} is not a name below the working directory; give a relative path")
        if name in folders or max(map(_name_bytes, parts)) > _LONGEST_NAME or _name_bytes(name) > _LONGEST_PATH:
            raise ValueError(f"files: {name!r} cannot be a file's name; give one that is short, text, and no folder")
    if (count := len(files) + len(folders)) > limits.max_files:
        raise ValueError(f"files: {count} files and folders are over Limits.max_files={limits.max_files}; raise it")
    if (size := sum(-len(content) // _PAGE * -_PAGE for content in files.values())) > limits.files_bytes:
        raise ValueError(
            f"files: {size} bytes in whole pages are over Limits.files_bytes={limits.files_bytes}; raise it"
        )
    head = json.dumps([[name, len(content)] for name, content in files.items()]).encode()
    return b"".join((head, b"\n", *files.values()))
