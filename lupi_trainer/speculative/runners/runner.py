"""One model that reads: its prompts, its cache, and what it says after the tokens it is fed.

A row sits in a slot. Its cache always holds everything but the row's last token, which is the first one to be fed
next; so a prompt is prefilled without its last token, and token i of the completion is fed at position `base + i + 1`.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import torch

from ..rules.noise import TEACHER, sample
from .attention import attends_by_length
from .cache import RaggedCache
from .graphs import Graphs, recorder_for
from .lockstep import Alone, Lockstep
from .steps import any_shape, call, compiled_write, draft, read, span, write
from .support import active, text_config, usable_positions


ALONE = Alone()
_BUCKET = 64  # attention looks at a multiple of so many slots
_WHOLE = 1024  # recorded, attention looks at all slots of a smaller cache; of a larger one, at parts, a recording each
_SHORTEST_SHARED_PREFIX = 16  # below, one more forward costs more than it saves


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _compiled_size(size: int) -> int:
    """The slots of a compiled cache that holds `size`: two sizes between powers of two, for each is a graph."""
    return _up(size, max(_BUCKET, 1 << max(size.bit_length() - 2, 0)))


def _prefill_tokens(model, rows: int, slots: int) -> int:
    """Tokens in one prefill forward, padding too: activations stay near an eighth of the weights and the cache."""
    config = text_config(model)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    states = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_dim
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    held = sum(parameter.numel() for parameter in model.parameters()) + states * rows * slots
    return min(max(held // (8 * (4 * width + 8 * config.hidden_size)), 128), 8192)


class Runner:
    """A model with a `RaggedCache` of `slots` rows for prompts of any length and completions of `max_new_tokens`."""

    def __init__(
        self, model, prompts, slots: int, max_new_tokens: int, vocab_size: int, compile: bool = False,
        lockstep: Lockstep | Alone = ALONE, widest: int = 1,
    ):  # fmt: skip
        """`widest`: the most tokens of a row in one call."""
        self.model, self.vocab_size, self.compile, self.lockstep = model, vocab_size, compile, lockstep
        self.device = model.get_input_embeddings().weight.device
        self.prompts = prompts
        self.size = max(map(len, prompts)) + max_new_tokens
        if compile:  # so that batches of similar length share their graphs
            room = usable_positions(model) or sys.maxsize
            self.size = min(_compiled_size(self.size), room)
        # a kernel counts the slots that a row's last query sees, be it one that is not kept: they all must exist
        self.by_length, self.widest = attends_by_length(model), widest
        self.room = self.size + (widest - 1 if self.by_length else 0)
        self.cache = RaggedCache(text_config(model).num_hidden_layers, slots, self.room, self.size)
        self.base = torch.zeros(slots, dtype=torch.long, device=self.device)  # prompt length - 1
        distinct: dict[tuple[int, ...], int] = {}
        self.first = [
            distinct.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)
        ]  # of equal prompts
        self.held: list[int | None] = [None] * slots  # whose prompt's keys and values a slot holds: a first row
        self.prefix = self._shared_prefix()
        self.has_prefix = self.prefix == 0
        self.forwards = 0
        self.graphs = Graphs(recorder_for(model) if compile and not lockstep.together else None)
        self.prefill_tokens = _prefill_tokens(model, slots, self.room)

    @property
    def recorded(self) -> bool:
        """Whether its calls are recorded, each for the shapes that it has."""
        return self.graphs.recorder is not None

    @property
    def least_batch(self) -> int:
        """The smallest batch that needs no graph of its own."""
        return len(self.held) if self.recorded else 2 if self.compile else 0

    def _shared_prefix(self) -> int:
        shared = min(len(os.path.commonprefix(self.prompts)), min(map(len, self.prompts)) - 1)
        return shared if len(self.prompts) > 1 and shared >= _SHORTEST_SHARED_PREFIX else 0

    def read(self, tokens: torch.Tensor, written: torch.Tensor, longest: int, keep_hidden: bool = False):
        """tokens [A, Q] of the first A slots -> logits [A, Q, V] float32, what lm_head read [A, Q, H] or None.

        The first of `tokens` is fed at position base + `written` [A]; `longest` is the largest such position, as the
        host knows it (at least; of a single row, exactly).
        """
        if tokens.shape[1] > self.widest and self.by_length:
            raise ValueError(f"{tokens.shape[1]} tokens a row, and the runner was made for {self.widest}")

        def run(model, seen, tokens, offsets):
            return call(read, model, self.cache, tokens, offsets, seen, self.vocab_size, keep_hidden,
                        compile=self.compile)  # fmt: skip

        self.forwards += 1
        return self._call(run, (read, keep_hidden), longest, tokens.shape[1], tokens, written)

    def draft(
        self,
        tokens: torch.Tensor,
        written: torch.Tensor,
        longest: int,
        gamma: int,
        temperature: float,
        keys: torch.Tensor,
        keep_logits: bool,
        rows: torch.Tensor | None = None,
    ):
        """tokens [A, 1] -> the next `gamma` tokens of each row [A, gamma], drawn with the noise of `keys` [A].

        Also returns which of them came from a distribution [A, gamma] bool, and, with `keep_logits`, the logits of
        `rows` [P, gamma, V] (None: of all), else None.
        """
        at_once = self.compile and not self.recorded and self.device.type == "cpu"
        step = compiled_write if self.compile else write
        in_loop = None if self.compile else rows  # a graph keeps all rows, since the wanted ones change

        def run(model, seen, tokens, offsets, keys, written):
            fed = tokens, offsets, seen, self.vocab_size, span(gamma) if at_once else gamma
            drawn = temperature, keys, written
            return call(draft, model, self.cache, *fed, *drawn, keep_logits, in_loop, step, compile=at_once)[:3]

        self.forwards += gamma
        kind = draft, gamma, keep_logits, temperature
        drafts, valid, logits = self._call(run, kind, longest, gamma, tokens, written, keys, written)
        return drafts, valid, logits[rows] if self.compile and rows is not None else logits

    def draw(self, logits, at, temperature: float, keys, positions, wanted) -> torch.Tensor:
        """logits [A, Q, V], at [A] -> the teacher's token [A] at place `at`; `wanted` [A]: where it counts."""
        return sample(logits[torch.arange(len(at), device=at.device), at], temperature, keys, positions, TEACHER)

    def _call(self, function, kind: tuple, longest: int, width: int, tokens, written, *tensors):
        """Runs `function`, which feeds `width` tokens a row; `kind` is all that the tensors do not tell of it."""
        visible = self._visible(longest + width)
        # in lockstep a row may be fed beyond its limit, which only `seek` knows how to place
        alone = len(tokens) == 1 and not self.compile and longest + width <= self.size
        offsets = longest if alone else self.base[: len(tokens)] + written
        seen = visible
        if self.compile and not self.recorded:
            any_shape(tokens, offsets, *tensors)
            seen = span(visible)
        with active(self.model) as model:
            return self.graphs(partial(function, model, seen), (*kind, visible), tokens, offsets, *tensors)

    def _visible(self, needed: int) -> int:
        if self.by_length:  # a kernel looks no farther than it must
            return self.room
        if not self.recorded:
            return min(_up(needed, _BUCKET), self.room)
        parts = (_up(self.size // share, _BUCKET) for share in (4, 2) if self.size > _WHOLE)
        return next((part for part in parts if needed <= part), self.size)

    def admit(self, slots: list[int], rows: list[int]) -> None:
        """Makes the slots ready to continue the prompts `rows`; equal prompts and the common prefix are read once."""
        lengths = [len(self.prompts[row]) - 1 for row in rows]
        index = torch.tensor(slots, dtype=torch.long, device=self.device)
        self.base[index] = torch.tensor(lengths, dtype=torch.long, device=self.device)
        runners = {held: slot for slot, held in enumerate(self.held) if slot not in slots}  # prompt -> who keeps it
        fresh, copies = [], []
        for slot, prompt in zip(slots, [self.first[row] for row in rows]):
            if self.held[slot] == prompt:
                continue
            donor = runners.setdefault(prompt, slot)
            (fresh if donor == slot else copies).append((donor, slot))
            self.held[slot] = prompt
        groups = self._groups([slot for _, slot in fresh])
        # prompts of a single token leave nothing to read, and what is compiled wants buffers
        blank = self.compile and bool(slots) and not groups and not self.cache.layers[0].is_initialized
        forwards = len(groups) + (not self.has_prefix) + blank
        empty = self.lockstep.most(forwards) - forwards
        if not self.has_prefix:
            self._prefill([slots[0]], [self.prompts[rows[0]][: self.prefix]], 0)
            self._copy([slots[0]], list(range(len(self.held))), self.prefix)
            self.has_prefix = True
        for group in groups:
            self._prefill(group, [self._prompt(slot)[self.prefix : -1] for slot in group], self.prefix)
        if blank:
            self._prefill([slots[0]], [[0]], 0)
        if copies:
            longest = max(len(self._prompt(slot)) - 1 for _, slot in copies)
            self._copy([donor for donor, _ in copies], [slot for _, slot in copies], longest)

        for _ in range(empty):
            self.idle()

    def _prompt(self, slot: int) -> list[int]:
        return self.prompts[self.held[slot]]

    def idle(self) -> None:
        """A forward of one token that leaves no trace."""
        with active(self.model) as model:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)

    def _groups(self, slots: list[int]) -> list[list[int]]:
        """Slots of similar prompt length together, none if there is nothing to read, each within `prefill_tokens`."""
        lengths = {slot: len(self._prompt(slot)) - 1 - self.prefix for slot in slots}
        groups: list[list[int]] = []
        for slot in sorted((s for s in slots if lengths[s] > 0), key=lengths.get):
            if groups and (len(groups[-1]) + 1) * lengths[slot] <= self.prefill_tokens:
                groups[-1].append(slot)
            else:
                groups.append([slot])
        return groups

    def _prefill(self, slots: list[int], parts: list[list[int]], start: int) -> None:
        width = max(map(len, parts))
        ids = torch.tensor([part + [0] * (width - len(part)) for part in parts], device=self.device)
        self.cache.seek_prefill(torch.tensor(slots, device=self.device), start)
        positions = torch.arange(start, start + width, device=self.device).expand(len(parts), -1)
        self.model(input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def _copy(self, source: list[int], target: list[int], length: int) -> None:
        if length:
            device = self.device
            self.cache.copy_rows(torch.tensor(source, device=device), torch.tensor(target, device=device), length)

    def clear(self, slot: int, length: int | None = None) -> None:
        """Forgets what a slot holds beyond its first `length` tokens, or all but the common prefix."""
        self.cache.clear(slot, self.prefix if length is None else length)
        if length is None:
            self.held[slot] = None

    def move(self, source: int, target: int, written: int) -> None:
        """Moves a row of `written` tokens to another slot, so that the slots in use stay the first ones."""
        self._copy([source], [target], len(self._prompt(source)) - 1 + written)
        self.base[target] = self.base[source]
        self.held[target], self.held[source] = self.held[source], None
