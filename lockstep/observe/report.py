"""What a run prints at its end: a before/after table, a few trajectories to read, and where everything was written.

What models and tools wrote is text, never markup: nothing in it can colour, hide or move anything on the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lockstep.observe.formats import number, printable
from lockstep.types import Message, Trajectory

_LABEL = "bright_black"
_LONGEST_LINES = 10
_LONGEST_OPENING_LINES = 3
_LONGEST_CHARACTERS = 600

# Metric (without 'eval/' or 'events/'), its row's label, and which direction is better: 1 up, -1 down, 0 neither.
_ROWS: tuple[tuple[str, str, int], ...] = (
    ("success_sampled", "held-out success, sampled", 1),
    ("success_greedy", "held-out success, greedy", 1),
    ("reward", "reward", 1),
    ("tool_calls", "tool calls per trajectory", 0),
    ("malformed", "malformed calls per trajectory", -1),
    ("num_turns", "turns per trajectory", 0),
    ("num_tokens", "tokens per trajectory", 0),
)


def print_report(
    console: Console,
    *,
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    trajectories: Sequence[Trajectory],
    paths: Mapping[str, Path],
    columns: tuple[str, str] = ("after cold start", "after RL"),
) -> None:
    """Print the whole report.

    before, after: evaluation numbers by metric name; `before` is None where there was no cold start to compare with.
    trajectories: of the last evaluation; three of them are shown. paths: what was written, by what it is.
    """
    console.print()
    console.print(before_after(before, after, columns=columns))
    for index, trajectory in enumerate(sample_trajectories(trajectories)):
        console.print()
        print_trajectory(console, trajectory, opening=index == 0)
    console.print()
    width = max(map(len, paths), default=0)
    for what, path in paths.items():
        # Printed as one unbroken line: a wrapped path cannot be copied.
        console.print(Text.assemble((f"{what:<{width}}  ", _LABEL), printable(str(path))), soft_wrap=True)


def before_after(before: Mapping[str, float] | None, after: Mapping[str, float], *, columns: tuple[str, str]) -> Table:
    """One row a metric: its value before, after, and the change, green where that is for the better.

    Metrics without a label of their own stand under their names, after the others.
    """
    old, new = _bare(before or {}), _bare(after)
    known = [row for row in _ROWS if row[0] in old or row[0] in new]
    others = sorted((old.keys() | new.keys()) - {name for name, _, _ in known})
    table = Table(header_style="bold", border_style=_LABEL, box=box.ROUNDED)
    table.add_column("")
    for title in columns if before is not None else columns[1:]:
        table.add_column(title, justify="right")
    if before is not None:
        table.add_column("change", justify="right")
    for name, label, better in (*known, *((name, name, 0) for name in others)):
        values = [Text(number(each[name]) if name in each else "-") for each in (old, new)]
        if before is None:
            table.add_row(Text(label), values[1])
        else:
            table.add_row(Text(label), *values, _change(old.get(name), new.get(name), better))
    return table


def sample_trajectories(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Up to three that are worth reading: one won, one lost, and one with a malformed call or else the longest left.

    Won is the highest reward among those that are not masked, lost the lowest; first come, first shown.
    """
    left = [each for each in trajectories if each.error is None] or list(trajectories)
    choices: tuple[Callable[[list[Trajectory]], Trajectory], ...] = (
        lambda some: max(some, key=lambda each: each.reward),
        lambda some: min(some, key=lambda each: each.reward),
        lambda some: max(some, key=lambda each: (_has_malformed(each), len(each.turns))),
    )
    chosen: list[Trajectory] = []
    for choose in choices:
        if left:
            chosen.append(choose(left))
            left = [each for each in left if each is not chosen[-1]]
    return chosen


def print_trajectory(console: Console, trajectory: Trajectory, *, opening: bool = True) -> None:
    """Print a conversation, who speaks on the left; long texts are cut, and say so.

    opening: also the system and developer messages, which siblings have in common.
    """
    facts = f"reward {number(trajectory.reward)}  {trajectory.stop_reason}  {len(trajectory.turns)} turns  "
    facts += f"{trajectory.num_tokens} tokens"
    title = Text.assemble((printable(trajectory.task.id), "bold"), "  ", (facts, _LABEL))
    console.print(Rule(title, align="left", style=_LABEL))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=9)
    table.add_column()
    encoding = console.encoding
    for message in trajectory.messages:
        instructs = message.role in ("system", "developer")
        if instructs and not opening:
            continue
        who, style = _speaker(message)
        text = _cut(message.content, _LONGEST_OPENING_LINES if instructs else _LONGEST_LINES, encoding, style)
        address = message.recipient or message.name
        if address is not None:
            text = Text.assemble((f"{printable(address, encoding)}  ", _LABEL), text)
        table.add_row(Text(who, f"bold {style}"), text)
    if trajectory.error is not None:
        table.add_row(Text("masked", "bold red"), _cut(trajectory.error, _LONGEST_LINES, encoding, "red"))
    console.print(table)


def _bare(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key.removeprefix("eval/").removeprefix("events/"): value for key, value in metrics.items()}


def _change(old: float | None, new: float | None, better: int) -> Text:
    if old is None or new is None:
        return Text("-")
    change = new - old
    style = "default" if change * better == 0 else "green" if change * better > 0 else "red"
    return Text(f"+{number(change)}" if change > 0 else number(change), style)


def _has_malformed(trajectory: Trajectory) -> bool:
    return any(count > 0 for event, count in trajectory.events.items() if event.startswith("malformed"))


def _speaker(message: Message) -> tuple[str, str]:
    """Who speaks, in one word, and the style of what it says."""
    if message.role == "assistant":
        if message.recipient is not None:
            return "call", "yellow"
        return {"analysis": ("analysis", "magenta"), "commentary": ("preamble", "default")}.get(
            message.channel or "", ("final", "green")
        )
    return message.role, {"user": "cyan", "tool": "blue"}.get(message.role, _LABEL)


def _cut(content: str, num_lines: int, encoding: str, style: str) -> Text:
    """As much of `content` as a report has room for, and how much is missing."""
    lines = printable(content[:_LONGEST_CHARACTERS], encoding).split("\n")
    kept = "\n".join(lines[:num_lines])
    hidden = len(content) - min(len(content), _LONGEST_CHARACTERS) + sum(len(line) + 1 for line in lines[num_lines:])
    return Text.assemble((kept, style), (f" [{hidden} more characters]" if hidden else "", f"italic {_LABEL}"))
