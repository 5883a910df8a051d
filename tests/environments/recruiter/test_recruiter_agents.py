"""What agents earn: the expert, agents that lack one of its habits, and cheats."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from benchmarks.recruiter import AGENTS, VARIANTS, main
from lockstep.environments.talent.expert import Habits, expert
from lockstep.environments.talent.vocabulary import RECRUITER
from lockstep.model.tiny import build_tokenizer
from lockstep.options import recipe_and_options
from lockstep.rollout.harmony import HarmonyRenderer
from tests.environments.recruiter.people import requests_of

RECIPE = Path(__file__).parents[3] / "recipes" / "recruiter.py"


def mean_reward(environment, requests, agent_on) -> float:
    """agent_on: from a request to an agent."""
    total = sum(sum(environment.converse(request, agent_on(request))[1].values()) for request in requests)
    return total / len(requests)


BARS = {
    "does not re-check": 0.85,
    "does not ask": 0.5,
    "does not open": 0.5,
    "greedy": 0.5,
    "copies profiles": 0.6,
    "opens everybody there": 0.6,
    "opens four times": 0.7,
    "shortlists everybody": 0.1,
}


@pytest.mark.parametrize("kind", ["easy", "standard"])
def test_the_expert_is_right_and_each_of_its_habits_pays(kind, easy, standard, tasks, standard_tasks):
    environment, given = {"easy": (easy, tasks), "standard": (standard, standard_tasks)}[kind]
    requests = requests_of(given)
    assert mean_reward(environment, requests, AGENTS["expert"]) > 0.95
    for agent in ("does not re-check", "does not ask", "does not open", "greedy"):
        assert mean_reward(environment, requests, AGENTS[agent]) < BARS[agent], agent


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bars_on_200_heldout_tasks(variant):
    environment = dataclasses.replace(VARIANTS[variant], num_heldout=200)
    requests = requests_of(environment.tasks("heldout"))
    assert len({(request.opening, request.hidden, request.change) for request in requests}) == 200
    means = {agent: mean_reward(environment, requests, AGENTS[agent]) for agent in AGENTS}
    print(variant, {agent: round(mean, 3) for agent, mean in means.items()})
    assert means.pop("expert") > 0.95
    assert {agent for agent, mean in means.items() if mean > BARS.get(agent, 0.85)} == set()


def test_the_expert_reads_no_recruiter_and_stops_when_its_calls_are_used_up(tasks):
    agent = expert(tasks[0].messages[-1].content, Habits(asks=False), random.Random(0))
    assert next(agent)[0] == "search"
    found = f"106 Tim Wilk, lead {RECRUITER}, Porto\n104 Ana Costa, senior web developer, Porto\n105 Eva Berg, mid x, Y"
    assert agent.send(f"Search 1: 3 people.\n{found}") == ("open_profile", {"person": 104})
    with pytest.raises(StopIteration):
        agent.send("Error: all 30 calls are used up; end with a final message to the user")


def replay(messages):
    """An agent that says what was said before."""
    for message in messages:
        if message.recipient is not None:
            yield message.recipient.removeprefix("functions."), json.loads(message.content)
    return messages[-1].content


def test_careful_demonstrations_are_right_and_careless_ones_often_not(easy):
    def mean(carelessness: float) -> float:
        shown = dataclasses.replace(easy, carelessness=carelessness, num_demonstrations=25).demonstrations(0)
        parts = [easy.converse(each.task.data["request"], replay(each.messages))[1] for each in shown]
        return sum(sum(part.values()) for part in parts) / len(parts)

    assert mean(0.0) > 0.95
    assert 0.5 < mean(0.2) < 0.9


def inquirer(request):
    """Asks after everything, twice over, and leaves it at that."""
    for _ in range(2):
        for topic in ("skills", "location", "salary", "languages", "notice", "remote", "degree", "seniority"):
            yield "message", {"text": f"What about the {topic}?"}
    yield "shortlist", {"person": 100, "justification": "fits"}
    return "Done."


def idler(request):
    """Searches, and names people who are on no shortlist."""
    yield "search", {"query": "Rust"}
    return "Here are the best people: 101, 102, 103."


def test_the_benchmark_prints_a_row_for_each_agent(capsys):
    main(["--quick"])
    said = capsys.readouterr().out
    assert "easy, 320 people, 8 held-out tasks" in said and "standard, 3000 people, 8 held-out tasks" in said
    assert [said.count(f"\n| {agent} | ") for agent in AGENTS] == [2] * len(AGENTS)
    assert "| expert | 1.000 | 0.350 | 0.100 | 0.150 | 0.250 | 0.150 |" in said


CHEATS = {
    "copies profiles": 0.6,
    "opens everybody there": 0.6,
    "opens four times": 0.7,
    "shortlists everybody": 0.1,
    "asks": 0.02,
    "says": 0.0,
}


@pytest.mark.parametrize("agent", CHEATS)
def test_cheating_does_not_pay(easy, tasks, standard, standard_tasks, agent):
    for environment, given in ((easy, tasks), (standard, standard_tasks)):
        on = {**AGENTS, "asks": inquirer, "says": idler}[agent]
        assert mean_reward(environment, requests_of(given), on) <= CHEATS[agent]


def test_results_are_short(easy, tasks, standard, standard_tasks):
    for environment, requests, most in ((easy, requests_of(tasks), 700), (standard, requests_of(standard_tasks), 1100)):
        for request in requests[:12]:
            messages, _ = environment.converse(request, AGENTS["expert"](request))
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
