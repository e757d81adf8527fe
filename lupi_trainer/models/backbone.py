"""Runs a model without its `lm_head`: the last hidden states, from which losses compute the logits that they need."""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn


NOT_READ = ("labels", "reward")  # columns of a batch that are the loss's


def context_length(config: Any) -> int | None:
    """The most positions that a model of this configuration has, where it says so (a number below 1 says none)."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None or length < 1 else length


def backbone_states(model: Any, inputs: dict[str, Any], role: str = "model") -> torch.Tensor:
    """What the `lm_head` reads at every position.

    Args:
        model: a causal language model (or a `PeftModel`), not wrapped for several processes.
        inputs: `input_ids` [B, S] and whatever goes with them, on the model's device; `labels` and `reward` are left
            out.
        role: what the model is called in errors.

    Returns:
        [B, S, H], the backbone's last hidden states.

    Raises:
        ValueError: the batch is longer than the model's context.
    """
    longest, length = context_length(model.config), inputs["input_ids"].size(1)
    if longest is not None and length > longest and "position_ids" not in inputs:
        raise ValueError(
            f"a batch of {length} tokens is beyond the {longest} positions of the {role}: lower `max_length`"
        )
    if is_peft_model(model):
        model = model.base_model.model
    read = {name: value for name, value in inputs.items() if name not in NOT_READ}
    return backbone(model)(**read, use_cache=False).last_hidden_state


def backbone(model: Any) -> Any:
    """The part of a causal language model that its `lm_head` reads; the model itself where it is not told apart.

    Args:
        model: a causal language model, no `PeftModel`.
    """
    # Llama-4's text model has the name that its multimodal model gives it, not the one that it has itself
    return getattr(model, "model", model) if model.base_model is model else model.base_model


def completion_states(
    model: Any,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> torch.Tensor:
    """[`backbone_states`] one position before each completion token.

    Args:
        model: as there.
        prompt_ids, prompt_mask: [B, P], left-padded.
        completion_ids, completion_mask: [B, C], right-padded.

    Returns:
        [B, C, H].
    """
    attention_mask = torch.cat([prompt_mask, completion_mask], dim=1)
    inputs = {
        "input_ids": torch.cat([prompt_ids, completion_ids], dim=1),
        "attention_mask": attention_mask,
        # counted from each row's first real token, as in the rollout: padding must not move a row
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    return backbone_states(model, inputs)[:, prompt_ids.size(1) - 1 : -1]


def completion_states_by_rows(model: Any, rows: int, *given: torch.Tensor) -> torch.Tensor:
    """[`completion_states`], `rows` rows of the batch at a time, for a model that is not trained by them.

    Args:
        model: as there.
        rows: at least 1; beside the result, so many rows' states and activations are held at once.
        given: the tensors that are given there.

    Returns:
        [B, C, H], not a view of longer states.
    """
    batch, states = len(given[0]), torch.empty(0)
    for first in range(0, batch, rows):
        part = completion_states(model, *(tensor[first : first + rows] for tensor in given))
        if first == 0:
            states = part.new_empty(batch, *part.shape[1:])
        states[first : first + rows] = part
    return states


def labeled_states(model: Any, inputs: dict[str, Any], labeled: torch.Tensor, role: str) -> torch.Tensor:
    """[`backbone_states`] one position before each labeled token.

    Args:
        model, inputs, role: as there.
        labeled: [B, S - 1] bool, true at t where token t + 1 is labeled.

    Returns:
        [N, H], rows in the order of the batch.
    """
    states = backbone_states(model, inputs, role)
    return states[:, :-1][labeled.to(states.device)]


def inputs_on_device(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch on the device of a model that is not the trained one."""
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


@torch.no_grad()
def teacher_states(teacher: nn.Module, inputs: dict[str, Any], labeled: torch.Tensor) -> torch.Tensor:
    """[`labeled_states`] of a frozen teacher, computed on its own device and in its own dtype; on the labels' device.

    The trained model's mixed precision is not the teacher's.
    """
    with torch.autocast(next(teacher.parameters()).device.type, enabled=False):
        return labeled_states(teacher, inputs_on_device(teacher, inputs), labeled, "teacher model").to(labeled.device)
