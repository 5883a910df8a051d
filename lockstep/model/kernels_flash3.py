"""Packed causal attention on CUDA by FlashAttention 3, where its package (module `flash_attn_interface`) is installed.

In and out as in `attention.py`'s kernel protocol. The package knows no sinks in its backward; the identity in
`attention.py` adds them.

Read in source, not run on a GPU: importing the module registers `torch.ops.flash_attn_3.fwd` and `.bwd`. We call those,
as PyTorch's own `torch.nn.attention._fa3` does, because the Python wrappers around them changed their arguments between
releases and the operators did not. Early builds give most arguments no default, so all are named. The window counts
inclusively, lse is [H, T] float32, dq, dk and dv are written in place, and fewer KV heads are taken as they are.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch

from lockstep.model.kernels_cuda import BackendError, check_inputs, device_boundaries, window_sizes

MODULE = "flash_attn_interface"

# What serving needs and training does not: caches, pages, rotary embeddings, float8 scales.
UNUSED_FORWARD = dict.fromkeys(
    (
        *("k_new", "v_new", "q_v", "out", "cu_seqlens_k_new", "seqused_q", "seqused_k", "page_table", "kv_batch_idx"),
        *("leftpad_k", "rotary_cos", "rotary_sin", "seqlens_rotary", "q_descale", "k_descale", "v_descale"),
    )
)
UNUSED_BACKWARD = dict.fromkeys(("seqused_q", "seqused_k"))


def is_installed() -> bool:
    return importlib.util.find_spec(MODULE) is not None


@cache
def operators() -> Any:
    """The namespace of `fwd` and `bwd`. Raises BackendError when the package cannot be imported."""
    try:
        importlib.import_module(MODULE)
    except ImportError as error:
        raise BackendError(
            f"attention backend 'flash3': {MODULE} cannot be imported ({error}); install FlashAttention 3 "
            '(directory hopper of flash-attention), or set_backend("torch")'
        ) from error
    return torch.ops.flash_attn_3


class Flash3:
    """FlashAttention 3: made for Hopper, also built for Ampere and Ada; bfloat16 or float16, heads of up to 256."""

    @staticmethod
    def forward(q, k, v, cu_seqlens, window, scale):
        check_inputs("flash3", q, generations=(8, 9), max_head_dim=256)
        pack = _arguments(cu_seqlens, q.device, window, scale)
        out, lse, *_ = operators().fwd(q, k, v, num_splits=1, **pack, **UNUSED_FORWARD)
        return out, lse.T

    @staticmethod
    def backward(dout, q, k, v, out, lse, cu_seqlens, window, scale):
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        operators().bwd(
            *(dout, q, k, v, out, lse.T.contiguous()),
            **{"dq": dq, "dk": dk, "dv": dv},
            **_arguments(cu_seqlens, q.device, window, scale),
            **UNUSED_BACKWARD,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return dq, dk, dv


def _arguments(cu_seqlens: tuple[int, ...], device: torch.device, window: int | None, scale: float) -> dict[str, Any]:
    ends, longest = device_boundaries(cu_seqlens, device)
    return {
        "cu_seqlens_q": ends,
        "cu_seqlens_k": ends,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "softmax_scale": scale,
        "is_causal": True,
        **window_sizes(window),
    }
