"""Where a run's heads come from, and how they become a part of its model."""

from typing import Any

import torch
from accelerate.utils import is_peft_model, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..models.loading import key_named
from ..models.mtp_heads import MTPHeads, attach_mtp_heads
from .config import WMTPConfig


def starting_heads(heads: MTPHeads | None, args: WMTPConfig) -> MTPHeads | None:
    """The heads that a run starts from: those of `args.heads_name_or_path`, else `heads`; `None`: new ones.

    Raises:
        ValueError: they are not of the kind that the configuration says, or there are two.
        FileNotFoundError: there are none.
    """
    if args.heads_name_or_path is not None:
        if heads is not None:
            raise ValueError("heads_name_or_path has no effect here: heads were passed. Leave one of them out")
        with key_named("heads_name_or_path"):
            heads = MTPHeads.from_pretrained(args.heads_name_or_path)
    if heads is None:
        return None
    given = {"horizon": heads.horizon, "head_type": heads.head_type}
    if heads.head_type == "transformer":
        given["head_window"] = heads.attention_window
    wanted = {name: getattr(args, name) for name in given}
    if given != wanted:
        theirs, ours = (" and ".join(f"{k}={v!r}" for k, v in kind.items()) for kind in (given, wanted))
        raise ValueError(f"the heads have {theirs}; the configuration says {ours}")
    return heads


def attach_heads(model: Any, heads: MTPHeads | None, args: WMTPConfig) -> None:
    """Make heads a part of a model, new ones (drawn with the run's seed) where none are given."""
    if heads is None:
        set_seed(args.seed)
        heads = MTPHeads.for_model(model, args.horizon, args.head_type, window=args.head_window)
    if (args.freeze_trunk or is_peft_model(model)) and not is_deepspeed_zero3_enabled():
        # as PEFT does with adapters: small steps are lost in a half-precision trunk's dtype. ZeRO-3 takes one dtype
        heads = heads.to(torch.promote_types(heads.dtype, torch.float32))
    attach_mtp_heads(model, heads.to(model.get_output_embeddings().weight.device))
