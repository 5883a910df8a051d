"""Trajectories for the tests of what is recorded and shown, as fixtures that make them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lockstep.types import Group, Message, StopReason, Task, Trajectory, Turn

TASK = Task(id="ledger/7", messages=(Message(role="user", content="12 boxes of 3?"),), data={"answer": 36})


def _trajectory(
    name: str = "t0",
    *,
    reward: float = 1.0,
    final: str = "36",
    num_turns: int = 2,
    stop_reason: StopReason = "done",
    error: str | None = None,
    events: dict[str, int] | None = None,
) -> Trajectory:
    """A calculator call and a final answer; log-probs are exact in float32, as an engine's are."""
    turns = tuple(
        Turn(context=(i, 2, 3), action=(4, 5), engine_logprobs=(-0.5, -1 - 2**-20), weights_version=i, restarts=i == 1)
        for i in range(num_turns)
    )
    call = Message(role="assistant", channel="commentary", recipient="functions.calculator", content='{"e":"12*3"}')
    answer = Message(role="tool", name="functions.calculator", content="36")
    last = Message(role="assistant", channel="final", content=final)
    return Trajectory(
        id=name,
        task=TASK,
        turns=turns,
        messages=(*TASK.messages, call, answer, last),
        reward=reward,
        reward_parts={"answer": reward, "format": 0.0},
        stop_reason=stop_reason,
        events={"tool_calls": 1} if events is None else events,
        measures={"brief": 0.25},
        error=error,
    )


@pytest.fixture
def trajectory() -> Callable[..., Trajectory]:
    return _trajectory


@pytest.fixture
def group() -> Callable[..., Group]:
    return lambda *trajectories: Group(task=TASK, trajectories=trajectories)
