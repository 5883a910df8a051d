"""Instructions about how many words, sentences and paragraphs there are.

IFEval counts runs of letters, so that `don't` is two words; here it is one (see `text`).
"""

from __future__ import annotations

from lockstep.environments.instructions.relation import Relation, holds, may_be_more
from lockstep.environments.instructions.sentences import sentences
from lockstep.environments.instructions.text import paragraphs, same, words


def number_words(response: str, *, relation: Relation, num_words: int) -> bool:
    """length_constraints:number_words."""
    return holds(len(words(response)), relation, num_words)


def number_sentences(response: str, *, relation: Relation, num_sentences: int) -> bool:
    """length_constraints:number_sentences."""
    return holds(len(sentences(response)), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int, prompt: str) -> bool:
    """length_constraints:number_paragraphs. Exactly that many, divided by lines of three asterisks alone, or more where
    the prompt says `at least`.

    A divider before the first or after the last is let pass; two in a row are not.
    """
    parts: list[list[str]] = [[]]
    for line in response.split("\n"):
        if line.strip() == "***":
            parts.append([])
        else:
            parts[-1].append(line)
    written = [bool("".join(part).strip()) for part in parts]
    inner = written[0 if written[0] else 1 : len(written) if written[-1] else -1]
    enough = len(inner) >= num_paragraphs if may_be_more(prompt, num_paragraphs) else len(inner) == num_paragraphs
    return enough and all(inner)


def nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """length_constraints:nth_paragraph_first_word. Exactly that many paragraphs between blank lines, and the n-th
    begins with the word, in either case."""
    found = paragraphs(response)
    if len(found) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    return [same(word) for word in words(found[nth_paragraph - 1])[:1]] == [same(first_word)]


def word_count_range(response: str, *, min_words: int, max_words: int) -> bool:
    """count:word_count_range. Both ends are allowed."""
    return min_words <= len(words(response)) <= max_words


def unique_word_count(response: str, *, N: int) -> bool:
    """count:unique_word_count. At least N different words; capitals make none different."""
    return len({same(word) for word in words(response)}) >= N
