"""Prompts read into a cache, without their last tokens; equal ones, and a prefix of all, are read once and copied."""

from __future__ import annotations

import os

import torch

from .cache import RaggedCache
from .lockstep import Alone, Lockstep
from .prompt_store import PromptStore
from .support import active, prefill_budget, require_cache


_SHORTEST_SHARED_PREFIX = 16  # below, one more forward costs more than it saves


def _shared_prefix(prompts: list[list[int]]) -> int:
    """How many first tokens all prompts share, beside which each has one to feed; 0: too few to be worth a forward."""
    shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _SHORTEST_SHARED_PREFIX else 0


class Prefill:
    """Which prompt each slot of a `RaggedCache` holds, and the forwards and copies that bring it there."""

    def __init__(
        self,
        model,
        cache: RaggedCache,
        prompts: list[list[int]],
        needs_buffers: bool,
        lockstep: Lockstep | Alone,
        store: PromptStore | None = None,
    ):
        """`needs_buffers`: the cache must have its buffers afterwards, even if the prompts leave nothing to read.

        `store`: of this model; prompts are taken from it and put into it, each complete, so no prefix is shared.
        """
        self.model, self.cache, self.prompts, self.lockstep, self.store = model, cache, prompts, lockstep, store
        self.needs_buffers = needs_buffers
        self.device = model.get_input_embeddings().weight.device
        distinct: dict[tuple[int, ...], int] = {}
        self.first = [distinct.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]  # of equal ones
        # slot -> the first of the rows whose prompt's keys and values it holds
        self.held: list[int | None] = [None] * cache.window.rows
        # of logits, which nobody reads, as few as can be: chosen by a tensor, for of a slice, whose states lie apart,
        # torch multiplies each row with a copy of the lm_head
        self.first_logits = torch.zeros(1, dtype=torch.long, device=self.device)
        self.prefix = 0 if store is not None else _shared_prefix(prompts)
        self.has_prefix = self.prefix == 0
        self.most_tokens = prefill_budget(model, cache.window.rows, cache.window.slots)

    def admit(self, slots: list[int], rows: list[int]) -> None:
        """Has each of `slots` hold the prompt of its row."""
        fresh, donors = self._assign(slots, rows)
        fresh = [slot for slot in fresh if not self._restored(slot)]
        groups = self._groups(fresh)
        blank = self.needs_buffers and bool(slots) and not groups and not self.cache.layers[0].is_initialized
        forwards = len(groups) + (not self.has_prefix) + blank
        empty = self.lockstep.most(forwards) - forwards
        if not self.has_prefix:
            self._read([slots[0]], [self.prompts[rows[0]][: self.prefix]], 0)
            self._copy([slots[0]], list(range(len(self.held))), self.prefix)
            self.has_prefix = True
        for group in groups:
            self._read(group, [self._prompt(slot)[self.prefix : -1] for slot in group], self.prefix)
            if self.store is not None:
                for slot in group:
                    self.store.put(self._prompt(slot), self.cache.kept(slot, self._length(slot)))
        if blank:
            self._read([slots[0]], [[0]], 0)
        if donors:
            self._copy(list(donors.values()), list(donors), max(self._length(slot) for slot in donors))
        for _ in range(empty):
            self.idle()

    def move(self, source: int, target: int, written: int) -> None:
        """Moves a prompt and the `written` tokens after it to another slot."""
        self._copy([source], [target], self._length(source) + written)
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

    def _length(self, slot: int) -> int:
        return len(self._prompt(slot)) - 1

    def _restored(self, slot: int) -> bool:
        """Whether the slot's prompt was read before, in this rollout or an earlier one, and is in its cache now."""
        entry = None if self.store is None else self.store.get(self._prompt(slot))
        if entry is not None:
            self.cache.restore(slot, entry)
        return entry is not None

    def _assign(self, slots: list[int], rows: list[int]) -> tuple[list[int], dict[int, int]]:
        """Notes what the slots hold from now on; returns those to be read into, and the others -> whose copy."""
        holders = {held: slot for slot, held in enumerate(self.held) if slot not in slots}
        fresh, donors = [], {}
        for slot, prompt in zip(slots, [self.first[row] for row in rows]):
            if self.held[slot] == prompt:
                continue
            donor = holders.setdefault(prompt, slot)
            if donor == slot:
                fresh.append(slot)
            else:
                donors[slot] = donor
            self.held[slot] = prompt
        return fresh, donors

    def _groups(self, slots: list[int]) -> list[list[int]]:
        """Slots of similar prompt length together, none if there is nothing to read, each within `most_tokens`."""
        lengths = {slot: self._length(slot) - self.prefix for slot in slots}
        groups: list[list[int]] = []
        for slot in sorted((s for s in slots if lengths[s] > 0), key=lengths.__getitem__):
            if groups and (len(groups[-1]) + 1) * lengths[slot] <= self.most_tokens:
                groups[-1].append(slot)
            else:
                groups.append([slot])
        return groups

    def _read(self, slots: list[int], parts: list[list[int]], start: int) -> None:
        width = max(map(len, parts))
        ids = torch.tensor([part + [0] * (width - len(part)) for part in parts], device=self.device)
        self.cache.seek_prefill(torch.tensor(slots, device=self.device), start)
        positions = torch.arange(start, start + width, device=self.device).expand(len(parts), -1)
        self.model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=self.first_logits,
        )
        require_cache(self.model, self.cache)

    def _copy(self, source: list[int], target: list[int], length: int) -> None:
        if length:
            device = self.device
            self.cache.copy_rows(torch.tensor(source, device=device), torch.tensor(target, device=device), length)
