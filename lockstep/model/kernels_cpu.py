"""Packed causal attention on the CPU, by PyTorch's flash kernel, which returns the log-sum-exp that sinks need.

In: packed q [T, H, D], k and v [T, Hkv, D]; cu_seqlens, the sequences' boundaries as ints. Out: out [T, H, D], lse [T,
H]. A full layer loops over the sequences of the pack. A sliding layer cuts the queries into blocks that each see only
the keys their window reaches, so time and memory are linear in T; blocks may span sequences, and a mask per block keeps
them apart.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

BLOCK = 64  # queries per block of a sliding layer


class CpuFlash:
    """The kernel protocol of `attention.py`, on CPU tensors in float32, bfloat16 or float64."""

    @staticmethod
    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: tuple[int, ...], window: int | None, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if window is not None and window < _longest(cu_seqlens):
            return _banded_forward(q, k, v, cu_seqlens, window, scale)
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:2], dtype=_lse_dtype(q))
        for start, stop in pairwise(cu_seqlens):
            o, part_lse = FORWARD(
                _bhtd(q, start, stop), _bhtd(k, start, stop), _bhtd(v, start, stop), 0.0, True, scale=scale
            )
            out[start:stop] = o[0].transpose(0, 1)
            lse[start:stop] = part_lse.reshape(q.shape[1], stop - start).T
        return out, lse

    @staticmethod
    def backward(
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        cu_seqlens: tuple[int, ...],
        window: int | None,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if window is not None and window < _longest(cu_seqlens):
            return _banded_backward(dout, q, k, v, out, lse, cu_seqlens, window, scale)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for start, stop in pairwise(cu_seqlens):
            grads = BACKWARD(
                *(_bhtd(x, start, stop) for x in (dout, q, k, v, out)),
                lse[start:stop].T[None].contiguous(),
                0.0,
                True,
                scale=scale,
            )
            for whole, part in zip((dq, dk, dv), grads, strict=True):
                whole[start:stop] = part[0].transpose(0, 1)
        return dq, dk, dv


def _longest(cu_seqlens: tuple[int, ...]) -> int:
    return max(stop - start for start, stop in pairwise(cu_seqlens))


def _lse_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _bhtd(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return x[start:stop].transpose(0, 1)[None]


@lru_cache(maxsize=4)
def _band_mask(cu_seqlens: tuple[int, ...], window: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [blocks, 1, BLOCK, BLOCK + window - 1]: 0 where the key is of the query's sequence, not later than
    it and less than `window` before it. A query of the padding sees itself, so that no row is empty."""
    total = cu_seqlens[-1]
    num_blocks = -(-total // BLOCK)
    sequence = torch.full((num_blocks * BLOCK + window - 1,), -1, dtype=torch.int32)
    lengths = torch.tensor(cu_seqlens).diff()
    sequence[window - 1 : window - 1 + total] = torch.repeat_interleave(
        torch.arange(len(lengths), dtype=torch.int32), lengths
    )
    keys = sequence.unfold(0, BLOCK + window - 1, BLOCK)  # [blocks, BLOCK + window - 1]
    queries = keys[:, window - 1 :]
    behind = torch.arange(window - 1, window - 1 + BLOCK)[:, None] - torch.arange(BLOCK + window - 1)[None]
    seen = (behind >= 0) & (behind < window) & (queries[:, :, None] == keys[:, None, :])
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, None]


def _query_blocks(x: torch.Tensor) -> torch.Tensor:
    """[T, H, ...] -> [blocks, H, BLOCK, ...], padded with zeros."""
    num_blocks = -(-x.shape[0] // BLOCK)
    padded = torch.cat([x, x.new_zeros(num_blocks * BLOCK - x.shape[0], *x.shape[1:])])
    return padded.view(num_blocks, BLOCK, *x.shape[1:]).transpose(1, 2)


def _key_blocks(x: torch.Tensor, window: int) -> torch.Tensor:
    """[T, H, D] -> [blocks, H, BLOCK + window - 1, D]: each block's keys with the window - 1 before them."""
    num_blocks = -(-x.shape[0] // BLOCK)
    before = x.new_zeros(window - 1, *x.shape[1:])
    after = x.new_zeros(num_blocks * BLOCK - x.shape[0], *x.shape[1:])
    return torch.cat([before, x, after]).unfold(0, BLOCK + window - 1, BLOCK).transpose(2, 3).contiguous()


def _unblock_queries(x: torch.Tensor, total: int) -> torch.Tensor:
    """Inverse of `_query_blocks`."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], *x.shape[3:])[:total]


def _unblock_keys(x: torch.Tensor, total: int, window: int) -> torch.Tensor:
    """Sum the overlapping blocks' key gradients [blocks, H, BLOCK + window - 1, D] back to [T, H, D], in block
    order."""
    num_blocks, num_heads, width, dim = x.shape
    whole = x.new_zeros(num_blocks * BLOCK + width, num_heads, dim)
    for offset in range(0, width, BLOCK):  # slices of BLOCK keys do not overlap between blocks
        part = x[:, :, offset : offset + BLOCK].transpose(1, 2)
        target = whole[offset : offset + num_blocks * BLOCK].view(num_blocks, BLOCK, num_heads, dim)
        target[:, : part.shape[1]] += part
    return whole[window - 1 : window - 1 + total]


def _banded_forward(q, k, v, cu_seqlens, window, scale):
    mask = _band_mask(cu_seqlens, window, q.dtype)
    blocks = _query_blocks(q), _key_blocks(k, window), _key_blocks(v, window)
    out, lse = FORWARD(*blocks, 0.0, False, attn_mask=mask, scale=scale)
    return _unblock_queries(out, q.shape[0]), _unblock_queries(lse.view(out.shape[:3]), q.shape[0])


def _banded_backward(dout, q, k, v, out, lse, cu_seqlens, window, scale):
    mask = _band_mask(cu_seqlens, window, q.dtype)
    total = q.shape[0]
    dq, dk, dv = BACKWARD(
        _query_blocks(dout),
        _query_blocks(q),
        _key_blocks(k, window),
        _key_blocks(v, window),
        _query_blocks(out),
        _query_blocks(lse).contiguous(),
        0.0,
        False,
        attn_mask=mask,
        scale=scale,
    )
    return _unblock_queries(dq, total), _unblock_keys(dk, total, window), _unblock_keys(dv, total, window)
