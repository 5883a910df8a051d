"""Environments of verifiers that do what they should not. A module that can be imported is enough for its loader."""

import asyncio
from collections import Counter

import verifiers as vf
from datasets import Dataset

LOG: Counter[str] = Counter()
STATES: list[vf.State] = []
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}


def rows(count=4):
    return Dataset.from_list([{"question": f"Say {i}.", "answer": str(i)} for i in range(count)])


class Base(vf.MultiTurnEnv):
    """Says `go on` until the model says its answer."""

    @vf.stop
    async def answered(self, state) -> bool:
        said = state["trajectory"][-1]["completion"][-1].content if state["trajectory"] else ""
        return said == state["answer"]

    async def setup_state(self, state):
        LOG["setup"] += 1
        STATES.append(state)
        return await super().setup_state(state)

    async def env_response(self, messages, state, **kwargs):
        LOG["env_response"] += 1
        return [{"role": "user", "content": "go on"}]

    @vf.cleanup
    async def shut(self, state):
        LOG["cleanup"] += 1


class Hangs(Base):
    async def env_response(self, messages, state, **kwargs):
        await asyncio.Event().wait()


class Raises(Base):
    async def env_response(self, messages, state, **kwargs):
        raise KeyError("board")


class Sandbox(Base):
    async def env_response(self, messages, state, **kwargs):
        raise vf.SandboxError("the sandbox went away")


class Stops(Base):
    async def env_response(self, messages, state, **kwargs):
        raise vf.Error("no more")


class NeverBegins(Base):
    async def setup_state(self, state):
        await super().setup_state(state)
        raise vf.InfraError("no server")


class OverAtOnce(Base):
    @vf.stop
    async def over(self, state) -> bool:
        return True


class Rewrites(Base):
    async def get_prompt_messages(self, state):
        return (await super().get_prompt_messages(state))[-1:]


class AsksItself(Base):
    async def env_response(self, messages, state, **kwargs):
        await self.get_model_response(state, [vf.UserMessage(content="Is it good?")])


class AsksTwice(Base):
    async def get_prompt_messages(self, state):
        prompt = await super().get_prompt_messages(state)
        LOG["prompts"] += 1
        if len(state["trajectory"]) == 1:
            await asyncio.gather(self.get_model_response(state, prompt), self.get_model_response(state, prompt))
        return prompt


class ChangesTools(Base):
    async def env_response(self, messages, state, **kwargs):
        state["tool_defs"] = [vf.Tool(name="late", description="Late.", parameters={})]
        return await super().env_response(messages, state)


class Answers(Base):
    """Answers with what it is given."""

    def __init__(self, answer, **kwargs):
        super().__init__(**kwargs)
        self.answer = answer

    async def env_response(self, messages, state, **kwargs):
        return self.answer


class CleansUpBadly(Base):
    @vf.cleanup
    async def shut(self, state):
        LOG["cleanup"] += 1
        raise OSError("cannot delete")


ANSWERS = {
    "silent": [],
    "assistant": [{"role": "assistant", "content": "I say"}],
    "picture": [PICTURE],
    "orphan": [{"role": "tool", "tool_call_id": "nobody", "content": "3"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "surrogate": [{"role": "user", "content": "half \ud800"}],
}
KINDS = {
    kind.__name__: kind
    for kind in (Base, Hangs, Raises, Sandbox, Stops, NeverBegins, OverAtOnce, Rewrites, AsksItself, AsksTwice)
} | {"ChangesTools": ChangesTools, "CleansUpBadly": CleansUpBadly}


async def right(completion, answer) -> float:
    return float(bool(completion) and completion[-1]["content"] == answer)


def fragile(completion) -> float:
    return float(completion[-1]["content"])


def half(state) -> float:
    return 0.5


def endless(state) -> float:
    return float("nan")


def ranked(completions) -> list[float]:
    return [float(i) for i in range(len(completions))]


class Bonus(vf.Rubric):
    """Says more than its functions do."""

    bonus = 0.125

    async def score_rollout(self, state):
        await super().score_rollout(state)
        state["reward"] += self.bonus


class NoBonus(Bonus):
    bonus = float("nan")


class Judge(vf.Rubric):
    has_advantages = True


async def touchy(why: str) -> str:
    """Fail.

    Args:
        why: How.
    """
    if why == "sandbox":
        raise vf.SandboxError("gone")
    raise PermissionError(why)


def load_environment(kind: str = "Base", rubric: str = "right", num_rows: int = 4, **kwargs):
    rubrics = {
        "right": lambda: vf.Rubric(funcs=[right]),
        "fragile": lambda: vf.Rubric(funcs=[right, fragile], weights=[1.0, 0.5]),
        "nan metric": lambda: vf.Rubric(funcs=[right, endless], weights=[1.0, 0.0]),
        "nan": lambda: vf.Rubric(funcs=[right, endless], weights=[1.0, 1.0]),
        "bonus": lambda: Bonus(funcs=[right]),
        "nan bonus": lambda: NoBonus(funcs=[right]),
        "group": lambda: vf.Rubric(funcs=[right, ranked]),
        "advantages": lambda: Judge(funcs=[right]),
        "one name, two weights": lambda: vf.RubricGroup(
            [vf.Rubric(funcs=[right, half], weights=[1.0, 1.0]), vf.Rubric(funcs=[half], weights=[3.0])]
        ),
        "one name, one weight": lambda: vf.RubricGroup([vf.Rubric(funcs=[half]), vf.Rubric(funcs=[half])]),
    }
    given = {"dataset": rows(num_rows), "rubric": rubrics[rubric]()} | kwargs
    if kind == "nothing":
        return None
    if kind == "picture prompt":
        given["dataset"] = Dataset.from_list([{"prompt": [PICTURE], "answer": "1"}] * num_rows)
    if kind == "odd prompt":
        given["dataset"] = Dataset.from_list([{"prompt": [{"role": "user", "content": {"a": 1}}]}] * num_rows)
    if kind == "eval only":
        given["eval_dataset"] = given.pop("dataset")
    if kind == "touchy":
        return vf.ToolEnv(tools=[touchy], stop_errors=[Exception], **given)
    if kind in ANSWERS:
        return Answers(ANSWERS[kind], **given)
    if kind == "key":
        vf.ensure_keys(["LOCKSTEP_TEST_NO_SUCH_KEY"])
    return KINDS.get(kind, Base)(**given)
