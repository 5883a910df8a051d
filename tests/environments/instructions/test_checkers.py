"""Every checker on responses by hand: what follows and what does not."""

from collections import Counter

import pytest

from lockstep.environments.instructions.instruction import CHECKERS, bind
from tests.environments.instructions import cases_custom, cases_ifbench, cases_ifeval

CASES = [*cases_ifeval.CASES, *cases_ifbench.CASES, *cases_custom.CASES]


def numbered(index):
    return [
        pytest.param(id, kwargs, response, id=f"{id}-{response[:30]!r}")
        for id, kwargs, *responses in CASES
        for response in responses[index]
    ]


def bound(id, kwargs):
    return bind(id, kwargs, cases_ifbench.PROMPTS.get(id, "Do it."))


def test_every_kind_has_two_of_each():
    follows, fails = Counter(), Counter()
    for id, _, good, bad in CASES:
        follows[id] += len(good)
        fails[id] += len(bad)
    assert follows.keys() == CHECKERS.keys()
    assert min(follows.values()) >= 2 and min(fails.values()) >= 2


@pytest.mark.parametrize(("id", "kwargs", "response"), numbered(0))
def test_follows(id, kwargs, response):
    assert bound(id, kwargs).followed(response) is True


@pytest.mark.parametrize(("id", "kwargs", "response"), numbered(1))
def test_does_not_follow(id, kwargs, response):
    assert bound(id, kwargs).followed(response) is False


@pytest.mark.parametrize(("id", "kwargs"), [(id, kwargs) for id, kwargs, *_ in CASES])
@pytest.mark.parametrize("response", ["", " ", "\n\n\t"])
def test_the_empty_response_follows_nothing(id, kwargs, response):
    assert not bound(id, kwargs).followed(response)
    assert not bound(id, kwargs).followed_loosely(response)


def test_sections_may_be_more_where_the_prompt_says_at_least():
    kwargs = {"section_spliter": "Part", "num_sections": 2}
    three = "Part 1\nPart 2\nPart 3"
    more = bind("detectable_format:multiple_sections", kwargs, "Make sure to include at least two sections.")
    exact = bind("detectable_format:multiple_sections", kwargs, "Make sure to include two sections.")
    assert more.followed(three) and not exact.followed(three)
    assert not more.followed("Part 1")


def test_paragraphs_may_be_more_where_the_prompt_says_at_least_so_many():
    three = "One.\n***\nTwo.\n***\nThree."
    kind, kwargs = "length_constraints:number_paragraphs", {"num_paragraphs": 2}
    assert bind(kind, kwargs, "Put it into at least 2 sections, separated by ***.").followed(three)
    assert not bind(kind, kwargs, "Put it into at least 2 sections, separated by ***.").followed("One.")
    assert not bind(kind, kwargs, "Write 2 paragraphs and highlight at least three sections.").followed(three)
    assert not bind(kind, kwargs, "Write 2 paragraphs.").followed(three)


def test_two_responses_may_be_divided_by_what_the_prompt_shows():
    """One row of IFEval asks for six asterisks and shows seven."""
    shown = bind("combination:two_responses", {}, "Separate them with 6 asterisks: *******")
    assert shown.followed("A.\n*******\nB.") and shown.followed("A.\n******\nB.")
    assert not shown.followed("A.\n********\nB.") and not shown.followed("A.\n*****\nB.")
    assert not shown.followed("A.\n*******\nB.\n******\nC.")


def test_names_are_those_of_the_prompt():
    without = bind("count:person_names", {"N": 1}, "Mention a name.")
    assert not without.followed("Emma")
    other = bind("count:person_names", {"N": 1}, "from this list of person names: Anna, Otto . And Emma.")
    assert other.followed("Otto") and not other.followed("Emma")


@pytest.mark.parametrize(
    ("shared", "added", "follows"), [(13, 12, True), (14, 12, False), (12, 13, True), (12, 14, False)]
)
def test_overlap_may_be_two_points_off(shared, added, follows):
    """52, 53.8, 48 and 46.2 percent where 50 is asked."""
    reference = [f"word{i}" for i in range(40)]
    response = reference[: shared + 2] + [f"other{i}" for i in range(added)]
    asked = bind("ratio:overlap", {"reference_text": " ".join(reference), "percentage": 50}, "x")
    assert asked.followed(" ".join(response)) is follows
