"""Text to tokens so that text stays text: whatever a tool or a user writes, no control token comes out.

In: a Hugging Face fast tokenizer (never changed) and the control tokens to keep out. Out: an encoder of strings.
Renderers write control tokens themselves, by id, and send everything that others wrote through here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer

from lockstep.rollout.renderer import FormatError
from lockstep.rollout.tool import omission

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The `tokenizers` object inside. Raises FormatError for a slow (pure Python) tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise FormatError(
            f"{type(tokenizer).__name__} is no fast tokenizer, and its encoding cannot be made safe: "
            "load it with AutoTokenizer.from_pretrained(path, use_fast=True) from a folder with a tokenizer.json"
        )
    return backend


def special_tokens(backend: Tokenizer) -> tuple[str, ...]:
    """The texts of all tokens that the tokenizer marks as special."""
    return tuple(token.content for token in backend.get_added_tokens_decoder().values() if token.special)


def _paired(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class TextEncoder:
    """Encodes text like `backend`, except that the tokens in `control` are not recognised.

    It shares the model (vocabulary, merges) with `backend` but has its own list of added tokens, so `backend` stays as
    it is, and a truncation or padding that someone switched on there does not reach this encoder.
    """

    def __init__(self, backend: Tokenizer, control: Collection[str]) -> None:
        self._forbidden = frozenset(i for i in map(backend.token_to_id, control) if i is not None)
        self._encoder = Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._encoder.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._encoder.pre_tokenizer = backend.pre_tokenizer
        added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
        self._renumbered = self._add(backend, [token for token in added if token.content not in control])

    def _add(self, backend: Tokenizer, tokens: list[AddedToken]) -> dict[int, int]:
        """Add the other added tokens; where one got a new id here, say which id it has in `backend`."""
        self._encoder.add_special_tokens([token for token in tokens if token.special])
        self._encoder.add_tokens([token for token in tokens if not token.special])
        ids = {self._encoder.token_to_id(token.content): backend.token_to_id(token.content) for token in tokens}
        renumbered = {here: there for here, there in ids.items() if here != there}
        if clash := [i for i in renumbered if backend.model.id_to_token(i) is not None]:
            raise FormatError(
                f"the tokenizer's vocabulary has gaps, and token id {clash[0]} would mean two things: "
                "renumber its vocabulary without gaps, with the added tokens last"
            )
        return renumbered  # pyright: ignore[reportReturnType]

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of the text. Half surrogate pairs, which have no UTF-8, become U+FFFD."""
        text = _paired(text)
        ids = self._encode(text)
        if not self._forbidden.isdisjoint(ids):
            # Vocabularies that look whole words up can find a control token in plain text; single characters cannot.
            ids = [i for character in text for i in self._encode(character)]
        return tuple(ids)

    def shorten(self, text: str, max_tokens: int) -> str:
        """The text when it has at most max_tokens tokens; else its beginning and its end, half the tokens each, around
        a note that counts those left out, together as many tokens at most. max_tokens: 16 or more."""
        text = _paired(text)
        if len(text.encode()) <= max_tokens:  # no token has less than a byte
            return text
        count = len(self.encode(text))
        if count <= max_tokens:
            return text
        places = self._encoder.encode(text, add_special_tokens=False).offsets
        if len(places) != count:  # see `encode`: taken one by one, characters are the places to cut at
            places = [(i, i + 1) for i in range(len(text))]
        kept = min(max_tokens - len(self.encode(omission(count, "tokens"))), len(places))
        while kept > 0:
            head, tail = (kept + 1) // 2, kept // 2
            end = text[places[len(places) - tail][0] :] if tail else ""
            short = f"{text[: places[head - 1][1]]}{omission(count - kept, 'tokens')}{end}"
            if (excess := len(self.encode(short)) - max_tokens) <= 0:
                return short
            kept -= excess  # the cuts made tokens of their own
        return omission(count, "tokens")

    def _encode(self, text: str) -> list[int]:
        ids = self._encoder.encode(text, add_special_tokens=False).ids
        return [self._renumbered.get(i, i) for i in ids] if self._renumbered else ids
