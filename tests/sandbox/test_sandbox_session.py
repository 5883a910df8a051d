"""Sessions: state is kept between runs, lost with a limit, and both are said."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import tree
from lockstep.sandbox.interface import Limits, SandboxFailure
from tests.sandbox.family import comes_true

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the local tiers need Linux")


@pytest.fixture
def runs(sandbox):
    """Runs scripts in one session, one after another; their outcomes."""

    def outcomes(*codes, limits=None, time_s=None):
        async def all_of_them():
            session = await sandbox.session(limits=limits)
            try:
                return [await session.run(code, time_s=time_s) for code in codes]
            finally:
                await session.close()

        return asyncio.run(all_of_them())

    return outcomes


def test_names_and_files_are_kept(runs):
    found = runs(
        "x = 1\ndef f(): return x + 1",
        "import os; x = f(); open('a', 'w').write('kept')",
        "print(x, f(), open('a').read(), os.getpid() > 0)",
    )
    assert [one.status for one in found] == ["ok"] * 3 and found[2].stdout == "2 3 kept True\n"
    assert not any(one.state_lost for one in found)


def test_each_run_has_its_own_output_and_end(runs):
    found = runs("print('one')", "print('two'); 1 / 0", "exit(3)", "raise SystemExit('why')", "print('five')")
    assert [one.stdout for one in found] == ["one\n", "two\n", "", "", "five\n"]
    assert [(one.status, one.exit_code) for one in found] == [
        ("ok", 0),
        ("error", 1),
        ("error", 3),
        ("error", 1),
        ("ok", 0),
    ]
    assert "ZeroDivisionError" in found[1].stderr and found[3].stderr == "why\n" and found[4].stderr == ""


BURNS = """
import os, threading
def burn():
    while True: pass
threading.Thread(target=burn, daemon=True).start()
if os.fork() == 0: burn()
"""


def test_between_runs_all_its_processes_stand_still(sandbox):
    """A thread and a child that never rest would have a core each, for as long as the session is kept."""

    def stopped():
        return sum(process.state == "T" for process in tree().values())

    async def both_runs():
        session = await sandbox.session()
        try:
            assert (await session.run(BURNS)).status == "ok"
            first = await asyncio.to_thread(comes_true, lambda: stopped() == 2)
            assert (await session.run("print(threading.active_count())")).stdout == "2\n"
            return first, await asyncio.to_thread(comes_true, lambda: stopped() == 2)
        finally:
            await session.close()

    assert asyncio.run(both_runs()) == (True, True)


def test_a_traceback_shows_the_lines_of_the_run_that_defined_them(runs):
    found = runs("def f():\n    return 1 / 0", "pass\n\nf()")
    assert 'File "<run 2>", line 3, in <module>\n    f()' in found[1].stderr
    assert 'File "<run 1>", line 2, in f\n    return 1 / 0' in found[1].stderr


def test_output_that_overflowed_does_not_reach_the_next_run(runs):
    found = runs("print('x' * 5000)", "print('next')", limits=Limits(output_bytes=1000))
    assert (found[0].status, found[0].truncated, len(found[0].stdout)) == ("output", True, 1000)
    assert (found[1].status, found[1].truncated, found[1].stdout) == ("ok", False, "next\n")


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "number"),
    [
        ("while True: pass", "timeout", None, signal.SIGKILL),
        ("import time; time.sleep(60)", "timeout", None, signal.SIGKILL),
        ("import os; os._exit(4)", "error", 4, None),
        ("import os; os.abort()", "killed", None, signal.SIGABRT),
    ],
)
def test_a_run_that_ends_its_interpreter(runs, code, status, exit_code, number):
    found = runs("x = 1", f"print('before')\n{code}", "print('x' in dir())", "print('x' in dir())", time_s=1.0)
    assert (found[1].status, found[1].exit_code, found[1].signal) == (status, exit_code, number)
    assert [one.stdout for one in found] == ["", "before\n", "False\n", "False\n"]
    assert [one.state_lost for one in found] == [False, False, True, False]


def test_memory_of_a_session(runs):
    hungry = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        x = b"x" * (60 << 20)
        time.sleep(60)
time.sleep(60)
"""
    found = runs("x = 1", hungry, "print(1)", limits=Limits(memory_bytes=128 << 20, time_s=30))
    assert [one.status for one in found] == ["ok", "memory", "ok"] and found[2].state_lost
    assert runs("x = bytearray(10 << 30)", "print(1)")[1].stdout == "1\n"


def test_time_and_processor_time_are_of_the_run_alone(runs):
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    found = runs(busy, "pass", time_s=30)
    assert found[0].cpu_s >= 0.25 and found[0].time_s >= 0.3
    assert found[1].cpu_s <= 0.05 and found[1].time_s < found[0].time_s


def test_runs_of_one_session_asked_for_at_once_happen_in_order(sandbox):
    async def three():
        session = await sandbox.session()
        found = await asyncio.gather(*(session.run(f"print({place})") for place in range(3)))
        await session.close()
        return [one.stdout for one in found]

    assert asyncio.run(three()) == ["0\n", "1\n", "2\n"]


def test_sessions_do_not_see_each_other(sandbox):
    async def two():
        first, second = await sandbox.session(), await sandbox.session()
        await first.run("x = 1; open('a', 'w').close()")
        seen = await second.run("import os; print('x' in dir(), os.listdir())")
        await first.close()
        await second.close()
        return seen.stdout

    assert asyncio.run(two()) == "False []\n"


def test_more_sessions_than_may_live(sandbox):
    """max_sessions=2: the longest idle one is put away, says so, and all are served."""

    async def three():
        sessions = [await sandbox.session() for _ in range(3)]
        for place, session in enumerate(sessions):
            await session.run(f"x = {place}")
        kept = [await sessions[place].run("print('x' in dir())") for place in (2, 1)]
        lost = await sessions[0].run("print('x' in dir())")
        crowd = [await sandbox.session() for _ in range(6)]
        served = await asyncio.gather(*(session.run("print(1)") for session in crowd))
        for session in (*sessions, *crowd):
            await session.close()
        return [(one.stdout, one.state_lost) for one in (*kept, lost)], [one.stdout for one in served]

    found, served = asyncio.run(three())
    assert found == [("True\n", False), ("True\n", False), ("False\n", True)] and served == ["1\n"] * 6


def test_who_waits_for_room_is_served_before_who_was_ended_for_him(opened):
    """max_sessions=1: one session runs on and on, another waits."""
    sandbox = opened("auto", warm=(), max_sessions=1)

    async def both():
        busy, other = await sandbox.session(), await sandbox.session()
        await busy.run("pass")
        waiting = asyncio.ensure_future(other.run("print('served')"))
        num_runs = 0
        while not waiting.done():
            await busy.run("pass")
            num_runs += 1
        return waiting.result().stdout, num_runs

    try:
        served, num_runs = asyncio.run(both())
    finally:
        sandbox.close()
    assert served == "served\n" and num_runs <= 2


def test_no_session_is_ended_for_a_run_that_nobody_awaits(opened):
    sandbox = opened("auto", warm=(), max_sessions=1)

    async def both():
        kept, other = await sandbox.session(), await sandbox.session()
        running = asyncio.ensure_future(kept.run("x = 1\nimport time\ntime.sleep(0.3)"))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(other.run("pass"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await running
        return await kept.run("print(x)")

    try:
        outcome = asyncio.run(both())
    finally:
        sandbox.close()
    assert (outcome.stdout, outcome.state_lost) == ("1\n", False)


@pytest.mark.parametrize("idle_s", [float("inf"), 3e6])
def test_a_session_may_be_idle_for_ever(opened, idle_s):
    """More than poll can wait for."""
    sandbox = opened("auto", warm=(), session_idle_s=idle_s)

    async def twice():
        session = await sandbox.session()
        await session.run("x = 1")
        sandbox._calls._rouse()
        return await session.run("print(x)")

    try:
        assert asyncio.run(twice()).stdout == "1\n"
        assert asyncio.run(sandbox.run("print(2)")).stdout == "2\n"
        assert sandbox._calls._listener.is_alive()
    finally:
        sandbox.close()


def test_ended_orphans_do_not_use_up_a_sessions_processes(runs):
    """Each run leaves a child of a child that ends, and waits for that."""
    code = """
import os
ended, tell = os.pipe()
if os.fork() == 0:
    os.fork()
    os._exit(0)
os.close(tell)
os.wait()
os.read(ended, 1)
"""
    assert {one.status for one in runs(*[code] * 40, limits=Limits(max_processes=16))} == {"ok"}


def test_an_idle_session_is_put_away(opened):
    sandbox = opened("auto", warm=(), session_idle_s=0.2)

    async def idle():
        session = await sandbox.session()
        await session.run("x = 1")
        deadline = time.monotonic() + 20
        while sandbox._calls._sessions._live and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return await session.run("print('x' in dir())")

    try:
        outcome = asyncio.run(idle())
    finally:
        sandbox.close()
    assert (outcome.stdout, outcome.state_lost) == ("False\n", True)


def test_a_cancelled_run_ends_the_interpreter(sandbox):
    async def cancel():
        session = await sandbox.session()
        await session.run("x = 1")
        run = asyncio.ensure_future(session.run("while True: pass", time_s=60))
        await asyncio.sleep(0.1)
        run.cancel()
        await asyncio.wait([run])
        after = await asyncio.wait_for(session.run("print('x' in dir())"), 20)
        await session.close()
        return run.cancelled(), after.stdout, after.state_lost

    assert asyncio.run(cancel()) == (True, "False\n", True)


def test_a_closed_session_runs_nothing_and_its_run_fails(sandbox):
    async def close():
        session = await sandbox.session()
        run = asyncio.ensure_future(session.run("while True: pass", time_s=60))
        await asyncio.sleep(0.1)
        await session.close()
        await session.close()
        failed = await asyncio.gather(run, session.run("1"), return_exceptions=True)
        return [str(one) for one in failed if isinstance(one, SandboxFailure)]

    assert asyncio.run(close()) == ["the session was closed", "the session is closed; open another"]


def test_state_that_the_sandbox_lost_is_a_failure_and_not_an_empty_state(opened):
    """A supervisor that is killed takes the state with it; a session without state just starts again."""
    sandbox = opened("auto", warm=(), max_sessions=3)

    async def lose():
        used, fresh = await sandbox.session(), await sandbox.session()
        await used.run("x = 1")
        launcher = sandbox._calls._connection._process
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        await asyncio.to_thread(launcher.wait)
        with pytest.raises(SandboxFailure, match="state was lost when its supervisor died"):
            await used.run("print(x)")
        return await fresh.run("print(2)")

    try:
        assert asyncio.run(lose()).stdout == "2\n"
    finally:
        sandbox.close()


def test_a_session_that_closes_its_channel_is_ended(runs):
    found = runs("x = 1", "import os, time; os.close(5); time.sleep(30)", "print(1)", time_s=60)
    assert found[1].status == "killed" and found[2].stdout == "1\n" and found[2].state_lost


def test_a_time_limit_that_makes_no_sense_is_refused(runs):
    with pytest.raises(ValueError, match="time_s=0"):
        runs("1", time_s=0)
