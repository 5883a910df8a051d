"""A taskset of verifiers 0.4 whose agent runs in process and speaks any of three formats, well or badly.

A module that can be imported is enough for verifiers' loader. Nothing here knows of Lockstep.
"""

import asyncio
from collections import Counter
from typing import Literal

import anthropic
import openai
import verifiers.v1 as vf

__all__ = ["OwnHarness", "OwnTaskset"]

LOG: Counter[str] = Counter()
TRACES: list[vf.Trace] = []
PARAMETERS = {"type": "object", "properties": {"x": {"type": "number"}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}


class OwnConfig(vf.HarnessConfig):
    speaks: Literal["chat", "responses", "anthropic"] = "chat"
    streams: bool = False
    does: str = "talks"


class Chat:
    def __init__(self, endpoint, secret, streams):
        self.client = openai.AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0)
        self.streams, self.said = streams, []
        function = {"name": "twice", "description": "Doubles.", "parameters": PARAMETERS}
        self.tools = [{"type": "function", "function": function}]

    def says(self, role, content):
        self.said.append({"role": role, "content": content})

    async def ask(self):
        """The text of the answer, and its calls: (id, name, arguments)."""
        given = {"model": "m", "messages": list(self.said), "tools": self.tools}
        if self.streams:  # the library's own stream helper takes strict tools alone
            message = {}
            async for chunk in await self.client.chat.completions.create(**given, stream=True):
                for key, value in chunk.choices[0].delta.to_dict().items():
                    message[key] = message[key] + value if key in message and value else value
        else:
            message = (await self.client.chat.completions.create(**given)).choices[0].message.to_dict()
        calls = [
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls", ())
        ]
        self.said.append(message)
        return message["content"] or "", calls

    def answers(self, call, text):
        self.said.append({"role": "tool", "tool_call_id": call, "content": text})


class Responses(Chat):
    def __init__(self, endpoint, secret, streams):
        super().__init__(endpoint, secret, streams)
        self.tools = [{"type": "function", "name": "twice", "description": "Doubles.", "parameters": PARAMETERS}]

    async def ask(self):
        given = {"model": "m", "input": list(self.said), "tools": self.tools}
        if self.streams:
            async with self.client.responses.stream(**given) as stream:
                response = await stream.get_final_response()
        else:
            response = await self.client.responses.create(**given)
        self.said += [item.to_dict() for item in response.output]
        calls = [(i.call_id, i.name, i.arguments) for i in response.output if i.type == "function_call"]
        return response.output_text, calls

    def answers(self, call, text):
        self.said.append({"type": "function_call_output", "call_id": call, "output": text})


class Anthropic(Chat):
    def __init__(self, endpoint, secret, streams):
        base = endpoint.removesuffix("/v1")
        self.client = anthropic.AsyncAnthropic(base_url=base, api_key=secret, max_retries=0)
        self.streams, self.said, self.system = streams, [], None
        self.tools = [{"name": "twice", "description": "Doubles.", "input_schema": PARAMETERS}]

    def says(self, role, content):
        if role == "system":
            self.system = content
        else:
            super().says(role, content)

    async def ask(self):
        given = {"model": "m", "max_tokens": 64, "messages": list(self.said), "tools": self.tools}
        given |= {"system": self.system} if self.system else {}
        if self.streams:
            async with self.client.messages.stream(**given) as stream:
                message = await stream.get_final_message()
        else:
            message = await self.client.messages.create(**given)
        self.said.append({"role": "assistant", "content": [block.to_dict() for block in message.content]})
        text = "".join(block.text for block in message.content if block.type == "text")
        return text, [(b.id, b.name, str(b.input)) for b in message.content if b.type == "tool_use"]

    def answers(self, call, text):
        block = {"type": "tool_result", "tool_use_id": call, "content": text}
        if self.said[-1]["role"] == "user":
            self.said[-1]["content"].append(block)
        else:
            self.says("user", [block])


class OwnHarness(vf.Harness[OwnConfig]):
    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        LOG["launched"] += 1
        try:
            kind = {"chat": Chat, "responses": Responses, "anthropic": Anthropic}[self.config.speaks]
            model = kind(endpoint, secret, self.config.streams)
            system, prompt = self.resolve_prompt(data)
            model.says("system", system)
            model.says("user", prompt)
            async with model.client:
                await getattr(self, self.config.does)(model, runtime)
            return vf.ProgramResult(exit_code=0, stdout="", stderr="")
        finally:
            LOG["ended"] += 1

    async def talks(self, model, runtime):
        """Until the model says `stop`, which is the answer."""
        while True:
            text, calls = await model.ask()
            for call, name, arguments in calls:
                model.answers(call, f"{name} of {arguments}")
            if text.endswith("stop"):
                return
            if not calls:
                model.says("user", "go on")

    async def forgets(self, model, runtime):
        """The model's thoughts alone, which is allowed."""
        for _ in range(2):
            await model.ask()
            model.said[-1].pop("reasoning_content", None)
            model.says("user", "go on")

    async def once(self, model, runtime):
        await model.ask()

    async def rewrites(self, model, runtime):
        await model.ask()
        model.said[-1]["content"] = "what nobody said"
        model.says("user", "go on")
        await model.ask()

    async def summarises(self, model, runtime):
        await model.ask()
        del model.said[1:]
        model.says("user", "In short: nothing.")
        await model.ask()

    async def repeats(self, model, runtime):
        await model.ask()
        await model.ask()

    async def speaks_for_it(self, model, runtime):
        await model.ask()
        model.says("user", "go on")
        model.says("assistant", "I do")
        await model.ask()

    async def asks_twice(self, model, runtime):
        await asyncio.gather(model.ask(), model.ask())

    async def changes_tools(self, model, runtime):
        await model.ask()
        model.tools[0]["function"]["name"] = "late"
        model.says("user", "go on")
        await model.ask()

    async def custom_tool(self, model, runtime):
        model.tools = [{"type": "custom", "custom": {"name": "shell"}}]
        await model.ask()

    async def shows_a_picture(self, model, runtime):
        await model.ask()
        model.says("user", [PICTURE])
        await model.ask()

    async def hangs(self, model, runtime):
        await model.ask()
        await asyncio.Event().wait()

    async def runs_a_program(self, model, runtime):
        await model.ask()
        await runtime.run(["sh", "-c", "setsid sleep 1000 & sleep 1000 & pwd > started; sleep 1000"], {})

    async def demands(self, model, runtime):
        await model.client.chat.completions.create(model="m", messages=model.said, logprobs=True)

    async def asks_again_when_told(self, model, runtime):
        """While the first answer is awaited; it takes the refusal."""
        first = asyncio.create_task(model.ask())
        while not LOG["told"]:
            await asyncio.sleep(0)
        try:
            await model.ask()
        except openai.APIStatusError:
            LOG["refused"] += 1
        await first

    async def dies(self, model, runtime):
        await model.ask()
        raise KeyError("board")

    async def dies_loudly(self, model, runtime):
        await model.ask()
        raise KeyError("so\n" * 5000 + "the end")

    async def says_nothing(self, model, runtime):
        return

    async def goes_on_after_all(self, model, runtime):
        """Takes no refusal."""
        await model.ask()
        while True:
            model.says("user", "go on")
            try:
                await model.ask()
            except openai.APIStatusError:
                LOG["refused"] += 1
                return


class OwnTaskConfig(vf.TaskConfig):
    fails: str = ""


class OwnTask(vf.Task[vf.TaskData, vf.State, OwnTaskConfig]):
    async def setup(self, trace, runtime):
        LOG["setup"] += 1
        TRACES.append(trace)
        if self.config.fails == "setup":
            raise OSError("no board")
        if self.config.fails == "sandbox":
            raise vf.SandboxError("the sandbox went away")

    async def finalize(self, trace, runtime):
        LOG["finalize"] += 1
        if self.config.fails == "finalize":
            raise OSError("no end")
        if self.config.fails == "late":
            await asyncio.Event().wait()

    @vf.stop
    async def enough(self, trace: vf.Trace) -> bool:
        return self.config.fails == "at once" or trace.num_turns >= 4

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        if self.config.fails == "reward":
            raise ZeroDivisionError("by\nzero")
        return float("nan") if self.config.fails == "nan" else float("right" in trace.last_reply)

    @vf.reward(weight=0.5)
    async def several(self, trace: vf.Trace) -> dict[str, float]:
        return {"one": 1.0, "turns": float(trace.num_turns)}

    @vf.metric
    async def cut(self, trace: vf.Trace) -> float:
        return float(trace.is_truncated)


class OwnTasksetConfig(vf.TasksetConfig):
    num_rows: int = 3
    prompt: str = "Say it."
    image: str | None = None
    finalize_s: float | None = None
    agent_s: float | None = None
    broken: bool = False
    picture: bool = False
    serves: Literal["", "badly", "nowhere"] = ""
    task: OwnTaskConfig = OwnTaskConfig()


class OwnTaskset(vf.Taskset[OwnTask, OwnTasksetConfig]):
    @classmethod
    def toolsets(cls, config):
        if config.serves:
            LOG["served"] += 1
            raise (OSError if config.serves == "badly" else vf.SandboxError)("no server")
        return []

    def load(self):
        config = self.config
        if config.broken:
            raise FileNotFoundError("no rows")
        for number in range(config.num_rows):
            prompt = [vf.UserMessage(content=[PICTURE])] if config.picture else f"{number}: {config.prompt}"
            timeout = vf.TaskTimeout(finalize=config.finalize_s, agent=config.agent_s)
            data = vf.TaskData(prompt=prompt, system_prompt="Speak.", image=config.image, timeout=timeout)
            yield OwnTask(data, config.task)
