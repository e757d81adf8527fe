"""Prompts that a model has read, kept for later rollouts: a frozen teacher meets the same ones in every epoch."""

from __future__ import annotations

import weakref
from collections import OrderedDict

from .cache import Entry
from .support import base_model


class PromptStore:
    """Keys and values of prompts, on the devices that they were made on, those used last; of one model.

    The model's weights must stay what they are: nothing here would see that they have changed.
    """

    def __init__(self, most_bytes: int):
        """`most_bytes`: the most that is kept; a prompt that needs more by itself is not kept at all."""
        if most_bytes < 1:
            raise ValueError(f"a PromptStore must hold at least one byte, got {most_bytes}")
        self.most_bytes, self.bytes = most_bytes, 0
        self.entries: OrderedDict[tuple[int, ...], Entry] = OrderedDict()
        self.model: weakref.ref | None = None

    def require(self, model) -> None:
        """Raises ValueError where another model's prompts are kept here."""
        inner = base_model(model)
        if self.model is None:
            self.model = weakref.ref(inner)
        elif self.model() is not inner:
            raise ValueError("the PromptStore holds the prompts of another model: give each model one of its own")

    def get(self, prompt: list[int]) -> Entry | None:
        key = tuple(prompt)
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, prompt: list[int], entry: Entry) -> None:
        size = entry.bytes()
        if size > self.most_bytes or tuple(prompt) in self.entries:
            return
        self.entries[tuple(prompt)] = entry
        self.bytes += size
        while self.bytes > self.most_bytes:
            self.bytes -= self.entries.popitem(last=False)[1].bytes()
