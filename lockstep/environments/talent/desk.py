"""The recruiter's desk: what one trajectory has searched, opened, shortlisted and said, and what its tools answer.

Tools answer in short, bounded texts. A wrong argument is one line that says what is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.environments.talent.database import MAX_RESULTS, Database, Filters, Found
from lockstep.environments.talent.profile import words
from lockstep.environments.talent.requests import Request
from lockstep.environments.talent.user import User
from lockstep.environments.talent.vocabulary import CITIES, ENGLISH, LANGUAGES
from lockstep.rollout.tool import ToolError

MOST_SHORTLISTED = 10
MOST_QUOTES = 12
MOST_JUSTIFICATION = 400  # characters
MOST_MESSAGE = 1000  # characters
PATIENCE = 3  # times the request's par: calls that are answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was asked for, and who was found."""

    query: str
    filters: Filters
    found: Found


class Desk:
    """One trajectory's state. Methods named like tools are the tools; they raise ToolError."""

    def __init__(self, database: Database, request: Request, page_size: int) -> None:
        self.database, self.request, self.page_size = database, request, page_size
        self.user = User(request)
        self.searches: list[Search] = []
        self.opened: dict[int, str] = {}  # person: the profile that was shown
        self.shortlisted: dict[int, str] = {}  # person: justification
        self.num_calls = 0

    def search(self, query: str, filters: Filters) -> str:
        """The first page of a new search."""
        self._count()
        if not words(query) and filters == Filters():
            raise ToolError("the query has no word; give one, such as a skill, or a filter")
        return self._begin(query, self._checked(filters))

    def refine(self, search: int, filters: Filters, page: int | None) -> str:
        """Another page of a search, or the first page of a new one with further filters."""
        self._count()
        if not 1 <= search <= len(self.searches):
            known = f"searches are 1 to {len(self.searches)}" if self.searches else "search first"
            raise ToolError(f"no search {_shown(search)}; {known}")
        begun = self.searches[search - 1]
        further = begun.filters.further(self._checked(filters))
        if further != begun.filters:
            return self._begin(begun.query, further)
        return self._page(search, 1 if page is None else page)

    def open_profile(self, person: int) -> str:
        """The profile, and with it what the user has to say just then."""
        self._count()
        text = self.database.profile(person)
        if text is None:
            raise ToolError(f"no person {_shown(person)}; take the number that begins a line of a search's result")
        self.opened[person] = text
        said = self.user.after_profile(len(self.opened))
        return text if said is None else f"{text}\n(The user writes: {said})"

    def shortlist(self, person: int, justification: str) -> str:
        """Put a person on the shortlist, give another justification, or with an empty one take the person off."""
        self._count()
        quotes = quotes_of(justification)
        if person not in self.shortlisted:
            self._check_new(person, quotes)
        if len(justification) > MOST_JUSTIFICATION or len(quotes) > MOST_QUOTES:
            raise ToolError(
                f"the justification has {len(justification)} characters and {len(quotes)} quotes; give at most "
                f"{MOST_JUSTIFICATION} and {MOST_QUOTES}: only what shows that the person is right"
            )
        if quotes:
            self.shortlisted[person] = justification
        else:
            del self.shortlisted[person]
        listed = ", ".join(map(str, self.shortlisted)) or "nobody"
        return f"Shortlist: {listed} ({len(self.shortlisted)} of {self.request.number})."

    def message(self, text: str) -> str:
        """What the user answers."""
        self._count()
        if not text.strip() or len(text) > MOST_MESSAGE:
            raise ToolError(f"the message has {len(text)} characters; write 1 to {MOST_MESSAGE}")
        numbers = set(re.findall(r"\d+", text))
        proposal = any(str(person) in numbers for person in self.shortlisted)
        return self.user.reply(text, proposal=proposal)

    def _count(self) -> None:
        most = PATIENCE * self.request.par
        if self.num_calls >= most:
            raise ToolError(f"all {most} calls are used up; end with a final message to the user")
        self.num_calls += 1

    def _check_new(self, person: int, quotes: Sequence[str]) -> None:
        if person not in self.database.population.by_id:
            raise ToolError(f"no person {_shown(person)}; take the number that begins a line of a search's result")
        if not quotes:
            raise ToolError("the justification is empty; quote facts from the profile, separated by ';'")
        if len(self.shortlisted) >= MOST_SHORTLISTED:
            raise ToolError(
                f"the shortlist is full with {MOST_SHORTLISTED} people; take one off first, with an empty justification"
            )

    def _checked(self, filters: Filters) -> Filters:
        """The filters with places and languages as the database spells them."""
        if filters.max_salary is not None and not 1 <= filters.max_salary <= 1000:
            raise ToolError(f"max_salary={_shown(filters.max_salary)}; give thousands a year, 1 to 1000")
        return Filters(
            place=_spelled("place", filters.place, (*CITIES, *LANGUAGES)),
            max_salary=filters.max_salary,
            language=_spelled("language", filters.language, (ENGLISH, *LANGUAGES.values())),
            open_only=filters.open_only,
        )

    def _begin(self, query: str, filters: Filters) -> str:
        self.searches.append(Search(query=query, filters=filters, found=self.database.search(query, filters)))
        return self._page(len(self.searches), 1)

    def _page(self, number: int, page: int) -> str:
        found = self.searches[number - 1].found
        count, size = len(found.ids), self.page_size
        last = max(1, -(-count // size))
        if not 1 <= page <= last:
            raise ToolError(f"no page {_shown(page)}; search {number} has {last}")
        total = f"more than {MAX_RESULTS}" if found.more else str(count)
        head = f"Search {number}: {total} people" + (", none with all the words" if found.loose and count else "")
        head += f", page {page} of {last}." if last > 1 else "."
        return "\n".join([head, *self.database.lines(found.ids[(page - 1) * size : page * size])])


def quotes_of(justification: str) -> list[str]:
    """The quotes of a justification: what stands between semicolons and has a word in it."""
    return [part for part in justification.split(";") if words(part)]


def _spelled(what: str, said: str | None, known: Sequence[str]) -> str | None:
    if said is None or not said.strip():
        return None
    for name in known:
        if name.casefold() == said.strip().casefold():
            return name
    shown = said if len(said) <= 30 else said[:30] + "..."
    raise ToolError(f"{what}={shown!r} is not known; give one of {', '.join(known)}")


def _shown(number: int) -> str:
    return str(number) if abs(number) < 10**9 else "so large"
