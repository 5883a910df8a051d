"""Ledger: generated word problems of several steps, each to be worked out with a calculator tool.

A person's count of some object changes two or three times; what another person has distracts. The answer goes
into a final message; reward is 1 for exactly the right number. Problems are a function of (seed, index); whether a
problem is held out is decided by a hash of its text, so no held-out problem can occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lockstep.environments.held_out import is_held_out
from lockstep.environments.mathematics.arithmetic import calculation, calculator
from lockstep.rollout.environment import Split, ToolEnvironment
from lockstep.rollout.reward import Ending
from lockstep.rollout.tool import Tool
from lockstep.types import Demonstration, Message, Task

NAMES = [
    "Ann",
    "Ben",
    "Cara",
    "Dan",
    "Eve",
    "Finn",
    "Gus",
    "Hana",
    "Ivan",
    "Jo",
    "Kim",
    "Leo",
    "Mia",
    "Ned",
    "Ola",
    "Pam",
]
OBJECTS = ["apples", "beans", "buns", "cakes", "eggs", "figs", "jams", "nuts", "pears", "pies", "plums", "rolls"]
GAINS = ("buys", "finds", "gets", "makes")
LOSSES = ("sells", "loses", "eats", "drops")
HELDOUT_SHARE = 8  # one problem in so many is held out


@dataclass(frozen=True, slots=True)
class Problem:
    """text; start and signed changes of the asked count, in order; decoys: numbers that the text mentions beside
    them."""

    text: str
    start: int
    changes: tuple[int, ...]
    decoys: tuple[int, ...]

    @property
    def answer(self) -> int:
        return self.start + sum(self.changes)

    @property
    def held_out(self) -> bool:
        return is_held_out(self.text, one_in=HELDOUT_SHARE)


def draw_problem(random_: random.Random) -> Problem:
    """One problem; every count in it stays within 1..99."""
    name, other = random_.sample(NAMES, 2)
    thing = random_.choice(OBJECTS)
    start = random_.randint(10, 60)
    count, changes, events = start, [], []
    for _ in range(random_.choice((2, 3))):
        gain = random_.random() < 0.5 if 20 <= count <= 80 else count < 20
        amount = random_.randint(2, min(30, 99 - count if gain else count - 1))
        changes.append(amount if gain else -amount)
        count += changes[-1]
        events.append(f"{name} {random_.choice(GAINS if gain else LOSSES)} {amount}.")
    decoys = []
    if random_.random() < 0.6:
        decoys.append(random_.randint(2, 30))
        events.insert(random_.randint(0, len(events)), f"{other} has {decoys[0]} {thing}.")
    text = f"{name} has {start} {thing}. {' '.join(events)} How many {thing} does {name} have?"
    return Problem(text, start, tuple(changes), tuple(decoys))


def problems(split: Split, count: int, seed: int) -> list[Problem]:
    """The first `count` distinct problems of a split, in an order fixed by the seed."""
    random_ = random.Random(f"ledger {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw_problem(random_)
        if problem.held_out == (split == "heldout"):
            found.setdefault(problem.text, problem)
    return list(found.values())


def demonstrate(problem: Problem, random_: random.Random, carelessness: float) -> tuple[Message, ...]:
    """Work a problem step by step. At each step, with probability `carelessness`, the demonstrator stops early, counts
    a decoy in, or misreads a number, so that whoever imitates it has the skill without the reliability."""
    messages: list[Message] = []
    count, changes, decoys = problem.start, list(problem.changes), list(problem.decoys)
    while changes:
        change = changes.pop(0)
        if random_.random() < carelessness:
            slip = random_.choice((["stop"] if messages else []) + (["decoy"] if decoys else []) + ["misread"])
            if slip == "stop":
                break
            if slip == "decoy":
                changes.insert(0, change)
                change = decoys.pop()
            elif slip == "misread":
                change = (1 if change > 0 else -1) * random_.randint(2, 30)
        messages += calculation(f"{count}{'+' if change >= 0 else '-'}{abs(change)}")
        count += change
    return (*messages, Message(role="assistant", channel="final", content=str(count)))


@dataclass(frozen=True, kw_only=True)
class Ledger(ToolEnvironment):
    """Word problems about counts that change, with a calculator."""

    num_train: int = 8192
    """Distinct training problems."""
    num_heldout: int = 512
    """Distinct held-out problems."""
    num_demonstrations: int = 12800
    """Worked training problems for the cold start."""
    carelessness: float = 0.35
    """Probability that the demonstrator errs at a step; 0 demonstrates perfectly."""
    seed: int = 0
    """Chooses the problems; the same in every run that is to be compared."""

    def tasks(self, split: Split) -> Sequence[Task]:
        count = self.num_train if split == "train" else self.num_heldout
        return [self._task(split, i, problem) for i, problem in enumerate(problems(split, count, self.seed))]

    def _task(self, split: Split, index: int, problem: Problem) -> Task:
        opening = (Message(role="user", content=problem.text),)
        return Task(id=f"ledger/{split}/{index}", messages=opening, data={"answer": problem.answer})

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        random_ = random.Random(f"demonstrations {seed}")
        solved = problems("train", self.num_demonstrations, seed=1 + self.seed)
        return [
            Demonstration(
                task=self._task("train", i, problem), messages=demonstrate(problem, random_, self.carelessness)
            )
            for i, problem in enumerate(solved)
        ]

    def tools(self, task: Task, state: None) -> Sequence[Tool]:
        return (calculator,)

    async def grade(self, ending: Ending) -> Mapping[str, float]:
        right = str(ending.task.data["answer"])
        return {"correct": float(ending.answer is not None and ending.answer.strip() == right)}
