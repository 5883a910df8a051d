"""Tasksets of verifiers 0.4 that fail, hang, lie or are cut short: each costs one trajectory, and leaves nothing."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from both_sides import JsonRenderer, Says, encoded, lockstep_trajectory

from lockstep.engine.engine import EngineError
from lockstep.engine.scripted import ScriptedEngine
from lockstep.environments.verifiers_adapter.tasksets import home
from lockstep.rollout.trajectory import Attempt, Policy, Rollout
from lockstep.types import UserError

GO_ON, STOP = Says(thought="hm", text="well"), Says(text="right, stop")


def does(what="talks", **taskset):
    return {"agent": {"harness": {"id": "own_tasksets", "does": what}}, "taskset": taskset}


def fails(what):
    return does("talks", task={"fails": what})


def first(environment, actions, **limits):
    return lockstep_trajectory(environment, environment.tasks("train")[0], actions, **limits)[0]


@pytest.mark.parametrize(
    ("args", "stop_reason", "said"),
    [
        (does("rewrites"), "environment_error", "another conversation than the one so far"),
        (does("summarises"), "environment_error", "another conversation than the one so far"),
        (does("repeats"), "environment_error", "answered an action with no message"),
        (does("speaks_for_it"), "environment_error", "with a message of the assistant's"),
        (does("asks_twice"), "environment_error", "asked its model again before it had an answer"),
        (does("demands"), "environment_error", "asks its model for log-probs, which Lockstep's cannot promise"),
        (does("changes_tools"), "environment_error", "changed its tools from ['twice'] to ['late']"),
        (does("custom_tool"), "environment_error", "offers the tool 'shell' of type 'custom'"),
        (does("shows_a_picture"), "environment_error", "a part of type 'image_url'"),
        (does("dies"), "environment_error", "HarnessError: harness 'own_tasksets': KeyError: 'board'"),
        (does("dies_loudly"), "environment_error", "the end"),
        (does() | {"id": "best-of-n", "n": 2}, "environment_error", "another conversation than the one so far"),
        (does("says_nothing"), "environment_error", "ended before it asked for an action"),
        (fails("at once"), "environment_error", "ended before it asked for an action (stop condition ['enough'])"),
        (fails("setup"), "environment_error", "TaskError: task setup: OSError: no board"),
        (fails("sandbox"), "infrastructure_error", "SandboxError: the sandbox went away"),
        (fails("finalize"), "environment_error", "TaskError: task finalize: OSError: no end"),
        (fails("reward"), "environment_error", "ZeroDivisionError: by zero"),
        (fails("nan"), "environment_error", "returned right=nan"),
        (does("once", task={"fails": "late"}, finalize_s=0.01), "environment_error", "was late (finalize_timeout)"),
    ],
)
def test_a_fault_masks_the_trajectory_and_says_why(own, args, stop_reason, said):
    trajectory = first(own(args), [GO_ON, STOP])
    assert trajectory.stop_reason == stop_reason
    assert said in trajectory.error and "\n" not in trajectory.error and len(trajectory.error) < 1000
    assert trajectory.reward == 0 and trajectory.reward_parts == {}
    assert "close_failed" not in trajectory.events
    assert own.log["launched"] == own.log["ended"] and own.log["setup"] >= 1
    assert not any(conversations(own(args)))


@pytest.mark.parametrize(("how", "stop_reason"), [("badly", "environment_error"), ("nowhere", "infrastructure_error")])
def test_servers_that_cannot_come_up_mask_and_are_tried_again(own, how, stop_reason):
    environment = own(does("talks", serves=how))
    for number in range(1, 3):
        trajectory = first(environment, [STOP])
        assert trajectory.stop_reason == stop_reason and own.log["served"] == number
        assert "serves its agents with cannot come up: " in trajectory.error and "no server" in trajectory.error


def conversations(environment):
    """What each event loop's stand-in for a model still holds."""
    seats = [serving._ready.result() for serving in environment._inner._serving.values()]
    return [seat.conversations for seat in seats]


def test_thoughts_need_not_be_repeated(own):
    trajectory = first(own(does("forgets")), [GO_ON, GO_ON])
    assert trajectory.error is None
    assert [m.content for m in trajectory.messages[2:]] == ["hm", "well", "go on", "hm", "well"]


def test_a_program_that_hangs_is_left_at_its_deadline(own):
    trajectory = first(own(does("hangs")), [GO_ON], environment_timeout_s=0.5)
    assert trajectory.stop_reason == "environment_error"
    assert "VerifiersEnvironment.step did not finish within 0.5 s" in trajectory.error
    assert own.log["ended"] == 1 and "close_failed" not in trajectory.events


def test_a_cancelled_trajectory_ends_its_program_and_all_its_processes(own):
    environment = own(does("runs_a_program"))

    async def run():
        policy = Policy(
            engine=ScriptedEngine([encoded(GO_ON.messages())]),
            renderer=JsonRenderer(),
            settings=Rollout(max_tokens=10**6, max_action_tokens=10**5),
            temperature=1.0,
        )
        attempt = asyncio.create_task(Attempt(policy, environment, environment.tasks("train")[0], "t", 0).run())
        while not (folder := started(own.traces)):
            await asyncio.sleep(0)
        assert len(running(folder)) >= 3
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        return folder, asyncio.all_tasks() - {asyncio.current_task()}

    folder, tasks = asyncio.run(run())
    assert tasks == set() and own.log["ended"] == 1
    assert_gone(folder)
    assert not Path(folder).exists()


LEAVES = """
import asyncio
from test_tasksets_faults import STOP, does, started
import own_tasksets
from lockstep.environments.verifiers import VerifiersEnvironment

async def main():
    environment = VerifiersEnvironment(id="own_tasksets", args=does("runs_a_program"), num_heldout=1)
    start = await environment.start(environment.tasks("train")[0])
    global kept
    kept = asyncio.ensure_future(environment.step(start.state, STOP.messages()))
    while not (folder := started(own_tasksets.TRACES)):
        await asyncio.sleep(0)
    print(folder, flush=True)

asyncio.new_event_loop().run_until_complete(main())
"""


def test_a_process_that_ends_in_the_middle_ends_the_programs(own):
    """Without a word to the environment: no close, no cancellation."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.stdout, done.stderr
    assert_gone(done.stdout.strip())


def started(traces):
    """The folder that the program of the first trace works in, once it runs."""
    if not traces or traces[0].agent.runtime is None or traces[0].agent.runtime.id is None:
        return None
    file = Path(traces[0].agent.runtime.id) / "started"
    text = file.read_text() if file.exists() else ""
    return text.strip() if text.endswith("\n") else None


def running(folder):
    """The processes that work in a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if os.readlink(link).removesuffix(" (deleted)") == folder:
                found.append(link.parent.name)
    return found


def assert_gone(folder):
    until = time.monotonic() + 10
    while left := running(folder):  # killed, and not yet gone
        assert time.monotonic() < until, left


def test_a_trajectory_whose_engine_failed_is_cleaned_up(own):
    trajectory = first(own(), [EngineError("gone")], engine_retries=0)
    assert trajectory.stop_reason == "engine_error" and "close_failed" not in trajectory.events
    assert own.log["ended"] == 1 and own.log["finalize"] == 0


def test_a_start_that_is_cancelled_is_cleaned_up(own):
    environment = own(does("hangs", task={"fails": "setup"}))
    task = environment.tasks("train")[0]
    reached = asyncio.Event

    async def run():
        import own_tasksets

        begun, loop = reached(), asyncio.get_running_loop()

        async def slow(self, trace, runtime):
            own.log["setup"] += 1
            loop.call_soon_threadsafe(begun.set)
            try:
                await asyncio.Event().wait()
            finally:
                own.log["ended"] += 1

        kept, own_tasksets.OwnTask.setup = own_tasksets.OwnTask.setup, slow
        try:
            start = asyncio.create_task(environment.start(task))
            await begun.wait()
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
        finally:
            own_tasksets.OwnTask.setup = kept

    asyncio.run(run())
    assert own.log == {"setup": 1, "ended": 1}
    assert not any(conversations(environment))


def test_a_malformed_action_is_between_lockstep_and_the_model(own):
    trajectory = first(own(), [b"broken", GO_ON, b"broken", STOP])
    assert trajectory.stop_reason == "done" and trajectory.reward == 1 + 0.5 * (1 + 2)
    assert trajectory.events["malformed/bad_header"] == 2
    assert [m.content for m in own.traces[0].messages[2:]] == ["well", "go on", "right, stop"]


def test_an_action_cut_by_its_length_is_judged_by_what_it_says(own):
    trajectory = first(own(does("once")), [b"right" * 20], max_action_tokens=5)
    assert trajectory.stop_reason == "length" and trajectory.error is None
    assert trajectory.reward_parts["right"] == 1 and trajectory.measures["cut"] == 1
    (trace,) = own.traces
    assert [call.finish_reason for call in trace.calls] == ["length"]
    assert trace.messages[-1].content == "right"


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_cut_action_that_does_not_end_it_is_answered_and_no_more_asked(own, stubborn):
    environment = own(does("goes_on_after_all" if stubborn else "talks"))
    trajectory = first(environment, [b"one", b"right" * 20], max_action_tokens=5)
    assert trajectory.stop_reason == "length" and trajectory.error is None
    assert trajectory.reward_parts["right"] == 1 and trajectory.measures["cut"] == 1
    (trace,) = own.traces
    assert [m.content for m in trace.messages[2:]] == ["one", "go on", "right"]
    assert trace.stop_condition == "max_total_tokens" and own.log["refused"] == stubborn
    assert own.log["finalize"] == own.log["ended"] == 1


def test_a_fault_counts_when_the_trajectory_is_cut_too(own):
    environment = own(does("asks_again_when_told"))

    async def run():
        start = await environment.start(environment.tasks("train")[0])
        own.log["told"] += 1
        while not own.log["refused"]:
            await asyncio.sleep(0)
        try:
            with pytest.raises(ValueError, match="asked its model again before it had an answer"):
                await environment.reward(start.state, start.messages, True)
        finally:
            await environment.close(start.state)

    asyncio.run(run())


def test_an_action_cut_in_a_call_makes_none(own):
    partial = Says(text="I call", calls=(("twice", '{"x": 1'),))
    action = encoded(partial.messages())
    trajectory = first(own(), [(*action, 32)], max_action_tokens=len(action))
    assert trajectory.stop_reason == "length" and trajectory.error is None and trajectory.events == {}
    assert own.traces[0].messages[-1].tool_calls is None and own.traces[0].messages[-1].content == "I call"


def test_a_turn_limit_of_lockstep_ends_it_before_the_next_action(own):
    trajectory = first(own(), [GO_ON, GO_ON], max_turns=2)
    assert trajectory.stop_reason == "max_turns" and trajectory.error is None
    assert trajectory.reward_parts == {"right": 0.0, "one": 0.5, "turns": 1.0}
    assert own.traces[0].is_truncated and own.log["finalize"] == 1


def test_a_prompt_too_long_for_lockstep_is_judged_without_an_action(own):
    trajectory = first(own(), [], max_tokens=1)
    assert trajectory.stop_reason == "length" and trajectory.error is None
    assert trajectory.reward_parts["turns"] == 0 and own.traces[0].num_turns == 0


def test_a_stop_of_its_own_ends_it_in_order(own):
    trajectory = first(own(), [GO_ON] * 4)
    assert trajectory.stop_reason == "done" and len(trajectory.turns) == 4
    assert own.traces[0].stop_condition == "enough" and trajectory.measures == {"cut": 0.0}


def test_an_agent_past_its_own_time_limit_is_done_and_judged(own):
    environment = own(does("talks", agent_s=0.5))

    async def run():
        start = await environment.start(environment.tasks("train")[0])
        await home().run(asyncio.wait({start.state._episode}))  # its limit passes while Lockstep samples
        step = await environment.step(start.state, STOP.messages())
        score = await environment.reward(start.state, start.messages, False)
        await environment.close(start.state)
        return step, score

    step, score = asyncio.run(run())
    assert step.done and own.traces[0].stop_condition == "agent_timeout"
    assert dict(score.parts) == {"right": 0.0, "one": 0.5, "turns": 0.0}


def test_trajectories_at_once_do_not_meet(own):
    environment = own(num_heldout=1)
    task = environment.tasks("train")[0]

    def actions(number):
        return [Says(calls=(("twice", f'{{"x": {number}}}'),)), Says(text=f"{number} stop")]

    async def run():
        def attempt(number):
            engine = ScriptedEngine([encoded(each.messages()) for each in actions(number)])
            settings = Rollout(max_tokens=10**6, max_action_tokens=10**5)
            policy = Policy(engine=engine, renderer=JsonRenderer(), settings=settings, temperature=1.0)
            return Attempt(policy, environment, task, str(number), number).run()

        return await asyncio.gather(*map(attempt, range(16)))

    for _ in range(2):  # in two event loops, one after the other
        for number, trajectory in enumerate(asyncio.run(run())):
            assert trajectory.error is None
            assert trajectory.messages[-2].content == f'twice of {{"x": {number}}}'
    assert own.log["launched"] == own.log["ended"] == 32
    assert [len(each) for each in conversations(environment)] == [0]
    assert {type(closer.__self__).__name__ for closer in home().closers} == {"Serving"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"agent": {"harness": {"id": "bash"}}}, "lets the model run commands on this machine (harness 'bash')"),
        ({"agent": {"harness": {"id": "terminus_2"}}}, "needs a container"),
        ({"agent": {"runtime": {"type": "docker"}}}, "agent 'agent' runs in a docker sandbox"),
        ({"agent": {"runtime": {"type": "prime"}}}, "agent 'agent' runs in a prime sandbox"),
        ({"agent": {"max_output_tokens": 9}}, "has max_output_tokens, and Lockstep keeps tokens"),
        ({"agent": {"retries": {"max_retries": 1}}}, "has retries"),
        ({"retries": {"max_retries": 1}}, "its retries would begin a trajectory again"),
        ({"interception": {"type": "elastic"}}, "interception 'elastic' is not Lockstep's"),
        (
            {"agent": {"client": {"type": "eval", "base_url": "http://judge/v1"}}},
            "0 of its agents (agent) are Lockstep's model",
        ),
        ({"id": "user-sim"}, "2 of its agents (assistant, user) are Lockstep's model"),
        ({"agent": {"nothing": 1}}, "nothing"),
        ({"taskset": {"num_rows": "many"}}, "num_rows"),
        ({"taskset": 3}, "TypeError"),
        ({"agent": 3}, "TypeError"),
    ],
)
def test_what_cannot_be_given_is_refused_in_one_line_before_a_run_begins(own, args, said):
    with pytest.raises(UserError, match=r"environment\.id='own_tasksets'") as raised:
        own(args).tasks("train")
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("taskset", "said"),
    [
        ({"broken": True}, "its tasks cannot be read: FileNotFoundError: no rows"),
        ({"image": "ubuntu"}, "task 0 needs the container image 'ubuntu'"),
        ({"picture": True}, "task 0: ValueError: a message has a part of type 'image_url'"),
        ({"num_rows": 1}, r"has 1 tasks: environment.num_heldout=1 would leave none to train on"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused_in_one_line(own, taskset, said):
    with pytest.raises(UserError) as raised:
        own({"taskset": taskset}).tasks("train")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_tasks_show_their_prompts_and_the_last_are_held_out(own):
    environment = own(num_tasks=2)
    (task,), (heldout,) = environment.tasks("train"), environment.tasks("heldout")
    assert [(m.role, m.content) for m in task.messages] == [("system", "Speak."), ("user", "0: Say it.")]
    assert task.data["row"]["prompt"] == "0: Say it." and heldout.data["number"] == 1


def test_tasks_without_an_end_need_a_number(own, monkeypatch):
    import own_tasksets

    monkeypatch.setattr(own_tasksets.OwnTaskset, "INFINITE", True)
    with pytest.raises(UserError, match=r"tasks without end: add environment\.num_tasks"):
        own().tasks("train")
    environment = own(num_tasks=2)
    assert [task.id for split in ("train", "heldout") for task in environment.tasks(split)] == ["train-0", "heldout-1"]


def test_a_model_that_may_run_commands_is_allowed_by_name_alone(own):
    assert own({"agent": {"harness": {"id": "bash"}}}, allow_unsafe=True).tasks("train")


def test_an_environment_that_is_not_there_is_named(tasksets):
    with pytest.raises(UserError, match=r"taskset 'no-such-thing' not found"):
        tasksets(id="no-such-thing").tasks("heldout")


def test_a_package_for_the_older_interface_says_which_verifiers_it_wants(tasksets, tmp_path, monkeypatch):
    (tmp_path / "an_older_one.py").write_text("def load_environment():\n    ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"written for verifiers below 0\.4: pip install 'verifiers<0\.4'"):
        tasksets(id="an-older-one").tasks("train")


def test_signals_stay_as_they_were(own):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert first(own(), [STOP]).error is None
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_same_environment_is_loaded_once(own):
    assert own()._inner.environment is own()._inner.environment
    assert own()._inner.environment is not own({"taskset": {"num_rows": 4}})._inner.environment
