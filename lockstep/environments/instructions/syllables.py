"""How many syllables an English word has, by its spelling.

Rules for groups of vowels, silent endings and vowels spoken apart, and a list of common words that break them. The
tests hold it to 95 of 100 words counted by hand; names and loan words do worse.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lockstep.environments.instructions.text import plain

GROUP = re.compile(r"[aeiouy]+")
# Vowels that stand together and are spoken apart; each adds a syllable.
APART = re.compile(
    r"(?<![tscgxh])i(?:a(?:ls?|lly|n|ns|te|tes|ted|ting)?|ous|on|ons|um)$|ia(?=[bcdgmrst][a-z]|n[cg])|"
    r"(?<=[dv])iant|io(?=[bdlr][a-z])|(?<=er|rr|pr)ior|eo(?=[dghlmr])|(?<![qg])ua(?=[lt])|uou|(?<=[tn])ui[nt]|"
    r"[aeou]ing$|[iy]ing$|[a-z]sm$|creat|[^aeiou]uel$|po[e][mt]|(?<=s)cien|(?<!qu)iet|(?<=[bdlnr])ien[ct]|giant|"
    r"piano|(?<=[lr])u(?=en|i[nd])|thm$|oye|coo(?=per|rdin)|real[ips]|eum$|i(?:er|est)$|(?<=[^aeiou])yo(?=[^u])"
)
SIBILANT = re.compile(r"(?:[sxz]|[cs]h|[cgsz]e)$")  # before another s a syllable is spoken
SPECIAL = {
    word: count
    for count, text in {
        1: """
            are were eye eyes view year friend piece field tier pier george
        """,
        2: """
            business every evening people maybe being someone something sometimes colonel naked wicked sacred hundred
            poem poems poet quiet science lion cafe soldier somewhere somehow therefore onion million billion beyond
            react chaos diamond fewer going doing trying union brilliant homework baseball wednesday marriage carriage
            conscience cashier bias hatred jared alfred wilfred
        """,
        3: """
            everyone everything different area idea ideas recipe forever whatever opinion theater theatre museum
            violin beautiful period radio video studio companion guardian linear nuclear dialogue diego anime
            everyday whoever battalion
        """,
        4: """
            interesting february isosceles
        """,
    }.items()
    for word in text.split()
}


@lru_cache(maxsize=4096)
def syllables(word: str) -> int:
    """At least 1 for a word with a letter; 0 for one without (a number, whose spoken form is not known)."""
    stem, possessive, _ = plain(word).replace("\u2019", "'").partition("'s")
    letters = "".join(c for c in stem if "a" <= c <= "z")
    if possessive and SIBILANT.search(letters):
        return syllables(letters) + 1  # house's
    if letters in SPECIAL:
        return SPECIAL[letters]
    if (singular := letters.removesuffix("s")) in SPECIAL:
        return SPECIAL[singular] + (SIBILANT.search(singular) is not None)
    if not letters:
        return 0
    count = sum(1 for _ in GROUP.finditer(letters)) + sum(1 for _ in APART.finditer(letters))
    return max(1, count - _silent(letters))


def _silent(letters: str) -> int:
    """1 when the word, or its stem before -ly, -ful and the like, ends in a silent e: lake, lakes, lived."""
    stem = re.sub(r"(?:ly|less|fully|ful|ments?|ness)$", "", letters)
    if stem != letters and _silent_e(stem):
        return 1
    if letters.endswith(("gue", "que", "gues", "ques")):
        return 1
    if letters.endswith("es"):
        soft = letters[:-2].endswith(("s", "x", "z", "ch", "sh", "c", "g", "i", "e", "u", "o", "y"))
        return int(not soft and _silent_e(letters[:-1]))
    if letters.endswith("ed"):
        return int(not letters[:-2].endswith(("t", "d", "i", "e", "u", "o", "y")) and _silent_e(letters[:-1]))
    return int(_silent_e(letters))


def _silent_e(word: str) -> bool:
    """A final e after a consonant; not that of `table`, whose l is a syllable with it."""
    if len(word) < 3 or word[-1] != "e" or word[-2] in "aeiouy":
        return False
    return not (word[-2] == "l" and word[-3] not in "aeiouyl")
