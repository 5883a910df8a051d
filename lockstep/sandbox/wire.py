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
import socket
from collections.abc import Sequence
from typing import Any, Literal

Cause = Literal["", "timeout", "memory", "processes", "files", "asked"]

_MOST_BYTES = 1 << 14
_MOST_DESCRIPTORS = 8


def send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises OSError when the other side is gone."""
    socket.send_fds(connection, [json.dumps(message).encode()], descriptors)


def send_now(connection: socket.socket, message: dict[str, Any]) -> None:
    """Without descriptors. Raises BlockingIOError when the other side has too much unread, OSError when it is gone."""
    connection.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)


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
