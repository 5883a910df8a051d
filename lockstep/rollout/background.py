"""An event loop in a thread of its own, for connections that outlive the loops of those who use them.

A run uses several event loops one after another (a tool's description is asked for before training begins), and a
connection belongs to the loop that it was made in. What is opened here is closed at exit.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
CLOSING_S = 10.0  # for everything that is open at exit


class Background:
    """closers: what to call, in the loop, at exit; whoever opens something adds one and takes it away again."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.closers: set[Callable[[], Awaitable[None]]] = set()
        self._process = os.getpid()
        threading.Thread(target=self.loop.run_forever, name="lockstep background", daemon=True).start()
        atexit.register(self._close)

    async def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Await a coroutine there from here; cancelling this cancels it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def _close(self) -> None:
        if self._process != os.getpid():
            return  # a fork: the thread is not here, and what is open is the parent's

        async def close_all() -> None:
            await asyncio.gather(*(close() for close in list(self.closers)), return_exceptions=True)

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(close_all(), self.loop).result(CLOSING_S)


@functools.cache
def _of(process: int) -> Background:
    return Background()


def background() -> Background:
    """This process's."""
    return _of(os.getpid())
