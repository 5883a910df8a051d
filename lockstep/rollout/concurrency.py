"""Other people's code beside our own: all at once, at most so many, limited in time, left behind when it does not end.

What is awaited here runs in a task of its own. It may raise SystemExit, swallow its cancellation or never return, and
costs its caller an exception and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
MAX_ABANDONED = 256  # threads that nobody waits for any more, before a further one is refused
GRACE_S = 2.0  # for what was cancelled to end
ENDING_S = 5.0  # the same when the loop ends

_abandoned: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_left_behind: set[asyncio.Task[Any]] = set()  # a loop alone would not keep them alive


class Late(Exception):
    """What was awaited did not end in time, or had no place in time."""


class NoThread(RuntimeError):
    """No thread can be started: too many were left behind and still run, or the machine gives no more."""


def run_async(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """asyncio.run, but what is still running at the end, and does not end within ENDING_S of its cancellation, is left
    behind: asyncio.run alone would wait for it for ever."""

    async def whole() -> ResultT:
        try:
            return await main
        finally:
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in others:
                    task.cancel()
                _, stubborn = await asyncio.wait(others, timeout=ENDING_S)
                for task in stubborn:
                    _left_behind.add(task)
                    asyncio._unregister_task(task)  # or the end of asyncio.run waits for it

    return asyncio.run(whole())


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


async def within(timeout_s: float, work: Awaitable[ResultT], *, ended: Callable[[], None] | None = None) -> ResultT:
    """Await other people's code, in a task of its own.

    Raises Late after timeout_s seconds, what the work raises, and RuntimeError in place of what is no Exception (a
    SystemExit, a CancelledError that nobody asked for). KeyboardInterrupt stays what it is. Late or cancelled work is
    cancelled, given GRACE_S to end, and then left behind. ended: called once when the work has really ended, however
    late.
    """
    task = asyncio.create_task(_contained(work))
    if ended is not None:
        task.add_done_callback(lambda _: ended())
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise Late
        try:
            return task.result()
        except (asyncio.CancelledError, GeneratorExit) as error:  # the work's own: nobody cancelled or closed it
            raise RuntimeError(type(error).__name__) from None
    finally:
        if not task.done():
            task.cancel()
            _left_behind.add(task)
            task.add_done_callback(_forget)
            await asyncio.wait({task}, timeout=GRACE_S)


async def _contained(work: Awaitable[ResultT]) -> ResultT:
    """Without what asyncio would end the loop for, a KeyboardInterrupt excepted."""
    try:
        return await work
    except (Exception, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise RuntimeError(type(error).__name__) from error


def _forget(task: asyncio.Task[Any]) -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # nobody else will look at it


class Limit:
    """At most `size` at once; the rest wait, first come, first served. Not bound to an event loop: each loop has places
    of its own."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"Limit({size}): needs at least 1 place")
        self.size = size
        self._places: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    async def place(self, timeout_s: float) -> Callable[[], None]:
        """Wait for a place; the function that is returned gives it back, in the same loop. Raises Late."""
        for loop in [loop for loop in self._places if loop.is_closed()]:
            del self._places[loop]
        semaphore = self._places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.size))
        try:
            async with asyncio.timeout(timeout_s):
                await semaphore.acquire()
        except TimeoutError:
            raise Late from None
        return semaphore.release


async def in_thread(function: Callable[[], ResultT], *, ended: Callable[[], None] | None = None) -> ResultT:
    """Call a function in a daemon thread of its own.

    When the caller is cancelled it is left behind: a function that never returns costs a thread, but no place in a
    shared pool, and the process still ends. Raises what the function raises (SystemExit and its like as RuntimeError),
    and NoThread. ended: called once, in this loop, when the function has returned, however late, or never began.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, error: BaseException | None) -> None:
        if ended is not None:
            ended()
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

    thread = _started(run, ended)
    try:
        return await future
    except asyncio.CancelledError:
        _abandoned.add(thread)
        raise


def _started(run: Callable[[], None], ended: Callable[[], None] | None) -> threading.Thread:
    left = sum(thread.is_alive() for thread in _abandoned)
    thread = threading.Thread(target=run, name="lockstep call", daemon=True)
    try:
        if left >= MAX_ABANDONED:
            raise RuntimeError(f"{left} calls never returned, and their threads still run; make them async, or end")
        thread.start()
    except RuntimeError as error:
        if ended is not None:
            ended()
        raise NoThread(str(error)) from error
    return thread
