"""The talent database: people and companies in SQLite, searched by words through its full-text index (FTS5).

Built once for each population, in memory, in seconds; read only afterwards, and shared by all trajectories and
threads. A query's words never reach FTS5 as syntax: each is quoted, and every value is bound as a parameter.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

from lockstep.environments.talent.people import Person, Population
from lockstep.environments.talent.profile import line, profile, words

MAX_WORDS = 24  # of a query; the rest is not read
MAX_RESULTS = 200  # of a search; beyond them, only that there are more

SCHEMA = """
CREATE TABLE company (name TEXT PRIMARY KEY, industry TEXT, people INTEGER, country TEXT);
CREATE TABLE person (id INTEGER PRIMARY KEY, city TEXT, country TEXT, salary INTEGER, open INTEGER, line TEXT,
                     profile TEXT);
CREATE TABLE language (language TEXT, person INTEGER, PRIMARY KEY (language, person)) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = "unicode61 tokenchars '+#'", content = '');
"""
TERM = re.compile(r'"([^"]*)"|([^\s"|]+)|\|')


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a search leaves out. place: a city or a country. language: spoken at any level. None leaves out nobody."""

    place: str | None = None
    max_salary: int | None = None
    language: str | None = None
    open_only: bool = False

    def further(self, other: Filters) -> Filters:
        """These filters, and where the other ones say something, theirs instead."""
        return replace(
            self,
            place=other.place or self.place,
            max_salary=self.max_salary if other.max_salary is None else other.max_salary,
            language=other.language or self.language,
            open_only=self.open_only or other.open_only,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """ids: best first, at most MAX_RESULTS. more: there are others. loose: nobody has all words."""

    ids: tuple[int, ...]
    more: bool = False
    loose: bool = False


def groups_of(query: str) -> list[list[str]]:
    """A query's alternatives: each group is joined by OR in the query, and all groups are wanted.

    'Rust Kubernetes OR K8s' is [['Rust'], ['Kubernetes', 'K8s']]. Text in double quotes is one phrase. What is no word
    is left out, beyond MAX_WORDS everything is.
    """
    groups: list[list[str]] = []
    joined, count = False, 0
    for match in TERM.finditer(query):
        phrase, word = match.groups()
        if phrase is None and word in (None, "OR"):
            joined = True
            continue
        found = words(phrase or word or "")
        if not found or (phrase is None and word == "AND"):
            continue
        count += len(found)
        if count > MAX_WORDS:
            break
        term = " ".join(found)
        if joined and groups:
            groups[-1].append(term)
        else:
            groups.append([term])
        joined = False
    return groups


class Database:
    """Searches over one population. Safe to use from several threads."""

    def __init__(self, population: Population) -> None:
        self.population = population
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._connection.executescript(SCHEMA)
        self._fill()
        self._connection.execute("PRAGMA query_only = ON")

    def _fill(self) -> None:
        people = self.population.people
        run = self._connection.executemany
        self._connection.execute("BEGIN")
        companies = ((c.name, c.industry, c.people, c.country) for c in self.population.companies)
        run("INSERT INTO company VALUES (?, ?, ?, ?)", companies)
        rows = ((p.id, p.city, p.country, p.salary, int(p.open_to_work), line(p), profile(p)) for p in people)
        run("INSERT INTO person VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        run("INSERT INTO language VALUES (?, ?)", ((name, p.id) for p in people for name, _ in p.languages))
        run("INSERT INTO words (rowid, text) VALUES (?, ?)", ((p.id, searched(p)) for p in people))
        self._connection.execute("COMMIT")

    def search(self, query: str, filters: Filters) -> Found:
        """Who has all words of the query, or else some; by relevance (BM25), then by id. A query without a word finds
        everybody whom the filters leave, by id."""
        groups = groups_of(query)
        if not groups:
            return self._found(None, filters)
        found = self._found(_all_of(groups), filters)
        if found.ids or len(groups) == 1:
            return found
        return replace(self._found(_any_of(chain(*groups)), filters), loose=True)

    def everyone(self, query: str, filters: Filters) -> list[int]:
        """All whom a search finds by all words of the query, however many, by id: quicker, where no order is wanted."""
        groups = groups_of(query)
        table, where, values = _conditions(_all_of(groups) if groups else None, filters)
        return [id_ for (id_,) in self._rows(f"SELECT person.id FROM {table}{where} ORDER BY person.id", values)]

    def _found(self, match: str | None, filters: Filters) -> Found:
        table, where, values = _conditions(match, filters)
        # Rounded: the last bits of BM25 are not the same in every build of SQLite.
        order = "person.id" if match is None else "round(bm25(words), 4), person.id"
        rows = self._rows(f"SELECT person.id FROM {table}{where} ORDER BY {order} LIMIT {MAX_RESULTS + 1}", values)
        ids = tuple(id_ for (id_,) in rows)
        return Found(ids=ids[:MAX_RESULTS], more=len(ids) > MAX_RESULTS)

    def lines(self, ids: Sequence[int]) -> list[str]:
        """What a search shows of each of these people."""
        return [text for id_ in ids for (text,) in self._rows("SELECT line FROM person WHERE id = ?", [id_])]

    def profile(self, id_: int) -> str | None:
        """A person's profile; None when there is no such person."""
        if id_ not in self.population.by_id:  # not asked of SQLite: its integers end at 64 bits
            return None
        return self._rows("SELECT profile FROM person WHERE id = ?", [id_])[0][0]

    def content(self) -> Iterator[str]:
        """Every row as text, to compare databases by."""
        for table in ("company", "person", "language"):
            yield from (repr(row) for row in self._rows(f"SELECT * FROM {table} ORDER BY 1, 2", []))

    def _rows(self, statement: str, values: Sequence[str | int]) -> list[tuple]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def _all_of(groups: Sequence[Sequence[str]]) -> str:
    return " AND ".join(map(_any_of, groups))


def _any_of(terms: Iterable[str]) -> str:
    """A full-text query for any of the terms. They are words alone, quoted: FTS5 finds no syntax in them."""
    return "(" + " OR ".join(f'"{term}"' for term in terms) + ")"


def _conditions(match: str | None, filters: Filters) -> tuple[str, str, list[str | int]]:
    """The tables, the WHERE clause and its values of a search."""
    conditions: list[str] = []
    values: list[str | int] = []
    if match is not None:
        conditions.append("words MATCH ?")
        values.append(match)
    if filters.place is not None:
        conditions.append("(person.city = ? OR person.country = ?)")
        values += [filters.place] * 2
    if filters.max_salary is not None:
        conditions.append("person.salary <= ?")
        values.append(filters.max_salary)
    if filters.language is not None:
        conditions.append("person.id IN (SELECT person FROM language WHERE language = ?)")
        values.append(filters.language)
    if filters.open_only:
        conditions.append("person.open = 1")
    table = "person" if match is None else "words JOIN person ON person.id = words.rowid"
    return table, f" WHERE {' AND '.join(conditions)}" if conditions else "", values


def searched(person: Person) -> str:
    """The text that a search looks through: the profile without the numbers' lines."""
    skills = ", ".join(skill.written for skill in person.skills)
    employers = ", ".join(job.company.name for job in person.jobs)
    return f"{person.name}, {person.headline}. {skills}. {employers}. {person.summary}"


@lru_cache(maxsize=4)
def database_of(seed: int, num_people: int, narrow: bool) -> Database:
    """The database of a population, built at the first call."""
    return Database(Population(seed=seed, num_people=num_people, narrow=narrow))
