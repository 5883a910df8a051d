"""IFBench's instructions about the words themselves: their letters, lengths, syllables and order.

An instruction about each or every word, sentence or paragraph asks for as many as it can be broken by: no response
follows `each sentence must ... the next` with one sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from lockstep.environments.instructions.sentences import sentences
from lockstep.environments.instructions.syllables import syllables
from lockstep.environments.instructions.text import initial, lines, paragraphs, plain, same, words
from lockstep.environments.instructions.verbs import starts_with_verb

CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]{2}|^y[bcdfghjklmnpqrstvwxz]")
PALINDROMES, PALINDROME_LENGTH = 10, 5
VOWEL_TYPES = 3


def alphabet(response: str) -> bool:
    """words:alphabet. Each word begins with the letter after that of the word before, A after Z; the first is free."""
    letters = [initial(word) for word in words(response)]
    if len(letters) < 2 or not all("a" <= letter <= "z" for letter in letters):
        return False
    return all((ord(later) - ord(former)) % 26 == 1 for former, later in pairwise(letters))


def no_consecutive(response: str) -> bool:
    """words:no_consecutive. No two words that follow each other begin with the same letter."""
    letters = [initial(word) for word in words(response)]
    return len(letters) >= 2 and all(former != later for former, later in pairwise(letters))


def consonants(response: str) -> bool:
    """words:consonants. Each word with a letter has two consonants together; y is one at a word's beginning only."""
    found = [plain(word) for word in words(response) if any(map(str.isalpha, word))]
    return bool(found) and all(CONSONANTS.search(word) for word in found)


def vowel(response: str) -> bool:
    """words:vowel. One paragraph whose words have three of the vowels a, e, i, o, u at most between them; y is none."""
    used = set(plain(response)) & set("aeiou")
    return len(paragraphs(response)) == 1 and bool(words(response)) and len(used) <= VOWEL_TYPES


def prime_lengths(response: str) -> bool:
    """words:prime_lengths. The letters and digits of each word are 2, 3, 5, 7, 11 ... in number."""
    lengths = {sum(map(str.isalnum, word)) for word in words(response)}
    return bool(lengths) and all(_is_prime(length) for length in lengths)


def _is_prime(number: int) -> bool:
    return number >= 2 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def palindrome(response: str) -> bool:
    """words:palindrome. Ten different words of five letters or more that read the same backwards.

    Without a dictionary any such string is a word, unless it is one letter over and over.
    """
    found = {plain(word) for word in words(response)}
    whole = [word for word in found if len(word) >= PALINDROME_LENGTH and word.isalpha() and len(set(word)) > 1]
    return sum(word == word[::-1] for word in whole) >= PALINDROMES


def repeats(response: str, *, small_n: int) -> bool:
    """words:repeats. No word occurs more than small_n times."""
    counts = Counter(same(word) for word in words(response))
    return bool(counts) and max(counts.values()) <= small_n


def odd_even_syllables(response: str) -> bool:
    """words:odd_even_syllables. The words have an odd and an even number of syllables in turn, by `syllables`; words
    without a letter are passed over."""
    parities = [number % 2 for word in words(response) if (number := syllables(word))]
    return len(parities) >= 2 and all(former != later for former, later in pairwise(parities))


def start_verb(response: str) -> bool:
    """words:start_verb. By a list of verbs (see `verbs`), as no tagger is at hand."""
    return starts_with_verb(response)


def last_first(response: str) -> bool:
    """words:last_first. The last word of each sentence is the first of the next; there are two sentences or more."""
    found = [inside for sentence in sentences(response) if (inside := words(sentence))]
    return len(found) >= 2 and all(same(former[-1]) == same(later[0]) for former, later in pairwise(found))


def paragraph_last_first(response: str) -> bool:
    """words:paragraph_last_first. Each line, as newlines separate the paragraphs, has two words or more and ends with
    the word it began with."""
    found = [words(line) for line in lines(response)]
    return bool(found) and all(len(inside) >= 2 and same(inside[0]) == same(inside[-1]) for inside in found)


def sentence_increment(response: str, *, small_n: int) -> bool:
    """sentence:increment. Each sentence has exactly small_n words more than the one before; there are two or more."""
    return _steps(response, len, lambda former, later: later == former + small_n)


def alliteration_increment(response: str) -> bool:
    """sentence:alliteration_increment. The longest run of words with the same first letter grows from sentence to
    sentence; there are two sentences or more."""
    return _steps(response, _longest_run, lambda former, later: later > former)


def _steps(response: str, measure: Callable[[list[str]], int], grows: Callable[[int, int], bool]) -> bool:
    measured = [measure(words(sentence)) for sentence in sentences(response)]
    return len(measured) >= 2 and all(grows(former, later) for former, later in pairwise(measured))


def _longest_run(found: list[str]) -> int:
    longest, run, former = 0, 0, ""
    for word in found:
        letter = initial(word)
        run = run + 1 if letter == former else 1
        longest, former = max(longest, run), letter
    return longest
