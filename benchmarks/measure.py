"""Time and peak memory of several implementations of the same work, side by side. Needs PyTorch alone.

In: cases, each a list of sides (Lockstep's first) that do the same work. Out: markdown tables on the standard output
as the numbers come, and the rows. The sides of a case take turns (A B A B ...) and a side's time is its median, so that
the noise of a shared machine falls on all of them. A side that fails becomes a row with the error: the next one goes
on.

Peak memory is what a side holds at most beyond what was there before it began, gradients and results included. On CUDA
it is the caching allocator's own count. On the CPU it is the running sum of the profiler's allocations and frees:
exact, the same in every run and comparable to CUDA's. It does not see memory that a library takes behind PyTorch's
back (packing buffers of a matrix product: a few MB). `rss_peak_bytes` sees that as well, but counts whole pages and
only tells the truth in a fresh process whose allocator returns everything at once; it is there to check the other.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")
Work = Callable[[], object]
FLUSH_BYTES = 1 << 30  # written before a timed run on CUDA: empties the cache and lets the launches run ahead
RSS_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Side(Protocol):
    """One implementation of a case. `peak_bytes` runs it once and is its warm-up; `time_s` runs it once more."""

    @property
    def name(self) -> str: ...

    def peak_bytes(self) -> int: ...

    def time_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Work done in this process on `device`."""

    name: str
    work: Work
    device: str = "cpu"

    def peak_bytes(self) -> int:
        return cuda_peak_bytes(self.work) if self.device == "cuda" else cpu_peak_bytes(self.work)

    def time_s(self) -> float:
        return cuda_time_s(self.work) if self.device == "cuda" else cpu_time_s(self.work)


class NotRun(Exception):
    """Raised by a side that is not run; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A side that is named in the table but not run, and why."""

    name: str
    why: str

    def peak_bytes(self) -> int:
        raise NotRun(self.why)

    def time_s(self) -> float:
        raise NotRun(self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """against: a side that must take at least `bound` times Lockstep's time or memory. None: Lockstep's own seconds or
    bytes are at most `bound`."""

    quantity: Literal["time", "memory"]
    against: str | None
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """sides: builds the inputs and returns the sides, Lockstep's first. flops: of the work as written on paper, without
    what an implementation computes again; None leaves the rate out."""

    part: str
    name: str
    tokens: int
    sides: Callable[[], Sequence[Side]]
    flops: float | None = None
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One side's numbers for one case; `note` says why there are none."""

    part: str
    case: str
    side: str
    tokens: int
    flops: float | None = None
    time_s: float | None = None
    peak_bytes: int | None = None
    note: str = ""


def run_cases(
    cases: Iterable[Case], *, rounds: int, seconds: float = 1.0, deadline: float = math.inf
) -> tuple[list[Row], list[str]]:
    """Measure and print every case; those that begin after `deadline` (of time.monotonic) are skipped with a line.
    Returns the rows and the lines about the targets."""
    rows, verdicts, part = [], [], None
    gc.freeze()  # or each collection after a case searches everything that was imported
    for case in cases:
        if case.part != part:
            part = case.part
            print(f"\n### {part}\n\n" + table_head(), flush=True)
        if time.monotonic() > deadline:
            found = [Row(part=case.part, case=case.name, side="all", tokens=case.tokens, note="not run: no time left")]
        else:
            found = compare(case, rounds=rounds, seconds=seconds)
        for row in found:
            print(table_line(row, found[0]), flush=True)
        rows += found
        verdicts += [judge(target, case, found) for target in case.targets]
        release()
    gc.unfreeze()
    return rows, verdicts


def compare(case: Case, *, rounds: int, seconds: float, most: int = 20) -> list[Row]:
    """One row a side. At least `rounds` rounds, more (to `most`) while they fit into `seconds`."""
    sides, note = attempt(case.sides)
    if sides is None:
        return [Row(part=case.part, case=case.name, side="all", tokens=case.tokens, note=note)]
    peaks, notes = {}, {}
    for side in sides:
        peaks[side.name], notes[side.name] = attempt(side.peak_bytes)
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    began = time.monotonic()
    for count in range(most):
        if count >= rounds and time.monotonic() - began > seconds:
            break
        for side in sides:
            if not notes[side.name]:
                taken, notes[side.name] = attempt(side.time_s)
                times[side.name] += [] if taken is None else [taken]
    return [
        Row(
            part=case.part,
            case=case.name,
            side=side.name,
            tokens=case.tokens,
            flops=case.flops,
            time_s=statistics.median(times[side.name]) if times[side.name] and not notes[side.name] else None,
            peak_bytes=peaks[side.name],
            note=notes[side.name],
        )
        for side in sides
    ]


def attempt(action: Callable[[], T]) -> tuple[T | None, str]:
    """What `action` returns, and an empty note; or None, and its error in one line. The benchmark's boundary: one
    side's failure must not take the others' numbers with it."""
    try:
        return action(), ""
    except NotRun as error:
        return None, f"not run: {error}"
    except torch.OutOfMemoryError:
        note = "failed: out of memory"
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        note = f"failed: {type(error).__name__}: {text}"
    release()
    return None, note


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # of a device that an earlier kernel broke
            torch.cuda.empty_cache()


# --- measuring ---


def cpu_time_s(work: Work) -> float:
    """On one thread the processor's time, which does not grow while other processes have the core; else the clock's."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    result = work()
    taken = clock() - began
    del result
    return taken


def cuda_time_s(work: Work) -> float:
    """Between two events, on an empty cache. What the host does counts where the device has to wait for it."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    start.record()
    result = work()
    stop.record()
    torch.cuda.synchronize()
    del result
    return start.elapsed_time(stop) / 1000


def cuda_peak_bytes(work: Work) -> int:
    """Of the second run: the first one may load libraries, compile, and take their workspaces."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def cpu_peak_bytes(work: Work) -> int:
    """Of the first run, so that tables built once and kept are counted."""
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    del result
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def rss_peak_bytes(work: Work) -> int:
    """Growth of the process's resident memory, of the second run. Linux, in a fresh process with RSS_ENVIRONMENT."""
    work()
    gc.collect()
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    result = work()
    del result
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the profiler's own lines, which no setting turns off, on the standard error."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# --- printing ---


def table_head() -> str:
    names = ("case", "side", "time", "µs/token", "TFLOP/s", "peak memory", "time ratio", "memory ratio")
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def table_line(row: Row, ours: Row) -> str:
    """A ratio is this side's number over Lockstep's."""
    if row.note:
        return f"| {row.case} | {row.side} | {row.note} |" + " |" * 5
    cells = [row.case, row.side, duration(row.time_s), f"{row.time_s / row.tokens * 1e6:.3g}"]
    cells += [f"{row.flops / row.time_s / 1e12:.3g}" if row.flops else "", size(row.peak_bytes)]
    cells += [
        f"{value:.2f}x" if row is not ours and value is not None else ""
        for value in (ratio(row, ours, "time"), ratio(row, ours, "memory"))
    ]
    return "| " + " | ".join(cells) + " |"


def ratio(row: Row, ours: Row, quantity: Literal["time", "memory"]) -> float | None:
    """row's number over ours; None where one is missing."""
    above, below = (r.time_s if quantity == "time" else r.peak_bytes for r in (row, ours))
    return None if above is None or not below else above / below


def judge(target: Target, case: Case, rows: Sequence[Row]) -> str:
    """One line: the target, what was found, and whether that reaches it."""
    by_side = {row.side: row for row in rows}
    ours = rows[0]
    if target.against is None:
        value, show = (ours.time_s, duration) if target.quantity == "time" else (ours.peak_bytes, size)
        goal, found = f"{target.quantity} at most {show(target.bound)}", value and show(value)
        reached = value is not None and value <= target.bound
    else:
        value = ratio(by_side[target.against], ours, target.quantity) if target.against in by_side else None
        goal, found = f"{target.against} takes at least {target.bound:.3g}x the {target.quantity}", f"{value or 0:.3g}x"
        reached = value is not None and value >= target.bound
    verdict = "not measured" if value is None else f"{found}, {'reached' if reached else 'missed'}"
    return f"- {case.part}, {case.name}: {goal}: {verdict}"


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def size(num_bytes: float) -> str:
    """Decimal units."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
