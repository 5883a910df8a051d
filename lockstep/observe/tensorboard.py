"""TensorBoard event files, written without importing torch or TensorFlow.

Scalars come in, one event a step goes out and is flushed, so that a killed run keeps what it logged. TensorBoard itself
hides overwritten steps only by guessing; here a resumed run rewrites its event file without them, wall times kept.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

try:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError as error:
    raise ImportError(
        "TensorBoard events need the package 'tensorboard': pip install tensorboard, or record with tensorboard=False"
    ) from error

_serial = itertools.count()


class EventFile:
    """The scalars of one run, as a TensorBoard event file in `directory`. Not for several writers at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: RecordWriter | None = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one event with every scalar of `step`, and flush it to the operating system."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        if self._writer is None:
            self._writer = _new_writer(self._new_path())
        self._writer.write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)).SerializeToString())
        self._writer.flush()

    def keep(self, wanted: Callable[[str, int], bool]) -> None:
        """Rewrite the directory's event files as one that holds only the scalars with wanted(tag, step)."""
        self.close()
        old = sorted(self._directory.glob("*tfevents*"))
        if not old:
            return
        temporary = self._directory / ".rewrite.tmp"
        writer = _new_writer(temporary)
        # A kill between the rename and the removals below leaves every record twice: hence dict.fromkeys.
        for record in dict.fromkeys(itertools.chain.from_iterable(map(_records, old))):
            event = Event.FromString(record)
            values = [value for value in event.summary.value if wanted(value.tag, event.step)]
            if values:
                kept = Event(wall_time=event.wall_time, step=event.step, summary=Summary(value=values))
                writer.write(kept.SerializeToString())
        writer.close()
        temporary.rename(self._new_path())
        for path in old:
            path.unlink()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _new_path(self) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard finds files by 'tfevents' and reads them in the order of their names.
        identity = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_serial)}"
        return self._directory / f"events.out.tfevents.{identity}"


def _new_writer(path: Path) -> RecordWriter:
    writer = RecordWriter(path.open("wb"))
    writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    return writer


def _records(path: Path) -> Iterator[bytes]:
    """The serialised events of a file; stops quietly at a torn one."""
    return RawEventFileLoader(str(path)).Load()
