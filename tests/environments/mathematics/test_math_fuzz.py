"""Model-like garbage at the boundary of GSM8K and ReTool: every call is answered, every ending graded, nothing raises
and nothing is evaluated."""

import asyncio
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.environments.gsm8k import GSM8K
from lockstep.environments.mathematics import answers as math_answers
from lockstep.environments.mathematics import pool as math_pool
from lockstep.environments.mathematics.answers import without_worker
from lockstep.environments.retool import ReTool
from lockstep.environments.tools import python as python_tool
from lockstep.rollout.environment import checked_score
from lockstep.sandbox.interface import Outcome
from lockstep.types import Message, Task

ANSWERS = ["72", "-10", "1,080", r"\frac{1}{2}", r"(3,4]", r"\text{even}", "52_8", r"\left( 3, \frac{\pi}{2} \right)"]
MARKER = "lockstep_fuzz_was_evaluated"
PIECES = [
    r"\boxed{",
    r"\boxed",
    "{",
    "}",
    "}" * 40,
    "{" * 40,
    r"\frac{1}{",
    r"\frac12",
    r"\text{",
    r"\left(",
    r"\\",
    "\\",
    "$",
    "####",
    "#### ",
    "\n",
    " ",
    "72",
    "-10",
    "1,080",
    "1/2",
    "72 or 71",
    "The answer is ",
    "9**9**9",
    "9^{9^{9}}",
    "1e999999999",
    "0x48",
    "9" * 5000,
    "\u0667\u0662",
    "½",
    "²",
    "\ud800",
    "\x00",
    "\x1b[2J",
    "\u202e",
    "<|end|>",
    "<|return|>",
    "<|start|>assistant<|channel|>final<|message|>",
    "<|call|>",
    f"__import__('os').environ.__setitem__('{MARKER}','1')",
    f"exec(\"open('{MARKER}','w')\")",
    "nan",
    "inf",
    "%",
    "\\%",
    "e",
    "π",
    "(3,4]",
    "even",
]
garbage = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=12).map("".join)
arguments = st.one_of(
    garbage,
    garbage.map(lambda text: json.dumps({"code": text})),
    garbage.map(lambda text: json.dumps({"e": text})),
    garbage.map(lambda text: json.dumps({"code": text, "x": 1})),
    st.sampled_from(
        ['{"e": 1e999}', '{"e": NaN}', '{"code": ' + "[" * 5000, "9" * 5000, '{"e": "' + "(" * 5000 + '"}']
    ),
)
names = st.one_of(st.sampled_from(["functions.python", "python", "functions.calculator", "functions.", ""]), garbage)
calls = st.builds(
    lambda name, content: Message(role="assistant", channel="commentary", recipient=name, content=content),
    names,
    arguments,
)
thoughts = garbage.map(lambda text: Message(role="assistant", channel="analysis", content=text))
finals = garbage.map(lambda text: Message(role="assistant", channel="final", content=text))
actions = st.lists(st.one_of(calls, thoughts, finals), min_size=1, max_size=4)


class Echo:
    """A sandbox that prints the code."""

    tier = "none"

    async def run(self, code, **_):
        return Outcome(
            status="error", stdout=code, stderr=code, exit_code=1, signal=None, time_s=0, cpu_s=0, truncated=True
        )

    def close(self):
        return None


class NoWorkers:
    """In place of the worker processes: fuzzing is about the boundary, and the workers have tests of their own."""

    def compare(self, answer, reference):
        assert isinstance(answer, str) and len(answer) <= math_answers.MAX_CHARACTERS + 100
        json.dumps([answer, reference]).encode()
        return "different"

    def submit(self, answer, reference):
        future = math_pool.Future()
        future.set_result(self.compare(answer, reference))
        return future


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    python_tool.close_sandboxes()
    monkeypatch.setattr(python_tool, "open_sandbox", lambda options: Echo())
    monkeypatch.setattr(math_answers, "pool", lambda: NoWorkers())
    yield
    python_tool.close_sandboxes()


async def trajectory(environment, task, turns, truncated) -> int:
    """Gives how many actions were answered."""
    steps = 0
    start = await environment.start(task)
    messages = list(start.messages)
    for action in turns:
        step = await environment.step(start.state, action)
        steps += 1
        messages += [*action, *step.messages]
        called = sum(message.recipient is not None for message in action)
        assert (step.done, len(step.messages)) == (called == 0, called)
        for message in step.messages:
            assert message.role == "tool"
            message.content.encode()
        if step.done:
            break
    score = checked_score(await environment.reward(start.state, messages, truncated))
    assert -1.0 <= math.fsum(score.parts.values()) <= 1.0
    if truncated or messages[-1].role != "assistant" or messages[-1].recipient is not None:
        assert score.parts["correct"] == 0.0
    await environment.close(start.state)
    return steps


def check(environment, reference, turns, truncated) -> int:
    data = {"answer": reference.replace(",", "") if isinstance(environment, GSM8K) else reference}
    steps = asyncio.run(trajectory(environment, Task(id="fuzz", messages=(), data=data), turns, truncated))
    assert not Path(MARKER).exists() and MARKER not in math_answers.os.environ
    return steps


FAMILIES = {
    "gsm8k": st.tuples(
        st.sampled_from([GSM8K(data=Path("none")), GSM8K(data=Path("none"), calculator=False)]),
        st.sampled_from(ANSWERS[:3]),
    ),
    "retool": st.tuples(st.sampled_from([ReTool(), ReTool(scoring="exact")]), st.sampled_from(ANSWERS)),
}
turns_of_actions = st.lists(actions, min_size=1, max_size=3)


def fuzz(cases: int):
    calm = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=cases, deadline=None, suppress_health_check=calm, database=None)


@fuzz(600)
@given(st.one_of(*FAMILIES.values()), turns_of_actions, st.booleans())
def test_garbage_never_raises_out_of_the_boundary(place, turns, truncated):
    check(*place, turns, truncated)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_much_garbage_never_raises_out_of_the_boundary(family):
    """20,000 trajectories of each family, of at least as many actions."""
    steps = 0

    @fuzz(20_000)
    @given(FAMILIES[family], turns_of_actions, st.booleans())
    def run(place, turns, truncated):
        nonlocal steps
        steps += check(*place, turns, truncated)

    run()
    assert steps >= 20_000


@fuzz(1400)
@given(garbage, st.sampled_from(ANSWERS))
def test_garbage_is_compared_without_raising(text, reference):
    assert without_worker(text, reference) in (True, False, None)
    assert math_answers.equal(text, reference) in (True, False)


@pytest.mark.slow
@fuzz(6000)
@given(garbage, st.sampled_from(ANSWERS))
def test_much_garbage_is_compared_without_raising(text, reference):
    assert without_worker(text, reference) in (True, False, None)


@pytest.mark.slow
@fuzz(150)
@given(garbage.filter(lambda text: without_worker(text, r"\frac{\pi}{2}") is None))
def test_garbage_in_real_workers_is_never_the_reference(text):
    """Here the pool is real; what is evaluated there would leave a file or end the worker."""
    pool = math_answers._pool(0)
    assert pool.compare(math_answers.cleaned(text), r"\frac{\pi}{2}") in ("different", "late")
    assert not Path(MARKER).exists()
