"""Model-like garbage at the boundary of VerifyIf: every action is answered, every ending graded, nothing raises."""

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.environments.verifyif import VerifyIf
from lockstep.rollout.environment import checked_score
from lockstep.types import Message, Task
from tests.environments.instructions.test_instruction import INSTRUCTIONS, RESPONSES

ENVIRONMENTS = [
    VerifyIf(data=Path("none"), mode=mode, partial=partial) for mode in ("strict", "loose") for partial in (True, False)
]
CHANNELS = st.sampled_from(["final", "analysis", "commentary", None])
SPOKEN = st.builds(lambda text, channel: Message(role="assistant", channel=channel, content=text), RESPONSES, CHANNELS)
CALLS = st.builds(
    lambda name, text: Message(role="assistant", channel="commentary", recipient=name, content=text),
    st.one_of(st.sampled_from(["functions.python", "functions.", "", "python"]), RESPONSES),
    RESPONSES,
)
ACTIONS = st.lists(st.one_of(SPOKEN, SPOKEN, CALLS), min_size=1, max_size=2)


async def trajectory(environment, task, action, truncated) -> None:
    start = await environment.start(task)
    step = await environment.step(start.state, action)
    called = sum(message.recipient is not None for message in action)
    assert (step.done, len(step.messages)) == (called == 0, called)
    for message in step.messages:
        message.content.encode()
    score = checked_score(await environment.reward(start.state, [*start.messages, *action, *step.messages], truncated))
    assert 0.0 <= score.parts["followed"] <= 1.0 and score.measures["strict_all"] <= score.measures["loose_all"]
    if truncated or called:
        assert score.parts["followed"] == 0.0
    await environment.close(start.state)


def check(seed, action, truncated) -> None:
    random_ = random.Random(seed)
    instructions = tuple(random_.sample(INSTRUCTIONS, 3))
    task = Task(id="fuzz", messages=(Message(role="user", content="?"),), data={"instructions": instructions})
    asyncio.run(trajectory(random_.choice(ENVIRONMENTS), task, action, truncated))


def fuzz(cases: int):
    calm = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=cases, deadline=None, suppress_health_check=calm, database=None)


@fuzz(300)
@given(st.integers(0, 10**6), ACTIONS, st.booleans())
def test_garbage_never_raises_out_of_the_boundary(seed, action, truncated):
    check(seed, action, truncated)


@pytest.mark.slow
@fuzz(20_000)
@given(st.integers(0, 10**6), ACTIONS, st.booleans())
def test_much_garbage_never_raises_out_of_the_boundary(seed, action, truncated):
    """As many actions as trajectories: one ends each."""
    check(seed, action, truncated)
