"""A few tokens read from a cache and at once: models of kinds that may count positions in a way of their own."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from ...models.private import supports_sdpa
from .attention import ragged_attention
from .runner import Runner
from .support import active, base_model, evaluating, keeps_states, rounding, text_config


_PROMPTS = [[1, 2, 3, 4, 2, 1], [3, 1, 2, 2]]  # rows of different lengths
_READ = 3  # of their tokens at once, behind the others
_found: WeakKeyDictionary = WeakKeyDictionary()  # models that were tried -> their fault, or None


def require_own_logits(model, role: str) -> None:
    """Raises ValueError, with the model's name, where it has a `reading_fault`."""
    if (fault := reading_fault(model)) is not None:
        raise ValueError(f"the {role} {type(base_model(model)).__name__}{fault}, which drafting and verifying need")


def reading_fault(model) -> str | None:
    """Why a text cannot be read piece by piece, or is not what the model reads in it, as the rest of a sentence.

    Models with an attention of their own are tried, once each: some cannot be run on the cache of a rollout. So are
    decoders that were made of encoders (those whose configuration has `is_decoder`) and models with recurrent states,
    whose logits are compared: some count positions from their padding token, or take none, or read several tokens
    without the state before them. All others are known to read as they are told to.
    """
    inner = base_model(model)
    was_encoder, recurrent = hasattr(text_config(model), "is_decoder"), keeps_states(model)
    has_own_way = isinstance(inner, PreTrainedModel) and not supports_sdpa(inner)
    if not (was_encoder or recurrent or has_own_way):
        return None
    if inner not in _found:
        _found[inner] = _fault(model, compared=was_encoder or recurrent)
    return _found[inner]


def _fault(model, compared: bool) -> str | None:
    try:
        ours, theirs = _logits(model, text_config(model).vocab_size, compared)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        return f" does not run on the cache of a rollout ({error})"
    off = (ours - theirs).abs().max()
    if off > rounding(model) * theirs.abs().max():  # not so of NaN, which what trains names as a fault of the weights
        return f" does not read its positions as it is told to (its logits are off by {off.item():.2g})"
    return None


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
