"""Attention of one new token a row against a cache of keys and values, with sinks. No gradient.

The query heads of a group are handed to the kernel as its query rows, so a row's keys are read once for the whole
group.
"""

from __future__ import annotations

import torch


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor | None,
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """query [B, H, 1, D]; keys, values [B, Hkv, C, D]; sinks [H] or None; mask [B, 1, 1, C] additive. Returns [B, 1, H,
    D]."""
    batch, num_heads, _, dim = query.shape
    num_kv_heads = keys.shape[1]
    grouped = query.view(batch, num_kv_heads, num_heads // num_kv_heads, dim)
    scores = torch.matmul(grouped, keys.transpose(2, 3)).mul_(scale).add_(mask)  # [B, Hkv, group, C]
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, num_kv_heads, -1, 1).expand(batch, -1, -1, 1)
        probabilities = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    else:
        probabilities = torch.softmax(scores, dim=-1)
    return torch.matmul(probabilities, values).view(batch, 1, num_heads, dim)
