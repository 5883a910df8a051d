"""The learning curves of one or several runs, as a picture for a README. Needs the optional package matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.observe.recorder import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of a brightness between those of GitHub's light and dark pages, and apart for colour-blind eyes.
_COLOURS = ("#3b8eea", "#e07b39", "#2fa37c", "#b07aa1", "#d4a017", "#cf5c6b")
_INK = "#808890"
# Metric, legend, marker, whether it is filled.
_HELD_OUT = (
    ("eval/success_sampled", "held out, sampled", "o", True),
    ("eval/success_greedy", "held out, greedy", "D", False),
)

Points = list[tuple[float, float]]


def plot_learning_curve(run_directories: Sequence[Path], png: Path) -> Path:
    """Draw success (reward where no success was recorded) against RL steps, one line a run, and held-out points.

    The line is smoothed, the values themselves lie faintly behind it. A run is called by its directory's name.
    Raises ValueError for a run without RL steps, ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a learning curve needs the package 'matplotlib': pip install matplotlib") from error
    runs = [[line for line in read_metrics(run) if line["phase"] != "sft"] for run in run_directories]
    key = "success" if all(_points(lines, "success") for lines in runs) else "reward"
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (directory, lines) in enumerate(zip(run_directories, runs, strict=True)):
        points = _points(lines, key)
        if not points:
            raise ValueError(f"{directory}: its metrics have no RL step with {key!r}; nothing to draw")
        colour = _COLOURS[index % len(_COLOURS)]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, _smoothed(values), color=colour, linewidth=2, label=Path(directory).name)
        for metric, _, marker, filled in _HELD_OUT:
            _mark(axes, _points(lines, metric), marker, colour, filled=filled)
    # The markers mean the same in each run: one legend entry each, in the ink's colour.
    for metric, label, marker, filled in _HELD_OUT:
        if any(_points(lines, metric) for lines in runs):
            _mark(axes, [(math.nan, math.nan)], marker, _INK, filled=filled, label=label)
    _finish(axes, key)
    png = Path(png)
    temporary = png.with_name(f".{png.name}.tmp")
    figure.savefig(temporary, dpi=160, transparent=True, format="png")
    return temporary.replace(png)


def _mark(axes: Axes, points: Points, marker: str, colour: str, *, filled: bool, label: str | None = None) -> None:
    face = colour if filled else "none"
    x, y = [step for step, _ in points], [value for _, value in points]
    axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6.5, clip_on=False, zorder=3, label=label)


def _finish(axes: Axes, key: str) -> None:
    axes.set_xlabel("RL step", color=_INK)
    axes.set_ylabel(key, color=_INK)
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="y", color=_INK, alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    if low > -0.1 and high <= 1.1:
        axes.set_ylim(0, 1)
    axes.legend(frameon=False, labelcolor=_INK, loc="lower right")


def _points(lines: Sequence[dict], key: str) -> Points:
    return [(line["step"], line[key]) for line in lines if key in line and not math.isnan(line[key])]


def _smoothed(values: Sequence[float], width: float = 3.0) -> list[float]:
    """The mean over neighbouring steps under a Gaussian of `width` steps; centred, so that the line lags nowhere."""
    smooth = []
    for centre in range(len(values)):
        near = range(max(0, centre - int(3 * width)), min(len(values), centre + int(3 * width) + 1))
        weights = [math.exp(-0.5 * ((i - centre) / width) ** 2) for i in near]
        smooth.append(sum(weight * values[i] for weight, i in zip(weights, near, strict=True)) / sum(weights))
    return smooth
