"""Between Lockstep's messages and those of `verifiers`, which are OpenAI's: one assistant message a turn, its calls
with ids, an answer for each.

In and out: `Message`. The other side's messages are read by their attributes alone, so that nothing here imports it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.rollout.tool import readable
from lockstep.types import Message, Task, ToolDescription

PREFIX = "functions."


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call. arguments: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An action as one assistant message. content: what it says aloud; reasoning: what it thinks; None where it does
    not."""

    content: str | None
    reasoning: str | None
    calls: tuple[Call, ...] = ()


def reply_of(action: Sequence[Message], ids: itertools.count[int]) -> Reply:
    """Lockstep's assistant messages as one reply. Every message with a recipient is a call, with the next of the ids.

    Messages in the channel analysis are the reasoning. The final ones, or those of a format without channels, are the
    content; where there are none it is what commentary says, the preamble to calls.
    """
    spoken = [message for message in action if message.recipient is None]
    thought = [message.content for message in spoken if message.channel == "analysis"]
    final = [message.content for message in spoken if message.channel in ("final", None)]
    aside = [message.content for message in spoken if message.channel == "commentary"]
    calls = tuple(
        Call(id=f"call_{next(ids)}", name=message.recipient.removeprefix(PREFIX), arguments=message.content)
        for message in action
        if message.recipient is not None
    )
    content, reasoning = "\n".join(final or aside) or None, "\n".join(thought) or None
    if content is None and reasoning is None and not calls:
        content = ""  # a message that says nothing is still one
    return Reply(content=content, reasoning=reasoning, calls=calls)


def read_messages(messages: Sequence[Any], names: MutableMapping[str, str]) -> tuple[Message, ...]:
    """Messages of verifiers as Lockstep's. names: the tool of each call by its id; what is called here is added.

    Raises ValueError, in one line, for what Lockstep has no message for: pictures and sound, a tool's answer to a call
    that nobody made, an unknown role.
    """
    found: list[Message] = []
    for message in messages:
        match message.role:
            case "system" | "user":
                found.append(Message(role=message.role, content=text_of(message.content)))
            case "text":
                found.append(Message(role="user", content=text_of(message.content)))
            case "tool":
                if message.tool_call_id not in names:
                    raise ValueError(
                        f"a tool message answers the call {message.tool_call_id!r}, which nobody made: give "
                        "ToolMessage(tool_call_id=...) the id of one of the last assistant message's tool_calls"
                    )
                name = readable(PREFIX + names[message.tool_call_id])
                found.append(Message(role="tool", name=name, content=readable(text_of(message.content))))
            case "assistant":
                found += _assistant(message, names)
            case role:
                raise ValueError(f"a message has the role {role!r}: Lockstep reads system, user, assistant and tool")
    return tuple(found)


def _assistant(message: Any, names: MutableMapping[str, str]) -> list[Message]:
    calls = message.tool_calls or []
    names.update((call.id, call.name) for call in calls)
    found = []
    if message.reasoning_content:
        found.append(Message(role="assistant", channel="analysis", content=message.reasoning_content))
    if (content := text_of(message.content)) or not (calls or found):
        found.append(Message(role="assistant", channel="commentary" if calls else "final", content=content))
    for call in calls:
        recipient = PREFIX + call.name
        found.append(Message(role="assistant", channel="commentary", recipient=recipient, content=call.arguments))
    return found


def text_of(content: Any) -> str:
    """A content's text, its parts joined; what has no UTF-8 becomes a question mark. Raises ValueError for a part that
    is no text."""
    if content is None or isinstance(content, str):
        return (content or "").encode("utf-8", "replace").decode()
    texts = []
    for part in content:
        fields = part if isinstance(part, Mapping) else vars(part)
        if fields.get("type") != "text":
            raise ValueError(
                f"a message has a part of type {fields.get('type')!r}: Lockstep trains on text alone; use an "
                "environment without pictures or sound"
            )
        texts.append(fields["text"])
    return text_of("".join(texts))


def read_tools(tools: Sequence[Any]) -> tuple[ToolDescription, ...]:
    """verifiers' tool definitions as Lockstep's."""
    return tuple(
        ToolDescription(name=tool.name, description=tool.description, parameters=tool.parameters) for tool in tools
    )


def task_of(task_id: str, prompt: Sequence[Any], row: Mapping[str, Any]) -> Task:
    """A dataset's row as a task. prompt: its messages; the row itself is the task's data."""
    return Task(id=task_id, messages=read_messages(prompt, {}), data={"row": row})
