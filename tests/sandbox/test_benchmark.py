"""The sandbox's benchmark: what it counts is right, it judges its bars, and its quick form runs through."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import processes
from benchmarks import sandbox as benchmark
from benchmarks.sandbox import COLD, Row
from lockstep.sandbox.interface import SandboxFailure, SandboxUnavailable

BURN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {BURN!r}])"


def run(code):
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE)


def test_the_time_of_a_tree_is_that_of_all_its_processes_the_ended_ones_too():
    before = processes.cpu_s()
    run(GRANDCHILD).communicate()
    assert 0.2 <= processes.cpu_s() - before < 0.5


def test_the_time_of_a_tree_is_without_that_of_its_burners():
    before = processes.cpu_s(), processes.cpu_s(without=frozenset())
    with processes.busy_cores(2) as burners:
        start = processes.cpu_s(without=burners)
        while processes.cpu_s() - before[0] < 0.3:
            time.sleep(0.01)
        assert len(burners) == 2 and burners <= processes.tree().keys()
        assert processes.cpu_s(without=burners) - start < 0.2
    assert not burners & processes.tree().keys()


def test_a_tree_has_children_and_their_children():
    inner = "import sys; sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {inner!r}])"
    process = run(outer)
    while len(processes.tree(process.pid)) < 2:
        assert process.poll() is None
    found = processes.tree(process.pid)
    assert found[process.pid].parent == os.getpid()
    assert [found[pid].parent for pid in found if pid != process.pid] == [process.pid]
    process.communicate()
    assert processes.tree(process.pid) == {}


def test_the_memory_of_a_tree_has_what_its_children_hold():
    before = processes.memory_bytes()
    process = run("import sys; x = bytearray(b'x' * 50_000_000); print('.', flush=True); sys.stdin.read()")
    while processes.memory_bytes() - before < 50_000_000:
        assert process.poll() is None
    assert processes.memory_bytes() - before < 150_000_000
    process.communicate()


def row(side, cores, rate, cpu_ms, script="trivial", in_flight=8):
    numbers = {"num_calls": 10, "calls_per_s": rate, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "cpu_ms": cpu_ms}
    return Row(script=script, side=side, cores=cores, in_flight=in_flight, **numbers)


@pytest.mark.parametrize(
    ("idle", "busy", "first", "second"),
    [
        ((300.0, 5.0), (100.0, 10.0), "100, reached", "10.0 ms, reached"),
        ((300.0, 5.0), (99.9, 9.0), "100, MISSED", "9.0 ms, reached"),
        ((50.0, 10.1), (120.0, 5.0), "120, reached", "10.1 ms, MISSED"),
    ],
)
def test_the_bars(idle, busy, first, second):
    others = [row("namespaces", "busy", 1.0, 99.0, in_flight=1), row("namespaces", "busy", 1.0, 99.0, "session")]
    rows = [row("namespaces", "idle", *idle), *others, row(COLD, "busy", 9.0, 90.0), row("namespaces", "busy", *busy)]
    lines = benchmark.verdicts(rows)
    assert len(lines) == 2
    assert lines[0].endswith(first) and lines[1].endswith(second)
    assert all(line.startswith("namespaces: ") for line in lines)


def test_the_bars_need_the_trivial_script():
    lines = benchmark.verdicts([row("namespaces", "idle", 1.0, 1.0), row("namespaces", "busy", 1.0, 1.0, "session")])
    assert lines == ["namespaces: the bars are not measured"]
    assert benchmark.options(["--only", "session"]).in_flight == {"session": (1, 2, 8, 64)}


def test_a_line_is_aligned_and_has_the_ratios():
    ours, cold = row("namespaces", "idle", 300.0, 5.0), row(COLD, "idle", 30.0, 40.0)
    lines = benchmark.line(ours, cold), benchmark.line(cold, cold)
    assert lines[0].endswith("10.0x   0.12x")
    assert len(lines[0]) == len(benchmark.HEAD) and not lines[1].endswith("x")
    assert lines[0].index("300.0") + 5 == lines[1].index("30.0") + 4 == benchmark.HEAD.index("calls/s") + 7


def test_a_side_that_fails_is_a_line_and_the_next_goes_on(capsys, monkeypatch):
    async def fail():
        raise SandboxFailure("no answer")

    monkeypatch.setattr(benchmark, "sandbox_side", lambda *_: fail)
    rows = benchmark.case({"namespaces": None}, "trivial", "idle", 1, benchmark.options(["--quick"]), frozenset())
    assert [row.side for row in rows] == [COLD]
    assert "FAILED: no answer" in capsys.readouterr().out


def test_a_wrong_answer_ends_the_benchmark():
    with pytest.raises(SystemExit, match="trivial: not the answer 42: 43"):
        benchmark.check("trivial", False, 43)


def test_the_quick_benchmark(tmp_path, capsys):
    benchmark.main(["--quick", "--json", str(tmp_path / "rows.json")])
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    sides = set(benchmark.TIERS) if os.geteuid() == 0 else {row["side"] for row in rows} - {COLD}
    expected = [
        (script, side, cores, in_flight)
        for cores in ("idle", "busy")
        for script, in_flight in (("trivial", 8), ("import numpy", 1), ("session", 2))
        for side in (*(tier for tier in benchmark.TIERS if tier in sides), *([] if script == "session" else [COLD]))
    ]
    assert [(row["script"], row["side"], row["cores"], row["in_flight"]) for row in rows] == expected
    assert all(row["calls_per_s"] > 0 and row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows)
    assert all(row["num_calls"] >= row["in_flight"] for row in rows)
    for side in sides:
        assert f"- {side}: at least 100 calls/s warm on busy cores: " in out
        assert f"- {side}: 2 idle calls in flight take " in out


def test_a_tier_that_does_not_work_is_a_line(monkeypatch):
    def refuse(options):
        raise SandboxUnavailable(f"tier {options.tier!r}:\n denied")

    monkeypatch.setattr(benchmark, "open_sandbox", refuse)
    found, notes = benchmark.open_all()
    assert found == {}
    assert notes[0] == "namespaces: not measured, tier 'namespaces': denied"
