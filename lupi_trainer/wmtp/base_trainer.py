"""What every algorithm of weighted multi-token prediction shares: set-up, loss, metrics, checkpoints."""

import logging
from typing import Any

import torch
from transformers import AutoTokenizer
from trl import SFTTrainer

from ..losses.reference import shift_targets
from ..losses.token_weights import shuffle_in_texts, uniform_weights
from ..models.chat_template import adopt_chat_template
from ..models.head_check import check_head
from ..models.lm_head import gathered_for_reading
from ..models.loading import repository_options, resolve_student
from ..models.mtp_heads import MTPHeads
from ..publishing.papers import MEDUSA, MULTI_TOKEN, Paper
from ..publishing.trainer import Published
from ..training.checkpoints import SealedCheckpoints
from ..training.finite_steps import FiniteSteps
from ..training.log_sums import LogSums
from ..training.settings import require_config, say_unread
from ..training.summed_loss import SummedLoss
from .config import WEIGHING, WMTPConfig
from .drafting import draft_metrics
from .heads import attach_heads, starting_heads
from .weighted_loss import Batch, counted, means, row_sums, text_segments, weighted_loss


logger = logging.getLogger(__name__)


class BaseWMTPTrainer(Published, SealedCheckpoints, LogSums, FiniteSteps, SummedLoss, SFTTrainer):
    """
    Trainer for weighted multi-token prediction; an algorithm is a subclass with its own `compute_head_weights`.

    The model gets `horizon` heads on its last hidden state ([`~lupi_trainer.MTPHeads`]; the first is its
    own), and is trained on the weighted mean of their cross-entropies
    ([`~lupi_trainer.losses.compute_weighted_mtp_loss`], in chunks). Data, packing, PEFT, hub and logging are
    [`~trl.SFTTrainer`]'s. Heads are saved beside the model or adapter, in every checkpoint and at the end.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model to train.
        args ([`WMTPConfig`], *optional*):
            Configuration.
        heads ([`~lupi_trainer.models.mtp_heads.MTPHeads`], *optional*):
            Heads to go on with. Otherwise those of `args.heads_name_or_path`, or new ones.
        train_dataset, eval_dataset, processing_class, callbacks, optimizers, quantization_config, peft_config:
            As in [`~trl.SFTTrainer`].

    Raises:
        `ValueError`: options that cannot work together, heads for another model, an adapter on the `lm_head`.
        `FileNotFoundError`: `heads_name_or_path` holds no heads.
    """

    model_tags = ["trl", "wmtp"]
    method_name = "WMTP"
    _weights_paper: Paper | None = None
    reduction = "position"

    def __init__(self, model, args: WMTPConfig | None = None, *, heads: MTPHeads | None = None, **kwargs):
        require_config(args, WMTPConfig)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func has no effect here: the heads' weighted cross-entropies are the loss")
        peft_config = kwargs.get("peft_config")
        model, name, args = resolve_student(
            model, args, lambda name: WMTPConfig(f"{name}-WMTP"), peft_config, trains_more=True
        )
        if args.head_weighting == "uniform":
            say_unread(args, WEIGHING, "head_weighting='uniform' weighs nothing")
        else:
            say_unread(args, self.unread_settings(args), f"{self.method_name} does not read it")
        if args.freeze_trunk and peft_config is not None:
            raise ValueError("freeze_trunk trains the heads alone: it leaves nothing for an adapter to learn")
        heads = starting_heads(heads, args)
        if kwargs.get("processing_class") is None:
            kwargs["processing_class"] = AutoTokenizer.from_pretrained(name, **repository_options(args))
        adopt_chat_template(args, model, kwargs["processing_class"])
        super().__init__(model=model, args=args, **kwargs)
        if self.accelerator.is_main_process:  # others may have no weights yet
            check_head(self.accelerator.unwrap_model(self.model), "student")
        if args.freeze_trunk:
            self.model.requires_grad_(False)
        attach_heads(self.model, heads, args)
        super().require_trainable()
        self.limit_tokens(self.model.config.get_text_config().vocab_size)

    def require_trainable(self) -> None:
        """Nothing yet: the heads, which are attached at the end of the construction, may be all that is trained."""

    @property
    def _papers(self) -> tuple[Paper, ...]:  # ty: ignore[incompatible-property-override] # of the run's heads
        heads = (MULTI_TOKEN, MEDUSA) if self.args.head_type == "residual" else (MULTI_TOKEN,)
        return heads if self._weights_paper is None else (self._weights_paper, *heads)

    def unread_settings(self, args: WMTPConfig) -> tuple[str, ...]:
        """The keys of other algorithms."""
        return ()

    def compute_head_weights(self, batch: Batch) -> torch.Tensor:
        """The algorithm: [B, S, H] weights of the heads' predictions, none negative, without a gradient."""
        raise NotImplementedError

    def _weigh(self, batch: Batch) -> torch.Tensor:
        if self.args.head_weighting == "uniform":
            return uniform_weights(batch.has_target)
        weights = self.compute_head_weights(batch)
        if self.args.head_weighting == "shuffled":
            step = self.state.global_step * self.accelerator.num_processes + self.accelerator.process_index
            noise = torch.Generator().manual_seed(self.args.seed * 1_000_003 + step)
            weights = shuffle_in_texts(weights, batch.has_target, noise, batch.segments)
        return weights

    # The loss

    def _loss_and_sums(self, model, inputs, num_items_in_batch):
        out, batch = weighted_loss(model, inputs, self._weigh, self.reduction)
        loss = out.loss
        if num_items_in_batch is not None:
            # the batch's mean, as its share of what all accumulated batches and processes count
            loss = loss * out.counts.sum() / torch.as_tensor(num_items_in_batch).clamp(min=1)
        return loss, row_sums(out, batch)

    def items_in_batch(self, batches: list, device: torch.device) -> torch.Tensor | None:
        """Positions from which at least one head has something to predict; over tokens, its predictions."""
        if not batches or "labels" not in batches[0]:
            return None
        targets = (shift_targets(b["labels"], self.args.horizon, text_segments(b)) for b in batches)
        count = torch.stack([counted(target, self.reduction).sum() for target in targets]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    # What is logged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (sums := self.take_sums("train")) is not None:
            self.tokens_read += int(sums[-1])
            logs = {**means(sums), **logs, "num_tokens": self.tokens_read}
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The parent's, with the loss and the heads' figures weighted by positions over the full set."""
        self._sums["eval"] = None
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self.take_sums("eval")
        figures = {} if sums is None else means(sums)
        if self.args.draft_eval_prompts and self.args.horizon > 1:
            figures |= draft_metrics(self, kwargs.get("dataloader", args[0] if args else None).dataset)
        figures = {f"{metric_key_prefix}_{key}": value for key, value in figures.items()}
        return output._replace(metrics={**(output.metrics or {}), **figures})

    # Checkpoints

    def save_student(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        own = None
        if state_dict is not None:  # sharded parameters, gathered by the caller
            own = {k.removeprefix("mtp_heads."): v for k, v in state_dict.items() if k.startswith("mtp_heads.")}
        super().save_student(output_dir, state_dict)
        heads = self.accelerator.unwrap_model(self.model).mtp_heads
        with gathered_for_reading(heads.parameters()):  # `state_dict` is empty where ZeRO-3 does not gather for a save
            if self.args.should_save:
                heads.save_pretrained(output_dir or self.args.output_dir, own or None)

    def _load_heads(self, directory: str) -> None:
        saved = MTPHeads.from_pretrained(directory)
        self.model.mtp_heads.load(saved.state_dict(), directory)

    def load_checkpoint(self, folder: str, model: Any) -> None:
        super().load_checkpoint(folder, model)
        if not self.is_fsdp_enabled:  # there the heads are in the checkpoint of the full model
            self._load_heads(folder)

    def load_best_checkpoint(self) -> None:
        super().load_best_checkpoint()
        best = self.state.best_model_checkpoint
        if best is not None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._load_heads(best)
