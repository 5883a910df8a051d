"""A packed microbatch through a model's decoder: the hidden states that predict its action tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from lockstep.model.forward import decoder_hidden
from lockstep.model.precision import Precision
from lockstep.types import Microbatch


def action_hidden(
    model: PreTrainedModel,
    microbatch: Microbatch,
    precision: Precision,
    checkpointed: Sequence[torch.nn.Module] = (),
) -> torch.Tensor:
    """[A, H], of the position before each action token: what the token was sampled from, and the state a critic
    judges. checkpointed: layers that keep one activation for the backward and compute the rest again."""
    with _checkpointing(checkpointed):
        hidden = decoder_hidden(
            model,
            microbatch.tokens[None],
            microbatch.positions[None],
            precision,
            cu_seq_lens_q=microbatch.cu_seqlens,
            cu_seq_lens_k=microbatch.cu_seqlens,
        )[0]
    return hidden[microbatch.action_index - 1]


@contextmanager
def _checkpointing(layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """transformers checkpoints layers in training mode only; their submodules stay in evaluation mode."""
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
