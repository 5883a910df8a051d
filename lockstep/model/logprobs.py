"""Log-probs of chosen tokens, and entropies, without ever holding [tokens, vocabulary].

Rows are taken in chunks; a chunk's logits live only while it is worked on, in the forward and again in the backward.
"""

from __future__ import annotations

import torch

CHUNK_BYTES = 64 << 20  # of float32 logits at a time


def selected_logprobs(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, *, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ head.T / temperature) at targets, and the entropy of that distribution.

    hidden [A, H] (any float dtype; the logits are float32 at least); head [V, H]; targets int64 [A] in 0..V-1.
    Returns logprobs [A] and entropies [A] in nats, both differentiable in hidden and head. With p the distribution and
    H its
    entropy: dlogits = (g * (onehot - p) - g_entropy * p * (log p + H)) / temperature.
    Raises ValueError for temperature <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: log-probs need a temperature > 0")
    return SelectedLogprobs.apply(hidden, head, targets, temperature)


def _logits(hidden: torch.Tensor, head: torch.Tensor, temperature: float) -> torch.Tensor:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ head.to(dtype).T
    return logits if temperature == 1.0 else logits.div_(temperature)


class SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, temperature):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(targets), dtype=dtype)
        entropies, normalisers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        rows = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            logits = _logits(hidden[chunk], head, temperature)
            normalisers[chunk] = lse = torch.logsumexp(logits, -1)
            logp = logits.sub_(lse[:, None])
            logprobs[chunk] = logp.gather(1, targets[chunk, None]).squeeze(1)
            entropies[chunk] = -(torch.exp(logp) * logp).sum(-1)  # lse - sum(p * logits) would cancel
        ctx.save_for_backward(hidden, head, targets, normalisers, entropies)
        ctx.temperature, ctx.rows = temperature, rows
        return logprobs, entropies

    @staticmethod
    def backward(ctx, dlogprobs, dentropies):
        hidden, head, targets, normalisers, entropies = ctx.saved_tensors
        dtype = normalisers.dtype
        dhidden, dhead = torch.empty_like(hidden), torch.zeros_like(head, dtype=dtype)
        for start in range(0, len(targets), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            logp = _logits(hidden[chunk], head, ctx.temperature).sub_(normalisers[chunk, None])
            p = torch.exp(logp)
            g, ge = dlogprobs[chunk, None], dentropies[chunk, None]
            dlogits = logp.add_(entropies[chunk, None]).mul_(ge).add_(g).mul_(p).neg_()
            dlogits.scatter_add_(1, targets[chunk, None], g)
            if ctx.temperature != 1.0:
                dlogits.div_(ctx.temperature)
            dhidden[chunk] = (dlogits @ head.to(dtype)).to(hidden.dtype)
            dhead.addmm_(dlogits.T, hidden[chunk].to(dtype))
        return dhidden, dhead.to(head.dtype), None, None
