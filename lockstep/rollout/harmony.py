"""GPT-OSS's Harmony format: messages to tokens, exactly, and sampled actions back to messages.

In: messages and tool descriptions. Out: token ids, equal to what oss-harmony 0.0.11 gives on the same vocabulary. It
works on any fast tokenizer with Harmony's control tokens: GPT-OSS's o200k_harmony, or a tiny one made for a test.

How messages are written: a 'system' message becomes part of the developer message's instructions, because Harmony's
system message belongs to the model. Where a message names no channel, a call and a tool's answer are on commentary, and
an assistant's text is final. A call of `functions.NAME` is marked as JSON, any other call (`python`) as code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

from lockstep.rollout.demonstration import demonstration
from lockstep.rollout.harmony_parse import CONTROL_TOKENS, parse_action
from lockstep.rollout.harmony_tools import tools_section
from lockstep.rollout.plain_text import TextEncoder, backend_of, special_tokens
from lockstep.rollout.renderer import Extension, FormatError, Parsed
from lockstep.types import Message, ToolDescription

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmonyOptions:
    """How a Harmony prompt begins. Raises ValueError for a system field that is set while `system` is off.

    system: write GPT-OSS's own system message (identity, date, reasoning effort, channels), as in its training. Off: no
        system message at all, which saves about 60 tokens a prompt; for tiny models never trained with one.
    reasoning_effort: stands in the system message; the higher, the longer GPT-OSS thinks, the more tokens an action
        needs.
    date: stands in the system message as 'Current date'. Pinned, so that a prompt is the same tokens on every day;
        None leaves the line out.
    tool_definitions: show the tools in the developer message, in TypeScript notation. Off: the model is told nothing of
        its tools and must know them from training.
    """

    system: bool = True
    reasoning_effort: Literal["low", "medium", "high"] = "medium"
    date: str | None = "2025-06-28"
    tool_definitions: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not self.system and field.name in ("reasoning_effort", "date") and value != field.default:
                raise ValueError(
                    f"{field.name}={value!r} has no effect with system=False: set system=True, or leave it out"
                )


class HarmonyRenderer:
    """The Renderer for GPT-OSS. Raises FormatError for a tokenizer that is slow or lacks one of the control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, options: HarmonyOptions | None = None) -> None:
        self._options = options or HarmonyOptions()
        backend = backend_of(tokenizer)
        self._control = _control_ids(backend)
        ids = {text: token for token, text in self._control.items()}
        self._start, self._message, self._channel = ids["<|start|>"], ids["<|message|>"], ids["<|channel|>"]
        self._end, self._call, self._return = ids["<|end|>"], ids["<|call|>"], ids["<|return|>"]
        self._constrain = ids["<|constrain|>"]
        encoder = TextEncoder(backend, {*special_tokens(backend), *CONTROL_TOKENS})
        self._encode, self.shorten = encoder.encode, encoder.shorten
        # The same few texts (headers, system messages) recur; bounded, because models invent names of tools.
        self._encode_constant = lru_cache(maxsize=1024)(self._encode)
        self._decode = partial(backend.decode, skip_special_tokens=False)
        self._opening = (self._start, *self._encode_constant("assistant"))
        if (text := self._decode(self._encode("to=a b"))) != "to=a b":
            raise FormatError(
                f"the tokenizer changes text: 'to=a b' comes back as {text!r}; "
                "use a byte-level BPE with ByteLevel(add_prefix_space=False) and no normalizer"
            )

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (self._call, self._return)

    def start(self, messages: Sequence[Message], tools: Sequence[ToolDescription]) -> tuple[int, ...]:
        """The first prompt. Raises FormatError for a tool message without a name.

        Analysis before the last final answer is left out, as GPT-OSS's own serving does: a new question starts afresh.
        """
        shown = tools if self._options.tool_definitions else ()
        opening = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
        instructions = "\n\n".join(message.content for message in messages[:opening]) if opening else None
        tokens = [*self._plain("system", self._system_text(bool(shown)))] if self._options.system else []
        if instructions is not None or shown:
            tokens += self._plain("developer", _developer_text(instructions, shown))
        for message in _without_old_analysis(messages[opening:]):
            tokens += self._whole(message)
        return (*tokens, *self._opening)

    def extend(
        self,
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[ToolDescription],
        *,
        last_action: Sequence[int],
    ) -> Extension:
        """Context after an action, by the token it ended with.

        <|call|>: the answers are appended. <|return|>: Harmony rewrites such a history (<|return|> becomes <|end|>,
        older analysis goes), so it restarts. Neither, because the action was cut off: its open message is closed with
        <|end|>, as part of the context, and the answers are appended.
        """
        last = last_action[-1] if last_action else None
        if last == self._return:
            return Extension(tokens=self.start([*messages, *new], tools), restarts=True)
        closing = () if last in (self._call, self._end) else (self._end,)
        appended = [token for message in new for token in self._whole(message)]
        return Extension(tokens=(*closing, *appended, *self._opening))

    def parse(self, action: Sequence[int]) -> Parsed:
        """Read one action; see harmony_parse for the kinds of faults."""
        return parse_action(action, self._control, self._decode)

    def action(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ideal action that says `messages` (all of one turn): what a policy would sample, stop token included."""
        tokens: list[int] = []
        for message in messages:
            tokens += [self._end, *self._opening] if tokens else []
            tokens += self._body(message)
        return (*tokens, self._call if messages[-1].recipient is not None else self._return)

    def demonstrate(
        self, messages: Sequence[Message], tools: Sequence[ToolDescription], num_given: int
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """See `demonstration`. A message after a final answer restarts the history, which raises FormatError."""
        return demonstration(self, lambda _, said: self.action(said), messages, tools, num_given)

    def _system_text(self, has_tools: bool) -> str:
        date = "" if self._options.date is None else f"\nCurrent date: {self._options.date}"
        calls = "\nCalls to these tools must go to the commentary channel: 'functions'." if has_tools else ""
        return (
            f"You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06{date}\n\n"
            f"Reasoning: {self._options.reasoning_effort}\n\n"
            "# Valid channels: analysis, commentary, final. Channel must be included for every message." + calls
        )

    def _plain(self, role: str, text: str) -> tuple[int, ...]:
        """A message without channel or recipient whose text many prompts share."""
        return (self._start, *self._encode_constant(role), self._message, *self._encode_constant(text), self._end)

    def _whole(self, message: Message) -> tuple[int, ...]:
        """One message of the history, from <|start|> to its end."""
        if message.role in ("system", "developer"):
            return self._plain("developer", _developer_text(message.content, ()))
        author = message.name if message.role == "tool" else message.role
        if not author:
            raise FormatError(
                f"tool message {message.content[:40]!r} has no name: say which tool speaks (functions.NAME)"
            )
        is_call = message.role == "assistant" and message.recipient is not None
        end = self._call if is_call else self._end
        return (self._start, *self._encode_constant(author), *self._body(message), end)

    def _body(self, message: Message) -> tuple[int, ...]:
        """What follows the author's name: recipient and channel, <|message|>, and the text."""
        channel, recipient = _channel(message), "assistant" if message.role == "tool" else message.recipient
        address = f" to={recipient}" if recipient is not None else ""
        # Only on the commentary channel does the reference put the recipient after the channel.
        before, after = ("", address) if channel == "commentary" else (address, "")
        header = self._encode_constant(before) if before else ()
        if channel is not None:
            header = (*header, self._channel, *self._encode_constant(channel + after))
        if message.role == "assistant" and recipient is not None:
            content_type = "json" if recipient.startswith("functions.") else "code"
            header = (*header, *self._encode_constant(" "), self._constrain, *self._encode_constant(content_type))
        return (*header, self._message, *self._encode(message.content))


def _control_ids(backend: Tokenizer) -> dict[int, str]:
    ids = {text: backend.token_to_id(text) for text in CONTROL_TOKENS}
    if missing := [text for text, token in ids.items() if token is None]:
        raise FormatError(
            f"the tokenizer lacks Harmony's control tokens {', '.join(missing)}: use GPT-OSS's tokenizer, or add them "
            "with tokenizer.add_special_tokens({'additional_special_tokens': [...]})"
        )
    return {token: text for text, token in ids.items() if token is not None}


def _channel(message: Message) -> str | None:
    """The channel a message is on: its own, or the usual one of its kind; users have none."""
    if message.channel is None and message.role in ("assistant", "tool"):
        return "final" if message.role == "assistant" and message.recipient is None else "commentary"
    return message.channel


def _developer_text(instructions: str | None, tools: Sequence[ToolDescription]) -> str:
    parts = [] if instructions is None else [f"# Instructions\n\n{instructions}"]
    return "\n\n".join([*parts, tools_section(tools)] if tools else parts)


def _without_old_analysis(messages: Sequence[Message]) -> list[Message]:
    """Drop analysis before the last final answer, with the answers to calls that were part of it."""
    finals = [i for i, message in enumerate(messages) if message.role == "assistant" and _channel(message) == "final"]
    last_final = finals[-1] if finals else 0
    kept, dropping = [], False
    for i, message in enumerate(messages):
        if message.role != "tool":
            dropping = i < last_final and message.channel == "analysis"
        if not dropping:
            kept.append(message)
    return kept
