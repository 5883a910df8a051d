"""The benchmarks of the model, at tiny sizes: the sides compute the same, and every part still runs."""

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import gpu, gpu_checks, gpu_layer, measure, mismatch, model, step, training_step, workloads
from benchmarks.measure import Absent, Case, Here, NotRun, Row, Target
from lockstep.learner.learner import Learner

HEADS = {"heads": 4, "kv_heads": 2, "dim": 16}
TINY = replace(
    model.QUICK,
    full_tokens=(48,),
    sliding_tokens=(64, 128),
    packed_lengths=(9, 1, 30),
    window=16,
    expert_tokens=40,
    vocabulary=600,
    logprob_tokens=30,
    step_lengths=(20, 12),
    step_vocabulary=150,
    targets=True,
)
NO_TRL = model.Environment(trl_python=Path("/nonexistent/python"))


def assert_close(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert (x - y).norm() <= 2e-5 * y.norm()


# --- the sides of a case do the same work ---


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("backward", [False, True])
def test_attention_sides_agree(window, backward):
    given = workloads.attention((70, 1, 40), window=window, **HEADS)
    ours = workloads.lockstep_attention(given, backward=backward)()
    assert_close(ours, workloads.eager_attention(given, backward=backward)())
    assert not any(x.requires_grad for x in ours)
    without = workloads.lockstep_attention(given, backward=backward, sinks=False)()
    assert (without[0] - ours[0]).norm() > 0.1 * ours[0].norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("window", [None, 16])
def test_flex_attention_agrees(window, monkeypatch):
    """Its forward, not compiled: more does not run on the CPU."""

    def forward(q, k, v, **options):
        return flex_attention(q.detach(), k.detach(), v.detach(), **options)

    monkeypatch.setattr(workloads, "COMPILED", forward)
    given = workloads.attention((70, 1, 57), window=window, **HEADS)
    ours = workloads.lockstep_attention(given, backward=False)()
    assert_close(workloads.flex_sink_attention(given, backward=False)(), ours)


def test_experts_sides_agree():
    given = workloads.experts(50, hidden=16, intermediate=24, num_experts=8, top_k=3)
    ours = workloads.run_experts(given, "lockstep")()
    for implementation in ("eager", "grouped_mm"):
        assert_close(ours, workloads.run_experts(given, implementation)())


def test_logprobs_sides_agree():
    given = workloads.logprobs(20, hidden=16, vocabulary=300)
    ours = workloads.run_logprobs(given, workloads.lockstep_logprobs)()
    for op in (workloads.naive_logprobs, workloads.naive_float32_logprobs):
        assert_close(ours, workloads.run_logprobs(given, op)())


def test_step_sides_agree():
    network = model.step_model(TINY)
    with torch.no_grad():
        for layer in network.get_decoder().layers:
            layer.self_attn.sinks.uniform_(0, 5)
    tokens = torch.randint(TINY.step_vocabulary, (sum(TINY.step_lengths),))
    steps = [
        side(network, tokens, TINY.step_lengths)
        for side in (training_step.lockstep_step, training_step.transformers_step)
    ]
    assert_close(steps[0](), steps[1]())


def test_layer_sides_agree():
    setting = gpu.Setting(sizes=gpu.QUICK, device="cpu", dtype=torch.float32)
    layer = gpu_layer.decoder_layer(setting, full=False)
    outs = []
    for attention, experts in (("lockstep", "lockstep"), ("eager", "grouped_mm")):
        torch.manual_seed(0)
        run = gpu_layer.run_layer(
            setting, layer, (96,), attention_implementation=attention, experts_implementation=experts
        )
        outs.append(run())
    assert_close(*outs)


# --- numbers worked by hand ---


def test_attended_pairs():
    assert workloads.attended_pairs(5, None) == 15  # 1 + 2 + 3 + 4 + 5
    assert workloads.attended_pairs(5, 2) == 9  # 1 + 2 + 2 + 2 + 2
    assert workloads.attended_pairs(5, 9) == 15


def test_eager_attention_needs_what_its_formula_says():
    given = workloads.attention((512,), window=None, heads=8, kv_heads=2, dim=64)
    found = measure.cpu_peak_bytes(workloads.eager_attention(given, backward=True))
    assert found == pytest.approx(given.eager_bytes, rel=0.2)


def two_then_one():
    first = torch.zeros(1_000_000)
    second = first + 1
    del first
    return second.view(1000, 1000) @ torch.ones(1000, 250)


def test_peak_memory_on_the_cpu():
    before = torch.zeros(5_000_000)  # was there before: not counted
    found = measure.cpu_peak_bytes(two_then_one)
    assert found == pytest.approx(8_000_000, abs=100)  # first and second; then second, ones and the product are 6 MB
    del before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts resident memory as Linux does")
def test_resident_memory_agrees():
    code = f"import torch\nfrom benchmarks import measure\n{inspect.getsource(two_then_one)}"
    code += "print(measure.rss_peak_bytes(two_then_one))"
    root = Path(__file__).parent.parent
    variables = os.environ | measure.RSS_ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, cwd=root)
    assert int(done.stdout) == pytest.approx(8_000_000, rel=0.15), done.stderr


def row(side, time_s=None, peak_bytes=None, **other):
    return Row(**{"part": "p", "case": "c", "side": side, "tokens": 1000} | other, time_s=time_s, peak_bytes=peak_bytes)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (Target(quantity="time", against="B", bound=4.0), "B takes at least 4x the time: 4x, reached"),
        (Target(quantity="time", against="B", bound=4.1), "B takes at least 4.1x the time: 4x, missed"),
        (Target(quantity="memory", against="B", bound=15.0), "B takes at least 15x the memory: 10x, missed"),
        (Target(quantity="memory", against=None, bound=5e7), "memory at most 50 MB: 50 MB, reached"),
        (Target(quantity="memory", against=None, bound=4.9e7), "memory at most 49 MB: 50 MB, missed"),
        (Target(quantity="time", against="C", bound=2.0), "C takes at least 2x the time: not measured"),
    ],
)
def test_targets(target, line):
    case = Case(part="p", name="c", tokens=1000, sides=list)
    rows = [row("A", 0.5, 50_000_000), row("B", 2.0, 500_000_000), row("C", note="failed: out of memory")]
    assert measure.judge(target, case, rows) == f"- p, c: {line}"


def test_table_line():
    ours, theirs = row("A", 0.5, 50_000_000, flops=1e12), row("B", 2.0, 1.5e9)
    assert measure.table_line(ours, ours) == "| c | A | 500 ms | 500 | 2 | 50 MB |  |  |"
    assert measure.table_line(theirs, ours) == "| c | B | 2 s | 2e+03 |  | 1.5 GB | 4.00x | 30.00x |"


def test_linearity():
    rows = [row("Lockstep", 0.1, part="sliding"), row("Lockstep", 0.6, part="sliding", tokens=4000)]
    assert model.linearity(rows)[0].endswith("1.50x, reached")
    assert model.linearity([rows[0], replace(rows[1], time_s=0.7)])[0].endswith("1.75x, missed")


# --- the boundary ---


def broken():
    raise RuntimeError("no such\nkernel")


def test_a_failing_side_or_case_is_a_row_and_the_next_goes_on(capsys):
    def sides():
        return Here(name="A", work=broken), Here(name="B", work=two_then_one), Absent(name="C", why="needs 9 GB")

    every = [Case(part="p", name=n, tokens=1, sides=s) for n, s in (("first", broken), ("second", sides))]
    rows, _ = measure.run_cases(every, rounds=1, seconds=0.0)
    assert [r.note for r in rows] == [*["failed: RuntimeError: no such kernel"] * 2, "", "not run: needs 9 GB"]
    assert rows[2].time_s > 0
    assert "| second | A | failed: RuntimeError: no such kernel |" in capsys.readouterr().out


def test_what_begins_after_the_deadline_is_skipped(capsys):
    case = Case(part="p", name="c", tokens=1, sides=broken)
    rows, _ = measure.run_cases([case], rounds=1, deadline=time.monotonic() - 1)
    assert [r.note for r in rows] == ["not run: no time left"]


# --- the scripts ---


def test_every_part_of_the_cpu_benchmark(capsys):
    rows, verdicts = measure.run_cases(model.cases(TINY, NO_TRL), rounds=1, seconds=0.0)
    assert {r.part for r in rows} == set(model.PARTS)
    assert [(r.side, r.note) for r in rows if r.note] == [
        ("TRL", "not run: not installed, `make benchmark-model` sets it up")
    ]
    assert all(r.time_s > 0 and r.peak_bytes > 0 for r in rows if not r.note)
    assert len(verdicts) == 3  # experts, and two of the log-probs; attention's are about 4096 tokens
    out = capsys.readouterr().out
    assert all(f"### {part}\n" in out for part in model.PARTS)


def test_sides_that_need_too_much_memory_are_not_run():
    poor = replace(NO_TRL, memory_bytes=30_000)
    sides = {c.name: [type(s) for s in c.sides()] for c in model.cases(TINY, poor) if c.part == "attention"}
    assert sides == {"full layer, 48 tokens": [Here, Absent]}
    names = [c.name for c in model.cases(TINY, poor) if c.part == "logprobs"]
    assert names[1].startswith("1 tokens")  # 5 x 4 bytes x 600, and no further halving below 30 kB


def test_the_cpu_benchmark_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "QUICK", TINY)
    monkeypatch.setattr(model, "prepare_cpu", lambda threads: None)  # it would change this process's allocator
    model.main(["--quick", "--only", "sliding", "--rounds", "1", "--json", str(tmp_path / "rows.json")])
    assert "- sliding: time per token at 128 tokens at most 1.5x that at 64" in capsys.readouterr().out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [r["tokens"] for r in found["rows"]] == [64, 64, 128, 128]


def test_the_gpu_benchmark_on_the_cpu(tmp_path, capsys):
    gpu.main(["--device", "cpu", "--quick", "--rounds", "1", "--json", str(tmp_path / "rows.json")])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "WRONG" in line or "failed" in line] == []
    for check in ("attention, full layer", "attention, window 32", "experts", "logprobs"):
        assert f"- {check}: ok: " in out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert {r["part"] for r in found["rows"]} == set(gpu.PARTS)
    assert {r["side"] for r in found["rows"] if r["note"]} == {"FlexAttention", "transformers flex"}
    assert found["wrong"] == ["flex"]


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_wrong_kernel_is_not_timed(factor, capsys, monkeypatch):
    right = workloads.packed_attention
    monkeypatch.setattr(workloads, "packed_attention", lambda *args, **kwargs: factor * right(*args, **kwargs))
    gpu.main(["--device", "cpu", "--quick", "--rounds", "1", "--only", "flex"])
    out = capsys.readouterr().out
    assert "- attention, full layer: WRONG: out " in out
    assert "Lockstep | not run: did not pass its check: attention |" in out


def test_a_missing_sink_gradient_is_wrong(monkeypatch):
    right = workloads.packed_attention
    monkeypatch.setattr(
        workloads,
        "packed_attention",
        lambda q, k, v, sinks, *args, **kwargs: right(q, k, v, sinks * 0, *args, **kwargs),
    )
    setting = gpu.Setting(sizes=gpu.QUICK, device="cpu", dtype=torch.bfloat16)
    assert "attention" in gpu_checks.run_checks(setting, ["attention"])


def test_flex_attention_is_not_run_on_the_cpu():
    with pytest.raises(NotRun):
        gpu_checks.check_flex(gpu.Setting(sizes=gpu.QUICK, device="cpu", dtype=torch.bfloat16), None)


def test_the_mismatch_benchmark(capsys, monkeypatch):
    """Exact mode has no gap, the default one has; every mode has its row."""
    monkeypatch.setattr(mismatch, "prepare_cpu", lambda threads: None)
    mismatch.main(["--trajectories", "2", "--seeds", "3"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].split(",")[0] for row in rows] == ["default", "default", "exact", "exact"]
    assert [float(row[4]) > 0 for row in rows] == [True, True, False, False]


def test_our_side_of_the_step_benchmark(tmp_path, monkeypatch):
    """Whole GRPO steps: every token of every step is trained on, and the model moves."""
    monkeypatch.setattr("lockstep.compute.prepare_cpu", lambda threads: None)
    chosen = argparse.Namespace(num_prompts=2, group_size=4, max_new_tokens=5, steps=2, threads=1)
    step.prepare(chosen, tmp_path)
    reports, update = [], Learner.update
    monkeypatch.setattr(Learner, "update", lambda *args, **kwargs: reports.append(update(*args, **kwargs)))
    step.lockstep_side(chosen, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert result["completion_tokens"] == 2 * 4 * 5
    assert result["tokens"] == 4 * (sum(map(len, prompts[2:])) + 2 * 5)
    assert [report.metrics["ratio/max"] for report in reports] == [1.0, 1.0]
    assert all(report.metrics["grad_norm"] > 0 for report in reports)
    assert all(report.metrics["routes/agreement"] > 0.99 for report in reports)
