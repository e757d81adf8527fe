"""Drafts from the target's own hidden state: heads that look several tokens ahead. No second model is run.

The state from which the target's last token was chosen is known when that token is written; the heads predict further
tokens from it. A row has none before its first round, and drafts nothing there.
"""

from __future__ import annotations

import torch

from ..rules.speculative_sampling import RoundNoise
from ..runners.slots import Slots
from ..runners.support import base_model, text_config
from .source import Proposal, Texts


class HeadsDraft:
    """Each head's favorite token, as a [`DraftSource`].

    Args:
        model: the target, whose `lm_head` turns the heads' states into tokens.
        heads: a module with `horizon` H (the target's own head among them), `window` W and
            `ahead(states [A, W, D], count [A]) -> [A, H - 1, D]` (`lupi_trainer.MTPHeads`). A round drafts
            at most H - 1 tokens.

    Raises:
        ValueError: a horizon of 1, which looks nowhere ahead.

    Example:

    ```python
    >>> from lupi_trainer import MTPHeads
    >>> from lupi_trainer.speculative import HeadsDraft

    >>> heads = MTPHeads(horizon=3, hidden_size=teacher.config.hidden_size)
    >>> output = speculative_generate(teacher, HeadsDraft(teacher, heads), prompt_ids, max_new_tokens=8)
    ```
    """

    runner = None
    forwards = 0

    def __init__(self, model, heads):
        if heads.horizon < 2:
            raise ValueError("heads with a horizon of 1 have nothing to draft")
        self.lm_head, self.heads = base_model(model).get_output_embeddings(), heads
        self.vocab_size, self.hidden_size = text_config(model).vocab_size, text_config(model).hidden_size
        self.slots: Slots | None = None

    def _begin(self, slots: Slots) -> None:
        rows, weight = len(slots.n), self.lm_head.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        self.states = torch.zeros(rows, self.heads.window, self.hidden_size, dtype=dtype, device=slots.n.device)
        self.count = torch.zeros(rows, dtype=torch.long, device=slots.n.device)
        slots.track(self.states, lambda row: 0)
        slots.track(self.count, lambda row: 0)
        self.slots = slots

    def propose(self, slots: Slots, texts: Texts, gamma: int, noise: RoundNoise) -> Proposal:
        if self.slots is not slots:
            self._begin(slots)
        a, width = slots.used, min(gamma, self.heads.horizon - 1)
        if width == 0:
            return Proposal(slots.row.new_zeros(a, gamma), None, slots.row.new_zeros(a))
        # a positive scale and a soft cap of the logits do not change which is the largest
        states = self.heads.ahead(self.states[:a], self.count[:a])[:, :width]
        tokens = self.lm_head(states)[..., : self.vocab_size].argmax(-1)
        tokens = torch.nn.functional.pad(tokens, (0, gamma - width))
        return Proposal(tokens, None, (self.count[:a] > 0) * width)

    def see(self, slots: Slots, hidden: torch.Tensor, accepted: torch.Tensor) -> None:
        """Observes what the target's `lm_head` read, hidden [A, g + 1, D], and how many tokens were accepted, [A]."""
        a, window = slots.used, self.heads.window
        known = torch.cat([self.states[:a], hidden.to(self.states.dtype)], 1)
        last = accepted[:, None] + 1 + torch.arange(window, device=accepted.device)
        self.states[:a] = known.gather(1, last[..., None].expand(-1, -1, known.shape[2]))
        self.count[:a] = (self.count[:a] + accepted + 1).clamp(max=window)

    def observe(self, slots: Slots, gamma: int, accepted: torch.Tensor, full_match: bool) -> None:
        pass
