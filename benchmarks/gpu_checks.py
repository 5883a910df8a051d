"""Every kernel that `gpu.py` times, first against float64 on the CPU at a small size.

In: the setting. Out: one line a check on the standard output, and the kernels that are wrong or could not be run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_setting import Setting
from benchmarks.measure import NotRun, attempt
from benchmarks.workloads import (
    Experts,
    Run,
    attention,
    eager_attention,
    experts,
    flex_sink_attention,
    lockstep_attention,
    lockstep_logprobs,
    logprobs,
    naive_logprobs,
    run_experts,
    run_logprobs,
)

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}  # norm of the error over norm of the value


def run_checks(setting: Setting, kernels: Iterable[str]) -> frozenset[str]:
    """Print one line a check of these kernels; returns those that are not to be timed."""
    print(f"\n### Checks\n\nError against float64, norm over norm; at most {TOLERANCE[setting.dtype]:g}.\n")
    wrong = set()
    for name, kernel, check in checks(setting):
        if kernel not in kernels:
            continue
        found, note = attempt(check)
        right = found is not None and all(e <= TOLERANCE[setting.dtype] for e in found.values())  # NaN is wrong
        values = "" if found is None else ", ".join(f"{key} {value:.1e}" for key, value in found.items())
        print(f"- {name}: {note or ('ok: ' if right else 'WRONG: ') + values}", flush=True)
        if not right:
            wrong.add(kernel)
    return frozenset(wrong)


def checks(setting: Setting) -> Iterator[tuple[str, str, Callable[[], dict[str, float]]]]:
    """(what, the kernel it is about, the errors)"""
    for window in (None, setting.sizes.window):
        kind = "full layer" if window is None else f"window {window}"
        yield f"attention, {kind}", "attention", partial(check_attention, setting, window, lockstep_attention)
        yield f"FlexAttention, {kind}", "flex", partial(check_flex, setting, window)
    yield "experts", "experts", partial(check_experts, setting)
    yield "logprobs", "logprobs", partial(check_logprobs, setting)


def check_attention(setting: Setting, window: int | None, side: Callable[..., Run]) -> dict[str, float]:
    given = attention((300, 1, 128, 83), window=window, **setting.heads, **setting.where)
    exact = replace(given, **{f.name: in_float64(getattr(given, f.name)) for f in fields(given)})
    (out,), (expected,) = side(given, backward=False)(), eager_attention(exact, backward=False)()
    found = errors(("dq", "dk", "dv", "dsinks"), side(given, backward=True)(), eager_attention(exact, backward=True)())
    return {"out": error(out, expected), **found}


def check_flex(setting: Setting, window: int | None) -> dict[str, float]:
    if setting.device != "cuda":
        raise NotRun("FlexAttention has no backward on the CPU")
    return check_attention(setting, window, flex_sink_attention)


def check_experts(setting: Setting) -> dict[str, float]:
    width = 360 if setting.device == "cuda" else 40  # as 20B's, no power of two
    given = experts(
        777, hidden=width, intermediate=width, num_experts=setting.sizes.num_experts, top_k=4, **setting.where
    )
    exact = experts(777, hidden=width, intermediate=width, num_experts=setting.sizes.num_experts, top_k=4)
    exact.module.double().load_state_dict(given.module.state_dict())
    tensors = {f.name: in_float64(getattr(given, f.name)) for f in fields(Experts) if f.name != "module"}
    exact = replace(exact, **tensors)
    names = ("dhidden", "dweights", *(f"d{name}" for name, _ in given.module.named_parameters()))
    return errors(names, run_experts(given, "lockstep")(), run_experts(exact, "eager")())


def check_logprobs(setting: Setting) -> dict[str, float]:
    given = logprobs(257, hidden=48, vocabulary=5003, **setting.where)
    exact = replace(given, **{f.name: in_float64(getattr(given, f.name)) for f in fields(given)})
    found = lockstep_logprobs(given.hidden, given.head, given.targets)
    expected = naive_logprobs(exact.hidden, exact.head, exact.targets)
    gradients = run_logprobs(given, lockstep_logprobs)(), run_logprobs(exact, naive_logprobs)()
    return errors(("logprobs", "entropies"), found, expected) | errors(("dhidden", "dhead"), *gradients)


def in_float64(value: Any) -> Any:
    """Floating tensors on the CPU in float64, whole ones on the CPU, anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    moved = value.detach().cpu()
    return moved.double().requires_grad_(value.requires_grad) if moved.is_floating_point() else moved


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.detach()
    return float((found.detach().cpu().double() - expected).norm() / expected.norm())


def errors(names: Sequence[str], found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, float]:
    return {name: error(x, y) for name, x, y in zip(names, found, expected, strict=True)}
