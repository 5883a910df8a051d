r"""Whether an answer to a mathematics problem is the reference: first by text and exact numbers, then symbolically.

Both are LaTeX without a \boxed around it. Most pairs are decided here, in microseconds; the rest go to math-verify in
a worker process with a limit of processor time (see pool.py), so nothing here hangs or evaluates.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lockstep.environments.mathematics.intervals import as_intervals, is_interval
from lockstep.environments.mathematics.pool import MathPool
from lockstep.environments.mathematics.stated import HEDGES, number_alone, without_gaps
from lockstep.rollout.concurrency import in_thread
from lockstep.rollout.tool import InfrastructureError

MAX_CHARACTERS = 1000  # of an answer; the longest reference of MATH has 159

FONTS = r"text(?:bf|rm|it|normal)|math(?:rm|bf|it)|boldsymbol|bm|bf(?= ?\{)|underline|mbox"
CLEANING = (
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile("\u221a ?([0-9]+|[a-z])"), r"\\sqrt{\1}"),
    (re.compile("\u00b2"), "^2"),
    (re.compile("\u00b3"), "^3"),
    (re.compile(r"\\\\ ?\[-?[0-9.]+ ?(?:pt|ex|em|mm|cm)\]"), r"\\\\"),
    (re.compile(r"(?<=[0-9])(?:,\\! ?|\{,\})(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\{,\}(?=[0-9])"), ","),
    (re.compile(r"(?<!\\)\\(?:!|(?:displaystyle|left|right|[bB]igg?[lr]?)(?![a-zA-Z]))|\{\}"), ""),
    (re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~|\s+"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac ?\\pi ?([0-9])"), r"\\frac{\\pi}{\1}"),
    (re.compile(r"\\phantom ?(?:\{[^{}]*\}|.)|^ ?\\approx(?![a-zA-Z])"), ""),
    (re.compile(rf"\\(?:{FONTS})(?![a-zA-Z])"), r"\\text"),
    (re.compile(r"\\bigcup(?![a-zA-Z])"), r"\\cup"),
    (re.compile(r"\\[lr]brace(?![a-zA-Z])"), lambda brace: r"\{" if brace[0][1] == "l" else r"\}"),
    (re.compile(r",? ?\\text ?\{ ?,? ?and ?\} ?|(?<=[0-9}]),? and (?=[-0-9\\])"), ", "),
    (re.compile(r" ?(?:\{:\}|\\colon(?![a-zA-Z])|(?<=[0-9]) ?\\text ?\{ ?(?:to|:) ?\}) ?"), ":"),
    (re.compile(r"\^ ?(?:\\circ|\{ ?\\circ ?\})|°|\\degree(?![a-zA-Z])"), ""),
    (re.compile(r"(?<!\\)\\[$()\[\]]|\$"), ""),
    (re.compile(r"^ ?[a-zA-Z] ?\\in(?![a-zA-Z])"), ""),
    (re.compile(" {2,}"), " "),
)
EXPONENT = r"(?: ?\^ ?(?:[0-9]|\{[0-9]\}))?"
UNIT = re.compile(rf"(?<=[0-9)}}\]a-zA-Z]) ?\\text ?\{{[^{{}}0-9]*\}}{EXPONENT}$")
UNIT_IN_WORDS = re.compile(rf"(?<=[0-9}})])(?: [a-zA-Z]{{2,}}(?: [a-zA-Z]+)*| ?(?:cm|mm|km|kg|ft|mph)){EXPONENT}$")
QUALIFIED = re.compile(rf"{HEDGES.pattern}|\b(?:less|more|fewer|[ap]\.?m)\b", re.IGNORECASE)  # no unit: it says more
SCIENTIFIC = re.compile(r"\\(?:times|cdot) ?10 ?\^")
UNDONE = re.compile(  # an operation that the answer leaves to the reader
    r"\\(?:sum|prod|int|lim|gcd|lcm|min|max|det|[dt]?binom|choose|[lr]floor|[lr]ceil|[bp]?mod|div|[clv]?dots|log|ln"
    r"|(?:arc)?(?:sin|cos|tan)|operatorname)(?![a-zA-Z])|!|\|"
    r"|[0-9)}] ?(?:[-+*]|\\(?:times|cdot)(?![a-zA-Z])) ?[0-9({\\]|[0-9)] ?\( ?[-0-9]"
)
NAME = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]|^ ?\\[a-zA-Z]+ ?$|^ ?$")  # a side that names what is equal to the others
WORD = re.compile(r"(?:\\text ?\{ ?)?\(?([a-zA-Z]+(?: [a-zA-Z]+)*)\)?(?: ?\})?")
BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
TEXT = re.compile(r"\\text ?\{[^{}]*\}")
IN_BASE = re.compile(rf"\(?(-?[0-9][0-9A-F]*)\)? ?_ ?\{{? ?(?:\\text ?\{{)? ?\(?([0-9]+|{'|'.join(BASES)})\)? ?\}}*")
THOUSANDS = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")
GROUP = re.compile(r"[(\[][^()\[\]]*,")
NAMED = re.compile(r"([a-zA-Z]) ?= ?([^=]+)")


@dataclass(frozen=True, slots=True)
class Comparison:
    """equal: the verdict. ended: why the worker gave none, 'late' or 'crashed', so that the answer counts as wrong."""

    equal: bool
    ended: Literal["late", "crashed"] | None = None


def equal(answer: str, reference: str) -> bool:
    """Whether the answer is the reference in another form; from any thread. Raises as `compared` does."""
    quick = without_worker(answer, reference)
    if quick is not None:
        return quick
    said, meant = _both(answer, reference)
    verdict = pool().compare(said, meant)
    if verdict in ("late", "crashed"):
        _check_reference(meant)
    return verdict == "equal"


async def compared(answer: str, reference: str) -> Comparison:
    """Whether the answer is the reference in another form; from any event loop, which it does not block.

    An answer whose comparison is late or kills its worker is wrong, if the reference can be compared with itself.
    Raises InfrastructureError where it cannot, or no worker can be started.
    """
    quick = without_worker(answer, reference)
    if quick is not None:
        return Comparison(quick)
    said, meant = _both(answer, reference)
    verdict = await asyncio.wrap_future(pool().submit(said, meant))
    if verdict == "late" or verdict == "crashed":
        # Not submitted: it would stand behind all waiting answers, and the trajectory's time would pass there.
        await in_thread(lambda: _check_reference(meant))
        return Comparison(False, verdict)
    return Comparison(verdict == "equal")


@lru_cache(maxsize=4096)
def _check_reference(meant: str) -> None:
    """Raises InfrastructureError where a reference, cleaned, cannot be compared with itself: that an answer could not
    be compared with it is then not the answer's doing. Once for each: what raises is not remembered."""
    with_itself = pool().compare(meant, meant)
    if with_itself in ("late", "crashed"):
        raise InfrastructureError(
            f"the reference {meant[:60]!r} cannot be compared with itself ({with_itself}): remove its row"
        )


def pool() -> MathPool:
    """The process's workers; a fork gets its own."""
    return _pool(os.getpid())


@lru_cache(maxsize=1)
def _pool(pid: int) -> MathPool:
    return MathPool()


@lru_cache(maxsize=4096)
def cleaned(text: str) -> str:
    r"""LaTeX without what only changes its looks, and without units.

    \dfrac is \frac; \left, thin spaces, dollar signs, degrees, x \in and a full stop go; so does \text{...} after
    something, as in 15\text{ cm}^2, unless it says another number or time of day, as in 5\text{ million}.
    """
    text = without_gaps(text.strip())
    for pattern, replacement in CLEANING:
        text = pattern.sub(replacement, text)
    text = text.strip().removesuffix(".").removesuffix(",").strip()
    unit = UNIT.search(text)
    return text[: unit.start()].strip() if unit and not QUALIFIED.search(unit[0]) else text


def _both(answer: str, reference: str) -> tuple[str, str]:
    r"""Both cleaned, the answer with a view to the reference: where that has no comma, 2,304\pi is one number and no
    list, and where it is an interval, so is a solved inequality."""
    said, meant = cleaned(answer), cleaned(reference)
    if "," not in meant and not _grouping(said):
        said = THOUSANDS.sub(lambda number: number[0].replace(",", ""), said)
    return as_intervals(said) if is_interval(meant) else said, meant


def _in_base(match: re.Match[str]) -> tuple[str, str]:
    return match[1], BASES.get(match[2], match[2])


def _is_qualified(text: str) -> bool:
    unit = UNIT.search(text)
    return unit is not None and QUALIFIED.search(unit[0]) is not None


def _said(text: str) -> str:
    r"""A text as its letters and signs alone: 8:34\text{ p.m.} and 8:34 PM are the same."""
    return re.sub(r"\\text|[{}. ]", "", text).casefold()


def without_worker(answer: str, reference: str) -> bool | None:
    """The verdict where text and exact numbers give one; None where symbols must be compared.

    False for an answer that is empty, has more than MAX_CHARACTERS, unbalanced braces or no UTF-8 form.
    """
    if len(answer) > MAX_CHARACTERS or not _readable(answer):
        return False
    said, meant = _both(answer, reference)
    if not said:
        return False
    if _squeezed(said) == _squeezed(meant):
        return True
    if _is_qualified(said) or _is_qualified(meant):
        return _said(said) == _said(meant)
    words = WORD.fullmatch(said), WORD.fullmatch(meant)
    if words[0] and words[1] and (meant.startswith(r"\text") or max(len(words[0][1]), len(words[1][1])) > 1):
        return _squeezed(words[0][1]).casefold() == _squeezed(words[1][1]).casefold()
    if TEXT.fullmatch(meant) and _said(said) == _said(meant):
        return True
    if base := IN_BASE.fullmatch(meant):
        other = IN_BASE.fullmatch(said)
        return _in_base(other) == _in_base(base) if other else said == base[1]
    if IN_BASE.fullmatch(said) or _otherwise_grouped(said, meant) or _is_false_equation(said, meant):
        return False
    if _grouping(meant) in ("(", "[") and _holds_a_group(said):
        return False
    if number_alone(meant) is not None and _is_undone(said):
        return False
    return _same_number(said, meant)


def _is_undone(said: str) -> bool:
    r"""Whether an answer leaves the computing to whoever compares it: 66 \times 17, \gcd(92,76), x = 66 \times 17.
    math-verify would compute what the problem asked the policy for. An equation is done where one side is a value."""
    sides = re.split(r"=(?![^{}]*\})|\\approx", said)
    undone = [UNDONE.search(SCIENTIFIC.sub("", side)) is not None for side in sides]
    is_value = [NAME.search(UNIT_IN_WORDS.sub("", side)) is None for side in sides]
    return any(undone) and not any(value and not open_ for value, open_ in zip(is_value, undone, strict=True))


def is_quoted(answer: str, reference: str, problem: str) -> bool:
    """Whether an answer is a formula of the problem's, and not as the reference has it. Words and numbers, alone or
    after `=`, are no formulas."""
    said = cleaned(answer)
    if WORD.fullmatch(said) or number_alone(said.rpartition("=")[2]) is not None:
        return False
    return _squeezed(said) != _squeezed(cleaned(reference)) and _squeezed(said) in _squeezed(cleaned(problem))


def _otherwise_grouped(said: str, meant: str) -> bool:
    r"""Whether one is a set, \{1,2\}, and the other a pair or an interval, (1,2)."""
    return {_grouping(said), _grouping(meant)} in ({"set", "("}, {"set", "["})


def _holds_a_group(said: str) -> bool:
    """Whether a pair or an interval stands within something else, as in 2(1,2): math-verify reads the pair alone."""
    return r"\cup" not in said and _grouping(said.rpartition("=")[2].strip()) == "" and GROUP.search(said) is not None


def _grouping(text: str) -> str:
    """How several things are held together as one: 'set', '(' or '['; empty where nothing holds them all."""
    named = NAMED.fullmatch(text)
    text = named[2].strip() if named else text
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "set" if text.count(r"\{") == 1 else ""
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or "," not in text:
        return ""
    depth = 0
    for sign in text[:-1]:
        depth += (sign in "([") - (sign in ")]")
        if depth == 0:
            return ""
    return text[0]


def _is_false_equation(said: str, meant: str) -> bool:
    """Whether an answer equates two different numbers, where an equation is not what is asked for: 3=4."""
    if "=" in meant or said.count("=") != 1:
        return False
    left, right = map(number_alone, said.split("="))
    return left is not None and right is not None and left != right


def _same_number(said: str, meant: str) -> bool | None:
    """Exactly, where both are plain numbers; a percent sign may stand for itself or for hundredths."""
    mine, right = NAMED.fullmatch(said), NAMED.fullmatch(meant)
    if mine and right and mine[1] != right[1]:
        return None
    said, meant = mine[2] if mine else said, right[2] if right else meant
    reference, answer = number_alone(meant), number_alone(said)
    if reference is None:
        return None
    if answer is None and not QUALIFIED.search(said):
        answer = number_alone(UNIT_IN_WORDS.sub("", said))
    if answer is None:
        return None
    forms = {reference}
    if said.endswith("%") and not meant.endswith("%"):
        forms.add(reference * 100)
    if meant.endswith("%") and not said.endswith("%"):
        forms.add(reference / 100)
    return answer in forms


def _squeezed(text: str) -> str:
    """Without spaces, but for those between two digits."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", text)


def _readable(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0 and not any("\ud800" <= sign <= "\udfff" for sign in text)
