"""The CPU as PyTorch finds it: threads, and an allocator that keeps its memory."""

from __future__ import annotations

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's mallopt


def prepare_cpu(num_threads: int) -> None:
    """Compute with `num_threads` threads. On glibc, freed memory stays with the process: otherwise every large tensor
    is mapped and unmapped anew, and page faults cost up to a third of a training step."""
    torch.set_num_threads(num_threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
