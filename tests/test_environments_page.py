"""docs/environments.md: its environment plays, its judge and its servers can be built."""

import asyncio
import re
from pathlib import Path

import pytest

from lockstep.types import Message

PAGE = (Path(__file__).parent.parent / "docs" / "environments.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_environment_plays():
    namespace = {"__name__": "page"}
    exec(BLOCKS[0], namespace)
    environment = namespace["Notebook"]()
    assert len(environment.tasks("train")) == 80

    async def play():
        task = environment.tasks("heldout")[1]
        start = await environment.start(task)
        call = Message(role="assistant", recipient="functions.note", content='{"name": "a", "number": 5}')
        step = await environment.step(start.state, [call, call])
        final = Message(role="assistant", channel="final", content="18")
        graded = await environment.reward(start.state, [*task.messages, call, *step.messages, final], False)
        kept = dict(start.state.own)
        await environment.close(start.state)
        return start.tools, step.messages, graded, kept, start.state.own

    (described,), messages, graded, kept, after = asyncio.run(play())
    assert described.parameters["properties"]["name"]["description"] == "where to find it again"
    assert [message.content for message in messages] == ["1 kept", "1 kept"]
    assert graded.parts == {"correct": 1.0, "brevity": pytest.approx(0.1 / 3)}
    assert graded.measures == {"notes": 1.0}
    assert (kept, after) == ({"a": 5}, {})


def test_python_is_offered_in_place_of_the_notebook():
    namespace = {"__name__": "page"}
    exec(BLOCKS[0], namespace)
    exec(BLOCKS[1], namespace)
    environment = namespace["WithPython"]()

    async def play():
        start = await environment.start(environment.tasks("train")[0])
        call = Message(role="assistant", recipient="functions.python", content='{"code": "print(6 * 7)"}')
        step = await environment.step(start.state, [call])
        await environment.close(start.state)
        return [tool.name for tool in start.tools], step.messages[0].content

    assert asyncio.run(play()) == (["python"], "42")


def test_the_game_is_played():
    namespace = {"__name__": "page"}
    exec(BLOCKS[2], namespace)
    environment = namespace["Guess"]()
    task = environment.tasks("heldout")[1]

    async def play(guesses):
        start, answers = await environment.start(task), []
        for guess in guesses:
            step = await environment.step(start.state, [Message(role="assistant", channel="final", content=guess)])
            answers.append("done" if step.done else step.messages[0].content)
        return answers, await environment.reward(start.state, (), False)

    assert asyncio.run(play(["5", "x", "12", "10"])) == (
        ["higher", "a number, please", "lower", "done"],
        {"found": 1.0},
    )
    assert asyncio.run(play(["5"])) == (["higher"], {"found": 0.0})


def test_the_judge_is_a_part_of_a_reward():
    namespace = {}
    exec(BLOCKS[3], namespace)
    assert (namespace["part"].name, namespace["part"].weight) == ("polite", 0.2)


def test_servers_are_added_to_an_environment():
    namespace = {}
    exec(BLOCKS[4], namespace)
    environment = namespace["environment"]
    assert environment.tasks("heldout")[0].id == "ledger/heldout/0"
    assert environment.servers[0].allow == ("get_*",)
