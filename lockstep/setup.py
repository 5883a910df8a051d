"""From a Run to its parts: tokenizer, renderer, tasks, demonstrations, model.

Whatever can be wrong with what a user gave is found by `prepare`, before anything is written.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import reprlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lockstep.config import ConfigError, Run, as_dict, check
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.engine.engine import Engine
from lockstep.learner.learner import Learner
from lockstep.model.forward import checkpoint_layers
from lockstep.model.freezing import freeze
from lockstep.model.loading import load_model, load_tokenizer
from lockstep.model.routing import routers
from lockstep.model.saving import save_model
from lockstep.model.tiny import build_model, build_tokenizer
from lockstep.rollout.chat import renderer_for
from lockstep.rollout.concurrency import run_async
from lockstep.rollout.environment import (
    Environment,
    EnvironmentFault,
    checked_start,
    demonstrations_of,
    guarded,
    tasks_of,
)
from lockstep.rollout.renderer import Renderer
from lockstep.rollout.tool import InfrastructureError
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import demonstration_samples
from lockstep.trainer.critic import Critic, OwnCritic, SharedCritic
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.trainer.value_head import ValueHead
from lockstep.types import Demonstration, Message, Sample, Task, ToolDescription, UserError

TOKENIZER_DEMONSTRATIONS = 1500  # the tiny tokenizer learns from so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run works with. samples: the cold start's, empty without one."""

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    train_tasks: Sequence[Task]
    heldout_tasks: Sequence[Task]
    samples: Sequence[Sample]


def prepare(run: Run, *, checkpoint: Path | None = None) -> Parts:
    """Check the run and make all its parts but the model; `checkpoint`, when resuming, has the tokenizer.

    Raises UserError for anything a user can mend. Writes nothing.
    """
    try:
        return _prepare(run, checkpoint)
    except UserError:
        raise
    except (ValueError, OSError) as error:  # what an environment says of its data
        raise UserError(str(error)) from error


def _prepare(run: Run, checkpoint: Path | None) -> Parts:
    check(run)
    environment = run.environment
    _check_declared(run)
    demonstrations = demonstrations_of(environment, run.seed) if run.sft.num_steps else ()
    if run.sft.num_steps and not demonstrations:
        raise ConfigError(
            f"sft.num_steps={run.sft.num_steps}: {type(environment).__name__} has no demonstrations; "
            "set sft.num_steps to 0"
        )
    train_tasks, heldout_tasks = tasks_of(environment, "train"), tasks_of(environment, "heldout")
    for split, tasks in (("train", train_tasks), ("heldout", heldout_tasks)):
        if not tasks:
            raise ConfigError(f"{type(environment).__name__} has no {split} tasks")
    if len(train_tasks) < run.rollout.num_prompts:
        raise ConfigError(
            f"rollout.num_prompts={run.rollout.num_prompts}: {type(environment).__name__} has {len(train_tasks)} train "
            "tasks, and no step takes one twice; lower it"
        )
    tools = run_async(offered_tools(environment, train_tasks[0], run.rollout.environment_timeout_s))
    if checkpoint is None and run.model == "tiny":
        tokenizer = build_tokenizer(_texts(train_tasks, demonstrations, tools), run.tiny.vocab_size)
    else:
        tokenizer = load_tokenizer(checkpoint or run.model)
    renderer = renderer_for(tokenizer, harmony=run.harmony, chat=run.chat)
    check_room(run.rollout, renderer, [*train_tasks, *heldout_tasks[: run.evaluation.num_tasks]], tools)
    samples = demonstration_samples(renderer, demonstrations, tools, run.rollout.max_tokens)
    if demonstrations and not samples:
        raise ConfigError(f"rollout.max_tokens={run.rollout.max_tokens}: no demonstration is that short; raise it")
    return Parts(
        tokenizer=tokenizer,
        renderer=renderer,
        train_tasks=train_tasks,
        heldout_tasks=heldout_tasks[: run.evaluation.num_tasks],
        samples=samples,
    )


def make_model(
    run: Run, tokenizer: PreTrainedTokenizerBase, directory: Path, checkpoint: Path | None
) -> PreTrainedModel:
    """The model to train: the checkpoint's, the one the user named, or the tiny one, written to directory/initial
    first. Raises UserError when it cannot be trained as the run says."""
    if checkpoint is None and run.model == "tiny":
        tiny = build_model(run.tiny, tokenizer, run.seed)
        freeze(tiny, run.freeze)  # what is wrong with the patterns is said before anything is written
        checkpoint = directory / "initial"
        tokenizer.save_pretrained(checkpoint)
        tiny.save_pretrained(checkpoint)
    model = load_model(checkpoint or run.model, dtype=run.precision.torch_dtype)
    freeze(model, run.freeze)
    if run.replay_routes:
        routers(model)
    if run.gradient_checkpointing:
        checkpoint_layers(model)
    return model


def embedded_engine(run: Run, model: PreTrainedModel) -> Engine:
    """The engine that samples from the trainer's own modules."""
    return EmbeddedEngine(
        model,
        max_concurrency=run.engine.max_concurrency,
        max_length=run.rollout.max_tokens,
        precision=run.precision,
        record_routes=run.replay_routes,
    )


def make_trainer(
    run: Run, model: PreTrainedModel, optimizer: Optimizer, *, temperature: float, value_head: ValueHead | None = None
) -> Trainer:
    """The model's trainer, as the run says."""
    return Trainer(
        model,
        optimizer,
        temperature=temperature,
        precision=run.precision,
        replay_routes=run.replay_routes,
        gradient_checkpointing=run.gradient_checkpointing,
        value_head=value_head,
    )


def make_learner(run: Run, model: PreTrainedModel, directory: Path, *, begun: bool) -> Learner:
    """The learner of reinforcement learning, with critic and reference where the algorithm has them. The reference is
    the model that reinforcement learning began with: written to directory/reference then. begun: it is there already;
    raises UserError when it is not."""
    critic = head = None
    if isinstance(run.critic, OwnCritic):
        checkpointing = run.gradient_checkpointing
        critic = Critic(copy.deepcopy(model), run.critic, precision=run.precision, gradient_checkpointing=checkpointing)
    elif isinstance(run.critic, SharedCritic):
        head = ValueHead(model.config.hidden_size)
    reference = None
    if run.algorithm.kl is not None:
        folder = directory / "reference"
        if begun and not folder.exists():
            raise ConfigError(f"{folder} is gone, and the KL penalty measures from it; restore it, or start a new run")
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished = directory / ".reference.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            save_model(model, unfinished)
            unfinished.rename(folder)
        frozen = load_model(folder, dtype=run.precision.torch_dtype)
        reference = Trainer(
            frozen, None, temperature=run.rollout.temperature, precision=run.precision, replay_routes=False
        )
    return Learner(
        run.algorithm,
        make_trainer(run, model, run.optimizer, temperature=run.rollout.temperature, value_head=head),
        microbatch_tokens=run.microbatch_tokens,
        max_tokens=run.rollout.max_tokens,
        num_steps=run.num_steps,
        seed=run.seed,
        critic=critic,
        value_loss=run.critic.loss if isinstance(run.critic, SharedCritic) else None,
        reference=reference,
    )


async def offered_tools(environment: Environment, task: Task, timeout_s: float) -> tuple[ToolDescription, ...]:
    """The tools of a task: a trajectory is begun and closed. Raises UserError when either fails or is late, so that
    what every trajectory would meet is known before the first."""
    name = type(environment).__name__
    try:
        start = await guarded(
            f"{name}.start", lambda: environment.start(task), timeout_s=timeout_s, check=checked_start
        )
        await guarded(f"{name}.close", lambda: environment.close(start.state), timeout_s=timeout_s)
    except (EnvironmentFault, InfrastructureError) as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(" ".join(str(error).split())) from error
    return start.tools


def _check_declared(run: Run) -> None:
    """Raise ConfigError for an environment that is no dataclass's object, or has options that no file can hold."""
    environment = run.environment
    if isinstance(environment, type):
        name = environment.__name__
        raise ConfigError(f"environment={name} is a class: make an object of it, environment={name}()")
    if not dataclasses.is_dataclass(environment):
        name = type(environment).__name__
        raise ConfigError(f"environment={name}(): {name} is no dataclass; write @dataclass above the class")
    for field in dataclasses.fields(environment):
        try:
            json.dumps(as_dict(run)["environment"][field.name])
        except TypeError:
            shown = reprlib.repr(getattr(environment, field.name))
            raise ConfigError(
                f"environment.{field.name}={shown}: an option is written to the run's configuration; make it a number, "
                "text, path, list or dataclass, or no field"
            ) from None


def _texts(
    tasks: Sequence[Task], demonstrations: Sequence[Demonstration], tools: Sequence[ToolDescription]
) -> Iterator[str]:
    """What the tiny tokenizer learns from: conversations as they will be rendered, control tokens left out."""
    shown = demonstrations[:TOKENIZER_DEMONSTRATIONS]
    conversations = [(*d.task.messages, *d.messages) for d in shown] or [
        t.messages for t in tasks[:TOKENIZER_DEMONSTRATIONS]
    ]
    for messages in conversations:
        for message in messages:
            yield from _rendered(message)
    for tool in tools:
        yield from [f"functions.{tool.name}", f" to=functions.{tool.name} "]


def _rendered(message: Message) -> Iterator[str]:
    yield message.content
    yield message.name or message.role
    yield from filter(None, [message.channel])
    if message.recipient is not None:
        yield from [f" to={message.recipient} ", "json"]
    if message.role == "tool":
        yield from ["commentary", " to=assistant"]


def check_room(rollout: Rollout, renderer: Renderer, tasks: Sequence[Task], tools: Sequence[ToolDescription]) -> None:
    """Raise ConfigError when the longest prompt leaves no room for an answer."""
    longest, task = max(((len(renderer.start(t.messages, tools)), t) for t in tasks), key=lambda found: found[0])
    if longest >= rollout.max_tokens:
        raise ConfigError(
            f"rollout.max_tokens={rollout.max_tokens}: the prompt of task {task.id} has {longest} tokens "
            f"and leaves no room for an answer; raise it above {longest + rollout.max_action_tokens}"
        )
