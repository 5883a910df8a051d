"""The reward, on four people whom one can work out by hand."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.environments.talent.database import Database
from lockstep.environments.talent.desk import MOST_SHORTLISTED, Desk
from lockstep.environments.talent.grading import WEIGHTS, grade, shown
from lockstep.environments.talent.people import Population
from lockstep.environments.talent.profile import profile
from lockstep.rollout.tool import ToolError
from tests.environments.recruiter.people import ANA, BEN, EVA, HERE, LESS, REQUEST, RUST, TIM, person, put, quotes


def test_the_parts_sum_to_one_for_the_best_shortlist(desk):
    assert put(desk, BEN, EVA) == pytest.approx(WEIGHTS) and sum(WEIGHTS.values()) == pytest.approx(1)


def test_a_person_right_before_the_change_is_wrong_after_it(desk):
    """ANA meets 2 of 3 final wishes: a third of what lies beyond half of them. Her quotes show these 2, and the third,
    her salary, is true but no evidence: g is 2/3, and k = (1 + 4/3) / 3 = 7/9."""
    parts = put(desk, ANA, BEN)
    assert parts == pytest.approx(
        {
            "precision": 0.35 / 2,
            "constraints": 0.10 * (7 / 9 * 1 / 3 + 1) / 2,
            "soft": 0.15 * 3 / 3,
            "grounded": 0.25 * (2 / 3 + 1) / 2,
            "calls": 0.15 / 2,
        }
    )


def test_a_place_left_empty_counts_nothing(desk):
    parts = put(desk, EVA)
    halves = {name: weight / 2 for name, weight in WEIGHTS.items()}
    assert parts == pytest.approx(halves | {"soft": 0.0})


def test_one_too_many_costs_as_much_in_every_part(desk):
    """Three on the list for two places: EVA and BEN right, TIM with 1 of 3 wishes, which is below half."""
    parts = put(desk, BEN, EVA, TIM)
    shown_of_tim = 1 / 3 * (2 * 2 / 5) ** 2  # of his five words, all true, two are evidence: of his salary
    assert parts == pytest.approx(
        {
            "precision": 0.35 * 2 / 3,
            "constraints": 0.10 * 2 / 3,
            "soft": 0.15 * 2 / 3,
            "grounded": 0.25 * (2 + shown_of_tim) / 3,
            "calls": 0.15 * 2 / 3,
        }
    )


def test_where_nobody_can_be_liked_precision_stands_in(database):
    desk = Desk(database, dataclasses.replace(REQUEST, soft=(), best_liking=0), 2)
    assert put(desk, EVA)["soft"] == pytest.approx(0.15 / 2)


@pytest.mark.parametrize(("calls", "share"), [(0, 1), (10, 1), (15, 0.5), (20, 0), (30, 0)])
def test_calls_beyond_par_cost(desk, calls, share):
    parts = put(desk, BEN, EVA, calls=calls)
    shares = {name: share if name == "calls" else (1 + share) / 2 for name in WEIGHTS}
    assert parts == pytest.approx({name: WEIGHTS[name] * shares[name] for name in WEIGHTS})


def test_a_person_of_whom_less_is_shown_counts_less_in_every_part(desk):
    """BEN, the liked one, is shown to meet one wish of three: g = 1/3, k = 5/9."""
    put(desk, BEN, EVA)
    desk.shortlist(BEN.id, "Rustlang 5y")
    desk.num_calls = 10
    assert grade(desk, delivered=True) == pytest.approx(
        {
            "precision": 0.35 * (5 / 9 + 1) / 2,
            "constraints": 0.10 * (5 / 9 + 1) / 2,
            "soft": 0.15 * 5 / 9,
            "grounded": 0.25 * (1 / 3 + 1) / 2,
            "calls": 0.15 * (5 / 9 + 1) / 2,
        }
    )


def test_copied_profiles_earn_little_and_so_does_opening_all(desk):
    put(desk, BEN, EVA)
    for one in (BEN, EVA):
        desk.shortlist(one.id, profile(one).replace("\n", ";"))
    desk.num_calls = 10
    assert sum(grade(desk, delivered=True).values()) < 0.4
    assert sum(put(desk, BEN, EVA, calls=20).values()) == pytest.approx(0.85 / 2)


def test_nothing_delivered_is_nothing_earned(desk):
    assert set(grade(desk, delivered=True).values()) == {0.0}
    put(desk, BEN, EVA)
    assert set(grade(desk, delivered=False).values()) == {0.0} and list(grade(desk, delivered=False)) == list(WEIGHTS)


@pytest.mark.parametrize(
    ("justification", "share"),
    [
        ("Rustlang 5y; Portugal; Salary 70k", 1),
        ("  rustlang 5Y ;\nPORTUGAL;salary 70k.", 1),
        ('"Rustlang 5y"; "Lives in Porto, Portugal"; "Salary 70k"', 1),  # 5 of its 8 words are evidence
        ("Salary 70k. Notice 4 weeks. Works hybrid; Rustlang 5y; Portugal", 1),  # 5 of 10
        ("Rustlang 5y; Salary 70k. Notice 4 weeks. Works hybrid. Open to work; Portugal", (10 / 13) ** 2),
        ("Rustlang 5y; Portugal", 2 / 3),
        ("Rustlang 5y; Rustlang 5y", 1 / 3),  # 2 of 4
        ("Rustlang 5y; Rustlang 5y; Rustlang 5y", 1 / 3 * (4 / 6) ** 2),
        ("5 years of Rust; lives in Portugal; asks 70k", 0),  # true, and quotes nothing
        ("Rust 5y; Portugal; Salary 70k", (2 - 1) / 3),  # not as the profile has it
        ("Rustlang 5y; Portugal; Salary 69k", (2 - 1) / 3),  # an invented number
        ("Rustlang 5y; Portugal; Salary 70k; Java 9y", (3 - 1) / 3),  # an invented skill
        ("Rustlang 5y; Portugal; Salary 70k; Nordane (retail, 20 people)", (3 - 1) / 3),  # an invented employer
        ("Rustlang 5y; Portugal; Salary 70k; a; b; c", 0),
        ("Rustlang 5y; Java 9y; C 9y", 0),
        ("Rustlang; 5y; Portugal; Salary; 70k", 1 / 3 * (2 / 5) ** 2),  # torn apart
        ("70k; 5y", 0),
        ("105 Ben Silva", 0),
        ("fits", 0),
    ],
)
def test_a_justification_counts_by_what_it_quotes(justification, share):
    wishes = (RUST, HERE, LESS)
    assert shown(BEN, wishes, justification, profile(BEN)) == pytest.approx(share)
    assert shown(BEN, wishes, justification, None) == 0


def test_evidence_of_another_person_is_none():
    assert shown(BEN, (RUST, HERE, LESS), quotes(EVA), profile(EVA)) == pytest.approx(1 / 3 * (2 / 5) ** 2)


def test_a_copied_profile_shows_little():
    whole = profile(BEN).replace("\n", " ")
    assert shown(BEN, (RUST, HERE, LESS), whole, profile(BEN)) < 0.15
    lines = profile(BEN).replace("\n", ";")
    assert shown(BEN, (RUST, HERE, LESS), lines, profile(BEN)) < 0.15


def test_an_unopened_profile_grounds_nothing(desk):
    parts = put(desk, BEN, EVA, opened=False)
    assert parts["grounded"] == 0 and sum(parts.values()) == pytest.approx(0.75 / 3)


def test_shortlisting_everybody_earns_little(database):
    """Of 10 people 2 are right: every place beyond the two asked for is a wrong one."""
    request = dataclasses.replace(REQUEST, par=100)
    population = Population(seed=0, num_people=12)
    wrong = [person(200 + i, 2, "Madrid", 90, "on site", is_open=False) for i in range(10)]
    population.__dict__["people"] = (BEN, EVA, *wrong)
    desk = Desk(Database(population), request, 2)
    for one in (BEN, EVA, *wrong[:8]):
        desk.open_profile(one.id)
        desk.shortlist(one.id, quotes(one))
    assert sum(grade(desk, delivered=True).values()) == pytest.approx(0.2 * 1, abs=0.01)
    with pytest.raises(ToolError, match=f"full with {MOST_SHORTLISTED} people; take one off"):
        desk.shortlist(wrong[9].id, "x")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="Rustlang 5y;Portugal Salary70k104106\n\"'", max_size=40), max_size=4))
def test_no_justification_earns_more_than_its_weight(parts):
    said = ";".join(parts)
    assert 0 <= shown(BEN, (RUST, HERE, LESS), said, profile(BEN)) <= 1
