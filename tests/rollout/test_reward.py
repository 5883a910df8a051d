"""Rewards of named parts: weighted, measured, each limited in time, and never a 0 for a grader that failed."""

import asyncio
import threading

import pytest

from lockstep.rollout.reward import Ending, Reward, RewardFault, Score, score
from lockstep.rollout.tool import InfrastructureError
from lockstep.types import Message, Task, UserError

ENDING = Ending(task=Task(id="t", messages=(Message(role="user", content="Go."),)), answer="four", messages=())


def scored(*rewards) -> Score:
    return asyncio.run(score(ENDING, rewards))


def length(ending):
    return len(ending.answer)


async def later(ending):
    await asyncio.sleep(0)
    return 0.5


def test_parts_are_weighted_and_named():
    assert scored(Reward("length", length, weight=0.25), Reward("later", later)) == Score(
        parts={"length": 1.0, "later": 0.5}
    )


def test_a_part_without_weight_is_a_measure():
    assert scored(Reward("later", later), Reward("length", length, weight=0.0)) == Score(
        parts={"later": 0.5}, measures={"length": 4.0}
    )


def test_a_plain_function_may_give_an_awaitable():
    assert scored(Reward("later", lambda ending: later(ending), weight=2.0)).parts == {"later": 1.0}


def test_a_part_that_raises_is_named():
    def fails(ending):
        raise KeyError("rubric")

    with pytest.raises(RewardFault, match="reward 'style' raised KeyError: 'rubric'") as caught:
        scored(Reward("length", length), Reward("style", fails))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_part_that_is_no_number_is_named():
    with pytest.raises(RewardFault, match="reward 'style' raised TypeError"):
        scored(Reward("style", lambda ending: None))  # pyright: ignore


def test_a_part_that_hangs_is_late():
    release = threading.Event()
    with pytest.raises(RewardFault, match=r"reward 'slow' did not finish within 0.01 s; raise its timeout_s"):
        scored(Reward("slow", lambda ending: release.wait(), timeout_s=0.01))
    release.set()


def test_infrastructure_that_fails_is_no_fault_of_the_part():
    async def judge(ending):
        raise InfrastructureError("no judge")

    with pytest.raises(InfrastructureError, match="no judge"):
        scored(Reward("judge", judge))


def test_a_name_stands_for_one_part():
    with pytest.raises(ValueError, match="two rewards are named 'a'"):
        scored(Reward("a", length), Reward("b", length), Reward("a", later))


@pytest.mark.parametrize("value", ["1e5", b"1", None])
def test_what_only_spells_a_number_is_none(value):
    with pytest.raises(RewardFault, match="reward 'style' raised TypeError"):
        scored(Reward("style", lambda ending: value))  # pyright: ignore


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
def test_a_reward_cannot_end_the_run(kind):
    async def leave(ending):
        raise kind

    with pytest.raises(RewardFault, match=f"reward 'style' raised RuntimeError: {kind.__name__}"):
        scored(Reward("style", leave))


def test_infrastructure_inside_a_group_is_seen():
    async def several(ending):
        async with asyncio.TaskGroup() as group:
            group.create_task(judge())
        return 1.0

    async def judge():
        raise InfrastructureError("no judge")

    with pytest.raises(InfrastructureError, match="no judge"):
        scored(Reward("judge", several))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": float("nan")}, r"Reward\('length', weight=nan\): must be a finite number"),
        ({"weight": "1"}, r"Reward\('length', weight='1'\): must be a finite number"),
        ({"weight": float("inf")}, "weight=inf"),
        ({"timeout_s": 0}, r"timeout_s=0\): must be above 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        Reward("length", length, **options)
