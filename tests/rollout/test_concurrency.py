"""Things that run at once: all or none, at most so many, and threads that nobody has to wait for."""

import asyncio
import contextlib
import gc
import threading

import pytest

from lockstep.rollout import concurrency
from lockstep.rollout.concurrency import Late, Limit, NoThread, in_thread, run_async, together, within


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
        give_back = await limit.place(5)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        give_back()

    for _ in range(2):  # two event loops, one after the other, both with waiting
        asyncio.run(together(work() for _ in range(8)))
    assert most == size


def test_a_place_is_not_waited_for_for_ever():
    async def play():
        limit = Limit(1)
        give_back = await limit.place(5)
        with pytest.raises(Late):
            await limit.place(0.01)
        give_back()
        return await limit.place(5)

    assert callable(asyncio.run(play()))


def test_a_limit_forgets_the_loops_that_ended():
    limit = Limit(1)

    async def hold():
        (await limit.place(5))()

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
    release, started, ends = threading.Event(), [threading.Event() for _ in range(2)], []

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
    with pytest.raises(NoThread, match="2 calls never returned"):
        asyncio.run(in_thread(lambda: 1, ended=lambda: ends.append(True)))
    assert ends == [True]
    hung = list(concurrency._abandoned)
    release.set()
    for thread in hung:
        thread.join()
    assert asyncio.run(in_thread(lambda: 1)) == 1


def test_a_machine_without_a_further_thread(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NoThread, match="can't start new thread"):
        asyncio.run(in_thread(lambda: 1))


def test_a_thread_ends_when_it_ends_and_not_when_its_caller_does():
    release, ends = threading.Event(), []

    async def play():
        ended = asyncio.Event()

        def end():
            ends.append("ended")
            ended.set()

        with pytest.raises(Late):
            await within(0.01, in_thread(release.wait, ended=end))
        ends.append("late")
        release.set()
        await ended.wait()

    asyncio.run(play())
    assert ends == ["late", "ended"]


async def gives(value):
    return value


def test_what_is_awaited_gives_its_result_and_ends():
    ends = []
    assert asyncio.run(within(5, gives(3), ended=lambda: ends.append(True))) == 3
    assert ends == [True]


class Odd(BaseException):
    """Such as some frameworks have."""


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError, Odd])
def test_what_would_end_the_loop_ends_the_work(kind):
    async def leave():
        raise kind

    async def play():
        with pytest.raises(RuntimeError, match=kind.__name__):
            await within(5, leave())
        return await within(5, gives("still here"))

    assert asyncio.run(play()) == "still here"


def test_work_that_swallows_its_cancellation_is_left_behind(monkeypatch):
    monkeypatch.setattr(concurrency, "GRACE_S", 0.01)
    log = []

    async def play():
        release = asyncio.Event()

        async def stubborn():
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    log.append("cancelled")
            raise OSError("nobody looks at this")

        with pytest.raises(Late):
            await within(0.01, stubborn(), ended=lambda: log.append("ended"))
        log.append("late")
        assert len(concurrency._left_behind) == 1
        release.set()
        while concurrency._left_behind:
            await asyncio.sleep(0)

    asyncio.run(play())
    assert log == ["cancelled", "late", "ended"]


def test_cancelling_the_caller_cancels_the_work():
    log = []

    async def works():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    async def play():
        caller = asyncio.create_task(within(60, works()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        return caller.cancelled()

    assert asyncio.run(play()) is True
    assert log == ["cancelled"]


def test_what_never_ends_does_not_keep_the_loop_from_ending(monkeypatch):
    monkeypatch.setattr(concurrency, "GRACE_S", 0.01)
    monkeypatch.setattr(concurrency, "ENDING_S", 0.01)
    monkeypatch.setattr(concurrency, "_left_behind", set())

    async def stubborn():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def play():
        asyncio.create_task(stubborn())  # noqa: RUF006
        with pytest.raises(Late):
            await within(0.01, stubborn())
        return "done"

    assert run_async(play()) == "done"
    assert len(concurrency._left_behind) == 2
    for task in concurrency._left_behind:
        task._log_destroy_pending = False  # pyright: ignore


def test_what_ends_when_it_is_cancelled_has_ended_with_the_loop():
    ended = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def play():
        asyncio.create_task(waits())  # noqa: RUF006
        await asyncio.sleep(0)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run_async(play())
    assert ended == [True]
