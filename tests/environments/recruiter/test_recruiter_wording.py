"""How wishes are worded and read back."""

import re

import pytest

from lockstep.environments.talent.constraints import Constraint, Preference, filters_of
from lockstep.environments.talent.database import Filters
from lockstep.environments.talent.vocabulary import written
from lockstep.environments.talent.wording import NICE, PHRASES, VALUES, preferred, read, read_request, write


def wish(kind: str, value: str = "", amount: int = 0) -> Constraint:
    return Constraint(kind=kind, value=value, amount=amount)


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
    assert read("We need fluent Frenchmen, 112+ years of Cobol, and 1112+ years of C.") == []


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
