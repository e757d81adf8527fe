"""One key/value buffer for every layer, a length for every row, rollback for nothing.

Slot index and token position are the same thing in every row. A forward writes at each row's own length; what a row
may see is `slot <= position` (and the window of a sliding layer). So taking tokens back is only giving the row a
smaller length: the slots that held them are invisible from then on, and overwritten before any query reaches them.
Buffers are laid out [row, slot, head, dim], so that writing is one `index_copy_` a layer, and grow when they are told
to. Layers that keep a state instead have it for each row, and are `recurrent`: of them nothing can be taken back
without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import cache_utils
from transformers.cache_utils import Cache, CacheLayerMixin

from .layers import HybridLayer, RaggedLayer, StateLayer, Window
from .numbers import Numbers


States = list[dict[tuple[bool, int], torch.Tensor]]  # of some rows: of each layer, its states [R, ...]


class Entry(NamedTuple):
    """What a cache holds of some tokens of one row."""

    pairs: list[tuple[torch.Tensor, torch.Tensor]]  # of each layer with attention: keys and values [slots, heads, dim]
    states: States | None  # of that row alone, behind the last of the tokens; None: they are not known

    def bytes(self) -> int:
        """What it occupies."""
        parts = [part for pair in self.pairs for part in pair]
        parts += [state for layer in self.states or [] for state in layer.values()]
        return sum(part.numel() * part.element_size() for part in parts)

    def cut(self, length: int) -> tuple[Entry, Entry]:
        """What it holds of its first `length` tokens, and of the others."""
        first = [(keys[:length].clone(), values[:length].clone()) for keys, values in self.pairs]
        rest = [(keys[length:].clone(), values[length:].clone()) for keys, values in self.pairs]
        return Entry(first, None if self.states else self.states), Entry(rest, self.states)


class RaggedCache(Cache):
    """What an unmodified transformers model keeps of `rows` sequences of at most `slots` tokens."""

    layers: list[Any]  # of `RaggedLayer`, `StateLayer` and transformers' layer that keeps nothing

    def __init__(
        self,
        kinds: Sequence[tuple[str, int]],
        rows: int,
        slots: int,
        positions: int | None = None,
        argument: str = "past_key_values",
    ):
        """`kinds`: of each layer, what it keeps and how many states (see `support.cache_kinds`); `positions`: how many
        there are, where they are not as many; `argument`: under which the model's forward takes its cache."""
        self.window, self.positions = Window(rows, slots), slots if positions is None else positions
        self.kinds, self.argument = kinds, argument
        self._numbers: dict[torch.device, Numbers] = {}
        super().__init__(layers=[self._layer(*kind) for kind in kinds])
        self.attending = [layer for layer in self.layers if isinstance(layer, RaggedLayer)]
        self.recurrent = [layer for layer in self.layers if isinstance(layer, StateLayer)]

    def _layer(self, kind: str, states: int):
        if kind == "nothing":
            return cache_utils.DummyLayer()  # older releases have none, nor a use for it
        if kind == "attention":
            return RaggedLayer(self.window)
        return (HybridLayer if kind == "both" else StateLayer)(self.window, states)

    @property
    def is_linear(self) -> list[bool]:
        return [isinstance(layer, StateLayer) and not isinstance(layer, CacheLayerMixin) for layer in self.layers]

    @property
    def has_buffers(self) -> bool:
        """Whether a forward has made them."""
        return all(layer.is_initialized for layer in self.attending) and all(layer.buffers for layer in self.recurrent)

    def index(self, chosen: Sequence[int], device: torch.device) -> torch.Tensor:
        """R rows or slots, as [R] int64 on a device."""
        if device not in self._numbers:
            most = max(self.window.rows, self.window.slots + 1, self.positions + 1)
            self._numbers[device] = Numbers(most, device)
        return self._numbers[device].of(chosen)

    @property
    def bytes(self) -> int:
        """What keys and values occupy."""
        parts = (part for layer in self.attending if layer.is_initialized for part in (layer.keys, layer.values))
        return sum(part.numel() * part.element_size() for part in parts)

    def grow(self, slots: int, rows: int) -> None:
        """Makes room for `slots` tokens of each of the first `rows` rows, and forgets the others' keys and values.

        Keys, or values, of one layer alone are there twice at a time.
        """
        self.window.slots, self.window.rows = slots, rows
        for layer in self.attending:
            layer.grow()

    def twin(self) -> RaggedCache:
        """The same buffers with a place of its own: a loop that is traced may move nothing that lies outside of it."""
        twin = RaggedCache(self.kinds, self.window.rows, self.window.slots, self.positions, self.argument)
        for mine, its in zip(self.attending, twin.attending):
            its.share(mine)
        return twin

    def arguments(self, position_ids: torch.Tensor) -> dict[str, Any]:
        """What a forward at these positions is given, beside its tokens."""
        return {"position_ids": position_ids, self.argument: self, "use_cache": True}

    def seek(self, offsets: torch.Tensor, width: int, visible: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Places the next forward: row r writes its `width` tokens from slot offsets[r].

        offsets [A] int64 for the first A rows (or for `rows` [A]) -> position ids [A, width]. Attention looks at the
        first `visible` of the slots. What lies beyond the last slot falls onto it: no token that will be kept ever
        sees it.
        """
        w = self.window
        w.start, w.chosen = None, rows
        w.offsets, w.visible = offsets, visible
        steps = torch.arange(width, device=offsets.device)
        places = (offsets[:, None] + steps).clamp_(max=w.slots - 1)
        if rows is None:
            rows = torch.arange(offsets.shape[0], device=offsets.device)
        w.flat = (rows[:, None] * w.slots + places).flatten()
        self._enter()
        return places if w.slots <= self.positions else places.clamp(max=self.positions - 1)

    def seek_alone(self, start: int, width: int, device: torch.device) -> torch.Tensor:
        """Places the next forward: row 0 alone writes `width` tokens from slot `start`; position ids [1, width].

        The host knows the place, so attention sees just what the row holds, through transformers' own masks, if any.
        """
        self.window.start, self.window.chosen = start, None
        self._enter()
        return torch.arange(start, start + width, device=device)[None]

    def seek_prefill(self, rows: torch.Tensor, start: int, first: int | None = None) -> None:
        """Places the next forward: it fills slots `start`, `start + 1`, ... of the given rows [R].

        `first`: of rows that follow one another, the first, where attention takes lengths and so needs no copy of what
        is before `start`.
        """
        self.window.start, self.window.chosen, self.window.first = start, rows, first
        self._enter()

    def _enter(self) -> None:
        for layer in self.recurrent:
            layer.enter()

    def leave(self) -> None:
        """Ends a forward: states that it has made go where they belong."""
        for layer in self.recurrent:
            layer.leave()

    def get_query_offset(self, layer_idx: int = 0):
        """The position of the first query: a tensor, one for each row, where their lengths tell what attention sees;
        for a single row or a prefill without them an int."""
        w = self.window
        if w.start is not None and w.chosen is not None and w.first is not None:
            return torch.full_like(w.chosen, w.start)
        return w.offsets if w.start is None else w.start

    def clear(self, row: int, start: int) -> None:
        """Zeroes a row from slot `start` on: numbers that are not finite would reach the next row in its place."""
        for layer in self.attending:
            for buffer in (layer.keys, layer.values):
                buffer[row, start:] = 0

    def zero(self) -> None:
        """Zeroes all keys and values, where they are: those of an idle slot may not be finite."""
        for layer in self.attending:
            if layer.is_initialized:
                layer.keys.zero_(), layer.values.zero_()

    def kept(self, row: int, start: int, end: int) -> Entry:
        """A copy of the slots `start` to `end` of a row, and of its states."""
        buffers = ((layer.keys[row, start:end], layer.values[row, start:end]) for layer in self.attending)
        return Entry([(keys.clone(), values.clone()) for keys, values in buffers], self.states(slice(row, row + 1)))

    def restore(self, row: int, entry: Entry, start: int, end: int) -> None:
        """Writes the keys and values of an entry's first tokens into the slots `start` to `end` of a row."""
        for layer, pair in zip(self.attending, entry.pairs):
            keys, values = (part[: end - start] for part in pair)
            if not layer.is_initialized:
                layer.lazy_initialization(*(part.transpose(0, 1)[None] for part in (keys, values)))
            layer.keys[row, start:end], layer.values[row, start:end] = keys, values

    def copy_rows(self, source: torch.Tensor, target: torch.Tensor, length: int) -> None:
        """Copies the first `length` slots and the states of rows `source` [R] to rows `target` [R] ([1]: to all)."""
        buffers = [buffer[:, :length] for layer in self.attending for buffer in (layer.keys, layer.values) if length]
        buffers += [buffer for layer in self.recurrent for buffer in layer.buffers.values()]
        for buffer in buffers:
            buffer[target.to(buffer.device)] = buffer[source.to(buffer.device)]

    def states(self, rows: slice) -> States:
        """A copy of the states of some rows."""
        return [{key: buffer[rows].clone() for key, buffer in layer.buffers.items()} for layer in self.recurrent]

    def put_states(self, rows: list[int], states: States | None, of: list[int] | None = None) -> None:
        """Gives rows the states of row 0 of `states`, or of rows `of`; None: those of a text that begins."""
        for i, layer in enumerate(self.recurrent):
            if states is not None and not layer.buffers:
                layer.buffers = {k: v.new_zeros(self.window.rows, *v.shape[1:]) for k, v in states[i].items()}
            for key, buffer in layer.buffers.items():
                new: Any = 0
                if states is not None:
                    new = states[i][key][:1] if of is None else states[i][key][self.index(of, buffer.device)]
                buffer[self.index(rows, buffer.device)] = new
