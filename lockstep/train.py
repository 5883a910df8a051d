"""The one loop: cold start, then rollout, advantages, packing, gradient, update, publish, again and again.

Synchronous training is max_lag = 0 of this loop. Everything random is a function of (seed, step), so a run that is
resumed from a checkpoint continues as if it had never stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel

from lockstep.compute import prepare_cpu
from lockstep.config import ConfigError, Run, as_dict, differences
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.evaluate import evaluate_both, trajectories_of
from lockstep.observe.display import Display, open_display
from lockstep.observe.recorder import Recorder, read_config, read_metrics
from lockstep.observe.report import print_report
from lockstep.rollout.collector import Collector
from lockstep.rollout.statistics import group_statistics, trajectory_statistics
from lockstep.rollout.trajectory import Policy
from lockstep.setup import Parts, make_model, prepare
from lockstep.sft import supervised_steps
from lockstep.trainer.checkpoint import Progress, newest_checkpoint, restore_optimizer, save_checkpoint
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import Group, Trajectory
from lockstep.update import update


@dataclass(slots=True, kw_only=True)
class Session:
    """A run in progress: its parts, and where it is written and shown."""

    run: Run
    parts: Parts
    directory: Path
    model: PreTrainedModel
    recorder: Recorder
    display: Display

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def save(self, trainer: Trainer, progress: Progress) -> None:
        """Write a checkpoint when one is due."""
        last = self.run.sft.num_steps if progress.phase == "sft" else self.run.num_steps
        if progress.step % self.run.checkpoint_every == 0 or progress.step == last:
            save_checkpoint(
                self.checkpoints,
                trainer,
                self.parts.tokenizer,
                progress,
                config=as_dict(self.run),
                keep=self.run.keep_checkpoints,
            )


def train(run: Run, *, resume: Path | None = None, sft_only: bool = False) -> Path:
    """Run, or continue, a whole training; returns its directory. Raises UserError for a mistake of the user's
    before anything is written, and InvariantError, with the evidence, when an invariant breaks."""
    prepare_cpu(run.threads)
    checkpoint, progress, remarks = None, Progress(phase="sft", step=0), []
    if resume is not None:
        checkpoint, progress, remarks = _resumption(run, resume)
    parts = prepare(run, checkpoint=checkpoint)
    directory = resume or free_directory(run.runs, run.name)
    model = make_model(run, parts.tokenizer, directory, checkpoint)
    with Recorder(directory, tensorboard=run.tensorboard) as recorder, open_display(directory.name) as display:
        recorder.write_config(as_dict(run))
        recorder.truncate_after(progress.step, progress.phase)
        for remark in remarks:
            display.message(remark)
        session = Session(run=run, parts=parts, directory=directory, model=model, recorder=recorder, display=display)
        if progress.phase == "sft" and run.sft.num_steps:
            _cold_start(session, progress.step, checkpoint)
            checkpoint, progress = None, Progress(phase="rl", step=0)
        elif progress.phase == "sft":
            progress = Progress(phase="rl", step=0)
        last_evaluation = asyncio.run(
            _evaluate_only(session) if sft_only else _reinforce(session, progress.step, checkpoint)
        )
    _report(session, last_evaluation)
    return directory


def free_directory(runs: Path, name: str) -> Path:
    """RUNS/NAME, or NAME-2, NAME-3, ... when a run of that name is there already."""
    candidate, number = runs / name, 1
    while candidate.exists():
        number += 1
        candidate = runs / f"{name}-{number}"
    return candidate


def _resumption(run: Run, directory: Path) -> tuple[Path | None, Progress, list[str]]:
    """The checkpoint to go on from and how far it is. Raises ConfigError when the directory is no run, or of another
    one."""
    places = {"runs": None, "name": None}  # the directory itself says where it is
    written = read_config(directory)
    if unknown := sorted(as_dict(run).keys() - written.keys()):
        raise ConfigError(
            f"resume {directory}: another version of Lockstep wrote it, without {', '.join(unknown)}; start a new run "
            "with --model and its newest checkpoint"
        )
    changed = differences(written | places, as_dict(run) | places)
    if changed:
        raise ConfigError(f"resume {directory}: {'; '.join(changed)}; give the options the run was started with")
    found = newest_checkpoint(directory / "checkpoints")
    if found is None:
        return (
            None,
            Progress(phase="sft", step=0),
            [f"{directory} has no whole checkpoint: starting from the beginning"],
        )
    path, progress, remarks = found
    return path, progress, [*remarks, f"resuming from {path.name}"]


def _cold_start(session: Session, start_step: int, checkpoint: Path | None) -> None:
    run = session.run
    session.display.phase("cold start", run.sft.num_steps)
    trainer = _trainer(session, run.sft.optimizer, temperature=1.0)
    if checkpoint is not None:
        restore_optimizer(checkpoint, trainer)

    def after_step(step: int, metrics: dict[str, float]) -> None:
        session.recorder.write_metrics(step, "sft", metrics)
        session.display.update(step, metrics)
        session.save(trainer, Progress(phase="sft", step=step))

    with closing(trainer):
        supervised_steps(
            trainer,
            session.parts.samples,
            run.sft,
            seed=run.seed,
            start_step=start_step,
            microbatch_tokens=run.microbatch_tokens,
            after_step=after_step,
        )


def _trainer(session: Session, optimizer: Optimizer, *, temperature: float) -> Trainer:
    return Trainer(
        session.model,
        optimizer,
        temperature=temperature,
        precision=session.run.precision,
        replay_routes=session.run.replay_routes,
        gradient_checkpointing=session.run.gradient_checkpointing,
    )


def _policy(session: Session) -> Policy:
    run = session.run
    engine = EmbeddedEngine(
        session.model,
        max_concurrency=run.engine.max_concurrency,
        max_length=run.rollout.max_tokens,
        precision=run.precision,
        record_routes=run.replay_routes,
    )
    return Policy(
        engine=engine, renderer=session.parts.renderer, settings=run.rollout, temperature=run.rollout.temperature
    )


async def _evaluate(session: Session, policy: Policy, step: int) -> list[Trajectory]:
    """Evaluate on the held-out tasks, record and show; returns the sampled trajectories."""
    run = session.run
    metrics, groups = await evaluate_both(
        policy,
        run.environment,
        session.parts.heldout_tasks,
        seed=run.seed,
        success_reward=run.evaluation.success_reward,
    )
    for mode, found in groups.items():
        session.recorder.write_trajectories(step, found, split=f"heldout_{mode}")
    session.recorder.write_metrics(step, "eval", metrics)
    session.display.update(step, metrics)
    return trajectories_of(groups["sampled"])


async def _evaluate_only(session: Session) -> list[Trajectory]:
    session.display.phase("evaluation", 1)
    return await _evaluate(session, _policy(session), 0)


async def _reinforce(session: Session, start_step: int, checkpoint: Path | None) -> list[Trajectory]:
    """Steps start_step..num_steps-1; returns the trajectories of the last evaluation."""
    run = session.run
    trainer = _trainer(session, run.optimizer, temperature=run.rollout.temperature)
    if checkpoint is not None:
        restore_optimizer(checkpoint, trainer)
    policy = _policy(session)
    await policy.engine.update_weights(start_step)
    collector = Collector(policy, run.environment, session.parts.train_tasks, seed=run.seed)
    session.display.phase("reinforcement learning", run.num_steps)
    if start_step in (0, run.num_steps):
        evaluated = await _evaluate(session, policy, start_step)
    for step in range(start_step, run.num_steps):
        began = time.perf_counter()
        groups = await collector.collect(step, run.num_steps)
        sampled = time.perf_counter()
        learning_rate = run.optimizer.learning_rate_at(step, run.num_steps)
        metrics = update(
            run.algorithm, trainer, groups, learning_rate=learning_rate, microbatch_tokens=run.microbatch_tokens
        )
        await policy.engine.update_weights(step + 1)
        metrics |= _speeds(groups, sampled - began, time.perf_counter() - sampled)
        _record(session, step + 1, groups, metrics)
        if step + 1 == run.num_steps or (run.evaluation.every and (step + 1) % run.evaluation.every == 0):
            evaluated = await _evaluate(session, policy, step + 1)
        session.save(trainer, Progress(phase="rl", step=step + 1))
    await policy.engine.close()
    return evaluated


def _speeds(groups: Sequence[Group], rollout_s: float, train_s: float) -> dict[str, float]:
    trajectories = trajectories_of(groups)
    num_tokens = sum(t.num_tokens for t in trajectories)
    return {
        "time/rollout_s": rollout_s,
        "time/train_s": train_s,
        "tokens_per_s/rollout": sum(t.num_action_tokens for t in trajectories) / rollout_s,
        "tokens_per_s/train": num_tokens / train_s,
        "tokens_per_s/step": num_tokens / (rollout_s + train_s),
    }


def _record(session: Session, step: int, groups: Sequence[Group], metrics: dict[str, float]) -> None:
    success_reward = session.run.evaluation.success_reward
    metrics |= trajectory_statistics(trajectories_of(groups), success_reward=success_reward) | group_statistics(groups)
    session.recorder.write_trajectories(step, groups)
    session.recorder.write_metrics(step, "rl", metrics)
    session.display.update(step, metrics)


def _report(session: Session, trajectories: Sequence[Trajectory]) -> None:
    lines = [line for line in read_metrics(session.directory) if line["phase"] == "eval"]
    evaluations = [{key: float(value) for key, value in line.items() if key.startswith("eval/")} for line in lines]
    before = evaluations[0] if len(evaluations) > 1 else None
    print_report(
        Console(),
        before=before,
        after=evaluations[-1],
        trajectories=trajectories,
        paths={
            "records": session.directory,
            "trajectories": session.directory / "trajectories",
            "checkpoint": max(
                session.checkpoints.iterdir(), key=lambda p: p.stat().st_mtime, default=session.checkpoints
            ),
        },
    )
