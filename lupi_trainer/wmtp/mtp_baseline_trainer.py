"""Multi-token prediction without preference: every head counts the same."""

import torch

from ..losses.token_weights import uniform_weights
from .base_trainer import BaseWMTPTrainer
from .config import WEIGHING, WMTPConfig
from .weighted_loss import Batch


class MTPBaselineTrainer(BaseWMTPTrainer):
    """
    Trainer for plain multi-token prediction (arXiv 2404.19737): weights of one. See [`BaseWMTPTrainer`].

    Example:

    ```python
    >>> from lupi_trainer import MTPBaselineTrainer, WMTPConfig
    >>> from lupi_trainer.data.records import load_sft_data

    >>> trainer = MTPBaselineTrainer(
    ...     model="lab:student",
    ...     args=WMTPConfig("heads", horizon=4, freeze_trunk=True, max_steps=1, bf16=False, use_cpu=True),
    ...     train_dataset=load_sft_data("lab:common").select(range(8)),
    ... )
    >>> trainer.train()
    ```
    """

    model_tags = ["trl", "wmtp", "mtp-baseline"]
    method_name = "MTP"

    def unread_settings(self, args: WMTPConfig) -> tuple[str, ...]:
        return ("head_weighting", *WEIGHING)

    def compute_head_weights(self, batch: Batch) -> torch.Tensor:
        return uniform_weights(batch.has_target)
