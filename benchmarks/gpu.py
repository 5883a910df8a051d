"""Lockstep's kernels on a CUDA device at GPT-OSS-20B's shapes in bfloat16, checked and then timed, in one call.

    python benchmarks/gpu.py                          # minutes; the tables are markdown, fit for docs/LOG.md
    python benchmarks/gpu.py --device cpu --quick     # small sizes: proves the script where there is no device

Checks come first: every kernel against float64 on the CPU at a small size; one that is wrong is not timed. Attention
with sinks stands beside the same kernel without, transformers' eager attention and compiled FlexAttention; experts
beside transformers' own; log-probs beside log_softmax; a whole decoder layer beside transformers'. A side or case that
fails becomes a line with its error, and the next goes on; what fails or does not fit the time is listed at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.gpu_checks import run_checks
from benchmarks.gpu_layer import decoder_layer, run_layer
from benchmarks.gpu_setting import QUICK, Setting, Sizes
from benchmarks.measure import Absent, Case, Row, Side, Target, attempt, run_cases, size
from benchmarks.workloads import (
    Run,
    attention,
    attention_flops,
    eager_attention,
    experts,
    experts_flops,
    flex_sink_attention,
    lockstep_attention,
    lockstep_logprobs,
    logprobs,
    logprobs_flops,
    naive_float32_logprobs,
    naive_logprobs,
    run_experts,
    run_logprobs,
)
from lockstep.model.attention import select_kernel, set_backend

PARTS = {  # and the kernels that each stands on
    "attention": ("attention",),
    "experts": ("experts",),
    "logprobs": ("logprobs",),
    "layer": ("attention", "experts", "flex"),
    "flex": ("attention", "flex"),
}
WITHOUT_SINKS = "the same without sinks"
MOST_OVERHEAD = 0.05  # of the sinks, in time


# --- cases ---


def cases(setting: Setting) -> Iterator[Case]:
    yield from attention_cases(setting, "attention", setting.sizes.packs)
    yield from experts_cases(setting)
    yield from logprob_cases(setting)
    yield from layer_cases(setting)
    yield from attention_cases(setting, "flex", setting.sizes.flex_packs)  # last: compiling takes its time


def attention_cases(setting: Setting, part: str, packs: Iterable[tuple[int, ...]]) -> Iterator[Case]:
    sides = attention_sides if part == "attention" else flex_sides
    overhead = Target(quantity="time", against=WITHOUT_SINKS, bound=1 / (1 + MOST_OVERHEAD))
    for lengths, window, backward in product(packs, (None, setting.sizes.window), (False, True)):
        kind = "full" if window is None else f"window {window}"
        yield Case(
            part=part,
            name=f"{kind}, {pack_name(lengths)}, {'forward + backward' if backward else 'forward'}",
            tokens=sum(lengths),
            flops=attention_flops(lengths, window, heads=setting.sizes.heads, dim=setting.sizes.dim, backward=backward),
            sides=partial(sides, setting, lengths, window, backward),
            targets=(overhead,) if part == "attention" else (),
        )


def attention_sides(setting: Setting, lengths: tuple[int, ...], window: int | None, backward: bool) -> Sequence[Side]:
    given = attention(lengths, window=window, **setting.heads, **setting.where)
    ours = partial(lockstep_attention, given, backward=backward)
    return (
        setting.side("Lockstep", ours, kernels=("attention",)),
        setting.side(WITHOUT_SINKS, partial(ours, sinks=False), kernels=("attention",)),
        eager_or_not(setting, given.eager_bytes, partial(eager_attention, given, backward=backward)),
    )


def flex_sides(setting: Setting, lengths: tuple[int, ...], window: int | None, backward: bool) -> Sequence[Side]:
    given = attention(lengths, window=window, **setting.heads, **setting.where)
    return (
        setting.side("Lockstep", partial(lockstep_attention, given, backward=backward), kernels=("attention",)),
        setting.side("FlexAttention", partial(flex_sink_attention, given, backward=backward), kernels=("flex",)),
    )


def eager_or_not(setting: Setting, num_bytes: float, make: Callable[[], Run]) -> Side:
    available = torch.cuda.mem_get_info()[0] if setting.device == "cuda" else 4e9
    if num_bytes > available:
        return Absent(name="transformers eager", why=f"needs {size(num_bytes)}")
    return setting.side("transformers eager", make)


def experts_cases(setting: Setting) -> Iterator[Case]:
    sizes = setting.sizes
    widths = {"hidden": sizes.hidden, "intermediate": sizes.intermediate, "top_k": sizes.top_k}
    names = {"Lockstep": "lockstep", "transformers grouped_mm": "grouped_mm", "transformers eager": "eager"}

    def sides(num_tokens: int) -> Sequence[Side]:
        given = experts(num_tokens, num_experts=sizes.num_experts, **widths, **setting.where)
        return [
            setting.side(
                name,
                partial(run_experts, given, implementation),
                kernels=("experts",) if implementation == "lockstep" else (),
            )
            for name, implementation in names.items()
        ]

    for num_tokens in sizes.expert_tokens:
        yield Case(
            part="experts",
            name=f"{num_tokens} tokens, {sizes.num_experts} experts, top {sizes.top_k}, forward + backward",
            tokens=num_tokens,
            flops=experts_flops(num_tokens, **widths),
            sides=partial(sides, num_tokens),
        )


def logprob_cases(setting: Setting) -> Iterator[Case]:
    widths = {"hidden": setting.sizes.hidden, "vocabulary": setting.sizes.vocabulary}
    ops = {
        "Lockstep": lockstep_logprobs,
        "log_softmax": naive_logprobs,
        "log_softmax, float32 logits": naive_float32_logprobs,
    }

    def sides(num_tokens: int) -> Sequence[Side]:
        given = logprobs(num_tokens, **widths, **setting.where)
        return [
            setting.side(
                name, partial(run_logprobs, given, op), kernels=("logprobs",) if op is lockstep_logprobs else ()
            )
            for name, op in ops.items()
        ]

    for num_tokens in setting.sizes.logprob_tokens:
        yield Case(
            part="logprobs",
            name=f"{num_tokens} tokens, vocabulary {setting.sizes.vocabulary}, forward + backward",
            tokens=num_tokens,
            flops=logprobs_flops(num_tokens, **widths),
            sides=partial(sides, num_tokens),
        )


def layer_cases(setting: Setting) -> Iterator[Case]:
    for lengths, full in product(setting.sizes.layer_packs, (False, True)):
        yield Case(
            part="layer",
            name=f"{'full' if full else 'sliding'} layer, {pack_name(lengths)}, forward + backward",
            tokens=sum(lengths),
            flops=layer_flops(setting.sizes, lengths, full),
            sides=partial(layer_sides, setting, lengths, full),
        )


def layer_flops(sizes: Sizes, lengths: Sequence[int], full: bool) -> float:
    widths = {"hidden": sizes.hidden, "intermediate": sizes.intermediate, "top_k": sizes.top_k}
    projections = 2 * sizes.hidden * sizes.dim * (sizes.heads + sizes.kv_heads)
    window = None if full else sizes.window
    scores = attention_flops(lengths, window, heads=sizes.heads, dim=sizes.dim, backward=True)
    return 6.0 * sum(lengths) * projections + scores + experts_flops(sum(lengths), **widths)


def layer_sides(setting: Setting, lengths: tuple[int, ...], full: bool) -> Sequence[Side]:
    """Lockstep takes a pack, transformers a batch of the sequences, which are of one length."""
    layer = decoder_layer(setting, full)
    window = layer.self_attn.sliding_window
    given = attention(lengths, window=window, **setting.heads, **setting.where)  # for its estimate of memory
    grouped = partial(run_layer, setting, layer, lengths, experts_implementation="grouped_mm")
    return (
        setting.side(
            "Lockstep",
            partial(run_layer, setting, layer, lengths, attention_implementation="lockstep"),
            kernels=("attention", "experts"),
        ),
        eager_or_not(setting, given.eager_bytes * len(lengths), partial(grouped, attention_implementation="eager")),
        setting.side(
            "transformers flex", partial(grouped, attention_implementation="flex_attention"), kernels=("flex",)
        ),
    )


def pack_name(lengths: Sequence[int]) -> str:
    return f"{len(lengths)} x {lengths[0]} tokens"


# --- the run ---


def while_it_works(every: Iterable[Case], device: str) -> Iterator[Case]:
    """The cases, until a kernel has broken the device for this process."""
    for case in every:
        yield case
        if device == "cuda":
            _, note = attempt(lambda: (torch.ones(1, device="cuda") + 1).item())
            if note:
                print(f"\nThe device is lost to this process ({note}): run the remaining parts with --only.")
                return


def title_line(setting: Setting, budget_s: float) -> str:
    device = torch.cuda.get_device_name() if setting.device == "cuda" else "CPU"
    versions = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    if setting.device == "cuda":
        versions.append(f"CUDA {torch.version.cuda}")
    if importlib.util.find_spec("triton"):
        versions.append(f"triton {importlib.import_module('triton').__version__}")
    kind = str(setting.dtype).removeprefix("torch.")
    versions.append(f"attention by {select_kernel(torch.device(setting.device)).__name__}")
    return f"## {date.today()}: kernels on {device}, {kind}, {', '.join(versions)}, budget {budget_s:.0f} s"


def summary(rows: Sequence[Row], verdicts: Sequence[str], wrong: Iterable[str], began: float) -> str:
    lines = ["", "### Targets", "", *verdicts, "", "### Summary", ""]
    lines += [f"- did not pass its check, not timed: {kernel}" for kernel in sorted(wrong)]
    lines += [f"- {row.part}, {row.case}, {row.side}: {row.note}" for row in rows if row.note]
    lines.append(f"- {sum(not row.note for row in rows)} rows measured, {time.monotonic() - began:.0f} s in all")
    return "\n".join(lines)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--backend", default="auto", help="Lockstep's attention kernel: auto, torch, flash3, flash4")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="these parts, not all; checks always run"
    )
    parser.add_argument("--budget-s", type=float, default=400.0, help="no case begins after so many seconds")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs a side, at least")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen, began = options(arguments), time.monotonic()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: --device cpu --quick runs the script without one")
    set_backend(chosen.backend)
    sizes = QUICK if chosen.quick else Sizes()
    setting = Setting(sizes=sizes, device=chosen.device, dtype=getattr(torch, chosen.dtype))
    title = title_line(setting, chosen.budget_s)
    print(title, flush=True)
    wrong = run_checks(setting, {kernel for part in chosen.only for kernel in PARTS[part]})
    every = (case for case in cases(replace(setting, wrong=wrong)) if case.part in chosen.only)
    rows, verdicts = run_cases(
        while_it_works(every, chosen.device),
        rounds=chosen.rounds,
        seconds=0.1 if chosen.quick else 1.0,
        deadline=began + chosen.budget_s,
    )
    print(summary(rows, verdicts, wrong, began), flush=True)
    if chosen.json:
        found = {"title": title, "wrong": sorted(wrong), "rows": [asdict(r) for r in rows], "verdicts": verdicts}
        chosen.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
