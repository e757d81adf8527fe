"""What every algorithm of weighted multi-token prediction shares: set-up, loss, metrics, checkpoints."""

import logging
from typing import Any

import torch
from transformers import AutoTokenizer
from trl import SFTTrainer

from ..losses.reference import shift_targets
from ..losses.token_weights import shuffle_in_texts, uniform_weights
from ..models.lm_head import refuse_prompt_learning, whole
from ..models.loading import repository_options, resolve_student
from ..models.mtp_heads import MTPHeads
from ..publishing.papers import MEDUSA, MULTI_TOKEN, Paper
from ..publishing.trainer import Published
from ..training.checkpoints import SealedCheckpoints
from ..training.finite_steps import FiniteSteps
from ..training.private import SFTHooks, call_in_forward
from .config import WMTPConfig
from .drafting import draft_metrics
from .placing import given_heads, put_heads
from .weighted_loss import Batch, counted, means, row_sums, text_segments, weighted_loss


logger = logging.getLogger(__name__)


class BaseWMTPTrainer(Published, SealedCheckpoints, FiniteSteps, SFTHooks, SFTTrainer):
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
        model, name, args = resolve_student(model, args, lambda name: WMTPConfig(f"{name}-WMTP"))
        if args.freeze_trunk and kwargs.get("peft_config") is not None:
            raise ValueError("freeze_trunk trains the heads alone: it leaves nothing for an adapter to learn")
        refuse_prompt_learning(model, kwargs.get("peft_config"))
        heads = given_heads(heads, args)
        if kwargs.get("processing_class") is None:
            kwargs["processing_class"] = AutoTokenizer.from_pretrained(name, **repository_options(args))
        super().__init__(model=model, args=args, **kwargs)
        if self.aux_loss_enabled:
            raise ValueError("the load-balancing loss of this model is not supported: set `router_aux_loss_coef: 0`")
        if args.freeze_trunk:
            self.model.requires_grad_(False)
        put_heads(self.model, heads, args)
        self.model_accepts_loss_kwargs = True  # the loss is scaled by the positions of all accumulated batches
        self._sums: dict[str, torch.Tensor | None] = {"train": None, "eval": None}

    @property
    def _papers(self) -> tuple[Paper, ...]:  # ty: ignore[incompatible-property-override] # of the run's heads
        heads = (MULTI_TOKEN, MEDUSA) if self.args.head_type == "residual" else (MULTI_TOKEN,)
        return heads if self._weights_paper is None else (self._weights_paper, *heads)

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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inner = self.accelerator.unwrap_model(model)
        # through the wrapper's forward, which DDP, FSDP and DeepSpeed see, and past accelerate's own autocast
        with self.accelerator.autocast():
            loss, sums = call_in_forward(model, inner, self._loss_and_sums, inner, inputs, num_items_in_batch)
        mode = "train" if self.model.training else "eval"
        # a last evaluation batch is filled up with records that were read already: those are dropped here
        sums = sums.sum(dim=0) if mode == "train" else self.accelerator.gather_for_metrics(sums).sum(dim=0)
        self._sums[mode] = sums if self._sums[mode] is None else self._sums[mode] + sums
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over the processes
        if return_outputs:
            with torch.no_grad():
                names = inputs.keys() - {"labels", "reward"}
                return loss, model(**{name: inputs[name] for name in names}, use_cache=False)
        return loss

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
        if "loss" in logs and self._sums["train"] is not None:
            sums, self._sums["train"] = self._sums["train"].double(), None
            sums = self.accelerator.reduce(sums, reduction="sum")
            self.tokens_read += int(sums[-1])
            logs = {**means(sums), **logs, "num_tokens": self.tokens_read}
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The parent's, with the loss and the heads' figures weighted by positions over the whole set."""
        self._sums["eval"] = None
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self._sums["eval"]
        figures = {} if sums is None else means(sums.double())
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
        with whole(heads.parameters()):  # where ZeRO-3 is not told to gather for a save, `state_dict` is empty
            if self.args.should_save:
                heads.save_pretrained(output_dir or self.args.output_dir, own or None)

    def _load_heads(self, directory: str) -> None:
        saved = MTPHeads.from_pretrained(directory)
        self.model.mtp_heads.load(saved.state_dict(), directory)

    def load_checkpoint(self, folder: str, model: Any) -> None:
        super().load_checkpoint(folder, model)
        if not self.is_fsdp_enabled:  # there the heads are in the checkpoint of the whole model
            self._load_heads(folder)

    def load_best_checkpoint(self) -> None:
        super().load_best_checkpoint()
        best = self.state.best_model_checkpoint
        if best is not None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._load_heads(best)
