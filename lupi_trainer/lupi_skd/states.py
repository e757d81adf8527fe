"""Hidden states at completion positions, and what turns them into logits."""

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


def logit_scale(config) -> float:
    """The factor between `lm_head` output and logits, under the name that the model family gives it (1 if none)."""
    config = config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


class Head:
    """The `lm_head` of a model, cut to a shared vocabulary and brought to a device.

    Raises:
        ValueError: the head has no dense weight (it is quantised or wrapped by an adapter).
    """

    def __init__(self, model: nn.Module, vocab_size: int, device: torch.device | None = None):
        head = model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        if weight is None or weight.dim() != 2 or not weight.is_floating_point():
            raise ValueError(
                f"the lm_head of {type(model).__name__} has no dense weight ({type(head).__name__}): keep it out of "
                "quantisation and adapters"
            )
        device = device or weight.device
        bias = getattr(head, "bias", None)
        self.weight = weight[:vocab_size].to(device)
        self.bias = None if bias is None else bias[:vocab_size].to(device)
        self.scale = logit_scale(model.config)
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
