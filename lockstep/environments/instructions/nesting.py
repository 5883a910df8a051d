"""IFBench's instructions about brackets within brackets and quotations within quotations."""

from __future__ import annotations

import re

from lockstep.environments.instructions.text import paragraphs, words

PAIRS = {")": "(", "]": "[", "}": "{"}
DEPTH = 5
QUOTE_DEPTH = 3
EXPLANATION = 3  # words
STRAIGHT = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'"})
QUOTED = re.compile(r'"[^"]*+"')


def parentheses(response: str) -> bool:
    """format:parentheses. Brackets of any kind nested five deep, each closed by its own. A closing bracket that belongs
    to nothing, as in `a)`, is passed over."""
    within: list[tuple[str, int]] = []  # open bracket, depth of what was closed inside it
    deepest = 0
    for character in response:
        if character in "([{":
            within.append((character, 0))
        elif character in PAIRS and within and within[-1][0] == PAIRS[character]:
            depth = within.pop()[1] + 1
            deepest = max(deepest, depth)
            if within:
                within[-1] = (within[-1][0], max(within[-1][1], depth))
    return deepest >= DEPTH


def quotes(response: str) -> bool:
    """format:quotes. Quotations nested three deep within one paragraph, double and single marks in turn, straight or
    curly, all closed. Apostrophes within words are none."""
    return any(_quote_depth(paragraph.translate(STRAIGHT)) >= QUOTE_DEPTH for paragraph in paragraphs(response))


def _quote_depth(text: str) -> int:
    within: list[tuple[str, int]] = []
    deepest = 0
    for i, mark in enumerate(text):
        if mark not in "\"'":
            continue
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        if mark == "'" and before.isalnum() and after.isalnum():
            continue
        opens = (not before or before.isspace() or before in "\"'([-\u2014:") and after != "" and not after.isspace()
        if within and within[-1][0] == mark and before and not before.isspace():
            depth = within.pop()[1] + 1
            if within:
                within[-1] = (within[-1][0], max(within[-1][1], depth))
            else:
                deepest = max(deepest, depth)
        elif opens and (not within or within[-1][0] != mark):
            within.append((mark, 0))
    return deepest


def quote_unquote(response: str) -> bool:
    """format:quote_unquote. There is a quoted phrase, and after each one, before the next, three words or more without
    quotation marks. False where a straight mark has no partner."""
    text = response.translate({ord("\u201c"): '"', ord("\u201d"): '"'})
    if text.count('"') % 2 or '"' not in text:
        return False
    return all(len(words(part)) >= EXPLANATION for part in QUOTED.split(text)[1:])
