"""What a round did to each row, by name, and how it is read from the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Generic, Protocol, TypeVar

import torch


Number = TypeVar("Number", torch.Tensor, int)


@dataclass(frozen=True)
class Report(Generic[Number]):
    """What a round did: of the A slots in use, tensors [A] of integers or booleans; of one of them, ints."""

    drafted: Number  # drafted tokens that had a place in the row
    accepted: Number  # those that were accepted
    rejected: Number  # 1: the target wrote a token in place of a drafted one
    committed: Number  # tokens written
    remaining: Number  # tokens that the row may still write; 0: it has ended
    broken: Number  # where the row was cut short: 1 or 2, as draft or target had no distribution for its next token
    invalid: Number  # 1: one of them had none at some place, be it a discarded one

    def read(self) -> list[Report[int]]:
        """The round's one question to the device; a report for each slot."""
        columns = torch.stack([getattr(self, field.name).long() for field in fields(self)], 1)
        return [Report(*row) for row in columns.tolist()]


class Stats(Protocol):
    """Counts over all rounds."""

    def count_round(self, gamma: int, reports: Mapping[int, Report[int]], seconds: float) -> None:
        """Adds a round: what it did to each running row, by the row's number, and how long it took."""
