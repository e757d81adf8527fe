"""Whether a model is what the losses take it for: a causal decoder whose logits are `lm_head(last hidden states)`.

Losses and perplexities run the backbone and apply the head themselves. Of a model whose head is more than that, or
that reads what comes after a token, they would be wrong without a word: it is compared once, on a few tokens.
"""

import logging
from typing import Any

import torch

from .adapters import check_mergeable
from .backbone import backbone, backbone_states
from .lm_head import Head


logger = logging.getLogger(__name__)

READ = 6  # tokens that a model is compared on


def refuse_encoder_decoder(config: Any, role: str) -> None:
    """Raise ValueError for a model of two parts, whose texts do not begin with their prompts."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"the {role} is a {config.model_type} model, an encoder-decoder: take a causal language model"
        )


def refuse_rescaled(config: Any, role: str) -> None:
    """Raise ValueError for a model that divides its weights where they are when it is in eval mode, as RWKV does."""
    if every := getattr(config, "rescale_every", 0):
        raise ValueError(
            f"the {role} is a {config.model_type} model, which in eval mode divides the weights of its layers by a "
            f"number that depends on their places (rescale_every={every}): saved after that, they are not what they "
            "were. Such a model is not supported here"
        )


@torch.no_grad()
def check_head(model: Any, role: str) -> None:
    """Compare the logits that are computed here with the model's own; where ZeRO-3 has sharded its weights, that it is
    not compared is logged.

    Args:
        model: a causal language model (or a `PeftModel`), not wrapped for several processes.
        role: what the model is called in errors.

    Raises:
        ValueError: an adapter that cannot be merged, an encoder-decoder, a student that divides its own weights, a
            model that reads what comes after a token,
            or one whose head is not its `lm_head` alone; it is named.
    """
    refuse_encoder_decoder(model.config, role)
    if role == "student":  # others are not saved
        refuse_rescaled(model.config, role)
    check_mergeable(model)
    inner = getattr(model, "get_base_model", lambda: model)()
    name, vocab_size = type(inner).__name__, model.config.get_text_config().vocab_size
    if any(hasattr(parameter, "ds_id") or parameter.is_meta for parameter in model.parameters()):
        logger.info(f"the weights of the {role} {name} are not here, so its lm_head is not compared with its logits")
        return
    if backbone(inner) is inner:
        raise ValueError(f"the {role} {name} has no backbone apart from its lm_head: this model is not supported")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        device = model.get_input_embeddings().weight.device
        first = torch.arange(1, READ + 1, device=device) % vocab_size
        inputs = {"input_ids": torch.stack([first, torch.cat([first[:-1], first[:1]])])}  # the last token differs
        with torch.autocast(device.type, enabled=False):
            states = backbone_states(model, inputs, role)
            head = Head(model, vocab_size)
            if states.size(-1) != head.weight.size(-1):
                raise ValueError(
                    f"the lm_head of the {role} {name} reads {head.weight.size(-1)} numbers, and its last hidden "
                    f"states have {states.size(-1)}: this model is not supported"
                )
            ours = head.logits(states.to(head.weight))
            theirs = model(**inputs, use_cache=False).logits.to(ours.device).float()[..., :vocab_size]
    finally:
        for module, mode in modes.items():
            module.training = mode
    rounding = max(1e-3, 2 * torch.finfo(head.weight.dtype).eps) * theirs.abs().max()
    # numbers that are not finite are named by what trains, as a fault of the weights
    if (theirs[0, :-1] - theirs[1, :-1]).abs().max() > rounding:
        raise ValueError(f"the {role} {name} reads what comes after a token: it is no causal language model")
    off = (ours - theirs).abs().max()
    if off > rounding:
        raise ValueError(
            f"the logits of the {role} {name} are not its lm_head on its last hidden states (they differ by up to "
            f"{off.item():.2g}), and the loss is computed from these: this model is not supported"
        )
