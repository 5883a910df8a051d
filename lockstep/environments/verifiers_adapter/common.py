"""What the adapters for both of verifiers' interfaces do in the same way."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from lockstep.environments.verifiers_adapter.messages import Call
from lockstep.rollout.environment import Split
from lockstep.types import Message, ToolDescription, UserError

RowT = TypeVar("RowT")
NUM_HELDOUT = 64


def held_out(rows: Sequence[RowT], num_heldout: int | None, what: str) -> Mapping[Split, Sequence[RowT]]:
    """Rows in two, the last of them held out. Raises UserError when none would be left to train on."""
    number = num_heldout or NUM_HELDOUT
    if len(rows) <= number:
        raise UserError(f"{what}: environment.num_heldout={number} would leave none to train on; lower it")
    return {"train": rows[:-number], "heldout": rows[-number:]}


def counted(calls: Sequence[Call], tools: Sequence[ToolDescription]) -> Counter[str]:
    """An action's events: tool_calls, and malformed/unknown_tool for those of no tool on offer."""
    offered = {tool.name for tool in tools}
    events = Counter({"tool_calls": len(calls)}) if calls else Counter()
    if unknown := sum(call.name not in offered for call in calls):
        events["malformed/unknown_tool"] = unknown
    return events


def last_said(messages: Sequence[Message]) -> Sequence[Message]:
    """The action at a conversation's end that nobody answered."""
    said = list(itertools.takewhile(lambda message: message.role == "assistant", reversed(messages)))
    return said[::-1]
