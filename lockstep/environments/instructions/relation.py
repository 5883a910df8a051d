"""How instructions compare a count with a number."""

from __future__ import annotations

from typing import Literal

Relation = Literal["at least", "less than"]


def holds(count: int, relation: Relation, number: int) -> bool:
    """Whether `count` is at least, or less than, `number`."""
    return count >= number if relation == "at least" else count < number
