"""Samples to a batch: packed end to end into microbatches of even size, without padding, with the global
denominators."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from lockstep.types import Batch, InvariantError, Microbatch, Sample


def pack(samples: Sequence[Sample], *, max_tokens: int, chosen: Sequence[int] | None = None) -> Batch:
    """Pack samples into as few microbatches of at most `max_tokens` tokens as balance allows.

    chosen: which of the step's samples; all when None. The places of action tokens are those among all samples. A
    sample longer than max_tokens makes a microbatch of its own. The order is a function of the samples alone.
    Raises InvariantError when a sample's arrays do not align, or some samples have routes and others none.
    """
    for sample in samples:
        _check(sample)
    num_routed = sum(sample.routed_experts is not None for sample in samples)
    if num_routed not in (0, len(samples)):
        raise InvariantError(f"{num_routed} of {len(samples)} samples have expert routes: all must, or none")
    chosen = range(len(samples)) if chosen is None else chosen
    ends = np.cumsum([0, *(int(sample.action_mask.sum()) for sample in samples)])
    places = [np.arange(start, stop) for start, stop in pairwise(ends)]
    bins = _balance([len(samples[i].tokens) for i in chosen], max_tokens)
    microbatches = [_microbatch([samples[chosen[b]] for b in bin_], [places[chosen[b]] for b in bin_]) for bin_ in bins]
    return Batch(
        microbatches=microbatches,
        num_action_tokens=sum(len(m.action_index) for m in microbatches),
        num_sequences=len(chosen),
        num_tokens=sum(len(m.tokens) for m in microbatches),
    )


def _balance(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Longest first, each into the emptiest bin; one bin more whenever the emptiest has no room."""
    num_bins = max(1, -(-sum(lengths) // max_tokens))
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while True:
        bins: list[list[int]] = [[] for _ in range(num_bins)]
        heap = [(0, b) for b in range(num_bins)]
        for i in order:
            size, b = heap[0]
            if size and size + lengths[i] > max_tokens:
                break
            heapq.heapreplace(heap, (size + lengths[i], b))
            bins[b].append(i)
        else:
            return [sorted(b) for b in bins if b]
        num_bins += 1


def _microbatch(samples: list[Sample], places: list[np.ndarray]) -> Microbatch:
    lengths = [len(sample.tokens) for sample in samples]
    mask = np.concatenate([sample.action_mask for sample in samples])
    routes = [sample.routed_experts for sample in samples if sample.routed_experts is not None]
    return Microbatch(
        tokens=torch.from_numpy(np.concatenate([sample.tokens for sample in samples])),
        positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        action_index=torch.from_numpy(np.flatnonzero(mask)),
        action_place=torch.from_numpy(np.concatenate(places)),
        sample_ids=tuple(sample.trajectory_id for sample in samples),
        routed_experts=torch.from_numpy(np.concatenate(routes)) if routes else None,
    )


def _check(sample: Sample) -> None:
    lengths = {len(sample.tokens), len(sample.action_mask), len(sample.engine_logprobs), len(sample.turn)}
    if len(lengths) != 1 or (sample.routed_experts is not None and len(sample.routed_experts) != len(sample.tokens)):
        raise InvariantError(
            f"sample {sample.trajectory_id}: tokens, mask, log-probs, turns and routes do not align: "
            f"lengths {sorted(lengths)}"
        )
    if not len(sample.tokens) or sample.action_mask[0]:
        raise InvariantError(f"sample {sample.trajectory_id}: the first token cannot be an action, nothing precedes it")
