"""GSM8K's problems as environments of verifiers: one answer, tools, tools with a state, a game, and a group of them;
and verifiers' own environment for reasoning-gym.

Nothing here knows of Lockstep. `LOG` counts what was set up and cleaned up, for whoever wants to see it.
"""

import itertools
import json
from collections import Counter
from pathlib import Path

import verifiers as vf
from datasets import Dataset

LOG: Counter[str] = Counter()
SYSTEM = "You solve word problems."
SHOWN = [
    {"role": "user", "content": "Tom has 3 apples and buys 4. How many has he?"},
    {"role": "assistant", "content": "<reasoning>3 + 4 = 7</reasoning>\n<answer>7</answer>"},
]


def read(path: Path, count: int) -> Dataset:
    with path.open() as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, count)]
    return Dataset.from_list(
        [
            {
                "question": row["question"],
                "answer": row["answer"].rpartition("####")[2].strip().replace(",", ""),
                "info": {"steps": row["answer"].count("<<"), "length": len(row["question"])},
            }
            for row in rows
        ]
    )


async def add(a: float, b: float) -> str:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return f"{a + b:g}"


def divide(a: float, b: float = 2) -> float:
    """Divide one number by another.

    Args:
        a: What is divided.
        b: By what.
    """
    return a / b


def last_text(completion) -> str:
    said = [message["content"] or "" for message in completion if message["role"] == "assistant"]
    return said[-1] if said else ""


async def correct(completion, answer) -> float:
    return 1.0 if last_text(completion).strip().endswith(answer) else 0.0


def brief(completion, info) -> float:
    return max(0.0, 1.0 - len(last_text(completion)) / info["length"])


async def num_characters(completion) -> float:
    return float(len(last_text(completion)))


class Books(vf.StatefulToolEnv):
    """Each rollout has books of its own, which its tools write to."""

    def __init__(self, **kwargs):
        super().__init__(stop_errors=[PermissionError], **kwargs)
        self.add_tool(self.book, args_to_skip=["books"])

    async def setup_state(self, state, **kwargs):
        LOG["setup"] += 1
        state["books"] = []
        return await super().setup_state(state, **kwargs)

    def update_tool_args(self, tool_name, tool_args, messages, state, **kwargs):
        return tool_args | {"books": state["books"]}

    async def book(self, amount: float, books: list) -> str:
        """Write an amount into the books.

        Args:
            amount: How much.
        """
        if amount > 1e6:
            raise PermissionError("too much")
        books.append(amount)
        return f"{len(books)} booked, {sum(books):g} in all"

    @vf.cleanup
    async def shut(self, state):
        LOG["cleanup"] += 1


class Guess(vf.MultiTurnEnv):
    """The answer is to be guessed; what comes back is higher or lower, and after five guesses nothing."""

    async def setup_state(self, state):
        LOG["setup"] += 1
        state["guesses"] = []
        return await super().setup_state(state)

    @vf.stop
    async def gave_up(self, state) -> bool:
        return len(state["guesses"]) >= 5

    @vf.cleanup
    async def shut(self, state):
        LOG["cleanup"] += 1

    async def env_response(self, messages, state, **kwargs):
        said = messages[-1]["content"] or ""
        try:
            guess = float(self.parser.parse_answer(messages) or said)
        except ValueError:
            return [{"role": "user", "content": "Say a number."}]
        state["guesses"].append(guess)
        if guess == float(state["answer"]):
            state["final_env_response"] = [{"role": "user", "content": "Right!"}]
            return state["final_env_response"]
        return [vf.UserMessage(content="Higher." if guess < float(state["answer"]) else "Lower.")]


async def found(state) -> float:
    return float(bool(state["guesses"]) and state["guesses"][-1] == float(state["answer"]))


async def few_guesses(state) -> float:
    return 1 / (1 + len(state["guesses"]))


class Shutting(vf.Rubric):
    @vf.cleanup
    async def shut(self, state):
        LOG["rubric_cleanup"] += 1


def load_environment(data: str, kind: str = "single", num_train: int = 8, num_eval: int = 4) -> vf.Environment:
    if kind == "gym":  # made by the package reasoning-gym, and an environment that verifiers itself brings
        return vf.ReasoningGymEnv(gym="chain_sum", num_train_examples=num_train, num_eval_examples=num_eval, seed=3)
    train, test = Path(data) / "train.jsonl", Path(data) / "test.jsonl"
    rows = {"dataset": read(train, num_train), "eval_dataset": read(test, num_eval)}
    if kind == "single":
        parser = vf.XMLParser(fields=["reasoning", "answer"], answer_field="answer")

        async def exact(parser, completion, answer) -> float:
            return 1.0 if (parser.parse_answer(completion) or "") == answer else 0.0

        rubric = vf.Rubric(funcs=[exact, parser.get_format_reward_func()], weights=[1.0, 0.2], parser=parser)
        rubric.add_metric(num_characters)
        return vf.SingleTurnEnv(system_prompt=SYSTEM, few_shot=SHOWN, parser=parser, rubric=rubric, **rows)
    if kind == "tools":
        rubric = vf.Rubric(funcs=[correct, brief, num_characters], weights=[1.0, 0.25, 0.0])
        return vf.ToolEnv(tools=[add, divide], system_prompt=SYSTEM, rubric=rubric, max_turns=6, **rows)
    if kind == "books":
        rubric = Shutting(funcs=[correct, brief], weights=[1.0, -0.5])
        return Books(tools=[], rubric=rubric, max_turns=6, **rows)
    if kind == "game":
        parser = vf.XMLParser(fields=["answer"])
        rubric = vf.Rubric(funcs=[found, few_guesses], weights=[2.0, 1.0], parser=parser)
        return Guess(parser=parser, rubric=rubric, max_turns=8, **rows)
    if kind == "group":
        kinds = ("single", "tools", "game")
        return vf.EnvGroup([load_environment(data, each, num_train, num_eval) for each in kinds], env_names=list(kinds))
    raise ValueError(f"kind={kind!r}: one of single, tools, books, game, group, gym")
