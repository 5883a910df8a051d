"""Wishes in plain English, and plain English read back: how users speak, and how a scripted agent understands them.

write(Constraint(kind="salary", amount=70), 0) == "a salary of at most 70k"
read("We need a salary of at most 70k.") == [Constraint(kind="salary", amount=70)]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from lockstep.environments.talent.constraints import Constraint, Preference
from lockstep.environments.talent.vocabulary import (
    CITIES,
    DEGREES,
    ENGLISH,
    INDUSTRIES,
    LANGUAGES,
    MODES,
    ROLES,
    SENIORITIES,
    SIZES,
)

# The ways of saying a wish. {value} and {amount} are the constraint's.
PHRASES: Mapping[str, tuple[str, ...]] = {
    "skill": ("at least {amount} years of {value}", "{amount}+ years of {value}", "{value} for {amount} years or more"),
    "place": ("living in {value}", "based in {value}", "already in {value}"),
    "salary": ("a salary of at most {amount}k", "a cost of no more than {amount}k a year", "a budget of {amount}k"),
    "language": ("fluent {value}", "{value} spoken fluently"),
    "notice": ("notice of at most {amount} weeks", "able to start within {amount} weeks"),
    "mode": ("ready to work {value}", "who wants to work {value}"),
    "now": ("now employed in {value}", "working at a {value} company today"),
    "before": ("with a former employer in {value}", "who was at a {value} company before"),
    "seniority": ("of {value} level or above", "no less than {value} level"),
    "degree": ("with a {value} or higher", "holding at least a {value}"),
    "size": ("with time at a {value} company", "who knows {value} companies from inside"),
    "open": ("open to work", "open for a new job"),
}

VALUES: Mapping[str, tuple[str, ...]] = {
    "skill": tuple(dict.fromkeys(skill for skills in ROLES.values() for skill in skills)),
    "place": (*CITIES, *LANGUAGES),
    "language": (ENGLISH, *LANGUAGES.values()),
    "mode": MODES,
    "now": INDUSTRIES,
    "before": INDUSTRIES,
    "seniority": SENIORITIES[1:],
    "degree": DEGREES[1:],
    "size": SIZES,
}

OPENINGS = (
    "Please find {number} people for us.",
    "We want to hire {number} people.",
    "I am looking for {number} candidates.",
    "Our team has {number} places to fill.",
)
ONE_OF = {"people": "person", "candidates": "candidate", "places": "place"}
MUSTS = ("Must have: {wishes}.", "We need {wishes}.", "What counts: {wishes}.", "Essential: {wishes}.")
NICE = ("Nice to have: {wishes}.", "Ideally {wishes}.", "A plus: {wishes}.")
STRONG = " (matters more)"

TOPICS: Mapping[str, str] = {
    "skill": "skills",
    "place": "location",
    "salary": "salary",
    "language": "languages",
    "notice": "start date",
    "mode": "remote work",
    "now": "present employer",
    "before": "former employers",
    "seniority": "seniority",
    "degree": "degree",
    "size": "company size",
    "open": "availability",
}


def write(wish: Constraint, way: int) -> str:
    """The wish in the way of that number (any number will do)."""
    phrases = PHRASES[wish.kind]
    return phrases[way % len(phrases)].format(value=wish.value, amount=wish.amount)


def preferred(soft: Sequence[Preference], ways: Sequence[int]) -> str:
    """Preferences as a list, the strong ones marked."""
    said = [write(one.constraint, way) + STRONG * (one.weight > 1) for one, way in zip(soft, ways, strict=True)]
    return "; ".join(said)


def opened(number: int, way: int) -> str:
    """How a request for so many people begins, in the way of that number."""
    said = OPENINGS[way % len(OPENINGS)].format(number=number)
    for many, one in ONE_OF.items() if number == 1 else ():
        said = said.replace(f"1 {many}", f"1 {one}")
    return said


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    found = []
    for kind, phrases in PHRASES.items():
        values = "|".join(map(re.escape, VALUES.get(kind, ())))
        for phrase in phrases:
            pattern = re.escape(phrase).replace(r"\{value\}", f"(?P<value>{values})")
            pattern = pattern.replace(r"\{amount\}", r"(?P<amount>\d{1,3})")
            found.append((kind, re.compile(rf"(?<!\w){pattern}(?![\w+#])", re.IGNORECASE)))
    return found


def read(text: str) -> list[Constraint]:
    """The wishes that a text states in a known way, in the order in which they are said."""
    return [wish for _, _, wish in _read(text)]


def _read(text: str) -> list[tuple[int, int, Constraint]]:
    spelled = {kind: {value.casefold(): value for value in values} for kind, values in VALUES.items()}
    found = []
    for kind, pattern in _patterns():
        for match in pattern.finditer(text):
            said = match.groupdict()
            value = spelled[kind][said["value"].casefold()] if "value" in said else ""
            wish = Constraint(kind=kind, value=value, amount=int(said.get("amount", 0)))
            found.append((match.start(), match.end(), wish))
    return sorted(found)


def read_request(text: str) -> tuple[int, list[Constraint], list[Preference]]:
    """A request's number of people, its hard wishes and its preferences."""
    number = re.search(r"\d+", text)
    nice = [text.find(frame.partition("{")[0]) for frame in NICE]
    split = min((place for place in nice if place >= 0), default=len(text))
    soft = [
        Preference(constraint=wish, weight=1 + text[split:].startswith(STRONG, end))
        for _, end, wish in _read(text[split:])
    ]
    return int(number[0]) if number else 1, read(text[:split]), soft
