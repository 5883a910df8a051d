"""Calls a second, processor time, latency and memory of the sandbox, beside a bare cold subprocess in the same run.

    python benchmarks/sandbox.py [--only trivial ...] [--quick]

Every side runs the same script at 1, 2, 8 and 64 calls in flight, with idle cores and with a busy process on every
core; the sides of a case take turns. The cold subprocess is `python -I -c script`: no warm interpreter, and no
protection at all. Processor time is that of the whole tree (client, supervisor, children). The ratios are of the
sandbox's numbers over the subprocess's. The bars are printed as reached or MISSED; the exit code is 0 either way. Other
work on the machine falsifies the numbers, so that the load average is printed with them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.processes import available_bytes, busy_cores, cpu_s, memory_bytes, tree
from lockstep.sandbox.interface import Limits, Sandbox, SandboxFailure, SandboxUnavailable
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox

COLD = "cold subprocess"
TIERS = ("namespaces", "landlock")
SCRIPTS = {
    "trivial": "print(6 * 7)",
    "import numpy": "import numpy; print(numpy.arange(4).sum() * 7)",
    "import sympy": "import sympy; print(sympy.Integer(42))",
    "sympy solve": "from sympy import *; x = symbols('x'); print(solve(x**2 - 84*x + 1764)[0])",
    "session": "print(6 * 7)",
}
ANSWER = "42"
IN_FLIGHT = (1, 2, 8, 64)
LIMITS = Limits(time_s=60.0)  # 64 cold calls on two busy cores take their time
BAR_CALLS_PER_S, BAR_CPU_MS, BAR_IN_FLIGHT = 100.0, 10.0, 8
IDLE_CALLS = 64
HEAD = f"{'script':13} {'side':15} {'cores':5} {'flying':>6} {'calls/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}"
HEAD += f" {'CPU ms':>7} {'calls/s':>8} {'CPU':>7}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """call: one call by the worker of that number. warm: each worker's first call is not counted. close: ends what the
    calls stood on."""

    call: Callable[[int], Awaitable[None]]
    warm: bool
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One side's numbers for one script. Latencies and cpu_ms are of a call."""

    script: str
    side: str
    cores: str
    in_flight: int
    num_calls: int
    calls_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    num_cores = len(os.sched_getaffinity(0))
    print(f"{date.today()}, {platform.machine()}, {num_cores} cores, Linux {platform.release()}, Python", end=" ")
    print(f"{platform.python_version()}; load average at the start {os.getloadavg()[0]:.2f}\n\n{HEAD}")
    sandboxes, notes = open_all()
    rows: list[Row] = []
    try:
        for cores in ("idle", "busy"):
            with busy_cores(num_cores) if cores == "busy" else nullcontext(frozenset[int]()) as burners:
                for script in chosen.in_flight:
                    for in_flight in chosen.in_flight[script]:
                        rows += case(sandboxes, script, cores, in_flight, chosen, burners)
        print(f"\nload average at the end {os.getloadavg()[0]:.2f} (the busy cores are {num_cores} of it)\n")
        lines = [*notes, *verdicts(rows), *(idle_memory(sandbox, chosen.idle_calls) for sandbox in sandboxes.values())]
    finally:
        for sandbox in sandboxes.values():
            sandbox.close()
    print("\n".join(f"- {line}" for line in lines))
    if chosen.json:
        chosen.json.write_text(json.dumps({"rows": [asdict(row) for row in rows], "lines": lines}, indent=1))


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="of calls for each line of the table")
    parser.add_argument("--only", choices=SCRIPTS, nargs="+", help="these scripts alone; the bars need trivial")
    parser.add_argument("--quick", action="store_true", help="a smoke test: the numbers mean nothing")
    parser.add_argument("--json", type=Path, help="write the rows and the lines there as well")
    chosen = parser.parse_args(arguments)
    chosen.in_flight, chosen.idle_calls, chosen.least = dict.fromkeys(SCRIPTS, IN_FLIGHT), IDLE_CALLS, 5
    if chosen.quick:
        chosen.seconds, chosen.idle_calls, chosen.least = 0.0, 2, 1
        chosen.in_flight = {"trivial": (BAR_IN_FLIGHT,), "import numpy": (1,), "session": (2,)}
    if chosen.only:
        chosen.in_flight = {script: chosen.in_flight[script] for script in chosen.only}
    return chosen


def open_all() -> tuple[dict[str, Sandbox], list[str]]:
    """A sandbox of every tier that works here, and a line for each that does not."""
    found: dict[str, Sandbox] = {}
    notes = []
    for tier in TIERS:
        try:
            found[tier] = open_sandbox(SandboxOptions(tier=tier, limits=LIMITS, max_concurrency=max(IN_FLIGHT)))
        except SandboxUnavailable as error:
            notes.append(f"{tier}: not measured, {' '.join(str(error).split())}")
    return found, notes


def case(
    sandboxes: dict[str, Sandbox],
    script: str,
    cores: str,
    in_flight: int,
    chosen: argparse.Namespace,
    burners: frozenset[int],
) -> list[Row]:
    """Measure and print one script on every side. The cold side only up to 8 in flight where a call takes long."""
    sides = {tier: sandbox_side(sandbox, script, in_flight) for tier, sandbox in sandboxes.items()}
    if script != "session" and (script == "trivial" or in_flight <= 8):
        sides[COLD] = cold_side(script)
    found = []
    for side, prepare in sides.items():
        try:
            latencies, taken_s, used_s = asyncio.run(measure(prepare, in_flight, chosen.seconds, chosen.least, burners))
        except SandboxFailure as error:
            print(f"{script:13} {side:15} {cores:5} {in_flight:6d} FAILED: {error}", flush=True)
            continue
        # fewer calls than a hundred: interpolated between them
        quantiles = statistics.quantiles(latencies, n=100, method="inclusive") if latencies[1:] else latencies * 99
        row = Row(
            script=script,
            side=side,
            cores=cores,
            in_flight=in_flight,
            num_calls=len(latencies),
            calls_per_s=len(latencies) / taken_s,
            p50_ms=quantiles[49] * 1e3,
            p95_ms=quantiles[94] * 1e3,
            p99_ms=quantiles[98] * 1e3,
            cpu_ms=used_s / len(latencies) * 1e3,
        )
        found.append(row)
    cold = next((row for row in found if row.side == COLD), None)
    for row in found:
        print(line(row, cold), flush=True)
    return found


def sandbox_side(sandbox: Sandbox, script: str, in_flight: int) -> Callable[[], Awaitable[Work]]:
    async def prepare() -> Work:
        sessions = [await sandbox.session() for _ in range(in_flight if script == "session" else 0)]

        async def call(worker: int) -> None:
            found = await (sessions[worker].run if sessions else sandbox.run)(SCRIPTS[script])
            check(script, found.status == "ok" and found.stdout.strip() == ANSWER, found)

        async def close() -> None:
            for session in sessions:
                await session.close()

        return Work(call=call, warm=True, close=close)

    return prepare


def cold_side(script: str) -> Callable[[], Awaitable[Work]]:
    command = (sys.executable, "-I", "-c", SCRIPTS[script])

    async def call(_: int) -> None:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        stdout = (await process.communicate())[0]
        check(script, stdout.decode().strip() == ANSWER, stdout)

    async def close() -> None:
        pass

    async def prepare() -> Work:
        return Work(call=call, warm=False, close=close)

    return prepare


def check(script: str, right: bool, found: object) -> None:
    if not right:
        sys.exit(f"{script}: not the answer {ANSWER}: {found}")


async def measure(
    prepare: Callable[[], Awaitable[Work]], in_flight: int, seconds: float, least: int, burners: frozenset[int]
) -> tuple[list[float], float, float]:
    """Calls one after another in each of `in_flight` tasks until `seconds` are over, at least `least` warm ones each.

    Returns each call's seconds, the seconds of all together, and the processor's seconds.
    """
    work = await prepare()
    latencies: list[float] = []

    async def repeat(worker: int, end: float, count: int) -> None:
        while count > 0 or time.perf_counter() < end:
            began = time.perf_counter()
            await work.call(worker)
            latencies.append(time.perf_counter() - began)
            count -= 1

    if work.warm:
        await asyncio.gather(*(repeat(worker, 0.0, 1) for worker in range(in_flight)))
        latencies.clear()
    cpu, began = cpu_s(without=burners), time.perf_counter()
    fewest = least if work.warm else 1  # a cold call takes long enough
    await asyncio.gather(*(repeat(worker, began + seconds, fewest) for worker in range(in_flight)))
    taken, used = time.perf_counter() - began, cpu_s(without=burners) - cpu
    await work.close()
    return latencies, taken, used


def idle_memory(sandbox: Sandbox, number: int) -> str:
    """One line: what `number` calls that do nothing take while they are in flight."""

    async def hold() -> tuple[int, int]:
        standing = await settled_size(0, still_s=1.5)  # idle keepers of earlier calls end after a second
        before, room = memory_bytes(), available_bytes()
        calls = [asyncio.create_task(sandbox.run("import time; time.sleep(1000)")) for _ in range(number)]
        try:
            await settled_size(standing + number)
            return memory_bytes() - before, room - available_bytes()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    try:
        taken, machine = asyncio.run(hold())
    except TimeoutError as error:
        return f"{sandbox.tier}: {number} idle calls in flight: MISSED, {error}"
    return (
        f"{sandbox.tier}: {number} idle calls in flight take {taken / 1e6:.0f} MB (sum of PSS), {machine / 1e6:.0f} MB "
        "of the machine's available memory"
    )


async def settled_size(least: int, still_s: float = 0.3) -> int:
    """How many processes the tree has, once it is at least so many and has not changed for so long."""
    sizes = [-1] * round(still_s / 0.03)
    end = time.monotonic() + 60
    while sizes[-1] < least or len(set(sizes)) > 1:
        if time.monotonic() > end:
            raise TimeoutError(f"{sizes[-1]} processes, not {least}, within 60 s")
        await asyncio.sleep(0.03)
        sizes = [*sizes[1:], sum(process.state not in "ZX" for process in tree().values())]
    return sizes[-1]


def line(row: Row, cold: Row | None) -> str:
    """One line of the table; the ratios are this side's over the cold subprocess's."""
    cells = f"{row.script:13} {row.side:15} {row.cores:5} {row.in_flight:6d} {row.calls_per_s:8.1f} {row.p50_ms:8.1f}"
    cells += f" {row.p95_ms:8.1f} {row.p99_ms:8.1f} {row.cpu_ms:7.1f}"
    if cold is None or cold is row:
        return cells
    ratio = row.cpu_ms / cold.cpu_ms if cold.cpu_ms else float("nan")
    return f"{cells} {row.calls_per_s / cold.calls_per_s:7.1f}x {ratio:6.2f}x"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """The two bars for every tier, both for trivial calls, 8 in flight."""
    lines = []
    for tier in dict.fromkeys(row.side for row in rows if row.side != COLD):
        found = {
            row.cores: row for row in rows if (row.side, row.script, row.in_flight) == (tier, "trivial", BAR_IN_FLIGHT)
        }
        if found.keys() != {"idle", "busy"}:
            lines.append(f"{tier}: the bars are not measured")
            continue
        rate = found["busy"].calls_per_s
        verdict = "reached" if rate >= BAR_CALLS_PER_S else "MISSED"
        lines.append(f"{tier}: at least {BAR_CALLS_PER_S:g} calls/s warm on busy cores: {rate:.0f}, {verdict}")
        worst = max(row.cpu_ms for row in found.values())
        verdict = "reached" if worst <= BAR_CPU_MS else "MISSED"
        lines.append(f"{tier}: at most {BAR_CPU_MS:g} ms of processor time a trivial call: {worst:.1f} ms, {verdict}")
    return lines


if __name__ == "__main__":
    main()
