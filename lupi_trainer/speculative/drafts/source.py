"""Where drafted tokens come from. Whatever a source proposes, the text is the same; only the speed differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..rules.speculative_sampling import RoundNoise
from ..runners.runner import Runner
from ..runners.slots import Slots


@dataclass
class Texts:
    """Prompt and completion of every row, where the target is.

    tokens [rows, longest prompt + max_new_tokens + 1] int64, whose last column takes discarded tokens; lengths [rows],
    the prompts' tokens.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of_prompts(cls, prompts: list[list[int]], max_new_tokens: int, device: torch.device) -> Texts:
        """The texts before anything is written."""
        width = max(map(len, prompts)) + max_new_tokens + 1
        tokens = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=device)
        return cls(tokens, torch.tensor([len(prompt) for prompt in prompts], device=device))

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
    probabilities: torch.Tensor | None  # [A, g, V] float32, what each was drawn from; None: each had probability 1
    count: torch.Tensor | None = None  # [A] int64: only the first so many are proposals; None: all


class DraftSource(Protocol):
    """What the loop needs of a source of drafts.

    Example:

    ```python
    >>> from lupi_trainer.speculative.drafts.source import Proposal

    >>> class SayItAgain:
    ...     runner, forwards = None, 0
    ...
    ...     def propose(self, slots, texts, gamma, noise):
    ...         last = texts.at(slots.row[: slots.used], slots.n[: slots.used], back=0, width=1)  # [A, 1]
    ...         return Proposal(last.expand(-1, gamma), probabilities=None)
    ...
    ...     def observe(self, slots, gamma, accepted, full_match):
    ...         pass

    >>> output = speculative_generate(teacher, SayItAgain(), prompt_ids, max_new_tokens=8)
    ```
    """

    @property
    def runner(self) -> Runner | None:
        """Of a model, whose rows move with the slots."""

    @property
    def forwards(self) -> int:
        """How often a model was run so far, without the prefill."""

    def propose(self, slots: Slots, texts: Texts, gamma: int, noise: RoundNoise) -> Proposal:
        """Drafts `gamma` tokens for each slot in use."""

    def observe(self, slots: Slots, gamma: int, accepted: torch.Tensor, full_match: bool) -> None:
        """Observes how many of `gamma` tokens were accepted, [A]; `full_match`: all, in some row that goes on."""


def is_source(draft) -> bool:
    """Whether a draft is a source of drafts; else it is a model."""
    return hasattr(draft, "propose")
