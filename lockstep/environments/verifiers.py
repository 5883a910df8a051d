"""An installed environment package of `verifiers`, unchanged: its tasks, its tools, its conversation, its scoring.

In: an environment's id and its arguments. The package's own code runs each trajectory and scores it; Lockstep's engine
samples in the place of its client. What it says of sampling (temperature, max_tokens) does not count: rollout.* does. A
malformed action, which Lockstep answers itself, it never sees.

verifiers has two interfaces. Packages for the first have a `load_environment` (verifiers_adapter/loaded.py); it lasted
to 0.3.1, and the client that the adapter stands in for came with the 0.1 releases, the last of which is the oldest that
was tried. Packages for the second have a taskset (verifiers_adapter/tasksets.py), whose agents are programs that call a
model over HTTP; 0.4 has nothing else, and 0.4.0 was tried. So: verifiers >=0.1.14,<0.5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lockstep.environments.verifiers_adapter.loaded import LoadedEnvironment
from lockstep.environments.verifiers_adapter.tasksets import TasksetEnvironment
from lockstep.rollout.environment import Split, Start, Step
from lockstep.rollout.reward import Score
from lockstep.types import Demonstration, Message, Task, UserError

OLDEST, TASKSETS, TOO_NEW = (0, 1, 14), (0, 4), (0, 5)
INSTALL = "pip install 'verifiers>=0.1.14,<0.5'"


@dataclass(frozen=True, kw_only=True)
class VerifiersEnvironment:
    """An environment of verifiers as one of Lockstep's.

    Raises UserError, in one line, when it is made without a verifiers that it can speak to; and at its first use, which
    a run makes before it begins, when the environment is not there, cannot be loaded with these arguments, or needs
    what Lockstep cannot give. It is not loaded earlier, so that options may still choose another.
    """

    id: str
    """The environment's name, as `verifiers.load_environment` takes it, or the taskset's (0.4); its package must be
    installed."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """What JSON can say: arguments for its load_environment, by name; or (0.4) its config, what verifiers' own command
    takes as --env.*: {"taskset": {...}, "agent": {"harness": {"id": "null"}}}."""
    num_heldout: int | None = None
    """Without evaluation data, which no taskset has, so many tasks, the last, are held out from training. None: 64."""
    num_tasks: int | None = None
    """Only for tasksets (0.4): take so many tasks, the first, held-out ones included. None for all; a taskset without
    an end needs it."""
    allow_unsafe: bool = False
    """Only for tasksets (0.4): allow an agent that lets the model run commands on this machine, where nothing confines
    it. False refuses it."""

    def __post_init__(self) -> None:
        for name in ("num_heldout", "num_tasks"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"environment.{name}={number}: must be at least 1; leave it out for the usual")
        found = check_version()
        for name, given in (("num_tasks", self.num_tasks is not None), ("allow_unsafe", self.allow_unsafe)):
            if given and found < TASKSETS:
                raise UserError(
                    f"environment.{name}={getattr(self, name)}: has no effect on an environment of verifiers below "
                    "0.4; leave it out"
                )

    @cached_property
    def _inner(self) -> LoadedEnvironment | TasksetEnvironment:
        try:
            args = json.dumps(dict(self.args), sort_keys=True)
        except (TypeError, ValueError) as error:
            raise UserError(f"environment.args: {error}; give what JSON can say, or wrap the environment") from error
        if check_version() < TASKSETS:
            return LoadedEnvironment(id=self.id, args=args, num_heldout=self.num_heldout)
        return TasksetEnvironment(
            id=self.id,
            args=args,
            num_heldout=self.num_heldout,
            num_tasks=self.num_tasks,
            allow_unsafe=self.allow_unsafe,
        )

    def tasks(self, split: Split) -> Sequence[Task]:
        """A task for each row or task of the environment's own. Raises UserError for one whose prompt Lockstep cannot
        show a model."""
        return self._inner.tasks(split)

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        """None: a verifiers environment has no solutions to show."""
        return ()

    async def start(self, task: Task) -> Start:
        """The environment's own opening. Raises RuntimeError when it ends before it asks for an action."""
        return await self._inner.start(task)

    async def step(self, state: Any, action: Sequence[Message]) -> Step:
        """What the environment answers; done when its loop, or program, has ended. Events: tool_calls,
        malformed/unknown_tool, and tool/error for a tool's error that an environment below 0.4 lets end the rollout."""
        return await self._inner.step(state, action)

    async def reward(self, state: Any, messages: Sequence[Message], truncated: bool) -> Score:
        """The environment's reward: a part for each function with a weight, its value times the weight. Functions of
        weight 0, and metrics, are measures."""
        return await self._inner.reward(state, messages, truncated)

    async def close(self, state: Any) -> None:
        await self._inner.close(state)


def check_version() -> tuple[int, ...]:
    """The installed verifiers' version. Raises UserError when there is none, or one that Lockstep does not speak to."""
    try:
        found = version("verifiers")
    except PackageNotFoundError:
        raise UserError(f"VerifiersEnvironment needs the package verifiers: {INSTALL}") from None
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:3])
    if numbers < OLDEST:
        raise UserError(f"verifiers {found} is too old, its clients are others: {INSTALL}")
    if numbers >= TOO_NEW:
        raise UserError(f"verifiers {found} is newer than what Lockstep was tried with: {INSTALL}")
    return numbers
