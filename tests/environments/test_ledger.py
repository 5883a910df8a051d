"""Ledger: every problem is read again from its text and worked out anew; splits, demonstrators and rewards."""

import asyncio
import hashlib
import os
import random
import re
import subprocess
import sys

import pytest

from lockstep.environments.ledger import GAINS, LOSSES, Ledger, draw_problem, problems
from lockstep.types import Message

SENTENCE = re.compile(r"(?P<who>[A-Z][a-z]+) (?P<verb>[a-z ]+?) (?P<amount>\d+)(?: (?P<thing>[a-z]+))?\.")
QUESTION = re.compile(r"How many (?P<thing>[a-z]+) does (?P<who>[A-Z][a-z]+) have\?")


@pytest.fixture(scope="module")
def ledger():
    return Ledger()


def counts(text: str) -> list[int]:
    """The asked person's count, first and after each change, read from the problem's text alone."""
    story, question = text[: text.index(" How many")], QUESTION.fullmatch(text[text.index("How many") :])
    sentences = list(SENTENCE.finditer(story))
    assert " ".join(sentence[0] for sentence in sentences) == story, "a sentence is of another form"
    assert {sentence["thing"] or question["thing"] for sentence in sentences} == {question["thing"]}
    found = []
    for sentence in sentences:
        if sentence["who"] != question["who"]:
            continue
        amount, verb = int(sentence["amount"]), sentence["verb"]
        if not found:
            assert verb == "has"
            found.append(amount)
        else:
            assert verb in GAINS + LOSSES
            found.append(found[-1] + (amount if verb in GAINS else -amount))
    return found


def opening(task) -> str:
    (message,) = task.messages
    return message.content


def test_the_tasks_are_as_many_as_asked_for(ledger):
    small = Ledger(num_train=7, num_heldout=3, num_demonstrations=5)
    assert [len(small.tasks("train")), len(small.tasks("heldout")), len(small.demonstrations(0))] == [7, 3, 5]
    assert small.tasks("train") == ledger.tasks("train")[:7]
    assert len({opening(task) for task in ledger.tasks("train")}) == ledger.num_train
    assert len({task.id for split in ("train", "heldout") for task in ledger.tasks(split)}) == 8192 + 512


def test_no_problem_comes_twice(monkeypatch):
    pending = []

    def draw_each_twice(random_):
        if not pending:
            pending.extend([draw_problem(random_)] * 2)
        return pending.pop()

    monkeypatch.setattr("lockstep.environments.ledger.draw_problem", draw_each_twice)
    texts = [problem.text for problem in problems("train", 50, seed=0)]
    assert len(set(texts)) == len(texts) == 50


def test_answers_follow_from_the_texts(ledger):
    for task in [*ledger.tasks("train"), *ledger.tasks("heldout")]:
        found = counts(opening(task))
        assert found[-1] == task.data["answer"], opening(task)
        assert len(found) in (3, 4)
        assert all(1 <= count <= 99 for count in found), opening(task)


def test_more_than_half_of_the_problems_distract(ledger):
    tasks = ledger.tasks("train")
    distracting = sum(len(set(re.findall(r"[A-Z][a-z]+(?= (?!many))", opening(task)))) > 1 for task in tasks)
    assert 0.57 < distracting / len(tasks) < 0.63


def test_heldout_problems_occur_nowhere_in_training(ledger):
    heldout = {opening(task) for task in ledger.tasks("heldout")}
    assert not heldout & {opening(task) for task in ledger.tasks("train")}
    assert not heldout & {opening(shown.task) for shown in ledger.demonstrations(seed=3)}


def test_problems_are_a_function_of_the_seed():
    small = Ledger(num_demonstrations=500)
    tasks, shown = small.tasks("heldout"), small.demonstrations(1)
    random.seed(12345)
    assert small.tasks("heldout") == tasks
    assert Ledger(seed=1).tasks("heldout") != tasks
    assert small.demonstrations(1) == shown != small.demonstrations(2)


def test_problems_are_the_same_in_every_process():
    code = (
        "import hashlib; from lockstep.environments.ledger import Ledger; "
        "e = Ledger(num_train=50, num_heldout=50, num_demonstrations=50); "
        "print(hashlib.sha256(repr((e.tasks('train'), e.tasks('heldout'), e.demonstrations(0))).encode()).hexdigest())"
    )
    small = Ledger(num_train=50, num_heldout=50, num_demonstrations=50)
    here = repr((small.tasks("train"), small.tasks("heldout"), small.demonstrations(0)))
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def answers_right(shown) -> bool:
    return shown.messages[-1].content == str(shown.task.data["answer"])


def test_a_careful_demonstrator_is_always_right():
    for shown in Ledger(carelessness=0, num_demonstrations=2000).demonstrations(0):
        assert answers_right(shown)
        results = [message.content for message in shown.messages if message.role == "tool"]
        assert results == [str(count) for count in counts(opening(shown.task))[1:]]


def test_a_careless_demonstrator_is_sometimes_right():
    """Two or three steps without a slip are (0.7 ** 2 + 0.7 ** 3) / 2 = 0.417; a slip is harmless now and then."""
    for carelessness, expected in ((0.3, 0.425), (1, 0.02)):
        shown = Ledger(carelessness=carelessness, num_demonstrations=4000).demonstrations(0)
        assert sum(map(answers_right, shown)) / len(shown) == pytest.approx(expected, abs=0.02)


def test_demonstrations_are_calls_with_their_true_answers(ledger):
    async def check(shown) -> None:
        *calls, last = shown.messages
        assert (last.role, last.channel, last.recipient) == ("assistant", "final", None)
        assert [message.role for message in calls] == ["assistant", "tool"] * (len(calls) // 2)
        start = await ledger.start(shown.task)
        for call, answer in zip(calls[::2], calls[1::2], strict=True):
            step = await ledger.step(start.state, [call])
            assert (step.messages, step.done, step.events) == ((answer,), False, {"tool_calls": 1})

    async def check_all() -> None:
        for shown in Ledger(num_demonstrations=500).demonstrations(0):
            await check(shown)

    asyncio.run(check_all())


def reward(environment, task, *messages, truncated=False) -> float:
    async def grade():
        start = await environment.start(task)
        return await environment.reward(start.state, [*start.messages, *messages], truncated)

    parts = asyncio.run(grade())
    assert set(parts) == {"correct"}
    return sum(parts.values())


def final(text: str) -> Message:
    return Message(role="assistant", channel="final", content=text)


def test_only_exactly_the_right_number_is_rewarded(ledger):
    task = ledger.tasks("heldout")[0]
    right = str(task.data["answer"])
    assert reward(ledger, task, final(right)) == reward(ledger, task, final(f" {right}\n")) == 1
    wrong = [
        str(task.data["answer"] + 1),
        f"-{right}",
        f"0{right}",
        f"{right}.",
        f"{right} apples",
        f"{right} {right}",
        "",
    ]
    assert [reward(ledger, task, final(text)) for text in wrong] == [0] * len(wrong)


def test_without_a_final_message_there_is_no_reward(ledger):
    task = ledger.tasks("heldout")[0]
    right = str(task.data["answer"])
    call = Message(role="assistant", channel="commentary", recipient="functions.calculator", content=right)
    said = Message(role="tool", name="functions.calculator", content=right)
    assert reward(ledger, task, final(right), truncated=True) == 0
    assert reward(ledger, task, call) == reward(ledger, task, call, said) == reward(ledger, task) == 0
