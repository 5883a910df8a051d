"""Mathematics problems with reference answers, read from the files they are published in.

In: a .json file with a list of objects, a .jsonl file with one object a line, or a folder of such files, which are read
in the order of their names. Each object has the texts `problem` and `answer`: so do the published MATH, MATH-500 and
AIME files. What else it has is not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPE = '{"problem": "...", "answer": "..."}'


@dataclass(frozen=True, slots=True, kw_only=True)
class MathRow:
    """name: its file's name without the ending, and its number in it from 1, e.g. math500/17. answer: LaTeX."""

    name: str
    problem: str
    answer: str


def read_math_rows(path: Path) -> list[MathRow]:
    """Every row that can be graded, in order; rows whose answer is null or empty are left out (MATH's training file
    has two of each).

    Raises FileNotFoundError or ValueError, each one line that says where and the fix.
    """
    files = [path] if path.is_file() else sorted(found for found in path.glob("*.json*") if found.is_file())
    if not files:
        raise FileNotFoundError(
            f"no .json or .jsonl file at {path}: give a file of problems, each {SHAPE}, or a folder of such files"
        )
    rows = [row for file in files for row in _rows(file)]
    if not rows:
        raise ValueError(f"{path} has no row with an answer: give a file of problems, each {SHAPE}")
    return rows


def _rows(file: Path) -> Iterator[MathRow]:
    for number, (row, where) in enumerate(_objects(file), start=1):
        match row:
            case {"problem": str(problem), "answer": None | ""} if problem.strip():
                continue
            case {"problem": str(problem), "answer": str(answer)} if problem.strip() and answer.strip():
                yield MathRow(name=f"{file.stem}/{number}", problem=problem, answer=answer.strip())
            case {"problem": str(problem), "answer": int(answer)} if problem.strip() and not isinstance(answer, bool):
                yield MathRow(name=f"{file.stem}/{number}", problem=problem, answer=str(answer))
            case _:
                raise ValueError(f"{where} has no texts under problem and answer: make the row {SHAPE}, or remove it")


def _objects(file: Path) -> Iterator[tuple[Any, str]]:
    """What a file holds, each with its place: FILE:LINE, or FILE:ROW of a list."""
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield _parsed(line, f"{file}:{number}"), f"{file}:{number}"
        return
    found = _parsed(file.read_bytes(), str(file))
    if not isinstance(found, list):
        raise ValueError(f"{file} holds one {type(found).__name__}: make it a list of rows, each {SHAPE}")
    for number, row in enumerate(found, start=1):
        yield row, f"{file}:{number}"


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): make each row {SHAPE}") from error
