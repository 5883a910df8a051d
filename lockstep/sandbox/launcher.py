"""The process between the trainer and the supervisor: opens a tier, starts the supervisor in it, and outlives it.

It waits for the supervisor's end and then sees to it that nothing is left: in the namespaces tier the kernel has killed
everything with the supervisor, in the Landlock tier this process inherits (as subreaper) and kills what survived.
In:  the control socket's descriptor and the settings as JSON. Out: {"ready"} or {"failed"} on that socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

from lockstep.sandbox import guest, landlock, namespaces, native, script, seccomp, watch, wire
from lockstep.sandbox.runtime import Runtime, find_runtime
from lockstep.sandbox.scratch import remove_folder
from lockstep.sandbox.supervisor import BecomeGuest, Supervisor
from lockstep.sandbox.syscalls import this_machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """tier; warm: modules imported before the first fork; max_guests: calls and sessions at once; scratch: the folder
    of the Landlock tier's scratches; landlock_abi: None for the kernel's own, or an older one to pretend."""

    tier: str
    warm: tuple[str, ...]
    max_guests: int
    scratch: str
    landlock_abi: int | None = None


def main(arguments: list[str]) -> None:
    """Runs in the launcher; returns only in a guest's script end or at the end of everything."""
    descriptor, text = arguments
    values = json.loads(text)
    settings = Settings(**{**values, "warm": tuple(values["warm"])})
    control = socket.socket(fileno=guest.high(int(descriptor)))
    trainer = guest.high(os.pidfd_open(os.getppid()))
    proc = guest.high(os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the trainer's end is what ends this
    become = None
    try:
        _launch(settings, control, trainer, proc)
    except OSError as error:
        wire.send(control, {"failed": f"{settings.tier}: {error.strerror or error}"})
    except BecomeGuest as this:
        become = this
    if become is not None:  # outside the handler: nothing of this stack shows in the guest's tracebacks
        become.__traceback__ = None
        become.run()


def _launch(settings: Settings, control: socket.socket, trainer: int, proc: int) -> None:
    runtime = find_runtime()
    if settings.tier == "namespaces":
        supervisor = _fork_into_namespaces(runtime)
    else:
        native.prctl(native.PR_SET_CHILD_SUBREAPER, 1)
        supervisor = os.fork()
    if supervisor == 0:
        if settings.tier == "namespaces":
            native.prctl(native.PR_SET_PDEATHSIG, signal.SIGKILL)
            ends = (trainer,)
        else:  # there, dying at once would leave orphans: it sees the launcher's end and ends everything itself
            native.prctl(native.PR_SET_CHILD_SUBREAPER, 1)
            ends = (trainer, guest.high(os.pidfd_open(os.getppid())))
        _supervise(settings, runtime, control, ends, proc)
    control.close()
    os.close(trainer)
    while os.waitpid(-1, 0)[0] != supervisor:
        pass
    _leave_nothing(settings, proc)


def _fork_into_namespaces(runtime: Runtime) -> int:
    sources = namespaces.leave_world(runtime)
    supervisor = os.fork()
    if supervisor == 0:
        namespaces.build_root(runtime, sources)
    return supervisor


def _supervise(settings: Settings, runtime: Runtime, control: socket.socket, ends: tuple[int, ...], proc: int) -> None:
    """ends: process descriptors; when one of these processes ends, so does everything."""
    for name in settings.warm:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.disable()
    native.limit_malloc_arenas(2)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # it holds several descriptors a call
    machine = this_machine()
    assert machine is not None  # probed
    first_user, grants, abi, kept = None, None, 0, 0
    if settings.tier == "landlock":
        abi = settings.landlock_abi or native.landlock_abi()
        grants = _grants(runtime)
        first_user = _first_user(settings.max_guests) if os.getuid() == 0 else None
        kept = 0 if first_user is None else _capability_to_read(first_user, runtime)
    policy = seccomp.Policy(
        metadata=not abi,
        truncate=not abi or abi >= landlock.TRUNCATE_HANDLED,
        signals=not abi or abi >= landlock.SIGNALS_SCOPED or first_user is not None,
    )
    cell = guest.Cell(
        program=seccomp.compile_filter(policy, machine),
        landlock_abi=abi,
        grants=grants,
        kept_capability=kept,
        base_bytes=watch.address_bytes(proc),
    )
    supervisor = Supervisor(
        control=control,
        ends=ends,
        proc=proc,
        cell=cell,
        first_user=first_user,
        max_guests=settings.max_guests,
        folder=settings.scratch,
        search=runtime.search,
        hidden=_hidden(runtime, settings),
    )
    script.forget_supervisor()
    wire.send(control, {"ready": settings.tier})
    supervisor.serve()
    os._exit(0)


def _grants(runtime: Runtime) -> landlock.Grants:
    def opened(paths: Any) -> list[int]:
        return [guest.high(os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in paths]

    return landlock.Grants(
        folders=opened(runtime.folders),
        files=opened(runtime.files),
        programs=opened(runtime.programs),
        devices=opened(runtime.devices),
    )


def _first_user(count: int) -> int | None:
    """The first of `count` ids that guests of a root supervisor take, one each; None for a root that may not change
    its id (a container without CAP_SETUID): its guests stay what it is, without capabilities."""
    for unused in namespaces.unused_ids():
        if _in_child(lambda unused=unused: os.setresuid(*[unused + count] * 3)):
            return unused
    return None


def _capability_to_read(uid: int, runtime: Runtime) -> int:
    """The capability, as a bit mask, without which `uid` cannot read the runtime; 0 when none is needed.

    An interpreter in root's home is out of an ordinary user's reach. Landlock bounds what the capability reaches."""

    def read(kept: int) -> None:
        guest.become_user(uid, kept)
        for folder in runtime.folders:
            os.listdir(folder)

    masks = (0, 1 << native.CAP_DAC_READ_SEARCH, 1 << native.CAP_DAC_OVERRIDE)
    for kept in masks:
        if _in_child(lambda kept=kept: read(kept)):
            return kept
    raise OSError(f"the Python in {sys.base_prefix} cannot be read by other users; install one that can")


def _in_child(action: Any) -> bool:
    """Does the action succeed, tried in a child?"""
    child = os.fork()
    if child == 0:
        try:
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _hidden(runtime: Runtime, settings: Settings) -> list[tuple[str, str]]:
    """Path prefixes and what tracebacks show for them, longest first."""
    shown: dict[str, str] = {sys.prefix: "<prefix>", sys.base_prefix: "<prefix>", settings.scratch: "<scratch>"}
    for entry in runtime.search:
        name = "<site-packages>" if os.path.basename(entry) in ("site-packages", "dist-packages") else "<python>"
        shown[entry] = shown[os.path.realpath(entry)] = name
    shown.pop("", None)
    return sorted(shown.items(), key=lambda pair: -len(pair[0]))


def _leave_nothing(settings: Settings, proc: int) -> None:
    """Kill and reap whatever was handed to this process, until there is nothing; then remove the scratches."""
    while True:
        for pid in watch.descendants(proc, os.getpid())[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
    if settings.tier == "landlock":
        remove_folder(settings.scratch)
