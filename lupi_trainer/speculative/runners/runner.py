"""One model in a rollout: it admits prompts, reads what it is fed, drafts, and moves rows between slots.

A row sits in a slot. Its cache always holds everything but the row's last token, which is the first one to be fed
next; so a prompt is prefilled without its last token, and token i of the completion is fed at position `base + i + 1`.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from typing import Any

import torch

from ..rules.close_calls import sample_closely
from ..rules.noise import TEACHER, sample
from .attention import attends_by_length
from .cache import RaggedCache
from .graphs import Graphs, recorder_for
from .kept import Held, granted
from .lockstep import Alone, Lockstep
from .prefill import Prefill
from .prompt_store import PromptStore
from .replay import Replay
from .steps import any_shape, call, compiled_write, draft, read, span, write
from .support import (
    active,
    base_model,
    cache_argument,
    cache_kinds,
    keeps_states,
    require_cache,
    resolution,
    text_config,
    usable_positions,
)


ALONE = Alone()
_BUCKET = 64  # attention looks at a multiple of so many slots
_PAGE = 256  # slots behind the longest prompt with which a cache that may grow begins
_UNDIVIDED = 1024  # recorded, attention looks at all slots of a smaller cache; of a larger one, at three parts


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def compiled_size(size: int) -> int:
    """The slots of a compiled cache that holds `size`: two sizes between powers of two, for each is a graph."""
    return _up(size, max(_BUCKET, 1 << max(size.bit_length() - 2, 0)))


class Runner:
    """A model with a `RaggedCache` of `slots` rows for prompts of any length and completions of `max_new_tokens`."""

    def __init__(
        self,
        model,
        prompts: list[list[int]],
        slots: int,
        max_new_tokens: int,
        vocab_size: int,
        compile: bool = False,
        lockstep: Lockstep | Alone = ALONE,
        widest: int = 1,
        store: PromptStore | None = None,
        takes_back: bool = True,
        held: Held | None = None,
    ):
        """`widest`: the most tokens of a row in one call; `store`: of prompts that the model has read before;
        `takes_back`: False where no token that it reads is ever rejected; `held`: what an earlier runner left."""
        kinds = cache_kinds(text_config(model))
        if compile and keeps_states(model):
            compile = False
            warnings.warn(
                f"compile=True: {type(base_model(model)).__name__} runs without compilation: its recurrent states are "
                "copied and put back between the steps",
                RuntimeWarning,
            )
        self.model, self.vocab_size, self.compile, self.lockstep = model, vocab_size, compile, lockstep
        self.device = model.get_input_embeddings().weight.device
        self.resolution = resolution(model)
        self.prompts = prompts
        self.by_length, self.widest = attends_by_length(model), widest
        self.size = max(map(len, prompts)) + max_new_tokens
        if compile and not self.by_length:  # so that batches of similar length share their graphs
            self.size = min(compiled_size(self.size), usable_positions(model) or sys.maxsize)
        # a kernel counts the slots that a row's last query sees, be it one that is not kept: they all must exist
        beyond, rows = widest - 1 if self.by_length else 0, slots
        recorder = recorder_for(model) if compile and not lockstep.together else None
        if held is not None and (recorder is None or held.granted != granted(model, vocab_size, beyond)):
            held = None
        if held is not None:
            rows, self.size = max(rows, held.cache.window.rows), max(self.size, held.cache.positions)
            if (held.cache.window.rows, held.cache.positions) != (rows, self.size):
                held = None  # it is too small
            else:
                held.cache.zero()
        self.capacity = self.size + beyond
        # graphs and generated code hold addresses and sizes; without them, memory follows what is written
        begun = self.capacity if compile else min(_up(max(map(len, prompts)) + _PAGE, _BUCKET), self.capacity)
        self.cache = RaggedCache(kinds, rows, begun, self.size, cache_argument(model)) if held is None else held.cache
        self.replay = Replay(self.cache, takes_back, model) if self.cache.recurrent else None
        self.base = torch.zeros(slots, dtype=torch.long, device=self.device)  # prompt length - 1
        self.prefill = Prefill(model, self.cache, prompts, compile, lockstep, store, self.by_length, self.capacity)
        self.forwards = 0
        self.graphs = Graphs(recorder) if held is None else held.graphs

    @property
    def recorded(self) -> bool:
        """Whether its calls are recorded, each for the shapes that it has."""
        return self.graphs.recorder is not None

    @property
    def least_batch(self) -> int:
        """The smallest batch that needs no graph of its own."""
        return len(self.base) if self.recorded else 2 if self.compile else 0

    def admit(self, slots: list[int], rows: list[int]) -> None:
        """Makes the slots ready to continue the prompts `rows`; equal prompts and the common prefix are read once."""
        for slot, row in zip(slots, rows):
            self.base[slot] = len(self.prompts[row]) - 1
        self.prefill.admit(slots, rows)
        if self.replay is not None:
            self.replay.begin(slots)

    def read(self, tokens: torch.Tensor, written: torch.Tensor, longest: int, keep_hidden: bool = False):
        """tokens [A, Q] of the first A slots -> logits [A, Q, V] float32, what lm_head read [A, Q, H] or None.

        The first of `tokens` is fed at position base + `written` [A]; `longest` is the largest such position, as the
        host knows it (at least; of a single row, exactly).
        """
        if tokens.shape[1] > self.widest and self.by_length:
            raise ValueError(f"{tokens.shape[1]} tokens a row, and the runner was made for {self.widest}")

        def run(model, seen, tokens, offsets):
            fed = tokens, offsets, seen, self.vocab_size
            return call(read, model, self.cache, *fed, keep_hidden, compile=self.compile)

        if self.replay is not None:
            self.replay.feed(tokens)
        if not self.prefill.singly:
            self.forwards += 1
            return self._call(run, (read, keep_hidden), longest, tokens.shape[1], tokens, written)
        self.forwards += tokens.shape[1]
        kind, each = (read, keep_hidden), enumerate(tokens.split(1, 1))
        parts = [self._call(run, kind, longest + i, 1, token, written + i) for i, token in each]
        logits, hidden = zip(*parts)
        return torch.cat(logits, 1), torch.cat(hidden, 1) if keep_hidden else None

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """tokens [A, 1] -> the next `gamma` tokens of each row [A, gamma], drawn with the noise of `keys` [A].

        Also returns which of them came from a distribution [A, gamma] bool, which were close calls [A, gamma] bool
        (None where the model computes in float32), and, with `keep_logits`, the logits of `rows` [P, gamma, V] (None:
        of all), else None.
        """
        at_once = self.compile and not self.recorded and self.device.type == "cpu"
        step = compiled_write if self.compile else write
        in_loop = None if self.compile else rows  # a graph keeps all rows, since the wanted ones change
        if self.replay is not None and self.replay.copies_steps(len(tokens), gamma):
            step = self.replay.copying(step)

        def run(model, seen, tokens, offsets, keys, written):
            fed = tokens, offsets, seen, self.vocab_size, span(gamma) if at_once else gamma
            drawn = temperature, keys, written, self.resolution
            return call(draft, model, self.cache, *fed, *drawn, keep_logits, in_loop, step, compile=at_once)[:4]

        self.forwards += gamma
        kind = draft, gamma, keep_logits, temperature
        if self.replay is not None:
            self.replay.feed(tokens)
        drafts, valid, close, logits = self._call(run, kind, longest, gamma, tokens, written, keys, written)
        if self.replay is not None:
            self.replay.feed(drafts[:, :-1])
        return drafts, valid, close, logits[rows] if self.compile and rows is not None else logits

    def draw(
        self, logits, at, temperature: float, keys, positions, wanted
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """logits [A, Q, V], at [A] -> the teacher's token [A] at place `at`; `wanted` [A]: where it counts.

        Also returns which were close calls [A] bool; None where the model computes in float32.
        """
        drawn = logits[torch.arange(len(at), device=at.device), at], temperature, keys, positions, TEACHER
        return sample_closely(*drawn, self.resolution) if self.resolution else (sample(*drawn), None)

    def settle(self, written: dict[int, int]) -> None:
        """Ends a round after which the running rows hold so many tokens: slot -> tokens behind its prompt."""
        if self.replay is None:
            return
        again = self.replay.take_back(written)
        for slots, tokens in again:
            self.read_again(slots, tokens)
        for _ in range(self.lockstep.most(len(again)) - len(again)):
            self.idle()

    def read_again(self, slots: list[int], tokens: torch.Tensor) -> None:
        """tokens [R, c] are read by the given slots, which have read all that is before them; for recurrent states."""
        assert self.replay is not None
        starts = [self.prefill.length(slot) + self.replay.take_up(slot, tokens.shape[1]) for slot in slots]
        offsets, rows = (self.cache.index(numbers, self.device) for numbers in (starts, slots))
        self._make_room(needed := max(starts) + tokens.shape[1])
        visible = self._visible(needed)
        for part in tokens.split(1 if self.prefill.singly else tokens.shape[1], 1):
            self.forwards += 1
            with active(self.model) as model:
                positions = self.cache.seek(offsets, part.shape[1], visible, rows)
                first = self.prefill.first_logits
                model(input_ids=part, **self.cache.arguments(positions), logits_to_keep=first)
                self.cache.leave()
            offsets = offsets + part.shape[1]

    def move(self, source: int, target: int, written: int) -> None:
        """Moves a row of `written` tokens to another slot, so that the slots in use stay the first ones."""
        self.prefill.move(source, target, written)
        self.base[target] = self.base[source]
        if self.replay is not None:
            self.replay.move(source, target)

    def clear(self, slot: int, length: int | None = None) -> None:
        """Forgets what a slot holds beyond its first `length` tokens, or all but the common prefix."""
        self.prefill.clear(slot, length)

    def idle(self) -> None:
        """A forward of one token that leaves no trace."""
        self.prefill.idle()

    def _call(self, function, kind: tuple, longest: int, width: int, tokens, written, *tensors):
        """Runs `function`, which feeds `width` tokens a row; `kind` is all that the tensors do not tell of it."""
        self._make_room(longest + width, len(tokens))
        visible = self._visible(longest + width)
        # a kernel takes lengths, be it of one row; in lockstep a row may be fed beyond its limit, where `seek` alone
        # knows its place
        alone = len(tokens) == 1 and not (self.compile or self.by_length) and longest + width <= self.size
        offsets: Any = longest if alone else self.base[: len(tokens)] + written
        seen = visible
        if self.compile and not self.recorded:
            any_shape(tokens, offsets, *tensors)
            seen = span(visible)
        with active(self.model) as model:
            out = self.graphs(partial(function, model, seen), (*kind, visible), tokens, offsets, *tensors)
        require_cache(self.model, self.cache)
        return out

    def _make_room(self, needed: int, rows: int | None = None) -> None:
        """Has the cache hold `needed` slots of a row, and a quarter more, so that little is copied again and again.

        `rows`: how many are in use; the others have ended for good, for a row that waits would be in their place.
        """
        held = self.cache.window
        if held.slots < min(needed, self.capacity):
            self.cache.grow(min(_up(needed + needed // 4, _BUCKET), self.capacity), rows or held.rows)

    def _visible(self, needed: int) -> int:
        slots = self.cache.window.slots
        if self.by_length:  # a kernel looks no farther than it must
            return slots
        if not self.recorded:
            return min(_up(needed, _BUCKET), slots)
        parts = (_up(self.size // share, _BUCKET) for share in (4, 2) if self.size > _UNDIVIDED)
        return next((part for part in parts if needed <= part), self.size)
