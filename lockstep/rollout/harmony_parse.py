"""Read one Harmony action, token by token, tolerantly: every sequence of tokens gives a result, none raises.

In: the sampled tokens after `<|start|>assistant`. Out: the messages that could be read and the first fault, if any. The
structure comes from control tokens alone; only what lies between them is decoded, so text that merely looks like a
control token is text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lockstep.rollout.renderer import Parsed
from lockstep.types import Message

CONTROL_TOKENS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
CHANNELS = ("analysis", "commentary", "final")

_SHAPE = "A message is <|channel|>, its channel, <|message|>, then its text."


def parse_action(tokens: Sequence[int], control: Mapping[int, str], decode: Callable[[Sequence[int]], str]) -> Parsed:
    """All messages of an action, and its first fault.

    control: the id of each control token, to its text. decode: turns tokens without control tokens into text.
    """
    reader = _Reader()
    marks = [position for position, token in enumerate(tokens) if token in control]
    begin = marks[0] if marks else len(tokens)
    if begin:
        reader.take("", decode(tokens[:begin]))
    for mark, following in pairwise([*marks, len(tokens)]):
        reader.take(control[tokens[mark]], decode(tokens[mark + 1 : following]) if following > mark + 1 else "")
    return reader.finish()


@dataclass(slots=True)
class _Header:
    """A message's header as text: before the channel, after each <|channel|>, and after <|constrain|>."""

    role: str = ""
    channels: list[str] = field(default_factory=list)
    content_type: str = ""
    opens_action: bool = False  # the prompt already said <|start|>assistant

    def raw(self) -> str:
        return " ".join(filter(None, (part.strip() for part in (self.role, *self.channels, self.content_type))))


class _Reader:
    """Takes control tokens with the text that follows each; `state` says where in the action they fall."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.fault: tuple[str, str] | None = None
        self.state = "header"  # then 'content', 'between' (after <|end|>) or 'stopped' (after a stop token)
        self.header = _Header(opens_action=True)
        self.content = ""

    def take(self, token: str, text: str) -> None:
        if self.state == "stopped":
            self._blame("trailing", "Nothing may follow <|call|> or <|return|>.")
        elif token in ("<|end|>", "<|call|>", "<|return|>"):
            self._close(token, text)
        elif self.state == "content":
            self._inside(token, text)
        elif self.state == "between":
            self._open(token, text)
        else:
            self._header_part(token, text)

    def finish(self) -> Parsed:
        """The result. An action that met no stop token keeps its last message as far as it came."""
        if self.state != "stopped":
            if self.state == "content" or self.header.raw():
                self._keep()
            self.fault = ("unfinished", "The action was cut off before <|call|> or <|return|>.")
        kind, explanation = self.fault or (None, None)
        return Parsed(messages=tuple(self.messages), malformed=kind, explanation=explanation)

    def _blame(self, kind: str, explanation: str) -> None:
        """Remember the first fault only: what follows it is often its consequence."""
        self.fault = self.fault or (kind, explanation)

    def _header_part(self, token: str, text: str) -> None:
        if token == "<|message|>":
            self.state, self.content = "content", text
        elif token == "<|channel|>":
            self.header.channels.append(text)
        elif token == "<|constrain|>":
            self.header.content_type += f" {text}"
        elif token == "<|start|>":
            self._blame("bad_header", f"<|start|> came before the header was complete. {_SHAPE}")
            self.header = _Header(role=text)
        else:
            self.header.role = text

    def _inside(self, token: str, text: str) -> None:
        if token == "<|start|>":
            self._blame("no_end", "A message must end with <|end|> before the next <|start|>.")
            self._keep()
            self._open(token, text)
        else:
            self._blame("stray_token", f"{token} may not stand inside a message's text. {_SHAPE}")
            self.content += token + text

    def _open(self, token: str, text: str) -> None:
        """Begin the header of a further message."""
        self.state = "header"
        if token == "<|start|>":
            self.header = _Header(role=text)
        else:
            self._blame("no_start", "After <|end|> the next message must begin with <|start|>assistant.")
            self.header = _Header(role="assistant")
            self._header_part(token, text)

    def _close(self, token: str, text: str) -> None:
        if self.state != "content":
            self._blame("no_message", f"{token} closes a message that has no <|message|>. {_SHAPE}")
        if self.state != "between":
            self._keep()
        if token == "<|end|>":
            self.state, self.header = "between", _Header()
            if text.strip():
                self._blame("no_start", "After <|end|> the next message must begin with <|start|>assistant.")
            return
        self._check_stop(token)
        self.state = "stopped"
        if text:
            self._blame("trailing", "Nothing may follow <|call|> or <|return|>.")

    def _check_stop(self, token: str) -> None:
        """The stop token must fit the message it ends: a call names its tool, an answer is final."""
        last = self.messages[-1]
        if token == "<|call|>" and last.recipient is None:
            self._blame("no_recipient", "<|call|> ends a tool call, which must name its tool: to=functions.NAME.")
        elif token == "<|return|>" and last.recipient is not None:
            self._blame("bad_end", f"The call to {last.recipient} must end with <|call|>, not with <|return|>.")
        elif token == "<|return|>" and last.channel != "final":
            self._blame("no_final", "<|return|> ends the answer, which must be a message on the final channel.")

    def _keep(self) -> None:
        """Interpret the header and keep the message; without <|message|> the header's own text is its content."""
        content = self.content if self.state == "content" else self.header.raw()
        recipient, channel = self._interpret()
        self.messages.append(Message(role="assistant", content=content, channel=channel, recipient=recipient))
        self.content = ""

    def _interpret(self) -> tuple[str | None, str | None]:
        """Recipient and channel of the present header, wherever in it they stand."""
        before, after = self.header.role.split(), " ".join(self.header.channels).split()
        if not self.header.opens_action:
            if before[:1] != ["assistant"]:
                self._blame("bad_role", "Only the assistant may speak here: begin with <|start|>assistant.")
            before = before[1:]
        channel = after.pop(0) if after and not after[0].startswith("to=") else None
        after += self.header.content_type.split()
        recipients = {word[3:] for word in (*before, *after) if word.startswith("to=")}
        content_types = [word for word in after if not word.startswith("to=")]
        if len(recipients) > 1 or "" in recipients or len(self.header.channels) > 1:
            self._blame("bad_header", f"The header must name one channel and at most one recipient. {_SHAPE}")
        if not all(word.startswith("to=") for word in before) or len(content_types) > 1:
            self._blame("bad_header", f"The header has a word that belongs to nothing. {_SHAPE}")
        if channel is None:
            self._blame("no_channel", f"The message names no channel. {_SHAPE}")
        elif channel not in CHANNELS:
            self._blame("bad_channel", f"{channel!r} is no channel: write analysis, commentary or final.")
        return min((name for name in recipients if name), default=None), channel
