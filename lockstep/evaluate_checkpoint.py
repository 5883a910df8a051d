"""`lockstep eval`: success of a checkpoint on an environment's tasks, repeated as the training run measured it.

What decides, in this order: an option; what the checkpoint says of its own run, if Lockstep wrote it; the defaults.
Options of the environment, the format and what counts as success are the checkpoint's on its own environment alone: how
it was shown one's tools says nothing of another's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal

import tyro
from rich.console import Console
from rich.table import Table

from lockstep.compute import prepare_cpu
from lockstep.config import ConfigError, EnvironmentT, Evaluation, from_dict
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.evaluate import evaluate_both, trajectories_of
from lockstep.model.loading import load_model, load_tokenizer
from lockstep.model.precision import Precision
from lockstep.named_environment import Found, find_environment
from lockstep.observe.recorder import Recorder
from lockstep.options import parse
from lockstep.rollout.chat import ChatOptions, renderer_for
from lockstep.rollout.concurrency import run_async
from lockstep.rollout.environment import Environment, tasks_of
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Policy, Rollout
from lockstep.setup import check_room, offered_tools
from lockstep.trainer.checkpoint import CONFIG
from lockstep.types import Group, Task, UserError

COMMAND = "lockstep eval CHECKPOINT [--environment NAME] [--data PATH]"
TRAINING_ALONE = ("num_prompts", "group_size", "temperature", "max_lag", "max_refills")  # of a rollout's options


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Success of a checkpoint on an environment's tasks, sampled at temperature 1 and greedy.

    CHECKPOINT is a Hugging Face folder, such as runs/NAME/checkpoints/rl-000080, or a model's id. --environment takes
    one of Lockstep's ('ledger', 'gsm8k', 'retool', 'verifyif', 'recruiter', 'verifiers'), MODULE:CLASS, or a recipe's
    file; it is the checkpoint's own when left out. --data is short for --environment.data.
    """

    split: Literal["heldout", "all"] = "heldout"
    """'heldout' takes the held-out tasks, 'all' the training tasks and then the held-out ones."""
    num_tasks: int | None = None
    """So many tasks, the first ones. None: as many as the checkpoint's run took (256 for others), or with --split all
    every one."""
    success_reward: float = 1.0
    """A trajectory succeeds when its reward is at least this."""
    seed: int = 0
    """Seed of the sampled tries."""
    threads: int = 2
    """CPU threads that PyTorch computes with."""
    out: Path | None = None
    """Also write the numbers and every trajectory to this folder."""
    rollout: Rollout = field(default_factory=Rollout)
    """Limits of a trajectory."""
    harmony: HarmonyOptions = field(default_factory=HarmonyOptions)
    """How conversations are rendered for models that speak Harmony."""
    chat: ChatOptions = field(default_factory=ChatOptions)
    """How conversations are rendered for models with a chat template."""


@dataclass(frozen=True, kw_only=True)
class Eval(EvalOptions, Generic[EnvironmentT]):
    """The options, with those of the environment."""

    environment: EnvironmentT
    """The tasks, their tools and their reward."""


Eval.__doc__ = EvalOptions.__doc__  # what --help shows


def main(arguments: list[str]) -> None:
    """Evaluate and print. Raises UserError for a user's mistakes, and when every trajectory fails."""
    if arguments and arguments[0] in ("-h", "--help"):
        parse(EvalOptions, ["--help"], command=COMMAND, default=EvalOptions())
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("which checkpoint? give it first: lockstep eval runs/ledger/checkpoints/rl-000080")
    checkpoint, known = arguments[0], _known(Path(arguments[0]))
    try:
        found, settings = _settings(checkpoint, known, arguments[1:])
        precision = _of_run(Precision, known, "precision")
        _check(settings, precision)
        environment = settings.environment
        offered = tasks_of(environment, "heldout") if settings.split == "heldout" else all_tasks(environment)
        if not offered:
            raise ConfigError(f"{found.kind.__name__} has no {settings.split} tasks")
        tasks = offered[: _num_tasks(settings, known, len(offered))]
        prepare_cpu(settings.threads)
        policy = _policy(checkpoint, known, settings, tasks)
        if settings.out is not None:
            settings.out.mkdir(parents=True, exist_ok=True)  # who cannot write there learns it before the work
    except UserError:
        raise
    except (ValueError, OSError) as error:  # what an environment says of its data
        raise UserError(_line(error)) from error
    metrics, groups = run_async(
        evaluate_both(policy, environment, tasks, seed=settings.seed, success_reward=settings.success_reward)
    )
    if settings.out is not None:
        with Recorder(settings.out, tensorboard=False) as recorder:
            recorder.write_metrics(0, "eval", metrics)
            for mode, each in groups.items():
                recorder.write_trajectories(0, each, split=f"{settings.split}_{mode}")
    _check_errors([group for each in groups.values() for group in each])
    counted = f"{len(tasks)}" if len(tasks) == len(offered) else f"{len(tasks)} of {len(offered)}"
    _print(f"{checkpoint} on {found.kind.__name__}, split {settings.split}: {counted} tasks", metrics)


def all_tasks(environment: Environment) -> list[Task]:
    """Those of both splits, the training tasks first."""
    return [*tasks_of(environment, "train"), *tasks_of(environment, "heldout")]


def _settings(checkpoint: str, known: Mapping[str, Any], arguments: list[str]) -> tuple[Found, Eval]:
    """The environment's class, and the options over what the checkpoint says."""
    chosen, rest = _named(arguments)
    own: str | None = known.get("environment_class")
    name = own if chosen.environment is None else chosen.environment
    if name is None:
        raise ConfigError(f"{checkpoint} {_unknown(Path(checkpoint))}")
    found = find_environment(name)
    fields = {f.name: f for f in dataclasses.fields(found.kind)}
    if chosen.data is not None:
        if "data" not in fields:
            raise ConfigError(f"--data {chosen.data}: {found.kind.__name__} reads no data folder; leave it out")
        rest = [*rest, "--environment.data", chosen.data]
    same = own == found.name
    evaluation = _of_run(Evaluation, known, "evaluation") if same else found.run.evaluation if found.run else None
    default = Eval(
        environment=_default(found, known.get("environment") if same else None, rest),
        success_reward=1.0 if evaluation is None else evaluation.success_reward,
        seed=known.get("seed", 0),
        threads=known.get("threads", 2),
        rollout=_of_run(Rollout, known, "rollout"),
        harmony=_of_run(HarmonyOptions, known if same else {}, "harmony"),
        chat=_of_run(ChatOptions, known if same else {}, "chat"),
    )
    settings = parse(Eval[found.kind], rest, command=f"lockstep eval {checkpoint}", default=default)
    for name in TRAINING_ALONE:
        if getattr(settings.rollout, name) != getattr(default.rollout, name):
            value = getattr(settings.rollout, name)
            raise ConfigError(f"rollout.{name}={value}: decides nothing in an evaluation; leave it out")
    return found, settings


def _named(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """--environment and --data, which decide what the other options are; and those."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--environment")
    parser.add_argument("--data")
    try:
        return parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; for example --environment gsm8k --data ../shared/data/gsm8k") from error


def _unknown(path: Path) -> str:
    """Why nothing says the environment, and what to do."""
    if inner := sorted((path / "checkpoints").glob("*-*"), key=lambda each: each.stat().st_mtime):
        return f"is a run; give one of its checkpoints: lockstep eval {inner[-1]}"
    if not path.exists() and path.parent != Path() and path.parent.is_dir():
        return f"is not there; {path.parent} has {', '.join(sorted(each.name for each in path.parent.iterdir())[:8])}"
    return "does not say its environment; add --environment ledger"


def _default(found: Found, trained: Mapping[str, Any] | None, arguments: Sequence[str]) -> Any:
    """The environment that options change: as the checkpoint had it, as its recipe has it, or as it is by itself."""
    if trained is not None:
        return _rebuilt(found.kind, trained, f"environment {found.name}")
    if found.run is not None:
        return found.run.environment
    required = [
        f.name
        for f in dataclasses.fields(found.kind)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    given = [argument.removeprefix("--environment.").replace("-", "_") for argument in arguments]
    for name in required:
        if not any(each.split("=")[0].split(".")[0] == name for each in given):
            option = "--data PATH" if name == "data" else f"--environment.{name.replace('_', '-')} VALUE"
            raise ConfigError(
                f"{found.kind.__name__} needs {name}; add {option}, or give a recipe: --environment recipes/NAME.py"
            )
    return _incomplete(found.kind) if required else found.kind()


def _incomplete(kind: type) -> Any:
    """The class's defaults, and a mark at each field without one: for tyro to read, which then wants an option."""
    bare = object.__new__(kind)
    for each in dataclasses.fields(kind):
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        object.__setattr__(bare, each.name, tyro.MISSING if default is dataclasses.MISSING else default)
    return bare


def _known(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint says of the run it comes from; nothing for a folder that Lockstep did not write."""
    path = checkpoint / CONFIG
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); take another checkpoint") from error


def _of_run(kind: type, known: Mapping[str, Any], name: str) -> Any:
    return _rebuilt(kind, known.get(name, {}), name)


def _rebuilt(kind: type, value: Mapping[str, Any], name: str) -> Any:
    """Raises ConfigError for what this version of the class, or of a class inside it, cannot be made of."""
    try:
        return from_dict(kind, value)
    except (TypeError, AttributeError, ImportError, ValueError) as error:
        where = ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("recipe_"):
            where = f"; a recipe defines it: --environment recipes/{(error.name or '').removeprefix('recipe_')}.py"
        raise ConfigError(f"the checkpoint's {name} cannot be made again: {_line(error)}{where}") from error


def _check(settings: Eval, precision: Precision) -> None:
    rollout = settings.rollout
    counts = {"num_tasks": settings.num_tasks, "threads": settings.threads}
    counts |= {f"rollout.{n}": getattr(rollout, n) for n in ("max_turns", "max_tokens", "max_action_tokens")}
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{option}={value}: must be at least 1")
    for option, value in (("engine_retries", rollout.engine_retries), ("seed", settings.seed)):
        if value < 0:
            raise ConfigError(f"{option}={value}: must be 0 or more")
    if precision.deterministic and settings.threads != 1:
        raise ConfigError(f"threads={settings.threads}: precision.deterministic computes with one; set threads to 1")


def _num_tasks(settings: Eval, known: Mapping[str, Any], offered: int) -> int:
    if settings.num_tasks is not None:
        return settings.num_tasks
    return offered if settings.split == "all" else _of_run(Evaluation, known, "evaluation").num_tasks


def _policy(checkpoint: str, known: Mapping[str, Any], settings: Eval, tasks: Sequence[Task]) -> Policy:
    """What acts. Raises UserError when the environment cannot begin, or a prompt leaves no room for an answer."""
    renderer = renderer_for(load_tokenizer(checkpoint), harmony=settings.harmony, chat=settings.chat)
    rollout = settings.rollout
    tools = run_async(offered_tools(settings.environment, tasks[0], rollout.environment_timeout_s))
    check_room(rollout, renderer, tasks, tools)
    precision = _of_run(Precision, known, "precision")
    model = load_model(checkpoint, dtype=precision.torch_dtype)
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and rollout.max_tokens > most:
        raise ConfigError(f"rollout.max_tokens={rollout.max_tokens}: the model has {most} positions; lower it")
    engine = EmbeddedEngine(
        model,
        max_concurrency=known.get("engine", {}).get("max_concurrency", 256),
        max_length=rollout.max_tokens,
        precision=precision,
    )
    return Policy(engine=engine, renderer=renderer, settings=rollout, temperature=1.0)


def _check_errors(groups: Sequence[Group]) -> None:
    """Raise UserError when nothing was measured."""
    errors = [trajectory.error for trajectory in trajectories_of(groups)]
    if errors and None not in errors:
        raise UserError(f"nothing was measured: all {len(errors)} trajectories failed; the first says: {errors[0]}")


def _print(title: str, metrics: Mapping[str, float]) -> None:
    console = Console()
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    table = Table("")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key.removeprefix("eval/"), f"{value:.4g}")
    console.print(table)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
