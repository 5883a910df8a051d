"""What a run leaves behind in runs/<name>/, and how it is read back.

In: metrics, groups of trajectories, the resolved configuration. Out: `config.json`, `metrics.jsonl` (one object a
line), `trajectories/*.parquet` (one file a step) and `tensorboard/`. A run that is killed and resumed from a checkpoint
ends with the records of one never interrupted: `truncate_after` takes back what the checkpoint does not know.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from lockstep.observe import trajectories
from lockstep.observe.trajectories import RecordedTrajectory
from lockstep.types import Group, UserError

if TYPE_CHECKING:
    from lockstep.observe.tensorboard import EventFile

Phase = Literal["sft", "rl", "eval"]

CONFIG = "config.json"
METRICS = "metrics.jsonl"
TRAJECTORIES = "trajectories"
TENSORBOARD = "tensorboard"

# Evaluations belong to the reinforcement-learning steps: step 0 is the cold-started model.
_STAGE = {"sft": 0, "rl": 1, "eval": 1}


class Recorder:
    """Writes one run's records into `directory`, which is made when it is not there. A context manager.

    tensorboard: also write TensorBoard events; needs the package `tensorboard`.
    Opening a directory that has records appends to them; call `truncate_after` to resume from a checkpoint.
    """

    def __init__(self, directory: Path, *, tensorboard: bool) -> None:
        self._directory = Path(directory)
        self._events: EventFile | None = None
        if tensorboard:
            from lockstep.observe.tensorboard import EventFile

            self._events = EventFile(self._directory / TENSORBOARD)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._metrics_path = self._directory / METRICS
        _drop_torn_tail(self._metrics_path)
        self._metrics = self._metrics_path.open("a", encoding="utf-8")

    def write_config(self, config: Mapping[str, object]) -> Path:
        """Write the resolved configuration, given as what `json.dumps` takes."""
        return _write_whole(self._directory / CONFIG, json.dumps(config, indent=2) + "\n")

    def write_metrics(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Append one line and flush it. Values become floats; those that are not finite become null, which JSON has."""
        reserved = {"step", "phase"} & metrics.keys()
        if reserved:
            raise ValueError(f"metrics named {sorted(reserved)}: the recorder writes these itself; rename the metrics")
        if phase not in _STAGE:
            raise ValueError(f"phase={phase!r}: one of {', '.join(_STAGE)} is wanted")
        floats = {key: float(value) for key, value in metrics.items()}
        finite = {key: value if math.isfinite(value) else None for key, value in floats.items()}
        self._metrics.write(json.dumps({"step": int(step), "phase": phase, **finite}) + "\n")
        self._metrics.flush()
        if self._events is not None:
            self._events.write(step, {_tag(phase, key): value for key, value in floats.items()})

    def write_trajectories(self, step: int, groups: Sequence[Group], *, split: str = trajectories.TRAIN) -> Path:
        """Write every trajectory of `groups`, masked ones too, to `trajectories/step_<step>[.<split>].parquet`.

        split: 'train', or a word that says why these are no training trajectories: 'rejected', 'heldout_greedy'.
        """
        return trajectories.write(self._directory / TRAJECTORIES, step, groups, split=split)

    def truncate_after(self, step: int, phase: Literal["sft", "rl"] = "rl") -> None:
        """Forget what came after the checkpoint of `step` in `phase`, so that the resumed run may write it again.

        After 'rl' step k: RL and evaluation records of steps > k go (write an evaluation of step k before the
        checkpoint of step k). After 'sft' step k: SFT records of steps > k go, and every later record.
        """
        last = (_STAGE[phase], step)
        lines = [line for line in _lines(self._metrics_path) if (_STAGE[line["phase"]], line["step"]) <= last]
        self._metrics.close()
        _write_whole(self._metrics_path, "".join(json.dumps(line) + "\n" for line in lines))
        self._metrics = self._metrics_path.open("a", encoding="utf-8")
        directory = self._directory / TRAJECTORIES
        unwanted = [path for at, _, path in trajectories.files(directory) if (_STAGE["rl"], at) > last]
        for path in (*unwanted, *directory.glob(".*.tmp")):
            path.unlink()
        if self._events is not None:
            self._events.keep(lambda tag, at: (_STAGE["sft" if tag.startswith("sft/") else "rl"], at) <= last)

    def close(self) -> None:
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(directory: Path) -> list[dict[str, float | str]]:
    """The lines of a run's metrics.jsonl: 'step' an int, 'phase' a word, all else floats (null is read as NaN).

    A torn last line, from a run that was killed while writing or is writing now, is left out.
    Raises FileNotFoundError when there is no such file, ValueError (file and line) for any other malformed line.
    """
    path = Path(directory) / METRICS
    return [{key: math.nan if value is None else value for key, value in line.items()} for line in _lines(path)]


def read_trajectories(
    directory: Path, *, step: int | None = None, split: str | None = None
) -> list[RecordedTrajectory]:
    """A run's recorded trajectories in order of step; only those of `step` and `split`, where given."""
    return trajectories.read(Path(directory) / TRAJECTORIES, step=step, split=split)


def _lines(path: Path) -> list[dict]:
    """The whole lines of a metrics file, as they were written; what follows the last newline is torn."""
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            if line["phase"] not in _STAGE or not isinstance(line["step"], int):
                raise ValueError("no step or no known phase")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a line of metrics ({error}): {text[:80]!r}; delete it") from error
        lines.append(line)
    return lines


def _drop_torn_tail(path: Path) -> None:
    """A kill may leave half a line; appending to it would spoil the next one too."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _write_whole(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(path)


def _tag(phase: Phase, key: str) -> str:
    """TensorBoard groups by what stands before the first slash: RL metrics keep their own groups."""
    return key if phase == "rl" or key.startswith(f"{phase}/") else f"{phase}/{key}"


def read_config(directory: Path) -> dict[str, Any]:
    """The resolved configuration of a run. Raises UserError when the directory is no run of
    Lockstep's."""
    path = Path(directory) / CONFIG
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory} is no run: {path} cannot be read ({type(error).__name__}); "
            "give a folder that `lockstep train` wrote"
        ) from error
