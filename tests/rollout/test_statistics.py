"""Statistics of trajectories: counted by hand, and named by nobody but Lockstep and its tools."""

import asyncio
import dataclasses
import math

import pytest

from lockstep.rollout.environment import ToolEnvironment
from lockstep.rollout.statistics import group_statistics, tool_statistics, trajectory_statistics, turn_statistics
from lockstep.rollout.tool import ToolError, tool
from lockstep.types import Group, Message, StopReason, Task, Trajectory, Turn

TASK = Task(id="task", messages=(Message(role="user", content="?"),))


def made(
    *, reward=0.0, parts=None, lengths=(1,), restarts=(), answers=(), events=None, stop: StopReason = "done", error=None
):
    """lengths: of the actions. answers: (tool, text). restarts: turns that rewrote the history."""
    return Trajectory(
        id="t",
        task=TASK,
        turns=tuple(
            Turn(
                context=(1, 2),
                action=(3,) * n,
                engine_logprobs=(-1.0,) * n,
                weights_version=0,
                restarts=i in restarts,
            )
            for i, n in enumerate(lengths)
        ),
        messages=(*TASK.messages, *(Message(role="tool", name=name, content=text) for name, text in answers)),
        reward=reward,
        reward_parts=parts or {},
        stop_reason=stop,
        events=events or {},
        error=error,
    )


def group(*rewards, masked=(), baseline=None):
    siblings = [made(reward=r) for r in rewards] + [made(reward=r, error="broken") for r in masked]
    return Group(task=TASK, trajectories=tuple(siblings), baseline=baseline)


def test_trajectories_by_hand():
    """The masked one counts for everything but reward and success."""
    found = trajectory_statistics(
        [
            made(reward=1.0, parts={"right": 0.5, "brief": 0.5}, lengths=(1, 3), events={"tool_calls": 3}),
            made(reward=0.5, parts={"right": 0.5}, events={"tool_calls": 1, "malformed/a": 1, "malformed/b": 2}),
            made(reward=9.0, parts={"right": 9.0}, stop="engine_error", error="broken", lengths=()),
        ],
        success_reward=1.0,
    )
    assert found == pytest.approx(
        {
            "reward": 0.75,
            "success": 0.5,
            "reward/right": 0.5,
            "reward/brief": 0.25,
            "masked": 1 / 3,
            "num_turns": 1.0,
            "num_tokens": (4 + 4 + 3) / 3,
            "num_action_tokens": 5 / 3,
            "events/malformed": 1.0,
            "events/malformed/a": 1 / 3,
            "events/malformed/b": 2 / 3,
            "events/tool_calls": 4 / 3,
            "stop/done": 2 / 3,
            "stop/engine_error": 1 / 3,
        }
    )


def test_masked_alone_have_no_reward():
    found = trajectory_statistics([made(error="broken")], success_reward=1.0)
    assert found["masked"] == 1.0
    assert not {"reward", "success"} & found.keys()
    assert found["events/tool_calls"] == found["events/malformed"] == 0


def test_tools_by_hand():
    found = tool_statistics(
        [
            made(
                answers=[("functions.add", "3"), ("functions.add", "Error: too large."), ("functions.find", "Error?")],
                events={"tool_calls": 3, "tool/error": 1},
            ),
            made(answers=[("functions.add", "4")], events={"tool_calls": 2, "malformed/unknown_tool": 1}),
            made(answers=[("functions.add", "5")], events={"tool_calls": 3, "tool/timeout": 1}),
            made(),
        ]
    )
    assert found == pytest.approx(
        {
            "tools/add/calls": 1.0,
            "tools/add/errors": 0.25,
            "tools/find/calls": 0.25,
            "tools/find/errors": 0.0,
            "tools/failed": 0.25,
        }
    )


@tool(inline=True)
def halve(number: int) -> str:
    """Halve an even number."""
    if number % 2:
        raise ToolError(f"no tool halves {number}")
    return str(number // 2)


class Halving(ToolEnvironment):
    def tools(self, task, state):
        return (halve,)


def test_what_a_tool_environment_says_is_understood():
    """Five calls: an answer, a tool's error, wrong arguments, no JSON, and a tool of the model's own making."""
    calls = [("halve", '{"number": 4}'), ("halve", '{"number": 3}'), ("halve", '{"number": "4"}'), ("halve", "4,")]
    action = [Message(role="assistant", recipient=f"functions.{name}", content=text) for name, text in calls]
    action.append(Message(role="assistant", recipient="functions.half/of\ud800", content="{}"))

    async def step():
        environment = Halving()
        return await environment.step((await environment.start(TASK)).state, action)

    answered = asyncio.run(step())
    answers = [(message.name, message.content) for message in answered.messages]
    answers.append(("functions.parser", "Error: say a channel"))  # as the turn loop answers a malformed action
    found = tool_statistics([made(answers=answers, events=dict(answered.events))])
    assert found == {"tools/halve/calls": 4.0, "tools/halve/errors": 0.75, "tools/failed": 0.2}


def test_a_tool_may_be_called_parser():
    found = tool_statistics([made(answers=[("functions.parser", "parsed")])])
    assert found == {"tools/parser/calls": 1.0, "tools/parser/errors": 0.0}


def test_odd_names_are_others():
    """An environment of one's own may answer in the name that the model wrote."""
    names = ["a/b", "\ud800", "", None, "x" * 65]
    found = tool_statistics([made(answers=[*((name, "1") for name in names), ("browser.search", "Error: 2")])])
    assert found == {
        "tools/browser.search/calls": 1.0,
        "tools/browser.search/errors": 1.0,
        "tools/other/calls": 5.0,
        "tools/other/errors": 0.0,
    }


def test_only_so_many_tools_have_a_row():
    answers = [(f"functions.made_up_{i}", "1") for i in range(100)] + [("functions.add", "2"), ("functions.add", "3")]
    found = tool_statistics([made(answers=answers)])
    assert len(found) == 2 * (32 + 1)
    assert found["tools/add/calls"] == 2.0 and found["tools/other/calls"] == 69.0


def test_turns_by_hand():
    """Turns 4 and 5 share a row; only turns after a trajectory's first can have rewritten anything."""
    found = turn_statistics(
        [made(lengths=(1, 2, 3, 4, 5, 7), restarts=(2, 4)), made(lengths=(3, 8)), made(lengths=())], max_action_tokens=7
    )
    assert found == pytest.approx(
        {
            "turns/0/action_tokens": 2.0,
            "turns/1/action_tokens": 5.0,
            "turns/2/action_tokens": 3.0,
            "turns/3/action_tokens": 4.0,
            "turns/4+/action_tokens": 6.0,
            "turns/action_tokens": 33 / 8,
            "turns/longest_action": 8.0,
            "turns/at_limit": 0.25,
            "turns/restarts": 1 / 3,
        }
    )
    assert turn_statistics([made(lengths=(2,))]) == {
        "turns/0/action_tokens": 2.0,
        "turns/action_tokens": 2.0,
        "turns/longest_action": 2.0,
    }


def test_groups_by_hand():
    """Five groups: mixed; all won; all lost with one masked; all masked; one left.

    std of (0, 1, 1): mean 2/3, squares 4/9 + 1/9 + 1/9 = 2/3, over 2: 1/3. The lone one has none; two more have 0.
    """
    groups = [
        group(0.0, 1.0, 1.0, baseline=made(reward=1.0)),
        group(1.0, 1.0, baseline=made(reward=0.5)),
        group(0.25, 0.25, masked=[1.0], baseline=made(reward=7.0, error="broken")),
        group(masked=[1.0, 0.0]),
        group(1.0),
    ]
    assert group_statistics(groups, success_reward=1.0) == pytest.approx(
        {
            "groups/all_equal": 0.8,
            "groups/all_success": 0.4,
            "groups/all_failure": 0.2,
            "groups/solved": 0.6,
            "groups/masked_sibling": 0.4,
            "groups/reward_std": math.sqrt(1 / 3) / 3,
            "groups/best": (1 + 1 + 0.25 + 1) / 4,
            "groups/baseline": 0.75,
        }
    )
    assert group_statistics([groups[3]]) == {"groups/all_equal": 1.0, "groups/masked_sibling": 1.0}


def test_groups_of_one_are_not_said_to_be_all_equal():
    """They have no siblings to differ from; one whose siblings are masked has."""
    assert "groups/all_equal" not in group_statistics([group(1.0), group(0.0)], success_reward=1.0)
    assert group_statistics([group(1.0, masked=(0.0,))])["groups/all_equal"] == 1.0
    assert group_statistics([group(1.0), group(0.0, 1.0)])["groups/all_equal"] == 0.5


def test_equal_rewards_have_no_spread_at_all():
    """The mean of three times 0.1 is not 0.1."""
    assert group_statistics([group(0.1, 0.1, 0.1)])["groups/reward_std"] == 0.0


def test_of_nothing_there_is_no_number():
    assert trajectory_statistics([], success_reward=1.0) == {}
    assert tool_statistics([]) == {} and tool_statistics([made()]) == {}
    assert turn_statistics([], max_action_tokens=3) == {} and turn_statistics([made(lengths=())]) == {}
    assert group_statistics([], success_reward=1.0) == {}


def test_what_is_measured_beside_the_reward_has_a_mean_of_its_own():
    one, two = made(reward=1.0), made(reward=0.0)
    masked = dataclasses.replace(made(reward=0.0), measures={"grounded": 9.0}, error="down")
    trajectories = [dataclasses.replace(one, measures={"grounded": 0.5}), two, masked]
    found = trajectory_statistics(trajectories, success_reward=1.0)
    assert found["measure/grounded"] == 0.25
    assert found["reward"] == 0.5
