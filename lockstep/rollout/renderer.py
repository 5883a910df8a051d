"""The Renderer protocol: messages <-> tokens, for one model family's format. Rollout is the only place where both
meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lockstep.types import Message, ToolDescription, UserError


class FormatError(UserError):
    """The model or the messages cannot be rendered: no chat format, a role the format lacks, a missing control
    token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What an action says. A malformed action is an outcome, not an exception.

    messages: all that could be read, in order; the last one decides what happens next (a call, or the final answer).
    malformed: the kind of fault ('no_channel', 'bad_header', 'no_message', 'unfinished', ...) or None.
    explanation: for `malformed`, one sentence for the model: what was wrong and what is expected.
    """

    messages: tuple[Message, ...]
    malformed: str | None = None
    explanation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """Context for the next action. tokens: appended to the history, or, when `restarts`, the whole new prompt."""

    tokens: tuple[int, ...]
    restarts: bool = False


class Renderer(Protocol):
    """Token-exact for its format: sampled tokens are kept as they are and only new messages are encoded."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an action."""
        ...

    def start(self, messages: Sequence[Message], tools: Sequence[ToolDescription]) -> tuple[int, ...]:
        """The first prompt, up to and including the opening of the assistant's turn."""
        ...

    def extend(
        self,
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[ToolDescription],
        *,
        last_action: Sequence[int],
    ) -> Extension:
        """Context after an action. messages: the conversation up to and including the action's; new: what answers
        it."""
        ...

    def parse(self, action: Sequence[int]) -> Parsed:
        """Read one action. Never raises, whatever the tokens."""
        ...

    def shorten(self, text: str, max_tokens: int) -> str:
        """A text of at most about max_tokens tokens: the middle of a longer one gives way to a note."""
        ...

    def demonstrate(
        self, messages: Sequence[Message], tools: Sequence[ToolDescription], num_given: int
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """A whole conversation as (tokens, action_mask): exactly the tokens that start/extend and the ideal actions
        give.

        The first `num_given` messages open the conversation. In the rest, assistant messages are actions (mask True).
        """
        ...
