"""IFBench's instructions about lines, lists, templates and options."""

from __future__ import annotations

import re
from itertools import pairwise

from lockstep.environments.instructions.sentences import kind, sentences
from lockstep.environments.instructions.text import bare, bullets, lines, paragraphs, same, words

BULLET = re.compile(r"\s*+\*\s")
SUB_BULLET = re.compile(r"\s*+-\s")
OTHER_BULLET = re.compile(r"\s*+(?:[-*+\u2022]\s|\d{1,3}[.)]\s)")
HEADING = re.compile(r"\s*+(?:#{1,6}\s|<h[1-6]>|\*\*[^*]++\*\*:?\s*$)", re.IGNORECASE)
ITALICS = re.compile(r"\s*+(?:<p>\s*+)?<(i|em)>([^<]++)</\1>", re.IGNORECASE)
LABELS = ("My Answer:", "My Conclusion:", "Future Outlook:")
UNFILLED = ("[answer]", "[conclusion]", "[outlook]")


def line_indent(response: str) -> bool:
    """format:line_indent. Two lines or more, each indented further than the one before; blank lines are passed over."""
    depths = [len(line.expandtabs()) - len(line.expandtabs().lstrip()) for line in lines(response)]
    return len(depths) >= 2 and all(later > former for former, later in pairwise(depths))


def list_items(response: str, *, sep: str) -> bool:
    """format:list. Two lines or more begin with `sep` and say something; none begins with another kind of bullet."""
    found = [line.lstrip() for line in lines(response)]
    items = [line for line in found if line.startswith(sep)]
    others = [line for line in found if not line.startswith(sep) and OTHER_BULLET.match(line)]
    return len([item for item in items if words(item[len(sep) :])]) >= 2 and not others


def newline(response: str) -> bool:
    """format:newline. Two lines or more with one word each; blank lines are passed over."""
    found = [line.split() for line in lines(response)]
    return len(found) >= 2 and all(len(tokens) == 1 and len(words(tokens[0])) == 1 for tokens in found)


def no_whitespace(response: str) -> bool:
    """format:no_whitespace. Around the response too: it is asked of the output as a whole."""
    return not any(character.isspace() for character in response)


def no_bullets_bullets(response: str) -> bool:
    """format:no_bullets_bullets. Two sentences or more that end in a full stop, and after them two bullets or more with
    *."""
    found = lines(response)
    first = next((i for i, line in enumerate(found) if BULLET.match(line)), len(found))
    before = [s for s in sentences("\n".join(found[:first])) if kind(s) == "declarative" and _stops(s)]
    return len(before) >= 2 and len(bullets("\n".join(found[first:]), "*")) >= 2


def _stops(sentence: str) -> bool:
    return sentence.rstrip("\"'\u201d\u2019)*_ ").endswith(".")


def sub_bullets(response: str) -> bool:
    """format:sub-bullets. One bullet with * or more, and below each, before the next, a sub-bullet with -."""
    counts: list[int] = []
    for line in lines(response):
        if BULLET.match(line) and words(line):
            counts.append(0)
        elif counts and SUB_BULLET.match(line) and words(line):
            counts[-1] += 1
    return bool(counts) and all(counts)


def options(response: str, *, options: str) -> bool:
    """format:options. The response is one of the options alone, in either case, with or without its punctuation.

    They are written a/b, a or b, or a, b.
    """
    separator = next((mark for mark in ("/", " or ", ",") if mark in options), "\n")
    answer = same(bare(response.strip()))
    return answer != "" and answer in {same(bare(option.strip())) for option in options.split(separator)}


def output_template(response: str) -> bool:
    """format:output_template. Nothing before `My Answer:`, then the other two labels in order, each filled in."""
    parts, rest = [], response
    for label in LABELS:
        before, found, rest = rest.partition(label)
        if not found:
            return False
        parts.append(before.strip())
    first, *filled = (*parts, rest.strip())
    return not first and all(words(part) and part not in UNFILLED for part in filled)


def thesis(response: str) -> bool:
    """format:thesis. Each section begins with a statement in <i> or <em>. Headings (#, <h2>, a line in bold) begin
    sections; a response without any is one section."""
    found = paragraphs(response)
    if not any(HEADING.match(line) for line in lines(response)):
        return bool(found) and _begins_in_italics(found[0])
    sections: list[list[str]] = [[]]
    for line in lines(response):
        if HEADING.match(line):
            sections.append([])
        else:
            sections[-1].append(line)
    bodies = ["\n".join(section) for section in sections if section]
    return bool(bodies) and all(_begins_in_italics(body) for body in bodies)


def _begins_in_italics(text: str) -> bool:
    found = ITALICS.match(text)
    return found is not None and bool(words(found[2]))
