"""A session's steps: what is counted, which alarms are said, and which trajectories are kept to be looked at."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.learner.report import Report
from lockstep.observe.alarms import Alarms
from lockstep.observe.recorder import Recorder, read_metrics, read_trajectories
from lockstep.options import load_recipe
from lockstep.rollout.collector import Collected
from lockstep.session import Session
from lockstep.types import Group, InvariantError
from tests.learner.made import ONE, TASK, trajectory

RUN = load_recipe(Path(__file__).with_name("quick_recipe.py"))["run"]


class Display:
    def __init__(self):
        self.messages, self.shown = [], []

    def message(self, text):
        self.messages.append(text)

    def update(self, step, metrics):
        self.shown.append(metrics)


@pytest.fixture
def session(tmp_path):
    unused: Any = None
    display: Any = Display()
    with Recorder(tmp_path, tensorboard=False) as recorder:
        yield Session(run=RUN, parts=unused, directory=tmp_path, model=unused, recorder=recorder, display=display)


def group(number, *rewards):
    """A reward of None is a masked trajectory's."""
    generator = np.random.default_rng(0)
    found = [trajectory(f"0/{number}/{i}", ONE, reward or 0.0, generator) for i, reward in enumerate(rewards)]
    masked = [t if r is not None else dataclasses.replace(t, error="down") for t, r in zip(found, rewards, strict=True)]
    return Group(task=TASK, trajectories=tuple(masked))


def names(groups):
    return [t.id for each in groups for t in each.trajectories]


def saved(session):
    return {recorded.trajectory.id for recorded in read_trajectories(session.directory, split="alarm")}


def report(kind="surprise", **scores):
    return Report(metrics={}, scores={kind: scores})


def test_what_is_rejected_is_counted(session):
    """Of 8 trajectories 3 are masked; the others' rewards are 1, 0, 0, 0, 0; one of four groups has a signal."""
    kept, rejected = [group(0, 1.0, 0.0)], [group(1, None, None), group(2, 0.0, 0.0), group(3, None, 0.0)]
    metrics = session.record(1, Collected(groups=kept, rejected=rejected, rounds=3), {"loss": 0.5})
    assert (metrics["masked"], metrics["reward"], metrics["success"]) == (3 / 8, 0.2, 0.2)
    assert (metrics["groups/all_equal"], metrics["groups/rejected"], metrics["groups/rounds"]) == (0.75, 3, 3)
    assert metrics["loss"] == 0.5
    assert session.display.shown == [metrics]
    (line,) = read_metrics(session.directory)
    assert line["masked"] == 3 / 8
    for split, groups in (("train", kept), ("rejected", rejected)):
        assert [r.trajectory.id for r in read_trajectories(session.directory, split=split)] == names(groups)


def test_the_masked_are_kept_when_too_many_are(session):
    """They have no scores: those are of what was trained on."""
    groups = [group(0, *[1.0] * 8), group(1, *[None] * 8)]
    session.watch(1, groups, {"masked": 0.5}, report(**{"0/0/0": 5.0, "0/0/1": 4.0}))
    assert saved(session) == {"0/1/0", "0/1/1"}
    assert len(session.display.messages) == 1


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1 * i for i in range(12)], {9, 10, 11}),
        (range(64), set(range(56, 64))),
        ([3.0, 1.0, 2.0], {0}),
        ([0.0] * 7 + [0.1] + [0.0] * 32, {7}),
        ([0.0] * 12, set()),
    ],
)
def test_the_worst_quarter_is_kept_at_most_eight_and_none_without_a_score(session, scores, expected):
    groups = [group(0, *[1.0] * len(scores))]
    session.watch(1, groups, {"mismatch/kl": 0.01}, report("mismatch", **dict(zip(names(groups), scores, strict=True))))
    assert saved(session) == {f"0/0/{i}" for i in expected}
    assert len(session.display.messages) == 1


def test_an_alarm_that_stops_is_said_once(session):
    """At the end of the run, without the warning on the same metric; another one is shown."""
    session.run = dataclasses.replace(RUN, alarms=Alarms(patience=1))
    groups = [group(0, 1.0, 0.0, None)]
    metrics = {"mismatch/kl": 9.0, "masked": 1 / 3}
    with pytest.raises(InvariantError, match=r"step 1: mismatch/kl is 9, above 0\.1"):
        session.watch(1, groups, metrics, report("mismatch", **{"0/0/1": 9.0}))
    (message,) = session.display.messages
    assert message.startswith("step 1: masked is 0.3333")
    assert saved(session) == {"0/0/1", "0/0/2"}
