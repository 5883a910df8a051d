"""Things that run at once: all of them or none, at most so many, in a thread that nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
MAX_ABANDONED = 256  # threads that nobody waits for any more, before a further one is refused

_abandoned: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


async def together(coroutines: Iterable[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """Their results, in order, run at once. When one raises, or this is cancelled, the others are cancelled and waited
    for, so that none goes on unseen."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancelled(tasks)


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Limit:
    """`async with limit:` holds one of `size` places; the rest wait, first come, first served. Not bound to an event
    loop: each loop has places of its own."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"Limit({size}): needs at least 1 place")
        self.size = size
        self._places: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    def _semaphore(self) -> asyncio.Semaphore:
        return self._places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.size))

    async def __aenter__(self) -> None:
        await self._semaphore().acquire()

    async def __aexit__(self, *_: object) -> None:
        self._semaphore().release()


async def in_thread(function: Callable[[], ResultT]) -> ResultT:
    """Call a function in a daemon thread of its own.

    When the caller is cancelled it is left behind: a function that never returns costs a thread, but no place in a
    shared pool, and the process still ends. Raises what the function raises (SystemExit as RuntimeError), and
    TooManyAbandoned when MAX_ABANDONED calls have been left behind and have not returned.
    """
    left = sum(thread.is_alive() for thread in _abandoned)
    if left >= MAX_ABANDONED:
        raise TooManyAbandoned(f"{left} calls never returned, and their threads still run; make them async, or end")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # pyright: ignore[reportArgumentType]
        else:
            future.set_exception(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # carried over to the caller, whatever it is
            error = RuntimeError("StopIteration") if isinstance(raised, StopIteration) else raised
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=run, name=f"lockstep {getattr(function, '__name__', 'call')}", daemon=True)
    thread.start()
    try:
        return await future
    except asyncio.CancelledError:
        _abandoned.add(thread)
        raise


class TooManyAbandoned(RuntimeError):
    """Too many calls were left behind in threads that still run."""
