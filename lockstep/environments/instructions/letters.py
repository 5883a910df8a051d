"""Instructions about letters, capitals, numbers and punctuation, and the language of the response."""

from __future__ import annotations

import re

from lockstep.environments.instructions.language import detect, is_in
from lockstep.environments.instructions.relation import Relation, holds
from lockstep.environments.instructions.sentences import sentences
from lockstep.environments.instructions.text import EMOJI, listed, words

COMMAS = frozenset(",\u060c\uff0c\u3001\ufe50")
NUMBER = re.compile(r"(?<![^\W_])\d+(?:[.,]\d+)*")
JAPANESE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f\u3005]+")
MARKS = ".,;:!?'\"()-"
LOOK_ALIKES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})
INTERROBANGS = ("?!", "!?", "\u203d", "\u2048", "\u2049")

# What title case may leave small: articles, coordinating conjunctions and prepositions of at most four letters.
MINOR = listed(
    """
    a an the and but or nor for yet so as if at by in of off on out per to up via with from into onto over upon than
    like near past vs v
    """
)


def english_capital(response: str) -> bool:
    """change_case:english_capital. No small letter, and English."""
    return response != response.lower() and not _has(response, str.islower) and detect(response) == "en"


def english_lowercase(response: str) -> bool:
    """change_case:english_lowercase. No capital letter, and English."""
    return not _has(response, str.isupper) and detect(response) == "en"


def _has(text: str, test) -> bool:
    return any(test(character) for character in set(text))


def capital_word_frequency(response: str, *, capital_relation: Relation, capital_frequency: int) -> bool:
    """change_case:capital_word_frequency. Words of two letters or more, all of them capitals: not I and A, which are no
    emphasis to a reader (IFEval counts them)."""
    shouted = sum(word.isupper() and sum(map(str.isalpha, word)) >= 2 for word in words(response))
    return holds(shouted, capital_relation, capital_frequency)


def title_case(response: str) -> bool:
    """format:title_case. Every major word begins with a capital; articles, coordinating conjunctions and short
    prepositions need not, nor need words that begin with no letter. All in capitals is no title case."""
    found = [word for word in words(response) if word[0].isalpha()]
    if not found or (len(found) > 1 and response.isupper()):
        return False
    return all(not word[0].islower() or word in MINOR for word in found)


def no_comma(response: str) -> bool:
    """punctuation:no_comma. Nor one of another script."""
    return COMMAS.isdisjoint(response)


def punctuation(response: str) -> bool:
    """count:punctuation. Each of . , ; : ! ? ' " ( ) and a hyphen or dash, and an interrobang, which may be the ? and
    !.

    Which marks are standard the instruction leaves open; brackets, braces, slashes and ellipses are not asked for here.
    """
    straight = response.translate(LOOK_ALIKES)
    return all(mark in straight for mark in MARKS) and any(mark in response for mark in INTERROBANGS)


def numbers(response: str, *, N: int) -> bool:
    """count:numbers. Exactly N numbers in digits; 1,000.5 is one, 3/4 and 2024-05 are two each, H2O has none.

    Numbers in words are not counted: `one` and `second` are as often no numbers.
    """
    return sum(1 for _ in NUMBER.finditer(response)) == N


def emoji(response: str) -> bool:
    """format:emoji. Every sentence ends with an emoji, before or after its last mark."""
    found = sentences(response)
    return bool(found) and all(EMOJI.search(_tail(sentence)) for sentence in found)


def _tail(sentence: str) -> str:
    end = len(sentence)
    while end and not sentence[end - 1].isalpha():
        end -= 1
    return sentence[end:]


def response_language(response: str, *, language: str) -> bool:
    """language:response_language. The code is of ISO 639-1; names and units in other letters are let pass."""
    return is_in(response, language)


def words_japanese(response: str, *, N: int) -> bool:
    """count:words_japanese. Of the words between spaces, the N-th, 2N-th and so on are in Japanese writing; there are
    at least N."""
    found = words(response)
    return len(found) >= N and all(
        JAPANESE.fullmatch("".join(filter(str.isalnum, word))) is not None for word in found[N - 1 :: N]
    )
