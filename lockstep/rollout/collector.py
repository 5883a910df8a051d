"""The collector: groups of trajectories, concurrently, admitted by the max_lag gate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from lockstep.rollout.environment import Environment
from lockstep.rollout.trajectory import Attempt, Policy, seed_of
from lockstep.types import Group, InvariantError, Task


async def collect_group(
    policy: Policy, environment: Environment, task: Task, *, group_id: str, size: int, seed: int
) -> Group:
    """`size` trajectories on one task. Each is a function of (weights, task, seed, its number in the group)."""
    attempts = [Attempt(policy, environment, task, f"{group_id}/{i}", seed_of(seed, task.id, i)) for i in range(size)]
    return Group(task=task, trajectories=tuple(await asyncio.gather(*(attempt.run() for attempt in attempts))))


class Collector:
    """Groups for step after step. Step s may be sampled as soon as the engine's weights are at version s - max_lag or
    newer; with max_lag 0 that is after the update of the step before."""

    def __init__(self, policy: Policy, environment: Environment, tasks: Sequence[Task], *, seed: int) -> None:
        if not tasks:
            raise ValueError("the environment has no training tasks")
        self.policy, self.environment, self.tasks, self.seed = policy, environment, tasks, seed
        self._pending: dict[int, asyncio.Task[list[Group]]] = {}

    async def collect(self, step: int, num_steps: int) -> list[Group]:
        """The groups of `step`; starts sampling those of later steps that the gate admits. Raises InvariantError for
        tokens older than max_lag."""
        max_lag = self.policy.settings.max_lag
        for s in range(step, min(step + max_lag, num_steps - 1) + 1):
            if s not in self._pending:
                self._pending[s] = asyncio.create_task(self._sample(s))
        groups = await self._pending.pop(step)
        for trajectory in (t for group in groups for t in group.trajectories):
            for turn in trajectory.turns:
                if not step - max_lag <= turn.weights_version <= step:
                    raise InvariantError(
                        f"trajectory {trajectory.id} has tokens of weights version {turn.weights_version}, "
                        f"but step {step} with rollout.max_lag={max_lag} admits {max(0, step - max_lag)}..{step}"
                    )
        return groups

    async def _sample(self, step: int) -> list[Group]:
        settings = self.policy.settings
        return await asyncio.gather(
            *(
                collect_group(
                    self.policy,
                    self.environment,
                    task,
                    group_id=f"{step}/{i}",
                    size=settings.group_size,
                    seed=seed_of(self.seed, "train", step),
                )
                for i, task in enumerate(self._tasks_of(step))
            )
        )

    def _tasks_of(self, step: int) -> list[Task]:
        """Tasks in an order shuffled anew each epoch; a function of the seed and the step alone."""
        count = self.policy.settings.num_prompts
        return [self.tasks[i] for i in shuffled(len(self.tasks), step * count, count, seed=self.seed)]


def shuffled(size: int, start: int, count: int, *, seed: int) -> list[int]:
    """Places start..start+count-1 of an endless sequence of indices below `size`, each epoch a permutation of its
    own."""
    places = [divmod(place, size) for place in range(start, start + count)]
    orders = {}
    for epoch in {epoch for epoch, _ in places}:
        orders[epoch] = list(range(size))
        random.Random(seed_of(seed, "order", epoch)).shuffle(orders[epoch])
    return [orders[epoch][offset] for epoch, offset in places]
