"""An environment of `verifiers` below 0.4, as its package's `load_environment` makes it.

A SingleTurnEnv, MultiTurnEnv, ToolEnv, StatefulToolEnv, EnvGroup or a class of its own on one of these, with a Rubric.
The environment's own loop runs each trajectory (see rollout.py) and its rubric scores it. What verifiers does, it does
here too: a reward function that raises counts 0 (and verifiers logs it), a tool that is a plain function runs on the
event loop and holds up the others.
"""

from __future__ import annotations

import importlib
import json
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from lockstep.environments.verifiers_adapter.common import counted, held_out, last_said
from lockstep.environments.verifiers_adapter.messages import task_of
from lockstep.rollout.environment import Split, Start, Step
from lockstep.rollout.reward import Score
from lockstep.types import Message, Task, UserError

if TYPE_CHECKING:
    from lockstep.environments.verifiers_adapter.rollout import Conversation

REST = "unattributed"  # the part of a reward that no weighed function accounts for


@dataclass(frozen=True, kw_only=True)
class LoadedEnvironment:
    """One of verifiers' environments as one of Lockstep's; see VerifiersEnvironment, whose options these are. args:
    JSON. Loaded at its first use, which raises UserError, in one line, when it cannot be."""

    id: str
    args: str
    num_heldout: int | None

    @cached_property
    def environment(self) -> Any:
        """verifiers' own."""
        environment = loaded(self.id, self.args)
        if self.num_heldout is not None and environment.eval_dataset_source is not None:
            raise UserError(
                f"environment.num_heldout={self.num_heldout}: {self.id!r} has evaluation data, and nothing is held out "
                "from training; leave it out"
            )
        return environment

    @cached_property
    def _rows(self) -> Mapping[Split, Sequence[Mapping[str, Any]]]:
        """The rows of both splits; the training split is empty where the environment has evaluation data alone."""
        train = self.environment.build_dataset()
        train = [] if train is None else train.to_list()
        heldout = self.environment.build_eval_dataset()
        if heldout is not None:
            return {"train": train, "heldout": heldout.to_list()}
        return held_out(
            train, self.num_heldout, f"environment {self.id!r} has {len(train)} rows and no evaluation data"
        )

    def tasks(self, split: Split) -> Sequence[Task]:
        """A task for each row of the environment's dataset, or of its evaluation dataset. Raises UserError for a row
        whose prompt Lockstep cannot show a model."""
        from verifiers.utils.message_utils import normalize_messages  # pyright: ignore[reportMissingImports]

        found = []
        for number, row in enumerate(self._rows[split]):
            try:
                found.append(task_of(f"{split}-{number}", normalize_messages(row["prompt"]), row))
            except ValueError as error:
                said = " ".join(str(error).split())
                raise UserError(f"environment {self.id!r}, {split} row {number}: {said}") from error
        return found

    async def start(self, task: Task) -> Start:
        from lockstep.environments.verifiers_adapter.rollout import Conversation

        conversation = Conversation(self.environment, task.data["row"])
        begun = False
        try:
            opening = await conversation.asks()
            if opening is None:
                stop = conversation.result().get("stop_condition")
                raise RuntimeError(f"the environment ended before it asked for an action (stop condition {stop!r})")
            begun = True
        finally:
            if not begun:
                await conversation.close()
        return Start(messages=opening, tools=conversation.tools or (), state=conversation)

    async def step(self, state: Conversation, action: Sequence[Message]) -> Step:
        events = counted(state.answer(action).calls, state.tools or ())
        answers = await state.asks()
        if answers is not None:
            return Step(messages=answers, events=events)
        if state.result().get("error") is not None:
            events["tool/error"] += 1
        return Step(done=True, events=events)

    async def reward(self, state: Conversation, messages: Sequence[Message], truncated: bool) -> Score:
        """The rubric's reward: a part for each function with a weight, its value times the weight. Functions of weight
        0 are measures. What a rubric says beyond its functions is the part `unattributed`."""
        if truncated:
            await state.cut(last_said(messages))
        ended = state.result()
        rubric = self.environment.rubric
        if self.environment.score_rollouts:
            await rubric.score_rollout(ended)
        else:
            await rubric.dummy_score_rollout(ended)
        return score_of(ended["reward"], ended["metrics"] or {}, weights_of(rubric))

    async def close(self, state: Conversation) -> None:
        await state.close()


def score_of(reward: float, metrics: Mapping[str, Any], weights: Mapping[str, float]) -> Score:
    """A rubric's result as named parts, which sum to its reward, and measures. A metric that is no finite number stays
    one, for whoever checks a Score to name."""
    values = {name: float(value) for name, value in metrics.items()}
    parts = {name: value * weights[name] for name, value in values.items() if weights.get(name)}
    measures = {name: value for name, value in values.items() if name not in parts}
    rest = float(reward) - sum(parts.values())
    scale = max(1.0, abs(reward), *map(abs, parts.values()))
    if all(map(math.isfinite, values.values())) and not math.isclose(rest, 0, abs_tol=1e-9 * scale):
        parts[REST] = rest
    return Score(parts=parts, measures=measures)


def weights_of(rubric: Any) -> dict[str, float]:
    """The weight of each reward function by its name, in a rubric and those inside it. Metrics go by name too, so a
    name that stands for two weights is left out."""
    found: dict[str, set[float]] = {}
    for inner in _rubrics(rubric):
        for function, weight in zip(inner.funcs, inner.weights, strict=True):
            found.setdefault(getattr(function, "__name__", repr(function)), set()).add(float(weight))
    return {name: weight for name, (weight, *others) in found.items() if not others}


def _rubrics(rubric: Any) -> Iterator[Any]:
    yield rubric
    for inner in getattr(rubric, "rubrics", ()):  # a RubricGroup
        yield from _rubrics(inner)
    for environment in getattr(rubric, "env_map", {}).values():  # an EnvGroup's
        yield from _rubrics(environment.rubric)


@cache
def loaded(environment_id: str, args: str) -> Any:
    """The environment; the same object for the same id and arguments (JSON). Raises UserError when it cannot be loaded,
    or not be used.

    An environment of verifiers takes the signals SIGINT and SIGTERM for itself when it is made. Both stay as they were:
    its teardown runs when the process ends, which Ctrl-C leads to as well.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        environment = importlib.import_module("verifiers").load_environment(environment_id, **json.loads(args))
    except (ValueError, RuntimeError) as error:  # what verifiers makes of everything that a package raises
        said = " ".join(str(error).split())
        raise UserError(f"environment.id={environment_id!r} with environment.args={args}: {said}") from error
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    if needs := unmet(environment):
        raise UserError(f"environment.id={environment_id!r} {needs}; use another environment, or change this one")
    return environment


def unmet(environment: Any) -> str | None:
    """What the environment needs and Lockstep cannot give; goes on from its name."""
    if environment.requires_group_rollouts:
        return "has reward functions of a whole group, and Lockstep scores each trajectory by itself"
    if environment.provides_advantages:
        return "computes advantages itself, which here the run's algorithm does"
    if environment.message_type != "chat":
        return f"has message_type {environment.message_type!r}, and Lockstep speaks in chat messages"
    if wanted := [key for key in ("logprobs", "top_logprobs") if environment.sampling_args.get(key)]:
        return f"asks its model for {wanted[0]}, which Lockstep keeps from environments"
    return None
