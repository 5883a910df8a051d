"""What the trainer and its supervisor say to each other: one SOCK_SEQPACKET message each, JSON and descriptors.

To the supervisor:   {"call": id, "limits": {...}, "stdin": bool, "files": bool, "session": bool} with the descriptors
code, stdout, stderr, then stdin, files, a session's channel where there are; {"kill": id}; {"abandon": id} kills it
unless it ends by itself at once; {"arm": id, "time_s": s} and {"disarm": id} around each run of a session.
From the supervisor: {"ready": tier}, {"failed": text}, and for each call one of
{"end": id, "status": wait status, "cause": cause, "time_s": s, "cpu_s": s} and {"infra": id, "text": text};
{"ran": id, "time_s": s, "cpu_s": s} answers a disarm.
"""

from __future__ import annotations

import array
import json
import select
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

Cause = Literal["", "timeout", "memory", "processes", "files", "asked"]

_MOST_BYTES = 1 << 14
_MOST_DESCRIPTORS = 8


def send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises OSError when the other side is gone."""
    socket.send_fds(connection, [json.dumps(message).encode()], descriptors)


def receive(connection: socket.socket, how: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
    """A message with its descriptors; None at the end of the connection. how: MSG_DONTWAIT for BlockingIOError."""
    space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(_MOST_BYTES, space, socket.MSG_CMSG_CLOEXEC | how)
    descriptors = array.array("i")
    for level, kind, part in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(part[: len(part) - len(part) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC:
        raise OSError("descriptors were lost in a message: raise the limit of open files (ulimit -n)")
    return (json.loads(data) if data else None), list(descriptors)


class Line:
    """The supervisor's end. It never waits for the trainer to read, which may itself be waiting to be read."""

    def __init__(self, connection: socket.socket, poll: select.poll) -> None:
        self._connection, self._poll = connection, poll
        self._unsaid: deque[bytes] = deque()
        self.descriptor = connection.fileno()
        poll.register(self.descriptor, select.POLLIN)

    def tell(self, message: dict[str, Any]) -> None:
        """At once, or by `flush` when there is room. Raises OSError when the other side is gone."""
        self._unsaid.append(json.dumps(message).encode())
        if len(self._unsaid) == 1:
            self.flush()
            if self._unsaid:
                self._poll.modify(self.descriptor, select.POLLIN | select.POLLOUT)

    def flush(self) -> None:
        """Say what there is room for. Raises OSError when the other side is gone."""
        if not self._unsaid:
            return
        with suppress(BlockingIOError):
            while self._unsaid:
                self._connection.send(self._unsaid[0], socket.MSG_DONTWAIT)
                self._unsaid.popleft()
            self._poll.modify(self.descriptor, select.POLLIN)

    def heard(self) -> Iterator[tuple[dict[str, Any] | None, list[int]]]:
        """All that has been said, as `receive` gives it."""
        with suppress(BlockingIOError):
            while True:
                yield receive(self._connection, socket.MSG_DONTWAIT)
