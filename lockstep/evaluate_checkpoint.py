"""`lockstep eval`: held-out success of a checkpoint, repeated as the training run measured it."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from lockstep.compute import prepare_cpu
from lockstep.config import ConfigError, Evaluation, from_dict
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.evaluate import evaluate_both
from lockstep.model.loading import load_model, load_tokenizer
from lockstep.model.precision import Precision
from lockstep.observe.recorder import Recorder
from lockstep.options import nearest, parse
from lockstep.rollout.chat import ChatOptions, renderer_for
from lockstep.rollout.environment import Environment
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Policy, Rollout
from lockstep.trainer.checkpoint import CONFIG
from lockstep.types import UserError


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Held-out success of a checkpoint, sampled at temperature 1 and greedy. What a Lockstep checkpoint says of its own
    run is the default of everything left out here."""

    checkpoint: Positional[Path]
    """A Hugging Face folder, such as runs/NAME/checkpoints/rl-000080, or the id of a model."""
    environment: str | None = None
    """One of Lockstep's ('ledger', 'gsm8k', 'retool', 'verifyif', 'recruiter', 'verifiers'), or MODULE:CLASS of one's
    own; the checkpoint's own when left out."""
    data: Path | None = None
    """The environment's data folder, for environments that read one."""
    num_tasks: int | None = None
    """Held-out tasks."""
    seed: int | None = None
    """Seed of the sampled tries."""
    threads: int | None = None
    """CPU threads that PyTorch computes with."""
    out: Path | None = None
    """Also write the numbers and every trajectory to this folder."""


def main(arguments: list[str]) -> None:
    """Evaluate and print. Raises UserError for a user's mistakes."""
    positional = [argument for argument in arguments if not argument.startswith("-")]
    if not positional and not {"-h", "--help"} & set(arguments):
        raise ConfigError("which checkpoint? give a folder: lockstep eval runs/ledger/checkpoints/rl-000080")
    settings = parse(Eval, arguments, command="lockstep eval", default=Eval(checkpoint=Path("CHECKPOINT")))
    known = _known(settings.checkpoint)
    threads = settings.threads or known.get("threads", 2)
    if Precision(**known.get("precision", {})).deterministic and threads != 1:
        raise ConfigError(f"threads={threads}: precision.deterministic computes with one; set threads to 1")
    prepare_cpu(threads)
    evaluation = Evaluation(**known.get("evaluation", {}))
    try:
        environment = make_environment(settings, known)
        tasks = environment.tasks("heldout")[: settings.num_tasks or evaluation.num_tasks]
    except UserError:
        raise
    except (ValueError, OSError) as error:  # what an environment says of its data
        raise UserError(str(error)) from error
    metrics = asyncio.run(_evaluate(settings, known, environment, tasks, evaluation))
    _print(settings, tasks, metrics)


async def _evaluate(
    settings: Eval, known: Mapping[str, Any], environment: Environment, tasks, evaluation: Evaluation
) -> dict[str, float]:
    renderer = renderer_for(
        load_tokenizer(settings.checkpoint),
        harmony=HarmonyOptions(**known.get("harmony", {})),
        chat=ChatOptions(**known.get("chat", {})),
    )
    rollout = Rollout(**known.get("rollout", {}))
    precision = Precision(**known.get("precision", {}))
    engine = EmbeddedEngine(
        load_model(settings.checkpoint, dtype=precision.torch_dtype),
        max_concurrency=known.get("engine", {}).get("max_concurrency", 256),
        max_length=rollout.max_tokens,
        precision=precision,
    )
    policy = Policy(engine=engine, renderer=renderer, settings=rollout, temperature=1.0)
    seed = known.get("seed", 0) if settings.seed is None else settings.seed
    metrics, groups = await evaluate_both(
        policy, environment, tasks, seed=seed, success_reward=evaluation.success_reward
    )
    if settings.out is not None:
        with Recorder(settings.out, tensorboard=False) as recorder:
            recorder.write_metrics(0, "eval", metrics)
            for mode, found in groups.items():
                recorder.write_trajectories(0, found, split=f"heldout_{mode}")
    return metrics


def _known(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint says of the run it comes from; nothing for a folder that Lockstep did not write."""
    path = checkpoint / CONFIG
    return json.loads(path.read_text()) if path.is_file() else {}


def make_environment(settings: Eval, known: Mapping[str, Any]) -> Environment:
    """The environment by name, with the options it was trained with where it is the same one."""
    own = known.get("environment_class")
    name = settings.environment or own
    if name is None:
        raise ConfigError(f"{settings.checkpoint} does not say its environment; add --environment ledger")
    kind = find_environment(name)
    same = own == f"{kind.__module__}.{kind.__qualname__}"
    options = dict(known["environment"]) if same else {}
    names = {f.name for f in dataclasses.fields(kind)}
    if settings.data is not None:
        if "data" not in names:
            raise ConfigError(f"--data {settings.data}: {kind.__name__} reads no data folder; leave it out")
        options["data"] = settings.data
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in options
    ]
    if required:
        raise ConfigError(
            f"{kind.__name__} needs {', '.join(required)}; add --data FOLDER, or evaluate a checkpoint of its own"
        )
    return from_dict(kind, options)


def find_environment(name: str) -> type:
    """The class that 'ledger', 'package.module:Class' or 'package.module.Class' names. Raises ConfigError when there is
    none."""
    module_name, _, class_name = name.replace(":", ".").rpartition(".")
    if not module_name:
        module_name, class_name = f"lockstep.environments.{name}", ""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        offered = sorted(path.stem for path in Path(__file__).with_name("environments").glob("[a-z]*.py"))
        raise ConfigError(
            f"no environment {name!r}{nearest(name, offered)}; give one of lockstep.environments, or MODULE:CLASS"
        ) from error
    if class_name:
        if not hasattr(module, class_name):
            raise ConfigError(f"no environment {name!r}: {module_name} has no {class_name}; give MODULE:CLASS")
        return getattr(module, class_name)
    own = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module_name and hasattr(kind, "demonstrations")
    ]
    if len(own) != 1:
        raise ConfigError(
            f"no environment {name!r}: {module_name} has {len(own)} environment classes; give MODULE:CLASS"
        )
    return own[0]


def _print(settings: Eval, tasks, metrics: Mapping[str, float]) -> None:
    table = Table(title=f"{settings.checkpoint}, {len(tasks)} held-out tasks", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key.removeprefix("eval/"), f"{value:.4g}")
    Console().print(table)
