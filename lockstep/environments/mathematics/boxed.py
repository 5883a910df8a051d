r"""Where a text says \boxed{...}: the LaTeX convention for stating the answer to a problem."""

from __future__ import annotations

import re
from dataclasses import dataclass

LISTED = re.compile(  # what stands between boxes that list one answer; possessive, for texts of spaces without end
    r"[\s$]*+[,;]?[\s$]*+(?:(?:\\text\s*+\{\s*+)?(?:and|or)\b\s*+\}?)?[\s$]*+(?:[a-zA-Z]\s*+=\s*+)?"
)
TOKEN = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Box:
    """content: what stands between a box's braces. start, end: where the box stands in the text."""

    content: str
    start: int
    end: int


def boxes(text: str) -> list[Box]:
    r"""Every \boxed{...} with balanced braces, in the order in which they end; of nested ones the outer alone.

    \{ and \} are signs to print and balance nothing. A box that is never closed is none. One pass over the text.
    """
    found: list[tuple[re.Match[str], re.Match[str]]] = []
    open_braces: list[re.Match[str]] = []
    for token in TOKEN.finditer(text):
        if token[0] == "{" or len(token[0]) > 2:
            open_braces.append(token)
        elif token[0] == "}" and open_braces:
            opening = open_braces.pop()
            if opening[0] != "{":
                while found and found[-1][0].start() > opening.start():
                    found.pop()
                found.append((opening, token))
    return [Box(text[first.end() : last.start()], first.start(), last.end()) for first, last in found]


def last_box(text: str) -> str | None:
    r"""The content of the last \boxed{...} of a text, without spaces around it; None when it has none. Of several that
    only list one answer, as in x=\boxed{1} or x=\boxed{-1}, the different contents with commas between them."""
    found = boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first and LISTED.fullmatch(text, found[first - 1].end, found[first].start):
        first -= 1
    return ", ".join(filter(None, dict.fromkeys(box.content.strip() for box in found[first:])))
