"""A loss that is computed inside the model's own forward, and figures of it that are summed over rows and logged."""

from typing import Any

import torch

from ..models.backbone import NOT_READ
from .given_data import GivenTexts
from .private import call_in_forward


class SummedLoss(GivenTexts):
    """Mix-in for a [`~trl.SFTTrainer`] with a loss of its own.

    A subclass has `_loss_and_sums`; `take_sums` gives it what was summed since the last call.
    """

    args: Any
    model: Any
    aux_loss_enabled: bool

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.aux_loss_enabled:
            raise ValueError("the load-balancing loss of this model is not supported: set `router_aux_loss_coef: 0`")
        self.model_accepts_loss_kwargs = True  # the loss is scaled by what all accumulated batches count
        self._sums: dict[str, torch.Tensor | None] = {"train": None, "eval": None}

    def _loss_and_sums(self, model, inputs, num_items_in_batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, scalar with a gradient; [B, F] figures of every row, without one), inside the model's own forward."""
        raise NotImplementedError

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inner = self.accelerator.unwrap_model(model)
        # through the wrapper's forward, which DDP, FSDP and DeepSpeed see, and past accelerate's own autocast
        with self.accelerator.autocast():
            loss, sums = call_in_forward(model, inner, self._loss_and_sums, inner, inputs, num_items_in_batch)
        mode = "train" if self.model.training else "eval"
        # a last evaluation batch is filled up with records that were read already: those are dropped here
        sums = sums.sum(dim=0) if mode == "train" else self.accelerator.gather_for_metrics(sums).sum(dim=0)
        known = self._sums[mode]
        self._sums[mode] = sums if known is None else known.to(sums) + sums
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # num_items_in_batch counts what all processes have, and gradients are averaged over them
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if return_outputs:
            with torch.no_grad():
                names = inputs.keys() - set(NOT_READ)
                return loss, model(**{name: inputs[name] for name in names}, use_cache=False)
        return loss

    def take_sums(self, mode: str) -> torch.Tensor | None:
        """[F] float64, summed over all rows and processes since the last call; `None` where there were none."""
        sums, self._sums[mode] = self._sums[mode], None
        if sums is None or mode == "eval":  # which is gathered already, batch by batch
            return None if sums is None else sums.double()
        return self.accelerator.reduce(sums.double(), reduction="sum")
