"""Hidden states at labeled positions, of the student and of the frozen teacher."""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn


def labeled_states(model: nn.Module, inputs: dict[str, Any], labeled: torch.Tensor, role: str) -> torch.Tensor:
    """The last hidden states from which labeled tokens are predicted.

    Args:
        model: a causal language model (or a `PeftModel`), not wrapped for several processes.
        inputs: what its backbone reads: `input_ids` [B, S] and whatever goes with them, on its device.
        labeled: [B, S - 1] bool, true at t where token t + 1 is labeled.
        role: `"student"` or `"teacher"`, for the error.

    Returns:
        [N, H], rows in the order of the batch.

    Raises:
        ValueError: the batch is longer than the model's context.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].size(1)
    if room is not None and length > room and "position_ids" not in inputs:
        raise ValueError(
            f"a batch of {length} tokens is beyond the {room} positions of the {role} model: lower `max_length`"
        )
    if is_peft_model(model):
        model = model.base_model.model
    states = model.base_model(**inputs, use_cache=False).last_hidden_state
    return states[:, :-1][labeled.to(states.device)]


@torch.no_grad()
def teacher_states(teacher: nn.Module, inputs: dict[str, Any], labeled: torch.Tensor) -> torch.Tensor:
    """[`labeled_states`] of the teacher, computed on its own device and in its own dtype, on the labels' device."""
    device = next(teacher.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    with torch.autocast(device.type, enabled=False):
        return labeled_states(teacher, inputs, labeled, "teacher").to(labeled.device)
