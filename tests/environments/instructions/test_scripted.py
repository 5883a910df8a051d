"""The exercises: the same for the same seed, all of them right, and of every kind."""

from collections import Counter

import pytest

from lockstep.environments.instructions import scripted
from lockstep.environments.instructions.scripted import FAMILIES, exercises


@pytest.fixture(scope="module")
def many():
    return exercises(0, 600)


def test_every_response_follows_strictly(many):
    for exercise in many:
        assert all(instruction.followed(exercise.response) for instruction in exercise.instructions), exercise


def test_every_kind_occurs_with_others_and_alone(many):
    kinds = Counter(instruction.id for exercise in many for instruction in exercise.instructions)
    assert len(kinds) == sum(map(len, FAMILIES)) == 19
    assert min(kinds.values()) >= 10
    assert {len(exercise.instructions) for exercise in many} == {1, 2, 3}


def test_a_response_without_what_was_asked_does_not_follow(many):
    """Each exercise's text is right because of what was written for it, but for the few that ask to leave something
    out."""
    kinds = ("startend:quotation", "detectable_format:json_format", "detectable_format:title", "startend:end_checker")
    for kind in kinds:
        asked = [e for e in many if any(i.id == kind for i in e.instructions)]
        others = [e for e in many if all(i.id != kind for i in e.instructions)]
        instruction = next(i for i in asked[0].instructions if i.id == kind)
        assert not any(instruction.followed(other.response) for other in others)


def test_the_prompt_asks_for_what_is_checked(many):
    for exercise in many:
        for instruction in exercise.instructions:
            for name, value in instruction.arguments.items():
                if name != "relation":
                    said = value if isinstance(value, tuple) else (value,)
                    assert all(str(one) in exercise.prompt for one in said)


def test_a_seed_gives_the_same(many):
    assert exercises(0, 20) == many[:20]
    assert exercises(1, 20) != many[:20]
    assert exercises(0, 0) == []


def test_parts_that_never_stand_together_are_named(monkeypatch):
    contradicting = lambda random, thing: scripted.Part("format:no_whitespace", "x", lambda text: text + " ", {})  # noqa: E731
    monkeypatch.setattr(scripted, "FAMILIES", [[contradicting]] * 3)
    with pytest.raises(RuntimeError, match="no parts of 20 draws stand together"):
        exercises(0, 1)
