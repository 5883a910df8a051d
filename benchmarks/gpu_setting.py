"""Where `gpu.py` runs and at which sizes: GPT-OSS-20B's, or small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import Absent, Here, Side, attempt
from benchmarks.workloads import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """GPT-OSS-20B's; packs are the lengths of a pack's sequences."""

    packs: tuple[tuple[int, ...], ...] = ((4096,), (512,) * 8, (16384,), (2048,) * 8, (32768,), (4096,) * 8)
    heads: int = 64
    kv_heads: int = 8
    dim: int = 64
    window: int = 128
    hidden: int = 2880
    intermediate: int = 2880
    num_experts: int = 32
    top_k: int = 4
    expert_tokens: tuple[int, ...] = (4096, 16384, 32768)
    vocabulary: int = 201088
    logprob_tokens: tuple[int, ...] = (4096, 16384)
    layer_packs: tuple[tuple[int, ...], ...] = ((4096,), (16384,), (2048,) * 8)
    flex_packs: tuple[tuple[int, ...], ...] = ((16384,), (2048,) * 8, (4096,), (32768,), (4096,) * 8)


QUICK = Sizes(
    packs=((256,), (64, 64)),
    heads=8,
    kv_heads=2,
    dim=32,
    window=32,
    hidden=64,
    intermediate=64,
    num_experts=8,
    expert_tokens=(128,),
    vocabulary=2048,
    logprob_tokens=(128,),
    layer_packs=((128,), (64, 64)),
    flex_packs=((128,),),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where everything runs. wrong: the kernels whose check failed."""

    sizes: Sizes
    device: str
    dtype: torch.dtype
    wrong: frozenset[str] = frozenset()

    def side(self, name: str, make: Callable[[], Run], *, kernels: Sequence[str] = ()) -> Side:
        """A side, absent if a kernel that it stands on is wrong or it cannot be made here."""
        if bad := sorted(self.wrong.intersection(kernels)):
            return Absent(name=name, why=f"did not pass its check: {', '.join(bad)}")
        work, note = attempt(make)
        return Absent(name=name, why=note) if work is None else Here(name=name, work=work, device=self.device)

    @property
    def where(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype}

    @property
    def heads(self) -> dict[str, int]:
        return {"heads": self.sizes.heads, "kv_heads": self.sizes.kv_heads, "dim": self.sizes.dim}
