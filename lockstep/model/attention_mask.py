"""What a mask of transformers says to packed attention: which tokens are real, and where sequences begin.

transformers asks `attention_layout` once a pass and kind of layer, and hands what it returns to every layer's
attention. A pass over whole sequences gets a `Layout`, so no [T, T] mask is ever built, and `find_sequences` turns it
into the boundaries of a pack; a pass against a cache gets a boolean mask [B, 1, queries, keys]. What neither can
express is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask

from lockstep.types import UserError


class AttentionError(UserError):
    """Attention of a form Lockstep does not compute. One line: what, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A pass over B rows of T tokens, no cache before them. real [B, T] bool: False is padding; None: all real.
    starts [B, T] bool: True where a token begins a sequence; None: each row is one. window: what the mask lets a query
    see of its sequence, itself included; None is all before it."""

    real: torch.Tensor | None
    starts: torch.Tensor | None
    window: int | None

    def contiguous(self) -> Layout:
        """transformers' `generate` asks this of every mask it has made ahead."""
        return self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Layout:
        """For models whose layers are on several devices: accelerate moves what it hands from one to the next."""
        real, starts = (x if x is None else x.to(device, non_blocking=non_blocking) for x in (self.real, self.starts))
        return Layout(real=real, starts=starts, window=self.window)

    def agreed_window(self, window: int | None, length: int) -> int | None:
        """The mask's window, which is what eager attention obeys; a layer need not name its own, `window`. Raises
        AttentionError where the layer names another and rows of `length` tokens show the difference."""
        if window is None or _reach(window, length) == _reach(self.window, length):
            return _reach(self.window, length)
        raise AttentionError(
            f"the mask's window is {self.window}, the layer's {window}: give the model's config one sliding_window"
        )


def attention_layout(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Layout | torch.Tensor:
    """The mask function registered with transformers, with the arguments its `masking_utils` passes. attention_mask
    [B, past + T] is the 2D padding mask; local_size the sliding window; use_vmap says that someone added a mask of
    their own. Raises AttentionError for what is not causal, or not known to be."""
    if not (q_length == kv_length and int(q_offset) == kv_offset == 0):
        return sdpa_mask(  # pyright: ignore[reportReturnType]  (None only where a skip is allowed)
            batch_size,
            q_length,
            kv_length,
            q_offset,  # pyright: ignore[reportArgumentType]  (static caches count in a tensor)
            kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
    if use_vmap:
        raise AttentionError("lockstep attention takes no custom mask over whole sequences: load the model with eager")
    starts = _probe(mask_function, batch_size, q_length, local_size, device)
    real = attention_mask
    if real is not None:
        if real.shape != (batch_size, q_length):
            raise AttentionError(f"attention_mask of shape {tuple(real.shape)} for tokens [{batch_size}, {q_length}]")
        real = None if bool(real.all()) else real.bool()
    return Layout(real=real, starts=starts, window=local_size)


def _probe(
    mask_function: Callable, batch: int, length: int, window: int | None, device: torch.device | str
) -> torch.Tensor | None:
    """Where sequences begin within the rows, by asking the mask of every pair of neighbours; None: nowhere."""
    if mask_function is causal_mask_function or length == 1:
        return None
    row, head = torch.arange(batch, device=device)[:, None], torch.zeros((), dtype=torch.int64, device=device)
    token = torch.arange(1, length, device=device)[None]
    if bool(mask_function(row, head, token - 1, token).any()):
        raise AttentionError("lockstep attention is causal: a mask that shows a token its successor needs eager")
    if window == 1:  # every token is alone with itself, whatever sequence it is of
        return None
    return _starts(~mask_function(row, head, token, token - 1).expand(batch, -1))


def find_sequences(
    layout: Layout | None, position_ids: torch.Tensor | None, batch: int, length: int, window: int | None
) -> tuple[tuple[int, ...], torch.Tensor | None]:
    """The sequences in B rows of T tokens, flattened: their boundaries in the pack of real tokens, and which tokens
    those are, int64 [real tokens], or None where all are.

    position_ids [B or 1, T]: without padding, a row where they begin again at 0 is itself a pack. Raises AttentionError
    where they jump in any other way, and for padding between tokens where a window would count it.
    """
    real = layout and layout.real
    starts = layout and layout.starts
    if position_ids is not None and (restarts := _restarts(position_ids, real, length)) is not None:
        starts = restarts if starts is None else starts | restarts
    if starts is None:
        if real is None:
            return tuple(range(0, batch * length + 1, length)), None
        starts = torch.zeros_like(real)
    first = starts.expand(batch, -1).clone()
    first[:, 0] = True
    sequence = first.flatten().cumsum(0)
    tokens = None
    if real is not None:
        _refuse_holes(real, window)
        tokens = real.flatten().nonzero().squeeze(1)
        sequence = sequence[tokens]
    ends = torch.unique_consecutive(sequence, return_counts=True)[1].cumsum(0)
    return (0, *ends.tolist()), tokens


def _reach(window: int | None, length: int) -> int | None:
    """The window, or None where it hides nothing of so many tokens."""
    return None if window is None or window >= length else window


def _starts(breaks: torch.Tensor) -> torch.Tensor | None:
    """breaks [B, T - 1]: True between two tokens of different sequences -> [B, T], or None without any."""
    return torch.nn.functional.pad(breaks, (1, 0), value=False) if bool(breaks.any()) else None


def _restarts(position_ids: torch.Tensor, real: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Where positions begin again at 0, [B or 1, T]; None: nowhere."""
    if position_ids.ndim != 2 or position_ids.shape[1] != length:
        raise AttentionError(
            f"position_ids of shape {tuple(position_ids.shape)} do not say where the sequences of rows of {length} "
            "tokens begin: pass cu_seq_lens_q"
        )
    breaks = position_ids.diff(dim=1) != 1
    if real is not None:
        breaks = breaks & real[:, 1:] & real[:, :-1]
    wrong = breaks if real is not None else breaks & (position_ids[:, 1:] != 0)
    if bool(wrong.any()):
        row, token = wrong.nonzero()[0].tolist()
        before, after = position_ids.expand(len(wrong), -1)[row, token : token + 2].tolist()
        raise AttentionError(
            f"position_ids go from {before} to {after} in row {row}: they must rise by 1, or begin again at 0 where "
            "there is no padding; mend them, or pass cu_seq_lens_q"
        )
    return _starts(breaks)


def _refuse_holes(real: torch.Tensor, window: int | None) -> None:
    """Padding between real tokens counts in a window's reach, but is gone from a pack."""
    if window is not None and bool((real.diff(dim=1).sum(1) + real[:, 0] + real[:, -1] > 2).any()):
        raise AttentionError(
            f"attention_mask has padding between real tokens, which a window of {window} counts: move it to an end"
        )
