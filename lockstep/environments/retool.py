r"""ReTool (arXiv:2504.11536): mathematics problems, solved with Python in the sandbox and answered in a \boxed{...}.

In: files of problems with reference answers (MATH, AIME; see mathematics/rows.py), or none for generated easy ones. The
answer is the content of the last \boxed{...} of the final message, compared symbolically (see mathematics/answers.py).
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lockstep.environments.held_out import is_held_out
from lockstep.environments.mathematics.answers import Comparison, compared, is_quoted
from lockstep.environments.mathematics.boxed import last_box
from lockstep.environments.mathematics.easy import EasyProblem, demonstrate, easy_problems
from lockstep.environments.mathematics.rows import MathRow, read_math_rows
from lockstep.environments.tools.python import Interpreter, python_tool, shared_places, shared_sandbox
from lockstep.rollout.concurrency import in_thread
from lockstep.rollout.environment import Split, ToolEnvironment
from lockstep.rollout.reward import Ending, Score
from lockstep.rollout.tool import Tool
from lockstep.sandbox.sandbox import SandboxOptions
from lockstep.types import Demonstration, Message, Task, UserError

HELDOUT_SHARE = 16  # one row in so many is held out where no file of held-out ones is given

Scoring = Literal["retool", "exact"]


def retool_parts(right: bool, num_rounds: int) -> dict[str, float]:
    """The published reward (the ReTool recipe of verl) as parts that sum to it.

    A right answer is worth 1.0, a wrong one min(-0.6, -1.0 + (num_turns - 2) / 2 * 0.1). num_turns counts the prompt,
    each action and each round of the tool's answers: 2 for a direct answer and 2 more for each round, so every round is
    worth 0.1, up to four. num_rounds: how often the tool answered an action, whatever it answered.
    """
    if right:
        return {"correct": 1.0, "wrong": 0.0, "tools": 0.0}
    num_turns = 2 + 2 * num_rounds
    return {"correct": 0.0, "wrong": -1.0, "tools": min(-0.6, -1.0 + (num_turns - 2) / 2 * 0.1) + 1.0}


def num_rounds(messages: Sequence[Message]) -> int:
    """How many actions `python` answered; parallel calls of one action are one round, and the parser's complaints about
    malformed actions none."""
    answered = [message.role == "tool" and message.name == "functions.python" for message in messages]
    return sum(now and not before for before, now in zip([False, *answered], answered, strict=False))


@dataclass(frozen=True, kw_only=True)
class ReTool(ToolEnvironment):
    """Mathematics with a Python interpreter. Needs the extra `math`. Published runs allow 8 turns, an option of the
    rollout."""

    data: Path | None = None
    """File or folder of the training problems; None generates easy ones, which a tiny model can learn."""
    heldout: Path | None = None
    """File or folder of the held-out problems, which are taken out of the training ones; None holds out one in 16 of
    `data`, by a hash of its text."""
    scoring: Scoring = "retool"
    """'retool': 1 for a right answer, and for a wrong one -1, or up to -0.6 for having used the tool. 'exact': 1 or
    0."""
    sandbox: SandboxOptions = field(default_factory=SandboxOptions)
    """How the model's code is run; all trajectories share one sandbox."""
    sessions: bool = False
    """Keep variables between the calls of a trajectory, at the price of a process for each that is running."""
    instructions: str = (
        "Solve the problem. You can run Python with the tool python and read what it prints. "
        r"End with the answer in \boxed{}."
    )
    """System message before each problem; empty leaves it out."""
    num_train: int = 4096
    """Generated training problems, where `data` is None."""
    num_heldout: int = 256
    """Generated held-out problems, where `data` is None."""
    num_demonstrations: int = 4096
    """Generated problems with their solutions, for the cold start; the published files have none with a tool."""
    carelessness: float = 0.0
    """Probability that a demonstrated solution slips: it guesses, or runs another program."""
    seed: int = 0
    """Chooses the generated problems; the same in every run that is to be compared."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise UserError(
                "ReTool compares answers with math-verify: install it with pip install 'math-verify[antlr4_13_2]'"
            )
        if self.heldout is not None and self.data is None:
            raise UserError(f"heldout={self.heldout} without data: give the training problems too: --environment.data")
        if not 0 <= self.carelessness <= 1:
            raise UserError(f"environment.carelessness={self.carelessness}: must be within 0 and 1")

    def tasks(self, split: Split) -> Sequence[Task]:
        if self.data is None:
            count = self.num_train if split == "train" else self.num_heldout
            easy = easy_problems(count, self.seed, held_out=split == "heldout")
            return [self._easy_task(split, number, problem) for number, problem in enumerate(easy)]
        return [self._task(row.name, row.problem, row.answer) for row in self._rows(split)]

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        """Generated ones, also where the tasks are real."""
        random_ = random.Random(f"retool demonstrations {seed}")
        solved = easy_problems(self.num_demonstrations, 1 + self.seed, held_out=False)
        return [
            Demonstration(
                task=self._easy_task("shown", number, problem),
                messages=demonstrate(problem, random_, self.carelessness),
            )
            for number, problem in enumerate(solved)
        ]

    async def open(self, task: Task) -> Interpreter:
        sandbox = await in_thread(lambda: shared_sandbox(self.sandbox))
        places = shared_places(self.sandbox)
        return Interpreter(sandbox, limits=self.sandbox.limits, sessions=self.sessions, places=places)

    def tools(self, task: Task, state: Interpreter) -> Sequence[Tool]:
        return (python_tool(state),)

    async def release(self, state: Interpreter) -> None:
        await state.close()

    async def grade(self, ending: Ending) -> Score:
        """The parts of `scoring`; measured beside them: late, 1 where the comparison was ended at its limit."""
        said = last_box(ending.answer or "")
        reference = ending.task.data["answer"]
        problem = " ".join(message.content for message in ending.task.messages if message.role == "user")
        if said is None or is_quoted(said, reference, problem):
            found = Comparison(False)
        else:
            found = await compared(said, reference)
        parts = (
            {"correct": float(found.equal)}
            if self.scoring == "exact"
            else retool_parts(found.equal, num_rounds(ending.messages))
        )
        return Score(parts=parts, measures={"late": float(found.ended is not None)})

    def _rows(self, split: Split) -> list[MathRow]:
        assert self.data is not None
        rows = read_math_rows(self.data)
        if self.heldout is None:
            held_out = split == "heldout"
            return [row for row in rows if is_held_out(_text(row.problem), one_in=HELDOUT_SHARE) == held_out]
        apart = read_math_rows(self.heldout)
        if split == "heldout":
            return apart
        asked = {_text(row.problem) for row in apart}
        return [row for row in rows if _text(row.problem) not in asked]

    def _easy_task(self, split: str, number: int, problem: EasyProblem) -> Task:
        return self._task(f"{split}/{number}", problem.text, str(problem.answer))

    def _task(self, name: str, problem: str, answer: str) -> Task:
        opening = [Message(role="system", content=self.instructions)] if self.instructions else []
        question = Message(role="user", content=problem)
        return Task(id=f"retool/{name}", messages=(*opening, question), data={"answer": answer})


def _text(problem: str) -> str:
    return " ".join(problem.split())
