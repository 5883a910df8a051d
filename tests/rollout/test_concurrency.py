"""Things that run at once: all or none, at most so many, and threads that nobody has to wait for."""

import asyncio
import gc
import threading

import pytest

from lockstep.rollout import concurrency
from lockstep.rollout.concurrency import Limit, TooManyAbandoned, in_thread, together


def test_results_come_in_order():
    async def after(event, other, value):
        event.set()
        await other.wait()
        return value

    async def play():
        first, second = asyncio.Event(), asyncio.Event()
        return await together([after(first, second, 1), after(second, first, 2)])

    assert asyncio.run(play()) == [1, 2]


def test_when_one_raises_the_others_have_ended():
    ended = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def raises():
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        asyncio.run(together([waits(), raises(), waits()]))
    assert ended == [True, True]


@pytest.mark.parametrize("size", [1, 3])
def test_a_limit_admits_so_many(size):
    limit, inside, most = Limit(size), 0, 0

    async def work():
        nonlocal inside, most
        async with limit:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    for _ in range(2):  # two event loops, one after the other, both with waiting
        asyncio.run(together(work() for _ in range(8)))
    assert most == size


def test_a_limit_forgets_the_loops_that_ended():
    limit = Limit(1)

    async def hold():
        async with limit:
            pass

    for _ in range(3):
        asyncio.run(hold())
    gc.collect()
    assert len(limit._places) <= 1


def test_a_limit_needs_a_place():
    with pytest.raises(ValueError, match=r"Limit\(0\): needs at least 1 place"):
        Limit(0)


def test_a_thread_of_its_own_gives_what_the_function_gives():
    assert asyncio.run(in_thread(lambda: threading.current_thread().daemon)) is True
    with pytest.raises(OSError, match="disk"):
        asyncio.run(in_thread(lambda: (_ for _ in ()).throw(OSError("disk"))))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
def test_what_would_end_the_process_ends_the_call(kind):
    def leave():
        raise kind

    with pytest.raises(RuntimeError, match=kind.__name__):
        asyncio.run(in_thread(leave))


def test_a_call_that_never_returns_is_left_behind_and_counted(monkeypatch):
    monkeypatch.setattr(concurrency, "MAX_ABANDONED", 2)
    monkeypatch.setattr(concurrency, "_abandoned", type(concurrency._abandoned)())
    release, started = threading.Event(), [threading.Event() for _ in range(3)]

    async def leave(i):
        def hang():
            started[i].set()
            release.wait()

        call = asyncio.create_task(in_thread(hang))
        while not started[i].is_set():
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(leave(0))
    assert asyncio.run(in_thread(lambda: 1)) == 1
    asyncio.run(leave(1))
    with pytest.raises(TooManyAbandoned, match="2 calls never returned"):
        asyncio.run(in_thread(lambda: 1))
    hung = list(concurrency._abandoned)
    release.set()
    for thread in hung:
        thread.join()
    assert asyncio.run(in_thread(lambda: 1)) == 1
