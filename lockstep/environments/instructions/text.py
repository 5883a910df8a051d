"""Words, lines and paragraphs of a text, as a reader would count them, in any script and in linear time.

A word is what stands between spaces, dashes or slashes, without the punctuation at its edges: `well-known`, `don't`
and `1,000` are one word each, `and/or` is two, `--` and emoji are none.
"""

from __future__ import annotations

import re
import unicodedata

BETWEEN_WORDS = re.compile(r"[\s\u2013\u2014\u2026/|]+|--+|\.{3,}")
BULLET = re.compile(r"[^\S\n]*[*\u2022-][^\S\n]+")
JSON_BEFORE_JSON = re.compile(r"\Ajson[^\S\n]+(?=[\[{])", re.IGNORECASE)  # a fence and its content in one line
OPENING_MARKS = "*_#>\"'\u201c\u2018\u00ab([ \t"  # what may stand before a first word without being of it

EMOJI_RANGES = (
    "\U0001f000-\U0001fbff\u2600-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u231a\u231b\u2328\u23cf\u23e9-\u23fa"
    "\u203c\u2049\u3030\u303d\u3297\u3299\u20e3"
)
EMOJI = re.compile(f"[{EMOJI_RANGES}]")


def listed(text: str) -> frozenset[str]:
    """The words of a list that stands in the code as one text."""
    return frozenset(text.split())


def words(text: str) -> list[str]:
    """The words of a text, in order, as they are written."""
    return [word for piece in BETWEEN_WORDS.split(text) if (word := piece if piece.isalnum() else bare(piece))]


def bare(token: str) -> str:
    """A token without the punctuation around it; empty when it has no letter or digit. Vowel signs are kept."""
    start, end = 0, len(token)
    while start < end and not token[start].isalnum():
        start += 1
    while end > start and not (token[end - 1].isalnum() or _is_vowel_sign(token[end - 1])):
        end -= 1
    return token[start:end]


def _is_vowel_sign(character: str) -> bool:
    """Marks that belong to the letter before them in Indic and Thai writing; emoji's variation marks do not."""
    return unicodedata.category(character) in ("Mn", "Mc") and not "\ufe00" <= character <= "\ufe0f"


def same(word: str) -> str:
    """A word's form for comparison: case and the shape of its apostrophe do not matter."""
    return word.replace("\u2019", "'").casefold()


def plain(text: str) -> str:
    """Lower case without accents: `Élan` is `elan`."""
    return "".join(c for c in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(c))


def initial(word: str) -> str:
    """A word's first letter, in lower case and without an accent."""
    return plain(word[0])[0]


def lines(text: str) -> list[str]:
    """The lines that are not blank, with their indentation."""
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def paragraphs(text: str) -> list[str]:
    """What blank lines separate."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(paragraph).strip() for paragraph in found if paragraph]


def occurrences(text: str, keyword: str) -> int:
    """How often a word or phrase occurs in a text, as whole words, in either case."""
    return len(re.findall(rf"(?<![^\W_]){re.escape(keyword)}(?![^\W_])", text, re.IGNORECASE))


def bullets(text: str, marks: str = "*-\u2022") -> list[str]:
    """The lines that are bullet points: one of the marks, a space, and something written. A rule (`* * *`) is none."""
    return [
        line
        for line in lines(text)
        if (mark := BULLET.match(line)) and mark[0].strip() in marks and words(line[mark.end() :])
    ]


def without_fence(text: str) -> str:
    """A text that is one Markdown code block, without its fence; any other text as it is, stripped."""
    text = text.strip()
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    first, _, rest = JSON_BEFORE_JSON.sub("", text[3:-3]).partition("\n")
    return (rest if rest and len(first.split()) <= 1 and first.strip().isalnum() else f"{first}\n{rest}").strip()


def without_quotes(text: str) -> str:
    """A text without spaces around it and without one pair of double quotation marks around it."""
    text = text.strip()
    if len(text) >= 2 and text[0] in '"\u201c' and text[-1] in '"\u201d':
        return text[1:-1].strip()
    return text
