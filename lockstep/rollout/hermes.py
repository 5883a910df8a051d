"""Thoughts and tool calls as plain text, the way Hermes and Qwen write them, to messages and back.

A thought is `<think>...</think>` at the beginning; a call is `<tool_call>{"name": ..., "arguments": ...}</tool_call>`;
what remains is said to the user. As messages: a thought is on channel 'analysis', a call has a recipient, and text has
neither; in this order, so that the last message tells a call from an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from lockstep.rollout.renderer import Parsed
from lockstep.types import Message

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_EXPECTED = '<tool_call>{"name": "NAME", "arguments": {...}}</tool_call>'


class _CallError(ValueError):
    """A call that cannot be read: its kind of fault, and a sentence for the model."""

    def __init__(self, kind: str, explanation: str) -> None:
        super().__init__(explanation)
        self.kind = kind


def write(messages: Sequence[Message]) -> str:
    """The text of one action."""
    thought, said = split(messages)
    return think(thought) + said if thought else said


def split(messages: Sequence[Message]) -> tuple[str, str]:
    """What one action thinks ('' for nothing), and the text of what it says and calls."""
    thoughts = [message.content for message in messages if _is_thought(message)]
    texts = [message.content for message in messages if message.recipient is None and not _is_thought(message)]
    calls = [_write_call(message) for message in messages if message.recipient is not None]
    return "\n".join(thoughts), "\n".join([*filter(None, texts), *calls])


def think(thought: str) -> str:
    return f"<think>\n{thought}\n</think>\n\n"


def read(text: str, *, opened: bool = False) -> Parsed:
    """The messages of one action's text. opened: the prompt ended with <think>, so the text begins inside it."""
    messages: list[Message] = []
    faults: list[tuple[str, str]] = []
    text = text.lstrip()
    if opened or text.startswith("<think>") or "</think>" in text:
        thought, closed, text = text.removeprefix("<think>").partition("</think>")
        if thought.strip():
            messages.append(Message(role="assistant", content=thought.strip(), channel="analysis"))
        if not closed:
            faults.append(("unclosed_thought", "The thought has no </think>: close it, then call a tool or answer."))
        elif not text.strip():
            faults.append(("no_answer", "Nothing follows </think>: call a tool or answer."))
    calls = []
    for match in _CALL.finditer(text):
        try:
            calls.append(_read_call(match[1], closed=bool(match[2])))
        except _CallError as error:
            faults.append((error.kind, str(error)))
    if (said := _CALL.sub("", text).strip()) or not (messages or calls or faults):
        messages.append(Message(role="assistant", content=said))
    kind, explanation = faults[0] if faults else (None, None)
    return Parsed(messages=(*messages, *calls), malformed=kind, explanation=explanation)


def _is_thought(message: Message) -> bool:
    return message.channel == "analysis" and message.recipient is None


def _write_call(message: Message) -> str:
    name = json.dumps((message.recipient or "").removeprefix("functions."), ensure_ascii=False)
    try:
        json.loads(message.content)
        arguments = message.content
    except (ValueError, RecursionError):
        arguments = json.dumps(message.content, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _read_call(text: str, *, closed: bool) -> Message:
    """A call's message. Its arguments are JSON text, or whatever string the model gave in their place."""
    if not closed:
        raise _CallError("unclosed_call", f"The tool call has no </tool_call>; expected {_EXPECTED}.")
    try:
        call = json.loads(text)
        arguments = call.get("arguments") if isinstance(call, dict) else None
        content = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise _CallError("bad_json", f"The tool call is not valid JSON ({error}); expected {_EXPECTED}.") from error
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not isinstance(arguments, dict | str):
        raise _CallError("bad_call", f"A tool call needs a name and an object of arguments: {_EXPECTED}.")
    return Message(role="assistant", content=content, recipient=f"functions.{call['name']}")
