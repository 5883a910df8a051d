"""All cases, by family and by name."""

from __future__ import annotations

from dataclasses import replace

from tests.sandbox.hostile import (
    answers,
    channels,
    clock,
    files,
    interpreter,
    kernel,
    lasting,
    memory,
    neighbours,
    network,
    output,
    privilege,
    processes,
    sessions,
    stalling,
    status,
    unseen,
    writing,
)
from tests.sandbox.hostile.case import Case

FAMILIES = (
    files,
    writing,
    processes,
    neighbours,
    network,
    memory,
    clock,
    output,
    kernel,
    privilege,
    status,
    channels,
    interpreter,
    sessions,
    stalling,
    unseen,
    answers,
    lasting,
)


def _named() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for family in FAMILIES:
        for each in family.CASES:
            if each.name in found:
                raise ValueError(f"two cases are named {each.name!r}")
            found[each.name] = replace(each, family=family.__name__.rpartition(".")[2])
    return found


CASES = _named()
