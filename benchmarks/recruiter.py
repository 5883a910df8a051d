"""What scripted agents earn in Recruiter, easy and standard: the expert, the expert without one of its habits, cheats.

    python benchmarks/recruiter.py [--tasks 200] [--quick]

A row is an agent, its mean reward over the held-out tasks of the variant, the mean of each part, and its mean number of
calls. The last lines are the processor time from nothing to the database and all tasks of an environment, by default.
Everything but the times is the same in every run and on every machine.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from lockstep.environments.recruiter import Recruiter
from lockstep.environments.talent.constraints import filters_of
from lockstep.environments.talent.desk import MOST_JUSTIFICATION, PATIENCE
from lockstep.environments.talent.expert import LINE, PAGES, USER_WRITES, Agent, Habits, expert, greedy
from lockstep.environments.talent.grading import WEIGHTS
from lockstep.environments.talent.requests import Request
from lockstep.environments.talent.wording import read_request

VARIANTS: Mapping[str, Recruiter] = {
    "easy": Recruiter(difficulty="easy", num_people=320, page_size=7),
    "standard": Recruiter(),
}
CARELESS = 0.2


def copier(request: Request) -> Agent:
    """The expert, who copies profiles where it should quote them."""
    profiles: dict[int, str] = {}
    agent = expert(request.text, Habits(), random.Random(0))
    name, arguments = next(agent)
    while True:
        if name == "shortlist" and arguments["justification"]:
            copied = profiles[arguments["person"]].partition(f"\n{USER_WRITES}")[0].replace("\n", ";")
            arguments = {**arguments, "justification": copied[:MOST_JUSTIFICATION]}
        text = yield name, arguments
        if name == "open_profile":
            profiles[arguments["person"]] = text
        try:
            name, arguments = agent.send(text)
        except StopIteration as stop:
            return stop.value


def hoarder(request: Request) -> Agent:
    """The expert, after it has opened everybody who lives there, for as long as the calls last that it will need."""
    _, hard, _ = read_request(request.text)
    results = yield "search", {"query": "", "place": filters_of(hard).place}
    pages, calls = PAGES.search(results), 1
    texts = [results]
    for page in range(2, int(pages[2]) + 1 if pages else 2):
        if calls + (len(texts) - 1) * 8 < (PATIENCE - 1) * request.par:
            texts.append((yield "refine", {"search": 1, "page": page}))
            calls += 1
    people = [int(person) for text in texts for person, _ in LINE.findall(text)]
    for person in people[: max(0, (PATIENCE - 1) * request.par - calls)]:
        yield "open_profile", {"person": person}
    return (yield from expert(request.text, Habits(), random.Random(0)))


def repeater(request: Request) -> Agent:
    """The expert, who opens every profile three times more."""
    agent = expert(request.text, Habits(), random.Random(0))
    name, arguments = next(agent)
    while True:
        text = yield name, arguments
        for _ in range(3 * (name == "open_profile")):
            yield name, arguments
        try:
            name, arguments = agent.send(text)
        except StopIteration as stop:
            return stop.value


def everyone(request: Request) -> Agent:
    """Shortlists everybody that a search finds."""
    _, hard, _ = read_request(request.text)
    results = yield "search", {"query": "", "place": filters_of(hard).place}
    for person, _ in LINE.findall(results):
        yield "shortlist", {"person": int(person), "justification": "fits"}
    return "Done."


def with_habits(**habits: bool) -> Callable[[Request], Agent]:
    return lambda request: expert(request.text, Habits(**habits), random.Random(0))


def careless(request: Request) -> Agent:
    """Slips at one decision in five; where is a function of the request."""
    return expert(request.text, Habits(carelessness=CARELESS), random.Random(request.text))


AGENTS: Mapping[str, Callable[[Request], Agent]] = {
    "expert": with_habits(),
    "careless (0.2)": careless,
    "does not re-check": with_habits(rechecks=False),
    "does not ask": with_habits(asks=False),
    "does not open": with_habits(opens=False),
    "greedy": lambda request: greedy(request.text, request.number),
    "copies profiles": copier,
    "opens everybody there": hoarder,
    "opens four times": repeater,
    "shortlists everybody": everyone,
}


def requests_of(environment: Recruiter) -> list[Request]:
    return [task.data["request"] for task in environment.tasks("heldout")]


def measured(environment: Recruiter, requests: Sequence[Request], agent: str) -> dict[str, float]:
    """The means over the requests of the reward, its parts, and the calls."""
    total = dict.fromkeys(("reward", *WEIGHTS, "num_calls"), 0.0)
    for request in requests:
        messages, parts = environment.converse(request, AGENTS[agent](request))
        calls = sum(message.recipient is not None for message in messages)
        for name, value in {"reward": sum(parts.values()), **parts, "num_calls": calls}.items():
            total[name] += value / len(requests)
    return total


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks of each variant")
    parser.add_argument("--quick", action="store_true", help="8 tasks, 3000 people: shows that it runs, nothing else")
    chosen = parser.parse_args(arguments)
    heads = [re.sub("^num_", "", name) for name in ("reward", *WEIGHTS, "num_calls")]
    for name, variant in VARIANTS.items():
        people = min(3000, variant.num_people) if chosen.quick else variant.num_people
        environment = replace(variant, num_people=people, num_heldout=8 if chosen.quick else chosen.tasks)
        requests = requests_of(environment)
        print(f"\n{name}, {people} people, {len(requests)} held-out tasks")
        print("| agent | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
        for agent in AGENTS:
            values = measured(environment, requests, agent).items()
            row = [f"{value:.1f}" if key == "num_calls" else f"{value:.3f}" for key, value in values]
            print("|", " | ".join([agent, *row]), "|", flush=True)
    for name, variant in () if chosen.quick else VARIANTS.items():
        print(f"start, {name}: {start_s(variant):.1f} s of processor time")


def start_s(variant: Recruiter) -> float:
    """Processor seconds of the database and all tasks. A seed of its own: nothing of it is there yet."""
    environment = replace(variant, seed=variant.seed + 1)
    begin = time.process_time()
    environment.tasks("train")
    environment.tasks("heldout")
    return time.process_time() - begin


if __name__ == "__main__":
    main()
