"""Multi-token prediction without preference: every head counts the same."""

import textwrap

import torch

from ..token_weights import uniform_weights
from .base_trainer import BaseWMTPTrainer
from .weighted_loss import Batch


class MTPBaselineTrainer(BaseWMTPTrainer):
    """
    Trainer for plain multi-token prediction (arXiv 2404.19737): weights of one. See [`BaseWMTPTrainer`].

    Example:

    ```python
    >>> from lupi_trainer import MTPBaselineTrainer, WMTPConfig
    >>> from lupi_trainer.data import load_sft_data

    >>> trainer = MTPBaselineTrainer(
    ...     model="lab:student",
    ...     args=WMTPConfig("heads", horizon=4, freeze_trunk=True),
    ...     train_dataset=load_sft_data("lab:common"),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "wmtp", "mtp-baseline"]
    _name = "MTP"
    _paper = {
        "title": "Better & Faster Large Language Models via Multi-token Prediction",
        "id": "2404.19737",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{gloeckle2024better,
                title        = {{Better \\& Faster Large Language Models via Multi-token Prediction}},
                author       = {Fabian Gloeckle and Badr Youbi Idrissi and Baptiste Rozi{\\`e}re and David Lopez-Paz and Gabriel Synnaeve},
                year         = 2024,
                booktitle    = {Forty-first International Conference on Machine Learning, {ICML} 2024},
            }"""),  # noqa: E501
    }

    def compute_head_weights(self, batch: Batch) -> torch.Tensor:
        return uniform_weights(batch.has_target, batch.hidden.dtype)
