"""ReTool: rows, the python tool on a scripted and on a real sandbox, the published reward, the generated problems."""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.environments import retool
from lockstep.environments.mathematics import easy as easy_math
from lockstep.environments.mathematics.answers import Comparison
from lockstep.environments.mathematics.easy import easy_problems
from lockstep.environments.mathematics.rows import read_math_rows
from lockstep.environments.retool import ReTool, num_rounds, retool_parts
from lockstep.environments.tools import python as python_tool
from lockstep.environments.tools.python import harmless, outcome_text, unfenced
from lockstep.options import recipe_and_options
from lockstep.rollout.tool import InfrastructureError, ToolError
from lockstep.sandbox.interface import Limits, Outcome, SandboxFailure, SandboxUnavailable
from lockstep.sandbox.sandbox import SandboxOptions
from lockstep.types import Message, UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "retool.py"


def outcome(stdout: str = "", **changes) -> Outcome:
    usual = dict(status="ok", stderr="", exit_code=0, signal=None, time_s=0.0, cpu_s=0.0, truncated=False)
    return Outcome(stdout=stdout, **(usual | changes))


class Scripted:
    """A sandbox that answers as the script says, an exception by raising it, and notes what it was asked."""

    tier = "none"

    def __init__(self, *script):
        self.script, self.asked, self.sessions, self.closed = list(script), [], [], False

    async def run(self, code, *, stdin="", files=None, limits=None):
        self.asked.append((code, limits))
        answer = self.script.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def session(self, *, limits=None):
        self.sessions.append(ScriptedSession(self, limits))
        return self.sessions[-1]

    def close(self):
        self.closed = True


class ScriptedSession:
    def __init__(self, sandbox, limits):
        self.sandbox, self.limits, self.running, self.num_closed = sandbox, limits, 0, 0

    async def run(self, code, *, time_s=None):
        assert self.running == 0, "two runs at once in one session"
        self.running += 1
        await asyncio.sleep(0)
        self.running -= 1
        return await self.sandbox.run(code, limits=self.limits)

    async def close(self):
        self.num_closed += 1


@pytest.fixture
def scripted(monkeypatch):
    """Puts a sandbox in place of the real one, and takes it out of the cache again."""

    def put(*script):
        sandbox = Scripted(*script)
        monkeypatch.setattr(python_tool, "open_sandbox", lambda options: sandbox)
        return sandbox

    python_tool.close_sandboxes()
    yield put
    python_tool.close_sandboxes()


def call(code: object) -> Message:
    content = json.dumps({"code": code})
    return Message(role="assistant", channel="commentary", recipient="functions.python", content=content)


def final(text: str) -> Message:
    return Message(role="assistant", channel="final", content=text)


def answered(text: str = "1", name: str = "functions.python") -> Message:
    return Message(role="tool", name=name, content=text)


async def play(environment: ReTool, *actions):
    """The first task, with these actions; gives the texts of the answers and their events."""
    start = await environment.start(environment.tasks("train")[0])
    try:
        steps = [await environment.step(start.state, list(action)) for action in actions]
    finally:
        await environment.close(start.state)
    return [[message.content for message in step.messages] for step in steps], [dict(step.events) for step in steps]


async def graded(environment: ReTool, *messages: Message, truncated: bool = False, answer: str = r"\frac{1}{2}"):
    task = environment._task("x/1", "What is a half?", answer)
    start = await environment.start(task)
    return await environment.reward(start.state, [*start.messages, *messages], truncated)


# Rows


def test_the_published_files_are_read(math_folders):
    assert len(read_math_rows(math_folders / "math500")) == 500
    assert len(read_math_rows(math_folders / "math_train")) == 7474 - 4
    aime = read_math_rows(math_folders / "aime")
    assert len(aime) == 975 + 30
    assert (aime[0].name, aime[0].answer) == ("aime2024_rllm/1", "204")
    assert (aime[30].name, aime[30].answer) == ("aime_1983_2023/1", "60")
    only = read_math_rows(math_folders / "aime" / "aime2024_rllm.json")
    assert only == aime[:30] and only[1].answer == "025"


def test_tasks_of_published_files(math_folders):
    environment = ReTool(data=math_folders / "math_train", heldout=math_folders / "math500")
    train, heldout = environment.tasks("train"), environment.tasks("heldout")
    assert (len(train), len(heldout)) == (7470, 500)
    first = train[0]
    assert first.id == "retool/math/1" and dict(first.data) == {"answer": "0"}
    assert [message.role for message in first.messages] == ["system", "user"]
    assert first.messages[1].content.startswith(r"Let \[f(x) = \left")
    assert train[886].id == "retool/math/888"  # row 887 has no answer
    apart = ReTool(data=math_folders / "aime")
    train, heldout = apart.tasks("train"), apart.tasks("heldout")
    assert len(train) + len(heldout) == 1005 and 40 < len(heldout) < 90
    assert not {task.id for task in train} & {task.id for task in heldout}


def test_heldout_problems_are_not_trained_on(tmp_path):
    rows = [{"problem": f"What is {n}?", "answer": str(n)} for n in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.json").write_text(json.dumps([{"problem": "What  is\n4?", "answer": 4}]))
    environment = ReTool(data=tmp_path / "train.jsonl", heldout=tmp_path / "test.json", instructions="")
    assert [task.data["answer"] for task in environment.tasks("train")] == list("01235678")
    assert [(task.id, dict(task.data)) for task in environment.tasks("heldout")] == [("retool/test/1", {"answer": "4"})]
    assert [message.role for message in environment.tasks("train")[0].messages] == ["user"]


def test_one_row_in_sixteen_is_held_out_by_its_text(tmp_path):
    rows = [{"problem": f"What is {n}?", "answer": str(n)} for n in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = ReTool(data=tmp_path)
    train, heldout = environment.tasks("train"), environment.tasks("heldout")
    assert 10 < len(heldout) < 50 and len(train) + len(heldout) == 400
    assert not {task.id for task in train} & {task.id for task in heldout}
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows[::-1]))
    asked = {task.messages[-1].content for task in heldout}
    assert {task.messages[-1].content for task in environment.tasks("heldout")} == asked


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"problem": "x", "answer": "1"}\n{', "a.jsonl:2 is not JSON"),
        ("a.jsonl", '{"problem": "x", "answer": "1"}\n\n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", '{"problem": "x"}', "a.jsonl:1 has no texts"),
        ("a.jsonl", '{"problem": 3, "answer": "1"}', "a.jsonl:1 has no texts"),
        ("a.jsonl", '{"problem": " ", "answer": "1"}', "a.jsonl:1 has no texts"),
        ("a.jsonl", '{"problem": "x", "answer": true}', "a.jsonl:1 has no texts"),
        ("a.jsonl", '{"problem": "x", "answer": ["1"]}', "a.jsonl:1 has no texts"),
        ("a.jsonl", "[1]", "a.jsonl:1 has no texts"),
        ("a.json", '[{"problem": "x", "answer": "1"}, {"problem": "x"}]', "a.json:2 has no texts"),
        ("a.json", "[1", "a.json is not JSON"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.json", '{"problem": "x", "answer": "1"}', "a.json holds one dict"),
        ("a.json", "[]", "no row with an answer"),
        ("a.jsonl", '{"problem": "x", "answer": null}', "no row with an answer"),
        ("a.jsonl", '{"problem": "x", "answer": ""}', "no row with an answer"),
        ("a.txt", "x", "no .json or .jsonl file"),
    ],
)
def test_malformed_files_are_named_with_the_fix(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_math_rows(tmp_path)
    message = str(error.value)
    assert words in message and str(tmp_path) in message and "\n" not in message
    assert '{"problem": "...", "answer": "..."}' in message


def test_options_that_cannot_work_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"heldout=.* without data"):
        ReTool(heldout=tmp_path)
    monkeypatch.setattr(retool.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'math-verify"):
        ReTool()


# Generated problems


def test_generated_problems_are_seeded_distinct_and_apart():
    environment = ReTool(num_train=300, num_heldout=40, num_demonstrations=200)
    train, heldout = environment.tasks("train"), environment.tasks("heldout")
    texts = [task.messages[-1].content for task in train]
    asked = [task.messages[-1].content for task in heldout]
    shown = [demonstration.task.messages[-1].content for demonstration in environment.demonstrations(0)]
    assert (len(set(texts)), len(set(asked)), len(set(shown))) == (300, 40, 200)
    assert not set(asked) & {*texts, *shown}
    assert train == ReTool(num_train=300).tasks("train") and train != ReTool(num_train=300, seed=1).tasks("train")


def test_each_kind_of_problem_by_hand(monkeypatch):
    drawn = iter([12, 34, 11, 99, 7, 3, 50, 6, 4, 10])
    random_ = type("Drawn", (), {"randint": lambda self, low, high: next(drawn)})()
    found = [kind(random_) for kind in easy_math.KINDS]
    assert [(problem.text, problem.code, problem.answer) for problem in found] == [
        ("What is 12 times 34?", "print(12*34)", 408),
        ("What is the remainder when 11 times 99 is divided by 7?", "print(11*99%7)", 4),
        ("What is the sum of the integers from 3 to 50?", "print(sum(range(3,50+1)))", 1272),
        ("What is the greatest common divisor of 24 and 60?", "import math\nprint(math.gcd(24,60))", 12),
    ]


def test_who_is_not_careless_shows_no_slip():
    for shown in ReTool(num_demonstrations=200).demonstrations(0):
        assert len(shown.messages) == 3 and shown.messages[-1].content == rf"\boxed{{{shown.task.data['answer']}}}"
    with pytest.raises(UserError, match=r"environment\.carelessness=1\.5: must be within 0 and 1"):
        ReTool(carelessness=1.5)


def test_the_sandbox_prints_what_demonstrations_say():
    """A real sandbox."""
    environment = ReTool(num_demonstrations=80, carelessness=0.5)

    async def check():
        kinds = Counter()
        for shown in environment.demonstrations(0):
            start = await environment.start(shown.task)
            if len(shown.messages) > 1:
                step = await environment.step(start.state, shown.messages[:1])
                assert step.messages == shown.messages[1:2] and step.events == {"tool_calls": 1}
            score = await environment.reward(start.state, [*start.messages, *shown.messages], False)
            kinds[len(shown.messages), score.parts["correct"]] += 1
            await environment.close(start.state)
        assert kinds == {(3, 1.0): 42, (1, 0.0): 20, (3, 0.0): 18}  # solved, guessed, another program

    asyncio.run(check())
    asyncio.run(check())  # the sandbox is not bound to a loop


WRITTEN = {
    "remainder": r"({}\cdot{}) \bmod {}",
    "sum": r"\sum_{{k={}}}^{{{}}} k",
    "divisor": r"\gcd({},{})",
    "times": r"{}\times{}",
}


def test_who_copies_the_problem_has_not_solved_it():
    """math-verify would compute what the formula says."""
    environment = ReTool(num_train=60)

    async def earned(task):
        question = task.messages[-1].content
        formula = next(formula for word, formula in WRITTEN.items() if word in question)
        numbers = re.findall(r"\d+", question)
        start = await environment.start(task)
        said = Message(role="assistant", channel="final", content=rf"\boxed{{{formula.format(*numbers)}}}")
        score = await environment.reward(start.state, [*start.messages, said], False)
        await environment.close(start.state)
        return score.parts["correct"]

    assert {asyncio.run(earned(task)) for task in environment.tasks("train")} == {0.0}


# The tool


def test_a_real_sandbox_keeps_variables_in_sessions_alone():
    async def twice(sessions: bool):
        environment = ReTool(sessions=sessions, num_train=1)
        return await play(environment, [call("x = 41")], [call("print(x + 1)")])

    kept, _ = asyncio.run(twice(True))
    lost, _ = asyncio.run(twice(False))
    assert kept == [["[nothing was printed: print() what you want to see]"], ["42"]]
    assert lost[1][0].endswith("NameError: name 'x' is not defined")


def test_a_real_sandbox_that_is_flooded_costs_one_message():
    environment = ReTool(sandbox=SandboxOptions(limits=Limits(time_s=0.5, output_bytes=1000)), num_train=1)
    codes = ["while True: pass", "while True: print('x' * 99)", "print('\\x1b[2J<|end|>')", "1/0"]
    texts, _ = asyncio.run(play(environment, *([call(code)] for code in codes)))
    (late,), (flood,), (escaped,), (error,) = texts
    assert late == "[stopped: it ran longer than 0.5 s]"
    assert flood.endswith("x\n[output cut at 1000 bytes]\n[stopped: it printed too much]") and len(flood) < 1100
    assert escaped == "\\x1b[2J<|end|>"
    assert error.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (outcome("1\n2\n\n"), "1\n2"),
        (outcome(" 1 "), " 1"),
        (outcome("1", stderr="careful\n"), "1\ncareful"),
        (outcome(), "[nothing was printed: print() what you want to see]"),
        (outcome("\n"), "[nothing was printed: print() what you want to see]"),
        (outcome("1", truncated=True), "1\n[output cut at 65536 bytes]"),
        (outcome("1", status="error", exit_code=1, stderr="\n".join("abcdefghij")), "1\nc\nd\ne\nf\ng\nh\ni\nj"),
        (outcome("1", status="error", exit_code=3), "1\n[exit code 3]"),
        (outcome("1", status="timeout", exit_code=None, signal=9), "1\n[stopped: it ran longer than 10 s]"),
        (
            outcome(status="memory", stderr="MemoryError"),
            "MemoryError\n[stopped: it needs more than 1024 MiB of memory]",
        ),
        (
            outcome("1", status="output", truncated=True, stderr="OSError"),
            "1\n[output cut at 65536 bytes]\n[stopped: it printed too much]",
        ),
        (outcome(status="killed", exit_code=None, signal=11), "[stopped by signal 11]"),
        (outcome("1", state_lost=True), "1\n[started anew: the variables of earlier calls are gone]"),
        (outcome("a\x1b[31mb\x00c\r\nd\re\tf"), "a\\x1b[31mb\\x00c\nd\ne\tf"),
        (outcome("1", status="error", stderr="\x9b\u202e!"), "1\n\\x9b\\u202e!"),
    ],
)
def test_what_the_model_reads(ended, text):
    assert outcome_text(ended, Limits()) == text


@given(st.text())
def test_no_control_character_is_left(text):
    for sign in harmless(text):
        assert sign in "\n\t" or (sign.isprintable() or ord(sign) > 0x9F)
        assert not 0xD800 <= ord(sign) <= 0xDFFF and not 0x202A <= ord(sign) <= 0x202E
    assert harmless(harmless(text)) == harmless(text)


@pytest.mark.parametrize(
    ("code", "bare"),
    [
        ("print(1)", "print(1)"),
        ("```python\nprint(1)\n```", "print(1)"),
        ("\n```py\nprint(1)\nprint(2)\n```\n", "print(1)\nprint(2)"),
        ("```\nprint(1)```", "print(1)"),
        ("s = '''\n```python\n1\n```\n'''", "s = '''\n```python\n1\n```\n'''"),
        ("```python\nprint(1)", "```python\nprint(1)"),
    ],
)
def test_a_fence_around_the_whole_is_taken_off(code, bare):
    assert unfenced(code) == bare


def test_calls_go_to_one_sandbox_with_the_limits(scripted):
    sandbox = scripted(outcome("1"), outcome("2"), outcome("3"))
    limits = Limits(time_s=3.0)
    environment = ReTool(sandbox=SandboxOptions(limits=limits), num_train=1)
    texts, events = asyncio.run(play(environment, [call("a"), call("b")], [call("```\nc\n```")]))
    assert texts == [["1", "2"], ["3"]] and events == [{"tool_calls": 2}, {"tool_calls": 1}]
    assert sandbox.asked == [("a", limits), ("b", limits), ("c", limits)] and sandbox.sessions == []
    python_tool.close_sandboxes()
    assert sandbox.closed


def test_a_session_begins_with_the_first_call_and_ends_with_the_trajectory(scripted):
    sandbox = scripted(outcome("1"), outcome("2"), outcome("3"))
    environment = ReTool(sessions=True, num_train=1)
    assert asyncio.run(play(environment, [final("none")]))[0] == [[]] and sandbox.sessions == []
    texts, _ = asyncio.run(play(environment, [call("a"), call("b")], [call("c")]))
    assert texts == [["1", "2"], ["3"]] and [code for code, _ in sandbox.asked] == ["a", "b", "c"]
    assert [session.num_closed for session in sandbox.sessions] == [1]


def test_the_description_says_whether_variables_are_kept(scripted):
    scripted()

    async def description(sessions: bool) -> str:
        environment = ReTool(sessions=sessions, num_train=1)
        start = await environment.start(environment.tasks("train")[0])
        assert [tool.name for tool in start.tools] == ["python"]
        assert start.tools[0].parameters["required"] == ["code"]
        return start.tools[0].description

    assert "Variables are kept between calls." in asyncio.run(description(True))
    assert "Each call starts from nothing." in asyncio.run(description(False))


@pytest.mark.parametrize("sessions", [False, True])
def test_a_sandbox_that_fails_is_infrastructure_and_never_text(scripted, sessions):
    scripted(SandboxFailure("the supervisor\nis gone"))
    with pytest.raises(InfrastructureError, match=r"^the sandbox failed: the supervisor is gone$"):
        asyncio.run(play(ReTool(sessions=sessions, num_train=1), [call("1")]))


def test_a_sandbox_that_is_silent_is_infrastructure(scripted, monkeypatch):
    sandbox = scripted()

    async def silent(code, **_):
        await asyncio.Event().wait()

    sandbox.run = silent
    monkeypatch.setattr(python_tool, "GRACE_S", 0.01)
    environment = ReTool(sandbox=SandboxOptions(limits=Limits(time_s=0.01)), num_train=1)
    with pytest.raises(InfrastructureError, match=r"no outcome within 0\.02 s"):
        asyncio.run(play(environment, [call("1")]))


@pytest.mark.parametrize("sessions", [False, True])
def test_programs_that_never_end_mask_nobody(scripted, monkeypatch, sessions):
    """Two calls of one action where one runs at a time: the other reads that there was no time for it."""
    sandbox, release = scripted(), asyncio.Event()

    async def slow(code, **_):
        await release.wait()
        return outcome("late")

    def refused(text):
        release.set()
        return ToolError(text)

    sandbox.run = slow
    monkeypatch.setattr(python_tool, "WAIT_S", 0.01)
    monkeypatch.setattr(python_tool, "ToolError", refused)
    environment = ReTool(sandbox=SandboxOptions(max_concurrency=1), sessions=sessions, num_train=1)
    texts, events = asyncio.run(play(environment, [call("1"), call("2")], [call("3")]))
    assert texts == [["late", "Error: the interpreter had no time for this program within 0.01 s"], ["late"]]
    assert events == [{"tool_calls": 2, "tool/error": 1}, {"tool_calls": 1}]


def test_no_sandbox_is_infrastructure_and_probed_once(monkeypatch):
    tries = []

    def refuse(options):
        tries.append(options)
        raise SandboxUnavailable("landlock: no\n  fix: yes")

    python_tool.close_sandboxes()
    monkeypatch.setattr(python_tool, "open_sandbox", refuse)
    for _ in range(2):
        with pytest.raises(InfrastructureError, match=r"^no sandbox: landlock: no fix: yes$"):
            asyncio.run(play(ReTool(num_train=1), [call("1")]))
    python_tool.close_sandboxes()
    assert len(tries) == 1


@pytest.mark.parametrize("arguments", ["{", "[]", "{}", '{"code": 1}', '{"code": "1", "x": 2}'])
def test_malformed_calls_reach_no_sandbox(scripted, arguments):
    sandbox = scripted()
    bad = Message(role="assistant", channel="commentary", recipient="functions.python", content=arguments)
    texts, _ = asyncio.run(play(ReTool(num_train=1), [bad]))
    assert texts[0][0].startswith("Error: ") and sandbox.asked == []


# Rewards


@pytest.mark.parametrize(
    ("right", "rounds", "reward"),
    [
        (True, 0, 1.0),
        (True, 5, 1.0),
        (False, 0, -1.0),
        (False, 1, -0.9),
        (False, 3, -0.7),
        (False, 4, -0.6),
        (False, 5, -0.6),
        (False, 8, -0.6),
    ],
)
def test_the_published_reward(right, rounds, reward):
    parts = retool_parts(right, rounds)
    assert sum(parts.values()) == pytest.approx(reward, abs=1e-12)
    assert parts["correct"] == float(right)
    num_turns = 2 + 2 * rounds
    assert sum(parts.values()) == pytest.approx(1.0 if right else min(-0.6, -1.0 + (num_turns - 2) / 2 * 0.1))


def test_rounds_are_actions_that_python_answered():
    user, thought = Message(role="user", content="?"), Message(role="assistant", channel="analysis", content="hm")
    parser = answered("Error: ...", name="functions.parser")
    assert num_rounds([user, final("1")]) == 0
    assert num_rounds([user, thought, call("1"), answered(), final("1")]) == 1
    assert num_rounds([user, call("1"), call("2"), answered(), answered(), call("3"), answered()]) == 2
    assert num_rounds([user, thought, parser, call("1"), answered(), thought, parser, final("1")]) == 1
    assert num_rounds([]) == 0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"\boxed{\frac{1}{2}}", True),
        (r"So it is $\boxed{0.5}$.", True),
        (r"\boxed{\dfrac12} is the answer", True),
        (r"\boxed{2} no, \boxed{1/2}", True),
        (r"\boxed{1/2} no, \boxed{2}", False),
        (r"\boxed{2} or \boxed{1/2}", False),
        (r"\frac{1}{2}", False),
        ("The answer is 1/2.", False),
        (r"\boxed{1/2", False),
        (r"\boxed{}", False),
        ("", False),
    ],
)
def test_the_last_box_of_the_final_message_is_graded(scripted, text, right):
    scripted()
    assert asyncio.run(graded(ReTool(scoring="exact"), final(text))).parts == {"correct": float(right)}
    wrong_after_a_call = asyncio.run(graded(ReTool(), call("1"), answered(), final(text)))
    assert sum(wrong_after_a_call.parts.values()) == pytest.approx(1.0 if right else -0.9)
    assert wrong_after_a_call.measures == {"late": 0.0}


def test_without_a_final_message_it_is_wrong(scripted):
    scripted()
    right = final(r"\boxed{1/2}")
    cut = asyncio.run(graded(ReTool(), call("1"), answered(), right, truncated=True))
    assert sum(cut.parts.values()) == pytest.approx(-0.9)
    printed = asyncio.run(graded(ReTool(), call("1"), answered(r"\boxed{1/2}")))
    assert sum(printed.parts.values()) == pytest.approx(-0.9)


def test_a_late_comparison_is_wrong_and_measured(scripted, monkeypatch):
    scripted()

    async def late(answer, reference):
        return Comparison(False, "late")

    monkeypatch.setattr(retool, "compared", late)
    score = asyncio.run(graded(ReTool(scoring="exact"), final(r"\boxed{x}")))
    assert (score.parts, score.measures) == ({"correct": 0.0}, {"late": 1.0})


def test_the_recipe_takes_its_data_from_the_command_line(math_folders):
    run, _ = recipe_and_options("train", [str(RECIPE), "--num-steps", "3"])
    assert run.environment.data is None and run.num_steps == 3 and run.rollout.max_turns == 8
    arguments = [str(RECIPE), "--data", str(math_folders / "math_train"), "--heldout", str(math_folders / "math500")]
    run, _ = recipe_and_options("train", arguments)
    assert len(run.environment.tasks("heldout")) == 500


def test_generated_problems_are_held_out_by_their_text_alone():
    assert not any(problem.held_out for seed in range(3) for problem in easy_problems(200, seed, held_out=False))
    assert all(problem.held_out for problem in easy_problems(50, 7, held_out=True))


def test_more_generated_problems_than_there_are_is_told(monkeypatch):
    monkeypatch.setattr(easy_math, "KINDS", (easy_math._sum,))
    there_are = 48 * 50
    held_out = sum(easy_math._sum(Fixed(a, b)).held_out for a in range(2, 50) for b in range(50, 100))
    assert len(easy_problems(held_out, 0, held_out=True)) == held_out
    with pytest.raises(UserError, match=f"not held out, but no more than {there_are - held_out} distinct ones"):
        easy_problems(there_are - held_out + 1, 0, held_out=False)


class Fixed:
    """Draws these numbers."""

    def __init__(self, *numbers):
        self.numbers = iter(numbers)

    def randint(self, low, high):
        number = next(self.numbers)
        assert low <= number <= high
        return number
