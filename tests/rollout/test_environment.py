"""ToolEnvironment's steps and rewards, and the one boundary that turns whatever an environment raises into a fault."""

import asyncio
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lockstep.rollout.environment import (
    MAX_CALLS,
    EnvironmentFault,
    Start,
    Step,
    ToolEnvironment,
    checked_score,
    checked_start,
    checked_step,
    expect,
    guarded,
)
from lockstep.rollout.reward import Ending, Score
from lockstep.rollout.tool import InfrastructureError, ToolError, tool
from lockstep.types import Message, Task

TASK = Task(id="t", messages=(Message(role="user", content="Go."),), data={"answer": "4"})


@tool(inline=True)
def double(n: int) -> str:
    """Twice a number."""
    if n > 100:
        raise ToolError(f"{n} is too large")
    return str(2 * n)


class Shop(ToolEnvironment):
    """double, and two tools that meet: each answers only when the other has been called."""

    def tasks(self, split):
        return [TASK]

    def tools(self, task, state):
        here, there = asyncio.Event(), asyncio.Event()

        @tool(timeout_s=5)
        async def ping() -> str:
            """Wait for pong."""
            here.set()
            await there.wait()
            return "ping"

        @tool(timeout_s=5)
        async def pong() -> str:
            """Wait for ping."""
            there.set()
            await here.wait()
            return "pong"

        return (double, ping, pong)

    async def grade(self, ending):
        right = ending.answer == ending.task.data["answer"]
        return {"correct": float(right), "short": 0.5 if ending.answer is not None else 0.0}


def says(content, channel=None, recipient=None):
    return Message(role="assistant", content=content, channel=channel, recipient=recipient)


def tells(content, name="functions.double"):
    return Message(role="tool", name=name, content=content)


def calls(content, name="functions.double"):
    return says(content, "commentary", name)


def step(*action) -> Step:
    async def play():
        environment = Shop()
        start = await environment.start(TASK)
        return await environment.step(start.state, action)

    return asyncio.run(play())


def test_a_start_offers_the_task_and_its_tools():
    start = asyncio.run(Shop().start(TASK))
    assert start.messages == TASK.messages
    assert [description.name for description in start.tools] == ["double", "ping", "pong"]
    assert start.tools[0] == double.description


def test_each_trajectory_has_its_own_tools():
    async def two():
        environment = Shop()
        return [await environment.start(TASK) for _ in range(2)]

    first, second = asyncio.run(two())
    assert first.state.tools["ping"] is not second.state.tools["ping"]


@pytest.mark.parametrize("recipient", ["functions.double", "double"])
def test_a_call_is_answered(recipient):
    assert step(says("Let me see.", "analysis"), calls('{"n": 21}', recipient)) == Step(
        messages=(tells("42"),), events={"tool_calls": 1}
    )


def test_an_action_without_a_call_ends_the_trajectory():
    assert step(says("4", "final")) == step(says("Hm.", "analysis"), says("4")) == step() == Step(done=True)


def test_several_calls_are_answered_in_their_order_and_at_once():
    """ping and pong would wait for each other for ever if one had to answer before the other began."""
    played = step(calls("{}", "functions.ping"), calls('{"n": 1}'), says("And:"), calls("{}", "functions.pong"))
    assert played.messages == (tells("ping", "functions.ping"), tells("2"), tells("pong", "functions.pong"))
    assert played.events == {"tool_calls": 3} and not played.done


@pytest.mark.parametrize(
    ("call", "answer", "fault"),
    [
        (
            calls("{}", "functions.triple"),
            tells("Error: no tool 'triple'; the tools are: double, ping, pong.", "functions.triple"),
            "malformed/unknown_tool",
        ),
        (
            calls("print(1)", "python"),
            tells("Error: no tool 'python'; the tools are: double, ping, pong.", "python"),
            None,
        ),
        (calls("{}", ""), tells("Error: no tool ''; the tools are: double, ping, pong.", ""), None),
        (calls("n=1"), None, "malformed/bad_json"),
        (calls('{"n": "1"}'), tells("Error: n: Input should be a valid integer."), "malformed/bad_arguments"),
        (calls('{"n": 1, "m": 2}'), tells("Error: m: Extra inputs are not permitted."), "malformed/bad_arguments"),
        (calls('{"n": 101}'), tells("Error: 101 is too large"), "tool/error"),
    ],
)
def test_a_call_that_goes_wrong_is_answered_and_counted(call, answer, fault):
    played = step(call)
    assert not played.done
    assert played.events == {"tool_calls": 1, fault or "malformed/unknown_tool": 1}
    assert played.messages[0].content.startswith("Error: ") if answer is None else played.messages == (answer,)


def test_faults_add_up_over_an_action():
    played = step(calls("{"), calls("{"), calls('{"n": 2}'), calls("{}", "functions.x"))
    assert played.events == {"tool_calls": 4, "malformed/bad_json": 2, "malformed/unknown_tool": 1}
    assert played.messages[2] == tells("4")


def test_a_flood_of_calls_is_answered_but_not_made():
    played = step(*[calls('{"n": 1}') for _ in range(MAX_CALLS + 2)])
    assert played.events == {"tool_calls": MAX_CALLS + 2, "malformed/too_many_calls": 2}
    assert [message.content for message in played.messages[-3:]] == ["2"] + 2 * [
        f"Error: not called; one action may make {MAX_CALLS} calls."
    ]


def test_a_function_that_is_no_tool_is_named():
    class Plain(Shop):
        def tools(self, task, state):
            return (double, double.function)

    with pytest.raises(TypeError, match=r"tools\(\) gave <function double.*>, which is no Tool: put @tool above"):
        asyncio.run(Plain().start(TASK))
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"tool\(timeout_s=.*\): must be above 0"):
            tool(timeout_s=wrong)


def test_an_environment_without_tools_says_so():
    class Bare(Shop):
        def tools(self, task, state):
            return ()

    async def play():
        environment = Bare()
        return await environment.step((await environment.start(TASK)).state, [calls("{}")])

    assert asyncio.run(play()).messages == (tells("Error: no tool 'double'; the tools are: none."),)


def reward(*messages, truncated=False):
    async def play():
        environment = Shop()
        start = await environment.start(TASK)
        return await environment.reward(start.state, [*start.messages, *messages], truncated)

    return asyncio.run(play())


def test_the_last_message_to_the_user_is_graded():
    assert reward(says("Hm.", "analysis"), says("4", "final")) == {"correct": 1.0, "short": 0.5}
    assert reward(says("5", "final")) == {"correct": 0.0, "short": 0.5}


def test_without_a_last_message_to_the_user_there_is_no_answer():
    none = {"correct": 0.0, "short": 0.0}
    assert reward(says("4", "final"), truncated=True) == none
    assert reward(calls('{"n": 2}'), tells("4")) == none
    assert reward(says("4", "commentary", "functions.double")) == none
    assert reward() == none


async def returns(value):
    return value


async def raises(error):
    raise error


def test_the_boundary_lets_results_through():
    start = Start(messages=())
    assert asyncio.run(guarded("Shop.start", lambda: returns(start), timeout_s=1)) is start


@pytest.mark.parametrize("error", [KeyError("price"), ValueError("no\nprice"), AssertionError(), StopAsyncIteration()])
def test_the_boundary_turns_every_exception_into_a_fault(error):
    with pytest.raises(EnvironmentFault) as fault:
        asyncio.run(guarded("Shop.step", lambda: raises(error), timeout_s=1))
    assert str(fault.value) == f"Shop.step raised {type(error).__name__}: {error}"
    assert fault.value.__cause__ is error


def test_the_boundary_does_not_wait_for_ever():
    with pytest.raises(EnvironmentFault) as fault:
        waiting = guarded("Shop.reward", asyncio.Event().wait, timeout_s=0.01)
        asyncio.run(asyncio.wait_for(waiting, timeout=10))
    assert str(fault.value).startswith("Shop.reward did not finish within 0.01 s; raise rollout.environment_timeout_s")


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
def test_an_environment_cannot_end_the_process(kind):
    with pytest.raises(EnvironmentFault, match=f"Shop.step raised RuntimeError: {kind.__name__}"):
        asyncio.run(guarded("Shop.step", lambda: raises(kind()), timeout_s=1))


def test_the_user_can_end_the_process():
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(guarded("Shop.step", lambda: raises(KeyboardInterrupt()), timeout_s=1))


def test_a_timeout_of_the_environment_s_own_is_reported_as_what_it_is():
    with pytest.raises(EnvironmentFault, match="raised TimeoutError: the database is down"):
        asyncio.run(guarded("Shop.step", lambda: raises(TimeoutError("the database is down")), timeout_s=60))


def fault_of(call, check=None):
    with pytest.raises(EnvironmentFault) as fault:
        asyncio.run(guarded("Shop.reward", call, timeout_s=1, check=check))
    return fault.value


@pytest.mark.parametrize("error", [KeyError("price"), StopIteration(3), AssertionError()])
def test_a_plain_method_that_raises_is_within_the_boundary(error):
    def plain():
        raise error

    fault = fault_of(plain)
    assert str(fault) == f"Shop.reward raised {type(error).__name__}: {error}"
    assert fault.__cause__ is error


def test_a_plain_method_s_result_is_refused():
    said = "Shop.reward returned dict and not an awaitable: make it `async def`"
    assert str(fault_of(lambda: {"correct": 1.0})) == said


def test_any_awaitable_will_do():
    async def awaited():
        future = asyncio.get_running_loop().create_future()
        future.set_result(3)
        return await guarded("Shop.step", lambda: future, timeout_s=1)

    assert asyncio.run(awaited()) == 3


def test_a_check_refuses_or_replaces_a_result():
    assert str(fault_of(lambda: returns(None), expect(Step))) == "Shop.reward returned NoneType, not Step"
    step = Step(done=True)
    assert asyncio.run(guarded("Shop.step", lambda: returns(step), timeout_s=1, check=expect(Step))) is step
    assert asyncio.run(guarded("Shop.step", lambda: returns(step), timeout_s=1, check=lambda s: s.done)) is True


def test_what_breaks_a_check_is_within_the_boundary():
    class Odd(dict):
        def items(self):
            raise OSError("disk")

    assert str(fault_of(lambda: returns(Odd()), checked_score)) == "Shop.reward raised OSError: disk"


def test_reward_parts_become_plain_floats():
    """Whatever is one real number: of Python, numpy or torch."""
    given = {"a": 1, "b": True, "c": np.float32(0.25), "d": np.bool_(True), "e": torch.tensor(0.5), "f": Fraction(3, 4)}
    parts = checked_score(given).parts
    assert parts == {"a": 1.0, "b": 1.0, "c": 0.25, "d": 1.0, "e": 0.5, "f": 0.75}
    assert {type(part) for part in parts.values()} == {float}
    assert checked_score({}).parts == {}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (None, "None"),
        ("1.0", "'1.0'"),
        (b"1", "b'1'"),
        (bytearray(b"1"), None),
        ([1.0], "[1.0]"),
        (1j, "1j"),
        (10**400, None),
        (np.zeros((3, 3)), None),
        (torch.zeros(40, 2), None),
    ],
)
def test_a_part_that_is_no_finite_number_is_a_fault_of_one_line(part, said):
    message = str(fault_of(lambda: returns({"fine": 1.0, "correct": part}), checked_score))
    assert message.startswith("Shop.reward returned correct=")
    assert message.endswith(": every part of a reward must be a finite number")
    assert said is None or f"correct={said}:" in message
    assert "\n" not in message and len(message) < 160


@pytest.mark.parametrize("reward", [1.0, None, [("correct", 1.0)]])
def test_a_reward_without_names_is_a_fault(reward):
    message = str(fault_of(lambda: returns(reward), checked_score))
    assert message == f"Shop.reward returned {type(reward).__name__}, not Mapping"


def test_a_sum_that_overflows_is_a_fault():
    message = str(fault_of(lambda: returns({"a": 1e308, "b": 1e308}), checked_score))
    assert message == "Shop.reward returned parts whose sum is not finite: scale the reward down"


def test_a_tool_environment_must_be_given_its_tasks_and_its_grade():
    with pytest.raises(NotImplementedError):
        ToolEnvironment().tasks("train")
    assert ToolEnvironment().demonstrations(0) == ()
    with pytest.raises(NotImplementedError):
        asyncio.run(ToolEnvironment().grade(Ending(task=TASK, answer="4", messages=[])))


class Owning(ToolEnvironment):
    """Each trajectory owns a list; `log` says what was opened and released."""

    def __init__(self, *, broken: str | None = None) -> None:
        self.broken, self.log = broken, []

    async def open(self, task):
        self.log.append("open")
        if self.broken == "open":
            raise OSError("no disk")
        return []

    def tools(self, task, state):
        if self.broken == "tools":
            raise OSError("no tools")

        @tool(inline=True)
        def add(n: int) -> str:
            """Add a number to what this trajectory has."""
            state.append(n)
            return str(sum(state))

        @tool(inline=True)
        def fail() -> str:
            """Rely on what is broken."""
            raise InfrastructureError("the disk is gone")

        return (add, add) if self.broken == "twice" else (add, fail)

    async def grade(self, ending):
        return Score(parts={"sum": float(sum(ending.state))}, measures={"count": len(ending.state)})

    async def release(self, state):
        self.log.append(("release", list(state)))


def test_what_a_trajectory_owns_is_its_own_and_is_released_once():
    async def play():
        environment = Owning()
        first, second = [(await environment.start(TASK)).state for _ in range(2)]
        answers = []
        for state, n in ((first, "1"), (second, "10"), (first, "2")):
            step = await environment.step(state, [calls(f'{{"n": {n}}}', "functions.add")])
            answers.append(step.messages[0].content)
        score = await environment.reward(first, [says("3", "final")], False)
        await environment.close(first)
        await environment.close(second)
        return answers, score, environment.log

    answers, score, log = asyncio.run(play())
    assert answers == ["1", "10", "3"]
    assert score == Score(parts={"sum": 3.0}, measures={"count": 2})
    assert log == ["open", "open", ("release", [1, 2]), ("release", [10])]


@pytest.mark.parametrize(
    ("broken", "log"),
    [("open", ["open"]), ("tools", ["open", ("release", [])]), ("twice", ["open", ("release", [])])],
)
def test_a_start_that_fails_leaves_nothing_open(broken, log):
    environment = Owning(broken=broken)
    with pytest.raises((OSError, ValueError)):
        asyncio.run(environment.start(TASK))
    assert environment.log == log


def test_what_is_broken_beneath_a_tool_is_no_answer_and_ends_the_calls_beside_it():
    ended = []

    class Beside(Owning):
        def tools(self, task, state):
            @tool(timeout_s=60)
            async def wait() -> str:
                """Wait until cancelled."""
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(True)
                return ""

            return (*super().tools(task, state), wait)

    async def play():
        environment = Beside()
        start = await environment.start(TASK)
        await environment.step(start.state, [calls("{}", "functions.wait"), calls("{}", "functions.fail")])

    with pytest.raises(InfrastructureError, match="the disk is gone"):
        asyncio.run(play())
    assert ended == [True]


def test_the_boundary_lets_through_that_infrastructure_broke():
    async def broken():
        raise InfrastructureError("down")

    with pytest.raises(InfrastructureError, match="down"):
        asyncio.run(guarded("Shop.step", broken, timeout_s=5))


def test_measures_are_numbers_too():
    assert checked_score(Score(parts={"a": 1}, measures={"b": True})) == Score(parts={"a": 1.0}, measures={"b": 1.0})
    message = str(fault_of(lambda: returns(Score(parts={"a": 1.0}, measures={"b": math.nan})), checked_score))
    assert message == "Shop.reward returned b=nan: every part of a reward must be a finite number"


def test_an_ending_says_whether_a_limit_cut_it_short():
    seen = []

    class Seeing(Owning):
        async def grade(self, ending):
            seen.append((ending.answer, ending.truncated, ending.task, len(ending.messages)))
            return {}

    async def play():
        environment = Seeing()
        state = (await environment.start(TASK)).state
        await environment.reward(state, [*TASK.messages, says("3", "final")], False)
        await environment.reward(state, [*TASK.messages, says("3", "final")], True)
        await environment.reward(state, [*TASK.messages, calls("{}", "functions.add")], False)

    asyncio.run(play())
    assert seen == [("3", False, TASK, 2), (None, True, TASK, 2), (None, False, TASK, 2)]


def test_infrastructure_that_fails_inside_a_group_is_seen():
    async def several():
        async with asyncio.TaskGroup() as group:
            group.create_task(raises(InfrastructureError("down")))

    with pytest.raises(InfrastructureError, match="down"):
        asyncio.run(guarded("Shop.step", several, timeout_s=5))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Step(messages=("text",)), "returned str among its messages: each must be a Message"),  # pyright: ignore
        (Step(messages="text"), "returned str among its messages: each must be a Message"),  # pyright: ignore
        (Step(messages=None), "returned NoneType among its messages: each must be a Message"),  # pyright: ignore
        (Step(events={"a": "many"}), "returned an event a='many': a count must be a whole number"),  # pyright: ignore
        (Step(events=None), "returned NoneType, not Mapping"),  # pyright: ignore
        (None, "returned NoneType, not Step"),
    ],
)
def test_a_step_is_made_of_messages_and_counts(step, said):
    assert str(fault_of(lambda: returns(step), checked_step)) == f"Shop.reward {said}"


def test_a_start_is_made_of_messages():
    message = str(fault_of(lambda: returns(Start(messages=("text",))), checked_start))  # pyright: ignore
    assert message == "Shop.reward returned str among its messages: each must be a Message"
    assert checked_start(Start(messages=TASK.messages)) == Start(messages=TASK.messages)


def test_a_thought_is_no_answer():
    seen = []

    class Seeing(Owning):
        async def grade(self, ending):
            seen.append(ending.answer)
            return {}

    async def play():
        environment = Seeing()
        state = (await environment.start(TASK)).state
        await environment.reward(state, [says("3", "analysis")], False)
        await environment.reward(state, [], False)
        await environment.reward(state, [says("3")], False)

    asyncio.run(play())
    assert seen == [None, None, "3"]
