"""Mixture-of-experts layers with all experts in one call: PyTorch's grouped products on CUDA, and decoding.

`GroupedExperts` is the sum that `experts.Experts` computes, by chunks of tokens instead of experts: a chunk's rows are
sorted by expert on the device and nothing but shapes is known to the host. Its activations are recomputed in the
backward too, so that peak memory grows with the chunk and not with the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

CHUNK_TOKENS = 4096
ALIGNMENT_BYTES = 16  # grouped_mm's of every row and of every tensor's first element


def grouped_mm_serves(module: Any, hidden: torch.Tensor) -> bool:
    """Whether `GroupedExperts` is the way on this device: bfloat16 on CUDA from compute capability 8.0 on, widths in
    multiples of 8."""
    weights = (module.gate_up_proj, module.down_proj)
    return (
        hidden.is_cuda
        and {hidden.dtype, *(w.dtype for w in weights)} == {torch.bfloat16}
        and all(
            size * w.itemsize % ALIGNMENT_BYTES == 0 and w.data_ptr() % ALIGNMENT_BYTES == 0
            for w in weights
            for size in w.shape[1:]
        )
        and torch.cuda.get_device_capability(hidden.device) >= (8, 0)
    )


class GroupedExperts(torch.autograd.Function):
    """sum over a token's experts of weight * down(gate(up(x))), by grouped products. Same arguments as `Experts`."""

    @staticmethod
    def forward(ctx: Any, module, hidden, index, weights, *parameters):
        out = torch.empty_like(hidden)
        for chunk in _chunks(len(hidden)):
            rows = SortedRows(index[chunk], len(parameters[0]))
            x = hidden[chunk].index_select(0, rows.tokens)
            up = _project(rows, x, *parameters[:2], transposed=module.is_transposed)
            y = _project(rows, module._apply_gate(up), *parameters[2:], transposed=module.is_transposed)
            out[chunk] = combine(y, rows.order, weights[chunk])
        ctx.save_for_backward(hidden, index, weights, *parameters)
        ctx.module = module
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout):
        hidden, index, weights, *parameters = ctx.saved_tensors
        dhidden, dweights = torch.empty_like(hidden), torch.empty_like(weights)
        sums = [
            Sum(sum_dtype(hidden)) if p is not None and needed else None
            for p, needed in zip(parameters, ctx.needs_input_grad[4:], strict=True)
        ]
        for chunk in _chunks(len(hidden)):
            rows = SortedRows(index[chunk], len(parameters[0]))
            chosen = weights[chunk].reshape(-1, 1).index_select(0, rows.order).to(dout.dtype)
            dx, dweight = _backward_chunk(ctx.module, rows, hidden[chunk], dout[chunk], chosen, parameters, sums)
            dhidden[chunk] = combine(dx, rows.order, torch.ones_like(weights[chunk]))
            flat = torch.empty_like(dweight)
            flat[rows.order] = dweight
            if parameters[3] is not None:  # <dy, bias> of every expert, then of those chosen
                flat += (dout[chunk] @ parameters[3].T).gather(1, index[chunk]).view(-1)
            dweights[chunk] = flat.view_as(dweights[chunk])
        gradients = (None if total is None else total.value(p) for total, p in zip(sums, parameters, strict=True))
        return None, dhidden, None, dweights, *gradients


class Sum:
    """A sum of tensors: the one tensor while there is only one, then in `dtype`, the wider."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.total = dtype, None

    def add(self, x: torch.Tensor) -> None:
        self.total = x if self.total is None else self.total.to(self.dtype).add_(x)

    def value(self, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like) if self.total is None else self.total.to(like.dtype)


class SortedRows:
    """The rows (token, choice) of a chunk in the order of their experts, then of their tokens.

    order [R]: places in the flat [tokens * K]; tokens [R]; experts [R]; stops int32 [E], where each expert's rows end;
    unused [E, 1, 1]: experts without a row.
    """

    def __init__(self, index: torch.Tensor, num_experts: int) -> None:
        self.experts, self.order = torch.sort(index.reshape(-1), stable=True)
        self.tokens = self.order // index.shape[1]
        numbers = torch.arange(num_experts, device=index.device)
        self.stops = torch.searchsorted(self.experts, numbers, right=True).int()
        self.unused = torch.diff(self.stops, prepend=self.stops.new_zeros(1)).eq(0)[:, None, None]

    def segment_products(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a [R, M], b [R, N] -> [E, M, N]: each expert's a.T @ b; zeros where it has no rows, which the kernel leaves
        unwritten on some devices (pytorch/pytorch#172439)."""
        return grouped_mm(a.T, b, offs=self.stops).masked_fill_(self.unused, 0)


def _backward_chunk(module, rows, hidden, dout, chosen, parameters, sums) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden, dout [tokens, H] of the chunk, chosen [R, 1] weights. Adds to the sums of the parameters' gradients;
    returns dx [R, H] and <dy, inner @ down> [R], the weights' gradient but for the bias."""
    gate_up, gate_up_bias, down, _ = parameters
    transposed = module.is_transposed
    x, dy = hidden.index_select(0, rows.tokens), dout.index_select(0, rows.tokens)
    up, gated = gated_with_graph(module, _project(rows, x, gate_up, gate_up_bias, transposed=transposed))
    inner, dinner = gated.detach(), _input_gradient(rows, dy, down, transposed)
    dweight = torch.sum(inner * dinner, -1, dtype=sum_dtype(x))
    _add_gradients(rows, inner, dy.mul_(chosen), *sums[2:], transposed=transposed)
    del inner, dy
    (dup,) = torch.autograd.grad(gated, up, dinner.mul_(chosen))
    del up, gated, dinner
    _add_gradients(rows, x, dup, *sums[:2], transposed=transposed)
    return _input_gradient(rows, dup, gate_up, transposed), dweight


def _project(rows: SortedRows, x: torch.Tensor, weight, bias, *, transposed: bool) -> torch.Tensor:
    y = grouped_mm(x, weight if transposed else weight.transpose(1, 2), offs=rows.stops)
    return y if bias is None else y.add_(bias[rows.experts])


def _input_gradient(rows: SortedRows, dy: torch.Tensor, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    return grouped_mm(dy, weight.transpose(1, 2) if transposed else weight, offs=rows.stops)


def _add_gradients(rows: SortedRows, x, dy, dweight: Sum | None, dbias: Sum | None, *, transposed: bool) -> None:
    if dbias is not None:  # sums over rows, as products with ones: deterministic, and the host need not know the counts
        dbias.add(rows.segment_products(dy.new_ones(len(dy), ALIGNMENT_BYTES // 2), dy)[:, 0].contiguous())
    if dweight is not None:
        dweight.add(rows.segment_products(*((x, dy) if transposed else (dy, x))))


def _chunks(num_tokens: int) -> list[slice]:
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, num_tokens, CHUNK_TOKENS)]


def decode_experts(module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """All experts in one batched product, each with its own tokens, padded to the busiest expert's. For few tokens, no
    gradient; shapes as in `experts_forward`."""
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
    return combine(down.flatten(0, 1)[slots], order, weights)


def _project_all(x: torch.Tensor, module: Any, name: str) -> torch.Tensor:
    """x [E, N, in] through every expert's projection at once."""
    weight = getattr(module, name)
    weight = weight if module.is_transposed else weight.transpose(1, 2)
    return (
        torch.baddbmm(getattr(module, f"{name}_bias")[:, None], x, weight) if module.has_bias else torch.bmm(x, weight)
    )


def gated_with_graph(module: Any, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """up [R, 2 * I], to be differentiated, and what the module's gate makes of it, [R, I]."""
    with torch.enable_grad():
        return up.requires_grad_(), module._apply_gate(up)


def combine(outputs: torch.Tensor, order: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """outputs [T * K, H], the row of place order[i] at i, weighted by weights [T, K] and summed over K, in the order of
    K and in float32 at least; in the outputs' dtype."""
    rows = torch.empty_like(order)
    rows[order] = torch.arange(len(order), device=order.device)
    rows, dtype = rows.view_as(weights), sum_dtype(outputs)
    weights = weights.to(dtype)
    total = outputs[rows[:, 0]].to(dtype).mul_(weights[:, :1])
    for k in range(1, rows.shape[1]):
        total.addcmul_(outputs[rows[:, k]].to(dtype), weights[:, k : k + 1])
    return total.to(outputs.dtype)


def sum_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
