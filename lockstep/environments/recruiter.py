"""Recruiter: find people for a user in a generated talent database, through search, profiles and questions.

A user asks for a number of people. Some of what they must be like is said at once, some only when the agent asks, and
in half of the tasks one wish changes on the way. The agent searches, opens profiles, keeps a shortlist with quotes
that show why each person is right, and ends with a final message. How that is graded: `talent/grading.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lockstep.environments.talent.database import Database, Filters, database_of
from lockstep.environments.talent.desk import Desk
from lockstep.environments.talent.drawing import EASY, STANDARD, drawn
from lockstep.environments.talent.expert import Agent, Habits, expert
from lockstep.environments.talent.grading import grade
from lockstep.environments.talent.requests import Request
from lockstep.rollout.environment import Split, ToolEnvironment
from lockstep.rollout.reward import Ending
from lockstep.rollout.tool import Tool, ToolError, tool
from lockstep.types import Demonstration, Message, Task, UserError

INSTRUCTIONS = (
    "You are a recruiter. Find the people the user needs with the tools. Ask the user what was not said; wishes can "
    "change while you work, so propose the shortlist to the user before you finish. Open a profile before you "
    "shortlist a person, and justify each with short exact quotes from the profile, one for every requirement, "
    "separated by ';'. Use few calls. End with a final message."
)


@dataclass(frozen=True, kw_only=True)
class Recruiter(ToolEnvironment):
    """People for a user, from a talent database."""

    num_people: int = 20000
    """People in the database. Requests keep to those that few enough people suit, whatever their number."""
    difficulty: Literal["standard", "easy"] = "standard"
    """'easy' asks for one person, with few wishes, and has few cities and roles, no employers, and short profiles: for
    a tiny model, with about 240 people."""
    page_size: int = 8
    """Results that a search shows at once."""
    instructions: str = INSTRUCTIONS
    """System message before each request; empty leaves it out."""
    num_train: int = 2048
    """Distinct training requests."""
    num_heldout: int = 256
    """Distinct held-out requests."""
    num_demonstrations: int = 1024
    """Training requests that the scripted expert is shown at, for the cold start."""
    carelessness: float = 0.0
    """Probability that the demonstrating expert slips at a decision; 0 demonstrates perfectly."""
    seed: int = 0
    """Chooses the people and the requests; the same in every run that is to be compared."""

    def __post_init__(self) -> None:
        for name, least in (("num_people", 100), ("page_size", 1)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"environment.{name}={value}: must be at least {least}")
        if not 0 <= self.carelessness <= 1:
            raise UserError(f"environment.carelessness={self.carelessness}: must be within 0 and 1")

    @property
    def database(self) -> Database:
        """Built at the first use in a process, and shared."""
        return database_of(self.seed, self.num_people, self.difficulty == "easy")

    def tasks(self, split: Split) -> Sequence[Task]:
        count = self.num_train if split == "train" else self.num_heldout
        return [self._task(split, i, request) for i, request in enumerate(self._requests(split, count, "tasks"))]

    def _requests(self, split: Split, count: int, stream: str) -> list[Request]:
        shape = EASY if self.difficulty == "easy" else STANDARD
        return drawn(self.database, shape, split, count, f"{stream} {self.seed}")

    def _task(self, split: Split, index: int, request: Request) -> Task:
        system = [Message(role="system", content=self.instructions)] if self.instructions else []
        opening = (*system, Message(role="user", content=request.text))
        return Task(id=f"recruiter/{split}/{index}", messages=opening, data={"request": request})

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        """The scripted expert at work, as careless as it is set to be."""
        random_, shown = random.Random(f"recruiter demonstrations {seed}"), []
        habits = Habits(carelessness=self.carelessness)
        for i, request in enumerate(self._requests("train", self.num_demonstrations, "demonstrations")):
            messages, _ = self.converse(request, expert(request.text, habits, random_))
            shown.append(Demonstration(task=self._task("train", i, request), messages=messages))
        return shown

    async def open(self, task: Task) -> Desk:
        return self.desk(task.data["request"])

    def desk(self, request: Request) -> Desk:
        """What one trajectory on this request works with."""
        return Desk(self.database, request, self.page_size)

    def tools(self, task: Task, state: Desk) -> Sequence[Tool]:
        return tools_of(state)

    async def grade(self, ending: Ending) -> Mapping[str, float]:
        return grade(ending.state, delivered=ending.answer is not None)

    def converse(self, request: Request, agent: Agent) -> tuple[tuple[Message, ...], Mapping[str, float]]:
        """A scripted agent's conversation after the opening, and its reward's parts: what a model's would be."""
        desk, messages, text = self.desk(request), [], None
        tools: Mapping[str, Callable[..., Any]] = {tool.name: tool.function for tool in tools_of(desk)}
        while True:
            try:
                name, arguments = next(agent) if text is None else agent.send(text)
            except StopIteration as stop:
                messages.append(Message(role="assistant", channel="final", content=stop.value))
                return tuple(messages), grade(desk, delivered=True)
            content, author = json.dumps(arguments, separators=(",", ":")), f"functions.{name}"
            messages.append(Message(role="assistant", channel="commentary", recipient=author, content=content))
            try:
                text = str(tools[name](**arguments))
            except ToolError as error:
                text = f"Error: {error}"
            messages.append(Message(role="tool", name=author, content=text))


Action = Callable[[Desk], str]  # what a call does at a trajectory's desk


@tool(inline=True)
def search(
    query: str,
    place: str | None = None,
    max_salary: int | None = None,
    language: str | None = None,
    open_only: bool = False,
) -> Action:
    """Search names, headlines, skills, employers and summaries for people with all words of the query. OR between
    words gives alternatives ("Kubernetes OR K8s"), double quotes make a phrase. place is a city or country,
    max_salary in thousands a year, open_only leaves out who is not open to work."""
    return lambda desk: desk.search(query, _filters(place, max_salary, language, open_only))


@tool(inline=True)
def refine(
    search: int,
    page: int | None = None,
    place: str | None = None,
    max_salary: int | None = None,
    language: str | None = None,
    open_only: bool = False,
) -> Action:
    """Show another page of an earlier search, by its number, or narrow it with further filters."""
    return lambda desk: desk.refine(search, _filters(place, max_salary, language, open_only), page)


@tool(inline=True)
def open_profile(person: int) -> Action:
    """Read a person's whole profile, by the person's number."""
    return lambda desk: desk.open_profile(person)


@tool(inline=True)
def shortlist(person: int, justification: str) -> Action:
    """Put a person on the shortlist. The justification is short exact quotes from the profile you opened, one for
    every requirement, separated by ';'. An empty justification takes the person off again."""
    return lambda desk: desk.shortlist(person, justification)


@tool(inline=True)
def message(text: str) -> Action:
    """Ask the user a question, or propose people of the shortlist by their numbers."""
    return lambda desk: desk.message(text)


OFFERED: tuple[Tool, ...] = (search, refine, open_profile, shortlist, message)


def tools_of(desk: Desk) -> tuple[Tool, ...]:
    """The tools of one trajectory. All run inline, so that several calls of one action are answered in their order."""
    return tuple(replace(each, function=_at(desk, each.function)) for each in OFFERED)


def _at(desk: Desk, action: Callable[..., Any]) -> Callable[..., str]:
    return lambda **values: action(**values)(desk)


def _filters(place: str | None, max_salary: int | None, language: str | None, open_only: bool) -> Filters:
    return Filters(place=place, max_salary=max_salary, language=language, open_only=open_only)
