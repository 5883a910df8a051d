"""Instructions about which words occur, how often, and where.

Keywords are whole words in either case: `wars` is not `war`, `War` and `war-torn` have it. IFEval's own check also
finds keywords inside longer words; to a reader of `use the word war` those are other words.
"""

from __future__ import annotations

import re

from lockstep.environments.instructions.relation import Relation, holds
from lockstep.environments.instructions.sentences import sentences
from lockstep.environments.instructions.text import listed, occurrences, same, words

CONJUNCTIONS = listed("for and nor but or yet so")  # the coordinating ones of English grammars

# Personal, possessive, reflexive, demonstrative, interrogative, relative and indefinite pronouns.
PRONOUNS = listed("""
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us
    our ours ourselves they them their theirs themselves this that these those who whom whose which what whoever
    whomever whatever whichever anybody anyone anything everybody everyone everything nobody none nothing somebody
    someone something each either neither one oneself another both few many several others all any some most
    """)
CONTRACTED = re.compile(r"'(?:m|s|re|ve|ll|d)$")  # of a pronoun and a verb: I'm, she's, they'll
NAMES = re.compile(r"list of person names:([^.]*)", re.IGNORECASE)


def existence(response: str, *, keywords: tuple[str, ...]) -> bool:
    """keywords:existence. Every keyword occurs."""
    return all(occurrences(response, keyword) for keyword in keywords)


def forbidden_words(response: str, *, forbidden_words: tuple[str, ...]) -> bool:
    """keywords:forbidden_words. None of them occurs."""
    return not any(occurrences(response, word) for word in forbidden_words)


def frequency(response: str, *, keyword: str, relation: Relation, frequency: int) -> bool:
    """keywords:frequency. The keyword occurs at least, or less than, that many times."""
    return holds(occurrences(response, keyword), relation, frequency)


def letter_frequency(response: str, *, letter: str, let_relation: Relation, let_frequency: int) -> bool:
    """keywords:letter_frequency. Capitals count as their letters do; the `letter` may also be a sign such as #."""
    return holds(response.lower().count(letter.lower()), let_relation, let_frequency)


def keywords_multiple(
    response: str, *, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> bool:
    """count:keywords_multiple. Once, twice, three, five and seven times, each exactly."""
    asked = zip((keyword1, keyword2, keyword3, keyword4, keyword5), (1, 2, 3, 5, 7), strict=True)
    return all(occurrences(response, keyword) == times for keyword, times in asked)


def conjunctions(response: str, *, small_n: int) -> bool:
    """count:conjunctions. At least that many different ones of for, and, nor, but, or, yet, so."""
    return len(CONJUNCTIONS & {same(word) for word in words(response)}) >= small_n


def pronouns(response: str, *, N: int) -> bool:
    """count:pronouns. At least N, the same one again counting again; those contracted with a verb count too."""
    found = (CONTRACTED.sub("", same(word)) for word in words(response))
    return sum(word in PRONOUNS for word in found) >= N


def person_names(response: str, *, N: int, prompt: str) -> bool:
    """count:person_names. At least N different ones of the names that the prompt lists, spelled as there.

    False for every response where the prompt has no such list.
    """
    given = NAMES.search(prompt)
    names = {name.strip() for name in given[1].split(",")} if given else set()
    return len(names & set(re.findall(r"[^\W\d_]+", response))) >= N


def sentence_keyword(response: str, *, word: str, N: int) -> bool:
    """sentence:keyword. The N-th sentence has the word."""
    found = sentences(response)
    return len(found) >= N and occurrences(found[N - 1], word) > 0


def specific_position(response: str, *, keyword: str, n: int, m: int) -> bool:
    """words:keywords_specific_position. The m-th word of the n-th sentence is the keyword."""
    found = sentences(response)
    inside = words(found[n - 1]) if len(found) >= n else []
    return len(inside) >= m and same(inside[m - 1]) == same(keyword)


def words_position(response: str, *, keyword: str) -> bool:
    """words:words_position. The second word and the last but one are the keyword."""
    found = words(response)
    return len(found) >= 2 and same(found[1]) == same(found[-2]) == same(keyword)
