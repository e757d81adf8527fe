"""Weights from a reference model: heads and tokens count by how far the model is from it."""

import torch
from torch import nn

from ..losses.token_weights import rho1_weights
from ..publishing.papers import RHO_1
from ..training.settings import require_config
from .base_trainer import BaseWMTPTrainer
from .config import CRITIC, WMTPConfig
from .reference import load_reference, require_reference
from .weighted_loss import Batch


class Rho1WMTPTrainer(BaseWMTPTrainer):
    """
    Trainer for multi-token prediction weighted by a reference model, after [Rho-1](https://huggingface.co/papers/2404.07965).

    The weights are `softmax(|CE_ref - CE_k| / 0.7)` over the heads of a position, where the reference's next-token
    cross-entropy is that of the token which the head predicts
    ([`~lupi_trainer.losses.token_weights.rho1_weights`]; options: signed difference, weights over tokens, top-k
    selection). The reference reads each batch once.

    A softmax over heads makes no *token* count less: it moves weight between the heads of a position, mostly to the
    far ones, whose loss is further from that of a reference that has read more. `rho1_over="token"` with
    `rho1_score="signed"` and `rho1_select="top"` is the selection of the paper.

    Args:
        reference_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The reference, frozen, of the same vocabulary; `args.reference_model_name_or_path` if omitted.
        model, args, heads and everything else: as in [`BaseWMTPTrainer`].

    Example:

    ```python
    >>> from lupi_trainer import Rho1WMTPTrainer, WMTPConfig
    >>> from lupi_trainer.data.records import load_sft_data

    >>> trainer = Rho1WMTPTrainer(
    ...     model="lab:student",
    ...     reference_model="lab:teacher",
    ...     args=WMTPConfig("heads", rho1_score="signed", max_steps=1, bf16=False, use_cpu=True),
    ...     train_dataset=load_sft_data("lab:common").select(range(8)),
    ... )
    >>> trainer.train()
    ```
    """

    model_tags = ["trl", "wmtp", "rho1-wmtp"]
    method_name = "Rho-1 WMTP"
    _weights_paper = RHO_1

    def __init__(
        self,
        model: "str | nn.Module",
        reference_model: str | nn.Module | None = None,
        args: WMTPConfig | None = None,
        **kwargs,
    ):
        require_config(args, WMTPConfig)
        if args is None or args.head_weighting != "uniform":
            require_reference(reference_model, args, model)
        super().__init__(model, args, **kwargs)
        self.reference = None
        if self.args.head_weighting != "uniform":
            self.reference = load_reference(reference_model, self.args, self.model, self.processing_class)
            self.limit_tokens(self.reference.known_tokens)

    def unread_settings(self, args: WMTPConfig) -> tuple[str, ...]:
        return CRITIC if args.rho1_select == "softmax" else ("head_weight_temperature", *CRITIC)

    @property
    def reduction(self) -> str:
        return "token" if self.args.rho1_over == "token" else "position"

    def compute_head_weights(self, batch: Batch) -> torch.Tensor:
        assert self.reference is not None  # `uniform` weights alone need none, and are not computed here
        return rho1_weights(
            batch.ce,
            self.reference.next_token_ce(batch.inputs, batch.targets[..., 0]),
            batch.has_target,
            temperature=self.args.head_weight_temperature,
            score=self.args.rho1_score,
            over=self.args.rho1_over,
            select=self.args.rho1_select,
            share=self.args.rho1_share,
            segment_ids=batch.segments,
        )
