"""Drafts from the text itself: what followed the last few tokens when they occurred before.

No second model is needed. It pays where the completion repeats the prompt (summaries, corrections, code), and costs
little elsewhere: a row that finds nothing drafts nothing. The idea is Saxena's prompt lookup decoding (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..rules.speculative_sampling import RoundNoise
from ..runners.slots import Slots
from .source import Proposal, Texts


@dataclass
class PromptLookup:
    """Proposes the continuation of the latest earlier occurrence of the last `longest` tokens, or of fewer.

    The longest n-gram that occurs wins, down to `shortest`.

    Args:
        longest: tokens of the n-gram that is looked up first.
        shortest: tokens of the shortest one.

    Raises:
        ValueError: not 1 <= `shortest` <= `longest`.

    Example:

    ```python
    >>> from lupi_trainer.speculative import PromptLookup

    >>> output = speculative_generate(teacher, PromptLookup(longest=3), prompt_ids, max_new_tokens=8)
    ```
    """

    longest: int = 3
    shortest: int = 1

    runner = None
    forwards = 0

    def __post_init__(self):
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"1 <= shortest <= longest must hold, got {self.shortest} and {self.longest}")

    def propose(self, slots: Slots, texts: Texts, gamma: int, noise: RoundNoise) -> Proposal:
        a = slots.used
        n, row = slots.n[:a], slots.row[:a]
        tokens, known = texts.tokens[row], texts.lengths[row] + n  # [A, L], [A]
        width, device = tokens.shape[1], row.device
        places = torch.arange(width, device=device)
        matches = torch.ones_like(tokens, dtype=torch.bool)  # [A, L]: the last i tokens also end at this place
        matches &= places < known[:, None] - 1
        start = known.clone()  # [A]: the place after the match; `known` where there is none
        for i in range(min(self.longest, width - 1)):
            last = tokens.gather(1, (known - 1 - i).clamp(min=0)[:, None])
            shifted = torch.roll(tokens, i, 1)
            matches = matches & (shifted == last) & (places >= i)
            found = matches.any(1) & (known > i + 1)
            if i + 1 >= self.shortest:
                latest = width - 1 - matches.flip(1).long().argmax(1)
                start = torch.where(found, latest + 1, start)
        steps = start[:, None] + torch.arange(gamma, device=device)
        drafted = tokens.gather(1, steps.clamp(max=width - 1))
        return Proposal(drafted, None, (known - start).clamp(max=gamma))

    def observe(self, slots: Slots, gamma: int, accepted: torch.Tensor, full_match: bool) -> None:
        pass
