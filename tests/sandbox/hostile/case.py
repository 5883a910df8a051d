"""One hostile case: a script that attacks, what must come of it, and a control that shows the attack to be real."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

from lockstep.sandbox.interface import Limits, Outcome, Sandbox, Status

BOTH = ("namespaces", "landlock")
MARK = f"hostile-{os.getpid()}"  # of this process's guests: several suites may run on a machine
PRELUDE = (Path(__file__).parent / "prelude.py").read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """How a script ended without a sandbox: output of both streams, exit code (negative: a signal), whether it was
    still running at the end of its time, how many of its processes outlived it, and what the stage says was changed."""

    output: str
    exit_code: int | None
    outlived: bool
    survivors: int = 0
    harm: tuple[str, ...] = ()


def says_breach(plain: Plain) -> bool:
    return "BREACH" in plain.output


def outlives(plain: Plain) -> bool:
    return plain.outlived


def survives(plain: Plain) -> bool:
    return plain.survivors > 0


def harms(plain: Plain) -> bool:
    return bool(plain.harm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """attempts: one line on what the script tries. code: what follows the prelude. before: an earlier call's script.

    sibling: another call of the same sandbox runs meanwhile; its processes, as the host numbers them, are
    HOST["sibling"]. expect: the statuses that may come; with "ok" and `speaks` the script must have said HELD, and
    BREACH never. check: a further look at the outcome; gives back what is wrong. control: whether the plain run shows
    the attack at work; None where that would harm the machine or cannot be seen, and then `no_control` says why.
    together: the control runs `before` and `code` in one interpreter (what is shared is the interpreter).
    play: drives the sandbox itself in place of one run of `code`, and gives back what is wrong.
    """

    name: str
    attempts: str
    code: str
    family: str = ""
    before: str = ""
    sibling: bool = False
    stdin: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(time_s=10.0, memory_bytes=1 << 28, files_bytes=1 << 24))
    expect: tuple[Status, ...] = ("ok",)
    speaks: bool = True
    check: Callable[[Outcome], str | None] | None = None
    control: Callable[[Plain], bool] | None = says_breach
    control_s: float = 20.0
    no_control: str = ""
    together: bool = False
    tiers: tuple[str, ...] = BOTH
    play: Callable[[Sandbox], Awaitable[list[str]]] | None = None

    def __post_init__(self) -> None:
        if (self.control is None) != bool(self.no_control):
            raise ValueError(f"case {self.name!r}: give a control, or say why there is none")


def case(name: str, attempts: str, code: str, *, before: str = "", **options: Any) -> Case:
    """A Case whose scripts may be indented."""
    return Case(name=name, attempts=attempts, code=dedent(code), before=dedent(before), **options)


def script(code: str, host: Mapping[str, object]) -> str:
    """The whole script: the prelude, what it knows of the host, the attack."""
    known = PRELUDE.replace("\nHOST = {}\n", f"\nHOST = {dict(host)!r}\n")
    return known.replace('MARK = "hostile-mark"', f"MARK = {MARK!r}") + "\n" + code
