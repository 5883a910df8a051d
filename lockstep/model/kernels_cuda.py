"""Packed causal attention on CUDA by the flash kernel that comes with PyTorch; and what every CUDA backend asks first.

In and out as in `attention.py`'s kernel protocol: q, out [T, H, D], k and v [T, Hkv, D], lse [T, H] float32.

Read in the source of PyTorch 2.11 and 2.13, and run here against a stand-in of the same conventions, not on a GPU:
`_flash_attention_forward` packs by int32 boundaries on the device, takes fewer KV heads as they are and gives lse as
[H, T]; its window counts inclusively, so `window` tokens are (window - 1, 0). The right side is 0 even without a
window: left open, a pack whose sequences all have one token takes a path with another lse layout. The backward reads
lse as raw, contiguous [H, T]. Under `torch.use_deterministic_algorithms(True)` its dq is summed in a fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from lockstep.types import UserError

if TYPE_CHECKING:
    from collections.abc import Collection

FORWARD = torch.ops.aten._flash_attention_forward
BACKWARD = torch.ops.aten._flash_attention_backward

DTYPES = (torch.bfloat16, torch.float16)


class BackendError(UserError):
    """The attention backend cannot serve what it was asked for. One line: the value, and what fixes it."""


class CudaFlash:
    """PyTorch's own flash kernel: Ampere GPUs and newer, bfloat16 or float16, heads of up to 256 in steps of 8."""

    @staticmethod
    def forward(q, k, v, cu_seqlens, window, scale):
        check_inputs("torch", q, generations=range(8, 100), max_head_dim=256)
        ends, longest = device_boundaries(cu_seqlens, q.device)
        out, lse, *_ = FORWARD(
            q, k, v, ends, ends, longest, longest, 0.0, True, False, scale=scale, **window_sizes(window)
        )
        return out, lse.T

    @staticmethod
    def backward(dout, q, k, v, out, lse, cu_seqlens, window, scale):
        ends, longest = device_boundaries(cu_seqlens, q.device)
        random_state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of the dropout there is not
        unused = torch.empty(0, device=q.device)
        return BACKWARD(
            *(dout, q, k, v, out, lse.T.contiguous()),
            *(ends, ends, longest, longest, 0.0, True, random_state, unused),
            scale=scale,
            **window_sizes(window),
        )


def window_sizes(window: int | None) -> dict[str, int]:
    """How far a query sees to either side of itself, both ends inclusive; -1 without limit."""
    return {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}


@lru_cache(maxsize=16)
def device_boundaries(cu_seqlens: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, int]:
    """The boundaries as int32 on the device, and the longest sequence's length: copied once a pack, not once a
    layer."""
    longest = max(stop - start for start, stop in pairwise(cu_seqlens))
    with torch.inference_mode(False):  # kept beyond this call: a later backward may want to save it
        return torch.tensor(cu_seqlens, dtype=torch.int32, device=device), longest


def check_inputs(backend: str, q: torch.Tensor, *, generations: Collection[int], max_head_dim: int) -> None:
    """Raise BackendError unless the backend serves q's dtype and head size on a GPU of its generation (the first number
    of its compute capability)."""
    if q.dtype not in DTYPES:
        raise BackendError(
            f"attention in {q.dtype} on {q.device.type}: the flash kernels there take bfloat16 and float16; "
            "load the model with dtype=torch.bfloat16, or run it on the CPU"
        )
    head_dim = q.shape[-1]
    if head_dim % 8 or head_dim > max_head_dim:
        raise BackendError(
            f"head_dim={head_dim}: attention backend {backend!r} takes multiples of 8 up to {max_head_dim} here; "
            "use another backend or a model with such heads"
        )
    major, minor = torch.cuda.get_device_capability(q.device)
    if major not in generations:
        raise BackendError(
            f"GPU of compute capability {major}.{minor}: attention backend {backend!r} does not serve it; "
            'set_backend("torch") serves 8.0 and newer'
        )
