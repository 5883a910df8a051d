"""Keys and values of many sequences, a row each, that a transformers model reads and writes as its `past_key_values`.

A full layer keeps every position; a sliding layer keeps a ring of the last `window` ones, or every position too in
exact mode, where attention goes by absolute positions. Rows 0..n-1 are the ones that decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lockstep.model.exact import TILE

MIN_CAPACITY = 128  # tokens a row holds at first; doubles when needed
MIN_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """What of a model decides its cache. windows: for each layer its sliding window, or None where it sees
    everything."""

    windows: tuple[int | None, ...]
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: PreTrainedModel) -> CacheShape:
        config = model.config.get_text_config()
        num_layers = config.num_hidden_layers
        window = getattr(config, "sliding_window", None)
        # A config without layer_types has the same attention in every layer.
        every_layer = "full_attention" if window is None else "sliding_attention"
        types = getattr(config, "layer_types", None) or [every_layer] * num_layers
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            windows=tuple(window if kind == "sliding_attention" else None for kind in types),
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            dtype=model.dtype,
        )


class NoMask:
    """The part of transformers' cache interface that its mask builders ask: answered so that they build nothing."""

    is_compileable = False

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return query_length, 0


class PrefillCapture(NoMask):
    """A `past_key_values` that keeps the keys and values of one packed forward: for each layer [Hkv, T, D]."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *args, **kwargs):
        self.layers.append((key[0], value[0]))
        return key, value


class SlotCache(NoMask):
    """The rows' keys and values. `lengths[i]` counts the tokens of row i; a decode step appends one to each row it
    runs. exact: column c of every layer is position c, and what is returned is whole tiles of columns."""

    def __init__(self, shape: CacheShape, *, exact: bool = False) -> None:
        self.shape, self.exact = shape, exact
        self.num_rows, self.capacity = MIN_ROWS, MIN_CAPACITY
        self.lengths = torch.zeros(MIN_ROWS, dtype=torch.int64)
        self.keys = [self._empty(window) for window in shape.windows]
        self.values = [self._empty(window) for window in shape.windows]

    def _columns(self, window: int | None) -> int:
        return self.capacity if window is None or self.exact else min(self.capacity, window)

    def _empty(self, window: int | None) -> torch.Tensor:
        shape = (self.num_rows, self.shape.num_kv_heads, self._columns(window), self.shape.head_dim)
        return torch.zeros(shape, dtype=self.shape.dtype)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens, keeping what is there."""
        if rows <= self.num_rows and length <= self.capacity:
            return
        while self.num_rows < rows:
            self.num_rows *= 2
        while self.capacity < length:
            self.capacity *= 2
        self.lengths = torch.cat([self.lengths, self.lengths.new_zeros(self.num_rows - len(self.lengths))])
        for store in (self.keys, self.values):
            for layer, window in enumerate(self.shape.windows):
                old, new = store[layer], self._empty(window)
                new[: old.shape[0], :, : old.shape[2]] = old
                store[layer] = new

    def write(self, rows: Sequence[int], prompt: PrefillCapture, start: int, stop: int) -> None:
        """Fill rows with tokens start..stop of a packed prefill; all rows get the same ones."""
        index = torch.tensor(rows)
        self.lengths[index] = length = stop - start
        for layer, window in enumerate(self.shape.windows):
            columns = self._columns(window)
            first = max(0, length - columns)
            places = torch.arange(first, length) % columns
            for store, part in zip((self.keys, self.values), prompt.layers[layer], strict=True):
                store[layer][index[:, None], :, places] = part[:, start + first : stop].transpose(0, 1)

    def move(self, source: int, target: int) -> None:
        """Copy row source over row target."""
        self.lengths[target] = self.lengths[source]
        for store in (self.keys, self.values):
            for layer in store:
                layer[target] = layer[source]

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        if a == b:
            return
        self.lengths[[a, b]] = self.lengths[[b, a]]
        for store in (self.keys, self.values):
            for layer in store:
                layer[[a, b]] = layer[[b, a]]

    def begin(self, num_running: int) -> torch.Tensor:
        """Prepare a decode step of rows 0..num_running-1; returns the new tokens' positions, int64 [num_running]."""
        lengths = self.lengths[:num_running]
        positions = lengths.clone()
        self._running = num_running
        self.positions = positions
        self._width = int(lengths.max()) + 1
        behind = torch.arange(self._width) > lengths[:, None]
        mask = torch.zeros(behind.shape, dtype=self.shape.dtype).masked_fill_(behind, float("-inf"))
        self._mask = mask[:, None, None]
        self._index = torch.arange(num_running)
        self.lengths[:num_running] += 1
        return positions

    def mask(self, window: int | None) -> torch.Tensor:
        """The additive mask [rows, 1, 1, columns] of the step begun: unwritten columns are hidden."""
        return self._mask[..., : self._columns(window)]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *args, **kwargs):
        """Called by the model's attention with the new token's key and value, [rows, Hkv, 1, D]; returns all of the
        rows'."""
        columns = self._columns(self.shape.windows[layer])
        width = -(-self._width // TILE) * TILE if self.exact else min(self._width, columns)
        for store, new in ((self.keys, key), (self.values, value)):
            store[layer][self._index, :, self.positions % columns] = new[:, :, 0]
        return self.keys[layer][: self._running, :, :width], self.values[layer][: self._running, :, :width]
