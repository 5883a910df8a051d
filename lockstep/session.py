"""A run in progress, for people and for later: what is written, shown, and raised as an alarm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from lockstep.config import Run, as_dict
from lockstep.evaluate import trajectories_of
from lockstep.learner.report import Report
from lockstep.observe.alarms import check as check_alarms
from lockstep.observe.alarms import worst
from lockstep.observe.display import Display
from lockstep.observe.recorder import Recorder, read_metrics
from lockstep.observe.report import print_report
from lockstep.rollout.collector import Collected
from lockstep.rollout.statistics import group_statistics, tool_statistics, trajectory_statistics, turn_statistics
from lockstep.setup import Parts
from lockstep.trainer.checkpoint import Progress, save_checkpoint
from lockstep.types import Group, InvariantError, Trajectory

MOST_CHARACTERS = 300  # of the error of a masked trajectory


@dataclass(slots=True, kw_only=True)
class Session:
    """A run's parts, and where it is written and shown. history: the metrics of the reinforcement learning so far."""

    run: Run
    parts: Parts
    directory: Path
    model: PreTrainedModel
    recorder: Recorder
    display: Display
    history: list[Mapping[str, float | str]] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def save(self, state: Callable[[], Mapping[str, Any]], progress: Progress) -> None:
        """Write a checkpoint when one is due; `state` gives what it needs beside the model."""
        last = self.run.sft.num_steps if progress.phase == "sft" else self.run.num_steps
        if progress.step % self.run.checkpoint_every == 0 or progress.step == last:
            save_checkpoint(
                self.checkpoints,
                self.model,
                state(),
                self.parts.tokenizer,
                progress,
                config=as_dict(self.run),
                keep=self.run.keep_checkpoints,
            )

    def record(self, step: int, collected: Collected, metrics: dict[str, float]) -> dict[str, float]:
        """Write and show a step of reinforcement learning; returns all its metrics."""
        groups, run = [*collected.groups, *collected.rejected], self.run  # else what is rejected would never show
        trajectories = trajectories_of(groups)
        metrics = metrics | trajectory_statistics(trajectories, success_reward=run.evaluation.success_reward)
        metrics |= tool_statistics(trajectories)
        metrics |= turn_statistics(trajectories, max_action_tokens=run.rollout.max_action_tokens)
        metrics |= group_statistics(groups, success_reward=run.evaluation.success_reward)
        metrics |= {"groups/rounds": collected.rounds, "groups/rejected": len(collected.rejected)}
        baselines = [Group(task=group.task, trajectories=(group.baseline,)) for group in groups if group.baseline]
        for split, found in (("train", collected.groups), ("rejected", collected.rejected), ("baseline", baselines)):
            if found:
                self.recorder.write_trajectories(step, found, split=split)
        self.recorder.write_metrics(step, "rl", metrics)
        self.display.update(step, metrics)
        if errors := [t.error for t in trajectories if t.error is not None]:
            self.display.message(
                f"step {step}: {len(errors)} of {len(trajectories)} trajectories are masked; the first says: "
                f"{errors[0][:MOST_CHARACTERS]}"
            )
        return metrics

    def watch(self, step: int, groups: Sequence[Group], metrics: Mapping[str, float], report: Report) -> None:
        """Raise the alarms that are due: a message, the trajectories to look at, and InvariantError where one stops the
        run."""
        raised = check_alarms(self.run.alarms, self.history, metrics)
        self.history.append(metrics)
        stops = {alarm.metric for alarm in raised if alarm.action == "stop"}
        for alarm in raised:
            if alarm.metric not in stops:  # those end the run, and say so then
                self.display.message(f"step {step}: {alarm.message}")
        masked = dict.fromkeys((t.id for t in trajectories_of(groups) if t.error is not None), 1.0)
        chosen = {
            id_
            for alarm in raised
            for id_ in _to_look_at(masked if alarm.metric == "masked" else report.scores_for(alarm.metric))
        }
        if chosen:
            self.recorder.write_trajectories(step, _only(groups, chosen), split="alarm")
        if raised and raised[0].action == "stop":
            raise InvariantError(
                f"step {step}: {raised[0].message}; the trajectories to look at are in "
                f"{self.directory / 'trajectories'}, split 'alarm'"
            )

    def report(self, trajectories: Sequence[Trajectory]) -> None:
        """What the run came to, from its evaluations and a few trajectories of the last one."""
        lines = [line for line in read_metrics(self.directory) if line["phase"] == "eval"]
        evaluations = [{key: float(value) for key, value in line.items() if key.startswith("eval/")} for line in lines]
        newest = max(self.checkpoints.iterdir(), key=lambda p: p.stat().st_mtime, default=self.checkpoints)
        print_report(
            Console(),
            before=evaluations[0] if len(evaluations) > 1 else None,
            after=evaluations[-1],
            trajectories=trajectories,
            paths={"records": self.directory, "trajectories": self.directory / "trajectories", "checkpoint": newest},
        )


def speeds(groups: Sequence[Group], rollout_s: float, train_s: float) -> dict[str, float]:
    """Seconds and tokens a second of a step."""
    trajectories = trajectories_of(groups)
    num_tokens = sum(t.num_tokens for t in trajectories)
    return {
        "time/rollout_s": rollout_s,
        "time/train_s": train_s,
        "tokens_per_s/rollout": sum(t.num_action_tokens for t in trajectories) / rollout_s,
        "tokens_per_s/train": num_tokens / train_s,
        "tokens_per_s/step": num_tokens / (rollout_s + train_s),
    }


def _to_look_at(scores: Mapping[str, float]) -> tuple[str, ...]:
    """The worst quarter, eight at most, of what has a score at all."""
    scored = {id_: score for id_, score in scores.items() if score != 0}
    return worst(scored, count=max(1, min(8, len(scores) // 4)))


def _only(groups: Sequence[Group], ids: Collection[str]) -> list[Group]:
    """The groups with none but the trajectories of these ids; without those that have none."""
    left = [
        dataclasses.replace(group, trajectories=tuple(t for t in group.trajectories if t.id in ids)) for group in groups
    ]
    return [group for group in left if group.trajectories]
