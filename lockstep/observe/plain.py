"""The display where no one watches: one line a step, in ASCII, aligned, for logs and pipes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TextIO

from lockstep.observe.formats import count, duration, number, percent, printable, ratio_range
from lockstep.observe.progress import Progress, malformed_share

Metrics = Mapping[str, float]


def _padded(
    label: str, key: str, width: int, show: Callable[[float], str], *, unless: str = ""
) -> Callable[[Metrics], str | None]:
    return lambda metrics: (
        f"{label} {show(metrics[key]):>{width}}" if key in metrics and unless not in metrics else None
    )


def _ratio(metrics: Metrics) -> str | None:
    if not {"ratio/min", "ratio/max"} <= metrics.keys():
        return None
    return f"ratio {ratio_range(metrics['ratio/min'], metrics['ratio/max']):>9}"


def _malformed(metrics: Metrics) -> str | None:
    share = malformed_share(metrics)
    return None if share is None else f"bad {percent(share):>5}"


_FIELDS: tuple[Callable[[Metrics], str | None], ...] = (
    _padded("reward", "reward", 6, lambda value: f"{value:.3f}"),
    _padded("success", "success", 5, lambda value: f"{value:.3f}"),
    # On policy the loss says nothing and the schedule is known: where there is a reward the line has no room for them.
    _padded("loss", "loss", 7, lambda value: f"{value:.4f}", unless="reward"),
    _padded("lr", "lr", 7, lambda value: f"{value:.1e}", unless="reward"),
    _padded("entropy", "entropy", 5, lambda value: f"{value:.3f}"),
    _padded("grad", "grad_norm", 7, number),
    _padded("kl", "mismatch/kl", 7, lambda value: f"{value:.0e}"),
    _ratio,
    _padded("clip", "clip_fraction", 4, percent),
    _malformed,
    _padded("tok/s", "tokens_per_s/step", 5, count),
    _padded("tok/s", "tokens_per_s/train", 5, count, unless="tokens_per_s/step"),
    _padded("heldout sampled", "eval/success_sampled", 5, lambda value: f"{value:.3f}"),
    _padded("greedy", "eval/success_greedy", 5, lambda value: f"{value:.3f}"),
)


class PlainDisplay:
    """Prints a line for each update. Everything it writes is one flushed line, without carriage returns or colours."""

    def __init__(
        self, title: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title = title
        self._stream = stream or sys.stdout
        self._clock = clock
        self._progress: Progress | None = None

    def phase(self, name: str, total_steps: int) -> None:
        """Begin a phase; what follows counts its steps."""
        self._finish()
        self._progress = Progress(name, total_steps, self._clock(), {})
        self.message(f"{self._title}: {name}, {total_steps} steps")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print what is known after `step` finished steps of the phase."""
        if self._progress is None:
            raise RuntimeError("display.update before display.phase: say first which phase the step belongs to")
        now_s = self._clock()
        self._progress.update(step, metrics, now_s)
        self.message(_line(self._progress, metrics, now_s))

    def message(self, text: str) -> None:
        """Print a line of its own."""
        print(printable(text, self._stream.encoding or "utf-8"), file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        progress = self._progress
        if progress is not None:
            took = duration(progress.elapsed_s(self._clock()))
            self.message(
                f"{self._title}: {progress.name} ended at step {progress.step}/{progress.total_steps} after {took}"
            )


def _line(progress: Progress, metrics: Metrics, now_s: float) -> str:
    total = str(progress.total_steps)
    shown = [field for field in (show(metrics) for show in _FIELDS) if field is not None]
    left_s = progress.remaining_s(now_s)
    clock = f"{duration(progress.elapsed_s(now_s)):>5}" + ("" if left_s is None else f"  eta {duration(left_s)}")
    return "  ".join((f"{progress.name} {progress.step:>{len(total)}}/{total}", *shown, clock))
