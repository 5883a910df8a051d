"""The collector: a step's groups of trajectories, sampled concurrently, admitted by the max_lag gate.

In: tasks, a policy, a step's number. Out: groups, and with dynamic sampling those that were left out. All of it is a
function of (weights, tasks, seed, step), and of nothing that earlier steps did.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from lockstep.rollout.concurrency import cancelled, together
from lockstep.rollout.environment import Environment
from lockstep.rollout.trajectory import Attempt, Policy, Rollout, seed_of
from lockstep.types import Group, InvariantError, Task, Trajectory, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A step's groups, in the order in which their tasks were taken.

    rejected: groups without a signal that others replaced. rounds: how often tasks were taken, the first time included.
    message: why there are fewer groups than wanted, or none with a signal; one line.
    """

    groups: list[Group]
    rejected: list[Group]
    rounds: int
    message: str | None = None


async def collect_group(
    policy: Policy,
    environment: Environment,
    task: Task,
    *,
    group_id: str,
    size: int,
    seed: int,
    greedy: bool = False,
) -> Group:
    """`size` trajectories on one task, and with `greedy` a baseline at temperature 0 beside them. Each is a function of
    (weights, task, seed, its number in the group)."""
    attempts = [Attempt(policy, environment, task, f"{group_id}/{i}", seed_of(seed, task.id, i)) for i in range(size)]
    if greedy:
        acting = dataclasses.replace(policy, temperature=0.0)
        seed = seed_of(seed, task.id, "greedy")
        attempts.append(Attempt(acting, environment, task, f"{group_id}/greedy", seed))
    done = await together(attempt.run() for attempt in attempts)
    return Group(task=task, trajectories=tuple(done[:size]), baseline=done[size] if greedy else None)


def has_signal(group: Group) -> bool:
    """Whether the rewards of the group's unmasked trajectories differ: at least two are needed. Its baseline has no
    say."""
    return len(set(_rewards(group))) > 1


class Collector:
    """Groups for step after step. Step s may be sampled as soon as the engine's weights are at version s - max_lag or
    newer; with max_lag 0 that is after the update of the step before.

    With rollout.max_refills, DAPO's dynamic sampling (arXiv:2503.14476, eq. 11): a group without a signal is replaced
    by one on another task. As in verl and NeMo-RL the replacing is bounded; other than there, a further round takes no
    more tasks than groups are missing, so that there is no surplus, and going short is no error. greedy: every group
    has a baseline.
    """

    def __init__(
        self, policy: Policy, environment: Environment, tasks: Sequence[Task], *, seed: int, greedy: bool = False
    ) -> None:
        wanted = policy.settings.num_prompts
        if len(tasks) < wanted:
            raise UserError(
                f"rollout.num_prompts={wanted}: the environment has {len(tasks)} training tasks, and no step takes one "
                "twice; lower it or give more tasks"
            )
        self.policy, self.environment, self.tasks, self.seed, self.greedy = policy, environment, tasks, seed, greedy
        self._pending: dict[int, asyncio.Task[Collected]] = {}

    async def collect(self, step: int, num_steps: int) -> Collected:
        """What `step` trains on; starts sampling for later steps that the gate admits. At the last refill it goes on
        with the groups that have a signal, and with all groups when none has. Raises InvariantError for tokens older
        than max_lag; whatever it raises, nothing is left sampling."""
        for s in range(step, min(step + self.policy.settings.max_lag, num_steps - 1) + 1):
            if s not in self._pending:
                self._pending[s] = asyncio.create_task(self._sample(s))
        try:
            collected = await self._pending.pop(step)
            for group in (*collected.groups, *collected.rejected):
                for trajectory in (*group.trajectories, *([group.baseline] if group.baseline else [])):
                    self._check_lag(step, trajectory)
        except BaseException:
            await self.close()
            raise
        return collected

    async def close(self) -> None:
        """Cancel what was begun for later steps, and wait until its environments are closed."""
        pending = list(self._pending.values())
        self._pending.clear()
        await cancelled(pending)

    def _check_lag(self, step: int, trajectory: Trajectory) -> None:
        max_lag = self.policy.settings.max_lag
        for turn in trajectory.turns:
            if not step - max_lag <= turn.weights_version <= step:
                raise InvariantError(
                    f"trajectory {trajectory.id} has tokens of weights version {turn.weights_version}, "
                    f"but step {step} with rollout.max_lag={max_lag} admits {max(0, step - max_lag)}..{step}"
                )

    async def _sample(self, step: int) -> Collected:
        settings, tasks = self.policy.settings, self._tasks_of(step)
        groups = await self._round(step, list(islice(tasks, settings.num_prompts)), first=0)
        if settings.max_refills == 0:
            return Collected(groups=groups, rejected=[], rounds=1)
        rounds, kept = 1, list(filter(has_signal, groups))
        while rounds <= settings.max_refills and (taken := list(islice(tasks, settings.num_prompts - len(kept)))):
            groups += await self._round(step, taken, first=len(groups))
            rounds, kept = rounds + 1, list(filter(has_signal, groups))
        message = None
        if len(kept) < settings.num_prompts:
            all_tried = len(groups) == len(self.tasks)
            message = shortage(groups, settings, rounds=rounds, all_tried=all_tried)
        if not kept:
            return Collected(groups=groups, rejected=[], rounds=rounds, message=message)
        rejected = [group for group in groups if not has_signal(group)]
        return Collected(groups=kept, rejected=rejected, rounds=rounds, message=message)

    async def _round(self, step: int, tasks: Sequence[Task], *, first: int) -> list[Group]:
        """Groups on these tasks, all at once; the first is number `first` of the step."""
        return await together(
            collect_group(
                self.policy,
                self.environment,
                task,
                group_id=f"{step}/{first + i}",
                size=self.policy.settings.group_size,
                seed=seed_of(self.seed, "train", step),
                greedy=self.greedy,
            )
            for i, task in enumerate(tasks)
        )

    def _tasks_of(self, step: int) -> Iterator[Task]:
        """Every task once, in the order in which the step takes them: its own places in an order shuffled anew each
        epoch, then the others, shuffled for this step alone. A function of the seed and the step."""
        size, count = len(self.tasks), self.policy.settings.num_prompts

        def places() -> Iterator[int]:
            yield from shuffled(size, step * count, count, seed=self.seed)
            yield from shuffled(size, 0, size, seed=seed_of(self.seed, "refill", step))

        taken: set[int] = set()
        for place in places():
            if place not in taken:
                taken.add(place)
                yield self.tasks[place]


def shortage(groups: Sequence[Group], settings: Rollout, *, rounds: int, all_tried: bool) -> str:
    """What was found when too few of the groups had a signal, and what to do about it; one line."""
    without = [_rewards(group) for group in groups if not has_signal(group)]
    rewards = [reward for group in groups for reward in _rewards(group)]
    found = (
        f"{len(groups) - len(without)} of {settings.num_prompts} groups have a signal after round {rounds} "
        f"({len(groups)} tasks)"
    )
    if not rewards:
        error = " ".join(str(groups[0].trajectories[0].error).split())
        return f"{found}: every trajectory is masked; the first says: {error}"
    lowest, highest = min(rewards), max(rewards)
    num_low, num_high = (sum(len(r) > 1 and r[0] == reward for r in without) for reward in (lowest, highest))
    equal = f"in {num_low} all rewards are {lowest:g}, the lowest seen"
    if lowest < highest:
        equal += f", and in {num_high} they are {highest:g}, the highest"
    masked = sum(len(r) < 2 for r in without)
    other = "easier or harder" if num_low == num_high else "easier" if num_low > num_high else "harder"
    more = "more tasks (all were tried)" if all_tried else f"a higher rollout.max_refills ({settings.max_refills})"
    return (
        f"{found}; {equal}; {masked} have fewer than 2 unmasked trajectories; mean reward "
        f"{sum(rewards) / len(rewards):.3g}; use {other} tasks, a larger rollout.group_size "
        f"({settings.group_size}) or {more}"
    )


def shuffled(size: int, start: int, count: int, *, seed: int) -> list[int]:
    """Places start..start+count-1 of an endless sequence of indices below `size`, each epoch a permutation of its
    own."""
    places = [divmod(place, size) for place in range(start, start + count)]
    orders = {}
    for epoch in {epoch for epoch, _ in places}:
        orders[epoch] = list(range(size))
        random.Random(seed_of(seed, "order", epoch)).shuffle(orders[epoch])
    return [orders[epoch][offset] for epoch, offset in places]


def _rewards(group: Group) -> list[float]:
    return [t.reward for t in group.trajectories if t.error is None]
