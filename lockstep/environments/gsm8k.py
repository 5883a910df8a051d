"""GSM8K (arXiv:2110.14168): grade-school word problems by people, each with a worked solution that ends in a number.

In: a folder with train.jsonl and test.jsonl, one object with `question` and `answer` a line. The test rows are the
held-out tasks. A solution's annotations, such as <<48/2=24>>, become calls of the calculator; what is written around
them is the demonstrator's reasoning. Without the calculator the whole solution is one turn. Reward is 1 for exactly the
right number, by comparison alone, never by `eval`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from lockstep.environments.mathematics.arithmetic import ArithmeticFault, calculation, calculator, evaluate
from lockstep.environments.mathematics.boxed import boxes
from lockstep.environments.mathematics.stated import number_alone, only_number
from lockstep.rollout.environment import Split, ToolEnvironment
from lockstep.rollout.reward import Ending
from lockstep.rollout.tool import Tool
from lockstep.types import Demonstration, Message, Task

FILES: Mapping[Split, str] = {"train": "train.jsonl", "heldout": "test.jsonl"}
ANNOTATION = re.compile(r"<<(.*?)>>")

INSTRUCTIONS = {
    True: "Solve the problem step by step, with the calculator. Answer with the number alone.",
    False: "Solve the problem step by step. Answer with the number alone.",
}

Reasoning = Literal["analysis", "commentary"]


@dataclass(frozen=True, slots=True)
class Row:
    """One problem. solution: the worked steps with their annotations; answer: a number without commas or currency."""

    question: str
    solution: str
    answer: str


def read_rows(path: Path) -> list[Row]:
    """Every row of a .jsonl file, in order. Raises FileNotFoundError or ValueError, each one line that says the fix."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: give the folder with GSM8K's {' and '.join(FILES.values())}, each line a JSON object "
            "with the keys question and answer: --environment.data PATH"
        )
    with path.open("rb") as lines:
        rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    if not rows:
        raise ValueError(f"{path} is empty: give GSM8K's own file, or another folder with --environment.data PATH")
    return rows


def _row(line: bytes, where: str) -> Row:
    shape = '{"question": "...", "answer": "... #### NUMBER"}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): make the line {shape}, or remove it") from error
    match row:
        case {"question": str(question), "answer": str(answer)} if question.strip():
            return Row(question, *_solution_and_number(answer, where))
    raise ValueError(f"{where} has no texts under question and answer: make the line {shape}, or remove it")


def _solution_and_number(answer: str, where: str) -> tuple[str, str]:
    solution, marker, end = answer.rpartition("####")
    if not marker or number_alone(end) is None:
        raise ValueError(
            f"{where} has an answer that ends in {answer[-30:]!r}: end it with '#### NUMBER', or remove the line"
        )
    return solution.strip(), end.strip().removesuffix(".").replace(",", "").replace("$", "").strip()


def stated_answer(text: str) -> Fraction | None:
    r"""The one number that a final message states; None when it states none, or leaves it open.

    In this order: the content of the last \boxed{...}, wherever it stands (None when another box on its line says
    something else); what follows #### in the last line; the last line. There it must be the only number, with no more
    around it than words, units, a currency or a percent sign (see `only_number`): `72`, `#### 72`, `$72.00`,
    `72 clips`, `+72`, `US$72`, `72¢` and `The answer is 72.` state 72; `71 or 72`, `36*2`, `24 + 48 = 72`, `72k`,
    `at most 72` and `six dozen` state nothing. Units are not compared, cents and dollars neither.
    """
    found = boxes(text)
    if found:
        line_start = text.rfind("\n", 0, found[-1].start)
        stated = {only_number(box.content) for box in found if box.start > line_start}
        return stated.pop() if len(stated) == 1 else None
    last_line = text.strip().rpartition("\n")[2]
    return only_number(last_line.rpartition("####")[2])


def demonstrate_alone(row: Row, reasoning: Reasoning) -> tuple[Message, ...]:
    """The row's solution without its annotations as one turn: the reasoning, and the answer as the final message."""
    final = Message(role="assistant", channel="final", content=row.answer)
    return (*_thought(ANNOTATION.sub("", row.solution), reasoning), final)


def demonstrate(row: Row, reasoning: Reasoning) -> tuple[Message, ...]:
    """The row's solution as messages: its texts, a call for each annotation, the answer as the final message.

    Empty when the row cannot be shown with the calculator: it has no annotation, or one that the calculator cannot
    evaluate or does not confirm.
    """
    text, *rest = ANNOTATION.split(row.solution)
    messages = _thought(text, reasoning)
    for annotation, following in zip(rest[::2], rest[1::2], strict=True):
        expression, _, value = annotation.partition("=")
        try:
            call, answer = calculation(expression)
            confirmed = answer.content == evaluate(value)
        except ArithmeticFault:
            confirmed = False
        if not confirmed:
            return ()
        messages += [call, answer, *_thought(following, reasoning)]
    return (*messages, Message(role="assistant", channel="final", content=row.answer)) if rest else ()


def _thought(text: str, reasoning: Reasoning) -> list[Message]:
    return [Message(role="assistant", channel=reasoning, content=text.strip())] if text.strip() else []


@dataclass(frozen=True, kw_only=True)
class GSM8K(ToolEnvironment):
    """Grade-school word problems, with a calculator over several turns or without one in a single turn.

    With the calculator 7376 of the 7473 training rows become demonstrations, with 23706 calls. Left out are 95
    solutions without any annotation, which would teach to answer without the tool, and 2 with `//`, which the
    calculator does not know. The calculator confirms every other annotation. They remain tasks, as do all 1319 test
    rows. Without the calculator every training row is a demonstration.
    """

    data: Path
    """Folder that holds train.jsonl and test.jsonl."""
    calculator: bool = True
    """Offer the calculator tool; without it the first message ends the trajectory, and a call is an unknown tool's."""
    instructions: str | None = None
    """System message before each question; empty leaves it out. None: a sentence that asks for steps, for the
    calculator where there is one, and for the number alone."""
    reasoning: Reasoning = "analysis"
    """Where demonstrations reason: 'analysis', or 'commentary' for chat templates that drop earlier thoughts."""

    def tasks(self, split: Split) -> Sequence[Task]:
        return [self._task(split, number, row) for number, row in self._rows(split)]

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        """One for each training row, with the calculator only where it confirms every annotation; the seed changes
        nothing."""
        show = demonstrate if self.calculator else demonstrate_alone
        shown = [(number, row, show(row, self.reasoning)) for number, row in self._rows("train")]
        return [
            Demonstration(task=self._task("train", number, row), messages=said) for number, row, said in shown if said
        ]

    def tools(self, task: Task, state: None) -> Sequence[Tool]:
        return (calculator,) if self.calculator else ()

    async def grade(self, ending: Ending) -> Mapping[str, float]:
        """1 when the final message states the reference answer (see `stated_answer`)."""
        right = ending.answer is not None and stated_answer(ending.answer) == number_alone(ending.task.data["answer"])
        return {"correct": float(right)}

    def _rows(self, split: Split) -> list[tuple[int, Row]]:
        """The rows of a split with their line numbers."""
        return list(enumerate(read_rows(self.data / FILES[split]), start=1))

    def _task(self, split: Split, number: int, row: Row) -> Task:
        """A task is named after its line, e.g. gsm8k/train/17."""
        instructions = INSTRUCTIONS[self.calculator] if self.instructions is None else self.instructions
        opening = [Message(role="system", content=instructions)] if instructions else []
        question = Message(role="user", content=row.question)
        return Task(id=f"gsm8k/{split}/{number}", messages=(*opening, question), data={"answer": row.answer})
