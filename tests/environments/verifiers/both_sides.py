"""The same model on both sides: a verifiers environment run by verifiers itself, and through Lockstep.

A model here is a list of what it does, turn by turn. On verifiers' side it stands behind verifiers' own OpenAI client,
over HTTP that stays in the process; on Lockstep's side behind the scripted engine, with a renderer whose tokens are
JSON's bytes.
"""

import asyncio
import dataclasses
import json
from dataclasses import dataclass

from lockstep.engine.scripted import ScriptedEngine
from lockstep.rollout.renderer import Extension, Parsed
from lockstep.rollout.trajectory import Attempt, Policy, Rollout
from lockstep.types import Message


@dataclass(frozen=True, kw_only=True)
class Says:
    """One action. calls: (tool, arguments as JSON text)."""

    text: str | None = None
    thought: str | None = None
    calls: tuple[tuple[str, str], ...] = ()

    def messages(self):
        """The action in Lockstep's messages."""
        found = []
        if self.thought:
            found.append(Message(role="assistant", channel="analysis", content=self.thought))
        if self.text is not None:
            channel = "commentary" if self.calls else "final"
            found.append(Message(role="assistant", channel=channel, content=self.text))
        for name, arguments in self.calls:
            recipient = f"functions.{name}"
            found.append(Message(role="assistant", channel="commentary", recipient=recipient, content=arguments))
        return tuple(found)

    def openai(self, number):
        """The action in OpenAI's JSON, as turn `number` of its conversation."""
        calls = [
            {"id": f"id-{number}-{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(self.calls)
        ]
        message = {"role": "assistant", "content": self.text}
        message |= {"reasoning_content": self.thought} if self.thought else {}
        return message | ({"tool_calls": calls} if calls else {})


class JsonRenderer:
    """Messages as bytes of JSON; an action of other bytes is a final text, and `broken` is malformed."""

    stop_token_ids = (0,)

    def __init__(self):
        self.tools = []

    def start(self, messages, tools):
        self.tools.append(tuple(tools))
        return encoded(messages)

    def extend(self, messages, new, tools, *, last_action):
        return Extension(tokens=encoded(new))

    def shorten(self, text, max_tokens):
        return text

    def parse(self, action):
        text = bytes(action).decode("utf-8", "replace")
        if text == "broken":
            return Parsed(messages=(), malformed="bad_header", explanation="speak JSON")
        if text.startswith("[") and text.endswith("]"):
            return Parsed(messages=tuple(Message(**fields) for fields in json.loads(text)))
        return Parsed(messages=(Message(role="assistant", channel="final", content=text),))


def encoded(messages):
    return tuple(json.dumps([dataclasses.asdict(message) for message in messages]).encode())


def lockstep_trajectory(environment, task, actions, **limits):
    """The trajectory of the scripted actions (Says, bytes, tokens, or an exception) on a task, and the renderer, which
    saw its tools."""
    limits = {"max_turns": 20, "max_tokens": 10**6, "max_action_tokens": 10**5} | limits
    script = [
        encoded(each.messages()) if isinstance(each, Says) else tuple(each) if isinstance(each, bytes) else each
        for each in actions
    ]
    renderer = JsonRenderer()
    policy = Policy(engine=ScriptedEngine(script), renderer=renderer, settings=Rollout(**limits), temperature=1.0)
    return asyncio.run(Attempt(policy, environment, task, "t", 0).run()), renderer


def native_outputs(environment, actions_of, split, **evaluate):
    """verifiers' own outputs for every row of a split. actions_of(prompt) is the script for the row with this prompt
    (OpenAI's messages)."""
    import httpx
    from openai import AsyncOpenAI
    from verifiers.clients import OpenAIChatCompletionsClient

    requests = []

    def respond(request):
        body = json.loads(request.content)
        requests.append(body)
        messages = body["messages"]
        prompt = tuple(message["content"] for message in messages if message["role"] in ("system", "user"))
        number = sum(message["role"] == "assistant" for message in messages) - actions_of.num_shown
        action = actions_of(prompt)[number]
        calls = bool(action.calls)
        choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": action.openai(number)}
        return httpx.Response(
            200,
            json={"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]},
        )

    async def run():
        http = httpx.AsyncClient(transport=httpx.MockTransport(respond))
        client = OpenAIChatCompletionsClient(AsyncOpenAI(api_key="none", base_url="http://model/v1", http_client=http))
        inputs = environment.get_dataset() if split == "train" else environment.get_eval_dataset()
        return await environment.generate(
            inputs, client=client, model="m", independent_scoring=True, on_progress=[], **evaluate
        )

    return asyncio.run(run())["outputs"], requests
