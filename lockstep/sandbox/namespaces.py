"""The namespaces tier: a world of its own for the supervisor, and in it one for each call.

The supervisor is process 1 of a process-id namespace inside a user namespace: when it dies, so does everything below.
Its root is a small read-only tree of the runtime. A guest is forked into a process-id namespace that no other guest is
in (see `keeper`), has mounts of its own with a fresh size-limited scratch, and a user namespace of its own in which
nobody is anybody (so that RLIMIT_NPROC counts this call alone). Network, SysV IPC and host name are empty namespaces
shared by all calls, which seccomp lets no call use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from lockstep.sandbox import native
from lockstep.sandbox.runtime import Runtime

SCRATCH = "/scratch"
_CALL = "/call"  # where a call's tmpfs is mounted; scratch and shared memory are folders of it
_STANDS_ON = ("/tmp", "/mnt", "/var", "/home")  # any folder will do to put the new root on while it is built
_WORLD = (
    native.CLONE_NEWUSER
    | native.CLONE_NEWNS
    | native.CLONE_NEWPID
    | native.CLONE_NEWNET
    | native.CLONE_NEWIPC
    | native.CLONE_NEWUTS
)


def leave_world(runtime: Runtime) -> dict[str, int]:
    """Put this process into new namespaces, root there and outside nobody who owns anything. Its next child is
    process 1.

    Returns descriptors of everything the new root will show, opened in the new mount namespace while this process
    still has its first user's rights. Root's own id is given up for one that nobody has; another user's stays.
    """
    if os.getuid() != 0:
        uid, gid = os.getuid(), os.getgid()
        native.unshare(_WORLD)
        sources = _open_sources(runtime)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        return sources
    ids = unused_ids()
    unshared, tell = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(tell)
        os.read(unshared, 1)
        os._exit(0 if _map_to_unused(os.getppid(), ids) else 1)
    native.unshare(_WORLD)
    sources = _open_sources(runtime)
    os.close(tell)
    os.close(unshared)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError(f"none of the unused ids {ids} can be mapped")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    native.prctl(native.PR_SET_DUMPABLE, 1)  # a changed uid made /proc/self root's
    return sources


def unused_ids() -> Sequence[int]:
    """Ids that no user has, to try in turn: the first of a range of its own for each supervisor on a machine (processes
    are counted and may signal each other by user), then one for small maps of ids. Drawn, since process ids are the
    same in two containers; below 1 << 31, for the guests' own programs."""
    return (1_610_612_736 + int.from_bytes(os.urandom(4), "little") % 1_000_000 * 512, 64_000)


def _map_to_unused(pid: int, ids: Sequence[int]) -> bool:
    """As root outside: make an id that nobody has the root of a process's user namespace."""
    for unused in ids:
        try:
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(f"0 {unused} 1")
        except OSError:  # not in this container's own map of ids
            continue
        return True
    return False


def _open_sources(runtime: Runtime) -> dict[str, int]:
    paths = (*runtime.folders, *runtime.files, *runtime.programs, *runtime.devices)
    return {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths}


def build_root(runtime: Runtime, sources: dict[str, int]) -> None:
    """Make the runtime's read-only view this process's root and let go of the old one."""
    native.mount("none", "/", None, native.MS_REC | native.MS_PRIVATE)
    root = next(path for path in _STANDS_ON if os.path.isdir(path))
    native.mount("tmpfs", root, "tmpfs", native.MS_NOSUID | native.MS_NODEV, "size=1m,mode=755")
    for path, said in runtime.links.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(said, root + path)
    for path, descriptor in sources.items():
        _show(root + path, descriptor, folder=path in runtime.folders, device=path in runtime.devices)
        os.close(descriptor)
    for path in (_CALL, SCRATCH, "/dev/shm"):
        os.makedirs(root + path, exist_ok=True)
    os.chdir(root)
    native.pivot_root(".", ".")
    native.umount(".")
    os.chdir("/")
    native.mount("none", "/", None, native.MS_REMOUNT | native.MS_RDONLY | native.MS_NOSUID | native.MS_NODEV)


def _show(target: str, descriptor: int, *, folder: bool, device: bool) -> None:
    """Mount what `descriptor` names at `target`, read-only."""
    if folder:
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "x"):
            pass
    native.mount(f"/proc/self/fd/{descriptor}", target, None, native.MS_BIND | native.MS_REC)
    native.make_read_only(target, devices=device)


def mount_scratch(files_bytes: int, max_files: int) -> None:
    """In a guest: its own mounts, with an empty scratch (and shared memory) under one limit of bytes and
    files. The three extra files are the tmpfs's own folders."""
    native.unshare(native.CLONE_NEWNS)
    flags = native.MS_NOSUID | native.MS_NODEV | native.MS_NOEXEC
    native.mount("tmpfs", _CALL, "tmpfs", flags, f"size={files_bytes},nr_inodes={max_files + 3},mode=700")
    for name, place in (("scratch", SCRATCH), ("shm", "/dev/shm")):
        os.mkdir(f"{_CALL}/{name}", 0o700)
        native.mount(f"{_CALL}/{name}", place, None, native.MS_BIND)
    native.umount(_CALL)
