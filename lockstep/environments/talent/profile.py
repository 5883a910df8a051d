"""What a search and an opened profile show of a person, and which words of a profile are evidence of a fact."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lockstep.environments.talent.people import Job, Person

WORD = re.compile(r"[^\W_]+[+#]*")


def line(person: Person) -> str:
    """One result of a search."""
    return f"{person.id} {person.name}, {person.headline}, {person.city}"


def profile(person: Person) -> str:
    """All that is known of a person, in a few lines of fixed form. A skill is written as the person writes it."""
    lines = [
        f"{person.id} {person.name}, {person.headline}. Lives in {person.city}, {person.country}.",
        f"Skills: {', '.join(f'{skill.written} {skill.years}y' for skill in person.skills)}.",
        *_career(person.jobs),
        f"Languages: {', '.join(f'{language} {level}' for language, level in person.languages)}.",
        f"Salary {person.salary}k. Notice {person.notice} weeks. Works {person.mode}. "
        + ("Open to work." if person.open_to_work else "Not looking."),
    ]
    if person.degree != "none":
        lines.append(f"Degree: {person.degree} {person.field}.")
    return "\n".join([*lines, person.summary]).strip()


def _career(jobs: Sequence[Job]) -> list[str]:
    if not jobs:
        return []
    now, *before = map(_job, jobs)
    return [f"Now: {now}." + (f" Before: {'; '.join(before)}." if before else "")]


def _job(job: Job) -> str:
    company = job.company
    years = f"since {job.start}" if job.end is None else f"{job.start}-{job.end}"
    return f"{company.name} ({company.industry}, {company.people} people) {years}"


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation; C, C++ and C# are three words."""
    return WORD.findall(text.casefold())


def within(part: list[str], whole: list[str]) -> bool:
    """Whether the words stand in the other text, next to one another and in this order. Nothing stands in no text."""
    return bool(part) and any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
