"""The talent database: what searches find, and that nothing else can be done to it."""

import hashlib
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.environments.talent.database import MAX_RESULTS, MAX_WORDS, Filters, database_of, groups_of
from lockstep.environments.talent.profile import line, profile, within, words


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


def test_everyone_is_whom_a_search_finds_however_many(wide):
    for query, filters in (("Rust OR Rustlang", Filters(place="Spain")), ("Rust Kubernetes OR K8s", Filters())):
        assert wide.everyone(query, filters) == sorted(wide.search(query, filters).ids)
    assert len(wide.everyone("", Filters())) == 3000 and wide.everyone("Rust Atlantis", Filters()) == []


@pytest.mark.parametrize("value", ["x' OR '1' = '1", "'; DROP TABLE person; --", "Porto' --"])
def test_a_filter_is_a_value_and_no_syntax(wide, value):
    for filters in (Filters(place=value), Filters(language=value)):
        assert wide.search("", filters).ids == wide.search("Rust", filters).ids == ()
    assert wide.search("", Filters(place="Porto")).ids


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


@settings(max_examples=150, deadline=None)
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
        for _ in range(8):
            together.extend((query, wide.search(query, Filters())) for query in queries)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 4 * 8 * 4 and all(found == alone[query] for query, found in together)


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
