"""GSM8K's problems: answered at once, or with tools, or under a judge whose reward function raises."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import verifiers.v1 as vf

from lockstep_example_next.calculator import Books, CalculatorToolset


class ArithmeticTaskConfig(vf.TaskConfig):
    kind: Literal["single", "tools", "fails"] = "single"
    tools: vf.ToolsetConfig = vf.ToolsetConfig()


class ArithmeticData(vf.TaskData):
    answer: str
    length: int


class ArithmeticTask(vf.Task[ArithmeticData, Books, ArithmeticTaskConfig]):
    @classmethod
    def toolsets(cls, config: ArithmeticTaskConfig) -> list[vf.Toolset]:
        return [CalculatorToolset(config.tools)] if config.kind == "tools" else []

    @vf.stop
    async def too_many(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 5

    @vf.reward(weight=1.0)
    async def correct(self, trace: vf.Trace) -> float:
        return float(trace.last_reply.endswith(self.data.answer))

    @vf.reward(weight=-0.5)
    async def wordy(self, trace: vf.Trace) -> float:
        if self.config.kind == "fails":
            return float(trace.last_reply)  # which is no number
        return min(1.0, len(trace.last_reply) / self.data.length)

    @vf.reward(weight=0.0)
    async def num_booked(self, trace: vf.Trace) -> float:
        return float(len(trace.state.booked))

    @vf.metric
    async def num_characters(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class ArithmeticConfig(vf.TasksetConfig):
    data: str
    """The folder that holds train.jsonl."""
    num_tasks: int = 8
    task: ArithmeticTaskConfig = ArithmeticTaskConfig()


class ArithmeticTaskset(vf.Taskset[ArithmeticTask, ArithmeticConfig]):
    def load(self) -> Iterator[ArithmeticTask]:
        with Path(self.config.data, "train.jsonl").open() as lines:
            for line in itertools.islice(lines, self.config.num_tasks):
                row = json.loads(line)
                yield ArithmeticTask(
                    ArithmeticData(
                        prompt=row["question"],
                        system_prompt="You solve word problems.",
                        answer=row["answer"].rpartition("####")[2].strip().replace(",", ""),
                        length=len(row["question"]),
                    ),
                    self.config.task,
                )
