"""Evaluation: the same rollout as in training, without a gradient."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from lockstep.rollout.collector import collect_group
from lockstep.rollout.environment import Environment
from lockstep.rollout.statistics import trajectory_statistics
from lockstep.rollout.trajectory import Policy
from lockstep.types import Group, Task, Trajectory

TEMPERATURES = {"sampled": 1.0, "greedy": 0.0}


async def evaluate(
    policy: Policy, environment: Environment, tasks: Sequence[Task], *, mode: str, seed: int
) -> list[Group]:
    """One trajectory a task, 'sampled' at temperature 1 or 'greedy'. A function of the weights, the tasks and the
    seed."""
    acting = dataclasses.replace(policy, temperature=TEMPERATURES[mode])
    tries = (
        collect_group(acting, environment, task, group_id=f"{mode}/{i}", size=1, seed=seed)
        for i, task in enumerate(tasks)
    )
    return list(await asyncio.gather(*tries))


async def evaluate_both(
    policy: Policy, environment: Environment, tasks: Sequence[Task], *, seed: int, success_reward: float
) -> tuple[dict[str, float], dict[str, list[Group]]]:
    """Both modes: the numbers as eval/*, and the groups of each mode."""
    groups = {mode: await evaluate(policy, environment, tasks, mode=mode, seed=seed) for mode in TEMPERATURES}
    metrics = {}
    for mode, found in groups.items():
        statistics = trajectory_statistics(trajectories_of(found), success_reward=success_reward)
        metrics[f"eval/success_{mode}"] = statistics.get("success", 0.0)
        if mode == "sampled":
            metrics |= {f"eval/{key}": value for key, value in statistics.items() if key != "success"}
    return metrics, groups


def trajectories_of(groups: Sequence[Group]) -> list[Trajectory]:
    return [trajectory for group in groups for trajectory in group.trajectories]
