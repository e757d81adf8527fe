"""Losses and entropies as means over tokens: of all since the last log, or of a complete evaluation set."""

from typing import Any

import torch

from ..training.private import DistillationHooks


class TokenMeans(DistillationHooks):
    """For [`LUPISKDTrainer`]: `entropy` and the validation loss do not depend on how records are put into batches.

    The parents log means over batches, in each of which a token counts for what the batch's other texts leave it.
    """

    model: Any
    token_sums: dict[str, torch.Tensor | None]
    """Of "train" and of "eval": [3] float64, loss and entropy in nats, and tokens, of this process; of "gold",
    cross-entropy, 0, and tokens of answers."""
    rows_evaluated: dict[int, int] | None = None
    """During an evaluation, how often each `row_id` came in any of its batches: copies have noise of their own."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.token_sums = {"train": None, "eval": None, "gold": None}
        super().__init__(*args, **kwargs)

    def _add(self, mode: str, *sums: torch.Tensor) -> None:
        new, known = torch.stack([x.detach().double() for x in sums]), self.token_sums[mode]
        self.token_sums[mode] = new if known is None else known + new

    def _take_means(self, mode: str) -> tuple[float, float] | None:
        """(loss, entropy) over the tokens of all processes since the last call; `None` where there were none."""
        sums, self.token_sums[mode] = self.token_sums[mode], None
        if sums is None:
            return None
        loss, entropy, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
        return (loss / tokens, entropy / tokens) if tokens else None

    def distillation_loss(self, student, batch, count):
        if self.model.training:
            loss, entropy, tokens = super().distillation_loss(student, batch, count)
            self._add("train", torch.zeros_like(loss), entropy, tokens)
            return loss, entropy, tokens
        mask = batch["completion_mask"] * batch["counted"][:, None]
        loss, entropy, tokens = super().distillation_loss(student, batch | {"completion_mask": mask}, 1)
        self._add("eval", loss, entropy, tokens)
        return loss / tokens.clamp(min=1), entropy, tokens

    def add_gold(self, loss: torch.Tensor, tokens: torch.Tensor) -> None:
        self._add("gold", loss, torch.zeros_like(loss), tokens)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self.token_sums["eval"], self.rows_evaluated = None, {}
        self.metric_lists["eval"].clear()  # what a prediction has left
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self.rows_evaluated = None
        if (means := self._take_means("eval")) is None:
            return output
        self.metric_lists["eval"]["entropy"] = [means[1]]
        return output._replace(metrics={**(output.metrics or {}), f"{metric_key_prefix}_loss": means[0]})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (means := self._take_means("train")) is not None:
            self.metric_lists["train"]["entropy"] = [means[1]]
        if "loss" in logs and (means := self._take_means("gold")) is not None:
            self.metric_lists["train"]["loss/gold"] = [means[0]]
        super().log(logs, start_time)
