r"""Generated problems that one line of Python solves, for a tiny model to learn the tool on: tasks and demonstrations.

Problems are a function of (seed, index); whether one is held out is decided by a hash of its text, so no held-out
problem can occur in training.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from lockstep.environments.held_out import is_held_out
from lockstep.types import Message, UserError

HELDOUT_SHARE = 8  # one problem in so many is held out
MAX_IN_VAIN = 100_000  # problems drawn without a new one among them


@dataclass(frozen=True, slots=True)
class EasyProblem:
    """text: the question. code: a program that prints the answer. slip: one that a careless head writes instead, and
    what that prints."""

    text: str
    code: str
    answer: int
    slip: tuple[str, int]

    @property
    def held_out(self) -> bool:
        return is_held_out(self.text, one_in=HELDOUT_SHARE)


def _product(random_: random.Random) -> EasyProblem:
    a, b = random_.randint(11, 99), random_.randint(11, 99)
    return EasyProblem(f"What is {a} times {b}?", f"print({a}*{b})", a * b, (f"print({a}+{b})", a + b))


def _remainder(random_: random.Random) -> EasyProblem:
    a, b, c = random_.randint(11, 99), random_.randint(11, 99), random_.randint(3, 29)
    text = f"What is the remainder when {a} times {b} is divided by {c}?"
    return EasyProblem(text, f"print({a}*{b}%{c})", a * b % c, (f"print({a}*{b}//{c})", a * b // c))


def _sum(random_: random.Random) -> EasyProblem:
    a, b = random_.randint(2, 49), random_.randint(50, 99)
    text, total = f"What is the sum of the integers from {a} to {b}?", (a + b) * (b - a + 1) // 2
    return EasyProblem(text, f"print(sum(range({a},{b}+1)))", total, (f"print(sum(range({a},{b})))", total - b))


def _divisor(random_: random.Random) -> EasyProblem:
    c = random_.randint(2, 12)
    a, b = c * random_.randint(2, 99 // c), c * random_.randint(2, 99 // c)
    text = f"What is the greatest common divisor of {a} and {b}?"
    slip = f"import math\nprint(math.lcm({a},{b}))", math.lcm(a, b)
    return EasyProblem(text, f"import math\nprint(math.gcd({a},{b}))", math.gcd(a, b), slip)


KINDS: tuple[Callable[[random.Random], EasyProblem], ...] = (_product, _remainder, _sum, _divisor)


def easy_problems(count: int, seed: int, *, held_out: bool) -> list[EasyProblem]:
    """The first `count` distinct problems that are, or are not, held out, in an order fixed by the seed.

    Raises UserError where there are not so many: there are about 230,000, and 33,000 of them held out. Near the end
    each new one takes long to find.
    """
    random_ = random.Random(f"easy mathematics {seed}")
    found: dict[str, EasyProblem] = {}
    in_vain = 0
    while len(found) < count:
        problem = random_.choice(KINDS)(random_)
        in_vain += 1
        if problem.text not in found and problem.held_out == held_out:
            found[problem.text] = problem
            in_vain = 0
        if in_vain == MAX_IN_VAIN:
            raise UserError(
                f"{count} easy problems that are {'' if held_out else 'not '}held out, but no more than {len(found)} "
                "distinct ones were found: lower num_train, num_heldout or num_demonstrations, or give data"
            )
    return list(found.values())


def demonstrate(problem: EasyProblem, random_: random.Random, carelessness: float) -> tuple[Message, ...]:
    """The call, what the sandbox prints for it, and the boxed answer. With probability `carelessness` the demonstrator
    slips: guesses without a call, or writes another program."""
    code, answer = problem.code, problem.answer
    if random_.random() < carelessness:
        if random_.random() < 0.5:
            return (_final(random_.randint(1, 99)),)
        code, answer = problem.slip
    call = json.dumps({"code": code}, separators=(",", ":"))
    return (
        Message(role="assistant", channel="commentary", recipient="functions.python", content=call),
        Message(role="tool", name="functions.python", content=str(answer)),
        _final(answer),
    )


def _final(answer: int) -> Message:
    return Message(role="assistant", channel="final", content=rf"\boxed{{{answer}}}")
