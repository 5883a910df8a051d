"""The one way through a model: trainer and embedded engine both call this, so what they compute differs in nothing but
what is said here (packed or from a cache, recorded or replayed routes)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

import lockstep.model.attention
import lockstep.model.experts  # noqa: F401  (both register their implementations)
from lockstep.model import mode, routing
from lockstep.model.exact import TILE, ExactFunctions, tiled_mm
from lockstep.model.logprobs import collision_probabilities, selected_logprobs
from lockstep.model.precision import Precision
from lockstep.types import UserError

HEAD_BLOCK = 16384  # rows of the head that are converted to float32 at a time


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
    with _exact(precision.deterministic), ExitStack() as stack:
        if decode is not None:
            stack.enter_context(mode.decoding())
            layout |= {"decode": decode, "past_key_values": decode}
        use_cache = layout.get("past_key_values") is not None
        decoder = model.get_decoder()
        return decoder(input_ids=tokens, position_ids=positions, use_cache=use_cache, **layout).last_hidden_state


@contextmanager
def _exact(value: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if value:
            stack.enter_context(mode.exact())
            stack.enter_context(ExactFunctions())
        yield


def checkpoint_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Prepare the model's layers to be computed again in the backward; returns them. They do so in training mode only.

    Raises UserError for a model that transformers cannot checkpoint.
    """
    layers: list[torch.nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not (layers and model.supports_gradient_checkpointing):
        raise UserError(f"gradient_checkpointing: {type(model).__name__} has no layers that can be; set it to False")
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": _recomputation})
    return layers


def _recomputation() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a layer's first computation, which is under way, and of the one in the backward: of the same kind,
    with the same routes, on whatever thread."""
    return nullcontext(), _as_before(mode.is_exact(), routing.current())


@contextmanager
def _as_before(exact: bool, routes: routing.Routes | None) -> Iterator[None]:
    with _exact(exact), routing.resumed(routes):
        yield


@torch.no_grad()
def head_logits(model: PreTrainedModel, hidden: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Float32 logits [B, V] of hidden [B, H], for sampling: as a log-prob pass sees them. No gradient."""
    dtype = torch.float32 if precision.fp32_head else hidden.dtype
    product = tiled_mm if precision.deterministic else torch.mm
    hidden = hidden.to(dtype)
    return torch.cat([product(hidden, block.to(dtype).T).float() for block in _head(model).split(HEAD_BLOCK)], dim=1)


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


@torch.no_grad()
def square_norms(
    model: PreTrainedModel, hidden: torch.Tensor, logprobs: torch.Tensor, temperature: float, precision: Precision
) -> torch.Tensor:
    """[A]: the squared norm of each token's log-prob's gradient in its logits: 1 - 2 p + sum_v
    p(v)^2."""
    collisions = collision_probabilities(
        hidden.detach(), _head(model), temperature=temperature, fp32_head=precision.fp32_head
    )
    return 1 - 2 * logprobs.detach().exp() + collisions


def _head(model: PreTrainedModel) -> torch.Tensor:
    return model.get_output_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess]
