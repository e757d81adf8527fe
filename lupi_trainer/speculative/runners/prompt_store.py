"""Prompts that a model has read, kept for later rollouts: a frozen teacher meets the same ones in every epoch.

They are a tree over token ids: what prompts share (a persona, examples, one knowledge for several questions) is there
once, and each has its own rest behind it. A state holds all that was read before it, so it belongs to the end of a
node, and leads on from nowhere else.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .cache import Entry
from .support import base_model


@dataclass(eq=False)
class Node:
    """Tokens behind those of `above`, with which all texts in `below` go on."""

    tokens: tuple[int, ...]
    entry: Entry
    above: Node | None = None
    below: dict[int, Node] = field(default_factory=dict)  # by their first token

    def leads_on(self, length: int) -> bool:
        """Whether a text can be read on from behind the first `length` tokens of this node."""
        states = self.entry.states
        return states == [] or (bool(states) and length == len(self.tokens))


class Part(NamedTuple):
    """The tokens `start` to `end` of a text: the first ones of an entry."""

    entry: Entry
    start: int
    end: int


class PromptStore:
    """Keys and values of prompts, on the devices that they were made on, those used last; of one model.

    The model's weights must stay what they are: nothing here would see that they have changed.
    """

    def __init__(self, most_bytes: int):
        """`most_bytes`: the most that is kept; a prompt that needs more by itself is not kept at all."""
        if most_bytes < 1:
            raise ValueError(f"a PromptStore must hold at least one byte, got {most_bytes}")
        self.most_bytes, self.bytes = most_bytes, 0
        self.roots: dict[int, Node] = {}
        self.used: OrderedDict[Node, None] = OrderedDict()  # every node after those below it, so the first has none
        self.model: weakref.ref | None = None

    def require(self, model) -> None:
        """Raises ValueError where another model's prompts are kept here."""
        inner = base_model(model)
        if self.model is None:
            self.model = weakref.ref(inner)
        elif self.model() is not inner:
            raise ValueError("the PromptStore holds the prompts of another model: give each model one of its own")

    def find(self, text: Sequence[int]) -> list[Part]:
        """The first parts of a text that are kept, as far as it can be read on from behind them."""
        path = self._path(text)
        while path and not path[-1][0].leads_on(path[-1][1]):
            path.pop()
        self._use(path)
        parts: list[Part] = []
        for node, length in path:
            start = parts[-1].end if parts else 0
            parts.append(Part(node.entry, start, start + length))
        return parts

    def put(self, text: Sequence[int], copied: Callable[[int, int], Entry]) -> None:
        """Keeps what is new of a text: `copied(start, end)`, with the states behind it."""
        path = self._path(text)
        known = sum(length for _, length in path)
        if known == len(text) and (not path or path[-1][0].leads_on(path[-1][1])):
            return
        entry = copied(known, len(text))
        if entry.bytes() + sum(node.entry.bytes() for node, _ in path) > self.most_bytes:
            return
        above = self._cut(*path[-1]) if path else None
        if above is not None and known == len(text):
            above.entry = Entry(above.entry.pairs, entry.states)
        else:
            node = Node(tuple(text[known:]), entry, above)
            self._beside(node)[node.tokens[0]] = node
            self.used[node] = None
        self.bytes += entry.bytes()
        self._use(self._path(text))
        while self.bytes > self.most_bytes:
            node, _ = self.used.popitem(last=False)
            del self._beside(node)[node.tokens[0]]
            self.bytes -= node.entry.bytes()

    def _path(self, text: Sequence[int]) -> list[tuple[Node, int]]:
        """The nodes that a text leads through, and how many tokens of each, of the last one perhaps not all."""
        path: list[tuple[Node, int]] = []
        nodes, known = self.roots, 0
        while known < len(text) and (node := nodes.get(text[known])) is not None:
            here = tuple(text[known : known + len(node.tokens)])
            path.append((node, len(os.path.commonprefix([node.tokens, here]))))
            known += path[-1][1]
            nodes = node.below if path[-1][1] == len(node.tokens) else {}
        return path

    def _beside(self, node: Node) -> dict[int, Node]:
        return self.roots if node.above is None else node.above.below

    def _use(self, path: list[tuple[Node, int]]) -> None:
        for node, _ in reversed(path):
            self.used.move_to_end(node)

    def _cut(self, node: Node, length: int) -> Node:
        """Divides a node behind its first `length` tokens, unless it ends there; returns the node of those."""
        if length == len(node.tokens):
            return node
        first, rest = node.entry.cut(length)
        above = Node(node.tokens[:length], first, node.above, {node.tokens[length]: node})
        self._beside(node)[above.tokens[0]] = above
        node.tokens, node.entry, node.above = node.tokens[length:], rest, above
        self.used[above] = None
        return above
