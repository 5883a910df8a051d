"""The one way through a model: trainer and embedded engine both call this, so what they compute differs in nothing but
what is said here (packed or from a cache, recorded or replayed routes)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers import PreTrainedModel

from lockstep.model import mode
from lockstep.model.exact import TILE, ExactFunctions, tiled_mm
from lockstep.model.logprobs import selected_logprobs
from lockstep.model.precision import Precision


def decoder_hidden(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    precision: Precision,
    *,
    decode: Any = None,
    **layout: Any,
) -> torch.Tensor:
    """Hidden states [B, T, H] of the model's decoder for tokens and positions int64 [B, T].

    layout: `cu_seq_lens_q` and `cu_seq_lens_k` of a pack (B = 1), `past_key_values`. decode: the SlotCache that one new
    token a row (T = 1) attends to.
    """
    with ExitStack() as stack:
        if precision.deterministic:
            stack.enter_context(mode.exact())
            stack.enter_context(ExactFunctions())
        if decode is not None:
            stack.enter_context(mode.decoding())
            layout |= {"decode": decode, "past_key_values": decode}
        use_cache = layout.get("past_key_values") is not None
        decoder = model.get_decoder()
        return decoder(input_ids=tokens, position_ids=positions, use_cache=use_cache, **layout).last_hidden_state


@torch.no_grad()
def head_logits(model: PreTrainedModel, hidden: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Float32 logits [B, V] of hidden [B, H], for sampling: as a log-prob pass sees them. No gradient."""
    head = _head(model)
    if precision.fp32_head:
        hidden, head = hidden.float(), head.float()
    return (tiled_mm(hidden, head.T) if precision.deterministic else hidden @ head.T).float()


def token_logprobs(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, precision: Precision
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [A] of targets int64 [A] and entropies [A], float32, from the hidden states [A, H] before them."""
    head = _head(model)
    options = {"temperature": temperature, "fp32_head": precision.fp32_head}
    if not precision.deterministic:
        return selected_logprobs(hidden, head, targets, **options)
    padding = -len(targets) % TILE
    hidden = torch.cat([hidden, hidden.new_zeros(padding, hidden.shape[1])])
    padded = torch.cat([targets, targets.new_zeros(padding)])
    tiles = [
        selected_logprobs(rows, head, chosen, **options)
        for rows, chosen in zip(hidden.split(TILE), padded.split(TILE), strict=True)
    ]
    logprobs, entropies = (torch.cat(parts)[: len(targets)] for parts in zip(*tiles, strict=True))
    return logprobs, entropies


def _head(model: PreTrainedModel) -> torch.Tensor:
    return model.get_output_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess]
