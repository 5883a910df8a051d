"""An installed environment package of `verifiers`, unchanged: its tasks, its tools, its conversation, its rubric.

In: an environment's id, as `load_environment` takes it, and its arguments. The environment's own loop runs each
trajectory (see verifiers_adapter/rollout.py) and its rubric scores it; Lockstep's engine samples in the place of its
client.

Made for the interface that environment packages are written against: a module with `load_environment`, which returns a
SingleTurnEnv, MultiTurnEnv, ToolEnv, StatefulToolEnv, EnvGroup or a class of its own on one of these, with a Rubric.
verifiers has it up to 0.3.1, in the end beside a second one, and 0.4.0 has only the second, whose agents are programs
that call a model over HTTP. The client that this adapter stands in for came with the 0.1 releases; the last of them is
the oldest that was tried. So: verifiers >=0.1.14,<0.4.

What verifiers does, it does here too: a reward function that raises counts 0 (and verifiers logs it), a tool that is a
plain function runs on the event loop and holds up the others. What an environment says of sampling (temperature,
max_tokens) does not count: rollout.* does. A malformed action, which Lockstep answers itself, it never sees.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from lockstep.environments.verifiers_adapter.messages import task_of
from lockstep.rollout.environment import Split, Start, Step
from lockstep.rollout.reward import Score
from lockstep.types import Demonstration, Message, Task, UserError

if TYPE_CHECKING:
    from lockstep.environments.verifiers_adapter.rollout import Conversation

OLDEST, TOO_NEW = (0, 1, 14), (0, 4)
INSTALL = "pip install 'verifiers>=0.1.14,<0.4'"
NUM_HELDOUT = 64
REST = "unattributed"  # the part of a reward that no weighed function accounts for


@dataclass(frozen=True, kw_only=True)
class VerifiersEnvironment:
    """An environment of verifiers as one of Lockstep's.

    Raises UserError, in one line, when it is made without a verifiers that it can speak to; and at its first use, which
    a run makes before it begins, when the environment is not there, cannot be loaded with these arguments, or needs
    what Lockstep cannot give. It is not loaded earlier, so that options may still choose another.
    """

    id: str
    """The environment's name, as `verifiers.load_environment` takes it; its package must be installed."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for its load_environment, by name; what JSON can say."""
    num_heldout: int | None = None
    """For an environment without evaluation data: so many rows, the last, are held out from training. None for 64."""

    def __post_init__(self) -> None:
        if self.num_heldout is not None and self.num_heldout < 1:
            raise UserError(f"environment.num_heldout={self.num_heldout}: must be at least 1; 64 is usual")
        check_version()

    @cached_property
    def _environment(self) -> Any:
        try:
            args = json.dumps(dict(self.args), sort_keys=True)
        except (TypeError, ValueError) as error:
            raise UserError(f"environment.args: {error}; give what JSON can say, or wrap load_environment") from error
        environment = loaded(self.id, args)
        if self.num_heldout is not None and environment.eval_dataset_source is not None:
            raise UserError(
                f"environment.num_heldout={self.num_heldout}: {self.id!r} has evaluation data, and nothing is held out "
                "from training; leave it out"
            )
        return environment

    @cached_property
    def _rows(self) -> Mapping[Split, Sequence[Mapping[str, Any]]]:
        """The rows of both splits; the training split is empty where the environment has evaluation data alone."""
        environment = self._environment
        train = environment.build_dataset()
        train = [] if train is None else train.to_list()
        heldout = environment.build_eval_dataset()
        if heldout is not None:
            return {"train": train, "heldout": heldout.to_list()}
        num_heldout = self.num_heldout or NUM_HELDOUT
        if len(train) <= num_heldout:
            raise UserError(
                f"environment {self.id!r} has {len(train)} rows and no evaluation data: environment.num_heldout="
                f"{num_heldout} would leave none to train on; lower it"
            )
        return {"train": train[:-num_heldout], "heldout": train[-num_heldout:]}

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

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        """None: a verifiers environment has no solutions to show."""
        return ()

    async def start(self, task: Task) -> Start:
        """The environment's own opening. Raises RuntimeError when it ends before it asks for an action."""
        from lockstep.environments.verifiers_adapter.rollout import Conversation

        conversation = Conversation(self._environment, task.data["row"])
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
        """What the environment answers; done when its loop has ended. Events: tool_calls, malformed/unknown_tool, and
        tool/error for a tool's error that the environment's `stop_errors` let end the rollout."""
        calls = state.answer(action).calls
        offered = {tool.name for tool in state.tools or ()}
        events = Counter({"tool_calls": len(calls)}) if calls else Counter()
        if unknown := sum(call.name not in offered for call in calls):
            events["malformed/unknown_tool"] = unknown
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
            said = list(itertools.takewhile(lambda message: message.role == "assistant", reversed(messages)))
            await state.cut(said[::-1])
        ended = state.result()
        rubric = self._environment.rubric
        if self._environment.score_rollouts:
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


def check_version() -> None:
    """Raise UserError when verifiers is not installed, or in a version that Lockstep does not speak to."""
    try:
        found = version("verifiers")
    except PackageNotFoundError:
        raise UserError(f"VerifiersEnvironment needs the package verifiers: {INSTALL}") from None
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:3])
    if numbers < OLDEST:
        raise UserError(f"verifiers {found} is too old, its clients are others: {INSTALL}")
    if numbers >= TOO_NEW:
        raise UserError(f"verifiers {found} has no load_environment any more (0.4 dropped it): {INSTALL}")


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
