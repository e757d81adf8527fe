"""The layers of a `RaggedCache`: keys and values, states of fixed size, or both.

A state cannot be made shorter, so a draft that was rejected in part is taken back by what the state was before it and
by reading the accepted tokens again (`replay.py`). Padding would stay in a state: rows are read together only where
they have as many tokens to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer


class Window:
    """Where the running forward writes and how far it looks; shared by all layers of a cache."""

    flat: torch.Tensor  # [A * Q] row * slots + slot, where `offsets` hold

    def __init__(self, rows: int, slots: int):
        self.rows, self.slots = rows, slots
        self.start: int | None = None  # prefill, or a single row: the same first slot for all the chosen rows
        self.chosen: torch.Tensor | None = None  # [R] row indices; None: the first rows
        self.first: int | None = None  # where those of a prefill follow one another: the first of them
        self.offsets: torch.Tensor | None = None  # otherwise: [A] first slot of each of those rows
        self.visible = 0  # otherwise: how many slots attention looks at

    @property
    def begins(self) -> bool:
        """Whether the rows hold nothing yet."""
        return self.start == 0 and self.chosen is not None

    def of_rows(self, buffer: torch.Tensor) -> torch.Tensor:
        """What a buffer [rows, ...] holds of the running rows: a view of it, or a copy of chosen ones."""
        if self.chosen is not None:
            return buffer[self.chosen.to(buffer.device)]
        return buffer[: 1 if self.start is not None else len(self.offsets)]  # ty: ignore[invalid-argument-type]


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, [rows, slots, heads, dim]; the window of a sliding layer is left to the mask."""

    is_compileable = False  # `generate` would build masks ahead of time, which know nothing of rows
    is_croppable = True
    is_sliding = False
    keys: Any  # tensors, once it is initialized
    values: Any

    def __init__(self, window: Window):
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (self.window.rows, self.window.slots, states.shape[1], states.shape[3])
            # zeros, not empty: attention multiplies what it must not see by 0, and 0 * nan is nan
            setattr(self, name, torch.zeros(shape, dtype=states.dtype, device=self.device))  # autocast: two types
        self.is_initialized = True

    def grow(self) -> None:
        """Takes the rows and slots that the window has by now, and keeps what they hold."""
        for name in ("keys", "values") if self.is_initialized else ():
            held = getattr(self, name)[: self.window.rows]
            setattr(self, name, pad(held, (0, 0, 0, 0, 0, self.window.slots - held.shape[1])))

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
            return w.of_rows(buffer[:, : w.visible]).transpose(1, 2)
        if w.chosen is None:
            buffer[:1, w.start : w.start + new.shape[1]] = new
            return buffer[:1, : w.start + new.shape[1]].transpose(1, 2)
        rows = w.chosen.to(buffer.device)
        buffer[:, w.start : w.start + new.shape[1]].index_copy_(0, rows, new)
        if w.start == 0:
            return states
        chosen = rows if w.first is None else slice(w.first, w.first + len(rows))
        return buffer[chosen, : w.start + new.shape[1]].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.window.visible if self.window.start is None else self.window.start + query_length), 0

    def get_seq_length(self) -> int:
        return self.window.start or 0

    def get_max_length(self) -> int:
        return self.window.slots

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a RaggedCache keeps no lengths: call `seek` with the rows' own, smaller offsets")


class StateLayer(LinearAttentionLayer):
    """The states of one layer, each [rows, ...]: of a convolution, of a recurrence.

    transformers' layer holds the states of one batch. Between `enter` and `leave` this one does so for the rows of the
    running forward, as if there were no others.
    """

    window: Window
    is_initialized = True  # there are no keys and values to wait for
    conv_states: dict[int, Any]
    recurrent_states: dict[int, Any]

    def __init__(self, window: Window, number_of_states: int = 1):
        LinearAttentionLayer.__init__(self, number_of_states)
        self.window = window
        self.buffers: dict[tuple[bool, int], torch.Tensor] = {}

    def _places(self) -> Iterator[tuple[tuple[bool, int], dict[int, Any], dict[int, bool]]]:
        for i in range(self.number_of_states):
            yield (False, i), self.conv_states, self.is_conv_states_initialized
            yield (True, i), self.recurrent_states, self.is_recurrent_states_initialized

    @property
    def bytes_per_row(self) -> int:
        """What the states of one row occupy."""
        return sum(buffer[0].numel() * buffer.element_size() for buffer in self.buffers.values())

    def enter(self) -> None:
        """Takes up the states of the rows of the next forward; rows that begin have none."""
        known = bool(self.buffers) and not self.window.begins
        for key, states, initialized in self._places():
            initialized[key[1]] = known and key in self.buffers
            states[key[1]] = self.window.of_rows(self.buffers[key]) if initialized[key[1]] else None
        for i in range(self.number_of_states):
            if self.is_conv_states_initialized[i]:  # by another cache, perhaps
                self.conv_kernel_size[i] = self.conv_states[i].shape[-1]
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), known)

    def leave(self) -> None:
        """Puts the states back where they belong: a forward has changed a view of them, a copy, or made others."""
        rows = self.window.chosen
        for key, states, initialized in self._places():
            state = states[key[1]]
            states[key[1]], initialized[key[1]] = None, False
            if state is None:
                continue
            if key not in self.buffers:
                self.buffers[key] = state.new_zeros(self.window.rows, *state.shape[1:])
            buffer = self.buffers[key]
            if rows is not None:
                buffer.index_copy_(0, rows.to(buffer.device), state)
            elif state.data_ptr() != buffer.data_ptr():
                buffer[: len(state)] = state


class HybridLayer(StateLayer, RaggedLayer):
    """A layer with attention beside its recurrence: keys and values, and states."""

    def __init__(self, window: Window, number_of_states: int = 1):
        RaggedLayer.__init__(self, window)
        StateLayer.__init__(self, window, number_of_states)

    def lazy_initialization(self, *args, **kwargs) -> None:
        """Of keys and values, which come by position, or of a state, which comes by name."""
        (RaggedLayer if args else LinearAttentionLayer).lazy_initialization(self, *args, **kwargs)
