"""Instructions whose satisfaction a program checks: IFEval (arXiv:2311.07911) and IFBench (arXiv:2507.02833).

In: IFEval's input_data.jsonl and IFBench's IFBench_test.jsonl, or either, or any file in their form: one object with
`key`, `prompt`, `instruction_id_list` and `kwargs` a line. All 541 + 300 rows and all 25 + 58 kinds of instructions are
checked; none is left out. The checkers are Lockstep's own and need no download (`instructions/`). Six of them rest on
rules or lists of our own where the published ones use a tagger, a dictionary or a language model's data, and are right
only as often as these: language:response_language, words:start_verb, words:odd_even_syllables, ratio:stop_words,
words:palindrome (any string that reads the same backwards is a word), custom:date_format_list (not all battles).

Both sets were made for testing, without a training split: a fifth of the rows, by a hash of their keys, is held out
here. To compare with published numbers train on neither, and evaluate on all rows of both splits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lockstep.environments.held_out import is_held_out
from lockstep.environments.instructions.instruction import Instruction, bind
from lockstep.environments.instructions.scripted import exercises
from lockstep.environments.instructions.text import words
from lockstep.rollout.environment import Split, ToolEnvironment
from lockstep.rollout.reward import Ending, Score
from lockstep.types import Demonstration, Message, Task

FILES = {"ifeval": "input_data.jsonl", "ifbench": "IFBench_test.jsonl"}
HELDOUT_SHARE = 5  # one row in so many is held out, by its key
FEW_WORDS = 5  # an answer with fewer is degenerate
SHAPE = '{"key": 1, "prompt": "...", "instruction_id_list": ["..."], "kwargs": [{}]}'

Mode = Literal["strict", "loose"]


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and its instructions, their arguments checked."""

    key: str
    prompt: str
    instructions: tuple[Instruction, ...]


def find_files(data: Path) -> dict[str, Path]:
    """The files by the names that tasks are called after. Raises FileNotFoundError, one line that says the fix."""
    if data.is_file():
        names = {file: name for name, file in FILES.items()}
        return {names.get(data.name, data.stem): data}
    places = {name: (data / file, data / name / file) for name, file in FILES.items()}
    found = {name: path for name, both in places.items() for path in both if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"no {' or '.join(FILES.values())} in {data}, nor in its folders {' and '.join(FILES)}: give one of the "
            "files or the folder that holds them: --environment.data PATH"
        )
    return found


def read_rows(path: Path) -> list[Row]:
    """Every row of a .jsonl file, in order. Raises ValueError, one line with file, line and the fix."""
    rows: list[Row] = []
    keys: set[str] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row = _row(line, f"{path}:{number}")
            if row.key in keys:
                raise ValueError(
                    f"{path}:{number} has key {row.key} a second time: give it another, or remove the line"
                )
            keys.add(row.key)
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: give IFEval's or IFBench's own file with --environment.data PATH")
    return rows


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): make the line {SHAPE}, or remove it") from error
    match row:
        case {
            "key": int() | str() as key,
            "prompt": str(prompt),
            "instruction_id_list": [*ids],
            "kwargs": [*arguments],
        } if prompt.strip() and ids and len(ids) == len(arguments):
            if all(isinstance(id, str) for id in ids) and all(isinstance(each, dict) for each in arguments):
                return Row(str(key), prompt, _instructions(ids, arguments, prompt, where))
    raise ValueError(
        f"{where} has not a prompt with as many kwargs as instructions: make the line {SHAPE}, or remove it"
    )


def _instructions(ids: list[str], arguments: list[dict], prompt: str, where: str) -> tuple[Instruction, ...]:
    try:
        return tuple(bind(id, given, prompt) for id, given in zip(ids, arguments, strict=True))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class VerifyIf(ToolEnvironment):
    """Prompts with instructions that a program checks, in one turn and without tools.

    Much of what is asked for is a prohibition, which an answer of nearly nothing keeps: the answer "a" to every prompt
    earns 0.20 in the mean of all rows with `partial`. Watch the measure `degenerate`, the share of answers of fewer
    than 5 words.

    Of IFEval 447 rows are trained on and 94 held out, of IFBench 240 and 60.
    """

    data: Path
    """Folder that holds input_data.jsonl or IFBench_test.jsonl or folders ifeval and ifbench with them; or one file."""
    mode: Mode = "strict"
    """'strict' checks the final message as it is. 'loose' also without its first or last line and without asterisks,
    eight variants in all, of which one must follow: it forgives an introduction and emphasis."""
    partial: bool = True
    """True rewards the share of a prompt's instructions that are followed; False 1 for all of them, and otherwise 0."""
    num_demonstrations: int = 1000
    """Scripted exercises for a tiny model's cold start; the data itself has no demonstrations."""

    def __post_init__(self) -> None:
        if self.num_demonstrations < 0:
            raise ValueError(f"environment.num_demonstrations={self.num_demonstrations}: give 0 or more")

    def tasks(self, split: Split) -> Sequence[Task]:
        """A task is named after its file and key, e.g. ifeval/1000."""
        return [
            _task(f"{name}/{row.key}", row.prompt, row.instructions)
            for name, path in find_files(self.data).items()
            for row in read_rows(path)
            if is_held_out(row.key, one_in=HELDOUT_SHARE) == (split == "heldout")
        ]

    def demonstrations(self, seed: int) -> Sequence[Demonstration]:
        """Exercises of a few words with a response that follows (see `scripted`); none is a task of the data."""
        return [
            Demonstration(
                task=_task(f"scripted/{seed}/{i}", exercise.prompt, exercise.instructions),
                messages=(Message(role="assistant", channel="final", content=exercise.response),),
            )
            for i, exercise in enumerate(exercises(seed, self.num_demonstrations))
        ]

    async def grade(self, ending: Ending) -> Score:
        """`followed` is the reward. Measured beside it, whatever the mode: all and share, strict and loose; the means
        of the two `all` are IFEval's prompt-level accuracies; and degenerate, 1 for an answer of fewer than 5 words.
        Only a final message is graded, never an analysis."""
        reached = ending.answer is not None and ending.messages[-1].channel in ("final", None)
        answer = ending.answer if reached and ending.answer is not None else ""
        instructions: tuple[Instruction, ...] = ending.task.data["instructions"]
        followed = {
            "strict": [instruction.followed(answer) for instruction in instructions],
            "loose": [instruction.followed_loosely(answer) for instruction in instructions],
        }
        measures = {
            f"{mode}_{name}": measure
            for mode, found in followed.items()
            for name, measure in (("all", float(all(found))), ("share", sum(found) / len(found)))
        }
        measures["degenerate"] = float(len(words(answer)) < FEW_WORDS)
        return Score(
            parts={"followed": measures[f"{self.mode}_{'share' if self.partial else 'all'}"]}, measures=measures
        )


def _task(id: str, prompt: str, instructions: tuple[Instruction, ...]) -> Task:
    return Task(id=id, messages=(Message(role="user", content=prompt),), data={"instructions": instructions})
