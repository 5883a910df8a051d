"""Packed causal attention with sinks on CUDA by FlashAttention 4 (package flash-attn-4, module `flash_attn.cute`).

The only library kernel with a sink and its gradient (`learnable_sink`), so it brings its own autograd and does not go
through the identity in `attention.py`. A prerelease that compiles its kernels when first called: chosen by name, never
by "auto".

Read in the source of 4.0.0b36, not run on a GPU: boundaries are int32 on the device; the window counts inclusively,
None without limit; a sink is an extra logit, float32; its gradient is summed by one block a head, in a fixed order; the
result is (out, lse).
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

from lockstep.model.kernels_cuda import BackendError, check_inputs, device_boundaries

MODULE = "flash_attn.cute"


@cache
def package() -> ModuleType:
    """The imported package. Raises BackendError when it cannot be imported."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise BackendError(
            f"attention backend 'flash4': {MODULE} cannot be imported ({error}); "
            'pip install flash-attn-4==4.0.0b36, or set_backend("torch")'
        ) from error


class Flash4:
    """FlashAttention 4: Hopper and Blackwell, bfloat16 or float16."""

    @staticmethod
    def attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
        cu_seqlens: tuple[int, ...],
        window: int | None,
        scale: float,
    ) -> torch.Tensor:
        """As `packed_attention`: q [T, H, D], k and v [T, Hkv, D], sinks [H] -> [T, H, D], with gradients for all four.
        Raises BackendError for a dtype, head size or GPU without a kernel for both directions."""
        check_inputs("flash4", q, generations=(9, 10, 11), max_head_dim=_max_head_dim(q.device))
        ends, longest = device_boundaries(cu_seqlens, q.device)
        out, _ = package().flash_attn_varlen_func(
            *(q, k, v),
            cu_seqlens_q=ends,
            cu_seqlens_k=ends,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scale,
            causal=True,
            window_size=(None, None) if window is None else (window - 1, 0),
            learnable_sink=None if sinks is None else sinks.float(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out


def _max_head_dim(device: torch.device) -> int:
    return 256 if torch.cuda.get_device_capability(device)[0] == 9 else 128
