"""An evaluation of texts whose figures are means over the labeled tokens of the set, whatever its batches are."""

from typing import Any

import torch

from .private import SFTHooks


MEANS = ("entropy", "mean_token_accuracy")  # which the parent logs as means over batches


class EvaluatedTokens(SFTHooks):
    """For a [`~trl.SFTTrainer`] with the loss of its parent, which is a mean over the tokens of a batch."""

    model: Any
    _batches: list[torch.Tensor] | None = None  # during an evaluation: [2] sum of losses and tokens, of all processes

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self._batches is None or self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        counted = self.counted_rows(len(inputs["labels"]))
        inputs = {**inputs, "labels": inputs["labels"].masked_fill(~counted[:, None], -100)}
        tokens = (inputs["labels"][:, 1:] != -100).sum()
        output = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = (output[0] if return_outputs else output).detach().double()
        sums = torch.stack([loss * tokens, tokens.double()])
        self._batches.append(self.accelerator.gather(sums[None]).sum(dim=0))
        return output

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any):
        self._batches = batches = []
        self.metric_lists["eval"].clear()  # what a prediction has left
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self._batches = None
        if not batches:
            return output
        losses, tokens = torch.stack(batches).unbind(dim=1)
        total = tokens.sum().clamp(min=1)
        for name in MEANS:
            values = torch.tensor(self.metric_lists["eval"][name], dtype=tokens.dtype, device=tokens.device)
            self.metric_lists["eval"][name] = [((values * tokens).sum() / total).item()]
        loss = (losses.sum() / total).item()
        return output._replace(metrics={**(output.metrics or {}), f"{metric_key_prefix}_loss": loss})
