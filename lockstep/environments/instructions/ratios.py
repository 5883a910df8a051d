"""IFBench's instructions about proportions: of kinds of sentences, of stop words, of text shared with a reference."""

from __future__ import annotations

from collections import Counter

from lockstep.environments.instructions.sentences import kind, sentences
from lockstep.environments.instructions.text import listed, same, words

TOLERANCE = 2.0  # percentage points either way, as the instruction says

STOP_WORDS = listed("""
    a about above after again against all am an and any are aren't as at be because been before being below between
    both but by can cannot can't could couldn't did didn't do does doesn't doing don't down during each few for from
    further had hadn't has hasn't have haven't having he he'd he'll he's her here here's hers herself him himself his
    how how's i i'd i'll i'm i've if in into is isn't it it's its itself just let's me more most mustn't my myself no
    nor not now of off on once only or other ought our ours ourselves out over own same shan't she she'd she'll she's
    should shouldn't so some such than that that's the their theirs them themselves then there there's these they
    they'd they'll they're they've this those through to too under until up very was wasn't we we'd we'll we're we've
    were weren't what what's when when's where where's which while who who's whom why why's will with won't would
    wouldn't you you'd you'll you're you've your yours yourself yourselves
    """)


def sentence_type(response: str) -> bool:
    """ratio:sentence_type. Exactly two declarative sentences to each interrogative one; exclamations do not count."""
    counts = Counter(kind(sentence) for sentence in sentences(response))
    return counts["interrogative"] > 0 and counts["declarative"] == 2 * counts["interrogative"]


def sentence_balance(response: str) -> bool:
    """ratio:sentence_balance. Declarative, interrogative and exclamatory sentences, all three, none by more than one
    more than another: as even as their number lets them be."""
    counts = Counter(kind(sentence) for sentence in sentences(response))
    return len(counts) == 3 and max(counts.values()) - min(counts.values()) <= 1


def sentence_words(response: str) -> bool:
    """ratio:sentence_words. Three sentences with as many characters each, punctuation and spaces included, and no word
    twice in the response."""
    found = sentences(response)
    used = [same(word) for sentence in found for word in words(sentence)]
    return len(found) == 3 and len({len(sentence) for sentence in found}) == 1 and len(used) == len(set(used))


def stop_words(response: str, *, percentage: float) -> bool:
    """ratio:stop_words. At most that share of the words are stop words, by a list of the commonest English ones."""
    found = [same(word) for word in words(response)]
    return bool(found) and 100 * sum(word in STOP_WORDS for word in found) <= percentage * len(found)


def overlap(response: str, *, reference_text: str, percentage: float) -> bool:
    """ratio:overlap. Of the response's different runs of three words that share occurs in the reference too, give or
    take 2 percentage points. The instruction does not say of what its trigrams are; of words is the usual sense in
    prose."""
    own = _trigrams(response)
    if not own:
        return False
    share = 100 * len(own & _trigrams(reference_text)) / len(own)
    return abs(share - percentage) <= TOLERANCE


def _trigrams(text: str) -> set[tuple[str, str, str]]:
    found = [same(word) for word in words(text)]
    return set(zip(found, found[1:], found[2:], strict=False))
