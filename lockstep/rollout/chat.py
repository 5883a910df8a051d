"""Any Hugging Face chat template as a Renderer, without ever tokenising an action again.

In: a fast tokenizer with a chat template. Out: token ids. The context after an action is what the template puts behind
the assistant's turn: the template is rendered with a marker in the action's place, and the text behind the marker is
encoded. Where the template rewrites earlier turns (Qwen3 drops their thoughts) the history restarts.

Control tokens inside contents stay text: each occurrence is swapped for a placeholder before the template sees it, and
encoded as plain text afterwards. The rest of a content reaches the template, and the tokenizer, as it always does.
"""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from lockstep.rollout import hermes
from lockstep.rollout.demonstration import demonstration
from lockstep.rollout.harmony import HarmonyOptions, HarmonyRenderer
from lockstep.rollout.harmony_parse import CONTROL_TOKENS
from lockstep.rollout.plain_text import TextEncoder, backend_of, special_tokens
from lockstep.rollout.renderer import Extension, FormatError, Parsed, Renderer
from lockstep.types import Message, ToolDescription

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Letters and digits, so that no template trims, escapes or splits them; random, so that no content can hold them.
_NONCE = secrets.token_hex(8)
_MARKER, _THOUGHT = f"Marker{_NONCE}Action", f"Marker{_NONCE}Thought"
_PLACEHOLDER = re.compile(rf"Control{_NONCE}x(\d+)x")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What a chat template is given besides the messages.

    tool_definitions: hand the tools to the template, which must show them to the model. Off: the model is told nothing
        of its tools and must know them from training.
    enable_thinking: the switch of Qwen3 and its relatives; None leaves it to the template. Off costs restarts: Qwen3's
        template shows an empty thought before the present action, but not before earlier ones.
    date: what the template sees as today, as YYYY-MM-DD. Pinned, so that a prompt is the same tokens on every day.
    """

    tool_definitions: bool = True
    enable_thinking: bool | None = None
    date: str = "2025-06-28"


class ChatRenderer:
    """A Renderer for tokenizers with a chat template.

    Raises FormatError for a tokenizer that is slow, has no template, or has one that ends no assistant's turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, options: ChatOptions | None = None) -> None:
        self._options = options or ChatOptions()
        self._tokenizer: Any = tokenizer  # its annotations allow whatever a tokenizer could be configured to return
        self._backend = backend_of(tokenizer)
        template = getattr(tokenizer, "chat_template", None)
        if not template:
            raise FormatError(
                "the tokenizer has no chat template: set tokenizer.chat_template, or take an instruction-tuned model's"
            )
        source = template if isinstance(template, str) else "\n".join(template.values())
        if self._options.enable_thinking is not None and "enable_thinking" not in source:
            raise FormatError("enable_thinking has no effect: this chat template has no such switch; leave it None")
        special = special_tokens(self._backend)
        added = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        source += "".join(hermes.TAGS)
        self._control = sorted({*special, *(text for text in added if text.strip() and text in source)})
        self._index = {text: i for i, text in enumerate(self._control)}
        self._find_control = _any_of(self._control)
        self._find_special = _any_of([text for text in special if text not in hermes.TAGS])
        self._encoder = TextEncoder(self._backend, ())
        plain = TextEncoder(self._backend, self._control)
        self._encode_plain, self.shorten = lru_cache(maxsize=1024)(plain.encode), plain.shorten
        self._shown: set[str] = set()
        self._stray = {self._backend.token_to_id(text) for text in special if text not in hermes.TAGS}
        self._end, self._closing = self._end_of_turn()
        eos = tokenizer.eos_token_id
        self._stops = tuple(dict.fromkeys([self._end, *([] if eos is None else [eos])]))
        prompt = self._render([_turn("user", "hi")], (), opens=True)
        self._opens_thought = prompt.rstrip().endswith("<think>")

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The template's end-of-turn token, and the tokenizer's end of text if that is another."""
        return self._stops  # pyright: ignore[reportReturnType]

    def start(self, messages: Sequence[Message], tools: Sequence[ToolDescription]) -> tuple[int, ...]:
        """The first prompt. Raises FormatError for messages or tools that the template refuses or does not show."""
        if tools and self._options.tool_definitions:
            self._check_shown("tools")
        return self._encode(self._render(self._turns(messages), tools, opens=True))

    def extend(
        self,
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[ToolDescription],
        *,
        last_action: Sequence[int],
    ) -> Extension:
        """Context after an action; restarts when the template, given the new messages, writes the earlier ones anew.

        An action that was cut off before a stop token gets the template's own end of turn, as context.
        """
        text = self._backend.decode(last_action, skip_special_tokens=False)
        thought, closed, _ = text.rpartition("</think>")
        filled = _THOUGHT if thought.replace("<think>", "").strip() else ""
        marked = hermes.think(filled) + _MARKER if closed else _MARKER
        lead, behind = self._around(_before_action(messages), marked, new, tools)
        ends = last_action[-1:] if last_action and last_action[-1] in self._stops else ()
        end = self._backend.decode(ends, skip_special_tokens=False)
        before_end, _, tail = behind.partition(end) if end else ("", "", behind)
        rewritten = lead is None or ("</think>" in lead) != bool(closed) or filled not in lead
        if rewritten or before_end.strip():
            return Extension(tokens=self.start([*messages, *new], tools), restarts=True)
        # Encoded behind the token that the action ended with: some tokenizers treat the beginning of a text specially.
        return Extension(tokens=self._encode(end + tail)[len(ends) :])

    def parse(self, action: Sequence[int]) -> Parsed:
        """Read one action. The kinds of faults are those of `hermes`, 'unfinished', 'trailing' and 'stray_token'."""
        stop = next((i for i, token in enumerate(action) if token in self._stops), len(action))
        said = action[:stop]
        parsed = hermes.read(self._backend.decode(said, skip_special_tokens=False), opened=self._opens_thought)
        fault = (parsed.malformed, parsed.explanation)
        if stop == len(action):
            fault = ("unfinished", "The action was cut off before its end.")
        elif len(action) > stop + 1:
            fault = ("trailing", "Nothing may follow the end of the turn.")
        elif stray := [token for token in said if token in self._stray]:
            name = self._backend.id_to_token(stray[0])
            fault = ("stray_token", f"The control token {name} may not stand in an answer.")
        return Parsed(messages=parsed.messages, malformed=fault[0], explanation=fault[1])

    def action(
        self, before: Sequence[Message], messages: Sequence[Message], tools: Sequence[ToolDescription]
    ) -> tuple[int, ...]:
        """The ideal action that says `messages` after the conversation `before`, end-of-turn token included."""
        thought, said = hermes.split(messages)
        lead, _ = self._around(before, hermes.think(_THOUGHT) + _MARKER if thought else _MARKER, None, tools)
        if lead is None or (thought and not ("</think>" in lead and _THOUGHT in lead)):
            lead = hermes.think(_THOUGHT) if thought else ""  # the template hides thoughts
            lead = lead.removeprefix("<think>\n") if self._opens_thought else lead
        if self._opens_thought and "</think>" not in lead:
            lead += "\n</think>\n\n"
        thought, said = self._mask(self._find_special, thought), self._mask(self._find_special, said)
        return self._encode(lead.replace(_THOUGHT, thought) + said + self._closing)

    def demonstrate(
        self, messages: Sequence[Message], tools: Sequence[ToolDescription], num_given: int
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """See `demonstration`; raises FormatError where the template rewrites the history on the way."""
        return demonstration(self, lambda before, said: self.action(before, said, tools), messages, tools, num_given)

    def _around(
        self, before: Sequence[Message], marked: str, new: Sequence[Message] | None, tools: Sequence[ToolDescription]
    ) -> tuple[str | None, str]:
        """What the template puts around the marker in an action: from the prompt up to it, and behind it.

        The first is None when the earlier turns, or the marked one, are not shown as they were in the prompt. new: what
        answers the action; None when it is the last turn.
        """
        turns = self._turns(before)
        old = self._render(turns, tools, opens=True)
        answered = [*turns, _turn("assistant", marked), *self._turns(new or ())]
        whole = self._render(answered, tools, opens=new is not None)
        lead, found, behind = whole[len(old) :].partition(_MARKER)
        return (lead if found and whole.startswith(old) else None), behind

    def _render(self, turns: Sequence[dict[str, Any]], tools: Sequence[ToolDescription], *, opens: bool) -> str:
        """The template's text. opens: with the opening of the assistant's turn behind it."""
        date = datetime.date.fromisoformat(self._options.date)
        switches = {} if self._options.enable_thinking is None else {"enable_thinking": self._options.enable_thinking}
        shown = [_schema(tool) for tool in tools] if self._options.tool_definitions else []
        if not turns:
            raise FormatError("there is no message to render: a chat template needs at least one")
        try:
            text = self._tokenizer.apply_chat_template(
                list(turns), tools=shown or None, tokenize=False, add_generation_prompt=opens,
                strftime_now=date.strftime, **switches,
            )  # fmt: skip
        except TemplateError as error:
            roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
            raise FormatError(f"the chat template refuses this conversation (roles {roles}): {error}") from error
        return text

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template reads them: an action is one turn, instructions at the beginning are another."""
        turns: list[dict[str, Any]] = []
        for is_action, group in groupby(messages, key=lambda message: message.role == "assistant"):
            if is_action:  # it may think and call, so only special tokens are kept out
                turns.append(_turn("assistant", self._mask(self._find_special, hermes.write(list(group)))))
                continue
            for message in group:
                role = "system" if message.role == "developer" else message.role
                content = self._mask(self._find_control, message.content)
                if role == "system" and len(turns) == 1 and turns[0]["role"] == "system":
                    turns[0]["content"] += f"\n\n{content}"
                    continue
                self._check_shown(role)
                name = self._mask(self._find_control, (message.name or "").removeprefix("functions."))
                turns.append(_turn(role, content) | ({"name": name} if name else {}))
        return turns

    def _check_shown(self, what: str) -> None:
        """Raise FormatError where the template silently drops the tools or the messages of a role."""
        if what in self._shown:
            return
        tool = ToolDescription(name=_MARKER, description="", parameters={"type": "object", "properties": {}})
        question, marked = _turn("user", "hi"), _turn(what, _MARKER)
        probes = {"system": [marked, question], "user": [marked], "tools": [question]}
        probe = probes.get(what, [question, _turn("assistant", "hi"), marked])
        if _MARKER not in self._render(probe, (tool,) if what == "tools" else (), opens=True):
            advice = ", or set tool_definitions=False" if what == "tools" else ""
            raise FormatError(f"the chat template does not show {what} to the model: use one that does{advice}")
        self._shown.add(what)

    def _end_of_turn(self) -> tuple[int, str]:
        """The token that ends an assistant's turn, and the template's text from the content's end up to it."""
        text = self._render([_turn("user", "hi"), _turn("assistant", _MARKER)], (), opens=False)
        _, found, behind = text.partition(_MARKER)
        if not found:
            raise FormatError("the chat template does not show what the assistant says: use a template that does")
        if match := self._find_special.search(behind):
            return self._backend.token_to_id(match[0]), behind[: match.end()]  # pyright: ignore[reportReturnType]
        if self._tokenizer.eos_token_id is None:
            raise FormatError(
                "the chat template ends an assistant's turn with no special token, and the tokenizer has no eos token: "
                "set tokenizer.eos_token"
            )
        return self._tokenizer.eos_token_id, self._tokenizer.eos_token

    def _mask(self, pattern: re.Pattern[str], text: str) -> str:
        return pattern.sub(lambda match: f"Control{_NONCE}x{self._index[match[0]]}x", text)

    def _encode(self, text: str) -> tuple[int, ...]:
        """Tokens of rendered text; what stands behind a placeholder is encoded as plain text."""
        tokens: list[int] = []
        for i, part in enumerate(_PLACEHOLDER.split(text)):
            tokens += self._encode_plain(self._control[int(part)]) if i % 2 else self._encoder.encode(part)
        return tuple(tokens)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _schema(tool: ToolDescription) -> dict[str, Any]:
    described = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": described}


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Matches each of the texts, the longest first; nothing when there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _before_action(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation without the action at its end."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return messages[:end]


def renderer_for(
    tokenizer: PreTrainedTokenizerBase, *, harmony: HarmonyOptions | None = None, chat: ChatOptions | None = None
) -> Renderer:
    """The renderer of a tokenizer's format: Harmony where it has Harmony's control tokens, else its chat template.

    Raises FormatError when it has neither.
    """
    backend = backend_of(tokenizer)
    if all(backend.token_to_id(text) is not None for text in CONTROL_TOKENS):
        return HarmonyRenderer(tokenizer, options=harmony)
    return ChatRenderer(tokenizer, options=chat)
