r"""Numbers as people and models write them: 1,200, $18.50, 3/4, \frac{3}{4}, 1 3/4, 72 clips, 10\,000.

Read by patterns in one pass, never by `eval`. In doubt a text states no number: a reward for what was not quite said
teaches to say it vaguely.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 40
CURRENCY = "$€£¥"

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?:(?:US|CA|AU|NZ|HK)(?=\$))?[{CURRENCY}]\ ?)?(?P<inner>-?)"
    rf"(?:(?:(?P<whole>{_DIGITS})\ +)?(?P<top>{_DIGITS})\ ?/\ ?(?P<bottom>{_DIGITS})(?![.][0-9])"
    rf"|(?P<decimal>{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+))"
)
_GAP = r"(?:\\[,:; ]|~)"
THOUSANDS = re.compile(
    rf"(?<![0-9.])(?<![0-9]\\[,:; ])(?<![0-9]~)[1-9][0-9]{{0,2}}(?:{_GAP}[0-9]{{3}})++(?!{_GAP}?[0-9])"
)
_ARGUMENT = r"\s*(?:\{\s*(-?[0-9][0-9,]*)\s*\}|([0-9]))"
FRACTION = re.compile(rf"\\[dtc]?frac{_ARGUMENT}{_ARGUMENT}")
LATEX = (
    (re.compile("[\u2212\u2011]"), "-"),
    (re.compile("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile("[\u00a0\u2009\u202f]"), " "),
    (re.compile(r"(?<=\})\s*\^\s*(?:[23]|\{\s*[23]\s*\})(?=\s*$)"), " "),
    (re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}"), r" \1 "),
    (re.compile(r"\{,\}(?=[0-9])"), ","),
    (re.compile(r"\\!|\\(?=[$%#&])"), ""),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°"), " "),
    (re.compile(r"\\[ ,;:()\[\]]|\\(?:quad|left|right)(?![a-zA-Z])|(?<=[0-9])~"), " "),
)
SIGNS = frozenset(" \t\r\n.,:;!'\"*()[]`#=%$€£¥¢/_-²³\u2018\u2019“”—")
HEDGES = re.compile(
    r"\b(?:or|not|about|approx|approximately|roughly|around|nearly|almost|between|maybe|perhaps|possibly|unknown"
    r"|wrong|incorrect|negative|minus|plus|half|halves|quarter|squared|cubed|dozens?|hundreds?|thousands?"
    r"|(?:m|b|tr)illions?|sqrt|at\ (?:the\ )?(?:most|least)|never|below|above|beyond|exceed(?:s|ing)?)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
IN_WORDS = (
    r"(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)"
)
WORDED = re.compile(rf"\b{IN_WORDS}\b", re.IGNORECASE)
BOUND = re.compile(rf"\b(?:over|under|than|{IN_WORDS}(?:\ and)?)\ ?$", re.IGNORECASE)  # right before a number
FACTOR = re.compile(r" ?(?:[kKxXMBT]|bn|mn|mil|mio)(?![a-zA-Z])")  # 72k, 3x, 1.5 M
TIMES = re.compile(r"\s*\*\s*\w|\s*=")


def plain(text: str) -> str:
    r"""A text without the LaTeX that changes no number: \frac{3}{4} is 3/4, \text{ clips} is clips, 10{,}080 10,080."""
    text = without_gaps(text)
    for pattern, replacement in LATEX:
        text = pattern.sub(replacement, text)
    return FRACTION.sub(_slashed, text)


def without_gaps(text: str) -> str:
    r"""A text whose thousands have no thin spaces between them: 10\,000, 10~000 and 10\ 000 are 10000. Only groups of
    exactly three digits count as such."""
    return THOUSANDS.sub(lambda number: re.sub(_GAP, "", number[0]), text)


def _slashed(fraction: re.Match[str]) -> str:
    top, bottom = fraction[1] or fraction[2], fraction[3] or fraction[4]
    start = fraction.start()
    mixed = fraction.string[max(0, start - 1) : start].isdigit()
    return f"{' ' if mixed else ''}{top}/{bottom} "


def number_alone(text: str) -> Fraction | None:
    r"""The number that a text is, but for spaces, a currency, a percent sign and a full stop around it; else None.

    1,200, $1200.00 and 1200. are the same number; so are 3/4, \frac{3}{4} and 0.75. 5% is 5 and 72¢ is 72:
    the sign is a unit.
    """
    bare = plain(text).strip().removesuffix(".").rstrip(f"{CURRENCY}¢ ").removesuffix("%").strip()
    match = NUMBER.fullmatch(bare)
    return _value(match) if match else None


def only_number(text: str) -> Fraction | None:
    """The number in a text of words, where it is the only one: 72 clips; The answer is $18.; 18 dollars per day.

    None for two numbers, even equal ones and one in words; for a word that makes another number of it (dozen, half,
    negative, below) or leaves it open (or, about, not, at most, less than); for a factor (72k, 3x, 1.5M); for signs of
    arithmetic, for Greek letters and for digits of other scripts.
    """
    line = plain(text)
    match = NUMBER.search(line)
    if match is None:
        return None
    before, after = line[: match.start()], line[match.end() :]
    if not _only_words(before) or not _only_words(after) or HEDGES.search(line) or _joined(before, after):
        return None
    if WORDED.search(after) or BOUND.search(before) or FACTOR.match(after):
        return None
    return None if match["sign"] == "+" and _is_summand(before) else _value(match)


def _only_words(text: str) -> bool:
    return all(sign in SIGNS or (sign.isalpha() and not "\u0370" <= sign <= "\u03ff") for sign in text)


def _is_summand(before: str) -> bool:
    """Whether a plus after this adds to something, as in x +5."""
    return before.rstrip()[-1:].isalnum() or before.rstrip()[-1:] in (")", "]", "%")


def _joined(before: str, after: str) -> bool:
    """Whether what touches the number makes it part of a name, a product or a list's bullet: x5, 2-5, - 5, 5², 5*x."""
    left, right = before[-1:], after[:1]
    touched = left.isalpha() or (left != "" and left in "./_)²³") or before.rstrip().endswith("-")
    return touched or (right != "" and right in "²³_/'-") or TIMES.match(after) is not None


def _value(match: re.Match[str]) -> Fraction | None:
    """None for a number of more than MAX_DIGITS characters, with two signs, or over zero."""
    whole, top, bottom, decimal = (
        (part or "").replace(",", "") for part in match.group("whole", "top", "bottom", "decimal")
    )
    if max(map(len, (whole, top, bottom, decimal))) > MAX_DIGITS or (match["sign"] and match["inner"]):
        return None
    if decimal:
        value = Fraction(decimal)
    elif int(bottom) == 0:
        return None
    else:
        value = int(whole or 0) + Fraction(int(top), int(bottom))
    return -value if "-" in (match["sign"], match["inner"]) else value
