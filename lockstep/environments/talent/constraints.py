"""What a user can want of a person: whether it holds, and what in a profile is evidence of it.

Everything is decided by what the profile shows. Kinds, and what `value` and `amount` mean:

    skill      value: the skill; amount: years at least
    place      value: a city, or a country
    salary     amount: thousands a year at most
    language   value: the language, fluent or native
    notice     amount: weeks at most
    mode       value: 'on site', 'hybrid' or 'remote'
    now        value: the present employer's industry
    before     value: the industry of a former employer
    seniority  value: the least one
    degree     value: the least one
    size       value: the size of the present or a former employer
    open       open to work
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.environments.talent.database import Filters
from lockstep.environments.talent.people import Company, Person
from lockstep.environments.talent.vocabulary import DEGREES, SENIORITIES


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Constraint:
    """One wish; see above for the kinds."""

    kind: str
    value: str = ""
    amount: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A wish that is nice to have. weight: 2 for one that matters more, else 1."""

    constraint: Constraint
    weight: int


def evidence(person: Person, wanted: Constraint) -> tuple[str, ...]:
    """The fragments of the person's profile each of which shows that the wish holds; none when it does not."""
    value, amount = wanted.value, wanted.amount
    match wanted.kind:
        case "skill":
            return tuple(f"{s.written} {s.years}y" for s in person.skills if s.name == value and s.years >= amount)
        case "place":
            return (value,) if value in (person.city, person.country) else ()
        case "salary":
            return (f"Salary {person.salary}k",) if person.salary <= amount else ()
        case "language":
            return tuple(f"{name} {level}" for name, level in person.languages if name == value and level != "basic")
        case "notice":
            return (f"Notice {person.notice} weeks",) if person.notice <= amount else ()
        case "mode":
            return (f"Works {value}",) if person.mode == value else ()
        case "seniority":
            meets = SENIORITIES.index(person.seniority) >= SENIORITIES.index(value)
            return (person.headline,) if meets else ()
        case "degree":
            meets = DEGREES.index(person.degree) >= DEGREES.index(value)
            return (f"{person.degree} {person.field}", f"Degree: {person.degree}") if meets else ()
        case "open":
            return ("Open to work",) if person.open_to_work else ()
        case _:
            return tuple(f"{company.name} ({company.industry}" for company in _employers(person, wanted))


def _employers(person: Person, wanted: Constraint) -> list[Company]:
    jobs = {"now": person.jobs[:1], "before": person.jobs[1:], "size": person.jobs}[wanted.kind]
    return [job.company for job in jobs if wanted.value in (job.company.industry, job.company.size)]


def meets(person: Person, wanted: Constraint) -> bool:
    """Whether the wish holds."""
    return bool(evidence(person, wanted))


def meets_all(person: Person, wanted: Sequence[Constraint]) -> bool:
    """Whether every wish holds."""
    return all(meets(person, one) for one in wanted)


def liking(person: Person, soft: Sequence[Preference]) -> int:
    """The weights of the preferences that hold, summed."""
    return sum(one.weight for one in soft if meets(person, one.constraint))


def filters_of(hard: Sequence[Constraint]) -> Filters:
    """What of the wishes a search can filter by. The rest has to be read in the profiles."""
    of = {one.kind: one for one in hard}
    return Filters(
        place=of["place"].value if "place" in of else None,
        max_salary=of["salary"].amount if "salary" in of else None,
        language=of["language"].value if "language" in of else None,
        open_only="open" in of,
    )
