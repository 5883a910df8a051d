"""The environment: requests with known right people, the expert, agents that lack one of its habits, and the loop."""

import asyncio
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.engine.engine import Completion
from lockstep.environments.recruiter import INSTRUCTIONS, OFFERED, Recruiter
from lockstep.environments.talent.constraints import liking, meets_all
from lockstep.environments.talent.database import Filters
from lockstep.environments.talent.expert import Habits, expert, greedy
from lockstep.environments.talent.wording import read_request
from lockstep.model.tiny import build_tokenizer
from lockstep.options import recipe_and_options
from lockstep.rollout.harmony import HarmonyRenderer
from lockstep.rollout.trajectory import Attempt, Policy, Rollout
from lockstep.types import Message, UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "recruiter.py"


@pytest.fixture(scope="module")
def easy() -> Recruiter:
    return Recruiter(
        difficulty="easy", num_people=320, page_size=4, num_train=60, num_heldout=30, num_demonstrations=30
    )


@pytest.fixture(scope="module")
def standard() -> Recruiter:
    return Recruiter(num_people=4000, num_heldout=8, num_train=12, seed=1)


@pytest.fixture(scope="module")
def tasks(easy):
    return easy.tasks("heldout")


@pytest.fixture(scope="module")
def standard_tasks(standard):
    return standard.tasks("heldout")


@pytest.fixture(scope="module")
def train_tasks(easy):
    return easy.tasks("train")


def requests_of(tasks):
    return [task.data["request"] for task in tasks]


def mean_reward(environment, requests, agent_on) -> float:
    """agent_on: from a request to an agent."""
    total = sum(sum(environment.converse(request, agent_on(request))[1].values()) for request in requests)
    return total / len(requests)


def with_habits(**habits):
    return lambda request: expert(request.text, Habits(**habits), random.Random(0))


def greedily(request):
    return greedy(request.text, request.number)


def test_the_expert_is_right_and_each_of_its_habits_pays(easy, tasks):
    requests = requests_of(tasks)
    assert mean_reward(easy, requests, with_habits()) > 0.95
    assert mean_reward(easy, requests, greedily) < 0.5
    assert mean_reward(easy, requests, with_habits(asks=False)) < 0.65
    assert mean_reward(easy, requests, with_habits(rechecks=False)) < 0.85
    assert mean_reward(easy, requests, with_habits(opens=False)) < 0.5


def test_the_expert_is_right_on_the_standard_database_too(standard, standard_tasks):
    requests = requests_of(standard_tasks)
    assert mean_reward(standard, requests, with_habits()) > 0.95
    assert mean_reward(standard, requests, greedily) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("difficulty", ["easy", "standard"])
def test_the_expert_on_all_heldout_tasks(difficulty):
    options = {"easy": {"num_people": 320, "page_size": 7}, "standard": {"num_people": 20000}}[difficulty]
    environment = Recruiter(difficulty=difficulty, num_heldout=256, **options)
    requests = requests_of(environment.tasks("heldout"))
    assert len(requests) >= 200
    means = {
        "expert": mean_reward(environment, requests, with_habits()),
        "without asking": mean_reward(environment, requests, with_habits(asks=False)),
        "without re-checking": mean_reward(environment, requests, with_habits(rechecks=False)),
        "without opening": mean_reward(environment, requests, with_habits(opens=False)),
        "greedy": mean_reward(environment, requests, greedily),
    }
    print(difficulty, {name: round(mean, 3) for name, mean in means.items()})
    assert means["expert"] > 0.95 and means["greedy"] < 0.5
    assert all(mean < 0.85 for name, mean in means.items() if name != "expert")


@pytest.mark.parametrize("kind", ["easy", "standard"])
def test_requests_are_as_they_promise(kind, easy, standard, tasks, standard_tasks):
    """The right people are counted anew, by looking at everybody."""
    environment, drawn = {"easy": (easy, tasks), "standard": (standard, standard_tasks)}[kind]
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
        number, hard, soft = read_request(request.text)
        assert (number, sorted(hard), soft) == (request.number, sorted(request.stated), list(request.soft))


def test_half_of_the_requests_change_in_both_ways(easy, tasks):
    requests = requests_of(tasks)
    assert sum(request.change is not None for request in requests) == len(requests) // 2
    assert {request.trigger for request in requests if request.change is not None} == {"proposal", "profiles"}
    assert len({request.change.kind for request in requests if request.change is not None}) > 2
    assert all(request.hidden for request in requests)


def test_heldout_openings_occur_nowhere_in_training(easy, tasks, train_tasks):
    heldout = {request.opening for request in requests_of(tasks)}
    train = [*train_tasks, *(shown.task for shown in easy.demonstrations(3))]
    assert not heldout & {request.opening for request in requests_of(train)}
    assert not {task.messages[-1].content for task in tasks} & {task.messages[-1].content for task in train}
    assert len({(r.opening, r.hidden, r.change) for r in requests_of(train_tasks)}) == easy.num_train


def test_tasks_and_demonstrations_are_a_function_of_the_seed(easy, tasks):
    random.seed(1)
    assert dataclasses.replace(easy, num_heldout=15).tasks("heldout") == tasks[:15]
    assert dataclasses.replace(easy, seed=1, num_heldout=5).tasks("heldout") != tasks[:5]
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


def call(name: str, **arguments) -> Message:
    content = json.dumps(arguments)
    return Message(role="assistant", channel="commentary", recipient=f"functions.{name}", content=content)


def final(text: str) -> Message:
    return Message(role="assistant", channel="final", content=text)


def test_demonstrations_are_answered_as_the_environment_does(easy):
    async def check() -> None:
        for shown in dataclasses.replace(easy, carelessness=0.2, num_demonstrations=12).demonstrations(0):
            start = await easy.start(shown.task)
            *calls, last = shown.messages
            for said, answer in zip(calls[::2], calls[1::2], strict=True):
                step = await easy.step(start.state, [said])
                assert step.messages == (answer,) and step.events["tool_calls"] == 1
            parts = await easy.reward(start.state, [*start.messages, *shown.messages], False)
            _, expected = easy.converse(shown.task.data["request"], replay(shown.messages))
            assert parts == expected and (last.channel, last.role) == ("final", "assistant")
            await easy.close(start.state)

    asyncio.run(check())


def replay(messages):
    """An agent that says what was said before."""
    for message in messages:
        if message.recipient is not None:
            yield message.recipient.removeprefix("functions."), json.loads(message.content)
    return messages[-1].content


def test_careful_demonstrations_are_right_and_careless_ones_often_not(easy):
    def mean(carelessness: float) -> float:
        shown = dataclasses.replace(easy, carelessness=carelessness, num_demonstrations=30).demonstrations(0)
        parts = [easy.converse(each.task.data["request"], replay(each.messages))[1] for each in shown]
        return sum(sum(part.values()) for part in parts) / len(parts)

    assert mean(0.0) > 0.95
    assert 0.5 < mean(0.2) < 0.9


def test_calls_of_one_action_are_answered_in_order(easy, tasks):
    """A search, a page of it, and a shortlist that is proposed: each needs what the one before it left."""
    request = tasks[0].data["request"]
    someone = min(request.right)
    action = [
        call("search", query="", place="Madrid"),
        call("refine", search=1, page=2),
        call("open_profile", person=someone),
        call("shortlist", person=someone, justification="x"),
        call("message", text=f"I propose {someone}."),
    ]

    async def answers() -> list[str]:
        start = await easy.start(tasks[0])
        step = await easy.step(start.state, action)
        assert step.events == {"tool_calls": 5}
        return [message.content for message in step.messages]

    first = asyncio.run(answers())
    assert [answer.split(" ")[0] for answer in first[:2]] == ["Search", "Search"] and "page 2 of" in first[1]
    assert first[2].startswith(f"{someone} ") and first[3] == f"Shortlist: {someone} (1 of {request.number})."
    assert all(asyncio.run(answers()) == first for _ in range(3))


def test_trajectories_know_nothing_of_one_another(easy, tasks):
    async def check() -> None:
        one, two = await easy.start(tasks[0]), await easy.start(tasks[0])
        await easy.step(one.state, [call("search", query="Rust")])
        step = await easy.step(two.state, [call("refine", search=1, page=1)])
        assert step.messages[0].content == "Error: no search 1; search first"
        step = await easy.step(one.state, [call("refine", search=1, page=1)])
        assert step.messages[0].content.startswith("Search 1:")

    asyncio.run(check())


def test_without_a_final_message_there_is_no_reward(easy, tasks):
    async def reward(truncated: bool, *messages: Message) -> float:
        start = await easy.start(tasks[0])
        for id_ in sorted(tasks[0].data["request"].right)[: tasks[0].data["request"].number]:
            await easy.step(start.state, [call("shortlist", person=id_, justification="x")])
        parts = await easy.reward(start.state, [*start.messages, *messages], truncated)
        assert list(parts) == ["precision", "constraints", "soft", "grounded", "calls"]
        return sum(parts.values())

    assert asyncio.run(reward(False, final("Done."))) > 0.5
    assert asyncio.run(reward(True, final("Done."))) == asyncio.run(reward(False)) == 0
    assert asyncio.run(reward(False, call("message", text="Done."))) == 0


def everyone(request):
    """Shortlists everybody that a search finds."""
    found = yield "search", {"query": "", "place": next(w.value for w in request.stated if w.kind == "place")}
    for line in found.split("\n")[1:]:
        yield "shortlist", {"person": int(line.split(" ")[0]), "justification": "fits"}
    return "Done."


def copier(request):
    """The expert, who copies profiles where he should quote them."""
    agent, profiles = expert(request.text, Habits(), random.Random(0)), {}
    said = next(agent)
    while True:
        name, arguments = said
        if name == "shortlist" and arguments["justification"]:
            copied = profiles[arguments["person"]].replace("\n", ";")[:400]
            arguments = {**arguments, "justification": copied}
        text = yield name, arguments
        if name == "open_profile":
            profiles[arguments["person"]] = text
        try:
            said = agent.send(text)
        except StopIteration as stop:
            return stop.value


def inquirer(request):
    """Asks after everything, twice over, and leaves it at that."""
    for _ in range(2):
        for topic in ("skills", "location", "salary", "languages", "notice", "remote", "degree", "seniority"):
            yield "message", {"text": f"What about the {topic}?"}
    yield "shortlist", {"person": 100, "justification": "fits"}
    return "Done."


def repeater(request):
    """The expert, who opens every profile three times."""
    agent = expert(request.text, Habits(), random.Random(0))
    said = next(agent)
    while True:
        name, arguments = said
        for _ in range(4 if name == "open_profile" else 1):
            text = yield name, arguments
            if name == "open_profile" and "(The user writes" in text:
                break
        try:
            said = agent.send(text)
        except StopIteration as stop:
            return stop.value


def idler(request):
    yield "search", {"query": "Rust"}
    return "Here are the best people: 101, 102, 103."


@pytest.mark.parametrize(
    ("agent", "most", "part"),
    [
        (everyone, 0.3, None),
        (inquirer, 0.1, None),
        (idler, 0.0, None),
        (copier, 0.85, "grounded"),
        (repeater, 0.9, "calls"),
    ],
)
def test_cheating_does_not_pay(easy, tasks, agent, most, part):
    """part: the one that the cheat is to cost, at least half of what the expert has of it."""
    requests = requests_of(tasks)
    graded = [easy.converse(request, agent(request))[1] for request in requests]
    assert sum(sum(parts.values()) for parts in graded) / len(graded) <= most
    if part is not None:
        honest = [easy.converse(request, with_habits()(request))[1] for request in requests]
        assert sum(parts[part] for parts in graded) < 0.5 * sum(parts[part] for parts in honest)


ARGUMENTS = st.dictionaries(
    st.sampled_from(["query", "place", "max_salary", "language", "open_only", "search", "page", "person", "text"])
    | st.just("justification"),
    st.text(max_size=30) | st.integers() | st.booleans() | st.none() | st.sampled_from(["Rust", "Madrid", 104, 1, 2]),
    max_size=4,
)


def survives(easy, task, calls) -> None:
    async def check() -> None:
        start = await easy.start(task)
        for name, arguments in calls:
            content = arguments if isinstance(arguments, str) else json.dumps(arguments)
            said = Message(role="assistant", recipient=f"functions.{name}", content=content)
            step = await easy.step(start.state, [said])
            (answer,) = step.messages
            assert answer.role == "tool" and len(answer.content) < 2000, (name, arguments, answer.content)
            answer.content.encode()
            bound_to_be_ours = "tool/error" in step.events
            assert not bound_to_be_ours or "Error: no " in answer.content or ";" in answer.content, answer.content
        parts = await easy.reward(start.state, [*start.messages, final("Done.")], False)
        assert 0 <= sum(parts.values()) <= 1 and all(part >= 0 for part in parts.values())

    asyncio.run(check())


CALLS = st.lists(
    st.tuples(st.sampled_from([tool.name for tool in OFFERED]), ARGUMENTS | st.text(max_size=40)), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(CALLS)
def test_whatever_a_model_calls_is_answered(easy, tasks, calls):
    survives(easy, tasks[1], calls)


@pytest.mark.slow
@settings(max_examples=20000, deadline=None)
@given(CALLS)
def test_whatever_a_model_calls_is_answered_20000_times(easy, tasks, calls):
    survives(easy, tasks[1], calls)


def test_results_are_short(easy, tasks, standard, standard_tasks):
    for environment, requests, most in ((easy, requests_of(tasks), 700), (standard, requests_of(standard_tasks), 1100)):
        for request in requests[:12]:
            messages, _ = environment.converse(request, with_habits()(request))
            assert max(len(message.content) for message in messages) < most


@pytest.mark.slow
def test_the_recipes_demonstrations_have_few_tokens():
    run, _ = recipe_and_options("train", [str(RECIPE)])
    shown = dataclasses.replace(run.environment, num_demonstrations=300).demonstrations(0)
    texts = [message.content for each in shown for message in (*each.task.messages, *each.messages)]
    renderer = HarmonyRenderer(build_tokenizer(texts, run.tiny.vocab_size), options=run.harmony)
    lengths = []
    for each in shown:
        messages = (*each.task.messages, *each.messages)
        lengths.append(len(renderer.demonstrate(messages, (), len(each.task.messages))[0]))
    assert sum(lengths) / len(lengths) < 1300
    assert sum(length <= run.rollout.max_tokens for length in lengths) > 0.8 * len(lengths)


class Parrot:
    """A scripted engine: says the given actions, one after another."""

    weights_version = 0

    def __init__(self, actions):
        self.actions = iter(actions)

    async def generate(self, prompt, sampling):
        tokens = next(self.actions)
        return Completion(tokens=tokens, logprobs=(0.0,) * len(tokens), weights_version=0, stop_reason="stop")


def test_the_turn_loop_earns_a_demonstration_its_reward(easy):
    shown = easy.demonstrations(0)[:6]
    texts = [message.content for each in shown for message in each.messages]
    renderer = HarmonyRenderer(build_tokenizer(texts, 600))
    for each in shown:
        actions = [renderer.action([message]) for message in each.messages if message.role == "assistant"]
        settings_ = Rollout(max_turns=60, max_tokens=20000)
        policy = Policy(engine=Parrot(actions), renderer=renderer, settings=settings_, temperature=1.0)
        trajectory = asyncio.run(Attempt(policy, easy, each.task, "t", 0).run())
        assert (trajectory.stop_reason, trajectory.error) == ("done", None)
        assert trajectory.reward == pytest.approx(1.0, abs=0.05)
        assert trajectory.messages[len(each.task.messages) :] == each.messages


def test_the_model_is_told_of_the_tools(easy, tasks):
    start = asyncio.run(easy.start(tasks[0]))
    assert [tool.name for tool in start.tools] == ["search", "refine", "open_profile", "shortlist", "message"]
    assert start.messages[0] == Message(role="system", content=INSTRUCTIONS)
    assert start.tools[0].parameters["required"] == ["query"]
    assert start.tools[3].parameters["required"] == ["person", "justification"]
    assert dataclasses.replace(easy, instructions="", num_heldout=1).tasks("heldout")[0].messages == start.messages[1:]


def test_filters_of_a_call_reach_the_search(easy, tasks):
    async def answer(**arguments) -> str:
        start = await easy.start(tasks[0])
        step = await easy.step(start.state, [call("search", query="", **arguments)])
        return step.messages[0].content

    everybody = {"place": "Madrid"}
    for filters in (everybody, everybody | {"open_only": True}, {"max_salary": 50}, {"language": "French"}):
        count = len(easy.database.search("", Filters(**filters)).ids)
        assert asyncio.run(answer(**filters)).startswith(f"Search 1: {count} people")


def test_content_of_the_requests_has_not_changed(tasks):
    """Whoever changes what is generated changes this, and knows that results cannot be compared with earlier ones."""
    texts = repr([(task.messages[-1].content, sorted(task.data["request"].right)) for task in tasks])
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "4fa57e6f86e12a66"
