"""What trainers use of TRL, transformers and accelerate though it is not public.

A name that begins with an underscore may change in any release. Those that trainers lean on are all here, under names
of this package: functions for single ones, and three mix-ins that come right before the parent in a trainer's bases.
A private method that is overridden is overridden in a mix-in, once, and calls a public one, which subclasses override
and whose `super()` leads to the parent's. `tests/training/test_private.py` fails when a name is gone, has other
parameters or is not used as it is here, and when another file of the package uses a foreign private name. Those of
models are in `lupi_trainer/models/private.py`, those of the engine in `lupi_trainer/speculative/runners/private.py`.

- Of TRL: `_ForwardRedirection`, `_chunked_divergence_loss`.
- Of TRL's trainers: `_name`, `_tag_names`, `_total_train_tokens`, `_prepare_dataset`, `_skip_prepare_dataset`,
  `_formatting_func` (`SFTTrainer`); `_dist`, `_metrics`,
  `_buffered_inputs`, `_generate_and_score_completions`, `_generate_single_turn`, `_compute_loss`
  (`DistillationTrainer`).
- Of transformers' `Trainer`: `_save`, `_save_checkpoint`, `_get_output_dir`, `_load_from_checkpoint`,
  `_load_best_model`, `_issue_warnings_after_load`, `_save_rng_state`, `_load_rng_state`, `_get_train_sampler`,
  `_get_num_items_in_batch`, `_get_grad_norm`, `_prepare_inputs`, `_set_signature_columns_if_needed`,
  `_signature_columns`, `_tr_loss`, `_total_loss_scalar`, `_globalstep_last_logged`, `_push_from_checkpoint`,
  `_finish_current_push`, and `_internal_call` of `save_model`; of its `TrainingArguments`, `_VALID_DICT_FIELDS`.
- Of accelerate: `_models` and `_is_accelerate_prepared`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models import utils
from trl.trainer import distillation_trainer
from trl.trainer.utils import pad

from .mixins import DistillationMixin, SFTMixin, TrainerMixin
from .versions import warn_if_newer


__all__ = [
    "DistillationHooks",
    "SFTHooks",
    "TrainerHooks",
    "call_in_forward",
    "chunked_divergence_loss",
    "json_fields",
    "pad",
    "unwrap_model_for_generation",
    "wrap_in_training",
]

ConfigT = TypeVar("ConfigT", bound=type[TrainingArguments])

warn_if_newer()


@wraps(distillation_trainer._chunked_divergence_loss)
def chunked_divergence_loss(*states_and_weights: Any, **options: Any):
    """TRL's own, for weights and biases that are not sharded.

    Under ZeRO-3 it gathers each of them, and asks it first whether that is needed; a plain tensor has no answer.
    """
    if is_deepspeed_zero3_enabled():
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        for tensor in (*states_and_weights, *options.values()):
            if isinstance(tensor, torch.Tensor):
                setattr(tensor, "ds_status", ZeroParamStatus.AVAILABLE)  # noqa: B010
    return distillation_trainer._chunked_divergence_loss(*states_and_weights, **options)


def call_in_forward(wrapper: Any, model: Any, method: Callable, *args: Any) -> Any:
    """`method(*args)` as what the model's forward does, so that DDP, FSDP or DeepSpeed around it see a forward.

    Args:
        wrapper: the model as it is trained.
        model: the model inside it.
    """
    return utils._ForwardRedirection()(wrapper, model, method, *args)


@contextmanager
def unwrap_model_for_generation(model, accelerator, **options) -> Generator[Any]:
    """TRL's own, for a model that looks the same at every step; a compiled forward would else be compiled anew.

    TRL switches checkpointing off and on again, and each time that it is on transformers adds a hook which makes the
    embeddings require gradients: they would pile up. And after its first loss, `forward` is an attribute of the model.
    """
    inner = accelerator.unwrap_model(model)
    inner.forward = inner.forward
    if inner.is_gradient_checkpointing:
        inner.disable_input_require_grads()
    with utils.unwrap_model_for_generation(model, accelerator, **options) as unwrapped:
        yield unwrapped


def wrap_in_training(trainer: Any) -> None:
    """Make training wrap a model that several processes have evaluated before they train it.

    An evaluation leaves it bare, and accelerate marks it as prepared: every process would train a copy of its own.
    """
    accelerator, model = trainer.accelerator, trainer.model
    bare = accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if bare and trainer.model_wrapped is model and getattr(model, "_is_accelerate_prepared", False):
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # training puts its autocast around it again
        model._is_accelerate_prepared = False
        accelerator._models.remove(model)


def json_fields(*names: str) -> Callable[[ConfigT], ConfigT]:
    """A decorator for a class of training arguments: these fields may be given as JSON, as on a command line."""

    def decorate(config: ConfigT) -> ConfigT:
        config._VALID_DICT_FIELDS = [*config._VALID_DICT_FIELDS, *names]
        return config

    return decorate


class TrainerHooks(TrainerMixin):
    """For a [`~transformers.Trainer`]: public names for what it keeps private."""

    method_name: str
    """Of the training method, for the model card; TRL's `_name`."""
    model_tags: Sequence[str]
    """What the model is tagged with on the Hub; TRL's `_tag_names`."""

    @property
    def _name(self) -> str:
        return self.method_name

    @property
    def _tag_names(self) -> list[str]:
        return list(self.model_tags)

    # What subclasses override

    def save_student(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        """Write the model to `output_dir` (default: `args.output_dir`); `state_dict` if its weights were gathered."""
        super()._save(output_dir, state_dict)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.save_student(output_dir, state_dict)

    def save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint of this step, and remove those that are too many."""
        super()._save_checkpoint(model, trial)

    def _save_checkpoint(self, model, trial) -> None:
        self.save_checkpoint(model, trial)

    def load_checkpoint(self, folder: str, model: Any) -> None:
        """Load the weights of a checkpoint that the run is resumed from; DeepSpeed has a way of its own."""
        super()._load_from_checkpoint(folder, model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.load_checkpoint(resume_from_checkpoint, model)

    def say_what_is_missing(self, loaded: Any) -> None:
        """Warn of `missing_keys` and `unexpected_keys` after weights were loaded into the model."""
        super()._issue_warnings_after_load(loaded)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self.say_what_is_missing(load_result)

    def load_best_checkpoint(self) -> None:
        """Load the weights of `state.best_model_checkpoint`."""
        super()._load_best_model()

    def _load_best_model(self) -> None:
        self.load_best_checkpoint()

    def save_process_state(self, output_dir: str) -> None:
        """Write what this process alone knows (its random numbers) into a checkpoint."""
        super()._save_rng_state(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        self.save_process_state(output_dir)

    def load_process_state(self, checkpoint: str | None) -> None:
        """Read what `save_process_state` has written."""
        super()._load_rng_state(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.load_process_state(checkpoint)

    def train_sampler(self, dataset: Any) -> Sampler[int] | None:
        """The order of the training records (`None`: of `train_dataset`)."""
        return super()._get_train_sampler(dataset)

    def _get_train_sampler(self, dataset=None):  # ty: ignore[lost-keyword-for-regular-parameter] # TRL's own name
        return self.train_sampler(dataset)

    def items_in_batch(self, batches: list, device: torch.device) -> torch.Tensor | int | None:
        """What the loss of accumulated batches is divided by, counted over all processes."""
        return super()._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        return self.items_in_batch(batch_samples, device)

    def gradient_norm(self, model: Any, norm: Any) -> Any:
        """The gradient's norm before an optimizer step (given where it was clipped), a number, tensor or `None`."""
        return super()._get_grad_norm(model, norm)

    def _get_grad_norm(self, model, grad_norm=None):
        return self.gradient_norm(model, grad_norm)

    def columns_read(self) -> list[str]:
        """The columns of a dataset that reach the collator."""
        super()._set_signature_columns_if_needed()
        return list(self._signature_columns or ())

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = self.columns_read()

    def push_checkpoint(self, folder: str) -> None:
        """Send the student in a checkpoint to the Hub."""
        super()._push_from_checkpoint(folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_checkpoint(checkpoint_folder)

    # What subclasses call

    def counted_rows(self, rows: int) -> torch.Tensor:
        """[B] bool: which rows of an evaluation batch do not merely fill up the last one of several processes."""
        numbers = torch.arange(rows, device=self.accelerator.device) + self.accelerator.process_index * rows
        return torch.isin(numbers, self.accelerator.gather_for_metrics(numbers))

    def run_dir(self, trial: Any) -> str:
        """The folder that checkpoints are written to."""
        return self._get_output_dir(trial=trial)

    def prepare_inputs(self, batch: Any) -> Any:
        """A batch as the loss takes it, on the trainer's device."""
        return self._prepare_inputs(batch)

    def save_without_push(self, output_dir: str | None = None) -> None:
        """`save_model`, which `push_to_hub` would have send the student to the Hub."""
        self.save_model(output_dir, _internal_call=True)

    def finish_push(self) -> None:
        """Wait for the pushes that are on their way."""
        self._finish_current_push()

    @property
    def last_logged_step(self) -> int:
        """The step of the last log, from which the logged loss is averaged."""
        return self._globalstep_last_logged

    @last_logged_step.setter
    def last_logged_step(self, step: int) -> None:
        self._globalstep_last_logged = step

    @property
    def loss_total(self) -> float:
        """The sum of the losses of all steps that were logged; at the end, of all steps."""
        return self._total_loss_scalar

    @loss_total.setter
    def loss_total(self, total: float) -> None:
        self._total_loss_scalar = total

    @property
    def loss_since_log(self) -> torch.Tensor:
        """[] the sum of this process's losses since the last log; filled in place."""
        return self._tr_loss


class SFTHooks(TrainerHooks, SFTMixin):
    """For a [`~trl.SFTTrainer`]."""

    args: Any
    processing_class: Any
    _formatting_func: Any
    _skip_prepare_dataset: bool

    @property
    def tokens_read(self) -> int:
        """Training tokens read so far, over all processes."""
        return self._total_train_tokens

    @property
    def metric_lists(self) -> Mapping[str, dict[str, list[float]]]:
        """As [`DistillationHooks.metric_lists`]."""
        return self._metrics

    @tokens_read.setter
    def tokens_read(self, count: int) -> None:
        self._total_train_tokens = count

    def prepare_texts(self, dataset: Any, tokenizer: Any, args: Any, packing: bool, to_text: Any, name: str) -> Any:
        """A dataset as it is read: token ids and labels, cut to `args.max_length` or packed; rows without a label are
        left out."""
        return super()._prepare_dataset(dataset, tokenizer, args, packing, to_text, name)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        return self.prepare_texts(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def tokenized(self, dataset: Any) -> Any:
        """A dataset as `evaluate` prepares it."""
        if self._skip_prepare_dataset:
            return dataset
        args = self.args
        packing = args.packing if args.eval_packing is None else args.eval_packing
        return self._prepare_dataset(dataset, self.processing_class, args, packing, self._formatting_func, "test")


class DistillationHooks(TrainerHooks, DistillationMixin):
    """For a [`~trl.DistillationTrainer`]."""

    @property
    def dist(self) -> Any:
        """TRL's `DistributedBackend`: `is_fsdp`, `is_zero3`, and `summon_full_params`, a context without shards."""
        return self._dist

    @property
    def metric_lists(self) -> Mapping[str, dict[str, list[float]]]:
        """Of "train" and of "eval": what was measured since the last log, which logs each name's mean."""
        return self._metrics

    @property
    def buffered_batches(self) -> list[dict[str, Any]]:
        """The batches of the optimizer step that is being accumulated."""
        return self._buffered_inputs or []

    def roll_out(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Records -> a training batch: `prompt_ids`, `prompt_mask` [B, P], `completion_ids`, `completion_mask` [B, C]
        and `num_items_in_batch`, the completion tokens over all processes."""
        return super()._generate_and_score_completions(records)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.roll_out(inputs)

    def write_completions(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """The completion of each prompt, in token ids."""
        raise NotImplementedError

    def _generate_single_turn(self, prompt_ids, images=None, multimodal_fields=None, has_tool_images=False):
        return self.write_completions(prompt_ids)

    def distillation_loss(
        self, student: Any, batch: dict[str, Any], count: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inside the student's own forward: (loss, sum of the student's entropies, completion tokens), each [].

        The loss is a sum over completion tokens, divided by `count` (default: by their number).
        """
        return super()._compute_loss(student, batch, count)

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):
        return self.distillation_loss(unwrapped_student, inputs, num_items_in_batch)
