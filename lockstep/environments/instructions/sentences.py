"""Sentences of a text by rules, without any download: full stops that end nothing are told from those that do.

A sentence ends at . ! ? or their kin in other scripts, with the quotation marks, brackets, emphasis and emoji that
follow, before a space; or where its paragraph, list item or quoted line ends. No end are: the stop of a title or an
abbreviation (Dr., e.g., J. Smith), decimals, list numbers, and a mark inside a quotation that goes on in lower case
("Really?" he asked). Headings are no sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from lockstep.environments.instructions.text import EMOJI_RANGES, OPENING_MARKS, listed

Kind = Literal["declarative", "interrogative", "exclamatory"]

END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u0964\u0965\u061f\u06d4]++")
NEEDS_NO_SPACE = "\u3002\uff01\uff1f\u0964\u0965"  # full stops of scripts that write on without a space
CLOSING = re.compile(rf"""["'\u201d\u2019\u00bb)\]}}*_]*+(?:\s*+[{EMOJI_RANGES}][{EMOJI_RANGES}\ufe0f\u200d]*+)*+""")
ITEM = re.compile(r"\s*+(?:[-*+\u2022]\s|\(?\d{1,3}[.)](?:\s|$)|\(?[A-Za-z]\)\s|>\s?)\s*+")
LETTERED = re.compile(r"\s*+([A-Za-z]|[IVX]{2,5})\.(?:\s|$)\s*+")
HEADING = re.compile(r"\s*+(?:#{1,6}\s|\*\*[^*]*+(?<![.!?])\*\*:?$|<<[^<>]++>>$)")
RULE = re.compile(r"[\s*_=~-]++")
LETTER = re.compile(r"[^\W_]")  # or digit: a stretch without any says nothing
LONGEST_TOKEN = 24  # characters looked at before a full stop

# Never at a sentence's end.
TITLES = listed(
    """
    mr mrs ms mx dr prof rev fr hon gen col maj capt cpt lt sgt cmdr gov sen rep pres st mt messrs vs cf viz approx
    e.g i.e eg ie fig figs eq p.s p.p.s ca
    """
)
# Before a number only.
BEFORE_NUMBERS = listed("no nos vol pp p ch sec art")
# At an end where the next word has a capital.
EITHER = listed("etc inc ltd co corp bros al a.m p.m ph.d b.a m.a jr sr est dept univ")
INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
# After initials, a sentence begins only with one of these: `the U.S. It grew` and not `the U.S. Army`.
STARTERS = listed(
    """
    the a an it he she they we i you this that these those there in on at but and however so then when while if as for
    what why how who where our my his her its their your after before although because
    """
)


def sentences(text: str) -> list[str]:
    """The sentences in order, each with its punctuation, without list marks before it."""
    return [sentence for block in _blocks(text) for sentence in _in_block(block)]


def kind(sentence: str) -> Kind:
    """By its last mark: a question mark, `?!` included, makes it interrogative, an exclamation mark exclamatory."""
    end = len(sentence)
    while end and not sentence[end - 1].isalnum():
        end -= 1
    tail = sentence[end:]
    if any(mark in tail for mark in "?\uff1f\u061f"):
        return "interrogative"
    return "exclamatory" if "!" in tail or "\uff01" in tail else "declarative"


def _blocks(text: str) -> Iterator[str]:
    """Stretches that no sentence crosses."""
    block: list[str] = []
    rows = text.split("\n")
    labels = {found[1] for line in rows if (found := LETTERED.match(line))}
    for line in rows:
        item = ITEM.match(line) or _lettered(line, labels)
        heading = HEADING.match(line.rstrip())
        if not line.strip() or item or heading or RULE.fullmatch(line):
            if block:
                yield "\n".join(block)
            block = [line[item.end() :]] if item and not RULE.fullmatch(line) else []
        else:
            block.append(line)
    if block:
        yield "\n".join(block)


def _lettered(line: str, labels: set[str]) -> re.Match[str] | None:
    """The mark of a list item with a letter or Roman number, where a neighbour of it is there too: `J. Smith` begins
    lines as well."""
    found = LETTERED.match(line)
    if found is None or len(found[1]) > 1 or (found[1] == "I" and "II" in labels):
        return found
    return found if labels & {chr(ord(found[1]) - 1), chr(ord(found[1]) + 1)} else None


def _in_block(block: str) -> Iterator[str]:
    cased = block != block.lower()
    start = looked = 0
    said = False
    for mark in END.finditer(block):
        closing = CLOSING.match(block, mark.end())
        after = closing.end() if closing else mark.end()
        touches = after < len(block) and not block[after].isspace() and mark[0][-1] not in NEEDS_NO_SPACE
        if after <= looked or touches or not _ends(block, mark, after, cased=cased):
            continue
        said, looked = said or LETTER.search(block, looked, after) is not None, after
        if said:
            yield block[start:after].strip()
            start, said = after, False
    if said or LETTER.search(block, looked):
        yield block[start:].strip()


def _ends(block: str, mark: re.Match[str], after: int, *, cased: bool) -> bool:
    """Whether a sentence ends at this mark, given that a space or the block's end follows."""
    rest = block[after : after + LONGEST_TOKEN].lstrip().lstrip(OPENING_MARKS).strip()
    if not rest:
        return True
    goes_on = cased and rest[0].islower()
    if mark[0] == ".":
        before = block[max(0, mark.start() - LONGEST_TOKEN) : mark.start()].rsplit(None, 1)
        token = before[-1].lstrip(OPENING_MARKS) if before and not block[mark.start() - 1].isspace() else ""
        low = token.lower()
        if low in TITLES or (low in BEFORE_NUMBERS and rest[0].isdigit()):
            return False
        if low in EITHER:
            return not goes_on
        if INITIALS.fullmatch(token) and token != "I" and (token.isupper() or "." in token):
            return rest.split()[0].strip(".,;:!?").lower() in STARTERS
        return True
    quoted = any(c in "\"'\u201d\u2019\u00bb)" for c in block[mark.end() : after])
    pauses = mark[0].startswith(("..", "\u2026"))
    return not (goes_on and (quoted or pauses))
