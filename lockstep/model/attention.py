"""Causal attention with sinks, exact in forward and backward, over any kernel that returns the log-sum-exp.

A sink is one learned scalar per head: an extra logit in the softmax whose value is dropped. With out and lse of
attention over the real keys, sigma = sigmoid(lse - s):

    out' = out * sigma          lse' = logaddexp(lse, s)          ds_h = -sum_i exp(s_h - lse'_ih) <dout'_ih, out'_ih>

and the kernel's own backward, handed out' and lse' in place of out and lse, gives dq, dk and dv exactly: it recomputes
the probabilities as exp(score - lse') and delta as <dout', out'>, and both are then those of the softmax with the sink
column. Sinks, lse and the sums over them are float32, or float64 under float64.

Importing this file registers `attn_implementation="lockstep"` with transformers: for training and evaluation, packed or
padded, and for `generate` with any of its caches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from lockstep.model import kernels_flash3, kernels_flash4
from lockstep.model.attention_mask import AttentionError, Layout, attention_layout, find_sequences
from lockstep.model.decode import decode_attention
from lockstep.model.exact import ExactCpu, decode_rows, real_share
from lockstep.model.kernels_cpu import CpuFlash
from lockstep.model.kernels_cuda import BackendError, CudaFlash
from lockstep.model.kernels_flash3 import Flash3
from lockstep.model.kernels_flash4 import Flash4
from lockstep.model.mode import is_exact

Backend = Literal["auto", "torch", "flash3", "flash4"]

# What some models hand to attention beside the usual, and what would change the result if it were ignored.
UNSUPPORTED = {
    *("softcap", "position_bias", "attention_bias", "head_mask", "indices", "block_indices"),
    *("cache", "output_attentions"),  # of paged generation; the weights, which no kernel keeps
}


class Kernel(Protocol):
    """Packed causal attention. q, out [T, H, D]; k, v [T, Hkv, D]; lse [T, H] in at least float32."""

    @staticmethod
    def forward(q, k, v, cu_seqlens, window, scale) -> tuple[torch.Tensor, torch.Tensor]: ...

    @staticmethod
    def backward(
        dout, q, k, v, out, lse, cu_seqlens, window, scale
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


_backend: Backend = "auto"


def set_backend(backend: Backend) -> None:
    """Choose the attention kernel on CUDA, for this process. "torch": PyTorch's own flash kernel. "flash3", "flash4":
    FlashAttention 3 or 4, when installed. "auto": FlashAttention 3 on a Hopper GPU where it is installed, else
    PyTorch's own. The CPU has one kernel, PyTorch's. Nothing falls back: raises BackendError for another name and for a
    package that is not installed, and attention raises it for a dtype, head size or GPU the backend does not serve."""
    global _backend
    if backend not in get_args(Backend):
        raise BackendError(f"attention backend {backend!r}: choose one of {', '.join(get_args(Backend))}")
    if backend == "flash3":
        kernels_flash3.operators()
    if backend == "flash4":
        kernels_flash4.package()
    _backend = backend


def select_kernel(device: torch.device) -> type[Kernel] | type[Flash4]:
    """The kernel that serves tensors on `device`: the one place where this is decided."""
    if device.type == "cpu" and _backend in ("auto", "torch"):
        return ExactCpu if is_exact() else CpuFlash
    if device.type == "cpu":
        raise BackendError(
            f'attention backend {_backend!r} needs CUDA, the tensors are on the CPU: set_backend("auto")'
        )
    if device.type != "cuda":
        raise BackendError(f"no lockstep attention kernel for device {device.type!r}: use the CPU or CUDA")
    if _backend == "auto":
        hopper = torch.cuda.get_device_capability(device)[0] == 9
        return Flash3 if hopper and kernels_flash3.is_installed() else CudaFlash
    return {"torch": CudaFlash, "flash3": Flash3, "flash4": Flash4}[_backend]


class SinkAttention(torch.autograd.Function):
    """out' [T, H, D] from q [T, H, D], k and v [T, Hkv, D], sinks [H] or None. See the file's docstring for the
    identity."""

    @staticmethod
    def forward(ctx, q, k, v, sinks, kernel, cu_seqlens, window, scale):
        out, lse = kernel.forward(q, k, v, cu_seqlens, window, scale)
        if sinks is not None:
            s = sinks.to(lse.dtype)
            out.mul_(real_share(lse, s)[..., None])  # in one pass, rounded once
            lse = torch.logaddexp(lse, s)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.kernel, ctx.cu_seqlens, ctx.window, ctx.scale = kernel, cu_seqlens, window, scale
        return out

    @staticmethod
    @once_differentiable
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
    c_S = T; window: a query sees itself and the window - 1 tokens before it; None sees all. Returns [T, H, D].
    Raises ValueError when the boundaries do not span the pack or do not rise, or q, k and v differ in dtype or head
    size; BackendError when no kernel serves them.
    """
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != q.shape[0]:
        raise ValueError(
            f"cu_seqlens spans {cu_seqlens[0]}..{cu_seqlens[-1]} but the pack has {q.shape[0]} tokens: they must agree"
        )
    if any(start >= stop for start, stop in pairwise(cu_seqlens)):  # the kernel would end the process
        raise ValueError(f"cu_seqlens {cu_seqlens} must rise at every step: leave empty sequences out")
    if not (q.dtype == k.dtype == v.dtype and q.shape[-1] == k.shape[-1] == v.shape[-1]):
        found = ", ".join(f"{x.dtype} of head size {x.shape[-1]}" for x in (q, k, v))
        raise AttentionError(f"query, key and value are {found}: attention takes one dtype and one head size")
    kernel = select_kernel(q.device)
    if kernel is Flash4:
        return Flash4.attention(q, k, v, sinks, cu_seqlens, window, scale)
    return SinkAttention.apply(q, k, v, sinks, kernel, cu_seqlens, window, scale)


def attention_forward(
    module: torch.nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Layout | torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for every layer. query [B, H, T, D]; key, value [B, Hkv, ..., D]; returns [B, T, H, D].

    Four uses: `decode=` a SlotCache (one new token a row against its cache); more keys than queries, with the mask
    `attention_layout` made (transformers' own caches); `cu_seq_lens_q=` a pack (B = 1); none of these: B rows, whole
    sequences with or without padding, or packs by `position_ids` that begin again at 0. Zeros at padding.
    Raises AttentionError for anything else.
    """
    _refuse(module, dropout, kwargs)
    query, key, value = _autocast(query, key, value)
    if (cache := kwargs.get("decode")) is not None:
        if is_exact():
            return decode_rows(query, key, value, s_aux, cache.positions, sliding_window, scaling), None
        return decode_attention(query, key, value, s_aux, cache.mask(sliding_window), scaling), None
    num_queries, num_keys = query.shape[2], key.shape[2]
    if isinstance(attention_mask, torch.Tensor):
        if num_queries == num_keys or attention_mask.shape[2:] != (num_queries, num_keys):
            raise AttentionError(
                f"mask of shape {tuple(attention_mask.shape)} for {num_queries} queries and {num_keys} keys: lockstep "
                "attention takes a mask of its own only against a cache; pass the 2D padding mask, or load with eager"
            )
        return decode_attention(query, key, value, s_aux, attention_mask, scaling), None
    if num_queries != num_keys:
        raise AttentionError(f"{num_queries} queries against {num_keys} keys without a mask: pass whole sequences")
    return _whole_sequences(query, key, value, attention_mask, scaling, sliding_window, s_aux, kwargs), None


def _whole_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout | None,
    scale: float,
    window: int | None,
    sinks: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """[B, H, T, D] -> [B, T, H, D]: the real tokens packed, attended to and put back, zeros between them."""
    batch, num_heads, length, dim = query.shape
    window = window if layout is None else layout.agreed_window(window, length)
    cu_seqlens, tokens = _given_boundaries(layout, kwargs), None
    if cu_seqlens is None:
        cu_seqlens, tokens = find_sequences(layout, kwargs.get("position_ids"), batch, length, window)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if tokens is None:
        out = packed_attention(q, k, v, sinks, cu_seqlens, window=window, scale=scale)
        return out.view(batch, length, num_heads, dim)
    whole = query.new_zeros(batch * length, num_heads, dim)
    if len(tokens):
        q, k, v = q[tokens], k[tokens], v[tokens]
        out = packed_attention(q, k, v, sinks, cu_seqlens, window=window, scale=scale)
        whole = whole.index_copy(0, tokens, out)
    return whole.view(batch, length, num_heads, dim)


def _given_boundaries(layout: Layout | None, kwargs: dict[str, Any]) -> tuple[int, ...] | None:
    """The caller's own boundaries of a pack, if any."""
    given, of_keys = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    if given is None:
        return None
    if layout is not None and layout.real is not None:
        raise AttentionError("both cu_seq_lens_q and an attention_mask with padding: a pack has no padding; pass one")
    if of_keys is not None and of_keys is not given and not torch.equal(of_keys, given):
        raise AttentionError("cu_seq_lens_k differs from cu_seq_lens_q: queries and keys share their sequences")
    return tuple(given.tolist())


def _refuse(module: torch.nn.Module | None, dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise AttentionError(
            f"attention_dropout={dropout}: lockstep attention has no dropout; set it to 0 in the model's config"
        )
    if kwargs.get("is_causal") is False or (kwargs.get("is_causal") is None and not getattr(module, "is_causal", True)):
        raise AttentionError(f"{type(module).__name__} is not causal: lockstep attention is; load the model with eager")
    for name in UNSUPPORTED & kwargs.keys():
        if kwargs[name] is not None and kwargs[name] is not False:
            raise AttentionError(f"{name}: lockstep attention does not compute it; load the model with eager")


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under autocast, the tensors in its dtype, as PyTorch's own attention takes them; float64 stays."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


AttentionInterface.register("lockstep", attention_forward)
AttentionMaskInterface.register("lockstep", attention_layout)
