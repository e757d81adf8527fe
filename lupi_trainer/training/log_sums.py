"""What a resumed run of texts logs beside its losses: the unbroken one's figures and number of tokens."""

import logging
from typing import Any

import torch

from .loss_totals import LossTotals
from .private import SFTHooks


logger = logging.getLogger(__name__)


class LogSums(LossTotals, SFTHooks):
    """[`LossTotals`] for a [`~trl.SFTTrainer`]: a checkpoint also holds the tokens that were read, and what was
    measured since the last log."""

    @property
    def _own_sums(self) -> dict[str, torch.Tensor | None]:
        """Of a trainer with a loss of its own, see `SummedLoss`; empty of others."""
        return getattr(self, "_sums", {})

    def totals(self) -> dict[str, Any]:
        sums = self._own_sums.get("train")
        return super().totals() | {
            "process": self.args.process_index,
            "tokens_read": self.tokens_read,
            "metrics": self.metric_lists["train"],
            "sums": None if sums is None else sums.tolist(),
        }

    def restore_totals(self, totals: dict[str, Any]) -> None:
        super().restore_totals(totals)
        if "tokens_read" not in totals:
            logger.warning("the checkpoint is of an older version: tokens are counted from here on.")
            return
        self.tokens_read = totals["tokens_read"]
        if totals["process"] != self.args.process_index:
            return  # what another one has measured is its own to log
        self.metric_lists["train"].clear()
        self.metric_lists["train"].update(totals["metrics"])
        self._own_sums["train"] = None if totals["sums"] is None else torch.tensor(totals["sums"])
