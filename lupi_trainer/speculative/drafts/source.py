"""Where drafted tokens come from. Whatever a source proposes, the text is the same; only the speed differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..rules.logits import is_distribution
from ..rules.speculative_sampling import RoundNoise, Sampling
from ..runners.runner import Runner
from ..runners.slots import Slots


@dataclass
class Texts:
    """Prompt and completion of every row, where the target is.

    tokens [rows, longest prompt + max_new_tokens + 1] int64, of which the last column is a bin; lengths [rows], the
    prompts' tokens.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor

    def at(self, row: torch.Tensor, n: torch.Tensor, back: torch.Tensor | int, width: int) -> torch.Tensor:
        """Returns [A, width]: tokens of rows `row` [A] with `n` [A] written, from `back` before the last one on."""
        first = self.lengths[row] + n - 1 - back
        return self.tokens[row].gather(1, first[:, None] + torch.arange(width, device=row.device))

    def seen(self, row: torch.Tensor, n: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Returns [A, vocab_size] bool: the tokens that occur in the text so far."""
        tokens = self.tokens[row]
        known = torch.arange(tokens.shape[1], device=row.device) < (self.lengths[row] + n)[:, None]
        seen = torch.zeros(len(row), vocab_size + 1, dtype=torch.bool, device=row.device)
        return seen.scatter_(1, tokens.where(known, vocab_size), True)[:, :vocab_size]


@dataclass
class Proposal:
    """What a source drafted for A rows."""

    tokens: torch.Tensor  # [A, g] int64
    chances: torch.Tensor | None  # [A, g, V] float32, what each was drawn from; None: each was the only choice
    count: torch.Tensor | None = None  # [A] int64: only the first so many are proposals; None: all


class DraftSource(Protocol):
    """What the loop needs of a source of drafts."""

    runner: Runner | None  # a model's, whose rows move with the slots

    @property
    def forwards(self) -> int:
        """How often a model was run so far, without the prefill."""

    def propose(self, slots: Slots, texts: Texts, gamma: int, noise: RoundNoise) -> Proposal:
        """Drafts `gamma` tokens for each slot in use."""

    def observe(self, slots: Slots, gamma: int, accepted: torch.Tensor, whole: bool) -> None:
        """Learns how many of `gamma` tokens stand, [A]; `whole`: all of them in some row that goes on."""


class DraftModel:
    """A small language model drafts.

    After a round in which every drafted token stood, its cache lacks the last of them, which it never read: the next
    round feeds such a row two tokens, the lacking one and the last.
    """

    def __init__(self, runner: Runner, vocab_size: int, sampling: Sampling):
        self.runner, self.vocab_size, self.sampling = runner, vocab_size, sampling
        self.behind = torch.zeros_like(runner.base)  # [slots]: tokens that the cache lacks; moves with the rows
        self.any_behind = self.caught_up = False

    @property
    def forwards(self) -> int:
        return self.runner.forwards

    def propose(self, slots: Slots, texts: Texts, gamma: int, noise: RoundNoise) -> Proposal:
        a, home = slots.used, slots.n.device
        n, row, longest = slots.n[:a], slots.row[:a], slots.longest(self.runner)
        seen = texts.seen(row, n, self.vocab_size) if self.sampling.repetition_penalty != 1 else None
        tokens, kept, sound = [], [], []
        self.caught_up = gamma == 0 and self.any_behind
        if self.caught_up:  # a cache must not fall two tokens behind
            self._first(texts, row, n, longest)
        for i in range(gamma):
            logits = self._first(texts, row, n, longest) if i == 0 else self._read(tokens[-1], n + i, longest + i)
            logits = self.sampling.penalize(self._widened(logits.to(home)), seen)
            sound.append(is_distribution(logits))
            if self.sampling.temperature == 0:
                token = logits.argmax(-1)
            else:
                kept.append(self.sampling.chances(logits))
                token = noise.draft(kept[-1], i)
            tokens.append(token[:, None])
            if seen is not None:
                seen = seen.scatter(1, token[:, None], True)
        drafted = torch.cat(tokens, 1) if tokens else row.new_zeros(a, 0)
        # nothing is proposed from where the draft's numbers broke
        count = torch.stack(sound, 1).long().cumprod(1).sum(1) if sound else None
        return Proposal(drafted, torch.stack(kept, 1) if kept else None, count)

    def _first(self, texts: Texts, row: torch.Tensor, n: torch.Tensor, longest: int) -> torch.Tensor:
        if not (self.any_behind or self.runner.compile):
            return self._read(texts.at(row, n, 0, 1), n, longest)
        # a row that is not behind is fed its last token and, after it, one that is overwritten before anyone sees it
        behind = self.behind[: len(row)]
        fed = texts.at(row, n, behind.to(row.device), 2)
        if len(row) == 1 and not self.runner.compile:
            longest -= 1  # it is behind, or it would not be here: the place of a single row must be exact
        return self._read(fed, n.to(behind.device) - behind, longest, behind)

    def _read(self, tokens, written, longest: int, at=None) -> torch.Tensor:
        """tokens [A, Q] at `written` [A] -> logits [A, V] of the last, or of token `at` [A]."""
        known = self.runner.model.get_input_embeddings().weight.shape[0]
        # a token that only the target has is read as another one: a worse draft, the same text
        tokens = tokens.to(self.runner.device).clamp(max=known - 1)
        logits, _ = self.runner.read(tokens, written.to(self.runner.device), longest)
        return logits[:, -1] if at is None else logits[torch.arange(len(at), device=at.device), at]

    def _widened(self, logits: torch.Tensor) -> torch.Tensor:
        lacking = self.vocab_size - logits.shape[-1]
        return torch.nn.functional.pad(logits, (0, lacking), value=-torch.inf) if lacking else logits

    def observe(self, slots: Slots, gamma: int, accepted: torch.Tensor, whole: bool) -> None:
        lacks = (accepted == gamma) & (not self.caught_up)
        self.behind[: slots.used] = lacks.long().to(self.behind.device)
        self.any_behind = whole and not self.caught_up
