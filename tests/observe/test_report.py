"""The closing report and the learning curve."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from lockstep.observe.plot import plot_learning_curve
from lockstep.observe.recorder import Recorder
from lockstep.observe.report import print_report, print_trajectory, sample_trajectories


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def report(before: dict[str, float] | None, after: dict[str, float]) -> list[str]:
    console = terminal()
    print_report(console, before=before, after=after, trajectories=[], paths={"metrics": Path("runs/x/metrics.jsonl")})
    return console.file.getvalue().splitlines()


def test_before_after_golden() -> None:
    before = {"eval/success_sampled": 0.25, "eval/malformed": 0.5, "eval/num_tokens": 143.0}
    after = {"eval/success_sampled": 0.86, "eval/malformed": 0.625, "eval/num_tokens": 151.0, "eval/own": 3.0}
    assert report(before, after) == [
        "",
        "╭────────────────────────────────┬──────────────────┬──────────┬────────╮",
        "│                                │ after cold start │ after RL │ change │",
        "├────────────────────────────────┼──────────────────┼──────────┼────────┤",
        "│ held-out success, sampled      │            0.250 │    0.860 │ +0.610 │",
        "│ malformed calls per trajectory │            0.500 │    0.625 │ +0.125 │",
        "│ tokens per trajectory          │              143 │      151 │  +8.00 │",
        "│ own                            │                - │     3.00 │      - │",
        "╰────────────────────────────────┴──────────────────┴──────────┴────────╯",
        "",
        "metrics  runs/x/metrics.jsonl",
    ]


def test_without_a_before_there_is_one_column() -> None:
    shown = "\n".join(report(None, {"events/tool_calls": 2.5}))
    assert "after RL" in shown and "2.50" in shown
    assert "cold start" not in shown and "change" not in shown


def test_better_is_green_and_worse_is_red() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    numbers = {"eval/success_greedy": 0.5, "eval/malformed": 0.5}
    worse = {"eval/success_greedy": 0.25, "eval/malformed": 0.25}
    print_report(console, before=numbers, after=worse, trajectories=[], paths={})
    shown = console.file.getvalue()
    assert "\x1b[31m-0.250" in shown and "\x1b[32m-0.250" in shown


def test_samples_are_one_won_one_lost_and_one_malformed(trajectory) -> None:
    won, also_won = trajectory("won"), trajectory("also won")
    lost = trajectory("lost", reward=0.0)
    malformed = trajectory("malformed", reward=0.5, events={"malformed/bad_json": 1})
    masked = trajectory("masked", reward=9.0, error="engine died", stop_reason="engine_error")
    assert sample_trajectories([masked, also_won, won, malformed, lost]) == [also_won, lost, malformed]
    assert sample_trajectories([won, also_won]) == [won, also_won]
    assert sample_trajectories([masked]) == [masked]
    assert sample_trajectories([]) == []


def test_model_text_is_never_markup(trajectory) -> None:
    console = terminal()
    print_trajectory(console, trajectory(final="[red]36[/red] [/] [link=x]\x1b[2J", error="died [/]"))
    shown = console.file.getvalue()
    assert "final      [red]36[/red] [/] [link=x]␛[2J" in shown and "masked     died [/]" in shown
    assert "call       functions.calculator  {" in shown and "tool       functions.calculator  36" in shown
    assert "\x1b" not in shown


def test_long_text_is_cut_and_says_so(trajectory) -> None:
    console = terminal(width=200)
    print_trajectory(console, trajectory(final="x" * 1000))
    print_trajectory(console, trajectory(final="\n".join("abcd" for _ in range(20))))
    shown = console.file.getvalue()
    assert "[400 more characters]" in shown.replace("\n", " ")
    assert "[50 more characters]" in shown and shown.count("abcd") == 10


def test_a_learning_curve_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for seed in (0, 1):
        with Recorder(tmp_path / f"seed{seed}", tensorboard=False) as recorder:
            recorder.write_metrics(1, "sft", {"loss": 1.0, "success": 0.0})
            recorder.write_metrics(0, "eval", {"eval/success_sampled": 0.25})
            for step in range(1, 5):
                recorder.write_metrics(step, "rl", {"success": step / 4, "reward": step})
    png = plot_learning_curve([tmp_path / "seed0", tmp_path / "seed1"], tmp_path / "curve.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    with Recorder(tmp_path / "empty", tensorboard=False) as recorder:
        recorder.write_metrics(1, "sft", {"success": 0.5, "reward": 0.5})
    with pytest.raises(ValueError, match="no RL step"):
        plot_learning_curve([tmp_path / "empty"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
