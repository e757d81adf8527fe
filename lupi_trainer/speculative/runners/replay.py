"""Taking tokens back from recurrent states: copies of them, and reading again what was accepted after a copy.

A round feeds every running row some tokens, of which the first ones stay. Before it, the states are copied. A row
whose tokens all stand keeps the states that it has; another gets those of the last copy before its first rejected
token, and reads the tokens between again, rows of equal count together. Copies after single tokens save the reading.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .cache import RaggedCache, States


class Again(NamedTuple):
    """Tokens that R rows are to read again."""

    slots: list[int]
    tokens: torch.Tensor  # [R, c]


class Replay:
    """How many tokens each slot's states have read behind its prompt, and what this round has fed and copied."""

    def __init__(self, cache: RaggedCache, takes_back: bool, model):
        """`takes_back`: False where no token is ever rejected, so that nothing is copied."""
        self.cache, self.takes_back = cache, takes_back
        self.weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        self.read = [0] * cache.window.rows
        self.before: list[int] = []  # `read`, of the slots in use, when the round began
        self.fed: list[torch.Tensor] = []  # [A, Q] each
        self.copies: list[tuple[int, States]] = []  # after so many tokens of the round
        self.replayed = 0  # tokens
        self.most_bytes = 0  # of the copies of a round

    def begin(self, slots: list[int]) -> None:
        """Notes that the slots hold prompts alone."""
        for slot in slots:
            self.read[slot] = 0

    def move(self, source: int, target: int) -> None:
        """Notes that a row has moved to another slot."""
        self.read[target] = self.read[source]

    def take_up(self, slot: int, count: int) -> int:
        """Notes that a slot reads `count` tokens outside of a round; returns how many it has read before them."""
        self.read[slot] += count
        return self.read[slot] - count

    def copies_steps(self, rows: int, steps: int) -> bool:
        """Whether copies after every step cost less than reading again, by the bytes that both move.

        Reading again reads the weights once for each number of accepted tokens.
        """
        if not self.takes_back or steps == 1:
            return False
        state = sum(layer.bytes_per_row for layer in self.cache.recurrent)
        return steps * rows * state <= min(rows, steps - 1) * self.weights

    def copying(self, step):
        """`step`, which feeds one token to every row in use, and copies the states after it."""

        def copy_after(model, cache, tokens, *args):
            out = step(model, cache, tokens, *args)
            self.copy(self.copies[-1][0] + 1, tokens.shape[0])
            return out

        return copy_after

    def feed(self, tokens: torch.Tensor) -> None:
        """Notes that the rows in use are about to read tokens [A, Q]."""
        rows, width = tokens.shape
        if not self.fed:
            self.before = self.read[:rows]
            self.copy(0, rows)
        self.fed.append(tokens.clone())  # of what may be a view of what the verdict overwrites
        for slot in range(rows):
            self.read[slot] += width

    def copy(self, count: int, rows: int) -> None:
        """Copies the states of the first rows, which have read `count` tokens of this round."""
        if self.takes_back:
            self.copies.append((count, self.cache.states(slice(rows))))

    def take_back(self, written: dict[int, int]) -> list[Again]:
        """Ends a round after which slots hold so many tokens behind their prompts; returns what they read again."""
        self.most_bytes = max(self.most_bytes, sum(_bytes(states) for _, states in self.copies))
        again: dict[tuple[int, int], list[int]] = {}
        for slot, tokens in written.items():
            if self.read[slot] > tokens:
                count = tokens - self.before[slot]
                last = max(i for i, (after, _) in enumerate(self.copies) if after <= count)
                again.setdefault((last, count), []).append(slot)
                self.read[slot] = self.before[slot] + self.copies[last][0]
        fed = torch.cat(self.fed, 1) if again else None
        groups = []
        for (last, count), slots in sorted(again.items()):
            first, states = self.copies[last]
            self.cache.put_states(slots, states, of=slots)
            if fed is not None and count > first:
                groups.append(Again(slots, fed[slots, first:count]))
                self.replayed += len(slots) * (count - first)
        self.fed, self.copies = [], []
        return groups


def _bytes(states: States) -> int:
    return sum(state.numel() * state.element_size() for layer in states for state in layer.values())
