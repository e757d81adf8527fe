"""One static key/value buffer for every layer, a length for every row, rollback for nothing.

Slot index and token position are the same thing in every row. A forward writes at each row's own length; what a row
may see is `slot <= position` (and the window of a sliding layer). So taking tokens back is only giving the row a
smaller length: the slots that held them are invisible from then on, and overwritten before any query reaches them.
Buffers are laid out [row, slot, head, dim], so that writing is one `index_copy_` a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Window:
    """Where the running forward writes and how far it looks; shared by all layers of a cache."""

    flat: torch.Tensor  # [A * Q] row * slots + slot, where `offsets` hold

    def __init__(self, rows: int, slots: int):
        self.rows, self.slots = rows, slots
        self.start: int | None = None  # prefill, or a single row: the same first slot for all the chosen rows
        self.chosen: torch.Tensor | None = None  # prefill: [R] row indices; a single row: None
        self.offsets: torch.Tensor | None = None  # otherwise: [A] first slot of each of the first A rows
        self.visible = 0  # otherwise: how many slots attention looks at


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, [rows, slots, heads, dim]; the window of a sliding layer is left to the mask."""

    is_compileable = False  # `generate` would build masks ahead of time, which know nothing of rows
    is_croppable = True
    is_sliding = False
    keys: Any  # tensors, once it is initialized
    values: Any

    def __init__(self, window: _Window):
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (self.window.rows, self.window.slots, states.shape[1], states.shape[3])
            # zeros, not empty: attention multiplies what it must not see by 0, and 0 * nan is nan
            setattr(self, name, torch.zeros(shape, dtype=states.dtype, device=self.device))  # autocast: two types
        self.is_initialized = True

    def share(self, other: RaggedLayer) -> None:
        """Takes over the buffers of another layer, which must have some."""
        self.keys, self.values, self.is_initialized = other.keys, other.values, True
        self.dtype, self.device = other.dtype, other.device

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """key_states, value_states [R, heads, Q, dim] -> all that attention sees, [R, heads, visible, dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._extend(self.keys, key_states), self._extend(self.values, value_states)

    def _extend(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        w, new = self.window, states.transpose(1, 2)  # [R, Q, heads, dim]
        if w.start is None:
            buffer.view(-1, *buffer.shape[2:]).index_copy_(0, w.flat.to(buffer.device), new.flatten(0, 1))
            return buffer[: new.shape[0], : w.visible].transpose(1, 2)
        if w.chosen is None:
            buffer[:1, w.start : w.start + new.shape[1]] = new
            return buffer[:1, : w.start + new.shape[1]].transpose(1, 2)
        rows = w.chosen.to(buffer.device)
        buffer[:, w.start : w.start + new.shape[1]].index_copy_(0, rows, new)
        return states if w.start == 0 else buffer[rows, : w.start + new.shape[1]].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.window.visible if self.window.start is None else self.window.start + query_length), 0

    def get_seq_length(self) -> int:
        return self.window.start or 0

    def get_max_length(self) -> int:
        return self.window.slots

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a RaggedCache keeps no lengths: call `seek` with the rows' own, smaller offsets")


class RaggedCache(Cache):
    """Keys and values of `rows` sequences of at most `slots` tokens, for an unmodified transformers model."""

    layers: list[RaggedLayer]

    def __init__(self, layers: int, rows: int, slots: int, positions: int | None = None):
        """`positions`: how many positions there are, where that is less than `slots`."""
        self.window, self.positions = _Window(rows, slots), slots if positions is None else positions
        super().__init__(layers=[RaggedLayer(self.window) for _ in range(layers)])

    def twin(self) -> RaggedCache:
        """The same buffers with a place of its own: a loop that is traced may move nothing that lies outside of it."""
        twin = RaggedCache(len(self.layers), self.window.rows, self.window.slots, self.positions)
        for mine, its in zip(self.layers, twin.layers):
            its.share(mine)
        return twin

    def seek(self, offsets: torch.Tensor, width: int, visible: int) -> torch.Tensor:
        """Places the next forward: row r writes its `width` tokens from slot offsets[r].

        offsets [A] int64 for the first A rows -> position ids [A, width]. Attention looks at the first `visible` of
        the slots. What lies beyond the last slot falls onto it: no token that will be kept ever sees it.
        """
        w = self.window
        w.start = w.chosen = None
        w.offsets, w.visible = offsets, visible
        steps = torch.arange(width, device=offsets.device)
        places = (offsets[:, None] + steps).clamp_(max=w.slots - 1)
        rows = torch.arange(offsets.shape[0], device=offsets.device)
        w.flat = (rows[:, None] * w.slots + places).flatten()
        return places if self.positions == w.slots else places.clamp(max=self.positions - 1)

    def seek_alone(self, start: int, width: int, device: torch.device) -> torch.Tensor:
        """Places the next forward: row 0 alone writes `width` tokens from slot `start`; position ids [1, width].

        The host knows the place, so attention sees just what the row holds, through transformers' own masks, if any.
        """
        self.window.start, self.window.chosen = start, None
        return torch.arange(start, start + width, device=device)[None]

    def seek_prefill(self, rows: torch.Tensor, start: int) -> None:
        """Places the next forward: it fills slots `start`, `start + 1`, ... of the given rows [R]."""
        self.window.start, self.window.chosen = start, rows

    def get_query_offset(self, layer_idx: int = 0):
        """The position of the first query: an int for a prefill or a single row, else a tensor, one for each row."""
        return self.window.offsets if self.window.start is None else self.window.start

    def clear(self, row: int, start: int) -> None:
        """Zeroes a row from slot `start` on: numbers that are not finite would reach the next row in its place."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[row, start:] = 0

    def kept(self, row: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A copy of the first `length` slots of a row: of each layer, keys and values [length, heads, dim]."""
        return [(layer.keys[row, :length].clone(), layer.values[row, :length].clone()) for layer in self.layers]

    def restore(self, row: int, states: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Writes what `kept` has returned into the first slots of a row."""
        for layer, (keys, values) in zip(self.layers, states):
            if not layer.is_initialized:
                layer.lazy_initialization(*(part.transpose(0, 1)[None] for part in (keys, values)))
            layer.keys[row, : len(keys)], layer.values[row, : len(values)] = keys, values

    def copy_rows(self, source: torch.Tensor, target: torch.Tensor, length: int) -> None:
        """Copies the first `length` slots of rows `source` [R] to rows `target` [R] ([1] is copied to all)."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                part = buffer[:, :length]
                part[target.to(buffer.device)] = part[source.to(buffer.device)]
