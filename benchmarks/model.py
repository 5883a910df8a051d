"""Time and peak memory of Lockstep's attention, experts and log-probs on the CPU, beside what else there is.

    make benchmark-model

Beside transformers' eager attention with sinks, its eager and grouped_mm experts, TRL's chunked log-probs (in TRL's own
virtual environment, if it is there) and plain log_softmax; and a whole model's training step with all of them. Every
case runs forward and backward, in float32; the sides take turns in one run. `measure.py` says how memory is counted;
--check-memory counts it a second way. Targets are printed as reached or missed; the exit code is 0 either way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measure import (
    RSS_ENVIRONMENT,
    Absent,
    Case,
    Here,
    Row,
    Side,
    Target,
    rss_peak_bytes,
    run_cases,
    size,
)
from benchmarks.training_step import lockstep_step, transformers_step
from benchmarks.workloads import (
    NAIVE_LOGITS,
    attention,
    attention_flops,
    eager_attention,
    experts,
    experts_flops,
    gpt_oss_config,
    lockstep_attention,
    lockstep_logprobs,
    logprobs,
    logprobs_flops,
    naive_logprobs,
    run_experts,
    run_logprobs,
)
from lockstep.compute import prepare_cpu

HERE = Path(__file__).parent
PARTS = ("attention", "sliding", "packed", "experts", "logprobs", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of all cases; the defaults are those that the targets are about."""

    full_tokens: tuple[int, ...] = (1024, 4096, 16384)
    sliding_tokens: tuple[int, ...] = (1024, 4096, 16384, 32768)
    packed_lengths: tuple[int, ...] = tuple(range(64, 449, 6))  # 65 sequences, 16640 tokens
    heads: int = 8
    kv_heads: int = 2
    dim: int = 64
    window: int = 128
    num_experts: int = 32
    top_k: int = 4
    expert_tokens: int = 8192
    expert_hidden: int = 256
    expert_intermediate: int = 256
    vocabulary: int = 201088
    logprob_tokens: int = 4096
    logprob_hidden: int = 64
    step_lengths: tuple[int, ...] = (1024, 768, 640, 512, 384, 320, 256, 192)
    step_layers: int = 8
    step_hidden: int = 512
    step_vocabulary: int = 32768
    targets: bool = True


QUICK = Sizes(
    full_tokens=(256, 512),
    sliding_tokens=(256, 1024),
    packed_lengths=(33, 64, 95, 128),
    num_experts=8,
    expert_tokens=256,
    expert_hidden=64,
    expert_intermediate=64,
    vocabulary=8192,
    logprob_tokens=256,
    step_lengths=(96, 64),
    step_layers=2,
    step_hidden=64,
    step_vocabulary=1024,
    targets=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the run may use."""

    memory_bytes: float = 8e9
    threads: int = 1
    trl_python: Path = HERE.parent / ".venv-trl/bin/python"


def cases(sizes: Sizes, environment: Environment) -> Iterator[Case]:
    yield from attention_cases(sizes, environment)
    yield experts_case(sizes)
    yield from logprob_cases(sizes, environment)
    yield step_case(sizes)


def attention_cases(sizes: Sizes, environment: Environment) -> Iterator[Case]:
    layers = [
        *(("attention", (tokens,), None, f"full layer, {tokens} tokens") for tokens in sizes.full_tokens),
        *(
            ("sliding", (tokens,), sizes.window, f"window {sizes.window}, {tokens} tokens")
            for tokens in sizes.sliding_tokens
        ),
        *(
            ("packed", sizes.packed_lengths, window, f"{name}, {len(sizes.packed_lengths)} sequences")
            for window, name in ((None, "full layer"), (sizes.window, f"window {sizes.window}"))
        ),
    ]
    bounds = (("time", 4.0), ("memory", 15.0))
    for part, lengths, window, name in layers:
        chosen = sizes.targets and part == "attention" and lengths == (4096,)
        yield Case(
            part=part,
            name=name,
            tokens=sum(lengths),
            flops=attention_flops(lengths, window, heads=sizes.heads, dim=sizes.dim, backward=True),
            sides=lambda lengths=lengths, window=window: attention_sides(sizes, environment, lengths, window),
            targets=tuple(Target(quantity=q, against="transformers eager", bound=b) for q, b in bounds if chosen),
        )


def attention_sides(
    sizes: Sizes, environment: Environment, lengths: Sequence[int], window: int | None
) -> Sequence[Side]:
    given = attention(lengths, heads=sizes.heads, kv_heads=sizes.kv_heads, dim=sizes.dim, window=window)
    ours = Here(name="Lockstep", work=lockstep_attention(given, backward=True))
    if given.eager_bytes > environment.memory_bytes:
        return ours, Absent(name="transformers eager", why=f"needs {size(given.eager_bytes)}")
    return ours, Here(name="transformers eager", work=eager_attention(given, backward=True))


def experts_case(sizes: Sizes) -> Case:
    widths = {"hidden": sizes.expert_hidden, "intermediate": sizes.expert_intermediate, "top_k": sizes.top_k}

    def sides() -> Sequence[Side]:
        given = experts(sizes.expert_tokens, num_experts=sizes.num_experts, **widths)
        names = {"Lockstep": "lockstep", "transformers eager": "eager", "transformers grouped_mm": "grouped_mm"}
        return [Here(name=side, work=run_experts(given, implementation)) for side, implementation in names.items()]

    target = Target(quantity="memory", against="transformers grouped_mm", bound=4.0)
    return Case(
        part="experts",
        name=f"{sizes.expert_tokens} tokens, {sizes.num_experts} experts, top {sizes.top_k}, "
        f"{sizes.expert_hidden}/{sizes.expert_intermediate}",
        tokens=sizes.expert_tokens,
        flops=experts_flops(sizes.expert_tokens, **widths),
        sides=sides,
        targets=(target,) if sizes.targets else (),
    )


def logprob_cases(sizes: Sizes, environment: Environment) -> Iterator[Case]:
    """Lockstep against TRL's op on all tokens, and against log_softmax on as many as its memory allows."""
    naive_tokens = sizes.logprob_tokens
    while naive_tokens > 1 and NAIVE_LOGITS * 4 * naive_tokens * sizes.vocabulary > environment.memory_bytes:
        naive_tokens //= 2
    given = {"hidden": sizes.logprob_hidden, "vocabulary": sizes.vocabulary}
    name = f"tokens, vocabulary {sizes.vocabulary}, hidden {sizes.logprob_hidden}"
    targets = (
        Target(quantity="time", against="TRL", bound=2.0),
        Target(quantity="memory", against=None, bound=512e6),
    )

    def ours(num_tokens: int) -> Here:
        return Here(name="Lockstep", work=run_logprobs(logprobs(num_tokens, **given), lockstep_logprobs))

    def naive() -> Here:
        return Here(name="log_softmax", work=run_logprobs(logprobs(naive_tokens, **given), naive_logprobs))

    yield Case(
        part="logprobs",
        name=f"{sizes.logprob_tokens} {name}",
        tokens=sizes.logprob_tokens,
        flops=logprobs_flops(sizes.logprob_tokens, **given),
        sides=lambda: (ours(sizes.logprob_tokens), trl_side(sizes, environment)),
        targets=targets if sizes.targets else (),
    )
    yield Case(
        part="logprobs",
        name=f"{naive_tokens} {name}, what fits log_softmax",
        tokens=naive_tokens,
        flops=logprobs_flops(naive_tokens, **given),
        sides=lambda: (ours(naive_tokens), naive()),
    )


def trl_side(sizes: Sizes, environment: Environment) -> Side:
    if not environment.trl_python.exists():
        return Absent(name="TRL", why="not installed, `make benchmark-model` sets it up")
    return Trl(name="TRL", process=start_trl(sizes, environment))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trl:
    """A side whose work another process does, one request at a time."""

    name: str
    process: subprocess.Popen[str]

    def peak_bytes(self) -> int:
        return int(self._ask("peak"))

    def time_s(self) -> float:
        return self._ask("time")

    def _ask(self, question: str) -> float:
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"TRL's process ended with {self.process.wait()}; its error is above")
        return json.loads(answer)

    def __del__(self) -> None:
        self.process.kill()


def start_trl(sizes: Sizes, environment: Environment) -> subprocess.Popen[str]:
    given = {
        "tokens": sizes.logprob_tokens,
        "vocabulary": sizes.vocabulary,
        "hidden": sizes.logprob_hidden,
        "threads": environment.threads,
    }
    command = [str(environment.trl_python), str(HERE / "logprobs_trl.py"), *(f"--{k}={v}" for k, v in given.items())]
    threads = str(environment.threads)
    variables = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TRL_EXPERIMENTAL_SILENCE": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)


def step_case(sizes: Sizes) -> Case:
    def sides() -> Sequence[Side]:
        model = step_model(sizes)
        tokens = torch.randint(sizes.step_vocabulary, (sum(sizes.step_lengths),))
        return (
            Here(name="Lockstep", work=lockstep_step(model, tokens, sizes.step_lengths)),
            Here(name="transformers", work=transformers_step(model, tokens, sizes.step_lengths)),
        )

    return Case(
        part="step",
        name=f"{sizes.step_layers} layers, {len(sizes.step_lengths)} sequences, {sum(sizes.step_lengths)} tokens",
        tokens=sum(sizes.step_lengths),
        sides=sides,
    )


def step_model(sizes: Sizes) -> PreTrainedModel:
    config = gpt_oss_config(
        vocab_size=sizes.step_vocabulary,
        hidden_size=sizes.step_hidden,
        intermediate_size=sizes.step_hidden,
        num_hidden_layers=sizes.step_layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.dim,
        num_local_experts=sizes.num_experts,
        num_experts_per_tok=sizes.top_k,
        sliding_window=sizes.window,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def linearity(rows: Sequence[Row]) -> list[str]:
    """Whether a sliding layer's time per token stays the same while the sequence grows."""
    found = [(r.tokens, r.time_s / r.tokens) for r in rows if r.part == "sliding" and r.side == "Lockstep" and r.time_s]
    if len(found) < 2:
        return []
    (fewest, first), (most, last) = found[0], found[-1]
    verdict = "reached" if last <= 1.5 * first else "missed"
    return [f"- sliding: time per token at {most} tokens at most 1.5x that at {fewest}: {last / first:.2f}x, {verdict}"]


def check_memory(chosen: argparse.Namespace, rows: Iterable[Row]) -> None:
    """Print each side's peak beside the growth of the resident memory of a process of its own."""
    print("\n### Peak memory counted twice\n\n| case | side | profiler | resident |\n|---|---|---|---|")
    command = [sys.executable, __file__, *(["--quick"] if chosen.quick else []), f"--threads={chosen.threads}"]
    for row in rows:
        if row.peak_bytes is None or row.side == "TRL":
            continue
        own = [*command, "--rss-of", row.case, row.side]
        done = subprocess.run(own, env=os.environ | RSS_ENVIRONMENT, capture_output=True, text=True)
        found = size(int(done.stdout)) if not done.returncode else f"failed: {done.stderr[-200:]!r}"
        print(f"| {row.case} | {row.side} | {size(row.peak_bytes)} | {found} |", flush=True)


def print_rss(every: Iterable[Case], case: str, side: str) -> None:
    """A child process of `check_memory`."""
    sides = next(c for c in every if c.name == case).sides()
    work = next(s.work for s in sides if isinstance(s, Here) and s.name == side)
    del sides
    print(rss_peak_bytes(work))


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts, not all")
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds in all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs a side, at least")
    parser.add_argument("--hidden", type=int, help="hidden size of the log-probs, instead of 64")
    parser.add_argument("--malloc", choices=("keep", "default"), default="keep", help="keep: freed memory is reused")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="a side that needs more is not run")
    parser.add_argument("--trl-python", type=Path, default=Environment().trl_python)
    parser.add_argument(
        "--check-memory", action="store_true", help="count peak memory a second way, in fresh processes"
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--rss-of", nargs=2, help=argparse.SUPPRESS)  # the case and side of a child process
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    sizes = QUICK if chosen.quick else Sizes()
    if chosen.hidden:
        sizes = replace(sizes, logprob_hidden=chosen.hidden, targets=False)
    environment = Environment(memory_bytes=chosen.memory_gb * 1e9, threads=chosen.threads, trl_python=chosen.trl_python)
    every = [c for c in cases(sizes, environment) if c.part in chosen.only]
    if chosen.rss_of:
        torch.set_num_threads(chosen.threads)
        print_rss(every, *chosen.rss_of)
        return
    prepare_cpu(chosen.threads) if chosen.malloc == "keep" else torch.set_num_threads(chosen.threads)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"## {date.today()}: the model's kernels, {platform.machine()} CPU, {chosen.threads} thread(s), {versions}")
    clock = "processor" if chosen.threads == 1 else "clock"
    print(f"\nTime is the {clock}'s, the median of a side's runs; freed memory: {chosen.malloc}.")
    rows, verdicts = run_cases(every, rounds=chosen.rounds, seconds=0.1 if chosen.quick else 1.0)
    verdicts += linearity(rows)
    if sizes.targets:
        print("\n### Targets\n\n" + "\n".join(verdicts))
    if chosen.check_memory:
        check_memory(chosen, rows)
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"versions": versions, "rows": [asdict(r) for r in rows], "verdicts": verdicts})
        )


if __name__ == "__main__":
    main()
