"""Products and attention whose every row has the same bits whatever else is in the batch. Forward only, on the CPU.

A matrix product rounds differently for different shapes: the library picks another order of summation. Here every
product has one fixed shape, TILE rows (missing ones are zeros), so a token's row depends on that row alone; attention
goes through the keys in tiles that begin at fixed positions of the sequence, and a key that a query may not see adds
exactly 0. Packed or alone, prefilled or decoded from a cache, a token then has one and the same log-prob.

Seen, not promised by the libraries: within one shape, at aligned addresses, all rows are summed in the same order. The
loop checks the outcome while it runs (engine and trainer must agree exactly) and stops where that does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lockstep.model.kernels_cpu import CpuFlash

TILE = 32  # rows of a product, and keys of an attention tile; whole vectors of every element-wise kernel
ALIGNMENT = 16  # a row's length in elements is a multiple of it


def tiled_mm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [M, K] @ weight [K, N] (+ bias [N]) -> [M, N], in tiles of TILE rows. No gradient."""
    num_rows, inner = x.shape
    width = -(-inner // ALIGNMENT) * ALIGNMENT
    if width != inner:
        weight = _padded(weight, width, weight.shape[1])
    rows = _padded(x, -(-num_rows // TILE) * TILE, width)
    out = torch.empty(len(rows), weight.shape[1], dtype=x.dtype)
    for tile, part in zip(rows.split(TILE), out.split(TILE), strict=True):
        torch.mm(tile, weight, out=part)
    return (out if bias is None else out.add_(bias))[:num_rows]


def _padded(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A fresh, aligned copy of x with zeros up to [rows, columns]."""
    whole = x.new_zeros(rows, columns)
    whole[: x.shape[0], : x.shape[1]] = x
    return whole


class ExactLinear(torch.autograd.Function):
    """torch.nn.functional.linear with `tiled_mm` in its forward and ordinary products in its backward."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return tiled_mm(x.reshape(-1, x.shape[-1]), weight.T, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        dx = (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        dweight = rows.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return dx, dweight, rows.sum(0) if ctx.has_bias else None


# Rounded otherwise in the last elements of an odd number, or where memory is not contiguous, than elsewhere.
UNEVEN = {torch.sigmoid, torch.Tensor.sigmoid, functional.silu, functional.gelu}


class ExactFunctions(TorchFunctionMode):
    """Within: every linear layer and gate, of whatever model, treats all rows alike."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        if func in UNEVEN:
            return _even(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return ExactLinear.apply(input, weight, bias)


def _even(func: Callable[..., torch.Tensor], input: torch.Tensor, **options: Any) -> torch.Tensor:
    """An element-wise function, over whole vectors only."""
    flat = functional.pad(input.reshape(-1), (0, -input.numel() % TILE))
    return func(flat, **options)[: input.numel()].view(input.shape)


class ExactCpu:
    """The kernel protocol of `attention.py`: exact rows in the forward, the flash kernel's backward."""

    backward = CpuFlash.backward

    @staticmethod
    def forward(q, k, v, cu_seqlens, window, scale):
        out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=_sum_dtype(q))
        for start, stop in pairwise(cu_seqlens):
            length, columns = stop - start, -(-(stop - start) // TILE) * TILE
            keys, values = (
                _padded(x[start:stop].flatten(1), columns, x[0].numel()).view(columns, *x.shape[1:]).transpose(0, 1)
                for x in (k, v)
            )
            shape = (length, *keys.shape)
            out[start:stop], lse[start:stop] = attend_rows(
                q[start:stop], keys.expand(shape), values.expand(shape), torch.arange(length), window, scale
            )
        return out, lse


def attend_rows(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    window: int | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's query against its own keys. q [R, H, D]; keys, values [R, Hkv, C, D] with C a multiple of TILE and key
    c at position c of the row's sequence; positions int64 [R]: a row sees keys position - window < c <= position.
    Returns out [R, H, D] and lse [R, H] of the real keys. Keys that are not seen must be finite."""
    num_rows, num_heads, dim = q.shape
    num_kv_heads, columns = keys.shape[1], keys.shape[2]
    group = num_heads // num_kv_heads
    rows = num_rows * num_kv_heads
    dtype = _sum_dtype(q)
    queries = q.reshape(rows, group, dim).to(dtype)
    behind = positions[:, None] - torch.arange(columns)
    seen = (behind >= 0) & (behind < (columns if window is None else window))
    hidden = ~seen.repeat_interleave(num_kv_heads, 0)[:, None]  # [rows, 1, columns]
    tiles = [slice(first, first + TILE) for first in range(0, columns, TILE)]
    used = [tile for tile in tiles if bool(seen[:, tile].any())]  # what no row sees adds 0
    scores = []
    for tile in used:
        score = torch.bmm(queries, _tile(keys, tile, dtype).transpose(1, 2)).mul_(scale)
        scores.append(score.masked_fill_(hidden[..., tile], -torch.inf))
    highest = torch.stack([s.amax(-1, keepdim=True) for s in scores]).amax(0)
    total, mass = torch.zeros_like(queries), torch.zeros_like(highest)
    for score, tile in zip(scores, used, strict=True):
        weights = score.sub_(highest).exp_()
        mass += weights.sum(-1, keepdim=True)
        total += torch.bmm(weights, _tile(values, tile, dtype))
    out, lse = total.div_(mass).to(q.dtype), mass.log() + highest
    return out.reshape(num_rows, num_heads, dim), lse.reshape(num_rows, num_heads)


def decode_rows(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor | None,
    positions: torch.Tensor,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """`attend_rows` for one new token a row, with sinks: query [B, H, 1, D] at positions [B] -> [B, 1, H, D]."""
    out, lse = attend_rows(query[:, :, 0], keys, values, positions, window, scale)
    if sinks is not None:
        out = (out * real_share(lse, sinks)[..., None]).to(query.dtype)
    return out[:, None]


def real_share(lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """sigmoid(lse - sink), the probability that the sink leaves to the real keys; lse [T, H], sinks [H]. Not by
    torch.sigmoid, whose last elements of an odd number are rounded otherwise than the rest."""
    return 1 / (1 + torch.exp(sinks.to(lse.dtype) - lse))


def _tile(x: torch.Tensor, tile: slice, dtype: torch.dtype) -> torch.Tensor:
    """[R, Hkv, C, D] -> a contiguous [R * Hkv, TILE, D]: addresses of one pattern, wherever the keys came from."""
    return x[:, :, tile].flatten(0, 1).to(dtype).contiguous()


def _sum_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
