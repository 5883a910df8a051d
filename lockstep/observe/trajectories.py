"""Trajectories as Parquet: one row a trajectory, one file a step, nothing left out but recorded expert routes.

`write` and `read` are each other's inverse up to `Task.data` and `Turn.routed_experts`, which are not kept, and to
engine log-probs, which are kept as float32 (what engines return). A file appears whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.types import Group, Message, Task, Trajectory, Turn

_MESSAGES = pa.list_(pa.struct([(name, pa.string()) for name in ("role", "channel", "recipient", "name", "content")]))
_TURNS = pa.list_(
    pa.struct(
        [
            ("context", pa.list_(pa.int32())),
            ("action", pa.list_(pa.int32())),
            ("engine_logprobs", pa.list_(pa.float32())),
            ("weights_version", pa.int64()),
            ("restarts", pa.bool_()),
        ]
    )
)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("split", pa.string()),
        ("group_id", pa.int64()),
        ("trajectory_id", pa.string()),
        ("task_id", pa.string()),
        ("reward", pa.float64()),
        ("reward_parts", pa.map_(pa.string(), pa.float64())),
        ("measures", pa.map_(pa.string(), pa.float64())),
        ("stop_reason", pa.string()),
        ("error", pa.string()),
        ("events", pa.map_(pa.string(), pa.int64())),
        ("task_messages", _MESSAGES),
        ("messages", _MESSAGES),
        ("turns", _TURNS),
    ]
)
_FILE_NAME = re.compile(r"step_(\d+)(?:\.(\w+))?\.parquet")
TRAIN = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTrajectory:
    """A trajectory and where it came from. group_id: its group's place among those written for that step and split."""

    step: int
    split: str
    group_id: int
    trajectory: Trajectory


def write(directory: Path, step: int, groups: Sequence[Group], *, split: str = TRAIN) -> Path:
    """Write every trajectory of `groups` to one file of `directory`, in place of an earlier one of that step and split.

    split: a word, e.g. 'train', 'rejected', 'heldout_greedy'; 'train' is left out of the file's name.
    """
    name = f"step_{step:06d}.parquet" if split == TRAIN else f"step_{step:06d}.{split}.parquet"
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"split={split!r} at step {step}: a split is a word of letters, digits and _, steps are >= 0")
    rows = [_row(step, split, i, each) for i, group in enumerate(groups) for each in group.trajectories]
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{name}.tmp"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")
    return temporary.replace(directory / name)


def read(directory: Path, *, step: int | None = None, split: str | None = None) -> list[RecordedTrajectory]:
    """The recorded trajectories of `directory` in order of step; only those of `step` and `split`, where given."""
    found = []
    for file_step, file_split, path in files(directory):
        if step in (None, file_step) and split in (None, file_split):
            rows = pq.read_table(path, schema=SCHEMA).to_pylist(maps_as_pydicts="strict")
            found += [_recorded(row) for row in rows]
    return found


def files(directory: Path) -> list[tuple[int, str, Path]]:
    """(step, split, path) of each trajectory file, in order of step, a step's training trajectories first."""
    matches = [(_FILE_NAME.fullmatch(path.name), path) for path in directory.glob("*.parquet")]
    found = [(int(match[1]), match[2] or TRAIN, path) for match, path in matches if match]
    return sorted(found, key=lambda file: (file[0], file[1] != TRAIN, file[1]))


def _row(step: int, split: str, group_id: int, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "step": step,
        "split": split,
        "group_id": group_id,
        "trajectory_id": _utf8(trajectory.id),
        "task_id": _utf8(trajectory.task.id),
        "reward": trajectory.reward,
        "reward_parts": _items(trajectory.reward_parts),
        "measures": _items(trajectory.measures),
        "stop_reason": trajectory.stop_reason,
        "error": _utf8(trajectory.error),
        "events": _items(trajectory.events),
        "task_messages": [_message_row(message) for message in trajectory.task.messages],
        "messages": [_message_row(message) for message in trajectory.messages],
        "turns": [
            {
                "context": turn.context,
                "action": turn.action,
                "engine_logprobs": turn.engine_logprobs,
                "weights_version": turn.weights_version,
                "restarts": turn.restarts,
            }
            for turn in trajectory.turns
        ],
    }


def _recorded(row: Mapping[str, Any]) -> RecordedTrajectory:
    trajectory = Trajectory(
        id=row["trajectory_id"],
        task=Task(id=row["task_id"], messages=tuple(Message(**each) for each in row["task_messages"])),
        turns=tuple(
            Turn(
                context=tuple(turn["context"]),
                action=tuple(turn["action"]),
                engine_logprobs=tuple(turn["engine_logprobs"]),
                weights_version=turn["weights_version"],
                restarts=turn["restarts"],
            )
            for turn in row["turns"]
        ),
        messages=tuple(Message(**each) for each in row["messages"]),
        reward=row["reward"],
        reward_parts=row["reward_parts"],
        measures=row["measures"] or {},
        stop_reason=row["stop_reason"],
        events=row["events"],
        error=row["error"],
    )
    return RecordedTrajectory(step=row["step"], split=row["split"], group_id=row["group_id"], trajectory=trajectory)


def _message_row(message: Message) -> dict[str, str | None]:
    return {
        "role": message.role,
        "channel": _utf8(message.channel),
        "recipient": _utf8(message.recipient),
        "name": _utf8(message.name),
        "content": _utf8(message.content),
    }


def _items(mapping: Mapping[str, float]) -> list[tuple[str | None, float]]:
    return [(_utf8(key), value) for key, value in mapping.items()]


def _utf8(text: str | None) -> str | None:
    """A lone surrogate, which JSON written by a model can hold ("\\ud800"), has no UTF-8: it is kept as its escape."""
    return text if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
