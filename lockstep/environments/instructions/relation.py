"""How instructions compare a count with a number."""

from __future__ import annotations

import re
from typing import Literal

Relation = Literal["at least", "less than"]
IN_WORDS = "zero one two three four five six seven eight nine ten".split()  # noqa: SIM905


def holds(count: int, relation: Relation, number: int) -> bool:
    """Whether `count` is at least, or less than, `number`."""
    return count >= number if relation == "at least" else count < number


def may_be_more(prompt: str, number: int) -> bool:
    """Whether a prompt asks for `at least` so many sections, paragraphs or parts; data says only how many."""
    written = f"{number}|{IN_WORDS[number]}" if number < len(IN_WORDS) else str(number)
    return re.search(rf"at least (?:{written}) (?:sections|paragraphs|parts)\b", prompt, re.IGNORECASE) is not None
