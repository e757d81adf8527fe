"""A few tokens read from a cache and at once: models of kinds that may count positions in a way of their own."""

from __future__ import annotations

from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from ...models.private import supports_sdpa
from .attention import ragged_attention
from .runner import Runner
from .support import active, base_model, evaluating, text_config


_PROMPTS = [[1, 2, 3, 4], [3, 1]]  # rows of different lengths
_right: WeakSet = WeakSet()  # models that were tried


def require_own_logits(model, role: str) -> None:
    """Raises ValueError, with the model's name, where a text cannot be read piece by piece, or is not what the model
    reads in it.

    Models with an attention of their own are tried, once each: some cannot be run on the cache of a rollout. So are
    decoders that were made of encoders (those whose configuration has `is_decoder`), whose logits are compared: some
    count positions from their padding token, or take none. All others are known to read as they are told to.
    """
    inner = base_model(model)
    was_encoder = hasattr(text_config(model), "is_decoder")
    has_own_way = isinstance(inner, PreTrainedModel) and not supports_sdpa(inner)
    if not (was_encoder or has_own_way) or inner in _right:
        return
    name, vocab_size = f"the {role} {type(inner).__name__}", text_config(model).vocab_size
    try:
        ours, theirs = _logits(model, vocab_size, compared=was_encoder)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} does not run on the cache of a rollout, which drafting and verifying need: {error}"
        ) from error
    off, rounding = (ours - theirs).abs().max(), max(1e-4, 4 * torch.finfo(inner.dtype).eps) * theirs.abs().max()
    if off > rounding:
        raise ValueError(
            f"{name} does not read its positions as it is told to (its logits are off by {off.item():.2g}), which "
            "drafting and verifying need"
        )
    _right.add(inner)


def _logits(model, vocab_size: int, compared: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, V] logits behind the prompts, read from a cache, and at once (unless `compared`, the same again)."""
    rows = range(len(_PROMPTS))
    with evaluating(base_model(model)):
        with ragged_attention(model):
            runner = Runner(model, _PROMPTS, len(rows), 1, vocab_size)
            last = torch.tensor([prompt[-1:] for prompt in _PROMPTS], device=runner.device)
            runner.admit([*rows], [*rows])
            ours = runner.read(last, torch.zeros_like(last[:, 0]), len(_PROMPTS[0]) - 1)[0][:, 0]
        if not compared:
            return ours, ours
        with active(model) as own:
            texts = [torch.tensor([prompt], device=runner.device) for prompt in _PROMPTS]
            logits = [own(input_ids=text, use_cache=False).logits[0, -1, :vocab_size] for text in texts]
    return ours, torch.stack(logits).to(ours)
