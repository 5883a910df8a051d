"""The turn loop, with an engine that says what it is told: every way a trajectory can go and end."""

import asyncio
import dataclasses
import gc

import numpy as np
import pytest

from lockstep.data.samples import to_samples
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.engine.engine import Completion, EngineError, Sampling
from lockstep.engine.scripted import ScriptedEngine, scripted_logprob
from lockstep.rollout import concurrency
from lockstep.rollout.environment import Start, Step
from lockstep.rollout.renderer import Extension, FormatError, Parsed
from lockstep.rollout.reward import Score
from lockstep.rollout.tool import InfrastructureError
from lockstep.rollout.trajectory import Attempt, Policy, Rollout, seed_of, turn_routes
from lockstep.types import Message, Task, ToolDescription, UserError

TASK = Task(id="task", messages=(Message(role="user", content="10 11 12"),))
TOOLS = (ToolDescription(name="adder", description="Add.", parameters={}),)
STOP, MALFORMED, FINAL = 1, 2, 3  # how an action may end; everything else is a number that stands for itself
OPENING = 9  # opens the assistant's turn


def numbers(text):
    return [int(word) for word in text.split()]


class Renderer:
    """A message's content is its tokens, written as numbers. `restarts`: after which actions it rewrites history."""

    stop_token_ids = (STOP,)

    def __init__(self, restarts=()):
        self.restarts, self.num_extended, self.tools = restarts, 0, []

    def start(self, messages, tools):
        self.tools.append(tuple(tools))
        return (*(token for message in messages for token in numbers(message.content)), OPENING)

    def parse(self, action):
        message = Message(role="assistant", content=" ".join(map(str, action)))
        if MALFORMED in action:
            return Parsed(messages=(), malformed="no_channel", explanation="say a channel 77")
        return Parsed(messages=(message,))

    def extend(self, messages, new, tools, *, last_action):
        assert messages[-1].role == "assistant" or MALFORMED in last_action
        self.num_extended += 1
        if self.num_extended in self.restarts:
            return Extension(tokens=(99, *numbers(new[-1].content), OPENING), restarts=True)
        words = [word for message in new for word in message.content.split()]
        return Extension(tokens=(*(int(word) for word in words if word.isdigit()), OPENING))


class Environment:
    """Answers every action with its first number plus 50, until it contains FINAL. Fails where it is told to."""

    def __init__(self, **faults):
        self.faults, self.log = faults, []

    async def _maybe_fail(self, what):
        self.log.append(what)
        fault = self.faults.get(what)
        if fault == "hang":
            await asyncio.sleep(60)
        elif fault is not None:
            raise fault

    async def start(self, task):
        await self._maybe_fail("start")
        return Start(messages=task.messages, tools=TOOLS, state=[])

    async def step(self, state, action):
        await self._maybe_fail("step")
        state.append(action)
        said = numbers(action[-1].content)
        if FINAL in said:
            return Step(done=True, events={"finals": 1})
        return Step(messages=(Message(role="tool", name="adder", content=str(said[0] + 50)),), events={"calls": 1})

    async def reward(self, state, messages, truncated):
        await self._maybe_fail("reward")
        self.truncated = truncated
        return {"steps": float(len(state)), "bonus": 0.5}

    async def close(self, state):
        await self._maybe_fail("close")


def play(script, environment=None, renderer=None, **settings):
    """Run one trajectory; returns it with the engine."""
    engine = ScriptedEngine(script, weights_version=4)
    environment = environment or Environment()
    limits = dataclasses.replace(Rollout(max_turns=5, max_tokens=100, max_action_tokens=10), **settings)
    policy = Policy(engine=engine, renderer=renderer or Renderer(), settings=limits, temperature=0.75)
    trajectory = asyncio.run(Attempt(policy, environment, TASK, "3/1", seed=5).run())
    started = environment.faults.get("start") is None
    assert environment.log.count("close") == int(started)  # exactly once for whatever was started
    return trajectory, engine


def tokens_of(trajectory):
    return [(list(turn.context), list(turn.action), turn.restarts) for turn in trajectory.turns]


def test_turns_alternate_until_the_environment_ends_it():
    environment = Environment()
    trajectory, engine = play([[20, STOP], [21, 22, STOP], [FINAL, STOP]], environment)
    assert tokens_of(trajectory) == [
        ([10, 11, 12, OPENING], [20, STOP], False),
        ([70, OPENING], [21, 22, STOP], False),
        ([71, OPENING], [FINAL, STOP], False),
    ]
    assert engine.prompts[2] == (10, 11, 12, 9, 20, 1, 70, 9, 21, 22, 1, 71, 9)
    assert (trajectory.stop_reason, trajectory.error) == ("done", None)
    assert (trajectory.reward, trajectory.reward_parts) == (3.5, {"steps": 3.0, "bonus": 0.5})
    assert trajectory.events == {"calls": 2, "finals": 1}
    assert [m.role for m in trajectory.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert environment.truncated is False
    assert trajectory.id == "3/1"


def test_actions_are_kept_as_the_engine_returned_them():
    trajectory, _ = play([[20, 21, STOP], [FINAL]])
    first = trajectory.turns[0]
    assert first.engine_logprobs == tuple(scripted_logprob(t, i) for i, t in enumerate((20, 21, STOP)))
    assert {turn.weights_version for turn in trajectory.turns} == {4}
    assert trajectory.num_tokens == 4 + 3 + 2 + 1
    assert trajectory.num_action_tokens == 4


def test_the_engine_is_asked_with_the_policys_settings_and_a_seed_a_turn():
    renderer = Renderer()
    _, engine = play([[20], [FINAL]], renderer=renderer)
    first, second = engine.samplings
    assert (first.temperature, first.max_tokens, first.stop_token_ids) == (0.75, 10, (STOP,))
    assert (first.seed, second.seed) == (seed_of(5, 0), seed_of(5, 1))
    assert first.seed != second.seed
    assert renderer.tools == [TOOLS]


def test_seeds_are_a_function_of_their_parts():
    """Golden: every run that is to be repeated stands on it."""
    assert seed_of(0, "train", 1) == 11233305902351587846
    assert len({seed_of(0), seed_of("0"), seed_of(0, 0), seed_of(1), seed_of()}) == 5


def test_the_last_turn_allowed_is_not_answered_twice():
    trajectory, engine = play([[20], [21], [22]], max_turns=2)
    assert (trajectory.stop_reason, len(trajectory.turns), len(engine.prompts)) == ("max_turns", 2, 2)
    assert trajectory.reward == 2.5


@pytest.mark.parametrize("environment", [Environment()])
def test_an_action_that_is_cut_short_ends_it_without_a_step(environment):
    """What was said of it is kept in the conversation; the environment is told of the truncation."""
    trajectory, _ = play([[20, 21, 22, 23, STOP]], environment, max_action_tokens=3)
    assert trajectory.stop_reason == "length"
    assert trajectory.turns[0].action == (20, 21, 22)
    assert environment.log == ["start", "reward", "close"]
    assert environment.truncated is True
    assert trajectory.messages[-1].content == "20 21 22"
    assert trajectory.error is None


def test_a_history_may_not_outgrow_its_limit():
    """4 tokens of prompt and 2 of action leave 1 of 7, which the answer's 2 overrun."""
    trajectory, engine = play([[20, 21], [22]], max_tokens=7)
    assert (trajectory.stop_reason, len(trajectory.turns)) == ("length", 1)
    trajectory, engine = play([[20, 21], [22, 23]], max_tokens=9)
    assert engine.samplings[1].max_tokens == 1
    assert trajectory.turns[1].action == (22,)
    assert trajectory.stop_reason == "length"
    assert trajectory.num_tokens == 9


def test_a_prompt_without_room_ends_before_the_first_action():
    environment = Environment()
    trajectory, engine = play([], environment, max_tokens=4)
    assert (trajectory.stop_reason, trajectory.turns, engine.prompts) == ("length", (), [])
    assert trajectory.error is None
    assert environment.log == ["start", "reward", "close"]


def test_a_malformed_action_is_told_so_and_counted():
    environment = Environment()
    trajectory, _ = play([[20, MALFORMED], [MALFORMED], [FINAL]], environment)
    assert trajectory.events == {"malformed/no_channel": 2, "finals": 1}
    assert trajectory.stop_reason == "done"
    told = trajectory.messages[1]
    assert (told.role, told.name, told.content) == ("tool", "functions.parser", "Error: say a channel 77")
    assert trajectory.turns[1].context == (77, OPENING)
    assert environment.log.count("step") == 1


def test_a_rewritten_history_splits_the_samples():
    trajectory, engine = play([[20], [21], [22], [FINAL]], renderer=Renderer(restarts=[2]))
    assert tokens_of(trajectory) == [
        ([10, 11, 12, OPENING], [20], False),
        ([70, OPENING], [21], False),
        ([99, 71, OPENING], [22], True),
        ([72, OPENING], [FINAL], False),
    ]
    assert engine.prompts[2] == (99, 71, 9)
    assert engine.prompts[3] == (99, 71, 9, 22, 72, 9)
    samples = to_samples(trajectory)
    assert [sample.tokens.tolist() for sample in samples] == [[10, 11, 12, 9, 20, 70, 9, 21], [99, 71, 9, 22, 72, 9, 3]]


def test_a_rewritten_history_has_the_limit_to_itself():
    trajectory, _ = play([[20, 21, 22], [23, 24], [FINAL]], renderer=Renderer(restarts=[1]), max_tokens=9)
    assert trajectory.stop_reason == "done"


# Failures


def test_an_engine_that_fails_once_is_asked_again():
    trajectory, engine = play([EngineError("died"), [20], [FINAL]], engine_retries=1)
    assert (trajectory.stop_reason, trajectory.error) == ("done", None)
    assert trajectory.events == {"engine_retries": 1, "calls": 1, "finals": 1}
    assert engine.prompts[0] == engine.prompts[1]
    assert engine.samplings[0] == engine.samplings[1]


@pytest.mark.parametrize("retries", [0, 2])
def test_an_engine_that_keeps_failing_masks_the_trajectory(retries):
    environment = Environment()
    script = [[20], *[EngineError(f"died {i}") for i in range(retries + 1)]]
    trajectory, _ = play(script, environment, engine_retries=retries)
    assert (trajectory.stop_reason, trajectory.error) == ("engine_error", f"died {retries}")
    assert trajectory.events == {"calls": 1, "engine_retries": retries + 1}
    assert (trajectory.reward, trajectory.reward_parts) == (0.0, {})
    assert len(trajectory.turns) == 1
    assert "reward" not in environment.log


@pytest.mark.parametrize("where", ["start", "step", "reward"])
def test_an_environment_that_raises_masks_the_trajectory(where):
    trajectory, _ = play([[20], [FINAL]], Environment(**{where: KeyError("price")}))
    assert trajectory.stop_reason == "environment_error"
    assert trajectory.error == f"Environment.{where} raised KeyError: 'price'"
    assert (trajectory.reward, trajectory.reward_parts) == (0.0, {})


@pytest.mark.parametrize("where", ["start", "step", "reward"])
def test_an_environment_that_hangs_masks_the_trajectory(where):
    trajectory, _ = play([[20], [FINAL]], Environment(**{where: "hang"}), environment_timeout_s=0.01)
    assert trajectory.stop_reason == "environment_error"
    assert f"Environment.{where} did not finish within 0.01 s" in trajectory.error
    assert "environment_timeout_s" in trajectory.error


@pytest.mark.parametrize("fault", [OSError("disk"), "hang"])
def test_a_failure_to_close_does_not_take_the_trajectory_along(fault):
    trajectory, _ = play([[FINAL]], Environment(close=fault), environment_timeout_s=0.01)
    assert (trajectory.stop_reason, trajectory.error, trajectory.reward) == ("done", None, 1.5)
    assert trajectory.events["close_failed"] == 1


@pytest.mark.parametrize("where", ["start", "step", "reward"])
def test_a_plain_method_that_raises_masks_the_trajectory(where):
    class Plain(Environment):
        pass

    def fails(self, *arguments):
        self.log.append(where)
        raise KeyError("price")

    setattr(Plain, where, fails)
    environment = Plain(start="raises") if where == "start" else Plain()
    trajectory, _ = play([[20], [FINAL]], environment)
    assert (trajectory.stop_reason, trajectory.error) == (
        "environment_error",
        f"Plain.{where} raised KeyError: 'price'",
    )
    assert (trajectory.reward, trajectory.reward_parts) == (0.0, {})


@pytest.mark.parametrize("where", ["start", "step", "reward"])
@pytest.mark.parametrize(
    ("plain", "said"), [(True, "not an awaitable: make it `async def`"), (False, "NoneType, not ")]
)
def test_a_method_that_returns_what_cannot_be_used_masks_the_trajectory(where, plain, said):
    class Wrong(Environment):
        pass

    async def returns(self, *arguments):
        return None

    setattr(Wrong, where, (lambda self, *arguments: None) if plain else returns)
    environment = Wrong(start="returns nothing") if where == "start" else Wrong()
    trajectory, _ = play([[20], [FINAL]], environment)
    assert trajectory.stop_reason == "environment_error"
    assert trajectory.error.startswith(f"Wrong.{where} returned NoneType")
    assert said in trajectory.error


def test_a_plain_close_is_counted():
    class Plain(Environment):
        def close(self, state):
            self.log.append("close")

    trajectory, _ = play([[FINAL]], Plain())
    assert (trajectory.stop_reason, trajectory.error, trajectory.events["close_failed"]) == ("done", None, 1)


@pytest.mark.parametrize("part", [float("nan"), float("inf"), None, "1"])
def test_a_reward_that_is_no_number_masks_the_trajectory(part):
    class Odd(Environment):
        async def reward(self, state, messages, truncated):
            return {"bonus": 0.5, "correct": part}

    trajectory, _ = play([[FINAL]], Odd())
    assert (trajectory.stop_reason, trajectory.reward, trajectory.reward_parts) == ("environment_error", 0.0, {})
    assert trajectory.error == f"Odd.reward returned correct={part!r}: every part of a reward must be a finite number"


class Stuck(ScriptedEngine):
    """Hangs where the script says so, and keeps what became of those calls."""

    def __init__(self, script):
        super().__init__(script)
        self.ends = []

    async def generate(self, prompt, sampling):
        completion = await super().generate(prompt, sampling)
        if completion.tokens == (99,):
            try:
                await asyncio.Event().wait()
            except BaseException as error:
                self.ends.append(type(error))
                raise
        return completion


def play_stuck(script, environment=None, **settings):
    engine = Stuck(script)
    limits = dataclasses.replace(Rollout(engine_timeout_s=0.005, max_action_tokens=10), **settings)
    policy = Policy(engine=engine, renderer=Renderer(), settings=limits, temperature=1.0)

    async def played():
        attempt = Attempt(policy, environment or Environment(), TASK, "3/1", seed=5)
        return await asyncio.wait_for(attempt.run(), timeout=20)

    return asyncio.run(played()), engine


@pytest.mark.parametrize("retries", [0, 2])
def test_an_engine_that_hangs_is_cancelled_and_in_the_end_masks_the_trajectory(retries):
    environment = Environment()
    trajectory, engine = play_stuck([[20], *[[99]] * (retries + 1)], environment, engine_retries=retries)
    assert engine.ends == [asyncio.CancelledError] * (retries + 1)
    assert trajectory.stop_reason == "engine_error"
    assert trajectory.error == (
        "Stuck.generate did not finish within 0.005 s (trajectory 3/1, turn 1: prompt of 7 tokens, up to 10 sampled); "
        "raise rollout.engine_timeout_s or lower rollout.max_action_tokens"
    )
    assert trajectory.events == {"calls": 1, "engine_retries": retries + 1}
    assert environment.log == ["start", "step", "close"]


def test_an_engine_that_hangs_once_is_asked_again():
    """Each try has the whole time; the deadline of one does not run on into the next."""
    trajectory, engine = play_stuck([[99], [20], [FINAL]])
    assert (trajectory.stop_reason, trajectory.error) == ("done", None)
    assert trajectory.events == {"engine_retries": 1, "calls": 1, "finals": 1}
    assert engine.prompts[0] == engine.prompts[1]
    assert engine.samplings[0] == engine.samplings[1]
    assert engine.ends == [asyncio.CancelledError]


def test_a_timeout_within_the_engine_is_not_taken_for_the_deadline():
    with pytest.raises(TimeoutError, match="of its own"):
        play([TimeoutError("of its own")])


def test_cancelling_a_trajectory_cancels_its_generation_and_is_no_timeout():
    environment = Environment()

    async def cancelled():
        engine = Stuck([[99]])
        policy = Policy(engine=engine, renderer=Renderer(), settings=Rollout(), temperature=1.0)
        task = asyncio.create_task(Attempt(policy, environment, TASK, "x", seed=0).run())
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return engine.ends

    assert asyncio.run(cancelled()) == [asyncio.CancelledError]
    assert environment.log == ["start", "close"]


def test_a_generation_that_missed_its_deadline_leaves_the_embedded_engine(gpt_oss):
    async def missed():
        engine = EmbeddedEngine(gpt_oss)
        settings = Rollout(engine_timeout_s=1e-9, engine_retries=0, max_action_tokens=500)
        policy = Policy(engine=engine, renderer=Renderer(), settings=settings, temperature=1.0)
        trajectory = await Attempt(policy, Environment(), TASK, "x", seed=0).run()
        await engine.update_weights(1)  # refuses while a request runs
        return trajectory, await engine.generate(
            (10, 11), Sampling(temperature=0, max_tokens=2, stop_token_ids=(), seed=0)
        )

    trajectory, completion = asyncio.run(missed())
    assert trajectory.stop_reason == "engine_error"
    assert trajectory.error.startswith("EmbeddedEngine.generate did not finish within 1e-09 s")
    assert (completion.weights_version, len(completion.tokens)) == (1, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine_timeout_s": 0.0}, "rollout.engine_timeout_s=0.0: must be above 0; 600 is usual"),
        ({"engine_timeout_s": float("nan")}, "rollout.engine_timeout_s=nan: must be above 0; 600 is usual"),
        ({"max_refills": -1}, "rollout.max_refills=-1: must be at least 0; 0 takes groups as they come"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(UserError) as error:
        Rollout(**options)
    assert str(error.value) == said


def test_options_at_their_limits_are_taken():
    assert Rollout().max_refills == 0  # groups as they come, unless asked for
    Rollout(max_refills=1, engine_timeout_s=1e-9)


def test_an_environments_own_timeout_is_not_taken_for_the_deadline():
    trajectory, _ = play([[20], [FINAL]], Environment(step=TimeoutError("search server")))
    assert trajectory.error == "Environment.step raised TimeoutError: search server"


def test_a_cancelled_trajectory_still_closes_its_environment():
    environment = Environment(step="hang")

    async def cancelled():
        policy = Policy(engine=ScriptedEngine([[20]]), renderer=Renderer(), settings=Rollout(), temperature=1.0)
        task = asyncio.create_task(Attempt(policy, environment, TASK, "x", seed=0).run())
        while "step" not in environment.log:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert environment.log == ["start", "step", "close"]


def test_a_bug_of_ours_is_not_swallowed():
    class Broken(Renderer):
        def extend(self, *arguments, **options):
            raise AttributeError("a bug")

    environment = Environment()
    with pytest.raises(AttributeError, match="a bug"):
        play([[20], [FINAL]], environment, Broken())
    assert environment.log[-1] == "close"


def test_a_script_that_is_used_up_says_so():
    with pytest.raises(AssertionError, match="before generate call 2, whose prompt is"):
        play([[20]])


def test_a_turn_keeps_the_routes_of_the_tokens_it_fed():
    """Of a prompt of 6 and an action of 2, all but the last were fed: 7; those of an earlier turn belong to it."""
    routes = np.arange(7, dtype=np.uint8)[:, None, None]
    completion = Completion(
        tokens=(8, 9), logprobs=(-1.0, -1.0), weights_version=0, stop_reason="stop", routed_experts=routes
    )
    assert turn_routes(completion, 6, first=True)[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert turn_routes(completion, 3, first=False)[:, 0, 0].tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("what", ["start", "step", "reward"])
def test_infrastructure_that_fails_masks_the_trajectory_under_its_own_name(what):
    trajectory, _ = play([[20, STOP], [FINAL, STOP]], Environment(**{what: InfrastructureError("the sandbox is gone")}))
    assert (trajectory.stop_reason, trajectory.error) == ("infrastructure_error", "the sandbox is gone")
    assert (trajectory.reward, trajectory.reward_parts) == (0.0, {})


def test_a_close_that_finds_infrastructure_broken_is_counted():
    trajectory, _ = play([[FINAL, STOP]], Environment(close=InfrastructureError("gone")))
    assert (trajectory.stop_reason, trajectory.events["close_failed"]) == ("done", 1)


class Talkative(Environment):
    """Answers with as many tokens as it is told, and with a message of the user's as long."""

    async def step(self, state, action):
        said = numbers(action[-1].content)
        if FINAL in said:
            return Step(done=True)
        text = " ".join(["50"] * said[0])
        return Step(messages=(Message(role="tool", name="adder", content=text), Message(role="user", content=text)))

    async def reward(self, state, messages, truncated):
        return Score(parts={"a": 1.0}, measures={"b": 2.0})


class Shortening(Renderer):
    def shorten(self, text, max_tokens):
        words = text.split()
        return text if len(words) <= max_tokens else " ".join(words[:max_tokens])


def test_a_long_answer_of_a_tool_is_shortened_and_counted():
    script = [[17, STOP], [16, STOP], [FINAL, STOP]]
    trajectory, _ = play(script, Talkative(), Shortening(), max_result_tokens=16)
    assert [len(m.content.split()) for m in trajectory.messages if m.role == "tool"] == [16, 16]
    assert [len(m.content.split()) for m in trajectory.messages if m.role == "user"][1:] == [17, 16]
    assert trajectory.events == {"tool/shortened": 1}
    assert len(trajectory.turns[1].context) == 16 + 17 + 1


def test_what_is_measured_beside_the_reward_is_kept_apart():
    trajectory, _ = play([[FINAL, STOP]], Talkative())
    assert (trajectory.reward, trajectory.reward_parts, trajectory.measures) == (1.0, {"a": 1.0}, {"b": 2.0})


def test_answers_need_room_for_a_note():
    with pytest.raises(UserError, match=r"rollout.max_result_tokens=15: a shortened answer and its note need 16"):
        Rollout(max_result_tokens=15)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message(role="tool", name="adder", content=None), "a message whose content is NoneType: it must be text"),
        (Message(role="critic", content="5"), "a message of role 'critic': it must be one of system, developer, user,"),
        (Message(role="tool", content="5"), "a tool's message without a name: say which tool speaks"),
        (Message(role="tool", name=3, content="5"), "a message whose name is int: it must be text or None"),
        (Message(role="user", channel=b"final", content="5"), "a message whose channel is bytes: it must be text or"),
    ],
)
def test_messages_that_no_format_can_hold_mask_the_trajectory(message, said):
    class Wrong(Environment):
        async def step(self, state, action):
            return Step(messages=(message,))

    trajectory, _ = play([[20, STOP]], Wrong())
    assert trajectory.stop_reason == "environment_error"
    assert trajectory.error.startswith(f"Wrong.step returned {said}")


def test_what_a_format_cannot_say_masks_the_trajectory():
    class Strict(Renderer):
        def extend(self, messages, new, tools, *, last_action):
            raise FormatError("this format has no tools")

    trajectory, _ = play([[20, STOP]], renderer=Strict())
    assert trajectory.stop_reason == "environment_error"
    assert trajectory.error == "Environment has messages that cannot be rendered: this format has no tools"


class Odd(Exception):
    def __str__(self):
        raise ValueError("no words")


def test_an_exception_without_words_is_still_a_fault():
    trajectory, _ = play([[20, STOP]], Environment(step=Odd()))
    assert trajectory.error == "Environment.step raised Odd: (no message)"


def attempt(environment, **settings):
    limits = dataclasses.replace(Rollout(max_turns=5, max_tokens=100, max_action_tokens=10), **settings)
    policy = Policy(engine=ScriptedEngine([]), renderer=Renderer(), settings=limits, temperature=1.0)
    return Attempt(policy, environment, TASK, "3/1", seed=5)


def test_a_start_that_is_refused_is_closed():
    class Wrong(Environment):
        async def start(self, task):
            return Start(messages=("text",), state="mine")  # pyright: ignore

        async def close(self, state):
            self.log.append(("closed", state))

    environment = Wrong()
    trajectory = asyncio.run(attempt(environment).run())
    assert trajectory.stop_reason == "environment_error"
    assert environment.log == [("closed", "mine")]


@pytest.mark.parametrize("how", ["late", "cancelled"])
def test_a_start_that_comes_too_late_is_closed(how, monkeypatch):
    monkeypatch.setattr(concurrency, "GRACE_S", 0.01)

    class Slow(Environment):
        async def start(self, task):
            while not self.release.is_set():
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    continue
            return Start(messages=task.messages, state="mine")

        async def close(self, state):
            self.log.append(("closed", state))
            self.closed.set()

    async def play():
        environment = Slow()
        environment.release, environment.closed = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(attempt(environment, environment_timeout_s=0.01).run())
        if how == "cancelled":
            await asyncio.sleep(0)
            running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert environment.log == []
        environment.release.set()
        await environment.closed.wait()
        return environment.log

    assert asyncio.run(play()) == [("closed", "mine")]


async def cancelled_while_closing(environment):
    """Run an attempt, cancel it within `close`, then let that go on. Gives back whether the attempt ended cancelled."""
    environment.closing, environment.release = asyncio.Event(), asyncio.Event()
    made = attempt(environment)
    made.policy = dataclasses.replace(made.policy, engine=ScriptedEngine([[20, STOP]]))
    running = asyncio.create_task(made.run())
    await environment.closing.wait()
    running.cancel()
    await asyncio.sleep(0)
    environment.release.set()
    await asyncio.gather(running, return_exceptions=True)
    return running.cancelled()


def test_a_close_goes_on_when_the_attempt_is_cancelled():
    class Slow(Environment):
        async def close(self, state):
            self.closing.set()
            await self.release.wait()
            self.log.append("closed")

    async def play():
        environment = Slow(step=OSError("disk"))
        return await cancelled_while_closing(environment), environment.log

    assert asyncio.run(play()) == (True, ["start", "step", "closed"])


def test_a_close_that_fails_after_a_cancellation_is_not_written_over_the_screen():
    """asyncio reports a failure that nobody asked for, with a traceback."""
    reported = []

    class Broken(Environment):
        async def close(self, state):
            self.closing.set()
            await self.release.wait()
            raise OSError("disk")

    async def play():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["message"]))
        environment = Broken(step=OSError("disk"))
        await cancelled_while_closing(environment)
        gc.collect()

    asyncio.run(play())
    assert reported == []
