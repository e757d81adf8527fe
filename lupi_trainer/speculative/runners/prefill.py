"""Prompts read into a cache, without their last tokens; equal ones, and a prefix of all, are read once and copied.

What a store has of a prompt is not read at all.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

import torch

from .cache import RaggedCache, States
from .lockstep import Alone, Lockstep
from .prompt_store import Part, PromptStore
from .support import active, prefill_budget, reads_singly, require_cache


_SHORTEST_SHARED_PREFIX = 16  # below, one more forward costs more than it saves


def _shared_prefix(prompts: list[list[int]]) -> int:
    """How many first tokens all prompts share, beside which each has one to feed; 0: too few to be worth a forward."""
    shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _SHORTEST_SHARED_PREFIX else 0


def _runs(slots: list[int]) -> list[list[int]]:
    """Slots in ascending order, those that follow one another together."""
    runs: list[list[int]] = []
    for slot in sorted(slots):
        if runs and slot == runs[-1][-1] + 1:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs


def _end(parts: list[Part]) -> int:
    """How many tokens of a text they are."""
    return parts[-1].end if parts else 0


class Prefill:
    """Which prompt each slot of a `RaggedCache` holds, and the forwards and copies that bring it there."""

    def __init__(
        self,
        model,
        cache: RaggedCache,
        prompts: list[list[int]],
        needs_buffers: bool,
        lockstep: Lockstep | Alone,
        store: PromptStore | None,
        by_length: bool,
        slots: int,
    ):
        """`needs_buffers`: the cache must have its buffers afterwards, even if the prompts leave nothing to read.

        `store`: of this model; prompts are taken from it and put into it. `by_length`: the model attends by a kernel
        that takes lengths. `slots`: that the cache may come to have.
        """
        self.model, self.cache, self.prompts, self.lockstep, self.store = model, cache, prompts, lockstep, store
        self.by_length = by_length
        self.needs_buffers = needs_buffers or bool(cache.recurrent)
        self.device = model.get_input_embeddings().weight.device
        distinct: dict[tuple[int, ...], int] = {}
        self.first = [distinct.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]  # of equal ones
        # recurrent states, which a row that goes on changes: of the common prefix, and of prompts of rows to come
        self.prefix_states: States | None = None
        self.prompt_states: dict[int, States] = {}
        self.to_come = Counter(self.first) if cache.recurrent else Counter()
        # slot -> the first of the rows whose prompt's keys and values it holds
        self.held: list[int | None] = [None] * cache.window.rows
        # of logits, which nobody reads, as few as can be: chosen by a tensor, for of a slice, whose states lie apart,
        # torch multiplies each row with a copy of the lm_head
        self.first_logits = torch.zeros(1, dtype=torch.long, device=self.device)
        self.singly = reads_singly(model)
        self.prefix = 0 if self.singly else _shared_prefix(prompts)
        known = _end(self._stored(prompts[0][: self.prefix]))
        if self.prefix - known < _SHORTEST_SHARED_PREFIX:
            self.prefix = known
        self.has_prefix = self.prefix == 0
        self.most_tokens = prefill_budget(model, cache.window.rows, slots)

    def admit(self, slots: list[int], rows: list[int]) -> None:
        """Has each of `slots` hold the prompt of its row."""
        fresh, donors = self._assign(slots, rows)
        ahead = [] if self.has_prefix else self._stored(self.prompts[rows[0]][: self.prefix])
        stored = {slot: self._stored(self._prompt(slot)[:-1], self.prefix) for slot in fresh}
        starts = {slot: max(_end(parts), self.prefix) for slot, parts in stored.items()}
        groups = self._groups(starts)
        reads = len(groups) + (not self.has_prefix and _end(ahead) < self.prefix)
        there = self.cache.has_buffers or bool(reads or ahead or any(stored.values()))
        blank = self.needs_buffers and bool(slots) and not there
        empty = self.lockstep.most(reads + blank) - reads - blank
        if not self.has_prefix:
            self._bring_prefix(slots[0], self.prompts[rows[0]][: self.prefix], ahead)
        if blank:
            self._read([slots[0]], [[0]], 0)
        self.cache.put_states(fresh, self.prefix_states)
        for slot, parts in stored.items():
            self._restore(slot, parts, self.prefix)
        for group in groups:
            start = starts[group[0]]
            self._read(group, [self._prompt(slot)[start:-1] for slot in group], start)
            for slot in group:
                self._keep(slot, self._prompt(slot)[:-1])
        if donors:
            self._copy(list(donors.values()), list(donors), max(self.length(slot) for slot in donors))
        if self.cache.recurrent:
            self._share_states(slots, [slot for slot in slots if slot not in donors])
        for _ in range(empty):
            self.idle()

    def move(self, source: int, target: int, written: int) -> None:
        """Moves a prompt and the `written` tokens after it to another slot."""
        self._copy([source], [target], self.length(source) + written)
        self.held[target], self.held[source] = self.held[source], None

    def clear(self, slot: int, length: int | None) -> None:
        """Forgets what a slot holds beyond its first `length` tokens; None: all but the common prefix."""
        self.cache.clear(slot, self.prefix if length is None else length)
        if length is None:
            self.held[slot] = None

    def idle(self) -> None:
        """A forward of one token that leaves no trace."""
        with active(self.model) as model:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)

    def _prompt(self, slot: int) -> list[int]:
        row = self.held[slot]
        assert row is not None  # the slot holds a prompt
        return self.prompts[row]

    def length(self, slot: int) -> int:
        """The tokens of a slot's prompt that are read into the cache: all but the last."""
        return len(self._prompt(slot)) - 1

    def _bring_prefix(self, slot: int, prefix: list[int], ahead: list[Part]) -> None:
        """Has every slot hold the common prefix: `ahead` from the store, the rest read in one slot."""
        self._restore(slot, ahead, 0)
        if _end(ahead) < self.prefix:
            self._read([slot], [prefix[_end(ahead) :]], _end(ahead))
            self._keep(slot, prefix)
        self._copy([slot], list(range(len(self.held))), self.prefix)
        self.prefix_states = self.cache.states(slice(slot, slot + 1))
        self.has_prefix = True

    def _stored(self, text: list[int], start: int = 0) -> list[Part]:
        """What the store has of a text, if that is all of it, or saves more of what is read from `start` on than a
        forward of its own costs."""
        parts = [] if self.store is None else self.store.find(text)
        more = 0 if self.singly else _end(parts) - start
        return parts if _end(parts) == len(text) or more >= _SHORTEST_SHARED_PREFIX else []

    def _restore(self, slot: int, parts: list[Part], start: int) -> None:
        """Puts what the store has of a slot's text behind its first `start` tokens, which it holds, into the cache."""
        for part in parts:
            if part.end > start:
                self.cache.restore(slot, part.entry, part.start, part.end)
        if parts:
            self.cache.put_states([slot], parts[-1].entry.states)

    def _keep(self, slot: int, text: list[int]) -> None:
        if self.store is not None:
            self.store.put(text, partial(self.cache.kept, slot))

    def _assign(self, slots: list[int], rows: list[int]) -> tuple[list[int], dict[int, int]]:
        """Notes what the slots hold from now on; returns those to be read into, and the others -> whose copy."""
        holders = {held: slot for slot, held in enumerate(self.held) if slot not in slots}
        fresh, donors = [], {}
        for slot, prompt in zip(slots, [self.first[row] for row in rows]):
            if self.held[slot] == prompt:
                if self.cache.recurrent:
                    donors[slot] = slot
                continue
            donor = holders.setdefault(prompt, slot)
            if donor == slot:
                fresh.append(slot)
            else:
                donors[slot] = donor
            self.held[slot] = prompt
        return fresh, donors

    def _groups(self, starts: dict[int, int]) -> list[list[int]]:
        """Slots whose prompts are read from the same token on, of similar length, together, each within `most_tokens`;
        none if there is nothing to read. `starts`: of each slot."""
        lengths = {slot: self.length(slot) - start for slot, start in starts.items()}
        groups: list[list[int]] = []
        for slot in sorted((s for s in starts if lengths[s] > 0), key=lambda slot: (starts[slot], lengths[slot])):
            last = groups[-1][-1] if groups else slot
            # what is read in a padded place would stay in a recurrent state
            alike = starts[last] == starts[slot] and not (self.cache.recurrent and lengths[last] != lengths[slot])
            if groups and alike and (len(groups[-1]) + 1) * lengths[slot] <= self.most_tokens:
                groups[-1].append(slot)
            else:
                groups.append([slot])
        if self.by_length:  # a kernel finds rows that follow one another, without a copy of what is before
            groups = [part for group in groups for part in (_runs(group) if starts[group[0]] else [group])]
        return groups

    def _read(self, slots: list[int], parts: list[list[int]], start: int) -> None:
        width = max(map(len, parts))
        ids = torch.tensor([part + [0] * (width - len(part)) for part in parts], device=self.device)
        first = slots[0] if self.by_length and start else None
        self.cache.seek_prefill(self.cache.index(slots, self.device), start, first)
        positions = torch.arange(start, start + width, device=self.device).expand(len(parts), -1)
        self.model(input_ids=ids, **self.cache.arguments(positions), logits_to_keep=self.first_logits)
        self.cache.leave()
        require_cache(self.model, self.cache)

    def _copy(self, source: list[int], target: list[int], length: int) -> None:
        if length or self.cache.recurrent:
            self.cache.copy_rows(*(self.cache.index(slots, self.device) for slots in (source, target)), length)

    def _share_states(self, slots: list[int], read: list[int]) -> None:
        """Keeps the states of prompts that rows to come have, too, and gives them to those that are there."""
        prompts = {slot: row for slot, row in enumerate(self.held) if row is not None}
        self.to_come.subtract(prompts[slot] for slot in slots)
        held = Counter(prompts.values())
        for slot in read:
            prompt = prompts[slot]
            if prompt not in self.prompt_states and (self.to_come[prompt] > 0 or held[prompt] > 1):
                self.prompt_states[prompt] = self.cache.states(slice(slot, slot + 1))
        for slot in slots:
            if slot not in read:
                self.cache.put_states([slot], self.prompt_states[prompts[slot]])
        for prompt in [prompt for prompt in self.prompt_states if self.to_come[prompt] == 0]:
            del self.prompt_states[prompt]
