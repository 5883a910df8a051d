"""A whole conversation as one token sequence with a mask: what the turn loop would give if every action were ideal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from lockstep.rollout.renderer import FormatError, Renderer
from lockstep.types import Message, ToolDescription

Act = Callable[[Sequence[Message], Sequence[Message]], tuple[int, ...]]


def demonstration(
    renderer: Renderer, act: Act, messages: Sequence[Message], tools: Sequence[ToolDescription], num_given: int
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Tokens and action mask. Consecutive assistant messages are one action.

    act: the ideal action's tokens, from the conversation before it and the messages that it says.
    Raises FormatError when the first message after the given ones is not the assistant's, or when the history restarts
    on the way, so that it is no single sequence.
    """
    tokens = list(renderer.start(messages[:num_given], tools))
    mask = [False] * len(tokens)
    if num_given < len(messages) and messages[num_given].role != "assistant":
        raise FormatError(
            f"message {num_given} of the demonstration is of role {messages[num_given].role!r}: "
            "the first message after the given ones must be the assistant's"
        )
    said: list[Message] = list(messages[:num_given])
    action: tuple[int, ...] = ()
    for is_action, group in groupby(messages[num_given:], key=lambda message: message.role == "assistant"):
        spoken = list(group)
        if is_action:
            piece = action = act(said, spoken)
        else:
            extension = renderer.extend(said, spoken, tools, last_action=action)
            if extension.restarts:
                raise FormatError(
                    f"the {spoken[0].role} message after {said[-1].content[:40]!r} restarts the history, so this "
                    "demonstration is no single sequence: end it before, or give the earlier turns as task messages"
                )
            piece = extension.tokens
        tokens += piece
        mask += [is_action] * len(piece)
        said += spoken
    return tuple(tokens), tuple(mask)
