"""Command-line options: a recipe's Run with its leaves overridden, through tyro; every mistake is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import tyro

from lockstep.algorithm.correction.presets import preset
from lockstep.algorithm.named import named
from lockstep.config import ConfigError, Run
from lockstep.trainer.critic import OwnCritic
from lockstep.types import UserError

OptionsT = TypeVar("OptionsT")
DAPO_REFILLS = 3  # its dynamic sampling is the rollout's
CONFIG = (tyro.conf.AvoidSubcommands,)  # which classes a run is made of, the recipe says


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?', or nothing when no known word is close."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def parse(options: Any, arguments: list[str], *, command: str, default: OptionsT) -> OptionsT:
    """`default` with the options of `arguments`. `options` is the dataclass type that tyro reads.

    Raises ConfigError, in one line, for an unknown option (with the nearest one) or a value that does not parse. Prints
    the help and exits for --help.
    """
    if {"-h", "--help"} & set(arguments):
        tyro.cli(options, default=default, args=["--help"], prog=command, config=CONFIG)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                options, default=default, args=arguments, prog=command, return_unknown_args=True, config=CONFIG
            )
    except SystemExit:
        raise ConfigError(_one_line(said.getvalue())) from None
    except ValueError as error:  # what a component says of its own options
        raise ConfigError(str(error)) from error
    if unknown:
        option = unknown[0].split("=")[0]
        raise ConfigError(
            f"unknown option {option}{nearest(option, _names(options, default))}; `{command} --help` lists all"
        )
    return parsed


def recipe_and_options(command: str, arguments: list[str]) -> tuple[Run, Path | None]:
    """The recipe's run with its options applied, and the directory to resume. Raises ConfigError for a user's
    mistake."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"which recipe? give a Python file: lockstep {command} recipes/ledger.py")
    path, rest = Path(arguments[0]), arguments[1:]
    namespace = load_recipe(path)
    run, aliases = namespace["run"], namespace.get("aliases", {})
    rest, resume = _take(_expanded(rest, aliases), "--resume", "runs/NAME")
    rest, algorithm = _take(rest, "--algorithm", "grpo")
    rest, correction = _take(rest, "--correction", "token-tis")
    for option in ("--algorithm", "--correction", "--resume"):
        if _take(rest, option, "")[1] is not None:
            raise ConfigError(f"{option} is given twice; give it once")
    run = with_names(run, algorithm=algorithm, correction=correction)
    kind = Run[type(run.environment), type(run.algorithm.advantages), type(run.algorithm.loss)]
    run = parse(kind, rest, command=f"lockstep {command} {path}", default=run)
    return run, None if resume is None else Path(resume)


def with_names(run: Run, *, algorithm: str | None, correction: str | None) -> Run:
    """The run with an algorithm, and then a correction, by name.

    A critic comes and goes with the algorithm's need for one; it learns at twice the recipe's rate. dapo also turns
    dynamic sampling on. Raises ConfigError for an unknown name, and for what does not go together.
    """
    try:
        if algorithm is not None:
            chosen = named(algorithm)
            needed = "critic" in chosen.advantages.needs
            optimizer = dataclasses.replace(run.optimizer, learning_rate=2 * run.optimizer.learning_rate)
            critic = (run.critic or OwnCritic(optimizer=optimizer)) if needed else None
            refills = run.rollout.max_refills or (DAPO_REFILLS if algorithm == "dapo" else 0)
            rollout = dataclasses.replace(run.rollout, max_refills=refills)
            run = dataclasses.replace(run, algorithm=chosen, critic=critic, rollout=rollout)
        if correction is not None:
            run = dataclasses.replace(run, algorithm=dataclasses.replace(run.algorithm, correction=preset(correction)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return run


def load_recipe(path: Path) -> Mapping[str, Any]:
    """The recipe's names. Raises ConfigError when there is no such file or it has no `run`."""
    if not path.is_file() or path.suffix != ".py":
        others = sorted(path.parent.glob("*.py")) if path.parent.is_dir() else []
        meant = nearest(str(path), map(str, others)) or ";"
        raise ConfigError(f"no recipe {path}{meant} give a Python file with a module-level `run`")
    sys.path.append(
        str(path.parent.resolve())
    )  # a recipe may import what lies beside it, where no package has its name
    namespace = vars(_imported(path))
    if not isinstance(namespace.get("run"), Run):
        raise ConfigError(f"{path} has no module-level `run = Run(...)`; add one")
    return namespace


def _imported(path: Path) -> ModuleType:
    """The recipe as a module that can be found by name: classes it defines are documented options like any others."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the file ends in .py and is there
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ValueError as error:
        where = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1]
        if isinstance(error, UserError) or not Path(where).is_relative_to(Path(__file__).parent):
            raise  # the recipe's own
        raise ConfigError(f"{path}: {error}") from error
    return module


def _expanded(arguments: list[str], aliases: Mapping[str, str]) -> list[str]:
    """Arguments with the recipe's short options written out."""
    expanded = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        expanded.append(aliases.get(option, option) + equals + value)
    return expanded


def _take(arguments: list[str], option: str, example: str) -> tuple[list[str], str | None]:
    """Arguments without `option VALUE` or `option=VALUE`, and its value."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return arguments[:i] + arguments[i + 1 :], argument.partition("=")[2]
        if argument == option:
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise ConfigError(f"{option} wants a value: {option} {example}")
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
    return arguments, None


def _names(options: Any, default: Any) -> list[str]:
    """Every option that tyro offers."""
    shown = tyro.extras.get_parser(options, default=default, config=CONFIG)
    return [name for action in shown._actions for name in action.option_strings]


def _one_line(box: str) -> str:
    """The message inside tyro's box: what stands between its first two rules."""
    words: list[str] = []
    num_rules = 0
    for line in box.splitlines():
        text = line.strip("│|╭╮╰╯+ ")
        if "────" in text or "----" in text:
            num_rules += 1
        elif num_rules == 1:
            words.append(text)
    return _said_of(" ".join(words)) or "the options could not be read"


def _said_of(message: str) -> str:
    """What a component says of its own option, by the option's whole name."""
    found = re.fullmatch(r"Error parsing ([\w.]+): (\w[\w.]*)(=.*)", message)
    if found is None:
        return message
    component, option, rest = found.groups()
    own, _, name = option.rpartition(".")  # "Limits.time_s" of environment.sandbox.limits
    if option.startswith(component):
        return f"{option}{rest}"
    return f"{component}.{name if component.endswith(own.lower()) else option}{rest}"
