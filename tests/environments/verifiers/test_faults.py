"""Environments that fail, hang, lie or are cut short: each costs one trajectory, and is cleaned up once."""

import asyncio
import signal

import pytest
from both_sides import JsonRenderer, Says, encoded, lockstep_trajectory

from lockstep.engine.engine import EngineError
from lockstep.engine.scripted import ScriptedEngine
from lockstep.rollout.environment import checked_score
from lockstep.rollout.trajectory import Attempt, Policy, Rollout
from lockstep.types import UserError


@pytest.fixture
def make(verifiers_environment):
    """Makes a faulty environment, with its log and states empty."""
    import faulty_environments

    faulty_environments.LOG.clear()
    faulty_environments.STATES.clear()

    def make(kind="Base", num_heldout=1, **args):
        return verifiers_environment(id="faulty_environments", args={"kind": kind} | args, num_heldout=num_heldout)

    make.log, make.states = faulty_environments.LOG, faulty_environments.STATES
    return make


def first(environment, actions, **limits):
    return lockstep_trajectory(environment, environment.tasks("train")[0], actions, **limits)[0]


WRONG = [Says(text="9"), Says(text="0")]  # the first task's answer is 0


@pytest.mark.parametrize(
    ("kind", "stop_reason", "said"),
    [
        ("Raises", "environment_error", "VerifiersEnvironment.step raised KeyError: 'board'"),
        ("Sandbox", "infrastructure_error", "SandboxError: the sandbox went away"),
        ("Stops", "environment_error", "the environment stopped: Error: no more"),
        ("NeverBegins", "infrastructure_error", "InfraError: no server"),
        ("OverAtOnce", "environment_error", "ended before it asked for an action (stop condition 'over')"),
        ("Rewrites", "environment_error", "another conversation than the one so far"),
        ("AsksItself", "environment_error", "another conversation than the one so far"),
        ("AsksTwice", "environment_error", "asked its model again before it had an answer"),
        ("ChangesTools", "environment_error", "changed its tools from [] to ['late']"),
        ("silent", "environment_error", "answered an action with no message"),
        ("assistant", "environment_error", "with a message of the assistant's"),
        ("picture", "environment_error", "a part of type 'image_url'"),
        ("orphan", "environment_error", "answers the call 'nobody', which nobody made"),
        ("CleansUpBadly", "environment_error", "raised OSError: cannot delete"),
    ],
)
def test_a_fault_masks_the_trajectory_and_says_why(make, kind, stop_reason, said):
    trajectory = first(make(kind), WRONG)
    assert trajectory.stop_reason == stop_reason
    assert said in trajectory.error
    assert "\n" not in trajectory.error
    assert trajectory.reward == 0 and trajectory.reward_parts == {}
    assert "close_failed" not in trajectory.events  # what failed is said once
    assert make.log["setup"] == make.log["cleanup"] == 1


def test_an_environment_that_hangs_is_left_at_its_deadline(make):
    trajectory = first(make("Hangs"), WRONG, environment_timeout_s=0.05)
    assert trajectory.stop_reason == "environment_error"
    assert "did not finish within 0.05 s" in trajectory.error
    assert make.log["cleanup"] == 1


@pytest.mark.parametrize(("why", "stop_reason"), [("sandbox", "infrastructure_error"), ("rude", "done")])
def test_a_tools_error_that_stops_is_judged_unless_it_is_infrastructures(make, why, stop_reason):
    trajectory = first(make("touchy"), [Says(calls=(("touchy", f'{{"why": "{why}"}}'),))])
    assert trajectory.stop_reason == stop_reason
    if stop_reason == "done":
        assert trajectory.error is None and trajectory.events == {"tool_calls": 1, "tool/error": 1}
        assert trajectory.reward_parts == {"right": 0.0}
    else:
        assert "ToolCallError" in trajectory.error and "SandboxError: gone" in trajectory.error


def test_what_is_said_in_parts_is_joined(make):
    trajectory = first(make("parts"), WRONG)
    assert trajectory.messages[-2].content == "ab"


def test_half_a_character_reaches_the_renderer_readable(make):
    assert first(make("surrogate"), WRONG).messages[-2].content == "half ?"


def test_a_tool_that_is_not_offered_is_counted(make):
    said = [Says(calls=(("nosuch", "{}"), ("touchy", '{"why": "x"}')))]
    assert first(make("touchy"), said).events == {"tool_calls": 2, "malformed/unknown_tool": 1, "tool/error": 1}


def test_a_malformed_action_is_between_lockstep_and_the_model(make):
    trajectory = first(make(), [b"broken", Says(text="9"), b"broken", Says(text="0")])
    assert trajectory.stop_reason == "done" and trajectory.reward == 1
    assert trajectory.events["malformed/bad_header"] == 2
    assert [m.content for m in make.states[0]["completion"]] == ["9", "go on", "0"]


def test_an_action_cut_by_its_length_is_the_last_and_makes_no_call(make):
    partial = Says(text="I call", calls=(("touchy", '{"why": "x'),))
    action = encoded(partial.messages())
    trajectory = first(make("touchy"), [(*action, 32)], max_action_tokens=len(action))
    assert trajectory.stop_reason == "length" and trajectory.error is None
    assert trajectory.reward_parts == {"right": 0.0}
    assert trajectory.measures == {"num_turns": 1.0, "total_tool_calls": 0.0, "touchy_calls": 0.0}
    assert trajectory.events == {}


def test_an_action_cut_by_its_length_is_judged_by_what_it_says(make):
    trajectory = first(make(), [b"0" * 60], max_action_tokens=1)
    assert trajectory.stop_reason == "length"
    assert trajectory.reward_parts == {"right": 1.0}
    (state,) = make.states
    assert [m.content for m in state["completion"]] == ["0"]
    assert state["trajectory"][-1]["response"].message.finish_reason == "length"
    assert state["is_truncated"] and make.log == {"setup": 1, "cleanup": 1}


def test_a_cut_action_that_does_not_end_it_is_answered_and_no_more_asked(make):
    trajectory = first(make(), [b"9", b"8" * 60], max_action_tokens=58)
    assert trajectory.stop_reason == "length"
    (state,) = make.states
    assert [m.content for m in state["completion"]] == ["9", "go on", "8" * 58]
    assert state["is_truncated"] and state["prompt_too_long"]
    assert make.log == {"setup": 1, "cleanup": 1, "env_response": 2}


def test_a_turn_limit_of_lockstep_ends_it_before_the_next_action(make):
    trajectory = first(make(), [Says(text="9"), Says(text="8")], max_turns=2)
    assert trajectory.stop_reason == "max_turns" and trajectory.error is None
    (state,) = make.states
    assert [m.content for m in state["completion"]] == ["9", "go on", "8"]
    assert state["prompt_too_long"] and make.log["cleanup"] == 1
    assert trajectory.measures["num_turns"] == 2


def test_a_prompt_too_long_for_lockstep_is_judged_without_an_action(make):
    trajectory = first(make(), [], max_tokens=1)
    assert trajectory.stop_reason == "length" and trajectory.error is None
    assert trajectory.reward_parts == {"right": 0.0} and make.states[0]["completion"] == []
    assert make.log == {"setup": 1, "cleanup": 1}


def test_an_environment_past_its_own_time_limit_is_done(make):
    environment = make(timeout_seconds=0.05)

    async def run():
        start = await environment.start(environment.tasks("train")[0])
        await asyncio.wait({start.state._loop})  # its limit passes while Lockstep samples
        step = await environment.step(start.state, Says(text="0").messages())
        score = await environment.reward(start.state, start.messages, False)
        await environment.close(start.state)
        return step, score

    step, score = asyncio.run(run())
    assert step.done and score.parts == {"right": 0.0}
    assert make.states[0]["timed_out"] and make.log["cleanup"] == 1


def test_a_cancelled_trajectory_is_cleaned_up_and_leaves_no_task(make):
    environment = make()

    class Stuck(ScriptedEngine):
        async def generate(self, prompt, sampling):
            await asyncio.Event().wait()

    async def run():
        policy = Policy(engine=Stuck([]), renderer=JsonRenderer(), settings=Rollout(), temperature=1.0)
        attempt = asyncio.create_task(Attempt(policy, environment, environment.tasks("train")[0], "t", 0).run())
        while not make.log["setup"]:
            await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        return attempt.cancelled(), asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == (True, set())
    assert make.log == {"setup": 1, "cleanup": 1}


def test_a_trajectory_cut_off_cleans_up_the_rubric_too(example):
    import lockstep_example

    environment = example("books")
    lockstep_example.LOG.clear()
    trajectory = first(environment, [EngineError("gone")], engine_retries=0)
    assert trajectory.stop_reason == "engine_error" and "close_failed" not in trajectory.events
    assert lockstep_example.LOG == {"setup": 1, "cleanup": 1, "rubric_cleanup": 1}


def test_a_start_that_is_cancelled_is_cleaned_up(make):
    environment = make("NeverBegins")

    async def slow(state):
        make.log["setup"] += 1
        await asyncio.Event().wait()

    environment._inner.environment.setup_state = slow

    async def run():
        start = asyncio.create_task(environment.start(environment.tasks("train")[0]))
        while not make.log["setup"]:
            await asyncio.sleep(0)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        return asyncio.all_tasks() - {asyncio.current_task()}

    try:
        assert asyncio.run(run()) == set()
    finally:
        del environment._inner.environment.setup_state
    assert make.log["cleanup"] == 1


def test_a_cleanup_that_fails_when_cut_short_is_counted_and_no_more(make):
    trajectory = first(make("CleansUpBadly"), [EngineError("gone")], engine_retries=0)
    assert trajectory.stop_reason == "engine_error"
    assert trajectory.events["close_failed"] == 1 and make.log["cleanup"] == 1


def test_trajectories_at_once_do_not_meet(example):
    import lockstep_example

    environment = example("books")
    task = environment.tasks("train")[0]
    lockstep_example.LOG.clear()

    def actions(number):
        call = (("book", f'{{"amount": {number}}}'),)
        return [Says(calls=call), Says(calls=call), Says(text="done")]

    async def run():
        def attempt(number):
            engine = ScriptedEngine([encoded(each.messages()) for each in actions(number)])
            settings = Rollout(max_tokens=10**6, max_action_tokens=10**5)
            policy = Policy(engine=engine, renderer=JsonRenderer(), settings=settings, temperature=1.0)
            return Attempt(policy, environment, task, str(number), number).run()

        return await asyncio.gather(*map(attempt, range(1, 33)))

    for number, trajectory in enumerate(asyncio.run(run()), start=1):
        answers = [message.content for message in trajectory.messages if message.role == "tool"]
        assert answers == [f"1 booked, {number} in all", f"2 booked, {2 * number} in all"]
    assert lockstep_example.LOG == {"setup": 32, "cleanup": 32, "rubric_cleanup": 32}


@pytest.mark.parametrize(
    ("rubric", "parts", "measures"),
    [
        ("fragile", {"right": 0.0, "fragile": 0.0}, {}),  # float("word") raises, which verifiers takes for 0
        ("bonus", {"right": 0.0, "unattributed": 0.125}, {}),
        ("one name, two weights", {"right": 0.0, "unattributed": 2.0}, {"half": 1.0}),
        ("one name, one weight", {"half": 1.0}, {}),
    ],
)
def test_a_rubrics_reward_is_the_sum_of_its_parts(make, rubric, parts, measures):
    environment = make(rubric=rubric)
    trajectory = first(environment, [b"word and more"], max_action_tokens=4)
    assert trajectory.error is None
    assert trajectory.reward_parts == parts
    assert trajectory.measures == measures | {"num_turns": 1.0}
    assert trajectory.reward == make.states[0]["reward"]


@pytest.mark.parametrize(
    ("rubric", "said"), [("nan", "endless=nan"), ("nan metric", "endless=nan"), ("nan bonus", "unattributed=nan")]
)
def test_a_reward_that_is_no_number_masks(make, rubric, said):
    """verifiers adds every metric times its weight: a metric that is no number makes the reward none, weight 0 or
    not."""
    assert said in first(make(rubric=rubric), [Says(text="0")]).error


def test_an_environment_that_is_not_to_score_does_not(make):
    trajectory = first(make(score_rollouts=False), [Says(text="0")])
    assert trajectory.reward_parts == {} and trajectory.error is None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"rubric": "group"}, "has reward functions of a whole group"),
        ({"rubric": "advantages"}, "computes advantages itself"),
        ({"message_type": "completion"}, "has message_type 'completion'"),
        ({"sampling_args": {"logprobs": True}}, "asks its model for logprobs"),
        ({"kind": "key"}, "LOCKSTEP_TEST_NO_SUCH_KEY"),
        ({"rubric": "no such"}, "no such"),
        ({"kind": "nothing"}, "'NoneType' object has no attribute"),
    ],
)
def test_what_cannot_be_given_is_refused_in_one_line_before_a_run_begins(make, args, said):
    with pytest.raises(UserError, match=r"environment\.id='faulty_environments'") as raised:
        make(**args).tasks("train")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_an_environment_that_is_not_there_is_named(verifiers_environment):
    with pytest.raises(UserError, match=r"'no-such-thing'.*Ensure the package for the 'no-such-thing' environment"):
        verifiers_environment(id="no-such-thing").tasks("heldout")


def test_arguments_that_json_cannot_say_are_refused(verifiers_environment):
    with pytest.raises(UserError, match="not JSON serializable; give what JSON can say"):
        verifiers_environment(id="faulty_environments", args={"rubric": object()}).tasks("train")


def test_without_evaluation_data_the_last_rows_are_held_out(make):
    environment = make()
    train, heldout = environment.tasks("train"), environment.tasks("heldout")
    assert [task.data["row"]["answer"] for task in train] == ["0", "1", "2"]
    assert [task.data["row"]["answer"] for task in heldout] == ["3"]
    assert len({task.id for task in (*train, *heldout)}) == 4


def test_with_evaluation_data_alone_there_is_nothing_to_train_on(make):
    environment = make("eval only", num_heldout=None)
    assert len(environment.tasks("heldout")) == 4 and environment.tasks("train") == []


def test_with_evaluation_data_nothing_is_to_be_held_out(make):
    with pytest.raises(UserError, match=r"num_heldout=1: 'faulty_environments' has evaluation data"):
        make("eval only").tasks("heldout")


def test_unless_told_otherwise_64_are_held_out(make):
    assert len(make(num_heldout=None, num_rows=65).tasks("train")) == 1
    with pytest.raises(UserError, match=r"has 64 rows and no evaluation data: environment\.num_heldout=64"):
        make(num_heldout=None, num_rows=64).tasks("train")


def test_too_few_rows_to_hold_some_out_are_refused(make):
    with pytest.raises(UserError, match=r"has 1 rows and no evaluation data: environment\.num_heldout=1"):
        make(num_rows=1).tasks("train")


def test_a_prompt_with_a_picture_is_refused_with_its_row(make):
    with pytest.raises(UserError, match="train row 0: a message has a part of type 'image_url'"):
        make("picture prompt").tasks("train")


def test_a_prompt_that_is_none_is_refused_in_one_line(make):
    with pytest.raises(UserError, match=r"train row 0: .*validation error") as raised:
        make("odd prompt").tasks("train")
    assert "\n" not in str(raised.value)


def test_signals_stay_as_they_were(make):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert make("Base", num_rows=5).tasks("train")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_same_environment_is_loaded_once(make):
    assert make()._inner.environment is make()._inner.environment
    assert make()._inner.environment is not make(num_rows=3)._inner.environment


def test_what_it_scores_is_a_score(make):
    environment = make()

    async def run():
        start = await environment.start(environment.tasks("train")[1])
        step = await environment.step(start.state, Says(text="1").messages())
        score = await environment.reward(start.state, (*start.messages, *Says(text="1").messages()), False)
        await environment.close(start.state)
        return step, checked_score(score)

    step, score = asyncio.run(run())
    assert step.done and step.messages == () and dict(score.parts) == {"right": 1.0}
