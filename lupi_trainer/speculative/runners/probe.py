"""A few tokens read from a cache and at once: models of kinds that may count positions in a way of their own."""

from __future__ import annotations

from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from ...models.private import supports_sdpa
from .attention import ragged_attention
from .runner import Runner
from .support import active, base_model, evaluating, keeps_states, text_config


_PROMPTS = [[1, 2, 3, 4, 2, 1], [3, 1, 2, 2]]  # rows of different lengths
_READ = 3  # of their tokens at once, behind the others
_right: WeakSet = WeakSet()  # models that were tried


def require_own_logits(model, role: str) -> None:
    """Raises ValueError, with the model's name, where a text cannot be read piece by piece, or is not what the model
    reads in it.

    Models with an attention of their own are tried, once each: some cannot be run on the cache of a rollout. So are
    decoders that were made of encoders (those whose configuration has `is_decoder`) and models with recurrent states,
    whose logits are compared: some count positions from their padding token, or take none, or read several tokens
    without the state before them. All others are known to read as they are told to.
    """
    inner = base_model(model)
    was_encoder, recurrent = hasattr(text_config(model), "is_decoder"), keeps_states(model)
    has_own_way = isinstance(inner, PreTrainedModel) and not supports_sdpa(inner)
    if not (was_encoder or recurrent or has_own_way) or inner in _right:
        return
    name, vocab_size = f"the {role} {type(inner).__name__}", text_config(model).vocab_size
    try:
        ours, theirs = _logits(model, vocab_size, compared=was_encoder or recurrent)
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
            begun = [prompt[: 1 - _READ] for prompt in _PROMPTS]
            runner = Runner(model, begun, len(rows), _READ, vocab_size, widest=_READ)
            last = torch.tensor([prompt[-_READ:] for prompt in _PROMPTS], device=runner.device)
            runner.admit([*rows], [*rows])
            ours = runner.read(last, torch.zeros_like(last[:, 0]), len(begun[0]) - 1)[0][:, -1]
        if not compared:
            return ours, ours
        with active(model) as own:
            texts = [torch.tensor([prompt], device=runner.device) for prompt in _PROMPTS]
            logits = [own(input_ids=text, use_cache=False).logits[0, -1, :vocab_size] for text in texts]
    return ours, torch.stack(logits).to(ours)
