"""The desk and the simulated user, on four people whom one can work out by hand."""

import dataclasses

import pytest

from lockstep.environments.talent.constraints import Constraint
from lockstep.environments.talent.database import Filters
from lockstep.environments.talent.desk import PATIENCE, Desk
from lockstep.environments.talent.profile import profile
from lockstep.environments.talent.requests import changed
from lockstep.environments.talent.user import ENOUGH, FINE, MOST_ANSWERS, NO_ANSWER, THE_REST, User, topics_of
from lockstep.rollout.tool import ToolError
from tests.environments.recruiter.people import ANA, BEN, BUDGET, EVA, HERE, LESS, REQUEST, RUST


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
    assert said == f"As to start date: anything will do. We need based in Portugal. {THE_REST}"
    assert "75" not in said


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Any other must-haves?", "Yes, ask me about salary."),
        (
            "Any other requirements, such as languages, remote work or budget?",
            "As to languages: anything will do. As to remote work: anything will do. Yes, ask me about salary.",
        ),
        (
            "What else matters, beyond location?",
            "We need based in Portugal. Yes, ask me about salary.",
        ),
    ],
)
def test_an_open_question_is_answered_beside_the_topics_that_it_names(question, answer):
    assert User(REQUEST).reply(question, proposal=False) == answer


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("salary", "How much money can you spend?"),
        ("salary", "What's the wage ceiling?"),
        ("notice", "Is there a deadline for joining?"),
        ("mode", "Is WFH OK?"),
        ("mode", "Which working mode do you prefer?"),
        ("language", "Must they know English?"),
        ("open", "Should they be actively looking?"),
        ("degree", "Do they need a Master's or a PhD?"),
        ("degree", "Any academic qualification?"),
    ],
)
def test_a_topic_is_known_by_the_words_that_people_use(kind, question):
    assert topics_of(question) == [kind]


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
