"""Attention of a few new tokens a row against a cache of keys and values, with sinks.

The query heads of a group are handed to the kernel as its query rows, so a row's keys are read once for the whole
group. The scores of all queries with all keys are held at once: made for one new token, right for any number.
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
    """query [B, H, Q, D]; keys, values [B, Hkv, C, D]; sinks [H] or None; mask [B, 1 or H, Q, C], boolean (True is
    seen) or additive. Scores and softmax are float32 at least, as in flash kernels. Returns [B, Q, H, D]; zeros for a
    query that a boolean mask shows nothing. Gradients are autograd's own."""
    batch, num_heads, num_queries, dim = query.shape
    num_kv_heads = keys.shape[1]
    group = num_heads // num_kv_heads
    grouped = query.reshape(batch, num_kv_heads, group * num_queries, dim)
    dtype, shape = torch.promote_types(query.dtype, torch.float32), (batch, num_kv_heads, group, num_queries, -1)
    scores = torch.matmul(grouped.to(dtype), keys.to(dtype).transpose(2, 3)).mul_(scale).view(shape)
    mask = mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, (num_kv_heads, group))
    blind = None  # queries that see nothing
    if mask.dtype == torch.bool:
        blind = ~mask.any(-1, keepdim=True)
        scores = scores.masked_fill_(~(mask | blind), float("-inf"))  # a row without a finite score would be NaN
    else:
        scores = scores.add_(mask)
    if sinks is not None:
        column = sinks.to(dtype).view(1, num_kv_heads, group, 1, 1).expand(batch, -1, -1, num_queries, 1)
        probabilities = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    else:
        probabilities = torch.softmax(scores, dim=-1)
    probabilities = probabilities.to(values.dtype).reshape(batch, num_kv_heads, group * num_queries, -1)
    out = torch.matmul(probabilities, values).view(batch, num_kv_heads, group, num_queries, dim)
    if blind is not None:
        out = out.masked_fill(blind, 0.0)
    return out.view(batch, num_heads, num_queries, dim).transpose(1, 2)
