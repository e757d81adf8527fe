"""Hidden states at completion positions."""

import torch
from accelerate.utils import is_peft_model
from torch import nn


def completion_states(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> torch.Tensor:
    """The hidden states from which every completion token is predicted.

    Args:
        model: a causal language model (or a `PeftModel`), not wrapped for several processes.
        prompt_ids, prompt_mask: [B, P], left-padded.
        completion_ids, completion_mask: [B, C], right-padded.

    Returns:
        [B, C, H]: the backbone's last hidden state one place before each completion token.
    """
    if is_peft_model(model):
        model = model.base_model.model
    input_ids = torch.cat([prompt_ids, completion_ids], dim=1)
    attention_mask = torch.cat([prompt_mask, completion_mask], dim=1)
    # places counted from each row's first real token, as in the rollout: padding must not move a row
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    backbone = model.base_model
    states = backbone(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    return states[:, prompt_ids.size(1) - 1 : -1]
