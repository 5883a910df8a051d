"""Opening a sandbox: the options, the choice of a tier, and the local sandbox that runs calls in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lockstep.sandbox.calls import Calls
from lockstep.sandbox.connection import StartFailed
from lockstep.sandbox.interface import LOCAL_TIERS, NO_FILES, Limits, Outcome, Sandbox, SandboxUnavailable, Tier
from lockstep.sandbox.probes import Probe, probe, unavailable
from lockstep.sandbox.remote import open_remote
from lockstep.sandbox.sealed import archive
from lockstep.sandbox.session import Run, State
from lockstep.sandbox.unsafe import UnsafeSandbox

TierChoice = Literal["auto", "namespaces", "landlock", "remote", "none"]
_REMOTE_CONNECTIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOptions:
    """How model-written code is run.

    tier: 'auto' takes the strongest that works here. url: of a SandboxFusion server, for tier 'remote'. allow_unsafe:
    lets tier 'none' run code as a plain subprocess, with the rights of this user. limits: of calls that give none.
    max_concurrency: calls running at once, the rest wait (0: as many as processor cores; 64 for
    'remote'). warm: modules that a call
    finds imported (those that are installed). max_sessions: interpreters kept at once; the longest idle one is ended
    when another is needed. session_idle_s: one idle for longer is ended.
    """

    tier: TierChoice = "auto"
    url: str = ""
    allow_unsafe: bool = False
    limits: Limits = field(default_factory=Limits)
    max_concurrency: int = 0
    warm: tuple[str, ...] = ("numpy", "numpy.random", "sympy")
    max_sessions: int = 64
    session_idle_s: float = 600.0

    def __post_init__(self) -> None:
        if self.tier == "none" and not self.allow_unsafe:
            raise ValueError(
                "sandbox.tier='none' runs the model's code with this user's rights; "
                "choose another tier, or say allow_unsafe=True"
            )
        if (self.tier == "remote") != bool(self.url):
            raise ValueError(f"sandbox.tier={self.tier!r} with url={self.url!r}: tier 'remote' and a url go together")
        for name, least in (("max_concurrency", 0), ("max_sessions", 1), ("session_idle_s", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"sandbox.{name}={getattr(self, name)!r}: must be at least {least}")


def open_sandbox(options: SandboxOptions | None = None) -> Sandbox:
    """A sandbox in the tier asked for. Raises SandboxUnavailable with each failed probe and its fix."""
    options = options or SandboxOptions()
    if options.tier == "none":
        return UnsafeSandbox(options.limits, concurrency(options))
    if options.tier == "remote":
        connections = options.max_concurrency or _REMOTE_CONNECTIONS
        return open_remote(url=options.url, limits=options.limits, max_connections=connections)
    probes = list(probe())
    for tier in LOCAL_TIERS if options.tier == "auto" else (options.tier,):
        if all(one.ok for one in probes if tier in one.tiers):
            try:
                return LocalSandbox(options, tier)
            except StartFailed as error:
                fix = "report it with the output of `lockstep doctor sandbox`, or choose another tier"
                probes.append(Probe(name=f"start {tier}", ok=False, detail=str(error), fix=fix, tiers=(tier,)))
    raise SandboxUnavailable(unavailable(options.tier, probes))


def concurrency(options: SandboxOptions) -> int:
    return options.max_concurrency or len(os.sched_getaffinity(0))


class LocalSandbox:
    """A supervisor on this machine. See `Sandbox`."""

    def __init__(self, options: SandboxOptions, tier: Tier) -> None:
        self.tier: Tier = tier
        self._options = options
        self._calls = Calls(
            {"tier": tier, "warm": options.warm},
            max_calls=concurrency(options),
            max_sessions=options.max_sessions,
            session_idle_s=options.session_idle_s,
        )

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, bytes] = NO_FILES, limits: Limits | None = None
    ) -> Outcome:
        limits = limits or self._options.limits
        packed = archive(files, limits) if files else None
        ended = self._calls.add(_bytes(code), _bytes(stdin), packed, limits)
        return await asyncio.wrap_future(ended)

    async def session(self, *, limits: Limits | None = None) -> LocalSession:
        return LocalSession(self._calls, limits or self._options.limits)

    def close(self) -> None:
        self._calls.close()


class LocalSession:
    """See `interface.Session`. The interpreter starts with the first run."""

    def __init__(self, calls: Calls, limits: Limits) -> None:
        self._calls, self._state = calls, State(limits)

    async def run(self, code: str, *, time_s: float | None = None) -> Outcome:
        time_s = self._state.limits.time_s if time_s is None else time_s
        replace(self._state.limits, time_s=time_s)  # raises ValueError
        run = Run(_bytes(code), time_s)
        return await asyncio.wrap_future(self._calls.add_run(self._state, run))

    async def close(self) -> None:
        self._calls.close_session(self._state)


def _bytes(text: str) -> bytes:
    """UTF-8; a lone surrogate, which JSON can spell, stays as it is and is the guest's to stumble over."""
    return text.encode("utf-8", "surrogatepass")
