"""Generated people and companies: a function of (seed, number, narrow) alone, the same on every machine.

Person i is drawn from a random stream of its own, so a larger population begins with the people of a smaller one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from lockstep.environments.talent.vocabulary import (
    CITIES,
    COMPANY_HEADS,
    COMPANY_MIDDLES,
    COMPANY_TAILS,
    DEGREES,
    ENGLISH,
    FIELDS,
    FIRST_NAMES,
    INDUSTRIES,
    LANGUAGES,
    LAST_NAMES,
    MODES,
    RECRUITER,
    RECRUITER_SKILLS,
    ROLES,
    SENIORITIES,
    written,
)

THIS_YEAR = 2026
NUM_COMPANIES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """people: how many work there. country: where it is based."""

    name: str
    industry: str
    people: int
    country: str

    @property
    def size(self) -> str:
        return "startup" if self.people < 50 else "medium" if self.people < 1000 else "large"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Years at a company; end is None for the present one."""

    company: Company
    start: int
    end: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """name: what requests call it. written: how this person writes it."""

    name: str
    written: str
    years: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """jobs: newest first, the first one the present one; a narrow population has none. languages: (language, fluency).
    salary: thousands a year that the person asks for. notice: weeks."""

    id: int
    name: str
    city: str
    role: str
    seniority: str
    skills: tuple[Skill, ...]
    jobs: tuple[Job, ...]
    languages: tuple[tuple[str, str], ...]
    degree: str
    field: str
    salary: int
    notice: int
    mode: str
    open_to_work: bool
    summary: str

    @property
    def country(self) -> str:
        return CITIES[self.city]

    @property
    def headline(self) -> str:
        return f"{self.seniority} {self.role}"


@dataclass(frozen=True, kw_only=True)
class Population:
    """Everybody there is. narrow: few cities and roles, no employers and degrees, and short profiles, for a tiny
    model."""

    seed: int
    num_people: int
    narrow: bool = False

    @property
    def cities(self) -> tuple[str, ...]:
        return tuple(CITIES)[: 5 if self.narrow else None]

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(ROLES)[: 3 if self.narrow else None]

    @property
    def tongues(self) -> tuple[str, ...]:
        """Languages that people speak beside their own."""
        return (ENGLISH, *dict.fromkeys(LANGUAGES[CITIES[city]] for city in self.cities))

    def skills_of(self, role: str) -> tuple[str, ...]:
        return ROLES[role][: 4 if self.narrow else None]

    @cached_property
    def skills(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(skill for role in self.roles for skill in self.skills_of(role)))

    @cached_property
    def companies(self) -> tuple[Company, ...]:
        """Distinct names, in an order fixed by the seed."""
        random_ = random.Random(f"talent companies {self.seed}")
        names = [head + middle + tail for head in COMPANY_HEADS for middle in COMPANY_MIDDLES for tail in COMPANY_TAILS]
        chosen = random_.sample(names, 0 if self.narrow else NUM_COMPANIES)
        countries = tuple(LANGUAGES)
        return tuple(
            Company(
                name=name,
                industry=INDUSTRIES[i % len(INDUSTRIES)],
                people=random_.choice((10, 20, 30, 40, 60, 90, 200, 400, 700, 1500, 4000)),
                country=random_.choice(countries),
            )
            for i, name in enumerate(chosen)
        )

    @cached_property
    def people(self) -> tuple[Person, ...]:
        """Ids are 100 and up, in order."""
        return tuple(self._person(100 + i) for i in range(self.num_people))

    @cached_property
    def by_id(self) -> dict[int, Person]:
        return {person.id: person for person in self.people}

    def _person(self, id_: int) -> Person:
        random_ = random.Random(f"talent person {self.seed} {self.narrow} {id_}")
        career = random_.randint(1, 18)
        city = random_.choice(self.cities)
        recruits = random_.random() < 0.05
        role = RECRUITER if recruits else random_.choice(self.roles)
        seniority = SENIORITIES[(career >= 3) + (career >= 7) + (career >= 12)]
        skills = self._skills(random_, role, career)
        return Person(
            id=id_,
            name=f"{random_.choice(FIRST_NAMES)} {random_.choice(LAST_NAMES)}",
            city=city,
            role=role,
            seniority=seniority,
            skills=skills,
            jobs=self._jobs(random_, career),
            languages=self._languages(random_, city),
            degree=DEGREES[0] if self.narrow else random_.choice(DEGREES),
            field=random_.choice(FIELDS),
            salary=36 + 2 * min(career, 14) + random_.randint(0, 24),
            notice=random_.choice((2, 4, 4, 6, 8, 8, 12, 12, 16, 24)),
            mode=random_.choice(MODES),
            open_to_work=random_.random() < 0.75,
            summary=self._summary(random_, role, skills),
        )

    def _skills(self, random_: random.Random, role: str, career: int) -> tuple[Skill, ...]:
        if role == RECRUITER:
            names = list(RECRUITER_SKILLS[:2])
        else:
            own = self.skills_of(role)
            names = random_.sample(own, 2 if self.narrow else min(random_.randint(3, 4), len(own)))
            names += [name for name in [random_.choice(self.skills)] if name not in names]
        return tuple(
            Skill(name=name, written=self._spelling(random_, name), years=random_.randint(1, min(career, 12)))
            for name in names
        )

    @staticmethod
    def _spelling(random_: random.Random, skill: str) -> str:
        """Two in three write a skill the usual way."""
        usual, *others = written(skill)
        return random_.choice(others) if others and random_.random() < 1 / 3 else usual

    def _jobs(self, random_: random.Random, career: int) -> tuple[Job, ...]:
        if self.narrow:
            return ()
        count = random_.randint(1, min(career, 4))
        begins = [THIS_YEAR - career, *sorted(random_.sample(range(THIS_YEAR - career + 1, THIS_YEAR + 1), count - 1))]
        companies = random_.sample(self.companies, count)
        ends = [*begins[1:], None]
        jobs = [Job(company=c, start=b, end=e) for c, b, e in zip(companies, begins, ends, strict=True)]
        return tuple(reversed(jobs))

    def _languages(self, random_: random.Random, city: str) -> tuple[tuple[str, str], ...]:
        own = LANGUAGES[CITIES[city]]
        others = random_.sample([tongue for tongue in self.tongues if tongue != own], random_.randint(1, 2))
        spoken = [(own, "native" if random_.random() < 0.85 else "fluent")]
        return (*spoken, *((other, "fluent" if random_.random() < 0.6 else "basic") for other in others))

    def _summary(self, random_: random.Random, role: str, skills: tuple[Skill, ...]) -> str:
        """Free text. Half of it names a skill that the person does not have: a decoy for a search by words."""
        has = {skill.name for skill in skills}
        other = written(random_.choice([name for name in self.skills if name not in has]))[0]
        if role == RECRUITER:
            return f"Hires {other} engineers."
        main = random_.choice(written(skills[0].name))
        openings = (f"Enjoys {main} work. ", f"Known for {main}. ", f"{main} at heart. ")
        said = [] if self.narrow else [random_.choice(openings)]
        if random_.random() < (0.25 if self.narrow else 0.5):
            said.append(
                random_.choice((f"Would like to learn {other}.", f"Left {other} to others.", f"Never used {other}."))
            )
        return "".join(said).strip()
