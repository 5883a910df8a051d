"""verifiers' own rollout and Lockstep's through the adapter: the same conversations, rewards and metrics."""

import json

import pytest
from both_sides import Says, lockstep_trajectory, native_outputs

from lockstep.environments.verifiers_adapter.messages import read_messages


def add(a, b):
    return ("add", f'{{"a": {a}, "b": {b}}}')


def single_turn(answer):
    return {
        "right": [Says(text=f"<reasoning>so</reasoning>\n<answer>{answer}</answer>")],
        "right, thought over": [Says(thought="hm", text=f"<reasoning>so</reasoning>\n<answer>{answer}</answer>")],
        "wrong": [Says(text="<reasoning>so</reasoning>\n<answer>-1</answer>")],
        "without form": [Says(text=answer)],
    }


def tools(answer):
    return {
        "at once": [Says(text=answer)],
        "one call": [Says(calls=(add(1, 2),)), Says(text=f"It is {answer}")],
        "two calls together": [Says(text="Let me see.", calls=(add(1, 2), add(3.5, 4))), Says(text=answer)],
        "a tool that raises": [Says(calls=(("divide", '{"a": 1, "b": 0}'),)), Says(text=answer)],
        "no such tool": [Says(calls=(("power", "{}"), add(1, 1))), Says(text="7")],
        "no JSON": [Says(calls=(("add", "{"),)), Says(calls=(("add", "[1]"),)), Says(text=answer)],
        "wrong arguments": [Says(calls=(("add", '{"a": 1}'),)), Says(thought="oh", text=answer)],
        "its own turn limit": [Says(calls=(add(i, 1),)) for i in range(6)],
    }


def books(answer):
    def book(amount):
        return ("book", f'{{"amount": {amount}}}')

    return {
        "two turns": [Says(calls=(book(2), book(3))), Says(calls=(book(4),)), Says(text=answer)],
        "an error that stops": [Says(calls=(book(1),)), Says(calls=(book(1e7),))],
    }


def game(answer):
    return {
        "found": [Says(text="<answer>-1</answer>"), Says(text="1000000"), Says(text=f"<answer>{answer}</answer>")],
        "never found": [Says(text="-5") for _ in range(6)],
        "no number": [Says(text="what?"), Says(thought="so", text=answer)],
        "its own turn limit": [Says(text="hm") for _ in range(8)],
    }


CASES = {"single": single_turn, "tools": tools, "books": books, "game": game}
NAMES = [(kind, name) for kind, scripts in CASES.items() for name in scripts("0")]


class Script:
    """The script for each row by the texts of its prompt. Of a longer conversation the prompt is its beginning."""

    def __init__(self, tasks, scripts, num_shown):
        self.num_shown, self.known = num_shown, []
        for task in tasks:
            prompt = tuple(m.content for m in task.messages if m.role in ("system", "user"))
            self.known.append((prompt, scripts(task.data["row"]["answer"])))

    def __call__(self, prompt):
        (found,) = [script for known, script in self.known if prompt[: len(known)] == known]
        return found


def compared(environment, native, tasks, scripts, split):
    """Both sides' results on the tasks, checked to be the same; Lockstep's trajectories."""
    shown = sum(message.role == "assistant" for message in tasks[0].messages)
    outputs, requests = native_outputs(native, Script(tasks, scripts, shown), split)
    assert len(outputs) == len(tasks)
    trajectories = []
    for output, task in zip(outputs, tasks, strict=True):
        script = scripts(task.data["row"]["answer"])
        kept = Kept(environment)
        trajectory, renderer = lockstep_trajectory(kept, task, script)
        assert trajectory.error is None
        offered = [
            {"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in renderer.tools[0]
        ]
        body = next(
            body
            for body in requests
            if [m["content"] for m in body["messages"]] == [m["content"] for m in output["prompt"]]
        )
        told = [tool["function"] for tool in body.get("tools", [])]
        assert [{key: each[key] for key in ("name", "description", "parameters")} for each in told] == offered
        check_same(output, trajectory)
        check_seen(output, kept.conversation.result(), script)
        trajectories.append(trajectory)
    return trajectories


class Kept:
    """An environment, and the last conversation that it began."""

    def __init__(self, environment):
        self.environment, self.conversation = environment, None

    async def start(self, task):
        start = await self.environment.start(task)
        self.conversation = start.state
        return start

    def __getattr__(self, name):
        return getattr(self.environment, name)


def check_seen(output, state, script):
    """What the environment itself saw is the same on both sides, but for the calls' ids."""

    def bare(message):
        fields = {key: value for key, value in message.items() if key != "tool_call_id" and value is not None}
        calls = [(call["name"], call["arguments"]) for call in fields.pop("tool_calls", None) or ()]
        fields.setdefault("content", "")  # as their outputs write none
        return fields | ({"calls": calls} if message.get("tool_calls") is not None else {})

    seen = [bare(with_calls(message, empty=True)) for message in state["completion"]]
    assert seen == [bare(with_calls(message, empty=True)) for message in output["completion"]]
    reasons = [step["response"].message.finish_reason for step in state["trajectory"]]
    assert reasons == ["tool_calls" if action.calls else "stop" for action in script[: len(reasons)]]
    assert state["stop_condition"] == output["stop_condition"] and state["is_truncated"] == output["is_truncated"]


def with_calls(message, empty=False):
    """A message of verifiers' outputs, where calls are written as text, with calls."""
    fields = message if isinstance(message, dict) else message.model_dump()
    calls = [json.loads(call) if isinstance(call, str) else call for call in fields.get("tool_calls") or ()]
    nothing = fields.get("tool_calls") if empty else None
    return {**fields, "tool_calls": calls or nothing}


def check_same(output, trajectory):
    from verifiers.utils.message_utils import normalize_messages

    completion = normalize_messages([with_calls(message) for message in output["completion"]])
    if completion[-1].role != "assistant":
        completion.pop()  # the environment's last word, which no model reads
    names = {}
    prompt = read_messages(normalize_messages(output["prompt"]), names)
    assert trajectory.messages == (*prompt, *read_messages(completion, names))
    assert trajectory.reward == pytest.approx(output["reward"], abs=1e-12)
    said = trajectory.reward_parts.keys() | trajectory.measures.keys()
    assert said == output["metrics"].keys()
    for name, value in trajectory.measures.items():
        assert value == output["metrics"][name]
    assert trajectory.stop_reason == "done"


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_the_same_conversation_reward_and_metrics(example, kind, name):
    environment = example(kind)
    native = environment._inner.environment
    trajectories = compared(
        environment, native, environment.tasks("heldout"), lambda answer: CASES[kind](answer)[name], "heldout"
    )
    if "at once" in name or name == "found" or "right" in name:
        assert all(trajectory.reward > 1 for trajectory in trajectories)


def test_training_rows_too(example):
    environment = example("tools")
    tasks = environment.tasks("train")
    assert len(tasks) == 8
    compared(
        environment, environment._inner.environment, tasks, lambda answer: tools(answer)["two calls together"], "train"
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_group_of_environments(example, place):
    environment = example("group", num_eval=2)
    kind = ("single", "tools", "game")[place]
    script = {"single": "right", "tools": "one call", "game": "found"}[kind]
    for task in environment.tasks("heldout")[2 * place : 2 * place + 2]:
        answer = task.data["row"]["answer"]
        alone = example(kind, num_eval=2)
        (own,) = [t for t in alone.tasks("heldout") if t.data["row"]["question"] == task.data["row"]["question"]]
        ours, _ = lockstep_trajectory(environment, task, CASES[kind](answer)[script])
        theirs, _ = lockstep_trajectory(alone, own, CASES[kind](answer)[script])
        assert (ours.messages, ours.reward) == (theirs.messages, pytest.approx(theirs.reward))
        assert {name: part for name, part in ours.reward_parts.items() if part} == {
            name: part for name, part in theirs.reward_parts.items() if part
        }


@pytest.mark.parametrize("right", [True, False])
def test_an_environment_that_verifiers_itself_brings(example, right):
    """ReasoningGymEnv: its tasks, its system prompt, its parser and its scoring, by an author who knew nothing of
    Lockstep."""
    pytest.importorskip("reasoning_gym")
    environment = example("gym")
    native = environment._inner.environment
    assert type(native).__name__ == "ReasoningGymEnv"

    def script(number):
        answer = native.rg_dataset[int(number)]["answer"] if right else "no"
        return [Says(thought="I add.", text=f"<answer>{answer}</answer>")]

    trajectories = compared(environment, native, environment.tasks("heldout"), script, "heldout")
    rewards = [trajectory.reward for trajectory in trajectories]
    assert rewards == [1.0] * 4 if right else max(rewards) < 0.1
    assert {name for trajectory in trajectories for name in trajectory.measures} == {"format_reward_func"}
