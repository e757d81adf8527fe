"""Numbers that the host knows, as tensors: a device makes them itself, for each that is copied there is waited for."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Numbers:
    """0 to `most` - 1 on one device, and tensors of some of them."""

    def __init__(self, most: int, device: torch.device):
        self.all = torch.arange(most, device=device)

    def of(self, chosen: Sequence[int]) -> torch.Tensor:
        """R numbers below `most` -> [R] int64, which nobody may write to."""
        chosen = list(chosen)
        if chosen and chosen != list(range(chosen[0], chosen[0] + len(chosen))):
            return torch.cat([self.all[number : number + 1] for number in chosen])
        return self.all[chosen[0] : chosen[0] + len(chosen)] if chosen else self.all[:0]
