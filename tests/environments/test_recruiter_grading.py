"""The desk, the simulated user and the reward, on four people whom one can work out by hand; and ways to cheat."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.environments.talent.constraints import Constraint, Preference
from lockstep.environments.talent.database import Database, Filters
from lockstep.environments.talent.desk import MOST_SHORTLISTED, PATIENCE, Desk
from lockstep.environments.talent.grading import WEIGHTS, grade, shown
from lockstep.environments.talent.people import Company, Job, Person, Population, Skill
from lockstep.environments.talent.profile import profile
from lockstep.environments.talent.requests import Request, changed
from lockstep.environments.talent.user import ENOUGH, FINE, MOST_ANSWERS, NO_ANSWER, User, topics_of
from lockstep.rollout.tool import ToolError

VELTRO = Company(name="Veltro", industry="fintech", people=40, country="Spain")


def person(
    id_: int, years: int, city: str, salary: int, mode: str, *, is_open: bool, name: str = "Ana Costa"
) -> Person:
    return Person(
        id=id_,
        name=name,
        city=city,
        role="backend engineer",
        seniority="senior",
        skills=(Skill(name="Rust", written="Rustlang", years=years),),
        jobs=(Job(company=VELTRO, start=2010, end=None),),
        languages=(("Portuguese", "native"),),
        degree="none",
        field="physics",
        salary=salary,
        notice=4,
        mode=mode,
        open_to_work=is_open,
        summary="Enjoys Rust work.",
    )


ANA = person(104, 6, "Lisbon", 75, "on site", is_open=True)  # right before the change, too dear after it
BEN = person(105, 5, "Porto", 70, "hybrid", is_open=True, name="Ben Silva")  # right, and liked with a weight of 3
EVA = person(106, 8, "Lisbon", 66, "remote", is_open=False, name="Eva Berg")  # right, not liked
TIM = person(107, 2, "Madrid", 60, "hybrid", is_open=True, name="Tim Wilk")  # meets one wish of three
RUST, HERE = Constraint(kind="skill", value="Rust", amount=5), Constraint(kind="place", value="Portugal")
BUDGET, LESS = Constraint(kind="salary", amount=75), Constraint(kind="salary", amount=70)
REQUEST = Request(
    number=2,
    text="We want to hire 2 people.",
    stated=(RUST, HERE),
    hidden=(BUDGET,),
    soft=(
        Preference(constraint=Constraint(kind="mode", value="hybrid"), weight=2),
        Preference(constraint=Constraint(kind="open"), weight=1),
    ),
    change=LESS,
    trigger="proposal",
    right=frozenset({105, 106}),
    best_liking=3,
    par=10,
)


@pytest.fixture(scope="module")
def database() -> Database:
    population = Population(seed=0, num_people=4)
    population.__dict__["people"] = (ANA, BEN, EVA, TIM)
    return Database(population)


@pytest.fixture
def desk(database) -> Desk:
    return Desk(database, REQUEST, page_size=2)


def quotes(one: Person) -> str:
    return f"Rustlang {one.skills[0].years}y; {one.country}; Salary {one.salary}k"


def put(desk: Desk, *people: Person, opened: bool = True, calls: int = 10) -> dict[str, float]:
    """Shortlist these people with perfect quotes, and grade as after so many calls."""
    for one in people:
        if opened:
            desk.open_profile(one.id)
        desk.shortlist(one.id, quotes(one))
    desk.num_calls = calls
    return grade(desk, delivered=True)


def test_the_parts_sum_to_one_for_the_best_shortlist(desk):
    assert put(desk, BEN, EVA) == pytest.approx(WEIGHTS) and sum(WEIGHTS.values()) == pytest.approx(1)


def test_a_person_right_before_the_change_is_wrong_after_it(desk):
    """ANA meets 2 of 3 final wishes: a third of what lies beyond half of them. Her quotes show these 2, and the third,
    her salary, is true but no evidence."""
    parts = put(desk, ANA, BEN)
    assert parts == pytest.approx(
        {
            "precision": 0.35 / 2,
            "constraints": 0.10 * (1 / 3 + 1) / 2,
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
    shown_of_tim = 1 / 3 * 2 * 2 / 5  # of his five words, all true, two are evidence: of his salary
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
    assert put(desk, BEN, EVA, calls=calls)["calls"] == pytest.approx(0.15 * share)


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
        ("Rustlang 5y; Salary 70k. Notice 4 weeks. Works hybrid. Open to work; Portugal", 10 / 13),
        ("Rustlang 5y; Portugal", 2 / 3),
        ("Rustlang 5y; Rustlang 5y", 1 / 3),  # 2 of 4
        ("Rustlang 5y; Rustlang 5y; Rustlang 5y", 1 / 3 * 4 / 6),
        ("5 years of Rust; lives in Portugal; asks 70k", 0),  # true, and quotes nothing
        ("Rust 5y; Portugal; Salary 70k", (2 - 1) / 3),  # not as the profile has it
        ("Rustlang 5y; Portugal; Salary 69k", (2 - 1) / 3),  # an invented number
        ("Rustlang 5y; Portugal; Salary 70k; Java 9y", (3 - 1) / 3),  # an invented skill
        ("Rustlang 5y; Portugal; Salary 70k; Nordane (retail, 20 people)", (3 - 1) / 3),  # an invented employer
        ("Rustlang 5y; Portugal; Salary 70k; a; b; c", 0),
        ("Rustlang 5y; Java 9y; C 9y", 0),
        ("Rustlang; 5y; Portugal; Salary; 70k", 1 / 3 * 2 / 5),  # torn apart
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
    assert shown(BEN, (RUST, HERE, LESS), quotes(EVA), profile(EVA)) == pytest.approx(1 / 3 * 2 / 5)


def test_a_copied_profile_shows_little():
    whole = profile(BEN).replace("\n", " ")
    assert shown(BEN, (RUST, HERE, LESS), whole, profile(BEN)) < 0.4
    lines = profile(BEN).replace("\n", ";")
    assert shown(BEN, (RUST, HERE, LESS), lines, profile(BEN)) < 0.4


def test_an_unopened_profile_grounds_nothing(desk):
    parts = put(desk, BEN, EVA, opened=False)
    assert parts["grounded"] == 0 and sum(parts.values()) == pytest.approx(0.75)


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


def test_calls_end_when_patience_does(desk):
    for _ in range(PATIENCE * REQUEST.par):
        desk.search("Rust", Filters())
    for call in (
        lambda: desk.search("Rust", Filters()),
        lambda: desk.refine(1, Filters(), 2),
        lambda: desk.open_profile(104),
        lambda: desk.shortlist(104, "x"),
        lambda: desk.message("?"),
    ):
        with pytest.raises(ToolError, match="all 30 calls are used up; end with a final message"):
            call()
    assert (desk.opened, desk.shortlisted) == ({}, {})


def test_failed_calls_count_too(desk):
    with pytest.raises(ToolError):
        desk.open_profile(1)
    assert desk.num_calls == 1


def test_searching_and_refining(desk):
    assert desk.search("Rust", Filters()) == (
        "Search 1: 4 people, page 1 of 2.\n104 Ana Costa, senior backend engineer, Lisbon\n"
        "105 Ben Silva, senior backend engineer, Porto"
    )
    assert desk.refine(1, Filters(), 2).startswith("Search 1: 4 people, page 2 of 2.\n106 Eva Berg")
    assert desk.refine(1, Filters(place="  portugal "), None) == (
        "Search 2: 3 people, page 1 of 2.\n104 Ana Costa, senior backend engineer, Lisbon\n"
        "105 Ben Silva, senior backend engineer, Porto"
    )
    assert desk.refine(2, Filters(max_salary=70, open_only=True), None) == (
        "Search 3: 1 people.\n105 Ben Silva, senior backend engineer, Porto"
    )
    assert desk.refine(3, Filters(place="Lisbon"), None) == "Search 4: 0 people."
    assert desk.search("Rust Java", Filters()).startswith("Search 5: 4 people, none with all the words, page 1 of 2.")
    assert desk.refine(1, Filters(), None).startswith("Search 1: 4 people, page 1")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda d: d.search(" * ", Filters()), "the query has no word; give one, such as a skill, or a filter"),
        (
            lambda d: d.search("x", Filters(place="Atlantis")),
            "place='Atlantis' is not known; give one of Lisbon, Madrid",
        ),
        (lambda d: d.search("x", Filters(place="A" * 99)), "AAA...' is not known"),
        (lambda d: d.search("x", Filters(language="Latin")), "language='Latin' is not known; give one of English, Por"),
        (lambda d: d.search("x", Filters(max_salary=0)), "max_salary=0; give thousands a year, 1 to 1000"),
        (lambda d: d.search("x", Filters(max_salary=10**40)), "max_salary=so large; give thousands"),
        (lambda d: d.refine(1, Filters(), 2), "no search 1; search first"),
        (lambda d: (d.search("Rust", Filters()), d.refine(0, Filters(), 2)), "no search 0; searches are 1 to 1"),
        (lambda d: (d.search("Rust", Filters()), d.refine(1, Filters(), 3)), "no page 3; search 1 has 2"),
        (lambda d: (d.search("Rust", Filters()), d.refine(1, Filters(), 0)), "no page 0; search 1 has 2"),
        (lambda d: d.open_profile(7), "no person 7; take the number that begins a line of a search's result"),
        (lambda d: d.open_profile(10**30), "no person so large; take"),
        (lambda d: d.shortlist(7, "x"), "no person 7; take"),
        (lambda d: d.shortlist(104, " ;. "), "the justification is empty; quote facts from the profile"),
        (lambda d: d.shortlist(104, "x" * 401), "has 401 characters and 1 quotes; give at most 400 and 12"),
        (lambda d: d.shortlist(104, "x;" * 13), "has 26 characters and 13 quotes; give at most 400 and 12"),
        (lambda d: d.message(" "), "the message has 1 characters; write 1 to 1000"),
        (lambda d: d.message("x" * 1001), "the message has 1001 characters; write 1 to 1000"),
    ],
)
def test_a_wrong_argument_is_one_line_that_says_what_is_right(desk, call, error):
    with pytest.raises(ToolError) as raised:
        call(desk)
    assert error in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_the_shortlist_is_kept(desk):
    assert desk.shortlist(105, "x") == "Shortlist: 105 (1 of 2)."
    assert desk.shortlist(104, "y") == "Shortlist: 105, 104 (2 of 2)."
    assert desk.shortlist(105, "z") == "Shortlist: 105, 104 (2 of 2)." and desk.shortlisted[105] == "z"
    assert desk.shortlist(105, "") == "Shortlist: 104 (1 of 2)."
    assert desk.shortlist(104, " ; ") == "Shortlist: nobody (0 of 2)."


def test_the_user_tells_what_is_asked_for(desk):
    assert desk.message("Anything else that matters?") == "Yes, ask me about salary."
    assert desk.message("What can you pay?") == "We need a cost of no more than 75k a year."
    assert desk.message("What can you pay?") == "We need a cost of no more than 75k a year."
    assert desk.message("Anything else?") == "No, you know all that matters."
    assert desk.message("Where, and do they speak French?") == (
        "We need based in Portugal. As to languages: anything will do."
    )
    assert desk.message("Do you like tea?") == NO_ANSWER


def test_at_most_two_topics_are_answered_at_once():
    user = User(REQUEST)
    said = user.reply("Notice, city, salary, languages, remote, degree?", proposal=False)
    assert said == "As to start date: anything will do. We need based in Portugal."
    assert "75" not in said


def test_the_user_runs_out_of_patience():
    user = User(REQUEST)
    for _ in range(MOST_ANSWERS):
        assert user.reply("What salary?", proposal=False) != ENOUGH
    assert user.reply("What salary?", proposal=False) == ENOUGH
    assert user.reply("I propose 104.", proposal=True) == "One thing is different now: we need " + (
        "a cost of no more than 70k a year."
    )


def test_the_mind_changes_at_the_first_proposal(desk):
    assert desk.message("I propose 105.") == NO_ANSWER, "nobody is on the shortlist"
    desk.shortlist(105, "x")
    assert desk.message("I propose 106 and 1055.") == NO_ANSWER
    assert desk.message("What salary?") == "We need a cost of no more than 75k a year."
    changed_mind = "One thing is different now: we need a cost of no more than 70k a year."
    assert desk.message("I propose 105.") == changed_mind
    assert desk.message("I propose 105.") == FINE
    assert desk.message("What salary?") == "We need a cost of no more than 70k a year."
    assert "(The user" not in desk.open_profile(104) + desk.open_profile(105) + desk.open_profile(106)


def test_the_mind_changes_when_two_profiles_are_open(database):
    desk = Desk(database, dataclasses.replace(REQUEST, trigger="profiles"), 2)
    assert desk.open_profile(104) == desk.open_profile(104) == profile(ANA)
    assert desk.open_profile(105) == profile(BEN) + (
        "\n(The user writes: One thing is different now: we need a cost of no more than 70k a year.)"
    )
    assert desk.open_profile(106) == profile(EVA)
    assert desk.opened[105] == profile(BEN), "what the user writes is no part of the profile"
    desk.shortlist(105, "x")
    assert desk.message("I propose 105.") == FINE


def test_a_user_without_a_change_keeps_to_what_was_said(database):
    desk = Desk(database, dataclasses.replace(REQUEST, change=None), 2)
    for one in (104, 105, 106):
        assert "(The user" not in desk.open_profile(one)
    desk.shortlist(105, "x")
    assert desk.message("I propose 105.") == FINE and desk.user.wishes == REQUEST.first


def test_a_change_takes_the_place_of_its_own_kind():
    more, c = Constraint(kind="skill", value="Rust", amount=7), Constraint(kind="skill", value="C", amount=2)
    assert changed((RUST, c, HERE), more) == (more, c, HERE)
    assert changed((RUST, BUDGET), LESS) == (RUST, LESS) and changed((RUST,), None) == (RUST,)
    assert REQUEST.first == (RUST, HERE, BUDGET) and REQUEST.final == (RUST, HERE, LESS)


def test_topics_come_in_the_order_of_the_question():
    assert topics_of("Which budget and which languages, and where?") == ["salary", "language", "place"]
    assert topics_of("Hello.") == []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="Rustlang 5y;Portugal Salary70k104106\n\"'", max_size=40), max_size=4))
def test_no_justification_earns_more_than_its_weight(parts):
    said = ";".join(parts)
    assert 0 <= shown(BEN, (RUST, HERE, LESS), said, profile(BEN)) <= 1
