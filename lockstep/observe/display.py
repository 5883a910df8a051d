"""What a run shows while it goes: a live picture on a terminal, plain lines elsewhere, behind one protocol."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console

from lockstep.observe.live import LiveDisplay
from lockstep.observe.plain import PlainDisplay


class Display(Protocol):
    """A run's display, a context manager: `phase`, then `update` after each step, `message` at any time."""

    def phase(self, name: str, total_steps: int) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def message(self, text: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_display(title: str) -> Display:
    """The display that suits standard output: live on a terminal that can move its cursor, otherwise plain lines."""
    console = Console()
    # Not console.is_terminal, which FORCE_COLOR, set in many a CI, makes true for a pipe.
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(title, console=console)
    return PlainDisplay(title)
