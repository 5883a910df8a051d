"""The simulated user: answers questions by their topic, and changes its mind once, in plain English, without a model.

What it says is a function of the request and of what was said and done before in the trajectory. It speaks of wishes
only; it never says whether a proposed person is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lockstep.environments.talent.constraints import Constraint
from lockstep.environments.talent.requests import Request
from lockstep.environments.talent.vocabulary import ENGLISH, LANGUAGES
from lockstep.environments.talent.wording import TOPICS, write

MOST_TOPICS = 2  # answered in one message
MOST_ANSWERS = 12  # messages that the user answers
PROFILES_BEFORE_CHANGE = 2

# Words by which a question's topic is known.
ASKED_BY: Mapping[str, str] = {
    "skill": r"skills?|technolog\w+|stack|experience",
    "place": r"locations?|located|where|city|cities|country|based|living|place",
    "salary": r"salar\w+|budget|pay|paid|compensation|costs?|wages?|money|afford|spend|financial\w*",
    "language": rf"languages?|speak|spoken|fluen\w+|{ENGLISH}|{'|'.join(LANGUAGES.values())}",
    "notice": r"notice|start|when|soon|date|deadline|join\w*|quickly",
    "mode": r"remote\w*|hybrid|on.?site|office|home|wfh|work(?:ing)?.(?:mode|model|arrangement)s?",
    "now": r"present employer|current employer|employed now|current industry",
    "before": r"former employers?|past employers?|previous employers?|background|industry|industries|sector",
    "seniority": r"senior\w*|junior|levels?",
    "degree": r"degrees?|education\w*|university|qualifications?|academic|diplomas?|bachelor\S*|master\S*|ph\.?d",
    "size": r"company sizes?|size|startups?",
    "open": r"availab\w+|open to work|looking for (?:a |new )*(?:work|job)|actively looking|job.?seek\w+",
}
ANYTHING = re.compile(
    r"\b(anything|else|other|additional|more|missing|requirements?|constraints?|wishes|matters?|must.haves?)\b",
    re.IGNORECASE,
)
TOPIC = {kind: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for kind, pattern in ASKED_BY.items()}

CHANGES = ("Our plans changed: now we need {wish}.", "One thing is different now: we need {wish}.")
NO_ANSWER = "Sorry, I cannot help with that. Ask me what the people must be like."
ENOUGH = "I have told you what I can. Please go on with it."
THE_REST = "Ask me about the rest in another message."
FINE = "Thank you, noted. Please go ahead."


class User:
    """One trajectory's user."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.has_changed = False
        self.num_answers = 0
        self.told: set[str] = set()  # kinds of hidden wishes that were told

    @property
    def wishes(self) -> Sequence[Constraint]:
        """What the user wants at this moment."""
        return self.request.final if self.has_changed else self.request.first

    def reply(self, text: str, *, proposal: bool) -> str:
        """The answer to a message. proposal: it names somebody on the shortlist."""
        if proposal and (change := self._change("proposal")) is not None:
            return change
        self.num_answers += 1
        if self.num_answers > MOST_ANSWERS:
            return ENOUGH
        asked = topics_of(text)
        said = [self._about(kind) for kind in asked[:MOST_TOPICS]]
        if ANYTHING.search(text) and (asked or not proposal):
            said.append(self._open_question())
        elif len(asked) > MOST_TOPICS:
            said.append(THE_REST)
        return " ".join(said) or (FINE if proposal else NO_ANSWER)

    def after_profile(self, num_profiles: int) -> str | None:
        """What the user says of its own accord when so many profiles have been opened."""
        return self._change("profiles") if num_profiles >= PROFILES_BEFORE_CHANGE else None

    def _change(self, trigger: str) -> str | None:
        change = self.request.change
        if change is None or self.has_changed or self.request.trigger != trigger:
            return None
        self.has_changed = True
        self.told.add(change.kind)
        return CHANGES[len(self.request.text) % len(CHANGES)].format(wish=self._said(change))

    def _said(self, wish: Constraint) -> str:
        return write(wish, len(self.request.text))

    def _about(self, kind: str) -> str:
        self.told.add(kind)
        found = [self._said(wish) for wish in self.wishes if wish.kind == kind]
        return f"We need {', '.join(found)}." if found else f"As to {TOPICS[kind]}: anything will do."

    def _open_question(self) -> str:
        untold = [TOPICS[wish.kind] for wish in self.request.hidden if wish.kind not in self.told]
        return f"Yes, ask me about {' and '.join(untold)}." if untold else "No, you know all that matters."


def topics_of(text: str) -> list[str]:
    """The kinds of wishes that a text asks about, in the order in which it does."""
    found = {kind: match.start() for kind, pattern in TOPIC.items() if (match := pattern.search(text))}
    return sorted(found, key=lambda kind: found[kind])
