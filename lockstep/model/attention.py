"""Causal attention with sinks, exact in forward and backward, over any kernel that returns the log-sum-exp.

A sink is one learned scalar per head: an extra logit in the softmax whose value is dropped. With out and lse of
attention over the real keys, sigma = sigmoid(lse - s):

    out' = out * sigma          lse' = logaddexp(lse, s)          ds_h = -sum_i exp(s_h - lse'_ih) <dout'_ih, out'_ih>

and the kernel's own backward, handed out' and lse' in place of out and lse, gives dq, dk and dv exactly: it recomputes
the probabilities as exp(score - lse') and delta as <dout', out'>, and both are then those of the softmax with the sink
column.

Importing this file registers `attn_implementation="lockstep"` with transformers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from lockstep.model.decode import decode_attention
from lockstep.model.kernels_cpu import CpuFlash


class Kernel(Protocol):
    """Packed causal attention. q, out [T, H, D]; k, v [T, Hkv, D]; lse [T, H] in at least float32."""

    @staticmethod
    def forward(q, k, v, cu_seqlens, window, scale) -> tuple[torch.Tensor, torch.Tensor]: ...

    @staticmethod
    def backward(
        dout, q, k, v, out, lse, cu_seqlens, window, scale
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


class SinkAttention(torch.autograd.Function):
    """out' [T, H, D] from q [T, H, D], k and v [T, Hkv, D], sinks [H] or None. See the file's docstring for the
    identity."""

    @staticmethod
    def forward(ctx, q, k, v, sinks, kernel, cu_seqlens, window, scale):
        out, lse = kernel.forward(q, k, v, cu_seqlens, window, scale)
        if sinks is not None:
            s = sinks.to(lse.dtype)
            out = (out * torch.sigmoid(lse - s)[..., None].to(lse.dtype)).to(q.dtype)
            lse = torch.logaddexp(lse, s)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.kernel, ctx.cu_seqlens, ctx.window, ctx.scale = kernel, cu_seqlens, window, scale
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, sinks, out, lse = ctx.saved_tensors
        dout = dout.contiguous()
        dq, dk, dv = ctx.kernel.backward(dout, q, k, v, out, lse, ctx.cu_seqlens, ctx.window, ctx.scale)
        dsinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            delta = (dout.to(lse.dtype) * out.to(lse.dtype)).sum(-1)  # [T, H]
            dsinks = -(torch.exp(sinks.to(lse.dtype) - lse) * delta).sum(0).to(sinks.dtype)
        return dq, dk, dv, dsinks, None, None, None, None


def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    cu_seqlens: tuple[int, ...],
    *,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Causal attention within each sequence of a pack.

    q [T, H, D]; k, v [T, Hkv, D] with H a multiple of Hkv; sinks [H] or None; cu_seqlens: boundaries 0 = c_0 < ... <
    c_S = T;
    window: a query sees itself and the window - 1 tokens before it; None sees all. Returns [T, H, D].
    Raises ValueError when the boundaries do not span the pack or do not rise, or no kernel serves the device.
    """
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != q.shape[0]:
        raise ValueError(
            f"cu_seqlens spans {cu_seqlens[0]}..{cu_seqlens[-1]} but the pack has {q.shape[0]} tokens: they must agree"
        )
    if any(start >= stop for start, stop in pairwise(cu_seqlens)):  # the kernel would end the process
        raise ValueError(f"cu_seqlens {cu_seqlens} must rise at every step: leave empty sequences out")
    if q.device.type != "cpu":
        raise ValueError(f"no lockstep attention kernel for device {q.device.type!r}: the CPU is supported")
    return SinkAttention.apply(q, k, v, sinks, CpuFlash, cu_seqlens, window, scale)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for every layer. query [B, H, T, D]; key, value [B, Hkv, ..., D]; returns [B, T, H, D].

    Three uses: `decode=` a SlotCache (one new token a row against its cache); `cu_seq_lens_q=` a pack (B = 1); neither:
    B whole sequences of T tokens. Padding masks and dropout are refused: pack instead.
    """
    if dropout:
        raise ValueError(
            f"attention_dropout={dropout}: lockstep attention has no dropout; set it to 0 in the model's config"
        )
    if attention_mask is not None:
        raise ValueError("lockstep attention takes no padding mask: pack the sequences and pass cu_seq_lens_q")
    if (cache := kwargs.get("decode")) is not None:
        mask = cache.mask(sliding_window)
        return decode_attention(query, key, value, s_aux, mask, scaling), None
    batch, _, length, _ = query.shape
    if key.shape[2] != length:
        raise ValueError(f"{length} queries against {key.shape[2]} keys: pass decode= or use whole sequences")
    boundaries = kwargs.get("cu_seq_lens_q")
    cu_seqlens = tuple(range(0, batch * length + 1, length)) if boundaries is None else tuple(boundaries.tolist())
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out = packed_attention(q, k, v, s_aux, cu_seqlens, window=sliding_window, scale=scaling)
    return out.view(batch, length, *out.shape[1:]), None


def no_mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> None:
    """Sequence boundaries say all; a mask that hides a token is refused rather than ignored."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("lockstep attention takes no padding mask: pack the sequences and pass cu_seq_lens_q")


AttentionInterface.register("lockstep", attention_forward)
AttentionMaskInterface.register("lockstep", no_mask)
