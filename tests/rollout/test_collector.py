"""Groups of a step: which tasks, in which order, how many rounds, and what is left when something breaks. Scripted."""

import asyncio
import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.engine.engine import Completion, EngineError
from lockstep.rollout.collector import Collected, Collector, collect_group, has_signal, shortage, shuffled
from lockstep.rollout.environment import Start, Step
from lockstep.rollout.renderer import Parsed
from lockstep.rollout.trajectory import Policy, Rollout, seed_of
from lockstep.types import Group, InvariantError, Message, Task, Trajectory, UserError

SEED = 7


class Renderer:
    stop_token_ids = (1,)

    def start(self, messages, tools):
        return (int(messages[0].content),)

    def parse(self, action):
        return Parsed(messages=(Message(role="assistant", content=str(action[0])),))


class Engine:
    """Says, as a function of prompt and seed alone, one number below 1000; 0 at temperature 0."""

    def __init__(self, version=0):
        self.version, self.prompts, self.samplings = version, [], []

    @property
    def weights_version(self):
        return self.version

    async def generate(self, prompt, sampling):
        self.prompts.append(tuple(prompt))
        self.samplings.append(sampling)
        await asyncio.sleep(0)
        token = seed_of(tuple(prompt), sampling.seed) % 1000 if sampling.temperature else 0
        return Completion(tokens=(token,), logprobs=(-1.0,), weights_version=self.version, stop_reason="stop")


class Environment:
    """One action a trajectory. The n-th group to start has the n-th letter's rewards: 0 or 1 for all; m(ixed): 0, 1, 0
    and so on; h(alf masked): all but the first are; e(rror): all are. Without a plan an even action is worth 1.

    rounds: how many trajectories start at once; each waits for the others of its round.
    """

    def __init__(self, plan=None, *, siblings=2, rounds=()):
        self.plan, self.siblings, self.log, self.started, self.open = plan, siblings, [], [], 0
        self.barriers = [barrier for barrier in map(asyncio.Barrier, rounds) for _ in range(barrier.parties)]

    async def start(self, task):
        number = len(self.started)
        self.started.append(task.id)
        self.open += 1
        if self.barriers:
            await self.barriers[number].wait()
        return Start(messages=task.messages, state=number)

    async def step(self, state, action):
        return Step(done=True)

    async def reward(self, state, messages, truncated):
        if self.plan is None:
            return {"even": float(int(messages[-1].content) % 2 == 0)}
        group, sibling = divmod(state, self.siblings)
        kind = self.plan[group]
        if kind == "e" or (kind == "h" and sibling):
            raise ValueError(f"broken\nin {group}")
        return {"plan": sibling % 2 if kind == "m" else float(kind == "1")}

    async def close(self, state):
        self.open -= 1


def tasks_of(count):
    return [Task(id=f"t{i}", messages=(Message(role="user", content=str(1000 + i)),)) for i in range(count)]


def policy_of(engine=None, **settings):
    settings = {"num_prompts": 4, "group_size": 2, "environment_timeout_s": 5.0} | settings
    return Policy(engine=engine or Engine(), renderer=Renderer(), settings=Rollout(**settings), temperature=0.5)


def collector_of(plan=None, *, num_tasks=20, engine=None, seed=SEED, greedy=False, rounds=(), **settings):
    policy = policy_of(engine, **settings)
    environment = Environment(plan, siblings=policy.settings.group_size + greedy, rounds=rounds)
    return Collector(policy, environment, tasks_of(num_tasks), seed=seed, greedy=greedy)


def collect(plan=None, *, step=0, **options):
    """One step's Collected, and the collector."""
    collector = collector_of(plan, **options)
    collector.policy.engine.version = step
    return asyncio.run(collector.collect(step, 1000)), collector


def trajectory(reward=0.0, error=None):
    stop_reason = "environment_error" if error else "done"
    return Trajectory(
        id="x",
        task=tasks_of(1)[0],
        turns=(),
        messages=(),
        reward=reward,
        reward_parts={},
        stop_reason=stop_reason,
        events={},
        error=error,
    )


def group(*rewards, baseline=None):
    """A group by its rewards, None for one that is masked."""
    done = tuple(trajectory(error="down") if reward is None else trajectory(reward) for reward in rewards)
    return Group(task=done[0].task, trajectories=done, baseline=baseline)


def ids(groups):
    return [g.trajectories[0].id.rpartition("/")[0] for g in groups]


def task_ids(groups):
    return [g.task.id for g in groups]


# Signal


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ((0.0, 1.0), True),
        ((0.0, 0.0, 0.25), True),
        ((1.0, 1.0, 1.0), False),
        ((0.0,), False),
        ((1.0, None), False),
        ((1.0, None, 1.0), False),
        ((1.0, None, 0.5), True),
        ((None, None), False),
    ],
)
def test_a_signal_is_two_unmasked_rewards_that_differ(rewards, expected):
    assert has_signal(group(*rewards)) is expected


def test_a_masked_trajectory_s_reward_has_no_say():
    masked = dataclasses.replace(trajectory(error="down"), reward=1.0)
    assert not has_signal(Group(task=masked.task, trajectories=(trajectory(0.0), trajectory(0.0), masked)))


def test_the_baseline_has_no_say():
    assert not has_signal(group(1.0, 1.0, baseline=trajectory(0.0)))


# Groups


def test_a_group_has_its_siblings_in_order_and_each_its_seed():
    engine = Engine()
    task = tasks_of(3)[2]
    found = asyncio.run(collect_group(policy_of(engine), Environment(), task, group_id="5/1", size=3, seed=9))
    assert [t.id for t in found.trajectories] == ["5/1/0", "5/1/1", "5/1/2"]
    assert [s.seed for s in engine.samplings] == [seed_of(seed_of(9, "t2", i), 0) for i in range(3)]
    assert {s.temperature for s in engine.samplings} == {0.5}
    assert (found.task, found.baseline) == (task, None)


def test_a_greedy_baseline_runs_beside_the_siblings_and_changes_none_of_them():
    engine, environment = Engine(), Environment(rounds=[3])
    task = tasks_of(1)[0]
    arguments = {"group_id": "5/1", "size": 2, "seed": 9}

    async def both():
        with_baseline = await collect_group(policy_of(engine), environment, task, **arguments, greedy=True)
        return with_baseline, await collect_group(policy_of(), Environment(), task, **arguments)

    found, without = asyncio.run(both())
    assert found.trajectories == without.trajectories
    assert found.baseline.id == "5/1/greedy"
    assert found.baseline.turns[0].action == (0,)
    seeds = {s.seed: s.temperature for s in engine.samplings}
    assert seeds == {seed_of(seed_of(9, "t0", i), 0): 0.0 if i == "greedy" else 0.5 for i in (0, 1, "greedy")}
    assert len({s.max_tokens for s in engine.samplings}) == 1


def test_a_masked_baseline_is_kept_as_it_is():
    """Siblings 0 and 1 are fine; the third to start is the baseline, which the plan's 'e' of the next group masks."""
    environment = Environment("1e", siblings=2)
    task = tasks_of(1)[0]
    found = asyncio.run(collect_group(policy_of(), environment, task, group_id="0/0", size=2, seed=0, greedy=True))
    assert found.baseline.error == "Environment.reward raised ValueError: broken\nin 1"
    assert [t.error for t in found.trajectories] == [None, None]


# A step as it comes


def test_without_refills_groups_are_taken_as_they_come():
    collected, collector = collect("0e1m")
    assert collected.rejected == [] and collected.rounds == 1 and collected.message is None
    assert ids(collected.groups) == ["0/0", "0/1", "0/2", "0/3"]
    assert task_ids(collected.groups) == [f"t{i}" for i in shuffled(20, 0, 4, seed=SEED)]
    assert [[t.reward for t in g.trajectories] for g in collected.groups] == [[0, 0], [0, 0], [1, 1], [0, 1]]
    assert len(collector.environment.started) == 8


def test_a_step_takes_its_own_places_of_the_order():
    collected, _ = collect(step=3)
    assert ids(collected.groups) == ["3/0", "3/1", "3/2", "3/3"]
    assert task_ids(collected.groups) == [f"t{i}" for i in shuffled(20, 12, 4, seed=SEED)]


def test_seeds_are_those_of_the_step_and_the_task():
    _, collector = collect(step=3)
    first = shuffled(20, 12, 1, seed=SEED)[0]
    step_seed = seed_of(SEED, "train", 3)
    expected = [seed_of(seed_of(step_seed, f"t{first}", i), 0) for i in range(2)]
    assert [s.seed for s in collector.policy.engine.samplings[:2]] == expected
    seeds = [s.seed for step in range(3) for s in collect(step=step)[1].policy.engine.samplings]
    assert len(set(seeds)) == len(seeds) == 24


def test_groups_of_one_are_collected():
    """For algorithms with a critic, or with a greedy baseline."""
    collected, _ = collect("01e0", group_size=1)
    assert [len(g.trajectories) for g in collected.groups] == [1, 1, 1, 1]
    assert collected.message is None
    collected, collector = collect("mmmm", group_size=1, greedy=True)
    assert [(g.trajectories[0].reward, g.baseline.reward) for g in collected.groups] == [(0, 1)] * 4
    assert [s.temperature for s in collector.policy.engine.samplings] == [0.5, 0.0] * 4


def test_all_of_a_step_runs_at_once():
    """8 trajectories and 4 baselines that would wait for each other for ever if one had to end before another began."""
    collected, _ = collect(greedy=True, rounds=[12])
    assert {t.stop_reason for g in collected.groups for t in (*g.trajectories, g.baseline)} == {"done"}


# Dynamic sampling


def test_groups_without_a_signal_are_replaced_and_kept_as_rejected():
    """Round 1 m0m1, round 2 (2 missing) em, round 3 (1 missing) m."""
    collected, collector = collect("m0m1emm", max_refills=5)
    assert ids(collected.groups) == ["0/0", "0/2", "0/5", "0/6"]
    assert ids(collected.rejected) == ["0/1", "0/3", "0/4"]
    assert (collected.rounds, collected.message) == (3, None)
    assert len(collector.environment.started) == 14


def test_a_round_takes_what_is_missing_all_at_once():
    """Each round's trajectories wait for each other: 4 groups, then 3, then 2, of 2 trajectories and a baseline."""
    collected, _ = collect("0m0100mmm", max_refills=2, greedy=True, rounds=[12, 9, 6])
    assert ids(collected.groups) == ["0/1", "0/6", "0/7", "0/8"]
    assert collected.rounds == 3
    everyone = [t for g in (*collected.groups, *collected.rejected) for t in (*g.trajectories, g.baseline)]
    assert {t.stop_reason for t in everyone} == {"done"}


def test_a_full_step_needs_no_refill():
    collected, collector = collect("mmmm", max_refills=3)
    assert (len(collected.groups), collected.rejected, collected.rounds, collected.message) == (4, [], 1, None)
    assert len(collector.environment.started) == 8


def test_refills_are_tasks_that_the_step_has_not_had_and_differ_from_step_to_step():
    refills = []
    for step in range(4):
        collected, _ = collect("0" * 20, step=step, max_refills=10)
        assert sorted(task_ids(collected.groups)) == sorted(f"t{i}" for i in range(20))
        own = shuffled(20, 4 * step, 4, seed=SEED)
        others = [i for i in shuffled(20, 0, 20, seed=seed_of(SEED, "refill", step)) if i not in own]
        assert task_ids(collected.groups) == [f"t{i}" for i in (*own, *others)]
        refills.append(tuple(others[:4]))
    assert len(set(refills)) == 4


def test_a_step_is_a_function_of_seed_and_step():
    """A fresh collector at step k gives what one gives that ran from 0, and rounds were needed on the way."""

    async def run(start, max_lag=0):
        engine = Engine(start)
        collector = collector_of(engine=engine, num_tasks=11, max_refills=2, max_lag=max_lag)
        found = []
        for step in range(start, 6):
            found.append(await collector.collect(step, 6))
            engine.version = step + 1
        return found

    def plain(collected):
        """Without the version, which with max_lag is that of the time when it was sampled."""
        groups = [
            [(t.id, t.task, t.reward, [turn.action for turn in t.turns]) for t in g.trajectories]
            for g in (*collected.groups, *collected.rejected)
        ]
        return groups, collected.rounds, collected.message

    whole = asyncio.run(run(0))
    assert asyncio.run(run(0)) == whole
    for start in range(1, 6):
        assert asyncio.run(run(start)) == whole[start:]
    ahead = asyncio.run(run(0, max_lag=2))
    assert [plain(collected) for collected in ahead] == [plain(collected) for collected in whole]
    assert max(collected.rounds for collected in whole) == 3
    assert min(collected.rounds for collected in whole) < 3


def test_the_seed_decides():
    first, second = (collect(seed=seed)[0] for seed in (1, 2))
    assert task_ids(first.groups) != task_ids(second.groups)


@given(
    num_tasks=st.integers(1, 12),
    num_prompts=st.integers(1, 6),
    max_refills=st.integers(0, 4),
    step=st.integers(0, 30),
    letters=st.text("01mhe", min_size=12, max_size=12),
)
def test_what_a_step_holds(num_tasks, num_prompts, max_refills, step, letters):
    num_prompts = min(num_prompts, num_tasks)
    options = {"num_tasks": num_tasks, "num_prompts": num_prompts, "max_refills": max_refills, "group_size": 3}
    collected, collector = collect(letters, step=step, **options)
    everyone = [*collected.groups, *collected.rejected]
    assert len(set(task_ids(everyone))) == len(everyone)  # no task twice
    assert sorted(int(i.split("/")[1]) for i in ids(everyone)) == list(range(len(everyone)))
    assert ids(collected.groups) == sorted(ids(collected.groups), key=lambda i: int(i.split("/")[1]))
    assert not any(map(has_signal, collected.rejected))
    assert len(collector.environment.started) == 3 * len(everyone)
    assert 1 <= collected.rounds <= 1 + max_refills
    signals = sum(map(has_signal, collected.groups))
    assert signals == len(collected.groups) or (max_refills == 0 or signals == 0)
    if max_refills:
        assert signals <= num_prompts  # no surplus
        assert (collected.message is None) == (signals == num_prompts)
        assert signals == num_prompts or collected.rounds == 1 + max_refills or len(everyone) == num_tasks
    else:
        assert (len(collected.groups), collected.rejected, collected.message) == (num_prompts, [], None)


@given(size=st.integers(1, 14), count=st.integers(1, 14), seed=st.integers(0, 3))
def test_a_step_across_two_epochs_has_no_task_twice_and_no_epoch_misses_one(size, count, seed):
    count = min(size, count)
    collector = collector_of(num_tasks=size, num_prompts=count, seed=seed)
    steps = [[t.id for t in itertools.islice(collector._tasks_of(step), count)] for step in range(40)]
    for step, taken in enumerate(steps):
        assert len(set(taken)) == count
        if (step * count) // size == ((step + 1) * count - 1) // size:  # wholly within an epoch
            assert taken == [f"t{i}" for i in shuffled(size, step * count, count, seed=seed)]
    for epoch in range(40 * count // size):
        within = steps[epoch * size // count : -(-(epoch + 1) * size // count)]
        assert {task for taken in within for task in taken} == {f"t{i}" for i in range(size)}


def test_each_epoch_is_a_permutation_of_its_own():
    order = shuffled(10, 0, 30, seed=3)
    epochs = [order[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(10))
    assert shuffled(10, 8, 5, seed=3) == order[8:13]
    assert shuffled(10, 0, 30, seed=4) != order


# Going short


def test_at_the_last_refill_it_goes_on_with_what_it_has_and_says_so():
    """Rounds m000, 011, 001: all wrong 6 times, all right 3 times; 1 + 6 of 20 rewards are 1."""
    collected, _ = collect("m000011001", step=5, max_refills=2)
    assert ids(collected.groups) == ["5/0"]
    assert len(collected.rejected) == 9
    assert collected.rounds == 3
    assert collected.message == (
        "1 of 4 groups have a signal after round 3 (10 tasks); in 6 all rewards are 0, the lowest seen, and in "
        "3 they are 1, the highest; 0 have fewer than 2 unmasked trajectories; mean reward 0.35; use easier tasks, a "
        "larger rollout.group_size (2) or a higher rollout.max_refills (2)"
    )


def test_masked_groups_are_counted_apart():
    """m11, then hh: 2 + 2 + 2 + 1 + 1 unmasked rewards, of which 1 + 2 + 2 + 0 + 0 are 1."""
    collected, _ = collect("m11hh", max_refills=1, num_prompts=3, num_tasks=9)
    assert collected.message == (
        "1 of 3 groups have a signal after round 2 (5 tasks); in 0 all rewards are 0, the lowest seen, and in "
        "2 they are 1, the highest; 2 have fewer than 2 unmasked trajectories; mean reward 0.625; use harder tasks, a "
        "larger rollout.group_size (2) or a higher rollout.max_refills (1)"
    )


def test_without_any_signal_all_groups_are_given_for_the_caller_to_decide():
    collected, _ = collect("1" * 8, max_refills=1)
    assert ids(collected.groups) == [f"0/{i}" for i in range(8)]
    assert collected.rejected == []
    assert collected.message == (
        "0 of 4 groups have a signal after round 2 (8 tasks); in 8 all rewards are 1, the lowest seen; 0 have "
        "fewer than 2 unmasked trajectories; mean reward 1; use easier or harder tasks, a larger rollout.group_size "
        "(2) or a higher rollout.max_refills (1)"
    )


def test_when_everything_is_masked_it_says_what_the_first_said():
    collected, _ = collect("e" * 8, max_refills=1)
    assert len(collected.groups) == 8
    assert collected.message == (
        "0 of 4 groups have a signal after round 2 (8 tasks): every trajectory is masked; the first says: "
        "Environment.reward raised ValueError: broken in 0"
    )


def test_when_every_task_was_tried_more_rounds_are_no_advice():
    collected, _ = collect("m" + "0" * 5, num_tasks=6, max_refills=9)
    assert (collected.rounds, len(collected.rejected)) == (2, 5)
    assert collected.message.startswith("1 of 4 groups have a signal after round 2 (6 tasks); ")
    assert collected.message.endswith("a larger rollout.group_size (2) or more tasks (all were tried)")
    collected, _ = collect("0" * 4, num_tasks=4, max_refills=9)
    assert (collected.rounds, len(collected.groups)) == (1, 4)


def test_rewards_between_the_extremes_are_neither():
    found = [group(0.0, 1.0), group(0.5, 0.5), group(0.5, 0.5), group(1.0, 1.0)]
    said = shortage(found, Rollout(num_prompts=4, group_size=2, max_refills=1), rounds=2, all_tried=False)
    assert "; in 0 all rewards are 0, the lowest seen, and in 1 they are 1, the highest; " in said
    assert "mean reward 0.625; use harder tasks" in said
    assert "\n" not in said


# The max_lag gate


def lagging(max_lag, num_steps, versions, **options):
    """Collect all steps; the engine is at versions[step] when step `step` is asked for. Returns what was collected and
    how many trajectories had started after each."""

    async def run():
        engine = Engine()
        collector = collector_of(engine=engine, max_lag=max_lag, **options)
        found, started = [], []
        for step in range(num_steps):
            engine.version = versions[step]
            found.append(await collector.collect(step, num_steps))
            for _ in range(50):  # whatever was begun for later steps ends
                await asyncio.sleep(0)
            started.append(len(collector.environment.started))
        assert collector._pending == {}
        return found, started

    return asyncio.run(run())


@pytest.mark.parametrize(("max_lag", "started"), [(0, [8, 16, 24, 32]), (1, [16, 24, 32, 32]), (9, [32] * 4)])
def test_later_steps_begin_as_soon_as_the_gate_admits_them_and_only_once(max_lag, started):
    found, began = lagging(max_lag, 4, range(4))
    assert began == started
    versions = [{turn.weights_version for g in c.groups for t in g.trajectories for turn in t.turns} for c in found]
    assert versions == [{max(0, step - max_lag)} for step in range(4)]
    assert [ids(c.groups)[0] for c in found] == ["0/0", "1/0", "2/0", "3/0"]


def test_refills_run_ahead_too():
    """Both steps' rounds, begun together: m000 and m000, then 3 more each, and 2 more each."""
    found, began = lagging(1, 2, [0, 1], plan="m000m000" + "m00m00" + "mmmm", max_refills=2)
    assert began == [36, 36]
    assert [(len(c.groups), len(c.rejected), c.rounds, c.message) for c in found] == [(4, 5, 3, None)] * 2


@pytest.mark.parametrize(("versions", "admitted"), [([0, 0], "1..1"), ([0, 2], "1..1"), ([1], "0..0")])
def test_tokens_of_other_weights_stop_the_run(versions, admitted):
    with pytest.raises(InvariantError, match=rf"trajectory {len(versions) - 1}/0/0 .*max_lag=0 admits {admitted}$"):
        lagging(0, len(versions), versions)


@pytest.mark.parametrize("part", ["rejected", "baseline"])
def test_tokens_that_are_not_trained_on_are_checked_too(part):
    class Old(Engine):
        """Samples with version 2, but what comes to be rejected, or is greedy, with version 1."""

        async def generate(self, prompt, sampling):
            odd = len(self.prompts) in (2, 3) if part == "rejected" else sampling.temperature == 0
            completion = await super().generate(prompt, sampling)
            return dataclasses.replace(completion, weights_version=1 if odd else 2)

    async def run():
        collector = collector_of("m0m", engine=Old(2), greedy=part == "baseline", num_prompts=2, max_refills=1)
        await collector.collect(2, 3)

    with pytest.raises(InvariantError, match="2/0/greedy" if part == "baseline" else "2/1/0"):
        asyncio.run(run())


# Whatever breaks, and whoever leaves early


def within_deadline(coroutine):
    """What would wait for ever fails instead."""

    async def waited():
        async with asyncio.timeout(10):
            await coroutine

    asyncio.run(waited())


class Blocked(Engine):
    """Waits for ever; the call of number `fail_when` raises `error`."""

    def __init__(self, *, fail_when=None, error=None):
        super().__init__()
        self.fail_when, self.error, self.cancelled = fail_when, error, 0

    async def generate(self, prompt, sampling):
        self.prompts.append(tuple(prompt))
        if len(self.prompts) == self.fail_when:
            raise self.error
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("unreachable")


def others():
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_cancelling_a_step_cancels_everything_it_and_later_steps_began():
    async def run():
        engine = Blocked()
        collector = collector_of(engine=engine, max_lag=1, greedy=True)
        task = asyncio.create_task(collector.collect(0, 10))
        while len(engine.prompts) < 24:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (engine.cancelled, collector.environment.open, collector._pending) == (24, 0, {})
        assert others() == set()

    within_deadline(run())


def test_a_bug_is_raised_as_it_is_and_nothing_is_left_running():
    async def run():
        error = ZeroDivisionError("a bug")
        engine = Blocked(fail_when=3, error=error)
        collector = collector_of(engine=engine, max_lag=1)
        with pytest.raises(ZeroDivisionError) as found:
            await collector.collect(0, 10)
        assert found.value is error
        assert collector.environment.open == 0
        assert collector._pending == {}
        assert others() == set()

    within_deadline(run())


def test_an_invariant_that_breaks_stops_what_was_begun_for_later_steps():
    class Ahead(Blocked):
        """Answers the first 8 calls, with tokens of another version."""

        async def generate(self, prompt, sampling):
            if len(self.prompts) < 8:
                return dataclasses.replace(await Engine.generate(self, prompt, sampling), weights_version=5)
            return await super().generate(prompt, sampling)

    async def run():
        engine = Ahead()
        collector = collector_of(engine=engine, max_lag=1)
        with pytest.raises(InvariantError):
            await collector.collect(0, 10)
        assert (engine.cancelled, collector.environment.open) == (8, 0)
        assert others() == set()

    within_deadline(run())


def test_a_failure_of_a_step_ahead_is_raised_when_its_turn_comes():
    class Fails(Engine):
        async def generate(self, prompt, sampling):
            if len(self.prompts) >= 8:
                raise ZeroDivisionError("a bug")
            return await super().generate(prompt, sampling)

    async def run():
        collector = collector_of(engine=Fails(), max_lag=1)
        assert len((await collector.collect(0, 2)).groups) == 4
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await collector.collect(1, 2)

    within_deadline(run())


def test_close_stops_the_steps_ahead_and_a_step_may_be_asked_for_again():
    async def run():
        engine = Engine()
        collector = collector_of(engine=engine, max_lag=2)
        first = await collector.collect(0, 10)
        assert sorted(collector._pending) == [1, 2]
        await collector.close()
        assert collector._pending == {} and others() == set()
        assert collector.environment.open == 0
        assert await collector.collect(0, 1) == first

    within_deadline(run())


def test_an_engine_that_is_down_masks_the_step_and_raises_nothing():
    class Down(Engine):
        async def generate(self, prompt, sampling):
            raise EngineError("died")

    collected, _ = collect(engine=Down(), max_refills=1)
    assert {t.stop_reason for g in collected.groups for t in g.trajectories} == {"engine_error"}
    assert collected.message.endswith("every trajectory is masked; the first says: died")


@pytest.mark.parametrize("num_tasks", [0, 3])
def test_a_step_wants_as_many_tasks_as_it_has_groups(num_tasks):
    with pytest.raises(UserError) as error:
        collector_of(num_tasks=num_tasks)
    assert str(error.value) == (
        f"rollout.num_prompts=4: the environment has {num_tasks} training tasks, and no step takes one twice; lower it "
        "or give more tasks"
    )
    assert isinstance(collector_of(num_tasks=4), Collector)


def test_what_was_collected_is_a_value():
    assert Collected(groups=[], rejected=[], rounds=1) == Collected(groups=[], rejected=[], rounds=1, message=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Collected(groups=[], rejected=[], rounds=1).rounds = 2
