r"""Solved inequalities as intervals: 3 \le x < 5 is [3,5), x < -4 \text{ or } x > 4 is (-\infty,-4)\cup(4,\infty).

Only a variable between numbers is read. Whatever leaves something to solve, such as x^2 \le 4, stays as it is:
math-verify would solve what the problem asked the policy for.
"""

from __future__ import annotations

import re

_NUMBER = r"([-+]?(?:[0-9./{} ]|\\frac|\\sqrt|\\pi|\\infty)+)"
_LESS = r"(<|\\leq?(?:slant)?(?![a-zA-Z])|\\lt(?![a-zA-Z])|\u2264)"
_MORE = r"(>|\\geq?(?:slant)?(?![a-zA-Z])|\\gt(?![a-zA-Z])|\u2265)"
_VARIABLE = r" ?[a-zA-Z] ?"
BETWEEN = re.compile(rf"{_NUMBER} ?{_LESS}{_VARIABLE}{_LESS} ?{_NUMBER}")
AT_MOST = re.compile(rf"{_VARIABLE}{_LESS} ?{_NUMBER}|{_NUMBER} ?{_MORE}{_VARIABLE}")
AT_LEAST = re.compile(rf"{_VARIABLE}{_MORE} ?{_NUMBER}|{_NUMBER} ?{_LESS}{_VARIABLE}")
APART = re.compile(rf"{_VARIABLE}(?:\\neq?(?![a-zA-Z])|\u2260) ?{_NUMBER}")
OR = re.compile(r" ?(?:\\text ?\{ ?or ?\}|\bor\b|\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])) ?")
STRICT = frozenset({"<", ">", r"\lt", r"\gt"})


def is_interval(reference: str) -> bool:
    """Whether a reference is an interval or a union of some; (1,2), which may be a point, is not."""
    if re.search(r"\\infty|\\cup", reference):
        return True
    return reference[:1] in ("(", "[") and reference[-1:] in (")", "]") and (reference[0] + reference[-1]) != "()"


def as_intervals(said: str) -> str:
    """A solved inequality, or several joined by `or`, as an interval or a union; any other text as it is."""
    found = [_interval(part.strip()) for part in OR.split(said)]
    return r"\cup".join(part for part in found if part is not None) if all(found) else said


def _interval(part: str) -> str | None:
    if match := BETWEEN.fullmatch(part):
        low, opening, closing, high = match.groups()
        return f"{_opened(opening)}{low},{high}{_closed(closing)}"
    if match := AT_MOST.fullmatch(part):
        sign, number = match[1] or match[4], match[2] or match[3]
        return rf"(-\infty,{number}{_closed(sign)}"
    if match := AT_LEAST.fullmatch(part):
        sign, number = match[1] or match[4], match[2] or match[3]
        return rf"{_opened(sign)}{number},\infty)"
    if match := APART.fullmatch(part):
        return rf"(-\infty,{match[1]})\cup({match[1]},\infty)"
    return None


def _opened(sign: str) -> str:
    return "(" if sign in STRICT else "["


def _closed(sign: str) -> str:
    return ")" if sign in STRICT else "]"
