"""GSM8K on its real rows: every reference is right, every demonstration true, every malformed row named."""

import asyncio
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from lockstep.engine.scripted import ScriptedEngine
from lockstep.environments.gsm8k import GSM8K, demonstrate, read_rows, stated_answer
from lockstep.model.tiny import build_tokenizer
from lockstep.options import recipe_and_options
from lockstep.rollout.harmony import HarmonyRenderer
from lockstep.rollout.trajectory import Attempt, Policy, Rollout
from lockstep.types import Message

RECIPE = Path(__file__).parents[2] / "recipes" / "gsm8k.py"
GOOD = '{"question": "One and one?", "answer": "It is 1+1 = <<1+1=2>>2.\\n#### 2"}'


@pytest.fixture(scope="module")
def gsm8k(gsm8k_folder):
    return GSM8K(data=gsm8k_folder)


@pytest.fixture(scope="module")
def demonstrations(gsm8k):
    return gsm8k.demonstrations(0)


def raw(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").split("\n") if line]


def raw_of(task, rows):
    """The row that a task was made of: its id ends in the line's number."""
    return rows[int(task.id.rpartition("/")[2]) - 1]


def final(text: str) -> Message:
    return Message(role="assistant", channel="final", content=text)


async def reward(environment, task, text: str, *, truncated: bool = False) -> float:
    start = await environment.start(task)
    parts = await environment.reward(start.state, [*start.messages, final(text)], truncated)
    assert set(parts) == {"correct"}
    return parts["correct"]


def test_every_row_is_a_task(gsm8k, gsm8k_folder):
    train, heldout = gsm8k.tasks("train"), gsm8k.tasks("heldout")
    assert (len(train), len(heldout)) == (7473, 1319)
    assert len({task.id for task in [*train, *heldout]}) == 7473 + 1319
    for tasks, name in ((train, "train.jsonl"), (heldout, "test.jsonl")):
        rows = raw(gsm8k_folder, name)
        assert [task.messages[-1].content for task in tasks] == [row["question"] for row in rows]
        asked = "Solve the problem step by step, with the calculator. Answer with the number alone."
        assert all(task.messages[:-1] == (Message(role="system", content=asked),) for task in tasks)


def test_no_heldout_question_is_trained_on(gsm8k, demonstrations):
    heldout = {task.messages[-1].content for task in gsm8k.tasks("heldout")}
    assert not heldout & {task.messages[-1].content for task in gsm8k.tasks("train")}
    assert not heldout & {shown.task.messages[-1].content for shown in demonstrations}


def test_instructions_may_be_left_out(gsm8k_folder):
    task = GSM8K(data=gsm8k_folder, instructions="").tasks("heldout")[0]
    assert [message.role for message in task.messages] == ["user"]


def boxed_or_bare(number: int, reference: str, answer: str) -> list[str]:
    """Ways to state a row's number."""
    return [
        answer,
        reference,
        str(number),
        f" ${number:,}.00.\n",
        f"{number} units",
        f"{number:,} dollars per day.",
        f"The answer is {reference}.",
        f"**Answer:** ${reference}",
        rf"So we get $\boxed{{{reference}}}$.",
        rf"\boxed{{{number}\text{{ units}}}} is the answer to question 7.",
        rf"\frac{{{3 * number}}}{{3}}",
        f"{2 * number}/2",
    ]


def perturbed(number: int) -> list[str]:
    """Statements of other numbers, or of none."""
    digits = str(abs(number))
    swapped = digits[:-2] + digits[:-3:-1]
    others = {number + 1, number - 1, -number, number * 10, int(swapped), int(f"1{digits}")} - {number}
    two = [f"{number} or {number + 1}", f"{number}, {number + 1}", f"{number} {number + 1}", f"{number + 1}-{number}"]
    boxes = rf"\boxed{{{number}}} or \boxed{{{number + 1}}}", rf"\boxed{{{number}, {number + 1}}}"
    decimals = [f"{number}.5", f"{digits[:-1]}.{digits[-1]}" if number % 10 else f"{number}.01", f"{number}%0"]
    return [
        *map(str, others),
        *two,
        *boxes,
        *decimals,
        f"#### {number}\n#### {number + 1}",
        f"{number}\nNo, {number + 1}.",
        f"{number} or so",
        f"{number} dozen",
        f"{number}*1",
        f"{number + 1}/1",
    ]


def check_all(gsm8k: GSM8K, split, rows) -> None:
    async def check() -> None:
        for task in gsm8k.tasks(split):
            answer = raw_of(task, rows)["answer"]
            reference = answer.rpartition("#### ")[2]
            number = int(reference.replace(",", ""))
            for right in boxed_or_bare(number, reference, answer):
                assert await reward(gsm8k, task, right) == 1.0, (task.id, right)
            for wrong in perturbed(number):
                assert await reward(gsm8k, task, wrong) == 0.0, (task.id, wrong)

    asyncio.run(check())


def test_every_heldout_reference_is_right_and_its_neighbours_wrong(gsm8k, gsm8k_folder):
    check_all(gsm8k, "heldout", raw(gsm8k_folder, "test.jsonl"))


@pytest.mark.slow
def test_every_training_reference_is_right_and_its_neighbours_wrong(gsm8k, gsm8k_folder):
    check_all(gsm8k, "train", raw(gsm8k_folder, "train.jsonl"))


def test_no_last_line_of_a_solution_states_another_number(gsm8k, gsm8k_folder):
    """Where people's own last sentence has one number alone it is the answer: 176 do, the others state nothing."""
    stated = 0
    for split, name in (("train", "train.jsonl"), ("heldout", "test.jsonl")):
        rows = raw(gsm8k_folder, name)
        for task in gsm8k.tasks(split):
            said = stated_answer(raw_of(task, rows)["answer"].rpartition("\n####")[0])
            assert said in (None, int(task.data["answer"])), task.id
            stated += said is not None
    assert stated == 176


def test_without_a_final_message_there_is_no_reward(gsm8k):
    task = gsm8k.tasks("heldout")[0]
    right = task.data["answer"]

    async def rewards():
        start = await gsm8k.start(task)
        said = Message(role="tool", name="functions.calculator", content=right)
        cut = await gsm8k.reward(start.state, [*start.messages, final(right)], True)
        return cut, await gsm8k.reward(start.state, [*start.messages, said], False)

    assert asyncio.run(rewards()) == ({"correct": 0.0}, {"correct": 0.0})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", 72),
        ("-3", -3),
        ("#### 72", 72),
        ("#### 1,234,567", 1234567),
        ("$1,200.50", Fraction(2401, 2)),
        ("72.", 72),
        ("72\u202fkm", 72),
        ("72\u00a0clips", 72),
        ("1\u202f000", 1000),
        ("\u201172", -72),
        (r"\boxed{72 \text{ m}^2}", 72),
        (r"\boxed{72\text{ ft}^{2}}", 72),
        (" 72 \n", 72),
        ("First 70.\nThen 72.\n72", 72),
        ("Half of 144 #### 72", 72),
        ("It is 71. #### The answer is 72 clips.", 72),
        ("The answer is 72", 72),
        (r"\boxed{72}", 72),
        ("\\boxed{72}\nI hope that 1 line more does no harm.", 72),
        ("\\boxed{71}\nNo: \\boxed{72}", 72),
        (r"\boxed{72} = \boxed{72.0}", 72),
        (r"\boxed{\$72\text{ dollars}}", 72),
        (r"\boxed{71} #### 72", 71),
        ("", None),
        ("####", None),
        ("72 #### ", None),
        ("71 or 72", None),
        ("72\nclips", None),
        ("#### 72\nclips", None),
        ("36*2", None),
        ("24 + 48 = 72", None),
        (r"\boxed{71} or \boxed{72}", None),
        (r"\boxed{}", None),
        (r"\boxed{x} #### 72", None),
        (r"\boxed{72", None),
        (r"\boxed{\boxed{72}", 72),
    ],
)
def test_what_a_final_message_states(text, number):
    assert stated_answer(text) == number


def test_without_the_calculator_one_turn_ends_it(gsm8k_folder):
    alone = GSM8K(data=gsm8k_folder, calculator=False)
    shown = alone.demonstrations(0)
    rows = raw(gsm8k_folder, "train.jsonl")
    assert len(shown) == 7473
    assert shown[0].task.messages[0].content == "Solve the problem step by step. Answer with the number alone."
    for demonstration in shown[:200]:
        thought, last = demonstration.messages
        solution, _, reference = raw_of(demonstration.task, rows)["answer"].rpartition("\n#### ")
        assert thought == Message(role="assistant", channel="analysis", content=re.sub("<<.*?>>", "", solution).strip())
        assert last == final(reference.replace(",", ""))

    async def play():
        start = await alone.start(shown[0].task)
        call = Message(role="assistant", channel="commentary", recipient="functions.calculator", content='{"e":"1"}')
        refused = await alone.step(start.state, [call])
        return start.tools, refused, await alone.step(start.state, shown[0].messages)

    tools, refused, ended = asyncio.run(play())
    assert tools == () and ended.done and not refused.done
    assert refused.messages[0].content == "Error: no tool 'calculator'; the tools are: none."


def test_all_but_97_training_rows_are_demonstrated(demonstrations, gsm8k_folder):
    rows = raw(gsm8k_folder, "train.jsonl")
    left_out = [row["answer"] for row in rows]
    for shown in demonstrations:
        left_out.remove(raw_of(shown.task, rows)["answer"])
    why = Counter("//" if "//" in answer else "<<" in answer for answer in left_out)
    assert why == {False: 95, "//": 2}
    assert len(demonstrations) == 7376
    assert sum(message.recipient is not None for shown in demonstrations for message in shown.messages) == 23706


def test_demonstrations_retell_the_solutions(demonstrations, gsm8k_folder):
    """Texts and calls in order are the row's own text; a tool's answer has the annotation's value."""
    rows = raw(gsm8k_folder, "train.jsonl")
    for shown in demonstrations:
        solution, _, reference = raw_of(shown.task, rows)["answer"].rpartition("\n#### ")
        *worked, last = shown.messages
        assert last == final(reference.replace(",", ""))
        told = []
        for message in worked:
            if message.role == "tool":
                value = told.pop().partition("=")[2].removesuffix(">>")
                assert float(message.content) == float(value), shown.task.id
            elif message.recipient is not None:
                expression = json.loads(message.content)["e"]
                found = re.search(re.escape(f"<<{expression}=") + "[^>]*>>", solution)
                told += [found[0], found[0]]
            else:
                assert (message.channel, message.role) == ("analysis", "assistant")
                told.append(message.content)
        assert re.sub(r"\s", "", "".join(told)) == re.sub(r"\s", "", solution), shown.task.id


def test_demonstrated_calls_are_answered_as_the_environment_does(gsm8k, demonstrations):
    async def check() -> None:
        for shown in demonstrations:
            start = await gsm8k.start(shown.task)
            for i, message in enumerate(shown.messages):
                if message.recipient is not None:
                    step = await gsm8k.step(start.state, [message])
                    assert (step.messages, step.events) == (shown.messages[i + 1 : i + 2], {"tool_calls": 1})
            parts = await gsm8k.reward(start.state, [*start.messages, *shown.messages], False)
            assert parts == {"correct": 1.0}, shown.task.id

    asyncio.run(check())


def test_demonstrations_reason_where_they_are_told_to(gsm8k_folder, demonstrations):
    spoken = GSM8K(data=gsm8k_folder, reasoning="commentary").demonstrations(0)
    channels = {message.channel for shown in spoken for message in shown.messages if message.role == "assistant"}
    assert channels == {"commentary", "final"}
    assert [[m.content for m in shown.messages] for shown in spoken[:50]] == [
        [m.content for m in shown.messages] for shown in demonstrations[:50]
    ]


def actions_of(renderer, messages):
    """The demonstration's turns as tokens: the assistant's messages between the tool's."""
    turns = [[]]
    for message in messages:
        turns[-1].append(message) if message.role == "assistant" else turns.append([])
    return [renderer.action(turn) for turn in turns]


def test_the_turn_loop_earns_a_demonstration_its_reward(gsm8k, demonstrations):
    texts = [message.content for shown in demonstrations[:30] for message in shown.messages]
    renderer = HarmonyRenderer(build_tokenizer(texts, 400))
    for shown in demonstrations[:30]:
        engine = ScriptedEngine(actions_of(renderer, shown.messages))
        settings = Rollout(max_turns=10, max_tokens=8192, max_action_tokens=4096)
        policy = Policy(engine=engine, renderer=renderer, settings=settings, temperature=1.0)
        trajectory = asyncio.run(Attempt(policy, gsm8k, shown.task, "t", 0).run())
        assert (trajectory.reward, trajectory.stop_reason, trajectory.error) == (1.0, "done", None)
        num_calls = sum(message.recipient is not None for message in shown.messages)
        assert trajectory.events == {"tool_calls": num_calls} and len(trajectory.turns) == num_calls + 1
        said = [(m.role, m.content) for m in trajectory.messages[len(shown.task.messages) :]]
        assert said == [(m.role, m.content) for m in shown.messages]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ('{"question": "x", "answer": "#### 1"', "is not JSON"),
        (b'{"question": "\xff", "answer": "#### 1"}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", "no texts under question and answer"),
        ("null", "no texts under question and answer"),
        ('{"question": "x"}', "no texts under question and answer"),
        ('{"question": "x", "answer": 3}', "no texts under question and answer"),
        ('{"question": " ", "answer": "#### 3"}', "no texts under question and answer"),
        ('{"question": "x", "answer": "It is 3."}', "ends in 'It is 3.'"),
        ('{"question": "x", "answer": "It is\\n####"}', "'#### NUMBER'"),
        ('{"question": "x", "answer": "It is\\n#### three"}', "'#### NUMBER'"),
        ('{"question": "x", "answer": "It is\\n#### 3\\nor so"}', "'#### NUMBER'"),
    ],
)
@pytest.mark.parametrize(("split", "name"), [("train", "train.jsonl"), ("heldout", "test.jsonl")])
def test_a_malformed_row_is_named(tmp_path, split, name, line, words):
    text = line if isinstance(line, bytes) else line.encode()
    (tmp_path / name).write_bytes(b"\n".join([GOOD.encode(), text, GOOD.encode()]))
    with pytest.raises(ValueError) as error:
        GSM8K(data=tmp_path).tasks(split)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / name}:2 ") and words in message and "\n" not in message
    assert "make the line" in message or "remove the line" in message


def test_missing_or_empty_files_say_the_fix(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as error:
            GSM8K(data=folder).tasks("train")
        message = str(error.value)
        assert str(folder / "train.jsonl") in message and "--environment.data PATH" in message and "\n" not in message
    (tmp_path / "test.jsonl").touch()
    with pytest.raises(ValueError, match=r"test\.jsonl is empty: .* --environment\.data PATH"):
        GSM8K(data=tmp_path).tasks("heldout")


def test_rows_that_cannot_be_demonstrated_stay_tasks(tmp_path):
    answers = [
        "One and one.\n#### 2",
        "1+1 = <<1+1=3>>3\n#### 2",
        "1+1 = <<1+1>>2\n#### 2",
        "1+1 = <<=2>>2\n#### 2",
        "1+1 = <<one and one=2>>2\n#### 2",
        "4//2 = <<4//2=2>>2\n#### 2",
    ]
    rows = [GOOD, *(json.dumps({"question": "One and one?", "answer": answer}) for answer in answers)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    environment = GSM8K(data=tmp_path)
    assert len(environment.tasks("train")) == 7
    assert [shown.task.id for shown in environment.demonstrations(0)] == ["gsm8k/train/1"]
    row = read_rows(tmp_path / "train.jsonl")[0]
    assert [message.content for message in demonstrate(row, "analysis")] == [
        "It is 1+1 =",
        '{"e":"1+1"}',
        "2",
        "2.",
        "2",
    ]


def test_the_recipe_takes_its_data_from_the_command_line(tmp_path):
    run, resume = recipe_and_options("train", [str(RECIPE), "--data", str(tmp_path), "--num-steps", "3"])
    assert (run.environment, run.num_steps, resume) == (GSM8K(data=tmp_path), 3, None)
    run, _ = recipe_and_options("train", [str(RECIPE), f"--data={tmp_path}"])
    assert run.environment.data == tmp_path
