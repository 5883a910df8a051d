"""A run's configuration: composes each component's own dataclass, and checks what crosses between them.

A recipe is a Python file with a module-level `run = Run(...)`. Code below the root receives the parts, never the Run.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from lockstep.algorithm.algorithm import AdvantagesT, Algorithm, LossT
from lockstep.algorithm.interface import smallest_group
from lockstep.model.precision import Precision
from lockstep.model.tiny import TinyModel
from lockstep.observe.alarms import Alarms
from lockstep.rollout.chat import ChatOptions
from lockstep.rollout.environment import Environment
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.critic import CriticOptions, OwnCritic
from lockstep.trainer.optimizer import Optimizer
from lockstep.types import UserError

EnvironmentT = TypeVar("EnvironmentT", bound=Environment)


class ConfigError(UserError):
    """A configuration that cannot run. One line: the option, its value, and what fixes it."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The embedded engine."""

    max_concurrency: int = 256
    """Trajectories that generate at once; more wait their turn."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out evaluation, before the first step, every so many steps, and at the end."""

    num_tasks: int = 256
    """Held-out tasks, the environment's first ones; each is tried once sampled at temperature 1 and once greedily."""
    every: int = 0
    """Also evaluate every so many steps; 0 only before and after."""
    success_reward: float = 1.0
    """A trajectory succeeds when its reward is at least this."""


@dataclass(frozen=True, kw_only=True)
class Run(Generic[EnvironmentT, AdvantagesT, LossT]):
    """Everything that decides a run. Every field can be overridden from the command line, e.g. --rollout.group-size
    16."""

    environment: EnvironmentT
    """The tasks, their tools and their reward."""
    name: str
    """Files go to RUNS/NAME (NAME-2 and so on when that exists)."""
    model: str = "tiny"
    """A Hugging Face causal LM's folder or id; 'tiny' builds the small GPT-OSS described by --tiny.*."""
    tiny: TinyModel = field(default_factory=TinyModel)
    """Sizes of the model that 'tiny' builds."""
    precision: Precision = field(default_factory=Precision)
    """What trainer and engine compute in."""
    replay_routes: bool = True
    """The engine records which experts each token went to, and training sends it there again; so do later updates on a
    batch with the routes of the first. Without effect on a dense model."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by shell patterns over their names, e.g. '*.router.*' or '*.sinks'."""
    gradient_checkpointing: bool = False
    """Keep one activation a layer and compute the rest again in the backward: slower, and far leaner for long
    contexts."""
    harmony: HarmonyOptions = field(default_factory=HarmonyOptions)
    """How conversations are rendered for models that speak Harmony."""
    chat: ChatOptions = field(default_factory=ChatOptions)
    """How conversations are rendered for models with a chat template."""
    sft: SFT = field(default_factory=SFT)
    """The supervised cold start before reinforcement learning."""
    num_steps: int = 100
    """Steps of reinforcement learning."""
    rollout: Rollout = field(default_factory=Rollout)
    """How trajectories are sampled."""
    engine: Engine = field(default_factory=Engine)
    """The engine that samples them."""
    algorithm: Algorithm[AdvantagesT, LossT] = field(default_factory=Algorithm)  # pyright: ignore[reportAssignmentType]
    """Advantages, correction and loss. On the command line --algorithm NAME takes one of those that have a name."""
    critic: CriticOptions | None = None
    """The critic, for advantages that need one (GAE)."""
    alarms: Alarms = field(default_factory=Alarms)
    """Thresholds on the metrics that warn, or stop the run."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """The optimiser of reinforcement learning."""
    microbatch_tokens: int = 16384
    """Tokens in one forward and backward; changes memory and speed, never the result beyond rounding."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Held-out evaluation."""
    checkpoint_every: int = 20
    """Steps between checkpoints, in both phases; the last step always has one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    runs: Path = Path("runs")
    """Where runs are written."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    threads: int = 2
    """CPU threads that PyTorch computes with."""
    seed: int = 0
    """Decides the tiny model's weights, the order of the data and every sampled token."""


def check(run: Run) -> None:
    """Raise ConfigError for what no component can see alone, and for values out of range."""
    counts = {
        "num_steps": run.num_steps,
        "rollout.num_prompts": run.rollout.num_prompts,
        "rollout.max_turns": run.rollout.max_turns,
        "rollout.max_tokens": run.rollout.max_tokens,
        "rollout.max_action_tokens": run.rollout.max_action_tokens,
        "engine.max_concurrency": run.engine.max_concurrency,
        "microbatch_tokens": run.microbatch_tokens,
        "evaluation.num_tasks": run.evaluation.num_tasks,
        "checkpoint_every": run.checkpoint_every,
        "keep_checkpoints": run.keep_checkpoints,
        "threads": run.threads,
        "sft.batch_size": run.sft.batch_size,
    }
    if not hasattr(run.environment, "tasks"):
        raise ConfigError(f"environment={run.environment!r}: give an environment, such as Ledger()")
    for option, value in counts.items():
        if not isinstance(value, int):
            raise ConfigError(f"{option}={value!r}: must be a whole number")
        if value < 1:
            raise ConfigError(f"{option}={value}: must be at least 1")
    _check_algorithm(run)
    not_negative = {
        "rollout.engine_retries": run.rollout.engine_retries,
        "sft.num_steps": run.sft.num_steps,
        "evaluation.every": run.evaluation.every,
    }
    for option, value in not_negative.items():
        if value < 0:
            raise ConfigError(f"{option}={value}: must be 0 or more")
    if not 0 < run.rollout.temperature < math.inf:
        raise ConfigError(
            f"rollout.temperature={run.rollout.temperature}: training samples at a temperature > 0; use 1.0"
        )
    if run.rollout.max_lag:
        raise ConfigError(
            f"rollout.max_lag={run.rollout.max_lag}: the embedded engine shares the trainer's weights; set it to 0"
        )
    if run.precision.deterministic and run.threads != 1:
        raise ConfigError(f"threads={run.threads}: precision.deterministic computes with one; set threads to 1")
    for option, optimizer in (("optimizer", run.optimizer), ("sft.optimizer", run.sft.optimizer)):
        _check_rate(option, optimizer)
    if run.model == "tiny" and run.rollout.max_tokens > run.tiny.max_length:
        raise ConfigError(
            f"rollout.max_tokens={run.rollout.max_tokens}: the tiny model has {run.tiny.max_length} positions; "
            "lower it or raise tiny.max_length"
        )


def _check_algorithm(run: Run) -> None:
    """What the algorithm needs of the rest."""
    advantages, size = type(run.algorithm.advantages).__name__, run.rollout.group_size
    needs = run.algorithm.advantages.needs
    if size < 1:
        raise ConfigError(f"rollout.group_size={size}: must be at least 1")
    if size < smallest_group(run.algorithm.advantages):
        raise ConfigError(
            f"rollout.group_size={size}: {advantages} compares a task's trajectories and needs >= "
            f"{smallest_group(run.algorithm.advantages)}; raise it, or use --algorithm ppo, with a critic"
        )
    if ("critic" in needs) != (run.critic is not None):
        fix = "needs one: OwnCritic() or SharedCritic()" if run.critic is None else "takes none; set it to None"
        raise ConfigError(f"critic={type(run.critic).__name__}: {advantages} {fix}")
    _check_budget(run)
    if run.rollout.max_refills and size < 2:
        raise ConfigError(
            f"rollout.max_refills={run.rollout.max_refills}: a group of one never has a signal; raise "
            "rollout.group_size or set it to 0"
        )


def _check_budget(run: Run) -> None:
    """Numbers of the algorithm that only mean something beside those of the run."""
    algorithm, rollout, critic = run.algorithm, run.rollout, run.critic
    trajectories = rollout.num_prompts * rollout.group_size
    if algorithm.minibatches > trajectories:
        raise ConfigError(
            f"algorithm.minibatches={algorithm.minibatches}: a step has {trajectories} trajectories; lower it"
        )
    overlong = algorithm.overlong
    if overlong is not None and overlong.max_tokens - overlong.buffer_tokens >= rollout.max_tokens:
        raise ConfigError(
            f"algorithm.overlong.max_tokens={overlong.max_tokens}: no trajectory of rollout.max_tokens="
            f"{rollout.max_tokens} would pay; lower it"
        )
    if isinstance(critic, OwnCritic) and not 0 <= critic.warmup_steps < run.num_steps:
        raise ConfigError(
            f"critic.warmup_steps={critic.warmup_steps}: must be 0 or more, below num_steps={run.num_steps}"
        )
    if isinstance(critic, OwnCritic):
        _check_rate("critic.optimizer", critic.optimizer)
    if algorithm.kl is not None and algorithm.kl.target is not None:
        most = trajectories * (1 + rollout.max_refills)
        algorithm.kl.adapted(algorithm.kl.target, most)  # raises for a horizon that is too short


def _check_rate(option: str, optimizer: Optimizer) -> None:
    if not 0 < optimizer.learning_rate < math.inf:
        raise ConfigError(f"{option}.learning_rate={optimizer.learning_rate}: must be above 0, and finite")


CLASS = "class"  # in a resolved configuration: which dataclass it was, where the field's type does not say


def as_dict(run: Run) -> dict[str, Any]:
    """The resolved configuration as JSON-able values; what may be of several classes carries its class's name."""
    choices = {
        "critic": run.critic,
        **{f"algorithm.{f.name}": getattr(run.algorithm, f.name) for f in dataclasses.fields(run.algorithm)},
    }
    return _plain(run) | {
        "environment_class": _name_of(type(run.environment)),
        "classes": {name: type(value).__name__ for name, value in choices.items() if dataclasses.is_dataclass(value)},
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        hints = get_type_hints(type(value))
        plain = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        for name, each in plain.items():
            if hints[name] is Any and dataclasses.is_dataclass(getattr(value, name)):
                each[CLASS] = _name_of(type(getattr(value, name)))
        return plain
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return str(value) if isinstance(value, Path) else value


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def from_dict(kind: Any, value: Any) -> Any:
    """What `as_dict` made of a value of type `kind`, as it was: dataclasses, paths and tuples, inside each other too. A
    field that the class no longer has raises TypeError, a class that is gone ImportError or AttributeError."""
    if kind is Any and isinstance(value, dict) and CLASS in value:
        module, _, name = value[CLASS].rpartition(".")
        found = getattr(importlib.import_module(module), name)
        return from_dict(found, {key: each for key, each in value.items() if key != CLASS})
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints = get_type_hints(kind)
        return kind(**{name: from_dict(hints.get(name), each) for name, each in value.items()})
    if get_origin(kind) in (Union, UnionType):
        choices = [choice for choice in get_args(kind) if choice is not NoneType]
        return value if value is None or len(choices) != 1 else from_dict(choices[0], value)
    if isinstance(value, list) and get_origin(kind) is tuple:
        inner = get_args(kind)
        kinds = inner if Ellipsis not in inner else (inner[0],) * len(value)
        return tuple(from_dict(*pair) for pair in zip(kinds, value, strict=True))
    return Path(value) if kind is Path and isinstance(value, str) else value


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Options in which two resolved configurations differ, each as 'option was A, is B'."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {before!r}, is {after!r}")
    return found
