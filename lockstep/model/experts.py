"""Mixture-of-experts layers without materialisation: experts one after another, recomputed in the backward.

Nothing of size tokens x top_k is ever made: an expert's tokens are taken in pieces, and between forward and backward
only the layer's input stays. Importing this file registers `experts_implementation="lockstep"` with transformers; it
serves every experts module of its registry: GPT-OSS (interleaved gate and up, biases, clamped GLU), Qwen3-MoE
(concatenated, no biases) and their like.

The way taken depends on the device and on the kind of pass, never on whether there is a gradient, and only in decoding
on the number of tokens: a log-prob pass has the bits of the training pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lockstep.model.exact import tiled_mm
from lockstep.model.experts_grouped import (
    GroupedExperts,
    decode_experts,
    gated_with_graph,
    grouped_mm_serves,
    sum_dtype,
)
from lockstep.model.mode import is_decoding, is_exact
from lockstep.types import InvariantError

DECODE_ROWS = 2048  # (token, expert) pairs up to which the calls, not the arithmetic, take a decoding pass's time
PIECE_ROWS = 512  # of an expert at a time, at least: fewer would not keep its products busy
PIECE_ELEMENTS = 1 << 17  # of gate and up at a time: 512 KiB, so that the gate's passes stay in the cache
CUDA_PIECES = 32  # so many pieces' rows at once there; on a CPU one for each thread


def experts_forward(
    module: Any,
    hidden: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    *,
    grouped: bool | None = None,
) -> torch.Tensor:
    """hidden [T, H]; top_k_index [T, K] of distinct experts a token; top_k_weights [T, K]. Returns [T, H] in hidden's
    dtype; the sum over K is float32 at least. grouped: by `GroupedExperts`; None: where the device has the kernel.

    Raises ValueError for experts of another kind, InvariantError for gradients while `mode.decoding()`.
    """
    if not module.has_gate or getattr(module, "_is_expert_parallel", False):
        raise ValueError(
            f"{type(module).__name__}: lockstep experts serve gated experts on one device; "
            "pick another experts_implementation"
        )
    if is_decoding():
        if torch.is_grad_enabled():
            raise InvariantError("experts: a pass with gradients says that it is decoding; only new tokens are decoded")
        if not is_exact() and top_k_index.numel() <= DECODE_ROWS:
            return decode_experts(module, hidden, top_k_index, top_k_weights)
    if grouped is None:
        grouped = grouped_mm_serves(module, hidden) and not is_exact()
    biases = (module.gate_up_proj_bias, module.down_proj_bias) if module.has_bias else (None, None)
    parameters = (module.gate_up_proj, biases[0], module.down_proj, biases[1])
    return (GroupedExperts if grouped else Experts).apply(module, hidden, top_k_index, top_k_weights, *parameters)


class Experts(torch.autograd.Function):
    """sum over a token's experts of weight * down(gate(up(x))), expert by expert.

    An expert meets a token at most once, so its rows are added to the tokens' own without collisions: the order of
    summation is that of the experts, on every device and in every run.
    """

    @staticmethod
    def forward(ctx: Any, module, hidden, index, weights, *parameters):
        out = torch.zeros_like(hidden, dtype=sum_dtype(hidden))
        flat_weights = weights.reshape(-1, 1).to(out.dtype)
        for expert, pieces in _by_expert(index, parameters[0], hidden.shape[1]):
            gate_up, gate_up_bias, down, down_bias = _of_expert(parameters, expert, module.is_transposed)
            for places in pieces:
                tokens = places // index.shape[1]
                up = _project(hidden.index_select(0, tokens), gate_up, gate_up_bias)
                y = _project(module._apply_gate(up), down, down_bias).to(out.dtype)
                out.index_add_(0, tokens, y.mul_(flat_weights.index_select(0, places)))
        ctx.save_for_backward(hidden, index, weights, *parameters)
        ctx.module = module
        return out.to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout):
        hidden, index, weights, *parameters = ctx.saved_tensors
        transposed = ctx.module.is_transposed
        dhidden = torch.zeros_like(hidden, dtype=sum_dtype(hidden))
        flat_weights, dweights = weights.reshape(-1, 1).to(dout.dtype), torch.empty_like(weights)
        gradients = [
            torch.zeros_like(p) if p is not None and needed else None
            for p, needed in zip(parameters, ctx.needs_input_grad[4:], strict=True)
        ]
        for expert, pieces in _by_expert(index, parameters[0], hidden.shape[1]):
            own = _of_expert(parameters, expert, transposed)
            targets = _of_expert(gradients, expert, transposed)
            sums = [None if d is None else d.to(dhidden.dtype) for d in targets]  # in float32 over the pieces
            for places in pieces:
                tokens, chosen = places // index.shape[1], flat_weights.index_select(0, places)
                dx, dweight = _backward_piece(ctx.module, hidden, dout, tokens, chosen, own, sums)
                dhidden.index_add_(0, tokens, dx.to(dhidden.dtype))
                dweights.view(-1)[places] = dweight.to(weights.dtype)
            for target, total in zip(targets, sums, strict=True):
                if total is not target:
                    target.copy_(total)
        return None, dhidden.to(hidden.dtype), None, dweights, *gradients


def _by_expert(
    index: torch.Tensor, gate_up: torch.Tensor, hidden_size: int
) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
    """The experts that were chosen, in order; each with its places in the flat [T * K], ascending, in even pieces."""
    flat, num_experts = index.reshape(-1), gate_up.shape[0]
    order = torch.sort(flat, stable=True).indices
    stops = torch.bincount(flat, minlength=num_experts).cumsum(0).tolist()
    at_once = CUDA_PIECES if index.is_cuda else torch.get_num_threads()
    most = at_once * max(PIECE_ROWS, PIECE_ELEMENTS * hidden_size // gate_up[0].numel())
    for expert, (start, stop) in enumerate(pairwise([0, *stops])):
        if start < stop:
            yield expert, order[start:stop].chunk(max(1, round((stop - start) / most)))


def _of_expert(parameters: Sequence[torch.Tensor | None], expert: int, transposed: bool) -> list[Any]:
    """Views of one expert's (gate_up [H, 2 * I], its bias, down [I, H], its bias), whatever the layout."""
    own = [None if p is None else p[expert] for p in parameters]
    return [x if x is None or x.dim() == 1 or transposed else x.T for x in own]


def _project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [N, in] @ weight [in, out] + bias [out]: every product of the forward."""
    if is_exact():
        return tiled_mm(x, weight, bias)
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _backward_piece(module, hidden, dout, tokens, chosen, parameters, sums) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden, dout [T, H]; tokens int64 [N] of the piece, chosen [N, 1] their weights; one expert's parameters, and the
    sums of their gradients, to which the piece's are added. Returns dx [N, H] and the weights' gradient [N]."""
    gate_up, gate_up_bias, down, down_bias = parameters
    x, dy = hidden.index_select(0, tokens), dout.index_select(0, tokens)
    up, gated = gated_with_graph(module, _project(x, gate_up, gate_up_bias))
    inner, dinner = gated.detach(), dy @ down.T
    # <dy, inner @ down + bias>, without the product: inner meets down through dinner
    dweight = torch.sum(inner * dinner, -1, dtype=sum_dtype(x))
    if down_bias is not None:
        dweight += dy @ down_bias
    _add_gradients(inner, dy.mul_(chosen), *sums[2:])
    del dy, inner
    (dup,) = torch.autograd.grad(gated, up, dinner.mul_(chosen))
    del gated, up, dinner
    _add_gradients(x, dup, *sums[:2])
    return dup @ gate_up.T, dweight


def _add_gradients(x: torch.Tensor, dy: torch.Tensor, dweight: torch.Tensor | None, dbias: torch.Tensor | None) -> None:
    """Those of x @ weight + bias, to sums of x's dtype or a wider one."""
    if dbias is not None:
        dbias += dy.sum(0, dtype=dbias.dtype)
    if dweight is not None and dweight.dtype == x.dtype:
        dweight.addmm_(x.T, dy)
    elif dweight is not None:
        dweight += x.T @ dy


ALL_EXPERTS_FUNCTIONS.register("lockstep", experts_forward)
