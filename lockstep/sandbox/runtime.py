"""What of this machine a guest may read: the interpreter, its libraries, the system's shared libraries, time zones.

Nothing of a user's project: entries of sys.path outside the interpreter's own prefixes (editable installs) are left
out, and so are the system's programs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
_SYSTEM_FILES = ("/etc/ld.so.cache",)
_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Absolute paths without symbolic links in them, and the links that lead to them (path to what it says).

    programs: what may be executed, the interpreter and its loader. search: sys.path for the guest.
    """

    folders: Sequence[str]
    files: Sequence[str]
    programs: Sequence[str]
    devices: Sequence[str]
    links: Mapping[str, str]
    search: Sequence[str]


def find_runtime() -> Runtime:
    """The runtime of the interpreter that calls this."""
    prefixes = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    search = [entry for entry in sys.path if os.path.exists(entry) and _inside(os.path.realpath(entry), prefixes)]
    libraries = [os.path.join(sys.base_prefix, name) for name in ("lib", "lib64")]
    links: dict[str, str] = {}
    folders = {_resolve(path, links) for path in (*search, *libraries, *_SYSTEM_FOLDERS) if os.path.isdir(path)}
    zipped = {_resolve(path, links) for path in search if os.path.isfile(path)}
    settings = os.path.join(sys.prefix, "pyvenv.cfg")
    files = zipped | {_resolve(path, links) for path in (*_SYSTEM_FILES, settings) if os.path.isfile(path)}
    programs = {_resolve(path, links) for path in (sys.executable, *_LOADERS) if os.path.isfile(path)}
    outermost = [path for path in sorted(folders) if not _inside(os.path.dirname(path), folders)]
    return Runtime(
        folders=outermost,
        files=sorted(files),
        programs=sorted(programs),
        devices=[path for path in _DEVICES if os.path.exists(path)],
        links={path: said for path, said in links.items() if not _inside(path, set(outermost))},
        search=search,
    )


def _inside(path: str, folders: set[str]) -> bool:
    """Is `path` one of the folders or below one?"""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _resolve(path: str, links: dict[str, str]) -> str:
    """The path without symbolic links; each link met on the way is noted."""
    parts = list(_parts(path))
    done = "/"
    for _ in range(1000):
        if not parts:
            return done
        here = os.path.join(done, parts.pop(0))
        if os.path.islink(here):
            said = os.readlink(here)
            links[here] = said
            parts = [*_parts(os.path.normpath(os.path.join(done, said))), *parts]
            done = "/"
        else:
            done = here
    raise OSError(f"{path}: too many symbolic links")


def _parts(path: str) -> Iterator[str]:
    return (part for part in os.path.abspath(path).split("/") if part)
