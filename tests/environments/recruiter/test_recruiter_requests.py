"""What is asked for: requests with known right people, and a split that holds."""

import dataclasses
import hashlib
import os
import random
import subprocess
import sys

import pytest

from lockstep.environments.recruiter import Recruiter
from lockstep.environments.talent.constraints import filters_of, liking, meets_all
from lockstep.environments.talent.drawing import EASY, STANDARD
from lockstep.environments.talent.requests import query_of
from lockstep.environments.talent.wording import read_request
from lockstep.types import UserError
from tests.environments.recruiter.people import requests_of


@pytest.mark.parametrize("kind", ["easy", "standard"])
def test_requests_are_as_they_promise(kind, easy, standard, tasks, standard_tasks):
    """The right people are counted anew, by looking at everybody."""
    environment, drawn = {"easy": (easy, tasks), "standard": (standard, standard_tasks)}[kind]
    shape = {"easy": EASY, "standard": STANDARD}[kind]
    people = environment.database.population.people
    for request in requests_of(drawn):
        right = [person for person in people if meets_all(person, request.final)]
        assert {person.id for person in right} == request.right
        assert request.number <= len(right) <= 10
        before = [person for person in people if meets_all(person, request.first)]
        at_first = [person for person in people if meets_all(person, request.stated)]
        assert len(before) >= request.number and len(at_first) >= 2 * len(before)
        best = sorted(before, key=lambda person: (-liking(person, request.soft), person.id))[: request.number]
        if request.change is not None:
            assert request.change not in request.first and request.change in request.final
            assert 2 * sum(person.id in request.right for person in best) <= request.number
        likings = sorted((liking(person, request.soft) for person in right), reverse=True)
        assert request.best_liking == sum(likings[: request.number])
        searches = [environment.database.search(query_of(w), filters_of(w)) for w in (request.first, request.final)]
        found = [set(search.ids) for search in searches]
        assert len(found[0]) <= shape.most_read >= len(found[1] - found[0]) and not any(s.loose for s in searches)
        assert len(found[1] - request.right) >= shape.least_wrong
        again = 0 if request.change is None else 3 + 2 * (request.number - sum(p.id in request.right for p in best))
        assert request.par == 5 + len(found[0] | found[1]) + request.number + again
        number, hard, soft = read_request(request.text)
        assert (number, sorted(hard), soft) == (request.number, sorted(request.stated), list(request.soft))


def test_half_of_the_requests_change_in_both_ways(easy, tasks):
    requests = requests_of(tasks)
    assert sum(request.change is not None for request in requests) == len(requests) // 2
    assert {request.trigger for request in requests if request.change is not None} == {"proposal", "profiles"}
    assert len({request.change.kind for request in requests if request.change is not None}) > 2
    assert all(request.hidden for request in requests)


def test_what_heldout_requests_say_and_want_occurs_nowhere_in_training(easy, tasks, train_tasks):
    heldout = {request.opening for request in requests_of(tasks)}
    train = [*train_tasks, *(shown.task for shown in easy.demonstrations(3))]
    assert not heldout & {request.opening for request in requests_of(train)}
    wanted = {tuple(sorted(hard)) for request in requests_of(train) for hard in (request.first, request.final)}
    for request in requests_of(tasks):
        assert not wanted & {tuple(sorted(request.first)), tuple(sorted(request.final))}
    assert not {task.messages[-1].content for task in tasks} & {task.messages[-1].content for task in train}
    assert len({(r.opening, r.hidden, r.change) for r in requests_of(train_tasks)}) == easy.num_train


def test_tasks_and_demonstrations_are_a_function_of_the_seed(easy, tasks):
    random.seed(1)
    assert dataclasses.replace(easy, num_heldout=15).tasks("heldout") == tasks[:15]
    assert dataclasses.replace(easy, seed=1, num_heldout=5).tasks("heldout") != tasks[:5]
    assert dataclasses.replace(easy, seed=1).database.population.people != easy.database.population.people
    careless = dataclasses.replace(easy, carelessness=0.3, num_demonstrations=12)
    assert careless.demonstrations(0) == careless.demonstrations(0) != careless.demonstrations(1)


def test_everything_is_the_same_in_every_process():
    code = (
        "import hashlib; from lockstep.environments.recruiter import Recruiter; "
        "e = Recruiter(difficulty='easy', num_people=320, num_heldout=15, num_demonstrations=8, carelessness=0.3); "
        "t = [(x.messages, sorted(x.data['request'].right), x.data['request'].par) for x in e.tasks('heldout')]; "
        "print(hashlib.sha256(repr((t, [d.messages for d in e.demonstrations(0)])).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "77")
    }
    assert len(digests) == 1


def test_too_small_a_database_says_so(monkeypatch):
    monkeypatch.setattr("lockstep.environments.talent.drawing.MOST_DRAWS", 1)
    with pytest.raises(UserError, match=r"environment\.num_people=100: 500 distinct train requests were wanted and \d"):
        Recruiter(num_people=100, num_train=500, difficulty="easy").tasks("train")


def test_options_out_of_range_say_so():
    for wrong in ({"num_people": 99}, {"page_size": 0}, {"carelessness": 1.5}):
        (name,) = wrong
        with pytest.raises(UserError, match=rf"environment\.{name}="):
            Recruiter(**wrong)


def test_content_of_the_requests_has_not_changed(tasks):
    """Whoever changes what is generated changes this, and knows that results cannot be compared with earlier ones."""
    texts = repr([(task.messages[-1].content, sorted(task.data["request"].right)) for task in tasks])
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "f67a4a1a28ea40d8"
