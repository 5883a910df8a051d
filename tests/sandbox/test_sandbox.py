"""Ordinary scripts in both tiers: what they print, how they end, what works inside, and what the trainer may do."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from lockstep.sandbox.connection import environment
from lockstep.sandbox.interface import Limits, SandboxFailure, SandboxUnavailable
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the local tiers need Linux")
HOST = str(Path(__file__).parents[2])


def supervisor_of(sandbox):
    """The supervisor's process id: the launcher's only child."""
    launcher = sandbox._calls._connection._process.pid
    return int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()[0])


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "number", "stdout"),
    [
        ("print(6 * 7)", "ok", 0, None, "42\n"),
        ("6 * 7", "ok", 0, None, ""),  # a script: nothing is echoed
        ("", "ok", 0, None, ""),
        ("import sys; print('a', end=''); sys.exit()", "ok", 0, None, "a"),
        ("exit(3)", "error", 3, None, ""),
        ("raise SystemExit(True)", "error", 1, None, ""),
        ("raise SystemExit(256 + 7)", "error", 7, None, ""),
        ("raise SystemExit('why')", "error", 1, None, ""),
        ("import os; os._exit(9)", "error", 9, None, ""),
        ("1 / 0", "error", 1, None, ""),
        ("def f(:", "error", 1, None, ""),
        ("import os; os.abort()", "killed", None, signal.SIGABRT, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", None, signal.SIGKILL, ""),
        ("import ctypes; ctypes.string_at(0)", "killed", None, signal.SIGSEGV, ""),
        ("import signal; signal.alarm(1); signal.pause()", "killed", None, signal.SIGALRM, ""),
        ("import atexit; atexit.register(print, 'bye'); print('hi')", "ok", 0, None, "hi\nbye\n"),
        ("import threading; threading.Thread(target=print, args=['late']).start()", "ok", 0, None, "late\n"),
        ("if __name__ == '__main__': print(__name__)", "ok", 0, None, "__main__\n"),
    ],
)
def test_how_a_script_ends(run, code, status, exit_code, number, stdout):
    outcome = run(code)
    assert (outcome.status, outcome.exit_code, outcome.signal, outcome.stdout) == (status, exit_code, number, stdout)
    assert not outcome.truncated and not outcome.state_lost
    assert outcome.cpu_s > 0 and 0 < outcome.time_s < 10


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("import numpy, sympy; print(sympy.integrate(sympy.Symbol('x')), numpy.arange(4).sum())", "x**2/2 6\n"),
        (
            "import asyncio\nasync def f(): return 5\nprint(asyncio.run(f()), asyncio.run(asyncio.to_thread(abs, -6)))",
            "5 6\n",
        ),
        ("import tempfile\nwith tempfile.TemporaryDirectory() as d: open(d + '/a', 'w').write('x'); print(1)", "1\n"),
        ("import shutil; open('a', 'w').write('x'); shutil.copy2('a', 'b'); print(open('b').read())", "x\n"),
        (
            "import os; os.mkdir('d'); os.rename('d', 'e'); os.symlink('e', 'f'); print(sorted(os.listdir()))",
            "['e', 'f']\n",
        ),
        (
            "import multiprocessing as m\na, b = m.Pipe()\n"
            "p = m.get_context('fork').Process(target=lambda: b.send(3)); p.start(); print(a.recv()); p.join()",
            "3\n",
        ),
        ("import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(8)']))", "b'8\\n'\n"),
        ("import subprocess, sys; p = subprocess.Popen([sys.executable]); p.kill(); print(p.wait())", "-9\n"),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)", "True\n"),
        (
            "import linecache, statistics, decimal, csv, zoneinfo; print(zoneinfo.ZoneInfo('Asia/Tokyo'))",
            "Asia/Tokyo\n",
        ),
        ("print('\\N{SNOWMAN}')", "\N{SNOWMAN}\n"),
        ("import sys; sys.stdout.buffer.write(b'a\\xffb')", "a\N{REPLACEMENT CHARACTER}b"),
        ("import os; os.write(1, b'raw')", "raw"),
    ],
)
def test_what_works_inside(run, code, stdout):
    outcome = run(code)
    assert (outcome.stdout, outcome.stderr, outcome.status) == (stdout, "", "ok")


def test_input_and_files(run):
    files = {"m.py": b"x = 3", "deep/er/d.bin": bytes(range(256)), "\N{SNOWMAN}": b""}
    code = "import m, os; print(input(), input(), m.x, len(open('deep/er/d.bin', 'rb').read()), len(os.listdir()))"
    outcome = run(code, stdin="one\n\N{SNOWMAN}\n", files=files)
    assert outcome.stdout.split()[:4] == ["one", "\N{SNOWMAN}", "3", "256"], outcome.stderr
    assert run("print(input())").stderr.endswith("EOFError: EOF when reading a line\n")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a\0b", "a/"])
def test_a_file_name_that_leaves_scratch_is_refused(run, name):
    with pytest.raises(ValueError, match="not a name below the working directory"):
        run("1", files={name: b""})


@pytest.mark.parametrize(
    "files",
    [
        {"a": b"1", "a/b": b"2"},
        {"a/b/c": b"1", "a/b": b"2"},
        {"x" * 256: b""},
        {"d/" + "\N{SNOWMAN}" * 86: b""},  # 258 bytes
        {"/".join(["d" * 200] * 21): b""},
        {"a\ud800": b""},
        {"\ud800/a": b""},
    ],
    ids=["file and folder", "deeper", "long", "long in bytes", "long path", "surrogate", "folder with a surrogate"],
)
def test_a_name_that_no_file_can_have_is_refused(run, files):
    with pytest.raises(ValueError, match="cannot be a file's name"):
        run("1", files=files)


def test_the_longest_names(run):
    files = {"x" * 255: b"1", "/".join(["d" * 200] * 18): b"1"}
    assert run("import os; print(sorted(map(len, os.listdir())))", files=files).stdout == "[200, 255]\n"


def test_nothing_stays_between_calls(run):
    assert run("open('left', 'w').write('x'); import builtins; builtins.secret = 1").status == "ok"
    seen = run("import os; print(os.listdir(), os.listdir(os.environ['TMPDIR']), 'secret' in dir(__builtins__))")
    assert seen.stdout == "[] [] False\n"


def test_each_call_draws_its_own_random_numbers(run):
    code = "import random, numpy, sympy.core.random as r; print(random.random(), numpy.random.rand(), r.random())"
    drawn = [number for _ in range(2) for number in run(code).stdout.split()]
    assert len(set(drawn)) == 6


def test_a_traceback_shows_the_script_and_no_path_of_this_machine(run):
    outcome = run("import json, pathlib\n\ndef f():\n    json.loads('{')\nf()")
    assert 'File "<script>", line 4, in f\n    json.loads(' in outcome.stderr
    assert 'File "<python>/json/decoder.py"' in outcome.stderr and "JSONDecodeError" in outcome.stderr
    assert HOST not in outcome.stderr and sys.prefix not in outcome.stderr and sys.base_prefix not in outcome.stderr
    assert "supervisor" not in outcome.stderr and "launcher" not in outcome.stderr
    thread = run("import threading, json\nt = threading.Thread(target=json.loads, args=['{']); t.start(); t.join()")
    assert "JSONDecodeError" in thread.stderr and sys.base_prefix not in thread.stderr and thread.status == "ok"


def test_a_lone_surrogate_is_the_scripts_own_trouble(run):
    assert "SyntaxError" in run("print('\udc80')").stderr or run("print('\udc80')").status == "error"


def test_the_environment_and_descriptors_are_bare(run, monkeypatch):
    monkeypatch.setenv("LOCKSTEP_SECRET", "x")
    names = run("import os; print(sorted(os.environ))").stdout
    assert "SECRET" not in names and set(eval(names)) == {*environment(), "TMPDIR"}
    code = """
import os
found = []
for number in range(1024):
    try:
        os.fstat(number)
        found.append(number)
    except OSError:
        pass
print(found)
"""
    assert run(code).stdout == "[0, 1, 2]\n"


def test_many_at_once_from_threads_and_loops(sandbox):
    async def some(first):
        found = await asyncio.gather(*(sandbox.run(f"print({first + place})") for place in range(5)))
        return [int(outcome.stdout) for outcome in found]

    results = {}

    def work(first):
        results[first] = asyncio.run(some(first))

    threads = [threading.Thread(target=work, args=[first]) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {first: list(range(first, first + 5)) for first in (0, 100, 200)}


def test_the_event_loop_is_not_blocked(sandbox):
    async def both():
        long = asyncio.ensure_future(sandbox.run("import time; time.sleep(0.4)"))
        beats = 0
        while not long.done():
            await asyncio.sleep(0.01)
            beats += 1
        return beats

    assert asyncio.run(both()) >= 5


def test_a_cancelled_call_is_killed(sandbox):
    async def cancel():
        calls = [asyncio.ensure_future(sandbox.run("while True: pass", limits=Limits(time_s=60))) for _ in range(6)]
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        after = [sandbox.run("import time; time.sleep(0.2); print('free')") for _ in range(2)]  # both places
        return ended, [one.stdout for one in await asyncio.wait_for(asyncio.gather(*after), 20)]

    ended, after = asyncio.run(cancel())
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    assert after == ["free\n", "free\n"] and not sandbox._calls._running


@pytest.mark.parametrize("tier", ["namespaces", "landlock"])
def test_a_supervisor_that_dies_is_replaced_and_the_call_repeated_once(tier, opened):
    sandbox = opened(tier, warm=(), max_concurrency=2)

    async def interrupted(times):
        # far longer than the kill, far shorter than the deadline
        call = asyncio.ensure_future(
            sandbox.run("import time; time.sleep(1); print('whole')", limits=Limits(time_s=60))
        )
        for _ in range(times):
            while not sandbox._calls._running:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            dead = supervisor_of(sandbox)
            os.kill(dead, signal.SIGKILL)
            while not call.done() and sandbox._calls._connection._process.poll() is not None:
                await asyncio.sleep(0.01)
            started = sandbox._calls._connection
            while not call.done() and sandbox._calls._connection is started and times > 1:
                await asyncio.sleep(0.01)
        return await call

    try:
        assert asyncio.run(interrupted(1)).stdout == "whole\n"
        with pytest.raises(SandboxFailure, match=r"failed twice.*supervisor died"):
            asyncio.run(interrupted(2))
        assert asyncio.run(sandbox.run("print(1)")).stdout == "1\n"
    finally:
        sandbox.close()


def test_closing_ends_calls_and_refuses_new_ones(opened):
    sandbox = opened("auto", warm=(), max_concurrency=1)
    launcher = sandbox._calls._connection._process

    async def close():
        calls = [asyncio.ensure_future(sandbox.run("while True: pass")) for _ in range(3)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(sandbox.close)
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(one) for one in asyncio.run(close())] == [SandboxFailure] * 3
    assert launcher.poll() is not None
    sandbox.close()
    with pytest.raises(SandboxFailure, match="closed; open another"):
        asyncio.run(sandbox.run("1"))


def test_wrong_options_are_one_line():
    for options, said in [
        ({"tier": "none"}, "allow_unsafe"),
        ({"tier": "remote"}, "go together"),
        ({"url": "http://localhost"}, "go together"),
        ({"max_concurrency": -1}, "max_concurrency=-1"),
        ({"max_sessions": 0}, "max_sessions=0"),
    ]:
        with pytest.raises(ValueError, match=said):
            SandboxOptions(**options)


def test_no_tier_none_without_saying_so_and_its_name_is_reported():
    sandbox = open_sandbox(SandboxOptions(tier="none", allow_unsafe=True))
    try:
        assert sandbox.tier == "none"
        outcome = asyncio.run(sandbox.run("print(input(), open('a').read())", stdin="in\n", files={"a": b"file"}))
        assert (outcome.status, outcome.stdout) == ("ok", "in file\n")
        assert asyncio.run(sandbox.run("while True: pass", limits=Limits(time_s=0.3))).status == "timeout"
        assert asyncio.run(sandbox.run("x = bytearray(4 << 30)")).stderr.endswith("MemoryError\n")
    finally:
        sandbox.close()


def test_a_tier_that_does_not_start_is_unavailable_with_the_reason(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxUnavailable, match=r"interpreter .*Fix: "):
        open_sandbox(SandboxOptions(tier="auto"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("tier", "abi"), [("namespaces", None), ("landlock", None), ("landlock", 5), ("landlock", 1)])
def test_an_ordinary_user_may_too(tier, abi):
    """In a process of uid 65534 with the system's Python, where there is one that such a user can run.

    Before ABI 6 Landlock does not keep signals inside, before 3 not truncate: seccomp does. The guest has the trainer's
    own user in the Landlock tier."""
    python = "/usr/bin/python3"
    recent = [python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
    if not os.path.exists(python) or subprocess.run(recent, capture_output=True).returncode:
        pytest.skip(f"no {python} of 3.11 or newer")
    folder = tempfile.mkdtemp()  # pytest's own folders are closed to other users
    script = """
import os
open("a", "w").write("x")
os.rename("a", "b")
with open("victim", "w"): pass
print(os.getuid(), open("b").read())
for attempt in (lambda: os.kill(TRAINER, 0), lambda: os.truncate("FOLDER/victim", 0),
                lambda: os.open("FOLDER/victim", 3), lambda: os.open("FOLDER/victim", 3 | os.O_TRUNC),
                lambda: open("FOLDER/victim").read(), lambda: os.listdir("FOLDER")):
    try:
        attempt()
        print("did")
    except OSError:
        pass
"""
    code = f"""
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.path.insert(0, {folder!r})
from lockstep.sandbox.calls import Calls
from lockstep.sandbox.interface import Limits
open("{folder}/open/victim", "w").write("whole")
settings = dict(tier={tier!r}, warm=[], landlock_abi={abi!r})
calls = Calls(settings, max_calls=1, max_sessions=1, session_idle_s=9)
script = {script!r}.replace("TRAINER", str(os.getpid())).replace("FOLDER", "{folder}/open")
outcome = calls.add(script.encode(), b"", None, Limits()).result()
print(outcome.status, outcome.stdout.split(), outcome.stderr, open("{folder}/open/victim").read())
calls.close()
"""
    try:
        source = Path(HOST) / "lockstep" / "sandbox"
        shutil.copytree(source, f"{folder}/lockstep/sandbox", ignore=shutil.ignore_patterns("__pycache__"))
        Path(f"{folder}/lockstep/__init__.py").touch()
        os.chmod(folder, 0o755)
        os.mkdir(f"{folder}/open")
        os.chmod(f"{folder}/open", 0o777)
        done = subprocess.run([python, "-B", "-c", code], capture_output=True, text=True, env={"PATH": ""}, cwd="/")
    finally:
        shutil.rmtree(folder)
    assert (done.stdout, done.stderr) == ("ok ['65534', 'x']  whole\n", "")


def test_a_listener_that_fails_leaves_nobody_waiting(monkeypatch):
    """Whatever is wrong with a message of the supervisor's."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # it is raised in the listener's thread too
    sandbox = open_sandbox(SandboxOptions(max_concurrency=1))
    try:
        monkeypatch.setattr(sandbox._calls, "_hear_one", lambda: 1 // 0)

        async def both():
            runs = (sandbox.run("print(1)"), sandbox.run("print(2)"))
            return await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 30)

        first, second = asyncio.run(both())
        for found in (first, second):
            assert isinstance(found, SandboxFailure)
            assert str(found).startswith("the sandbox's listener failed (ZeroDivisionError: ")
    finally:
        sandbox.close()
