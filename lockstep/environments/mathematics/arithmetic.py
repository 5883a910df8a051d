"""Exact evaluation of arithmetic that a model wrote, and the calculator tool that offers it.

+ - * / and parentheses on decimal numbers, never by `eval`.
"""

from __future__ import annotations

import json
import re
from decimal import Context, Decimal
from fractions import Fraction

from lockstep.rollout.tool import ToolError, tool
from lockstep.types import Message

MAX_CHARACTERS = 200
ROUNDING = Context(prec=10)
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|([-+*/()]))")


class ArithmeticFault(ValueError):
    """The expression cannot be evaluated; the message says why, for the model to read."""


def evaluate(expression: str) -> str:
    """The value as text: an integer in full, any other number as a decimal rounded to ten significant digits. Never in
    scientific notation, so that a result can stand in the next expression.

    Raises ArithmeticFault for anything but numbers, the four operations and parentheses, and for division by zero.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ArithmeticFault(f"expression has {len(expression)} characters; at most {MAX_CHARACTERS} are read")
    tokens = _tokenize(expression)
    value, rest = _sum(tokens, 0)
    if rest != len(tokens):
        raise ArithmeticFault(f"unexpected {tokens[rest]!r}")
    if value.denominator == 1:
        return str(value.numerator)
    rounded = ROUNDING.divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{rounded.normalize(ROUNDING):f}"


@tool(inline=True)
def calculator(e: str) -> str:
    """Evaluate an arithmetic expression, for example 12+30."""
    try:
        return evaluate(e)
    except ArithmeticFault as fault:
        raise ToolError(str(fault)) from fault


def calculation(expression: str) -> tuple[Message, Message]:
    """A demonstrated use of the calculator: the call and its answer. Raises ArithmeticFault as `evaluate` does."""
    name = f"functions.{calculator.name}"
    call = Message(role="assistant", channel="commentary", recipient=name, content=f'{{"e":{json.dumps(expression)}}}')
    return call, Message(role="tool", name=name, content=evaluate(expression))


def _tokenize(expression: str) -> list[str]:
    tokens, place = [], 0
    text = expression.rstrip()
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise ArithmeticFault(f"unexpected {text[place:].lstrip()[0]!r}")
        tokens.append(match.group(1) or match.group(2))
        place = match.end()
    return tokens


def _sum(tokens: list[str], place: int) -> tuple[Fraction, int]:
    value, place = _product(tokens, place)
    while place < len(tokens) and tokens[place] in "+-":
        term, after = _product(tokens, place + 1)
        value = value + term if tokens[place] == "+" else value - term
        place = after
    return value, place


def _product(tokens: list[str], place: int) -> tuple[Fraction, int]:
    value, place = _factor(tokens, place)
    while place < len(tokens) and tokens[place] in "*/":
        factor, after = _factor(tokens, place + 1)
        if tokens[place] == "/" and factor == 0:
            raise ArithmeticFault("division by zero")
        value = value * factor if tokens[place] == "*" else value / factor
        place = after
    return value, place


def _factor(tokens: list[str], place: int) -> tuple[Fraction, int]:
    if place == len(tokens):
        raise ArithmeticFault("expression ends too early")
    token = tokens[place]
    if token in "+-":
        value, place = _factor(tokens, place + 1)
        return (value if token == "+" else -value), place
    if token == "(":
        value, place = _sum(tokens, place + 1)
        if place == len(tokens) or tokens[place] != ")":
            raise ArithmeticFault("missing )")
        return value, place + 1
    if token in "*/)":
        raise ArithmeticFault(f"unexpected {token!r}")
    return Fraction(token), place + 1
