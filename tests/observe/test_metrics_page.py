"""docs/metrics.md has every metric and every alarm, and none that is not."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from lockstep.algorithm.metrics import (
    advantage_metrics,
    correction_metrics,
    entropy_metrics,
    mismatch_metrics,
    ratio_metrics,
    staleness_metrics,
    turn_metrics,
    value_metrics,
)
from lockstep.observe.alarms import Alarms
from lockstep.rollout.statistics import group_statistics, tool_statistics, trajectory_statistics, turn_statistics
from lockstep.types import Group

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of each row of its tables whose first one is code, the first without its quotes."""
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[row[0].strip().strip("`"), *map(str.strip, row[1:])] for row in found]


METRICS, ALARMS = (rows(part) for part in PAGE.split("\n## Alarms\n"))
PATTERNS = [row[0] for row in METRICS]

# What other parts of Lockstep write: train.py, session.py, sft.py, evaluate.py, learner/ and the recorder.
WRITTEN_ELSEWHERE = """step phase loss lr grad_norm routes/agreement update/epochs_done update/stopped_early
first_epoch/loss first_epoch/ratio/min first_epoch/clip_fraction/positive groups/rounds groups/rejected
eval/success_sampled eval/success_greedy time/rollout_s time/train_s
tokens_per_s/rollout tokens_per_s/train tokens_per_s/step critic/loss critic/grad_norm critic/clip_fraction
correction/masked_tokens covariance/selected
reference/kl reference/coefficient events/malformed/bad_json events/tool/error events/tool/timeout
events/tool/shortened events/engine_retries events/close_failed events/hints events/sandbox/restarts"""
ELSEWHERE = WRITTEN_ELSEWHERE.split()


def matches(pattern: str, name: str) -> bool:
    return re.fullmatch("[^/]+".join(map(re.escape, pattern.split("*"))), name) is not None


def documented(name: str) -> bool:
    """Whether the page has a row for a metric; eval/NAME and first_epoch/NAME have that of NAME."""
    names = {name, name.removeprefix("eval/"), name.removeprefix("first_epoch/")}
    return any(matches(pattern, each) for pattern in PATTERNS for each in names)


@pytest.fixture
def emitted(trajectory, group) -> dict[str, float]:
    """Every number that the functions of metrics and statistics can give."""
    logprobs, engine = -torch.rand(12), -torch.rand(12)
    turn = torch.arange(12) // 2
    sequence, advantages = torch.arange(12) % 3, torch.linspace(-1, 1, 12)
    clipped = logprobs > engine
    trajectories = [trajectory(), trajectory("t1", reward=0.0, num_turns=6)]
    groups = [dataclasses.replace(group(*trajectories), baseline=trajectory("greedy"))]
    assert isinstance(groups[0], Group)
    return (
        mismatch_metrics(logprobs, engine, sequence, 3)
        | correction_metrics(logprobs.exp(), clipped, sequence, 3, upper=2.0)
        | ratio_metrics(logprobs, engine, advantages, clipped)
        | advantage_metrics(advantages, sequence, 3)
        | entropy_metrics(-logprobs)
        | turn_metrics(turn, logprobs, engine, -logprobs)
        | value_metrics(logprobs, engine)
        | staleness_metrics(turn)
        | trajectory_statistics(trajectories, success_reward=1.0)
        | tool_statistics(trajectories)
        | turn_statistics(trajectories, max_action_tokens=8)
        | group_statistics(groups, success_reward=1.0)
    )


def test_the_page_has_every_metric(emitted) -> None:
    assert [name for name in (*emitted, *ELSEWHERE) if not documented(name)] == []
    assert documented("eval/events/tool_calls") and documented("turns/4+/kl")
    assert (
        not documented("mismatch/k2")
        and not documented("turns/0/kl/max")
        and not documented("eval")
        and not documented("last_epoch/loss")
    )


def test_every_row_is_of_a_metric_that_is_written(emitted) -> None:
    assert [p for p in PATTERNS if not any(matches(p, name) for name in (*emitted, *ELSEWHERE))] == []
    assert len(PATTERNS) == len(set(PATTERNS))


def test_every_row_has_all_its_cells() -> None:
    assert [row for row in METRICS + ALARMS if len(row) != 4 or not row[1]] == []


def test_the_page_has_every_alarm_with_its_default() -> None:
    defaults = {
        f.name: f.default if isinstance(f.default, str) else f"{f.default:g}" for f in dataclasses.fields(Alarms)
    }
    assert {row[0]: row[1] for row in ALARMS} == defaults


def test_alarms_are_about_metrics_that_the_page_has() -> None:
    assert [alarm.metric for alarm in Alarms().alarms() if not documented(alarm.metric)] == []
