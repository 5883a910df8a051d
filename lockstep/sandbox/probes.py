"""What each tier needs of this machine, tried one by one, each with the fix where it is missing.

Tried in an interpreter of its own (`start.py probe`), every probe in a child of it: the trainer itself tries nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from lockstep.sandbox import landlock, namespaces, native, seccomp, watch
from lockstep.sandbox.connection import environment
from lockstep.sandbox.interface import LOCAL_TIERS
from lockstep.sandbox.runtime import find_runtime
from lockstep.sandbox.syscalls import this_machine

_MOST_S = 60.0
_OTHERWISE = "or use tier 'remote', or 'none' with allow_unsafe=True"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """name: what was tried. detail: what was found. fix: what to do where it is not ok. tiers: those that need it."""

    name: str
    ok: bool
    detail: str
    fix: str
    tiers: tuple[str, ...] = LOCAL_TIERS


@dataclass(frozen=True, slots=True)
class _Trial:
    name: str
    action: Callable[[], str]  # what was found; raises OSError
    fix: str
    tiers: tuple[str, ...] = LOCAL_TIERS


def probe() -> Sequence[Probe]:
    """Every probe, in the order in which they should be fixed. Takes about 0.2 s; changes nothing."""
    if not sys.platform.startswith("linux") or this_machine() is None:
        found = f"{sys.platform} on {os.uname().machine}"
        fix = f"use Linux on x86-64 or aarch64, {_OTHERWISE}"
        return [Probe(name="platform", ok=False, detail=found, fix=fix)]
    start = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
    command = [sys.executable, "-I", "-X", "utf8", start, "probe"]
    try:
        done = subprocess.run(
            command,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=_MOST_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        said = getattr(error, "stderr", "") or str(error)
        fix = f"make `{' '.join(command)}` run by hand"
        return [Probe(name="interpreter", ok=False, detail=str(said).strip().rpartition("\n")[2], fix=fix)]
    return [Probe(**{**one, "tiers": tuple(one["tiers"])}) for one in found]


def unavailable(tier: str, probes: Sequence[Probe]) -> str:
    """The text of SandboxUnavailable: what failed and its fixes."""
    failed = [one for one in probes if not one.ok and (tier == "auto" or tier in one.tiers)]
    lines = [f"  {one.name} (needed by {', '.join(one.tiers)}): {one.detail}. Fix: {one.fix}" for one in failed]
    return f"sandbox.tier={tier!r}: no sandbox can be opened here; failed probes:\n" + "\n".join(lines)


def main() -> None:
    """In the probing interpreter: print every probe as JSON."""
    json.dump([asdict(_tried(trial)) for trial in _TRIALS], sys.stdout)


def _tried(trial: _Trial) -> Probe:
    """One probe, in a child that says through a pipe what it found."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        try:
            text = "+" + trial.action()
        except OSError as error:
            text = f"-{error.strerror or error}"
        os.write(tell, text.encode())
        os._exit(0)
    os.close(tell)
    with open(told, "rb") as pipe:
        text = pipe.read().decode("utf-8", "replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ok, detail = text.startswith("+"), text[1:] or f"ended with {status}"
    return Probe(name=trial.name, ok=ok, detail=detail, fix="" if ok else trial.fix, tiers=trial.tiers)


def _kernel() -> str:
    release = os.uname().release
    if watch.kernel() < (5, 12):
        raise OSError(f"Linux {release} is older than 5.12")
    return f"Linux {release}"


def _sealed_memory() -> str:
    descriptor = os.memfd_create("probe", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, 1033, 2 | 4)
    return "sealed memory files"


def _process_descriptors() -> str:
    os.close(os.pidfd_open(os.getpid()))
    return "pidfd_open"


def _processes_seen() -> str:
    own = os.getpid()
    with open(f"/proc/{own}/task/{own}/children") as file:
        file.read()
    return "/proc shows processes and their children"


def _seccomp() -> str:
    machine = this_machine()
    assert machine is not None
    native.prctl(native.PR_SET_NO_NEW_PRIVS, 1)
    program = seccomp.compile_filter(seccomp.Policy(metadata=True, truncate=True, signals=True), machine)
    native.load_filter(program)
    try:
        native.unshare(native.CLONE_NEWUSER)
    except PermissionError:
        return f"filter of {len(program) // 8} instructions"
    raise OSError("a filter was loaded and does not filter")


def _user_namespace() -> str:
    native.unshare(native.CLONE_NEWUSER)
    return "an ordinary process may make one"


def _own_root() -> str:
    runtime = find_runtime()
    sources = namespaces.leave_world(runtime)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            namespaces.build_root(runtime, sources)
            namespaces.mount_scratch(1 << 20, 16)
        except OSError as error:
            os.write(tell, str(error.strerror or error).encode())
        os._exit(0)
    os.close(tell)
    os.waitpid(child, 0)
    if text := os.read(told, 4096).decode():
        raise OSError(text)
    return "process, mount, network, IPC and host-name namespaces with a root of their own"


def _landlock() -> str:
    abi = native.landlock_abi()
    descriptor = os.open("/", os.O_PATH)
    native.prctl(native.PR_SET_NO_NEW_PRIVS, 1)
    landlock.confine(abi, landlock.Grants(folders=(), files=(), programs=(), devices=()), descriptor)
    kept = "" if abi >= landlock.SIGNALS_SCOPED else "; signals only to the guest's own group (Linux 6.12 lifts that)"
    return f"ABI {abi}{kept}"


_CONTAINER = "in a container: allow unshare, mount and pivot_root (a seccomp profile of your own or unconfined)"
_TRIALS = (
    _Trial("kernel", _kernel, f"use Linux 5.12 or newer, {_OTHERWISE}"),
    _Trial("sealed memory", _sealed_memory, "allow memfd_create in the container's seccomp profile"),
    _Trial("process descriptors", _process_descriptors, "allow pidfd_open in the container's seccomp profile"),
    _Trial("process list", _processes_seen, "mount /proc without hidepid, on a kernel with CONFIG_PROC_CHILDREN"),
    _Trial("seccomp", _seccomp, f"use a kernel with CONFIG_SECCOMP_FILTER, {_OTHERWISE}"),
    _Trial(
        "user namespaces",
        _user_namespace,
        "sysctl user.max_user_namespaces=15000, kernel.unprivileged_userns_clone=1 and, where there is AppArmor, "
        f"kernel.apparmor_restrict_unprivileged_userns=0; {_CONTAINER}",
        ("namespaces",),
    ),
    _Trial("own root", _own_root, _CONTAINER, ("namespaces",)),
    _Trial(
        "landlock",
        _landlock,
        "use Linux 5.13 or newer, booted with landlock among its lsm= modules; allow the landlock_* calls in the "
        "container's seccomp profile",
        ("landlock",),
    ),
)
