"""The display for a terminal: one picture, redrawn in place, that fits 80x24 and uses more where there is more.

In: phases, steps and metrics by their slash names. A metric that was never given has no row. Titles, phase names and
messages are text, never rich markup.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lockstep.observe.formats import bars, count, duration, number, percent, printable, ratio_range
from lockstep.observe.progress import Progress, malformed_share

_ACCENT = "cyan"
_GOOD = "green"
_WARNING = "yellow"
_LABEL = "bright_black"
_WIDE = 110

Rows = list[tuple[str, Text]]


class LiveDisplay:
    """Draws the run on `console` until the `with` ends; what is printed meanwhile appears above the picture."""

    def __init__(self, title: str, *, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._console = console
        self._clock = clock
        self._finished: list[Text] = []
        self._progress: Progress | None = None
        self._first_held_out: dict[str, float] = {}
        # rich draws in a thread of its own.
        self._lock = threading.Lock()
        # Twice a second: the cores belong to the training.
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=2)

    def phase(self, name: str, total_steps: int) -> None:
        """Begin a phase: its progress and curve start anew, the one before shrinks to a line."""
        with self._lock:
            now_s = self._clock()
            held_out: dict[str, float] = {}
            if self._progress is not None:
                self._finished.append(_finished_line(self._progress, now_s))
                held_out = self._progress.held_out()
            self._progress = Progress(name, total_steps, now_s, held_out)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show what is known after `step` finished steps of the phase."""
        with self._lock:
            if self._progress is None:
                raise RuntimeError("display.update before display.phase: say first which phase the step belongs to")
            self._progress.update(step, metrics, self._clock())
            self._first_held_out = self._progress.held_out() | self._first_held_out

    def message(self, text: str) -> None:
        """Print a line above the picture, where it stays."""
        self._live.console.print(Text(printable(text)), soft_wrap=True)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _picture(self) -> RenderableType:
        width, height = self._console.size
        with self._lock:
            parts: list[RenderableType] = list(self._finished[-3:])
            if self._progress is not None:
                inner = width - 4
                now_s = self._clock()
                body = _metric_columns(self._progress.metrics, self._first_held_out, wide=width >= _WIDE)
                parts.append(_progress_line(self._progress, now_s, inner))
                rows = 2 if height < 30 else 8
                parts += [*_curve(self._progress, inner, rows), *body]
        title = Text.assemble((" lockstep ", f"bold {_ACCENT}"), (f"{printable(self._title)} ", "bold"))
        return Panel(Group(*parts), title=title, title_align="left", border_style=_LABEL, padding=(0, 1))


def _finished_line(progress: Progress, now_s: float) -> Text:
    line = Text.assemble(("✓ ", _GOOD), printable(progress.name), no_wrap=True, overflow="ellipsis")
    line.append(f"  {progress.step}/{progress.total_steps} steps  {duration(progress.elapsed_s(now_s))}", _LABEL)
    headline = progress.headline()
    if headline is not None:
        line.append(f"  {headline} {number(progress.metrics[headline])}", _LABEL)
    return line


def _progress_line(progress: Progress, now_s: float, width: int) -> RenderableType:
    left_s = progress.remaining_s(now_s)
    clock = Text(f"{duration(progress.elapsed_s(now_s))} elapsed", _LABEL)
    if left_s is not None:
        clock.append(f"  {duration(left_s)} left", "default")
    bar = ProgressBar(
        total=max(1, progress.total_steps), completed=progress.step, complete_style=_ACCENT, finished_style=_GOOD
    )
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(no_wrap=True, max_width=width // 4)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_row(Text(printable(progress.name), "bold"), bar, f"{progress.step}/{progress.total_steps}", clock)
    return line


def _curve(progress: Progress, width: int, rows: int) -> list[RenderableType]:
    """The headline metric over the whole phase, from its first step at the left edge to its last at the right."""
    headline = progress.headline()
    if headline is None:
        return []
    values = progress.history[headline]
    low, high = _scale(values.values())
    label_width = 11
    gutter = 6
    columns = _by_column(values, progress.total_steps, width - label_width - gutter - 1)
    lines = [Text()]
    for row, line in enumerate(bars(columns, rows=rows, low=low, high=high)):
        label = Text(headline.ljust(label_width), _LABEL) if row == 0 else Text(" " * label_width)
        if row == 1:
            label = Text(number(progress.metrics[headline]).ljust(label_width), "bold")
        edge = number(high) if row == 0 else number(low) if row == rows - 1 else ""
        lines.append(Text.assemble(label, (line, _ACCENT), (f" {edge:<{gutter}}", _LABEL), no_wrap=True))
    return [*lines, Text()]


def _scale(values: Collection[float]) -> tuple[float, float]:
    """0 to 1 where that holds the values and they are not tiny in it, so that a curve does not flatter itself."""
    low, high = min(0.0, *values, 0.0), max(*values, 0.0)
    return low, (1.0 if 0.2 < high <= 1 else high or 1.0)


def _by_column(values: Mapping[int, float], total_steps: int, width: int) -> list[float | None]:
    """The mean of the steps that fall into each column; a column between two steps repeats the later one."""
    steps_per_column = max(1, total_steps) / width
    columns: list[float | None] = []
    for column in range(width):
        last = int((column + 1) * steps_per_column - 1e-9) + 1
        first = min(last, int(column * steps_per_column) + 1)
        inside = [values[step] for step in range(first, last + 1) if step in values]
        columns.append(sum(inside) / len(inside) if inside else None)
    return columns


def _metric_columns(metrics: Mapping[str, float], first: Mapping[str, float], *, wide: bool) -> list[RenderableType]:
    """The metrics as three columns on a wide terminal, elsewhere as two with speeds and stop reasons in lines below."""
    left = _stack(_outcome(metrics, first), _conduct(metrics))
    middle = _stack(_lockstep(metrics), _update(metrics))
    speed, stops = _speed(metrics), _stops(metrics)
    if wide:
        return [_columns(left, middle, _stack(speed, stops))]
    lines = [_joined(rows) for rows in (speed, stops) if rows]
    return [_columns(left, middle), *([Text(), *lines] if lines else [])]


def _stack(*blocks: Rows) -> Rows:
    """The blocks one under the other, an empty row between them."""
    rows: Rows = []
    for block in filter(None, blocks):
        rows += [("", Text()), *block] if rows else block
    return rows


def _columns(*columns: Rows) -> Table:
    """Columns of equal width, each of labels and values; those without rows are left out."""
    table = Table.grid(padding=(0, 2), expand=True)
    grids = []
    for rows in filter(None, columns):
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style=_LABEL, no_wrap=True, min_width=16)
        grid.add_column(no_wrap=True)
        for label, value in rows:
            grid.add_row(label, value)
        grids.append(grid)
        table.add_column(ratio=1)
    if grids:
        table.add_row(*grids)
    return table


def _joined(rows: Rows) -> Text:
    """Rows as one line."""
    parts = [Text.assemble((f"{label} ", _LABEL), value) for label, value in rows]
    line = Text(" · ", _LABEL).join(parts)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _outcome(metrics: Mapping[str, float], first: Mapping[str, float]) -> Rows:
    rows = _rows(metrics, ("reward", "reward", number), ("success", "success", number))
    for label, key in (("held out, sampled", "eval/success_sampled"), ("held out, greedy", "eval/success_greedy")):
        if key in metrics:
            began = first.get(key, metrics[key])
            value = Text.assemble(
                (f"{number(began)} → ", _LABEL) if began != metrics[key] else "", number(metrics[key])
            )
            value.stylize(f"bold {_GOOD}", len(value) - len(number(metrics[key])))
            rows.append((label, value))
    return rows + _rows(metrics, ("groups all equal", "groups/all_equal", percent))


def _conduct(metrics: Mapping[str, float]) -> Rows:
    rows = _rows(metrics, ("turns", "num_turns", number), ("tool calls", "events/tool_calls", number))
    share = malformed_share(metrics)
    if share is not None:
        rows.append(("malformed", Text(percent(share), _WARNING if share > 0.05 else "default")))
    return rows


def _lockstep(metrics: Mapping[str, float]) -> Rows:
    rows = _rows(metrics, ("mismatch KL", "mismatch/kl", number), ("mismatch max", "mismatch/max_abs", number))
    if {"ratio/min", "ratio/max"} <= metrics.keys():
        shown = ratio_range(metrics["ratio/min"], metrics["ratio/max"])
        rows.append(("ratio", Text(shown, _GOOD if shown == "1 exactly" else "default")))
    return rows + _rows(metrics, ("clipped", "clip_fraction", percent))


def _update(metrics: Mapping[str, float]) -> Rows:
    return _rows(
        metrics,
        ("loss", "loss", number),
        ("entropy", "entropy", number),
        ("gradient norm", "grad_norm", number),
        ("learning rate", "lr", lambda value: f"{value:.1e}"),
    )


def _speed(metrics: Mapping[str, float]) -> Rows:
    rows: Rows = []
    for label, rate, time_s in (
        ("rollout", "tokens_per_s/rollout", "time/rollout_s"),
        ("train", "tokens_per_s/train", "time/train_s"),
        ("step", "tokens_per_s/step", "time/step_s"),
    ):
        shown = [f"{count(metrics[rate])} tok/s"] if rate in metrics else []
        shown += [f"{metrics[time_s]:.2f} s"] if time_s in metrics else []
        if shown:
            rows.append((label, Text(" ".join(shown))))
    return rows


def _stops(metrics: Mapping[str, float]) -> Rows:
    """Failures come first, so that a narrow terminal does not cut them off; then what is most frequent."""
    fractions = {key.removeprefix("stop/"): value for key, value in metrics.items() if key.startswith("stop/")}
    ordered = sorted(fractions.items(), key=lambda item: (not _is_failure(item[0]), -item[1], item[0]))
    return [
        (printable(reason), Text(percent(fraction), _WARNING if _is_failure(reason) else "default"))
        for reason, fraction in ordered
        if fraction > 0
    ][:4]


def _is_failure(reason: str) -> bool:
    return reason.endswith("_error")


def _rows(metrics: Mapping[str, float], *wanted: tuple[str, str, Callable[[float], str]]) -> Rows:
    return [(label, Text(show(metrics[key]))) for label, key, show in wanted if key in metrics]
