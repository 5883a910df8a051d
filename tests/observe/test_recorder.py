"""Metrics, trajectories and TensorBoard events: written, read back, torn, and taken back for a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from lockstep.observe.recorder import Recorder, read_metrics, read_trajectories


def scalars(directory: Path) -> list[tuple[str, int, float]]:
    """Every scalar in a run's event files, as TensorBoard's own reader finds it, in the order written."""
    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        for event in LegacyEventFileLoader(str(path)).Load():
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


@pytest.fixture
def record_run(trajectory, group) -> Callable[[Recorder, range], None]:
    """What the loop writes in the given RL steps; the first comes after a cold start of three."""

    def record(recorder: Recorder, steps: range) -> None:
        if 1 in steps:
            for step in (1, 2, 3):
                recorder.write_metrics(step, "sft", {"loss": 1 / 2**step})
            recorder.write_metrics(0, "eval", {"eval/success_greedy": 0.0})
        for step in steps:
            recorder.write_trajectories(step, [group(trajectory(f"{step}-0"), trajectory(f"{step}-1", reward=0.0))])
            recorder.write_metrics(step, "rl", {"reward": step / 8, "mismatch/kl": 2.0**-step})
            if step % 2 == 0:
                recorder.write_trajectories(step, [group(trajectory(f"e{step}"))], split="heldout_greedy")
                recorder.write_metrics(step, "eval", {"eval/success_greedy": step / 4})

    return record


def test_metrics_are_one_flushed_json_object_a_line(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "new" / "run", tensorboard=False)
    recorder.write_metrics(1, "sft", {"loss": 2})
    recorder.write_metrics(1, "rl", {"reward": 0.5, "grad_norm": math.nan, "loss": -math.inf})
    # Read before the recorder is closed: a killed run has lost nothing.
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"step": 1, "phase": "sft", "loss": 2.0}',
        '{"step": 1, "phase": "rl", "reward": 0.5, "grad_norm": null, "loss": null}',
    ]
    first, second = read_metrics(tmp_path / "new" / "run")
    assert first == {"step": 1, "phase": "sft", "loss": 2.0}
    assert math.isnan(second["grad_norm"]) and second["reward"] == 0.5


@pytest.mark.parametrize("key", ["step", "phase"])
def test_a_metric_may_not_take_a_reserved_name(tmp_path: Path, key: str) -> None:
    with Recorder(tmp_path, tensorboard=False) as recorder, pytest.raises(ValueError, match="rename"):
        recorder.write_metrics(1, "rl", {key: 1.0})
    assert read_metrics(tmp_path) == []


def test_a_torn_last_line_is_dropped_and_appending_after_it_is_safe(tmp_path: Path) -> None:
    with Recorder(tmp_path, tensorboard=False) as recorder:
        recorder.write_metrics(1, "rl", {"reward": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "phase": "rl", "rew')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    with Recorder(tmp_path, tensorboard=False) as recorder:
        recorder.write_metrics(2, "rl", {"reward": 0.75})
    assert [(line["step"], line["reward"]) for line in read_metrics(tmp_path)] == [(1, 0.5), (2, 0.75)]


def test_a_malformed_line_elsewhere_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "phase": "rl"}\n{"step": 2}\n{"step": 3, "phase": "rl"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_metrics(tmp_path)


def test_trajectories_come_back_as_they_were(tmp_path: Path, trajectory, group) -> None:
    won = trajectory("a")
    masked = trajectory("b", reward=0.0, stop_reason="engine_error", error="engine died", num_turns=0, events={})
    other = trajectory("c", reward=-0.5, events={"tool_calls": 2, "malformed/bad_json": 1})
    with Recorder(tmp_path, tensorboard=False) as recorder:
        path = recorder.write_trajectories(12, [group(won, masked), group(other)])
        rejected = recorder.write_trajectories(12, [group(other)], split="rejected")
    assert path == tmp_path / "trajectories" / "step_000012.parquet"
    assert rejected == tmp_path / "trajectories" / "step_000012.rejected.parquet"
    assert [each.name for each in path.parent.iterdir() if each.name.endswith(".tmp")] == []
    back = read_trajectories(tmp_path, split="train")
    assert [(each.step, each.split, each.group_id) for each in back] == [(12, "train", i) for i in (0, 0, 1)]
    for written, read in zip((won, masked, other), back, strict=True):
        assert read.trajectory.turns == written.turns
        assert read.trajectory.messages == written.messages
        assert read.trajectory.task.messages == written.task.messages
        for name in ("id", "reward", "reward_parts", "measures", "stop_reason", "events", "error"):
            assert getattr(read.trajectory, name) == getattr(written, name)
    assert [each.split for each in read_trajectories(tmp_path, step=12)] == ["train"] * 3 + ["rejected"]
    assert read_trajectories(tmp_path, step=11) == []


def test_text_that_is_no_utf8_does_not_stop_a_run(tmp_path: Path, trajectory, group) -> None:
    # json.loads('"\\ud800"'), of a model's arguments, gives a lone surrogate that a tool may echo.
    with Recorder(tmp_path, tensorboard=False) as recorder:
        recorder.write_trajectories(1, [group(trajectory(final="\ud800 é"))])
    assert read_trajectories(tmp_path)[0].trajectory.messages[-1].content == "\\ud800 é"


def test_a_split_cannot_leave_its_directory(tmp_path: Path, trajectory, group) -> None:
    with Recorder(tmp_path, tensorboard=False) as recorder, pytest.raises(ValueError, match="split"):
        recorder.write_trajectories(1, [group(trajectory())], split="../../evil")


def test_a_resumed_run_leaves_the_records_of_an_uninterrupted_one(tmp_path: Path, record_run) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with Recorder(whole, tensorboard=True) as recorder:
        record_run(recorder, range(1, 7))
    killed = Recorder(resumed, tensorboard=True)
    record_run(killed, range(1, 6))  # the checkpoint is of step 4; step 5 is lost, and the kill tears two files
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "pha')
    (resumed / "trajectories" / ".step_000009.parquet.tmp").write_bytes(b"PAR1 half")
    (events,) = (resumed / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-3])
    with Recorder(resumed, tensorboard=True) as recorder:
        recorder.truncate_after(4)
        record_run(recorder, range(5, 7))
    assert (resumed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert read_trajectories(resumed) == read_trajectories(whole)
    names = [sorted(path.name for path in (run / "trajectories").iterdir()) for run in (whole, resumed)]
    assert names[0] == names[1]
    assert scalars(resumed) == scalars(whole)
    assert ("sft/loss", 3, 0.125) in scalars(whole) and ("eval/success_greedy", 6, 1.5) in scalars(whole)


def test_resuming_in_the_cold_start_forgets_everything_later(tmp_path: Path, record_run) -> None:
    with Recorder(tmp_path, tensorboard=True) as recorder:
        record_run(recorder, range(1, 3))
        recorder.truncate_after(2, "sft")
        assert [(line["phase"], line["step"]) for line in read_metrics(tmp_path)] == [("sft", 1), ("sft", 2)]
        assert read_trajectories(tmp_path) == []
        assert scalars(tmp_path) == [("sft/loss", 1, 0.5), ("sft/loss", 2, 0.25)]


def test_truncating_keeps_wall_times(tmp_path: Path) -> None:
    def wall_times() -> list[float]:
        (path,) = (tmp_path / "tensorboard").iterdir()
        return [event.wall_time for event in LegacyEventFileLoader(str(path)).Load() if event.summary.value]

    with Recorder(tmp_path, tensorboard=True) as recorder:
        for step in (1, 2, 3):
            recorder.write_metrics(step, "rl", {"reward": 0.0})
        before = wall_times()
        recorder.truncate_after(2)
        assert wall_times() == before[:2]


def test_the_configuration_is_written_whole(tmp_path: Path) -> None:
    with Recorder(tmp_path, tensorboard=False) as recorder:
        path = recorder.write_config({"seed": 1, "rollout": {"group_size": 8}})
    assert path == tmp_path / "config.json"
    assert json.loads(path.read_text()) == {"seed": 1, "rollout": {"group_size": 8}}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.json", "metrics.jsonl"]
