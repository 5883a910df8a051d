"""verifiers' own episodes (0.4) and Lockstep's through the adapter: the same conversations, rewards and metrics."""

import asyncio
import shutil

import pytest
from both_sides import JsonRenderer, Says, encoded, lockstep_trajectory
from native_episodes import model_server, native_episode

from lockstep.engine.scripted import ScriptedEngine
from lockstep.environments.verifiers_adapter.messages import read_messages
from lockstep.rollout.trajectory import Attempt, Policy, Rollout


def call(name, arguments):
    return (name, arguments)


def compared(environment, config, number, actions):
    """Lockstep's trajectory on task `number`, checked to be verifiers' own episode of it."""
    episode, requests = native_episode(config, number, actions)
    (trace,) = episode.traces
    tasks = [*environment.tasks("train"), *environment.tasks("heldout")]
    trajectory, renderer = lockstep_trajectory(environment, tasks[number], actions)
    if not episode.ok:
        assert trajectory.stop_reason == "environment_error" and trajectory.reward_parts == {}
        return trajectory
    assert trajectory.error is None and trajectory.stop_reason == "done"
    assert len(trajectory.turns) == len(requests)
    assert trajectory.messages == read_messages(trace.messages, {})
    told = [tool["function"] for tool in requests[0].get("tools", [])]
    assert [(t.name, t.description, dict(t.parameters)) for t in renderer.tools[0]] == [
        (tool["name"], tool["description"], tool["parameters"]) for tool in told
    ]
    assert trajectory.reward == pytest.approx(trace.reward, abs=1e-12)
    assert trajectory.reward_parts == {n: r.value for n, r in trace.rewards.items() if r.weight}
    zeros = {n: r.score for n, r in trace.rewards.items() if not r.weight}
    assert trajectory.measures == zeros | trace.metrics
    return trajectory


@pytest.fixture
def arithmetic(tasksets, gsm8k_folder):
    """Makes the installed example's environment of a kind, and verifiers' own config for it. Its agent is verifiers'
    null harness, a program that uv runs."""
    if shutil.which("uv") is None:
        pytest.skip("uv, which verifiers starts its programs with, is not installed here")

    def make(kind):
        taskset = {"data": str(gsm8k_folder), "task": {"kind": kind}}
        args = {"taskset": taskset, "agent": {"harness": {"id": "null"}}}
        return tasksets(id="lockstep-example-next", args=args, num_heldout=2), native_config(
            "lockstep-example-next", args
        )

    return make


def native_config(name, args):
    role = {"runtime": {"type": "subprocess"}, **args["agent"]}
    return args | {"taskset": args.get("taskset", {}) | {"id": name}, "agent": role}


SCRIPTS = {
    "single": [Says(thought="hm", text="It is 72")],
    "tools": [
        Says(text="Let me see.", calls=(call("divide", '{"a": 4}'), call("book", '{"amount": 3}'))),
        Says(thought="oh", calls=(call("nosuch", "{}"), call("divide", "{"), call("divide", '{"a": 1, "b": 0}'))),
        Says(calls=(call("book", '{"amount": 4.5}'),)),
        Says(text="72"),
    ],
    "fails": [Says(text="eighteen")],
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_same_episode_of_an_installed_package(arithmetic, kind):
    environment, config = arithmetic(kind)
    trajectory = compared(environment, config, 0, SCRIPTS[kind])
    if kind == "fails":
        assert "ValueError: could not convert string to float: 'eighteen'" in trajectory.error
    else:
        assert trajectory.reward_parts["correct"] == 1 and trajectory.reward_parts["wordy"] < 0
    if kind == "tools":
        assert trajectory.measures["num_booked"] == 2 and trajectory.events["malformed/unknown_tool"] == 1


TALK = [
    Says(thought="hm", text="Hello"),
    Says(calls=(call("twice", '{"x": 1}'), call("twice", '{"x": 2}'))),
    Says(thought="and", text="Again", calls=(call("twice", '{"x": 3}'),)),
    Says(text="right, stop"),
]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("speaks", ["chat", "responses", "anthropic"])
def test_the_same_conversation_in_every_format(own, speaks, streams):
    """The programs' own libraries, OpenAI's and Anthropic's, read what Lockstep's model says; whatever the format, the
    conversation is one."""
    args = {"agent": {"harness": {"id": "own_tasksets", "speaks": speaks, "streams": streams}}}
    trajectory, renderer = lockstep_trajectory(own(args), own(args).tasks("train")[1], TALK)
    assert trajectory.error is None
    chat = native_episode(native_config("own_tasksets", {"agent": {}}), 1, TALK)[0].traces[0]
    assert [(m.role, m.channel, m.recipient) for m in trajectory.messages] == [
        (m.role, m.channel, m.recipient) for m in read_messages(chat.messages, {})
    ]
    said = [m.content for m in trajectory.messages if m.role != "tool"]
    assert said == [m.content for m in read_messages(chat.messages, {}) if m.role != "tool"]
    assert trajectory.reward == chat.reward == 1 + 0.5 * (1 + 4)
    (tool,) = renderer.tools[0]
    assert (tool.name, tool.description, tool.parameters["properties"]) == (
        "twice",
        "Doubles.",
        {"x": {"type": "number"}},
    )


@pytest.mark.parametrize("streams", [False, True])
def test_the_same_episode_of_an_agent_in_process(own, streams):
    args = {"agent": {"harness": {"id": "own_tasksets", "streams": streams}}}
    compared(own(args), native_config("own_tasksets", args), 1, TALK)


def test_a_taskset_that_verifiers_itself_brings(tasksets, tmp_path, monkeypatch):
    """TextArena's Hangman: its engine plays the user, and its authors knew nothing of Lockstep. The words are ours."""
    nltk = pytest.importorskip("nltk")
    if shutil.which("uv") is None:
        pytest.skip("uv, which verifiers starts its programs with, is not installed here")
    folder = tmp_path / "corpora" / "words"
    folder.mkdir(parents=True)
    for name in ("en", "en-basic", "README"):
        (folder / name).write_text("tree\nstone\nriver\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: True)
    pytest.importorskip("textarena")
    args = {"taskset": {"game": "Hangman-v0"}, "player": {"harness": {"id": "null"}}}
    environment = tasksets(id="textarena", args=args, num_tasks=4, num_heldout=2)
    config = args | {"taskset": {"id": "textarena", "game": "Hangman-v0"}}
    config["player"] = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
    script = [Says(thought="An e.", text=f"[{word}]") for word in ("e", "z", "tree", "stone", "river")]
    trajectory = compared(environment, config, 0, script)
    assert trajectory.reward_parts == {"game_reward": 1.0} and len(trajectory.turns) > 2


def test_a_modelled_user_has_a_model_of_its_own(own):
    """verifiers' own user-sim: the user is an agent whose client is another, so its conversation is not Lockstep's."""
    if shutil.which("uv") is None:
        pytest.skip("uv, which verifiers starts its programs with, is not installed here")
    asked, answers = [], [Says(text="What is it?"), Says(text="###DONE###")]

    async def run():
        async with model_server(answers, asked) as url:
            client = {"type": "eval", "base_url": url, "api_key_var": "NO_SUCH_KEY"}
            null = {"harness": {"id": "null"}}
            environment = own({"id": "user-sim", "assistant": null, "user": null | {"client": client}})
            engine = ScriptedEngine([encoded(Says(text="It is right.").messages())])
            settings = Rollout(max_tokens=10**6, max_action_tokens=10**5)
            policy = Policy(engine=engine, renderer=JsonRenderer(), settings=settings, temperature=1.0)
            return await Attempt(policy, environment, environment.tasks("train")[0], "t", 0).run()

    trajectory = asyncio.run(run())
    assert trajectory.error is None
    assert [m.content for m in trajectory.messages] == ["Speak.", "What is it?", "It is right."]
    assert [len(body["messages"]) for body in asked] == [2, 4] and trajectory.reward_parts["right"] == 1
    assert trajectory.measures["user_turns"] == 2
