"""Every limit, just within it and beyond it."""

import asyncio
import sys
import tempfile
from fractions import Fraction

import pytest

from lockstep.sandbox.interface import Limits, SandboxUnavailable
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the local tiers need Linux")
MIB = 1 << 20
REMOVED = """
import os, time
kept = []
for _ in range(4):
    kept.append(open("a", "wb"))
    kept[-1].write(bytes(7 << 20))
    kept[-1].flush()
    os.unlink("a")
time.sleep(30)
"""


def test_time(run):
    outcome = run("print('before')\nwhile True: pass", limits=Limits(time_s=0.4))
    assert (outcome.status, outcome.stdout, outcome.signal, outcome.exit_code) == ("timeout", "before\n", 9, None)
    assert 0.4 <= outcome.time_s < 5
    assert run("import time; time.sleep(60)", limits=Limits(time_s=0.2)).status == "timeout"
    assert run("import time; time.sleep(0.1)", limits=Limits(time_s=30)).status == "ok"


def test_time_is_for_all_of_its_processes(run):
    code = "import os, time\nfor _ in range(3): os.fork()\ntime.sleep(60)"
    assert run(code, limits=Limits(time_s=0.3)).status == "timeout"


def test_memory_of_one_process(run):
    outcome = run("x = bytearray(10 << 30)")
    assert outcome.status == "error" and outcome.stderr.endswith("MemoryError\n")
    within = "x = bytearray(100 << 20); print(len(x) >> 20)"
    assert run(within, limits=Limits(memory_bytes=256 * MIB)).stdout == "100\n"
    assert run(within, limits=Limits(memory_bytes=64 * MIB)).stderr.endswith("MemoryError\n")


def test_memory_of_several_processes_together(run):
    code = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        x = b"x" * (60 << 20)
        time.sleep(60)
time.sleep(60)
"""
    assert run(code, limits=Limits(memory_bytes=128 * MIB, time_s=30)).status == "memory"


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 65536])
def test_output_up_to_the_limit_is_whole(run, size):
    outcome = run(f"print('x' * {size}, end='')", limits=Limits(output_bytes=size))
    assert (outcome.status, outcome.stdout, outcome.truncated) == ("ok", "x" * size, False)


@pytest.mark.parametrize("size", [5000, 10_001])
def test_less_room_for_files_than_for_output_cuts_no_output(run, size):
    limits = Limits(files_bytes=4096, output_bytes=10_000)
    outcome = run(f"print('x' * {size}, end='')", limits=limits)
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "x" * min(size, 10_000), "")
    assert outcome.truncated == (size > 10_000)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_beyond_the_limit_is_cut(run, stream):
    limits = Limits(output_bytes=10_000)
    outcome = run(f"import sys\nwhile True: print('x' * 100, file=sys.{stream})", limits=limits)
    assert (outcome.status, outcome.truncated) == ("output", True)
    assert len(getattr(outcome, stream)) == 10_000
    caught = run(
        f"import os, sys\ntry: print('x' * 50_000, file=sys.{stream})\nexcept OSError: os._exit(0)", limits=limits
    )
    assert (caught.status, caught.truncated) == ("ok", True)
    little = run(f"import sys; print('x' * 10_001, end='', file=sys.{stream})", limits=limits)
    assert (little.status, little.truncated, len(getattr(little, stream))) == ("ok", True, 10_000)


def test_an_output_cannot_be_made_larger(run):
    code = """
import mmap, os
for attempt in (lambda: os.ftruncate(1, 1 << 30), lambda: os.ftruncate(1, 0), lambda: os.pwrite(1, b"x", 1 << 20)):
    try:
        attempt()
        print("did", file=__import__("sys").stderr)
    except OSError:
        pass
"""
    assert (run(code).status, run(code).stderr) == ("ok", "")


def test_processes_and_threads(run, sandbox):
    code = """
import os, threading, time
count = 1
try:
    while True:
        threading.Thread(target=time.sleep, args=[60], daemon=True).start()
        count += 1
except RuntimeError:
    print(count)
os._exit(0)
"""
    for most in (3, 8):
        assert run(code, limits=Limits(max_processes=most)).stdout == f"{most}\n"
    assert run("import os; os.fork()", limits=Limits(max_processes=1)).stderr.endswith("temporarily unavailable\n")


def test_a_fork_bomb_is_held_and_nothing_of_it_stays(run):
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    assert run(bomb, limits=Limits(time_s=0.5)).status == "timeout"
    assert run("print(1)").stdout == "1\n"


def test_a_background_process_ends_with_the_script(run, tmp_path):
    """Its output is the same file: a survivor would be seen to write on."""
    code = "import os, time\nif os.fork() == 0:\n  os.fork()\n  while True: time.sleep(0.01)\nprint('done')"
    outcome = run(code, limits=Limits(time_s=30))
    assert (outcome.status, outcome.stdout) == ("ok", "done\n") and outcome.time_s < 10


def test_bytes_of_files(run, sandbox):
    limits = Limits(files_bytes=8 * MIB, time_s=30)
    assert run("open('a', 'wb').write(bytes(7 << 20))", limits=limits).status == "ok"
    one = run("open('a', 'wb').write(bytes(9 << 20))", limits=limits)
    assert one.status == "error" and ("No space left" in one.stderr or "File too large" in one.stderr)
    several = "import time\nfor n in range(3): open(f'{n}', 'wb').write(bytes(7 << 20))\ntime.sleep(30)"
    assert run(several, limits=limits).status == {"namespaces": "error", "landlock": "killed"}[sandbox.tier]
    assert run(REMOVED, limits=limits).status == {"namespaces": "error", "landlock": "killed"}[sandbox.tier]


def test_removed_files_where_the_temporary_folder_is_a_link(opened, tmp_path, monkeypatch):
    """The kernel names a process's files by their real path."""
    (tmp_path / "real").mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    sandbox = opened("landlock", warm=())
    try:
        outcome = asyncio.run(sandbox.run(REMOVED, limits=Limits(files_bytes=16 << 20, time_s=20)))
    finally:
        sandbox.close()
    assert (outcome.status, outcome.stderr) == ("killed", "")


def test_no_place_for_files_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(SandboxUnavailable, match=r"no folder can be made for the guests' files: .*; set TMPDIR"):
        open_sandbox(SandboxOptions(tier="landlock"))


def test_number_of_files(run, sandbox):
    make = "import os, time\nfor n in range({}): open(f'{{n}}', 'w').close()\n"
    assert run(make.format(20), limits=Limits(max_files=20)).status == "ok"
    many = run(make.format(21) + "time.sleep(30)", limits=Limits(max_files=20, time_s=30))
    assert many.status == {"namespaces": "error", "landlock": "killed"}[sandbox.tier]
    deep = "import os\nfor _ in range(300): os.mkdir('d'); os.chdir('d')\nimport time; time.sleep(30)"
    assert run(deep, limits=Limits(max_files=100, time_s=30)).status in ("error", "killed")
    assert run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("given", [{"files": {"a": bytes(5000)}}, {"files": {str(n): b"" for n in range(9)}}])
def test_given_files_beyond_the_limits_are_the_callers_mistake(run, given):
    with pytest.raises(ValueError, match="raise it"):
        run("1", limits=Limits(files_bytes=4096, max_files=8), **given)


def test_given_files_take_whole_pages(run):
    """As in the file system that they go to."""
    files = {f"f{number}": b"x" for number in range(8)}
    with pytest.raises(ValueError, match=r"32768 bytes in whole pages .*raise it"):
        run("1", files=files, limits=Limits(files_bytes=16384))
    outcome = run("import os; print(len(os.listdir()))", files=files, limits=Limits(files_bytes=32768))
    assert outcome.stdout == "8\n"


def test_descriptors_and_core(run):
    code = """
import os, resource
kept = []
try:
    while len(kept) < 1000: kept.append(os.dup(0))
except OSError:
    print(len(kept) < 200, resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert run(code).stdout == "True (0, 0)\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_s", 0),
        ("time_s", float("inf")),
        ("time_s", float("nan")),
        ("time_s", Fraction(1, 2)),  # cannot be sent
        ("memory_bytes", 0),
        ("memory_bytes", 1e9),
        ("max_processes", 0),
        ("output_bytes", 0),
        ("files_bytes", 100),
        ("max_files", 0),
        ("max_files", 1 << 62),
    ],
)
def test_limits_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"Limits.{name}="):
        Limits(**{name: value})
