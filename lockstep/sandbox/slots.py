"""How many calls may be in flight together: a semaphore for several event loops and threads at once.

asyncio's own semaphore belongs to the first loop that waits on it; a sandbox outlives loops.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future


class Slots:
    """`async with slots:` holds one of `number` slots, first come first served. Raises ValueError for less than 1."""

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"slots={number}: no call could ever run; give at least 1")
        self._free = number
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            if not turn.cancel():  # it had its turn before it learned of the cancellation
                self._give_back()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1
