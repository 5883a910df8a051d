"""Log-probs of chosen tokens, and entropies, without ever holding [tokens, vocabulary].

The logits are made in tiles: a block of the vocabulary, whose part of the head is converted to float32 once, by a chunk
of the tokens. While a tile is in the processor's cache it is folded into its tokens' running maximum and sums (the
online softmax of arXiv:1805.02867); the backward makes it anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

CPU_TILE = (512, 2048)  # tokens for each thread, and of the vocabulary: 4 MiB of float32
CUDA_TILE = (4096, 16384)
LOG2_E = 1 / math.log(2)


def selected_logprobs(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, *, temperature: float = 1.0, fp32_head: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ head.T / temperature) at targets, and the entropy of that distribution.

    hidden [A, H] and head [V, H] of any float dtypes; targets int64 [A] in 0..V-1; A may be 0. Returns logprobs [A] and
    entropies [A] in nats, in float32 (float64 for a float64 input), both differentiable in hidden and head. With p the
    distribution and H its entropy: dlogits = (g * (onehot - p) - g_entropy * p * (log p + H)) / temperature. Nothing is
    computed for an input that needs no gradient, nor for entropies that receive none.
    fp32_head: logits are never rounded below float32. False: they are rounded to the head's dtype, as in an engine that
    multiplies in it; all that follows, and the gradients, stay float32.
    Raises ValueError for temperature <= 0 and for a target outside the vocabulary.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: log-probs need a temperature > 0")
    if len(targets):
        low, high = (int(x) for x in torch.aminmax(targets))
        if low < 0 or high >= len(head):
            raise ValueError(
                f"token {low if low < 0 else high} is outside the head's vocabulary of {len(head)}: "
                "use the tokenizer that belongs to the model"
            )
    return SelectedLogprobs.apply(hidden, head, targets, temperature, fp32_head)


@torch.no_grad()
def collision_probabilities(
    hidden: torch.Tensor, head: torch.Tensor, *, temperature: float = 1.0, fp32_head: bool = True
) -> torch.Tensor:
    """sum_v p(v)^2 with p = softmax(hidden @ head.T / temperature): [A] from hidden [A, H] and head [V, H]. No
    gradient. Memory and fp32_head as in `selected_logprobs`."""
    logits = Logits(hidden, head, temperature, fp32_head)
    best, total, squares = hidden.new_zeros(3, len(hidden), dtype=logits.dtype)
    best.fill_(torch.finfo(logits.dtype).min)
    for _, weight in logits.blocks():
        for rows in logits.chunks():
            z = logits.tile(rows, weight)
            higher = torch.maximum(best[rows], z.amax(1))
            decay = torch.exp(best[rows] - higher)
            e = _exp_(z.sub_(higher[:, None]))
            total[rows] = total[rows] * decay + e.sum(1)
            squares[rows] = squares[rows] * decay.square() + e.square_().sum(1)
            best[rows] = higher
    return squares / total.square()


class SelectedLogprobs(torch.autograd.Function):
    """`selected_logprobs` of checked arguments, in their order."""

    @staticmethod
    def forward(ctx: Any, hidden, head, targets, temperature, fp32_head):
        logits = Logits(hidden, head, temperature, fp32_head)
        statistics = hidden.new_zeros(4, len(hidden), dtype=logits.dtype)
        best, total, weighted, chosen = statistics  # with z = logits - best: sum(exp(z)), sum(exp(z) * z); at target
        best.fill_(torch.finfo(logits.dtype).min)
        for block, weight in logits.blocks():
            for rows in logits.chunks():
                _fold(logits.tile(rows, weight), targets[rows] - block.start, *statistics[:, rows])
        log_total = torch.log(total)
        entropies = log_total - weighted / total  # neither term is negative: nothing cancels
        ctx.save_for_backward(hidden, head, targets, best + log_total, entropies)
        ctx.temperature, ctx.fp32_head = temperature, fp32_head
        ctx.set_materialize_grads(False)
        return chosen.sub_(best).sub_(log_total), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogprobs, dentropies):
        hidden, head, targets, normalisers, entropies = ctx.saved_tensors
        logits = Logits(hidden, head, ctx.temperature, ctx.fp32_head)
        per_row = [torch.zeros_like(normalisers) if dlogprobs is None else dlogprobs, normalisers]
        per_row += [] if dentropies is None else [entropies, dentropies]
        dhidden = torch.zeros_like(hidden, dtype=logits.dtype) if ctx.needs_input_grad[0] else None
        dhead = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        for block, weight in logits.blocks():
            dweight = weight.new_zeros(weight.shape[::-1], dtype=logits.dtype)  # [H, block]
            for rows in logits.chunks():
                dz = _dlogits(logits.tile(rows, weight), targets[rows] - block.start, *(x[rows, None] for x in per_row))
                if ctx.temperature != 1.0:
                    dz.div_(ctx.temperature)
                if dhidden is not None:
                    dhidden[rows] += _product(dz, weight)
                if dhead is not None:
                    dweight += _product(hidden[rows].T, dz)
            if dhead is not None:
                dhead[block] = dweight.T
        return None if dhidden is None else dhidden.to(hidden.dtype), dhead, None, None, None


class Logits:
    """hidden @ head.T / temperature, in tiles of `dtype`, which is float32 at least."""

    def __init__(self, hidden: torch.Tensor, head: torch.Tensor, temperature: float, fp32_head: bool) -> None:
        self.hidden, self.head, self.temperature, self.fp32_head = hidden, head, temperature, fp32_head
        self.dtype = torch.promote_types(torch.promote_types(hidden.dtype, head.dtype), torch.float32)
        as_it_is = not fp32_head or (hidden.dtype == head.dtype and _multiplies_wide(hidden, head))
        self.factor_dtype = head.dtype if as_it_is else self.dtype
        rows, self.num_columns = CUDA_TILE if hidden.is_cuda else CPU_TILE
        self.num_rows = rows if hidden.is_cuda else rows * torch.get_num_threads()

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The vocabulary's blocks, each with the head's part [block, H] in the dtype that it is multiplied in."""
        for start in range(0, len(self.head), self.num_columns):
            block = slice(start, start + self.num_columns)
            yield block, self.head[block].to(self.factor_dtype)

    def chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.hidden), self.num_rows):
            yield slice(start, start + self.num_rows)

    def tile(self, rows: slice, weight: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden[rows].to(self.factor_dtype)
        logits = _product(hidden, weight.T) if self.fp32_head else (hidden @ weight.T).to(self.dtype)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)


def _fold(z: torch.Tensor, target: torch.Tensor, best, total, weighted, chosen) -> None:
    """Add a tile of logits [rows, columns], which is overwritten, to its rows' statistics; target [rows]: the column
    sought, perhaps of another tile."""
    place, inside = _within(target, z)
    chosen.copy_(torch.where(inside, z.gather(1, place), chosen[:, None])[:, 0])
    higher = torch.maximum(best, z.amax(1))
    fall = best - higher
    decay = torch.exp(fall)
    e = _exp_(z.sub_(higher[:, None]).clone())
    weighted.addcmul_(fall, total).mul_(decay).add_(z.mul_(e).sum(1))
    total.mul_(decay).add_(e.sum(1))
    best.copy_(higher)


def _dlogits(z, target, g, normalisers, entropies=None, g_entropies=None) -> torch.Tensor:
    """The gradient of a tile of logits z [rows, columns], which is overwritten; target [rows] as in `_fold`; the rest
    [rows, 1]."""
    logp = z.sub_(normalisers)
    if entropies is None or g_entropies is None:
        dz = _exp_(logp).mul_(-g)
    else:
        p = _exp_(logp.clone())
        dz = logp.mul_(-g_entropies).sub_(g + g_entropies * entropies).mul_(p)
    place, inside = _within(target, dz)
    return dz.scatter_add_(1, place, g * inside)


def _within(target: torch.Tensor, tile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's column in the tile, and whether the target is there at all: both [rows, 1]."""
    inside = (target >= 0) & (target < tile.shape[1])
    return torch.where(inside, target, 0)[:, None], inside[:, None]


def _exp_(x: torch.Tensor) -> torch.Tensor:
    """exp, in place. On CPUs PyTorch's exp2 takes a third of the time of its exp."""
    return x.exp_() if x.is_cuda else x.mul_(LOG2_E).exp2_()


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in the wider of their dtypes. On CUDA in float32, of bfloat16 factors as they are (their products are exact
    in float32, and are summed in it); a float32 factor beside one is split into two of bfloat16, good to 16 bits."""
    if _multiplies_wide(a, b):
        parts = [torch.mm(x, y, out_dtype=torch.float32) for x in _halves(a) for y in _halves(b)]
        return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) @ b.to(dtype)


def _multiplies_wide(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_cuda and torch.bfloat16 in (a.dtype, b.dtype) and {a.dtype, b.dtype} <= {torch.bfloat16, torch.float32}


def _halves(x: torch.Tensor) -> list[torch.Tensor]:
    if x.dtype == torch.bfloat16:
        return [x]
    high = x.bfloat16()
    return [high, (x - high).bfloat16()]
