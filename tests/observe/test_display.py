"""The plain lines, word for word, and the live picture: what it shows, what it leaves out, that it fits."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lockstep.observe.display import open_display
from lockstep.observe.live import LiveDisplay
from lockstep.observe.plain import PlainDisplay
from lockstep.observe.progress import Progress, malformed_share

RL = {
    "reward": 0.4125,
    "success": 0.5,
    "loss": -0.0021,
    "entropy": 0.8312,
    "grad_norm": 0.5234,
    "lr": 6e-4,
    "mismatch/kl": 1.3e-7,
    "mismatch/max_abs": 2.1e-5,
    "ratio/min": 1.0,
    "ratio/max": 1.0,
    "clip_fraction": 0.0,
    "tokens_per_s/rollout": 7513.0,
    "tokens_per_s/train": 10240.0,
    "tokens_per_s/step": 4211.0,
    "groups/all_equal": 0.25,
    "events/tool_calls": 2.5,
    "events/malformed": 0.25,
    "stop/done": 0.97,
    "stop/length": 0.03,
    "stop/max_turns": 0.0,
    "num_turns": 3.6,
    "time/rollout_s": 1.42,
    "time/train_s": 0.91,
}


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def picture(display: LiveDisplay, width: int, height: int) -> str:
    """What the display draws now, without its colours."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    display._console = console
    console.print(display._picture())
    return console.file.getvalue()


def full_live_display(clock: Clock) -> LiveDisplay:
    display = LiveDisplay("ledger", console=Console(file=io.StringIO()), clock=clock)
    display.phase("cold start", 4)
    for step in range(1, 5):
        clock.now_s += 30
        display.update(step, {"loss": 2 / step, "lr": 1e-3})
    display.phase("rl", 120)
    display.update(0, {"eval/success_sampled": 0.25, "eval/success_greedy": 0.62})
    for step in range(1, 41):
        clock.now_s += 2
        display.update(step, RL | {"reward": step / 50})
    display.update(40, {"eval/success_sampled": 0.8125, "eval/success_greedy": 0.9})
    return display


def test_plain_lines_golden() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainDisplay("ledger", stream=stream, clock=clock) as display:
        display.phase("sft", 400)
        clock.now_s += 1.5
        display.update(1, {"loss": 6.2512, "lr": 7.5e-5, "grad_norm": 12.345, "tokens_per_s/train": 10240})
        clock.now_s += 58.5
        display.update(40, {"loss": 0.8125, "lr": 1.5e-3, "grad_norm": 0.5, "tokens_per_s/train": 940})
        display.phase("rl", 120)
        clock.now_s += 5
        display.update(0, {"eval/success_sampled": 0.25, "eval/success_greedy": 0.62})
        clock.now_s += 2
        display.update(1, RL)
        clock.now_s += 2
        display.update(2, RL | {"reward": -1.0, "ratio/max": 1.00002, "clip_fraction": 0.0123})
        display.message("checkpoint written")
    assert stream.getvalue().splitlines() == [
        "ledger: sft, 400 steps",
        "sft   1/400  loss  6.2512  lr 7.5e-05  grad    12.3  tok/s 10.2k   0:01  eta 9:58",
        "sft  40/400  loss  0.8125  lr 1.5e-03  grad   0.500  tok/s   940   1:00  eta 9:00",
        "ledger: sft ended at step 40/400 after 1:00",
        "ledger: rl, 120 steps",
        "rl   0/120  heldout sampled 0.250  greedy 0.620   0:05",
        "rl   1/120  reward  0.412  success 0.500  entropy 0.831  grad   0.523  kl   1e-07  ratio 1 exactly"
        "  clip   0%  bad  6.9%  tok/s  4.2k   0:07  eta 3:58",
        "rl   2/120  reward -1.000  success 0.500  entropy 0.831  grad   0.523  kl   1e-07  ratio 1..1.00002"
        "  clip 1.2%  bad  6.9%  tok/s  4.2k   0:09  eta 3:56",
        "checkpoint written",
        "ledger: rl ended at step 2/120 after 0:09",
    ]


def test_plain_lines_are_ascii_without_control_characters() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with PlainDisplay("[red]é", stream=stream, clock=Clock()) as display:
        display.phase("rl", 10)
        display.update(1, RL)
        display.message("50%\r100% \x1b[2J[/]")
    text = raw.getvalue().decode("ascii")
    assert "\r" not in text and "\x1b" not in text
    assert "[red]\\xe9: rl, 10 steps" in text and "[2J[/]" in text


@pytest.mark.parametrize("force_color", ["", "1"])
def test_a_pipe_gets_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, force_color: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", force_color)
    with open_display("ledger") as display:
        display.phase("rl", 3)
    assert isinstance(display, PlainDisplay)
    assert capsys.readouterr().out.startswith("ledger: rl, 3 steps\n")


@pytest.mark.parametrize("make", [PlainDisplay, lambda title: LiveDisplay(title, console=Console())])
def test_an_update_needs_a_phase(make) -> None:
    with pytest.raises(RuntimeError, match=r"display\.phase"):
        make("ledger").update(1, {})


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_picture_fits_and_shows_everything(width: int, height: int) -> None:
    clock = Clock()
    shown = picture(full_live_display(clock), width, height)
    lines = shown.splitlines()
    assert len(lines) < height and {len(line) for line in lines} == {width}
    for text in (
        "✓ cold start  4/4 steps  2:00  loss 0.500",
        "40/120  1:20 elapsed  2:40 left",
        "0.250 → 0.812",
        "0.620 → 0.900",
        "1 exactly",
        "1.3e-07",
        "7.5k tok/s 1.42 s",
        "10.2k tok/s 0.91 s",
        "malformed         6.9%",
        "97.0%",
    ):
        assert text in shown
    assert "max_turns" not in shown  # never happened
    assert "…" not in shown


def test_missing_metrics_have_no_row() -> None:
    display = LiveDisplay("ledger", console=Console(file=io.StringIO()), clock=Clock())
    assert "reward" not in picture(display, 80, 24)
    display.phase("sft", 0)
    assert "reward" not in picture(display, 80, 24)
    display.update(1, {"loss": 0.5, "events/tool_calls": 1.0, "ratio/min": 1.0})
    shown = picture(display, 80, 24)
    assert "loss" in shown and "tool calls" in shown
    for absent in ("reward", "ratio", "malformed", "tok/s", "held out", "nan"):
        assert absent not in shown


def test_a_new_phase_keeps_only_held_out_numbers() -> None:
    display = LiveDisplay("ledger", console=Console(file=io.StringIO()), clock=Clock())
    display.phase("sft", 1)
    display.update(1, {"grad_norm": 0.5, "eval/success_greedy": 0.625})
    display.phase("rl", 1)
    shown = picture(display, 80, 24)
    assert "0.625" in shown and "gradient" not in shown


def test_a_narrow_live_display_shows_failures_before_frequent_stops() -> None:
    display = LiveDisplay("ledger", console=Console(file=io.StringIO()), clock=Clock())
    display.phase("rl", 2)
    stops = {"stop/done": 0.5, "stop/length": 0.29, "stop/max_turns": 0.2, "stop/infrastructure_error": 0.01}
    display.update(1, stops)
    shown = picture(display, 80, 24)
    assert shown.index("infrastructure_error 1.0%") < shown.index("done 50.0%")


def test_the_live_display_takes_text_as_text() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=24, color_system=None)
    with LiveDisplay("[red]x[/]", console=console) as display:
        display.phase("[bold]", 2)
        display.update(1, {"reward": 0.5, "stop/[/]": 1.0})
        display.message("said [/] and [blink]\x1b[2J")
    shown = file.getvalue()
    assert "said [/] and [blink]␛[2J" in shown and "\x1b[2J" not in shown
    assert "[red]x[/]" in shown and "[bold]" in shown and "[/] 100.0%" in shown


def test_the_curve_spans_the_whole_phase() -> None:
    display = LiveDisplay("ledger", console=Console(file=io.StringIO()), clock=Clock())
    display.phase("rl", 8)
    for step, reward in ((1, 0.0), (2, 0.5), (3, 1.0), (4, 1.0)):
        display.update(step, {"reward": reward})
    top, bottom = (line[13:-9] for line in picture(display, 84, 24).splitlines()[3:5])
    assert len(top) == 62
    # Half of the steps fill half of the width; 0 draws its one eighth; 0.5 fills the lower of the two rows.
    assert set(bottom[31:]) == {" "} and set(bottom[:7]) == {"▁"} and set(bottom[16:31]) == {"█"}
    assert set(top[:15]) == {" "} and set(top[16:31]) == {"█"}


def test_remaining_time_is_of_recent_steps_and_leaves_evaluations_out() -> None:
    progress = Progress("rl", 100, 0.0, {})
    progress.update(0, {}, 50.0)  # an evaluation before the first step
    assert progress.remaining_s(50.0) is None
    for step in range(1, 11):
        progress.update(step, {}, 50.0 + 2 * step)
    progress.update(10, {}, 100.0)  # one after the tenth
    assert progress.remaining_s(100.0) == pytest.approx(180)
    assert progress.remaining_s(101.0) == pytest.approx(179)
    resumed = Progress("rl", 100, 0.0, {})
    resumed.update(51, {}, 4.0)
    assert resumed.remaining_s(4.0) == pytest.approx(49 * 4)


def test_malformed_share_is_of_all_actions_or_calls() -> None:
    for turns, calls, malformed, share in ((2.75, 0.875, 1.0, 1 / 2.75), (1.0, 4.0, 1.0, 0.25), (0.0, 0.0, 0.0, 0.0)):
        counts = {"num_turns": turns, "events/tool_calls": calls, "events/malformed": malformed}
        assert malformed_share(counts) == share
    assert malformed_share({"events/tool_calls": 0.0}) is None
