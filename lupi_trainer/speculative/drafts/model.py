"""Drafts from a smaller language model with the target's tokenizer."""

from __future__ import annotations

import torch

from ..rules.logits import is_distribution
from ..rules.speculative_sampling import RoundNoise, Sampling
from ..runners.runner import Runner
from ..runners.slots import Slots
from .source import Proposal, Texts


class DraftModel:
    """A small language model drafts.

    After a fully accepted round its cache lacks the last drafted token, which it never read: the next round feeds such
    a row two tokens, the missing one and the last.
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
        tokens, probabilities, valid = [], [], []
        if self.any_behind and self.runner.replay is not None:
            self._catch_up(texts, row, n)
        self.caught_up = gamma == 0 and self.any_behind
        if self.caught_up:  # a cache must not fall two tokens behind
            self._first(texts, row, n, longest)
        for i in range(gamma):
            logits = self._first(texts, row, n, longest) if i == 0 else self._read(tokens[-1], n + i, longest + i)
            logits = self.sampling.penalize(self._widened(logits.to(home)), seen)
            valid.append(is_distribution(logits))
            if self.sampling.temperature == 0:
                token = logits.argmax(-1)
            else:
                probabilities.append(self.sampling.probabilities(logits))
                token = noise.draft(probabilities[-1], i)
            tokens.append(token[:, None])
            if seen is not None:
                seen = seen.scatter(1, token[:, None], True)
        drafted = torch.cat(tokens, 1) if tokens else row.new_zeros(a, 0)
        # nothing is proposed from where the draft's logits are no distribution
        count = torch.stack(valid, 1).long().cumprod(1).sum(1) if valid else None
        return Proposal(drafted, torch.stack(probabilities, 1) if probabilities else None, count)

    def _catch_up(self, texts: Texts, row: torch.Tensor, n: torch.Tensor) -> None:
        """Rows that are behind read their missing token alone: what the others would read beside them would stay."""
        behind = self.behind[: len(row)].nonzero()[:, 0]
        at = behind.to(row.device)
        self.runner.read_again(behind.tolist(), self._known(texts.at(row[at], n[at], 1, 1)))
        self.behind.zero_()
        self.any_behind = False

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
        logits, _ = self.runner.read(self._known(tokens), written.to(self.runner.device), longest)
        return logits[:, -1] if at is None else logits[torch.arange(len(at), device=at.device), at]

    def _known(self, tokens: torch.Tensor) -> torch.Tensor:
        """A token that only the target has is read as another one: a worse draft, the same text."""
        known = self.runner.model.get_input_embeddings().weight.shape[0]
        return tokens.to(self.runner.device).clamp(max=known - 1)

    def _widened(self, logits: torch.Tensor) -> torch.Tensor:
        missing = self.vocab_size - logits.shape[-1]
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def observe(self, slots: Slots, gamma: int, accepted: torch.Tensor, full_match: bool) -> None:
        lacks = (accepted == gamma) & (not self.caught_up)
        self.behind[: slots.used] = lacks.long().to(self.behind.device)
        self.any_behind = full_match and not self.caught_up
