"""Mixture-of-experts layers without materialisation: experts one after another, recomputed in the backward.

Nothing of size tokens x top_k x intermediate outlives its expert; between forward and backward only the layer's input
stays. Importing this file registers `experts_implementation="lockstep"` with transformers; it serves every experts
module of its
registry: GPT-OSS (interleaved gate and up, biases, clamped GLU), Qwen3-MoE (concatenated, no biases) and their like.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

DECODE_ROWS = 2048  # (token, expert) pairs up to which the calls, not the arithmetic, take the time


def experts_forward(
    module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden [T, H]; top_k_index [T, K] of distinct experts a token; top_k_weights [T, K]. Returns [T, H]."""
    if not module.has_gate or module._is_expert_parallel:
        raise ValueError(
            f"{type(module).__name__}: lockstep experts serve gated experts on one device; "
            "pick another experts_implementation"
        )
    if not torch.is_grad_enabled() and top_k_index.numel() <= DECODE_ROWS:
        return _decode(module, hidden, top_k_index, top_k_weights)
    biases = (module.gate_up_proj_bias, module.down_proj_bias) if module.has_bias else (None, None)
    return Experts.apply(
        module, hidden, top_k_index, top_k_weights, module.gate_up_proj, biases[0], module.down_proj, biases[1]
    )


def _by_expert(top_k_index: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, list[slice]]:
    """The flat [T * K] places ordered by the expert chosen there (then by token), and each expert's slice of them."""
    flat = top_k_index.reshape(-1)
    order = torch.sort(flat, stable=True).indices
    stops = torch.bincount(flat, minlength=num_experts).cumsum(0).tolist()
    return order, [slice(start, stop) for start, stop in pairwise([0, *stops])]


def _project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    weight = weight if transposed else weight.T
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _decode(module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """All experts in one batched product, each with its own tokens, padded to the busiest expert's. For few tokens, no
    gradient."""
    num_experts, top_k = module.gate_up_proj.shape[0], index.shape[1]
    flat, order = torch.sort(index.reshape(-1), stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    width = int(counts.max())
    rank = torch.arange(len(flat), device=flat.device) - (counts.cumsum(0) - counts)[flat]
    slots = flat * width + rank
    padded = hidden.new_zeros(num_experts * width, hidden.shape[1])
    padded[slots] = hidden[order // top_k]
    up = _project_all(padded.view(num_experts, width, -1), module, "gate_up_proj")
    down = _project_all(module._apply_gate(up), module, "down_proj")
    return _combine(down.flatten(0, 1)[slots], order, weights)


def _project_all(x: torch.Tensor, module: Any, name: str) -> torch.Tensor:
    """x [E, N, in] through every expert's projection at once."""
    weight = getattr(module, name)
    weight = weight if module.is_transposed else weight.transpose(1, 2)
    return (
        torch.baddbmm(getattr(module, f"{name}_bias")[:, None], x, weight) if module.has_bias else torch.bmm(x, weight)
    )


class Experts(torch.autograd.Function):
    """sum over a token's experts of weight * down(gate(up(x))). Weights are kept whole; activations are recomputed."""

    @staticmethod
    def forward(ctx, module, hidden, index, weights, gate_up, gate_up_bias, down, down_bias):
        outputs = hidden.new_empty(index.numel(), hidden.shape[1])
        order, slices = _by_expert(index, gate_up.shape[0])
        for expert, own in enumerate(slices):
            x = hidden[order[own] // index.shape[1]]
            up = _project(x, gate_up[expert], _row(gate_up_bias, expert), module.is_transposed)
            outputs[own] = _project(module._apply_gate(up), down[expert], _row(down_bias, expert), module.is_transposed)
        ctx.save_for_backward(hidden, index, weights, gate_up, gate_up_bias, down, down_bias)
        ctx.module = module
        return _combine(outputs, order, weights)

    @staticmethod
    def backward(ctx, dout):
        hidden, index, weights, gate_up, gate_up_bias, down, down_bias = ctx.saved_tensors
        module, transposed = ctx.module, ctx.module.is_transposed
        dhidden = hidden.new_empty(index.numel(), hidden.shape[1])
        dweights = torch.empty_like(weights).view(-1)
        dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
        dgate_up_bias, ddown_bias = (None if b is None else torch.zeros_like(b) for b in (gate_up_bias, down_bias))
        flat_weights = weights.reshape(-1)
        order, slices = _by_expert(index, gate_up.shape[0])
        for expert, own in enumerate(slices):
            places = order[own]
            tokens = places // index.shape[1]
            x, dy = hidden[tokens], dout[tokens]
            up = _project(x, gate_up[expert], _row(gate_up_bias, expert), transposed)
            with torch.enable_grad():
                up.requires_grad_()
                gated = module._apply_gate(up)
            inner = gated.detach()
            dinner = _input_gradient(dy, down[expert], transposed)
            # <dy, inner @ down + bias>, without the product: inner meets down through dinner
            dweight = (inner * dinner).sum(-1)
            dweights[places] = (dweight if down_bias is None else dweight + dy @ down_bias[expert]).to(weights.dtype)
            chosen = flat_weights[places, None].to(dy.dtype)
            _weight_gradients(inner, dy * chosen, ddown[expert], _row(ddown_bias, expert), transposed)
            (dup,) = torch.autograd.grad(gated, up, dinner.mul_(chosen))
            _weight_gradients(x, dup, dgate_up[expert], _row(dgate_up_bias, expert), transposed)
            dhidden[own] = _input_gradient(dup, gate_up[expert], transposed)
        dhidden = _combine(dhidden, order, torch.ones_like(weights))
        gradients = (dgate_up, dgate_up_bias, ddown, ddown_bias)
        return None, dhidden, None, dweights.view_as(weights), *gradients


def _row(parameter: torch.Tensor | None, expert: int) -> torch.Tensor | None:
    return None if parameter is None else parameter[expert]


def _input_gradient(dy: torch.Tensor, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    return dy @ (weight.T if transposed else weight)


def _weight_gradients(x, dy, dweight, dbias, transposed) -> None:
    """Write the gradients of one expert's projection of x into dweight and dbias."""
    if dbias is not None:
        torch.sum(dy, 0, out=dbias)
    torch.mm(*((x.T, dy) if transposed else (dy.T, x)), out=dweight)


def _combine(outputs: torch.Tensor, order: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """outputs [T * K, H], ordered by expert, weighted by weights [T, K] and summed over K, in a fixed order."""
    rows = torch.empty_like(order)
    rows[order] = torch.arange(len(order), device=order.device)
    rows, weights = rows.view_as(weights), weights.to(outputs.dtype)
    total = outputs[rows[:, 0]].mul_(weights[:, :1])
    for k in range(1, rows.shape[1]):
        total.addcmul_(outputs[rows[:, k]], weights[:, k : k + 1])
    return total


ALL_EXPERTS_FUNCTIONS.register("lockstep", experts_forward)
