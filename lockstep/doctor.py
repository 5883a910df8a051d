"""`lockstep doctor`: what this machine can do, found by trying. Today: the sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from lockstep.options import parse
from lockstep.sandbox.interface import LOCAL_TIERS, LocalTier, SandboxFailure, SandboxUnavailable
from lockstep.sandbox.probes import Probe, probe
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox
from lockstep.types import UserError


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Try what this machine can do, and say what is missing and how to mend it."""

    what: Positional[Literal["sandbox"]] = "sandbox"
    """What to examine: 'sandbox', where models' Python runs."""


def main(arguments: Sequence[str]) -> None:
    """Examine and print. Raises UserError when what was asked for cannot work here."""
    parse(Doctor, list(arguments), command="lockstep doctor", default=Doctor())
    sandbox(Console())


def sandbox(console: Console) -> None:
    """Every probe with its answer, each tier with a first call in it, and the tier that calls get. Raises UserError
    when none works."""
    probes = probe()
    console.print(_probes(probes))
    for each in probes:
        if not each.ok:
            console.print(f"to have {each.name}: {each.fix}", markup=False)
    working = [tier for tier in LOCAL_TIERS if _works(console, tier, probes)]
    if not working:
        raise UserError(
            "no sandbox tier works here: mend one of the above, or run models' code elsewhere with "
            "SandboxOptions(tier='remote', url=...)"
        )
    console.print(f"models' code runs in tier [bold]{working[0]}[/bold]")


def _probes(probes: Sequence[Probe]) -> Table:
    table = Table(title="probes", title_justify="left")
    for column in ("", "here", "found", "needed by"):
        table.add_column(column)
    for each in probes:
        table.add_row(each.name, "yes" if each.ok else "no", escape(each.detail), ", ".join(each.tiers))
    return table


def _works(console: Console, tier: LocalTier, probes: Sequence[Probe]) -> bool:
    missing = [each.name for each in probes if tier in each.tiers and not each.ok]
    if missing:
        console.print(f"tier {tier}: lacks {', '.join(missing)}")
        return False
    try:
        opened = open_sandbox(SandboxOptions(tier=tier))
    except SandboxUnavailable as error:
        console.print(f"tier {tier}: {error}", markup=False)
        return False
    try:
        outcome = asyncio.run(opened.run("print(6 * 7)"))
    except SandboxFailure as error:
        console.print(f"tier {tier}: {error}", markup=False)
        return False
    finally:
        opened.close()
    right = (outcome.status, outcome.stdout) == ("ok", "42\n")
    said = f"ran a call in {1000 * outcome.time_s:.0f} ms" if right else f"a first call ended wrongly: {outcome}"
    console.print(f"tier {tier}: {said}", markup=False)
    return right
