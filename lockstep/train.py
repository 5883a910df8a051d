"""The one loop: cold start, then rollout, advantages, packing, gradient, update, publish, again and again.

Synchronous training is max_lag = 0 of this loop. Everything random is a function of (seed, step), so a run that is
resumed from a checkpoint continues as if it had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from lockstep.compute import prepare_cpu
from lockstep.config import ConfigError, Run, as_dict, differences
from lockstep.engine.engine import Engine
from lockstep.evaluate import evaluate_both, trajectories_of
from lockstep.learner.learner import Learner
from lockstep.learner.report import NO_UPDATE, Report
from lockstep.observe.display import open_display
from lockstep.observe.recorder import Recorder, read_config, read_metrics
from lockstep.rollout.collector import Collector, has_signal
from lockstep.rollout.concurrency import run_async
from lockstep.rollout.trajectory import Policy
from lockstep.session import Session, speeds
from lockstep.setup import embedded_engine, make_learner, make_model, make_trainer, prepare
from lockstep.sft import supervised_steps
from lockstep.trainer.checkpoint import Progress, newest_checkpoint, read_state
from lockstep.types import Group, InvariantError, Trajectory

MakeEngine = Callable[[Run, PreTrainedModel], Engine]
"""From the run and the model that is trained to the engine that samples."""

MOST_SHOWN = 4  # options that differ, in one line
NOTHING_LEFT = "no trajectory to train on: none has a signal, or algorithm.filter_truncated or masks left none"


def train(
    run: Run, *, resume: Path | None = None, sft_only: bool = False, make_engine: MakeEngine = embedded_engine
) -> Path:
    """Run, or continue, a whole training; returns its directory. make_engine: for another engine than the embedded one
    on the trainer's own weights. Raises UserError for a mistake of the user's before anything is written, and
    InvariantError, with the evidence, when an invariant breaks."""
    prepare_cpu(run.threads)
    checkpoint, progress, remarks = None, Progress(phase="sft", step=0), []
    if resume is not None:
        checkpoint, progress, remarks = _resumption(run, resume)
    parts = prepare(run, checkpoint=checkpoint)
    directory = resume or free_directory(run.runs, run.name)
    with _resumable(directory):
        model = make_model(run, parts.tokenizer, directory, checkpoint)
        with Recorder(directory, tensorboard=run.tensorboard) as recorder, open_display(directory.name) as display:
            recorder.write_config(as_dict(run))
            recorder.truncate_after(progress.step, progress.phase)
            for remark in remarks:
                display.message(remark)
            session = Session(
                run=run, parts=parts, directory=directory, model=model, recorder=recorder, display=display
            )
            if progress.phase == "sft" and run.sft.num_steps:
                _cold_start(session, progress.step, checkpoint)
                checkpoint, progress = None, Progress(phase="rl", step=0)
            elif progress.phase == "sft":
                progress = Progress(phase="rl", step=0)
            policy = _policy(session, make_engine)
            last_evaluation = run_async(
                _evaluate_only(session, policy) if sft_only else _reinforce(session, policy, progress.step, checkpoint)
            )
    session.report(last_evaluation)
    return directory


@contextmanager
def _resumable(directory: Path) -> Iterator[None]:
    """Whoever interrupts is told how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with the same recipe and options and --resume {directory}") from None


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
    # The directory itself says where it is; an alarm that stopped a run may be set otherwise.
    places = {"runs": None, "name": None, "alarms": None}
    written = read_config(directory)
    if unknown := sorted(as_dict(run).keys() - written.keys()):
        raise ConfigError(
            f"resume {directory}: another version of Lockstep wrote it, without {', '.join(unknown)}; start a new run "
            "with --model and its newest checkpoint"
        )
    changed = differences(written | places, as_dict(run) | places)
    if changed:
        first = sorted(changed, key=lambda text: not text.startswith("environment_class"))[:MOST_SHOWN]
        more = f"; and {len(changed) - len(first)} more" if len(changed) > len(first) else ""
        raise ConfigError(
            f"resume {directory}: {'; '.join(first)}{more}; give the recipe and options the run was started with"
        )
    found, passed_over = newest_checkpoint(directory / "checkpoints")
    if found is not None:
        path, progress = found
        return path, progress, [*passed_over, f"resuming from {path.name}"]
    if passed_over:  # what it came to is worth more than a new beginning in its place
        raise ConfigError(
            f"resume {directory}: no checkpoint is whole: {'; '.join(passed_over)}; restore one, or start a new run"
        )
    return None, Progress(phase="sft", step=0), [f"{directory} has no checkpoint: starting from the beginning"]


def _cold_start(session: Session, start_step: int, checkpoint: Path | None) -> None:
    run = session.run
    session.display.phase("cold start", run.sft.num_steps)
    trainer = make_trainer(run, session.model, run.sft.optimizer, temperature=1.0)
    if checkpoint is not None:
        trainer.load_state_dict(read_state(checkpoint))

    def after_step(step: int, metrics: dict[str, float]) -> None:
        session.recorder.write_metrics(step, "sft", metrics)
        session.display.update(step, metrics)
        session.save(trainer.state_dict, Progress(phase="sft", step=step))

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


def _policy(session: Session, make_engine: MakeEngine) -> Policy:
    settings = session.run.rollout
    return Policy(
        engine=make_engine(session.run, session.model),
        renderer=session.parts.renderer,
        settings=settings,
        temperature=settings.temperature,
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
    if not any((line["phase"], line["step"]) == ("eval", step) for line in read_metrics(session.directory)):
        session.recorder.write_metrics(step, "eval", metrics)  # a finished run that is resumed has them
    session.display.update(step, metrics)
    return trajectories_of(groups["sampled"])


async def _evaluate_only(session: Session, policy: Policy) -> list[Trajectory]:
    session.display.phase("evaluation", 1)
    await policy.engine.update_weights(0)
    return await _evaluate(session, policy, 0)


async def _reinforce(session: Session, policy: Policy, start_step: int, checkpoint: Path | None) -> list[Trajectory]:
    """Steps start_step..num_steps-1; returns the trajectories of the last evaluation."""
    run = session.run
    learner = make_learner(run, session.model, session.directory, begun=checkpoint is not None)
    if checkpoint is not None:
        learner.load_state_dict(read_state(checkpoint))
    await policy.engine.update_weights(start_step)
    greedy = "greedy" in run.algorithm.advantages.needs
    collector = Collector(policy, run.environment, session.parts.train_tasks, seed=run.seed, greedy=greedy)
    session.display.phase("reinforcement learning", run.num_steps)
    session.history = [line for line in read_metrics(session.directory) if line["phase"] == "rl"]
    if start_step in (0, run.num_steps):
        evaluated = await _evaluate(session, policy, start_step)
    for step in range(start_step, run.num_steps):
        began = time.perf_counter()
        collected = await collector.collect(step, run.num_steps)
        if collected.message is not None:
            session.display.message(f"step {step + 1}: {collected.message}")
        sampled = time.perf_counter()
        # At the cap of refills, without any signal, there is nothing to learn from; the learner stops where all failed.
        starved = run.rollout.max_refills > 0 and not any(map(has_signal, collected.groups))
        starved = starved and any(t.error is None for t in trajectories_of(collected.groups))
        report = NO_UPDATE if starved else _update(session, learner, step, collected.groups)
        if not report.scores:
            session.display.message(f"step {step + 1}: no update: {NOTHING_LEFT}")
        await policy.engine.update_weights(step + 1)
        every = [*collected.groups, *collected.rejected]
        metrics = report.metrics | speeds(every, sampled - began, time.perf_counter() - sampled)
        metrics = session.record(step + 1, collected, metrics)
        session.watch(step + 1, every, metrics, report)
        if step + 1 == run.num_steps or (run.evaluation.every and (step + 1) % run.evaluation.every == 0):
            evaluated = await _evaluate(session, policy, step + 1)
        session.save(learner.state_dict, Progress(phase="rl", step=step + 1))
    await collector.close()
    await policy.engine.close()
    return evaluated


def _update(session: Session, learner: Learner, step: int, groups: Sequence[Group]) -> Report:
    """The learner's update; the trajectories it fails on are kept."""
    try:
        return learner.update(groups, step=step)
    except InvariantError:
        session.recorder.write_trajectories(step + 1, groups, split="failed")
        raise
