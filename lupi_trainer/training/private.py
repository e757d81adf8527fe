"""Everything of TRL's that is private and that this package leans on, in one place.

`tests/training/test_private.py` fails when one of these changes its signature. Besides these functions,
`LUPISKDTrainer` overrides `_generate_and_score_completions`, `_generate_single_turn` and `_compute_loss` of
`DistillationTrainer`, and `KDLoRATrainer` writes `_total_train_tokens` of `SFTTrainer`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models import utils
from trl.models.utils import _ForwardRedirection as ForwardRedirection
from trl.trainer import distillation_trainer
from trl.trainer.utils import pad


__all__ = ["ForwardRedirection", "chunked_divergence_loss", "pad", "unwrap_model_for_generation"]


@wraps(distillation_trainer._chunked_divergence_loss)
def chunked_divergence_loss(*states_and_weights: torch.Tensor, **options):
    """TRL's own, for weights and biases that are whole.

    Under ZeRO-3 it gathers each of them, and asks it first whether that is needed; a plain tensor has no answer.
    """
    if is_deepspeed_zero3_enabled():
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        for tensor in (*states_and_weights, *options.values()):
            if isinstance(tensor, torch.Tensor):
                tensor.ds_status = ZeroParamStatus.AVAILABLE
    return distillation_trainer._chunked_divergence_loss(*states_and_weights, **options)


@contextmanager
def unwrap_model_for_generation(model, accelerator, **options) -> Iterator:
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
