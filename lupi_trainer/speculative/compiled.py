"""The two steps that make up a rollout, plain functions of a model and its cache, and how they are compiled.

They are module-level functions on purpose: what `torch.compile` made of them outlives a rollout, so the next one of
the same shapes runs at once.
"""

from __future__ import annotations

import functools
import warnings
import weakref

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from .noise import STUDENT, sample


_GRAPHS = 64  # shapes that one step may be compiled for
_BACKEND = "inductor"

_refused: weakref.WeakSet = weakref.WeakSet()  # models that could not be compiled
_opened: weakref.WeakSet = weakref.WeakSet()  # models that have been asked for hidden states before


@functools.cache
def span(visible: int) -> torch.Tensor:
    """`visible` slots as the length of a tensor: one graph serves them all, where a number would be compiled in."""
    slots = torch.empty(visible, dtype=torch.bool)
    torch._dynamo.maybe_mark_dynamic(slots, 0)
    return slots


def read(model, cache, tokens, offsets, visible, vocab_size, keep_hidden):
    """tokens [A, Q] at offsets [A] -> (logits [A, Q, V] float32, what lm_head read [A, Q, H] or None).

    For a single row `offsets` may be an int. `visible`: how many slots attention looks at, or their `span`.
    """
    if isinstance(offsets, int):
        positions = cache.seek_alone(offsets, tokens.shape[1], tokens.device)
    else:
        visible = visible if isinstance(visible, int) else visible.shape[0]
        positions = cache.seek(offsets, tokens.shape[1], visible)
    out = model(
        input_ids=tokens,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=keep_hidden,
    )
    return out.logits[..., :vocab_size].float(), out.hidden_states[-1] if keep_hidden else None


def write(model, cache, tokens, offsets, visible, vocab_size, temperature, keys, positions):
    """tokens [A, 1] at offsets [A] -> (the student's next token [A, 1], its logits [A, V] float32)."""
    logits = read(model, cache, tokens, offsets, visible, vocab_size, False)[0][:, -1]
    return sample(logits, temperature, keys, positions, STUDENT)[:, None], logits


@functools.cache
def _compiled(function):
    return torch.compile(function, fullgraph=True, dynamic=False, backend=_BACKEND)


def _open(model) -> None:
    """Lets transformers install what collects hidden states; it does so under a lock, which cannot be traced."""
    if model not in _opened:
        device = model.get_input_embeddings().weight.device
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        model(input_ids=token, use_cache=False, output_hidden_states=True)
        _opened.add(model)


def call(function, model, *args, compile: bool):
    """Calls `function(model, *args)`, compiled if wanted; where that fails, says so and runs it as it is."""
    if not compile or model in _refused:
        return function(model, *args)
    _open(model)
    try:
        with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
            return _compiled(function)(model, *args)
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        _refused.add(model)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        warnings.warn(
            f"compile=True: {type(model).__name__} runs without compilation from here on, because torch.compile "
            f"failed ({type(error).__name__}: {reason})",
            RuntimeWarning,
        )
        return function(model, *args)
