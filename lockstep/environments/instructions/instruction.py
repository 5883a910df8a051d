"""The instructions that a program can check, by the ids of IFEval (arXiv:2311.07911) and IFBench (arXiv:2507.02833).

A checker is a function of a response and keyword arguments, True when the response follows. The arguments' names are
those of the data and their types are checked here, when a task is made; the rest cannot fail. Checkers read what an
instruction says to a person; where IFEval's and IFBench's own programs are known to differ, the checker says so.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from lockstep.environments.instructions import (
    custom,
    keywords,
    layout,
    lengths,
    letters,
    lists,
    nesting,
    ratios,
    repeating,
    wordplay,
)
from lockstep.environments.instructions.language import known

Checker = Callable[..., bool]
# Signs without a shape, with which a forbidden word reads the same and is another; joiners are letters in some scripts.
INVISIBLE = re.compile(r"[\u00ad\u200b\u2060\ufeff]|(?<=[A-Za-z])[\u200c\u200d]")
MAY_BE_ZERO = ("n_start", "n_end", "min_words")  # other counts begin at 1

CHECKERS: Mapping[str, Checker] = {
    # IFEval
    "change_case:capital_word_frequency": letters.capital_word_frequency,
    "change_case:english_capital": letters.english_capital,
    "change_case:english_lowercase": letters.english_lowercase,
    "combination:repeat_prompt": repeating.repeat_prompt,
    "combination:two_responses": layout.two_responses,
    "detectable_content:number_placeholders": layout.number_placeholders,
    "detectable_content:postscript": layout.postscript,
    "detectable_format:constrained_response": layout.constrained_response,
    "detectable_format:json_format": layout.json_format,
    "detectable_format:multiple_sections": layout.multiple_sections,
    "detectable_format:number_bullet_lists": layout.number_bullet_lists,
    "detectable_format:number_highlighted_sections": layout.number_highlighted_sections,
    "detectable_format:title": layout.title,
    "keywords:existence": keywords.existence,
    "keywords:forbidden_words": keywords.forbidden_words,
    "keywords:frequency": keywords.frequency,
    "keywords:letter_frequency": keywords.letter_frequency,
    "language:response_language": letters.response_language,
    "length_constraints:nth_paragraph_first_word": lengths.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": lengths.number_paragraphs,
    "length_constraints:number_sentences": lengths.number_sentences,
    "length_constraints:number_words": lengths.number_words,
    "punctuation:no_comma": letters.no_comma,
    "startend:end_checker": layout.end_phrase,
    "startend:quotation": layout.quotation,
    # IFBench
    "count:conjunctions": keywords.conjunctions,
    "count:keywords_multiple": keywords.keywords_multiple,
    "count:numbers": letters.numbers,
    "count:person_names": keywords.person_names,
    "count:pronouns": keywords.pronouns,
    "count:punctuation": letters.punctuation,
    "count:unique_word_count": lengths.unique_word_count,
    "count:word_count_range": lengths.word_count_range,
    "count:words_japanese": letters.words_japanese,
    "custom:character_reverse": custom.character_reverse,
    "custom:csv_city": custom.csv_city,
    "custom:csv_quotes": custom.csv_quotes,
    "custom:csv_special_character": custom.csv_special_character,
    "custom:date_format_list": custom.date_format_list,
    "custom:european_capitals_sort": custom.european_capitals_sort,
    "custom:mcq_count_length": custom.mcq_count_length,
    "custom:multiples": custom.multiples,
    "custom:reverse_newline": custom.reverse_newline,
    "custom:sentence_alphabet": custom.sentence_alphabet,
    "custom:word_reverse": custom.word_reverse,
    "format:emoji": letters.emoji,
    "format:line_indent": lists.line_indent,
    "format:list": lists.list_items,
    "format:newline": lists.newline,
    "format:no_bullets_bullets": lists.no_bullets_bullets,
    "format:no_whitespace": lists.no_whitespace,
    "format:options": lists.options,
    "format:output_template": lists.output_template,
    "format:parentheses": nesting.parentheses,
    "format:quote_unquote": nesting.quote_unquote,
    "format:quotes": nesting.quotes,
    "format:sub-bullets": lists.sub_bullets,
    "format:thesis": lists.thesis,
    "format:title_case": letters.title_case,
    "ratio:overlap": ratios.overlap,
    "ratio:sentence_balance": ratios.sentence_balance,
    "ratio:sentence_type": ratios.sentence_type,
    "ratio:sentence_words": ratios.sentence_words,
    "ratio:stop_words": ratios.stop_words,
    "repeat:repeat_change": repeating.repeat_change,
    "repeat:repeat_simple": repeating.repeat_simple,
    "repeat:repeat_span": repeating.repeat_span,
    "sentence:alliteration_increment": wordplay.alliteration_increment,
    "sentence:increment": wordplay.sentence_increment,
    "sentence:keyword": keywords.sentence_keyword,
    "words:alphabet": wordplay.alphabet,
    "words:consonants": wordplay.consonants,
    "words:keywords_specific_position": keywords.specific_position,
    "words:last_first": wordplay.last_first,
    "words:no_consecutive": wordplay.no_consecutive,
    "words:odd_even_syllables": wordplay.odd_even_syllables,
    "words:palindrome": wordplay.palindrome,
    "words:paragraph_last_first": wordplay.paragraph_last_first,
    "words:prime_lengths": wordplay.prime_lengths,
    "words:repeats": wordplay.repeats,
    "words:start_verb": wordplay.start_verb,
    "words:vowel": wordplay.vowel,
    "words:words_position": keywords.words_position,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction with its arguments, checked. Made by `bind`."""

    id: str
    arguments: Mapping[str, Any]

    def followed(self, response: str) -> bool:
        """Whether the response, as it is, follows. An empty one follows nothing."""
        seen = INVISIBLE.sub("", response)
        return bool(seen.strip()) and CHECKERS[self.id](seen, **self.arguments)

    def followed_loosely(self, response: str) -> bool:
        """Whether any of the response's `variants` follows."""
        return any(self.followed(variant) for variant in variants(response))


def variants(response: str) -> list[str]:
    """The response, and it without its first line, its last, and both, each with and without asterisks: IFEval's
    allowance for an introduction, a closing remark and Markdown's emphasis (arXiv:2311.07911, section 2.2)."""
    rows = response.split("\n")
    cut = ["\n".join(some).strip() for some in (rows[1:], rows[:-1], rows[1:-1])]
    return [form for text in (response, *cut) for form in (text, text.replace("*", ""))]


def bind(id: str, arguments: Mapping[str, Any], prompt: str) -> Instruction:
    """An instruction from a row of data. Arguments that are null count as not given; the row's prompt is handed to the
    checkers that read it. Raises ValueError, which says what is wrong and what fixes it."""
    if id not in CHECKERS:
        close = difflib.get_close_matches(id, CHECKERS, n=1)
        did_you_mean = f", did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no checker for the instruction {id!r}{did_you_mean}: correct the id, or remove the row")
    expected = _arguments(CHECKERS[id])
    given = {name: value for name, value in arguments.items() if value is not None}
    if "prompt" in expected:
        given["prompt"] = prompt
    if missing := sorted(expected.keys() - given.keys()):
        raise ValueError(f"{id} has no {missing[0]!r} in its kwargs: add it")
    if unknown := sorted(given.keys() - expected.keys()):
        raise ValueError(f"{id} takes no {unknown[0]!r}: remove it from its kwargs")
    return Instruction(id=id, arguments={name: _checked(id, name, given[name], expected[name]) for name in expected})


@cache
def _arguments(checker: Checker) -> dict[str, Any]:
    """The keyword arguments of a checker and their types."""
    hints = get_type_hints(checker)
    return {name: hints[name] for name in list(inspect.signature(checker).parameters)[1:]}


def _checked(id: str, name: str, value: Any, kind: Any) -> Any:
    """The value as the checker wants it; data writes counts also as 4.0, and lists where checkers take tuples."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    choices = get_args(kind)
    least = 0 if name in MAY_BE_ZERO else 1
    if kind is int and is_number and value == int(value) and value >= least:
        return int(value)
    if kind is float and is_number and value <= 100:
        return float(value)
    if kind is str and isinstance(value, str) and value.strip():
        if name == "language" and not known(value):
            raise ValueError(f"{id} has language={value!r}, which is not told apart here: remove the row")
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple) and value:
        return tuple(_checked(id, name, item, choices[0]) for item in value)
    if kind not in (int, float, str) and get_origin(kind) is not tuple and value in choices:
        return value
    wanted = {int: f"a whole number, {least} or more", float: "a number from 0 to 100", str: "a text"}
    expected = wanted.get(kind) or ("a list of texts" if get_origin(kind) is tuple else f"one of {', '.join(choices)}")
    raise ValueError(f"{id} has {name}={value!r}: give {expected}")
