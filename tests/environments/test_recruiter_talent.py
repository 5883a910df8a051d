"""The talent database: its people, what profiles show, what searches find, and how wishes are worded and read back."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.environments.talent.constraints import Constraint, Preference, evidence, filters_of, liking, meets
from lockstep.environments.talent.database import MAX_RESULTS, MAX_WORDS, Database, Filters, database_of, groups_of
from lockstep.environments.talent.expert import read_profile
from lockstep.environments.talent.people import Company, Job, Person, Population, Skill
from lockstep.environments.talent.profile import line, profile, within, words
from lockstep.environments.talent.vocabulary import CITIES, RECRUITER, written
from lockstep.environments.talent.wording import NICE, PHRASES, VALUES, preferred, read, read_request, write

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


@pytest.fixture(scope="module")
def wide() -> Database:
    return database_of(5, 3000, False)


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
        (wish("degree", "BSc"), "MSc physics"),
        (wish("degree", "PhD"), None),
        (wish("open"), "Open to work"),
    ],
)
def test_a_wish_holds_as_the_profile_shows_it(wanted, shown):
    assert evidence(ANA, wanted) == ((shown,) if shown else ())
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


def test_a_search_finds_all_words_or_else_some(wide):
    def has(id_: int, *ways: str) -> bool:
        own = words(profile(wide.population.by_id[id_]))
        return any(within(words(way), own) for way in ways)

    every = [person.id for person in wide.population.people]
    found = wide.search("Rust Kubernetes OR K8s", Filters())
    assert set(found.ids) == {i for i in every if has(i, "Rust") and has(i, "Kubernetes", "K8s")} and not found.loose
    assert len(found.ids) > 5
    found = wide.search("Rust Atlantis", Filters())
    assert found.loose and set(found.ids) <= {i for i in every if has(i, "Rust")} and found.ids
    found = wide.search("Atlantis", Filters())
    assert found.ids == () and not found.loose
    phrase = wide.search('"image recognition"', Filters())
    assert set(phrase.ids) == {i for i in every if has(i, "image recognition")}
    for symbol in ("C", "C++", "C#"):
        found = wide.search(symbol, Filters(place="Spain"))
        assert set(found.ids) == {i for i in every if wide.population.by_id[i].country == "Spain" and has(i, symbol)}


def test_filters_leave_out_exactly_who_does_not_pass(wide):
    people = wide.population.people

    def ids(condition) -> tuple[int, ...]:
        return tuple(person.id for person in people if condition(person))[:MAX_RESULTS]

    assert wide.search("", Filters(place="Porto")).ids == ids(lambda p: p.city == "Porto")
    assert wide.search("", Filters(place="Italy")).ids == ids(lambda p: p.country == "Italy")
    assert wide.search("", Filters(max_salary=50)).ids == ids(lambda p: p.salary <= 50)
    assert wide.search("", Filters(open_only=True)).ids == ids(lambda p: p.open_to_work)
    dutch = ids(lambda p: "Dutch" in dict(p.languages))
    assert wide.search("", Filters(language="Dutch")).ids == dutch
    narrow = Filters(place="Porto", max_salary=60, language="Dutch", open_only=True)
    assert wide.search("", narrow).ids == ids(
        lambda p: p.city == "Porto" and p.salary <= 60 and p.open_to_work and "Dutch" in dict(p.languages)
    )
    assert wide.search("", Filters()).more and not wide.search("", narrow).more


def test_results_come_in_an_order_of_their_own(wide):
    ids = wide.search("Rust OR Rustlang", Filters()).ids
    assert ids == wide.search("Rust OR Rustlang", Filters()).ids != tuple(sorted(ids))
    assert wide.lines(ids[:2]) == [line(wide.population.by_id[i]) for i in ids[:2]]
    assert wide.profile(ids[0]) == profile(wide.population.by_id[ids[0]])
    assert wide.profile(99) is None and wide.profile(10**40) is None


def test_a_query_is_read_as_words():
    assert groups_of("Rust Kubernetes OR K8s") == [["rust"], ["kubernetes", "k8s"]]
    assert groups_of('"machine learning" | ML AND sql') == [["machine learning", "ml"], ["sql"]]
    assert groups_of("OR") == groups_of('"') == groups_of("* ( ) : ^ -") == groups_of("") == []
    assert groups_of("NEAR(a, b) col:x") == [["near a"], ["b"], ["col x"]]
    assert sum(map(len, groups_of("a " * 1000))) == MAX_WORDS


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet='"*()^:-+#|ORANDNEAR \x00\ud800a', max_size=60))
def test_no_query_breaks_the_search(query):
    database = database_of(5, 300, True)
    found = database.search(query, Filters())
    assert len(found.ids) <= MAX_RESULTS and set(found.ids) <= set(database.population.by_id)


def test_the_database_cannot_be_written(wide):
    with pytest.raises(Exception, match="readonly"):
        wide._connection.execute("DELETE FROM person")


def test_threads_share_a_database(wide):
    queries = ["Rust", "Java OR J2EE", "SQL Python", "Linux"]
    alone = {query: wide.search(query, Filters()) for query in queries}
    together: list = []

    def work() -> None:
        for _ in range(20):
            together.extend((query, wide.search(query, Filters())) for query in queries)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 4 * 20 * 4 and all(found == alone[query] for query, found in together)


CONTENT = "import hashlib; from lockstep.environments.talent.database import database_of; " + (
    "print(hashlib.sha256('\\n'.join(database_of(5, {people}, False).content()).encode()).hexdigest())"
)


def test_the_content_is_the_same_in_every_process_and_on_every_machine():
    """The digest is this: whoever changes what is generated changes it here, and knows that results cannot be compared
    with earlier ones."""
    code = CONTENT.format(people=500)
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = hashlib.sha256("\n".join(database_of(5, 500, False).content()).encode()).hexdigest()
    assert done.stdout.strip() == here == "d025cbb0bddc0188285b1e8b3d921340ac6a9412e543608d57a5b5695d5eb414"
    assert database_of(5, 500, False) is database_of(5, 500, False)


def test_every_wish_is_read_as_it_is_written():
    for kind, phrases in PHRASES.items():
        for value in VALUES.get(kind, ("",)):
            for way in range(len(phrases)):
                wanted = wish(kind, value, 12 if kind in ("skill", "salary", "notice") else 0)
                said = f"We need {write(wanted, way)}, and soon."
                assert read(said) == [wanted], said
                assert read(said.upper()) == [wanted], said


def test_no_wording_is_read_as_two_wishes():
    said = [write(wish(kind, VALUES.get(kind, ("",))[0], 4), 0) for kind in PHRASES]
    assert [one.kind for one in read("; ".join(said))] == list(PHRASES)
    assert read("I have nothing in particular in mind.") == []


@pytest.mark.parametrize("frame", NICE)
def test_a_request_is_read_with_its_preferences(frame):
    soft = [Preference(constraint=wish("mode", "hybrid"), weight=2), Preference(constraint=wish("open"), weight=1)]
    text = "We want to hire 3 people. We need based in Porto, 2+ years of C#. " + frame.format(
        wishes=preferred(soft, [0, 1])
    )
    assert read_request(text) == (3, [wish("place", "Porto"), wish("skill", "C#", 2)], soft)


def test_filters_are_what_a_search_can_go_by():
    hard = [wish("place", "Porto"), wish("salary", amount=60), wish("language", "Dutch"), wish("open")]
    assert filters_of(hard) == Filters(place="Porto", max_salary=60, language="Dutch", open_only=True)
    assert filters_of([wish("skill", "Rust", 3)]) == Filters()


def test_ways_of_writing_do_not_overlap():
    """No skill can be taken for another by a whole way of writing it."""
    ways = [way.casefold() for skill in VALUES["skill"] for way in written(skill)]
    assert len(ways) == len(set(ways))
    assert not [way for way in ways if re.search(r"[,;.|\"]", way)]
