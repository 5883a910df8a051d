"""The environment in the loop: tools, trajectories, demonstrations, whatever a model calls."""

import asyncio
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.engine.scripted import ScriptedEngine
from lockstep.environments.recruiter import INSTRUCTIONS, OFFERED
from lockstep.environments.talent.database import Filters
from lockstep.model.tiny import build_tokenizer
from lockstep.rollout.harmony import HarmonyRenderer
from lockstep.rollout.trajectory import Attempt, Policy, Rollout
from lockstep.types import Message


def call(name: str, **arguments) -> Message:
    content = json.dumps(arguments)
    return Message(role="assistant", channel="commentary", recipient=f"functions.{name}", content=content)


def final(text: str) -> Message:
    return Message(role="assistant", channel="final", content=text)


def test_demonstrations_are_answered_as_the_environment_does(easy):
    async def check() -> None:
        for shown in dataclasses.replace(easy, carelessness=0.2, num_demonstrations=12).demonstrations(0):
            start = await easy.start(shown.task)
            *calls, last = shown.messages
            for said, answer in zip(calls[::2], calls[1::2], strict=True):
                step = await easy.step(start.state, [said])
                assert step.messages == (answer,) and step.events["tool_calls"] == 1
            parts = await easy.reward(start.state, [*start.messages, *shown.messages], False)
            _, expected = easy.converse(shown.task.data["request"], replay(shown.messages))
            assert parts == expected and (last.channel, last.role) == ("final", "assistant")
            await easy.close(start.state)

    asyncio.run(check())


def replay(messages):
    """An agent that says what was said before."""
    for message in messages:
        if message.recipient is not None:
            yield message.recipient.removeprefix("functions."), json.loads(message.content)
    return messages[-1].content


def test_calls_of_one_action_are_answered_in_order(easy, tasks):
    """A search, a page of it, and a shortlist that is proposed: each needs what the one before it left."""
    request = tasks[0].data["request"]
    someone = min(request.right)
    action = [
        call("search", query="", place="Madrid"),
        call("refine", search=1, page=2),
        call("open_profile", person=someone),
        call("shortlist", person=someone, justification="x"),
        call("message", text=f"I propose {someone}."),
    ]

    async def answers() -> list[str]:
        start = await easy.start(tasks[0])
        step = await easy.step(start.state, action)
        assert step.events == {"tool_calls": 5}
        return [message.content for message in step.messages]

    first = asyncio.run(answers())
    assert [answer.split(" ")[0] for answer in first[:2]] == ["Search", "Search"] and "page 2 of" in first[1]
    assert first[2].startswith(f"{someone} ") and first[3] == f"Shortlist: {someone} (1 of {request.number})."
    assert all(asyncio.run(answers()) == first for _ in range(3))


def test_trajectories_know_nothing_of_one_another(easy, tasks):
    async def check() -> None:
        one, two = await easy.start(tasks[0]), await easy.start(tasks[0])
        await easy.step(one.state, [call("search", query="Rust")])
        step = await easy.step(two.state, [call("refine", search=1, page=1)])
        assert step.messages[0].content == "Error: no search 1; search first"
        step = await easy.step(one.state, [call("refine", search=1, page=1)])
        assert step.messages[0].content.startswith("Search 1:")

    asyncio.run(check())


def test_without_a_final_message_there_is_no_reward(easy, tasks):
    async def reward(truncated: bool, *messages: Message) -> float:
        start = await easy.start(tasks[0])
        for id_ in sorted(tasks[0].data["request"].right)[: tasks[0].data["request"].number]:
            await easy.step(start.state, [call("shortlist", person=id_, justification="x")])
        parts = await easy.reward(start.state, [*start.messages, *messages], truncated)
        assert list(parts) == ["precision", "constraints", "soft", "grounded", "calls"]
        return sum(parts.values())

    assert asyncio.run(reward(False, final("Done."))) > 0.2
    assert asyncio.run(reward(True, final("Done."))) == asyncio.run(reward(False)) == 0
    assert asyncio.run(reward(False, call("message", text="Done."))) == 0


ARGUMENTS = st.dictionaries(
    st.sampled_from(["query", "place", "max_salary", "language", "open_only", "search", "page", "person", "text"])
    | st.just("justification"),
    st.text(max_size=30) | st.integers() | st.booleans() | st.none() | st.sampled_from(["Rust", "Madrid", 104, 1, 2]),
    max_size=4,
)


def survives(easy, task, calls) -> None:
    async def check() -> None:
        start = await easy.start(task)
        for name, arguments in calls:
            content = arguments if isinstance(arguments, str) else json.dumps(arguments)
            said = Message(role="assistant", recipient=f"functions.{name}", content=content)
            step = await easy.step(start.state, [said])
            (answer,) = step.messages
            assert answer.role == "tool" and len(answer.content) < 2000, (name, arguments, answer.content)
            answer.content.encode()
            bound_to_be_ours = "tool/error" in step.events
            assert not bound_to_be_ours or "Error: no " in answer.content or ";" in answer.content, answer.content
        parts = await easy.reward(start.state, [*start.messages, final("Done.")], False)
        assert 0 <= sum(parts.values()) <= 1 and all(part >= 0 for part in parts.values())

    asyncio.run(check())


CALLS = st.lists(
    st.tuples(st.sampled_from([tool.name for tool in OFFERED]), ARGUMENTS | st.text(max_size=40)), max_size=8
)


@settings(max_examples=40, deadline=None)
@given(CALLS)
def test_whatever_a_model_calls_is_answered(easy, tasks, calls):
    survives(easy, tasks[1], calls)


@pytest.mark.slow
@settings(max_examples=20000, deadline=None)
@given(CALLS)
def test_whatever_a_model_calls_is_answered_20000_times(easy, tasks, calls):
    survives(easy, tasks[1], calls)


def test_the_turn_loop_earns_a_demonstration_its_reward(easy):
    shown = easy.demonstrations(0)[:6]
    texts = [message.content for each in shown for message in each.messages]
    renderer = HarmonyRenderer(build_tokenizer(texts, 600))
    for each in shown:
        actions = [renderer.action([message]) for message in each.messages if message.role == "assistant"]
        settings_ = Rollout(max_turns=60, max_tokens=20000)
        policy = Policy(engine=ScriptedEngine(actions), renderer=renderer, settings=settings_, temperature=1.0)
        trajectory = asyncio.run(Attempt(policy, easy, each.task, "t", 0).run())
        assert (trajectory.stop_reason, trajectory.error) == ("done", None)
        assert trajectory.reward == pytest.approx(1.0, abs=0.05)
        assert trajectory.messages[len(each.task.messages) :] == each.messages


def test_the_model_is_told_of_the_tools(easy, tasks):
    start = asyncio.run(easy.start(tasks[0]))
    assert [tool.name for tool in start.tools] == ["search", "refine", "open_profile", "shortlist", "message"]
    assert start.messages[0] == Message(role="system", content=INSTRUCTIONS)
    assert start.tools[0].parameters["required"] == ["query"]
    assert start.tools[3].parameters["required"] == ["person", "justification"]
    assert dataclasses.replace(easy, instructions="", num_heldout=1).tasks("heldout")[0].messages == start.messages[1:]


def test_filters_of_a_call_reach_the_search(easy, tasks):
    async def answer(**arguments) -> str:
        start = await easy.start(tasks[0])
        step = await easy.step(start.state, [call("search", query="", **arguments)])
        return step.messages[0].content

    everybody = {"place": "Madrid"}
    for filters in (everybody, everybody | {"open_only": True}, {"max_salary": 50}, {"language": "French"}):
        count = len(easy.database.search("", Filters(**filters)).ids)
        assert asyncio.run(answer(**filters)).startswith(f"Search 1: {count} people")
