"""Scripted agents: an expert that acts on the tools' texts alone, parts of which can be left out, and a greedy one.

An agent is a generator: it yields a call, is sent the tool's text, and returns its final message. It sees what a model
would see. That it reads profiles and requests by their fixed forms, and knows how skills are written, is its skill.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from lockstep.environments.talent.constraints import Constraint, evidence, filters_of, liking, meets_all
from lockstep.environments.talent.people import Company, Job, Person, Skill
from lockstep.environments.talent.requests import changed, query_of
from lockstep.environments.talent.vocabulary import RECRUITER, RECRUITER_SKILLS, ROLES, written
from lockstep.environments.talent.wording import TOPICS, read, read_request

Call = tuple[str, Mapping[str, Any]]
Agent = Generator[Call, str, str]

MOST_READ = 24  # profiles after one search
USER_WRITES = "(The user writes: "
LINE = re.compile(r"^(\d+) [^,]+, ([^,]+), [^,]+$", re.MULTILINE)
PAGES = re.compile(r"^Search (\d+): .*page \d+ of (\d+)\.$", re.MULTILINE)
NAME = re.compile(r"(?P<id>\d+) (?P<name>[^,]+), (?P<seniority>\w+) (?P<role>[^.]+)\. Lives in (?P<city>\w+), \w+\.")
LISTED = re.compile(r"^(Skills|Languages): (.+)\.$", re.MULTILINE)
SKILL = re.compile(r"(.+) (\d+)y")
JOB = re.compile(r"(\w+) \((\w+), (\d+) people\) (?:since (\d+)|(\d+)-(\d+))")
TERMS = re.compile(r"Salary (?P<salary>\d+)k\. Notice (?P<notice>\d+) weeks\. Works (?P<mode>[\w ]+)\. (?P<open>\w+)")
DEGREE = re.compile(r"^Degree: (\w+) (\w+)\.$", re.MULTILINE)
SKILL_OF = {way: skill for skills in (*ROLES.values(), RECRUITER_SKILLS) for skill in skills for way in written(skill)}


def read_profile(text: str) -> Person:
    """The person that a profile shows; the countries of companies are not in it. Raises ValueError for another text."""
    name, terms = NAME.match(text), TERMS.search(text)
    listed = {key: said.split(", ") for key, said in LISTED.findall(text)}
    if name is None or terms is None or len(listed) < 2:
        raise ValueError(f"{text[:60]!r} is no profile")
    skills = [SKILL.fullmatch(part) for part in listed["Skills"]]
    languages = [part.split(" ") for part in listed["Languages"]]
    degree = DEGREE.search(text)
    rest = text[(degree or terms).end() :].partition("\n")[2].split("\n")
    return Person(
        id=int(name["id"]),
        name=name["name"],
        city=name["city"],
        role=name["role"],
        seniority=name["seniority"],
        skills=tuple(Skill(name=SKILL_OF[s[1]], written=s[1], years=int(s[2])) for s in skills if s is not None),
        jobs=tuple(_job(match) for match in JOB.finditer(text)),
        languages=tuple((language, level) for language, level in languages),
        degree=degree[1] if degree else "none",
        field=degree[2] if degree else "",
        salary=int(terms["salary"]),
        notice=int(terms["notice"]),
        mode=terms["mode"],
        open_to_work=terms["open"] == "Open",
        summary="" if rest[0].startswith(USER_WRITES) else rest[0],
    )


def _job(match: re.Match[str]) -> Job:
    name, industry, people, since, start, end = match.groups()
    company = Company(name=name, industry=industry, people=int(people), country="")
    return Job(company=company, start=int(since or start), end=None if since else int(end))


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What an agent does. asks: for wishes that were not said. opens: the profiles of whom it found. rechecks: what it
    has when the user's mind has changed. carelessness: how often, at each decision, it does not do what it should."""

    asks: bool = True
    opens: bool = True
    rechecks: bool = True
    carelessness: float = 0.0


def expert(text: str, habits: Habits, random_: random.Random) -> Agent:
    """Works on a request from its text. random_ decides when a careless one slips."""
    return _Expert(text, habits, random_).work()


def greedy(text: str, number: int) -> Agent:
    """Searches with the words of the request and shortlists who comes first."""
    results = yield "search", {"query": text[:300]}
    chosen = LINE.findall(results)[:number]
    for person, _ in chosen:
        line = next(line for line in results.split("\n") if line.startswith(f"{person} "))
        yield "shortlist", {"person": int(person), "justification": line}
    return "Done."


class _Expert:
    def __init__(self, text: str, habits: Habits, random_: random.Random) -> None:
        self.habits, self.random = habits, random_
        self.number, self.hard, self.soft = read_request(text)
        self.people: dict[int, Person] = {}  # as read in opened profiles
        self.found: list[int] = []  # who is worth reading, in the order of the last search
        self.listed: dict[int, str] = {}  # person: justification

    def work(self) -> Agent:
        if self.habits.asks and not self._slips():
            yield from self._ask()
        yield from self._find()
        yield from self._shortlist()
        if self.listed:
            named = " and ".join(map(str, self.listed))
            reply = yield "message", {"text": f"I propose {named}."}
            if self._notice(reply):
                yield from self._find()
                yield from self._shortlist()
        return "Done."

    def _slips(self) -> bool:
        return self.habits.carelessness > 0 and self.random.random() < self.habits.carelessness

    def _ask(self) -> Generator[Call, str, None]:
        reply = yield "message", {"text": "Anything else?"}
        topics = [topic for topic in TOPICS.values() if topic in reply]
        if topics:
            reply = yield "message", {"text": f"What {' and '.join(topics)}?"}
            self.hard += read(reply)

    def _notice(self, said: str) -> bool:
        """Take a change of the user's mind to heart. Returns whether there was one. A new place has to be searched."""
        wishes = read(said) if self.habits.rechecks else []
        if not wishes or self._slips():
            return False
        for wish in wishes:
            if wish.kind == "place":
                self.found = []
            self.hard = list(changed(self.hard, wish))
            if wish not in self.hard:
                self.hard.append(wish)
        return True

    def _find(self) -> Generator[Call, str, None]:
        """Search, unless that has been done, and read everyone who was found."""
        if not self.found:
            yield from self._search()
        for id_ in list(self.found) if self.habits.opens else ():
            if id_ in self.people:
                continue
            text = yield "open_profile", {"person": id_}
            if text.startswith("Error:"):
                return
            self.people[id_] = read_profile(text)
            said = text.partition(USER_WRITES)[2]
            if said and self._notice(said) and not self.found:
                yield from self._find()
                return

    def _search(self) -> Generator[Call, str, None]:
        wanted = filters_of(self.hard)
        filters = {"place": wanted.place, "max_salary": wanted.max_salary, "language": wanted.language}
        arguments = {key: value for key, value in filters.items() if value is not None}
        if wanted.open_only:
            arguments["open_only"] = True
        results = yield "search", {"query": query_of(self.hard), **arguments}
        pages = PAGES.search(results)
        texts = [results]
        for page in range(2, int(pages[2]) + 1 if pages else 2):
            texts.append((yield "refine", {"search": int(pages[1]), "page": page}))  # pyright: ignore[reportOptionalSubscript]
        lines = [line for text in texts for line in LINE.findall(text)]
        self.found = [int(person) for person, headline in lines if not headline.endswith(RECRUITER)][:MOST_READ]

    def _shortlist(self) -> Generator[Call, str, None]:
        """Make the shortlist what it should be."""
        chosen = self._chosen()
        for id_ in [id_ for id_ in self.listed if id_ not in chosen]:
            del self.listed[id_]
            yield "shortlist", {"person": id_, "justification": ""}
        for id_ in chosen:
            quotes = self._quotes(id_)
            if self.listed.get(id_) != quotes:
                self.listed[id_] = quotes
                yield "shortlist", {"person": id_, "justification": quotes}

    def _chosen(self) -> list[int]:
        if not self.habits.opens:
            return self.found[: self.number]
        suited = [id_ for id_, person in self.people.items() if meets_all(person, self.hard) or self._slips()]
        suited.sort(key=lambda id_: -liking(self.people[id_], self.soft))
        return suited[: self.number]

    def _quotes(self, id_: int) -> str:
        """One fragment of the profile for each wish."""
        if id_ not in self.people:
            return "; ".join(_guess(wish) for wish in self.hard)
        found = [evidence(self.people[id_], wish)[:1] for wish in self.hard]
        return "; ".join(dict.fromkeys(quote for fragments in found for quote in fragments)) or "fits"


def _guess(wish: Constraint) -> str:
    """What somebody who has not looked would say."""
    return f"{wish.value} {wish.amount or ''}".strip()
