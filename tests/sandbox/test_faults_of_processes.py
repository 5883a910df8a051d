"""Faults of the sandbox's own processes and of the trainer: none may end the sandbox, or leave anybody waiting."""

import asyncio
import errno
import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.processes import every_process
from lockstep.sandbox import calls, sealed, wire
from lockstep.sandbox.connection import Connection
from lockstep.sandbox.interface import Limits, SandboxFailure
from lockstep.sandbox.keeper import Keeper
from lockstep.sandbox.running import Running
from lockstep.sandbox.supervisor import Supervisor
from tests.sandbox.family import comes_true, num_descriptors

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the local tiers need Linux")
TIERS = ("namespaces", "landlock")
HERE = Path(__file__).parent


def children(pid):
    return {child for child, process in every_process().items() if process.parent == pid and process.state not in "ZX"}


def supervisor_of(sandbox):
    (supervisor,) = children(sandbox._calls._connection._process.pid)
    return supervisor


# The first program that runs in place of the launcher: the supervisor's own setpgid comes when the guest, which a busy
# machine may run first, has started another program already.
LATE = """
import os, runpy, sys, time

real = os.setpgid

def late(pid, group):
    if pid == 0:
        return real(pid, group)
    until = time.monotonic() + 5
    while b"other-program" not in open(f"/proc/{pid}/cmdline", "rb").read() and time.monotonic() < until:
        time.sleep(0.001)
    real(pid, group)

os.setpgid = late
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_guest_that_runs_another_program_before_the_supervisor_has_set_its_group(opened, tmp_path, monkeypatch):
    """The kernel then refuses the supervisor's setpgid."""
    (tmp_path / "late.py").write_text(LATE)
    interpreter = tmp_path / "python"
    interpreter.write_text(  # called as `python -I -X utf8 start.py ...`
        f'#!/bin/sh\nshift 3\nexec {shlex.quote(sys.executable)} -I -X utf8 {tmp_path}/late.py "$@"\n'
    )
    interpreter.chmod(0o755)
    real = sys.executable
    monkeypatch.setattr(sys, "executable", str(interpreter))
    sandbox = opened("landlock", warm=(), max_concurrency=1)
    monkeypatch.setattr(sys, "executable", real)
    try:
        first = sandbox._calls._connection
        code = "import os, sys\nos.execv(sys.executable, [sys.executable, '-S', '-c', 'print(1)', 'other-program'])"
        outcome = asyncio.run(sandbox.run(code))
        assert (outcome.status, outcome.stdout) == ("ok", "1\n")
        assert sandbox._calls._connection is first
    finally:
        sandbox.close()


def test_a_keeper_that_dies_with_a_command_unread(opened):
    """The supervisor's next word to it is then refused with ECONNRESET, not EPIPE."""
    sandbox = opened("namespaces", warm=(), max_concurrency=1, max_sessions=2)

    async def close_while_its_keeper_stands_still():
        bystander, victim = await sandbox.session(), await sandbox.session()
        await bystander.run("x = 'kept'")
        before = children(supervisor_of(sandbox))
        await victim.run("pass")
        keeper, guest = sorted(children(supervisor_of(sandbox)) - before)
        assert await asyncio.to_thread(comes_true, lambda: every_process()[guest].state == "T")
        os.kill(keeper, signal.SIGSTOP)
        run = asyncio.ensure_future(victim.run("pass", time_s=60))
        await sandbox.run("pass")  # the supervisor has written "go on" before it starts this
        await victim.close()
        await asyncio.gather(run, return_exceptions=True)
        assert await asyncio.to_thread(comes_true, lambda: keeper not in every_process())  # it has been reaped
        return await bystander.run("print(x)")

    try:
        supervisor = supervisor_of(sandbox)
        assert asyncio.run(close_while_its_keeper_stands_still()).stdout == "kept\n"
        assert supervisor_of(sandbox) == supervisor
    finally:
        sandbox.close()


def test_a_session_stands_still_when_its_run_is_told_to_have_ended(opened):
    """However late its keeper is: what a run forks between the orders to stop and to go on would stay stopped."""
    sandbox = opened("namespaces", warm=())

    def state(pid):
        return every_process()[pid].state

    async def late():
        session = await sandbox.session()
        await session.run("import time")
        late_keeper, guest = sorted(children(supervisor_of(sandbox)))
        run = asyncio.ensure_future(session.run("time.sleep(1)"))
        assert await asyncio.to_thread(comes_true, lambda: state(guest) != "T")
        os.kill(late_keeper, signal.SIGSTOP)
        try:
            await run
            return await asyncio.to_thread(comes_true, lambda: state(guest) == "T", deadline_s=5)
        finally:
            os.kill(late_keeper, signal.SIGCONT)
            await session.close()

    try:
        assert asyncio.run(late())
    finally:
        sandbox.close()


def test_words_to_a_dead_keeper_are_lost_in_silence():
    for say in (lambda keeper: keeper.set_stopped(True), lambda keeper: keeper.sweep()):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.send(b"unread")
            theirs.close()
            say(Keeper(pid=0, outer_pid=0, line=ours.fileno(), pids=-1))


def test_a_supervisor_that_fails_is_replaced_and_the_call_repeated(opened):
    """The folder that it wants to remove at a call's end is a file: it ends with an OSError, which it tells."""
    sandbox = opened("landlock", warm=(), max_concurrency=1)

    async def spoil():
        call = asyncio.ensure_future(sandbox.run("import time; time.sleep(0.3); print('whole')"))
        folder = Path(first._scratch)
        assert await asyncio.to_thread(comes_true, lambda: any(folder.iterdir()))
        (scratch,) = folder.iterdir()
        scratch.rename(folder / "elsewhere")
        scratch.write_text("")
        return await asyncio.wait_for(call, 30)

    try:
        first = sandbox._calls._connection
        assert asyncio.run(spoil()).stdout == "whole\n"
        assert sandbox._calls._connection is not first
        assert not Path(first._scratch).exists()
        assert asyncio.run(sandbox.run("print(2)")).stdout == "2\n"
    finally:
        sandbox.close()


@pytest.mark.parametrize("tier", TIERS)
def test_a_forked_copy_of_the_trainer_has_no_sandbox_and_does_not_disturb_it(tier, opened):
    opened(tier, warm=()).close()
    command = [sys.executable, str(HERE / "forked.py"), tier]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    refusal = f"SandboxFailure: the sandbox belongs to process {found['parent']}; open another in this one"
    assert found["child"] == {"call": refusal, "run": refusal}
    assert (found["call"], found["run"], found["launcher"]) == ("parent\n", "kept\n", 0)


@pytest.mark.parametrize("what", ["call", "session"])
def test_what_cannot_be_sent_gives_its_place_and_descriptors_back(what, opened, monkeypatch):
    sandbox = opened("auto", warm=(), max_concurrency=1, max_sessions=1)
    real, failures = wire.send, [errno.ETOOMANYREFS, errno.ENOBUFS]

    def send(connection, message, descriptors=()):
        if descriptors and failures:
            raise OSError(failures.pop(), "not sent")
        real(connection, message, descriptors)

    async def some():
        found = []
        for _ in range(3):
            session = await sandbox.session()
            run = session.run("print(1)") if what == "session" else sandbox.run("print(1)")
            found.append(await asyncio.wait_for(asyncio.gather(run, return_exceptions=True), 20))
            await session.close()
        return [str(one) if isinstance(one, SandboxFailure) else one.stdout for (one,) in found]

    try:
        asyncio.run(sandbox.run("pass"))
        before = num_descriptors(os.getpid())
        monkeypatch.setattr(wire, "send", send)
        first, second, third = asyncio.run(some())
        assert "could not be sent" in first and "could not be sent" in second and third == "1\n"
        assert comes_true(lambda: num_descriptors(os.getpid()) <= before, deadline_s=1)
    finally:
        sandbox.close()


INHERITED = """
import asyncio, signal, sys
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
sandbox = open_sandbox(SandboxOptions(tier=sys.argv[1], warm=()))
code = "import signal; print(signal.pthread_sigmask(0, [])); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()"
outcome = asyncio.run(sandbox.run(code))
print(outcome.status, outcome.signal, outcome.stdout.strip(), outcome.stderr)
sandbox.close()
"""


@pytest.mark.parametrize("tier", TIERS)
def test_what_the_trainer_does_with_signals_is_not_the_sandboxs(tier, opened):
    """Ignored and blocked signals are inherited; without SIGCHLD no process could wait for another."""
    opened(tier, warm=()).close()
    command = [sys.executable, "-c", INHERITED, tier]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=HERE.parent.parent)
    assert (done.stdout, done.stderr) == ("killed 14 set() \n", "")


@pytest.mark.parametrize("tier", TIERS)
def test_a_supervisor_with_more_to_say_than_the_trainer_reads_goes_on_listening(tier, opened):
    """Each could otherwise wait for the other to read, for ever."""
    opened(tier, warm=()).close()
    connection = Connection({"tier": tier, "warm": [], "max_guests": 1})
    connection.socket.settimeout(60)
    code, output = sealed.constant("code", b""), sealed.output("output", 1)
    message = {"limits": asdict(Limits()), "stdin": False, "files": False, "session": False}
    try:
        for number in range(1000):
            wire.send(connection.socket, {"call": number, **message}, [code, output, output])
            wire.send(connection.socket, {"kill": number})
        said = [wire.receive(connection.socket)[0] or {} for _ in range(1000)]
    finally:
        connection.close()
        os.close(code)
        os.close(output)
    assert sorted(one.get("end", one.get("infra")) for one in said) == list(range(1000))


@pytest.mark.parametrize("tier", TIERS)
def test_the_descriptors_of_calls_that_wait_to_be_started_are_in_no_ones_way(tier, opened, monkeypatch):
    """A guest may have 128, and needs a few free numbers below that before it closes the others."""
    monkeypatch.setattr(calls, "_ATTEMPTS", 1)
    sandbox = opened(tier, warm=(), max_concurrency=64)

    async def together():
        os.kill(supervisor_of(sandbox), signal.SIGSTOP)  # so that it finds all of them waiting
        waiting = [asyncio.ensure_future(sandbox.run("print(1)", stdin="x", files={"a": b""})) for _ in range(64)]
        await asyncio.sleep(0)
        os.kill(supervisor_of(sandbox), signal.SIGCONT)
        return await asyncio.gather(*waiting)

    try:
        assert {outcome.stdout for outcome in asyncio.run(together())} == {"1\n"}
    finally:
        sandbox.close()


def test_the_looks_at_many_calls_leave_most_of_the_supervisors_time(monkeypatch):
    """200 calls whose looks take 2 ms each: all of them together every 1.6 s, not every 50 ms."""
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "process_time", lambda: next(clock) * 0.002)
    supervisor = object.__new__(Supervisor)
    supervisor._idle_keepers = []
    supervisor._looks = SimpleNamespace(excess=lambda call: "")
    given = dict(pidfd=-1, keeper=None, report=-1, limits=Limits(), slot=0, scratch="", session=False, started=0.0)
    supervisor._running = {
        number: Running(number=number, pid=number, deadline=100.0, look_again=0.0, **given) for number in range(200)
    }
    supervisor._enforce(1.0)
    assert {round(call.look_again, 6) for call in supervisor._running.values()} == {1.0 + 4 * 0.002 * 200}


@pytest.mark.parametrize("tier", TIERS)
def test_a_low_limit_of_open_files_is_raised_for_the_supervisor(tier, opened):
    """Its long-lived descriptors begin at 200, and a call has two to four of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        sandbox = opened(tier, warm=(), max_concurrency=32)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    async def together():
        code = "import time; time.sleep(0.5); print(1)"
        return await asyncio.gather(*(sandbox.run(code, limits=Limits(time_s=60)) for _ in range(32)))

    try:
        first = sandbox._calls._connection
        assert [outcome.stdout for outcome in asyncio.run(together())] == ["1\n"] * 32
        assert sandbox._calls._connection is first
    finally:
        sandbox.close()
