"""The people of the talent database: what profiles show, and which wishes hold."""

from collections import Counter

import pytest

from lockstep.environments.talent.constraints import Constraint, Preference, evidence, liking, meets
from lockstep.environments.talent.database import Filters, database_of
from lockstep.environments.talent.expert import read_profile
from lockstep.environments.talent.people import Company, Job, Person, Population, Skill
from lockstep.environments.talent.profile import line, profile, within, words
from lockstep.environments.talent.vocabulary import CITIES, RECRUITER
from lockstep.environments.talent.wording import PHRASES, VALUES

ANA = Person(
    id=104,
    name="Ana Costa",
    city="Lisbon",
    role="backend engineer",
    seniority="senior",
    skills=(Skill(name="Rust", written="Rustlang", years=6), Skill(name="C++", written="C++", years=2)),
    jobs=(
        Job(company=Company(name="Veltro", industry="fintech", people=40, country="Spain"), start=2021, end=None),
        Job(company=Company(name="Nordane", industry="retail", people=900, country="Italy"), start=2016, end=2021),
    ),
    languages=(("Portuguese", "native"), ("English", "fluent"), ("German", "basic")),
    degree="MSc",
    field="physics",
    salary=75,
    notice=8,
    mode="on site",
    open_to_work=True,
    summary="Known for Rust. Never used Java.",
)


ANA_SHOWN = """\
104 Ana Costa, senior backend engineer. Lives in Lisbon, Portugal.
Skills: Rustlang 6y, C++ 2y.
Now: Veltro (fintech, 40 people) since 2021. Before: Nordane (retail, 900 people) 2016-2021.
Languages: Portuguese native, English fluent, German basic.
Salary 75k. Notice 8 weeks. Works on site. Open to work.
Degree: MSc physics.
Known for Rust. Never used Java."""


def wish(kind: str, value: str = "", amount: int = 0) -> Constraint:
    return Constraint(kind=kind, value=value, amount=amount)


def test_a_profile_is_shown_in_a_fixed_form():
    assert profile(ANA) == ANA_SHOWN
    assert line(ANA) == "104 Ana Costa, senior backend engineer, Lisbon"


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (wish("skill", "Rust", 6), "Rustlang 6y"),
        (wish("skill", "Rust", 7), None),
        (wish("skill", "Java", 1), None),
        (wish("skill", "C++", 2), "C++ 2y"),
        (wish("skill", "C", 2), None),
        (wish("place", "Lisbon"), "Lisbon"),
        (wish("place", "Portugal"), "Portugal"),
        (wish("place", "Porto"), None),
        (wish("salary", amount=75), "Salary 75k"),
        (wish("salary", amount=74), None),
        (wish("language", "English"), "English fluent"),
        (wish("language", "Portuguese"), "Portuguese native"),
        (wish("language", "German"), None),
        (wish("notice", amount=8), "Notice 8 weeks"),
        (wish("notice", amount=7), None),
        (wish("mode", "on site"), "Works on site"),
        (wish("mode", "remote"), None),
        (wish("now", "fintech"), "Veltro (fintech"),
        (wish("now", "retail"), None),
        (wish("before", "retail"), "Nordane (retail"),
        (wish("before", "fintech"), None),
        (wish("size", "startup"), "Veltro (fintech"),
        (wish("size", "medium"), "Nordane (retail"),
        (wish("size", "large"), None),
        (wish("seniority", "senior"), "senior backend engineer"),
        (wish("seniority", "mid"), "senior backend engineer"),
        (wish("seniority", "lead"), None),
        (wish("degree", "BSc"), ("MSc physics", "Degree: MSc")),
        (wish("degree", "PhD"), None),
        (wish("open"), "Open to work"),
    ],
)
def test_a_wish_holds_as_the_profile_shows_it(wanted, shown):
    assert evidence(ANA, wanted) == (shown if isinstance(shown, tuple) else (shown,) if shown else ())
    assert meets(ANA, wanted) == (shown is not None)


def test_whoever_is_not_looking_is_not_open_to_work(wide):
    person = next(person for person in wide.population.people if not person.open_to_work)
    assert not meets(person, wish("open")) and "Not looking." in profile(person)
    assert "Open to work" not in profile(person)


def test_preferences_that_hold_are_weighed():
    soft = [
        Preference(constraint=wish("mode", "on site"), weight=2),
        Preference(constraint=wish("mode", "remote"), weight=2),
        Preference(constraint=wish("open"), weight=1),
    ]
    assert (liking(ANA, soft), liking(ANA, [])) == (3, 0)


def test_all_evidence_stands_in_the_profile(wide):
    wishes = [
        wish(kind, value, amount)
        for kind in PHRASES
        for value in VALUES.get(kind, ("",))
        for amount in ((3,) if kind == "skill" else (60,))
    ]
    for person in wide.population.people[:120]:
        whole = words(profile(person))
        for one in wishes:
            assert all(within(words(fragment), whole) for fragment in evidence(person, one)), (person, one)


def test_a_profile_can_be_read_back(wide):
    """All but where companies are based, which no profile shows."""

    def shown(person: Person) -> tuple:
        jobs = [(j.company.name, j.company.industry, j.company.people, j.start, j.end) for j in person.jobs]
        fields = (person.id, person.name, person.city, person.role, person.seniority, person.skills, person.languages)
        terms = (person.degree, person.salary, person.notice, person.mode, person.open_to_work, person.summary)
        return *fields, jobs, terms, person.field if person.degree != "none" else ""

    for database in (wide, database_of(5, 300, True)):
        for person in database.population.people:
            assert shown(read_profile(profile(person))) == shown(person)
    changed = [person for person in database.population.people[:20] if not person.summary]
    assert changed and all(read_profile(f"{profile(p)}\n(The user writes: Hello.)").summary == "" for p in changed)
    with pytest.raises(ValueError, match="is no profile"):
        read_profile("Error: no person 7")


def test_a_larger_population_begins_with_the_smaller_one():
    small, large = Population(seed=3, num_people=50), Population(seed=3, num_people=80)
    assert large.people[:50] == small.people and small.companies == large.companies
    assert Population(seed=4, num_people=50).people != small.people
    assert [person.id for person in small.people] == list(range(100, 150))


def test_there_is_variety_and_there_are_decoys(wide):
    people = wide.population.people
    assert len(wide.population.companies) == len({c.name for c in wide.population.companies}) == 400
    assert {person.city for person in people} == set(CITIES)
    assert max(Counter(person.name for person in people).values()) > 2, "nobody shares a name"
    recruiters = [person for person in people if person.role == RECRUITER]
    assert 0.03 < len(recruiters) / len(people) < 0.07
    java = {person.id for person in people if any(skill.name == "Java" for skill in person.skills)}
    named = set(wide.search("Java", Filters()).ids)
    assert java - named, "a search for Java finds all who write J2EE"
    wrong = [person for person in people if person.id in named - java]
    assert any("Java Script" in profile(person) for person in wrong)
    assert any(person.summary.endswith("Java.") for person in wrong)
    assert all(skill.years <= 2026 - person.jobs[-1].start for person in people for skill in person.skills)


def test_words_stand_within_others_together_and_in_order():
    whole = words("Rustlang 5y, C++ 2y.")
    assert whole == ["rustlang", "5y", "c++", "2y"]
    assert [within(words(part), whole) for part in ("rustlang 5y", "2Y", "c++, 2y")] == [True] * 3
    assert [within(words(part), whole) for part in ("", "rustlang 2y", "5y rustlang", "c 2y", "2y 3y")] == [False] * 5
